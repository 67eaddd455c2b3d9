"""The recipe of docs/torch.md in a real TRL trainer: it trains on our advantages, unchanged."""

import os
from typing import Any

import numpy as np
import pytest

from fairgrpo_jax import fairness, interop, losses
from fairgrpo_jax.models.tiny.tokenizer import FOLDER
from fairgrpo_jax.sampler import FairSampler


pytest.importorskip("torch")
pytest.importorskip("trl")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PROMPTS, GENERATIONS, STEPS = 6, 4, 2
COLUMNS = [{"prompt": f"case {i}", "domain": i % 2, "group": i % 3 - 1, "answer": 2 + i % 3} for i in range(PROMPTS)]


def arguments(folder) -> dict[str, Any]:
    """A tiny model and the options that every trainer here shares."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig  # pyright: ignore[reportMissingImports]

    small: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=1, **small)
    )
    options = GRPOConfig(
        output_dir=str(folder),
        scale_rewards="none",
        num_generations=GENERATIONS,
        per_device_train_batch_size=PROMPTS * GENERATIONS,
        max_completion_length=6,
        max_steps=STEPS,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    return {"model": model, "args": options, "processing_class": tokenizer}


def test_trl_trains_on_our_advantages(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOTrainer  # pyright: ignore[reportMissingImports]

    fair_grpo = interop.on_numpy(fairness.fair_grpo)
    batches, trained = [], []
    state = fairness.init(2, 2, GENERATIONS, history=None)

    def fair_reward(completions, domain, group, answer, log_metric, **_):
        nonlocal state
        ids = np.arange(len(completions)) // GENERATIONS
        scores = np.array([len(text) % answer[i] == 0 for i, text in enumerate(completions)], np.float32)
        rows = interop.layout(ids)
        rewards = interop.by_prompt(scores, rows)
        arrays = rewards, np.array(domain)[rows[:, 0]], np.array(group)[rows[:, 0]]
        values, state = fair_grpo(*arrays, state, max_weight=4.0)
        batches.append(values)
        log_metric("score", float(scores.mean()))
        return interop.by_sample(values, rows).tolist()

    class Watched(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            outputs = super()._generate_and_score_completions(inputs)
            trained.append(outputs["advantages"].cpu().numpy().reshape(-1, GENERATIONS))
            return outputs

    Watched(**arguments(tmp_path), reward_funcs=fair_reward, train_dataset=Dataset.from_list(COLUMNS)).train()

    assert len(trained) == len(batches) == STEPS
    for got, wanted in zip(trained, batches, strict=True):
        assert np.abs(wanted).max() > 0.5
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert int(state.domain_count.sum()) == PROMPTS * STEPS


def test_trl_trains_on_prompts_drawn_by_group(tmp_path, monkeypatch):
    """The recipe of docs/torch.md: the sampler draws TRL's batches, and the reward function feeds it."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOTrainer  # pyright: ignore[reportMissingImports]

    rows = [{"prompt": f"case {i}", "domain": 0, "group": int(i >= 36)} for i in range(40)]
    drawn = FairSampler([0] * 40, [row["group"] for row in rows], batch_size=PROMPTS, seed=0, window=1)
    seen = []

    def scored(prompts, completions, domain, group, **_):
        places = interop.layout(np.arange(len(completions)) // GENERATIONS)
        scores = np.array([float(g == 0) for g in group], np.float32)  # the rare group is always wrong
        first = places[:, 0]
        drawn.observe(interop.by_prompt(scores, places), np.array(domain)[first], np.array(group)[first])
        seen.append([int(prompt.split()[1]) for prompt in prompts])
        return scores.tolist()

    class Fair(GRPOTrainer):
        def _get_train_sampler(self, dataset=None):
            repeats = self.num_iterations * self.args.steps_per_generation
            return interop.Repeated(drawn, generations=GENERATIONS, repeats=repeats, batches=STEPS)

    Fair(**arguments(tmp_path), reward_funcs=scored, train_dataset=Dataset.from_list(rows)).train()
    again = FairSampler([0] * 40, [row["group"] for row in rows], batch_size=PROMPTS, seed=0, window=1)
    assert len(seen) == STEPS
    assert seen[0] == np.repeat(next(again), GENERATIONS).tolist()
    assert all(
        len(batch) == PROMPTS * GENERATIONS and sum(row >= 36 for row in batch) >= 2 * GENERATIONS for batch in seen
    )
    assert drawn.probabilities_now()[0, 1] > 0.5 and float(drawn.hardness_state.mass.sum()) > PROMPTS


@pytest.mark.parametrize("corrected", [True, False])
def test_the_loss_with_a_kl_term_is_that_of_trl(tmp_path, monkeypatch, corrected):
    """Value and gradient after an update, with TRL's default of 1.16 and without; the model's pass is given."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    import jax
    import torch  # pyright: ignore[reportMissingImports]
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOTrainer  # pyright: ignore[reportMissingImports]

    given = arguments(tmp_path)
    given["args"].loss_type, given["args"].use_bias_correction_kl = "grpo", corrected
    trainer = GRPOTrainer(
        **given,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list(COLUMNS),
    )
    trainer.current_gradient_accumulation_steps, trainer.beta = 1, 0.3  # given later: no reference model is loaded
    rng = np.random.default_rng(0)
    new, old, reference = (-rng.exponential(1, (4, 5)).astype(np.float32) for _ in range(3))
    mask, advantages = np.arange(5) < np.array([[5], [3], [1], [4]]), rng.normal(size=4).astype(np.float32)
    torch.manual_seed(0)
    logps = torch.tensor(new, requires_grad=True)
    passed = lambda *_, **__: (logps, torch.zeros_like(logps), None)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", passed)
    ids = torch.ones((4, 5), dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": torch.tensor(mask).long(),
    }
    inputs |= {"advantages": torch.tensor(advantages), "old_per_token_logps": torch.tensor(old)}
    inputs |= {"ref_per_token_logps": torch.tensor(reference), "num_items_in_batch": torch.tensor(mask.sum())}
    wanted = trainer._compute_loss(trainer.model, inputs)
    wanted.backward()

    def loss(x):
        value, _ = losses.policy_loss(x, old, advantages, mask, aggregation="sequence")
        kl = losses.kl(x, reference, mask=mask, old_logprobs=old if corrected else None)
        return value + 0.3 * losses.aggregate(kl, mask, aggregation="sequence")

    value, gradient = jax.value_and_grad(loss)(new)
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logps.grad.numpy(), rtol=1e-4, atol=1e-6)
