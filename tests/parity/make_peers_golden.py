"""Makes tests/golden/peers.json: what verl's and TRL's own functions give for small invented batches.

    python3.11 -m venv peers
    peers/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate datasets omegaconf codetiming
    peers/bin/pip install pyvers cloudpickle orjson
    peers/bin/pip install --no-deps verl==0.9.1 trl==1.16.0 tensordict==0.15.3
    peers/bin/python tests/parity/make_peers_golden.py

Every input is a float32 number. verl's functions are given tensors of float64 (they compute in the type they get,
only GDPO casts to float32), so that its rounding does not hide in ours. TRL computes advantages inside its trainer:
the real GRPOTrainer and RLOOTrainer run one step on the CPU with a tiny random model and reward functions that return
the numbers given here, and the advantages are read from the trainer's log, in float32. Its loss is the trainer's own
method on log-probabilities given here.

The largest difference between verl in float32 and in float64 is printed for each batch: that is its rounding.
"""

# pyright: reportMissingImports=false

import json
import os
import pathlib
import sys
import tempfile
from importlib.metadata import version
from typing import Any
from unittest import mock

import numpy as np


os.environ["HF_HUB_OFFLINE"] = "1"
sys.modules["ray"] = mock.MagicMock(__path__=[])  # verl imports it at the top; nothing here calls it

ROOT = pathlib.Path(__file__).parents[2]
MODES = {"token": "token-mean", "sequence": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}


def main() -> None:
    packages = ["verl", "trl", "torch", "transformers"]
    batches, components, tokens = reward_batches(), component_batch(), token_batch()
    golden = {
        "versions": {name: version(name) for name in packages},
        "batches": batches,
        "components": components,
        "tokens": tokens,
        "verl": {
            "advantages": verl_advantages(batches),
            "gdpo": verl_gdpo(components),
            "losses": verl_losses(tokens),
            "aggregate": verl_aggregates(tokens),
            "kl": verl_kl(tokens),
            "importance_weights": verl_importance_weights(tokens),
        },
        "trl": {"advantages": trl_advantages(), "losses": trl_losses(tokens)},
    }
    path = ROOT / "tests" / "golden" / "peers.json"
    path.write_text(as_text(golden) + "\n")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


# Inputs


def reward_batches() -> dict[str, dict[str, Any]]:
    """Rewards of 5 prompts x 8 or 2 rollouts, lengths 1 .. 20 in tokens, and the reward of a greedy answer."""
    rng = np.random.default_rng(0)
    batches = {}
    for rollouts in (8, 2):
        shape = (5, rollouts)
        binary = rng.integers(0, 2, shape)
        binary[0], binary[1], binary[2, :2] = 0, 1, (0, 1)
        fractions = rng.uniform(-1, 2, shape)
        constant = fractions.copy()
        constant[0], constant[1], constant[2] = 0.3, -0.7, 0
        sixteenths = rng.permuted(np.tile(np.arange(16), (5, 1)), axis=1)[:, :rollouts] / 16
        rewards = {"binary": binary, "fractions": fractions, "constant": constant, "offset": sixteenths + 1000}
        for name, values in rewards.items():
            batches[f"{name}_{rollouts}"] = {
                "rewards": single(values),
                "lengths": rng.integers(1, 21, shape).tolist(),
                "greedy": single(rng.uniform(0, 1, 5)),
            }
    return batches


def component_batch() -> dict[str, Any]:
    """Three rewards per rollout: binary, a fraction on a scale of its own, and one that is constant in most prompts."""
    rng = np.random.default_rng(1)
    values = np.stack([rng.integers(0, 2, (4, 8)), rng.uniform(0, 50, (4, 8)), np.ones((4, 8))], axis=2)
    values[0, :, 0] = 1
    values[1, 3, 2] = 0.5
    return {
        "rewards": single(values),
        "weights": [1.0, 0.5, 2.0],
        "lengths": rng.integers(1, 21, (4, 8)).tolist(),
    }


def token_batch() -> dict[str, Any]:
    """Log-probabilities of 3 prompts x 4 rollouts x 6 tokens; the last rollout has no token."""
    rng = np.random.default_rng(2)
    shape = (3, 4, 6)
    old = -rng.exponential(1.0, shape)
    lengths = rng.integers(1, 7, shape[:2])
    lengths[2, 3] = 0
    return {
        "logprobs": single(np.minimum(old + rng.normal(0, 0.5, shape), -0.01)),
        "old_logprobs": single(old),
        "sampler_logprobs": single(np.minimum(old + rng.normal(0, 0.5, shape), -0.01)),
        "advantages": single(rng.normal(0, 1, shape[:2])),
        "mask": (np.arange(6) < lengths[..., None]).astype(int).tolist(),
    }


# verl


def verl_advantages(batches: dict[str, Any]) -> dict[str, Any]:
    import torch

    golden: dict[str, Any] = {}
    for name, batch in batches.items():
        exact = verl_estimators(batch, torch.float64)
        rounded = verl_estimators(batch, torch.float32)
        errors = {key: np.abs(rounded[key] - exact[key]).max() for key in exact}
        print(f"{name:12}", "  ".join(f"{key} {error:.0e}" for key, error in errors.items()))
        for key, value in exact.items():
            golden.setdefault(key, {})[name] = value.tolist()
    return golden


def verl_estimators(batch: dict[str, Any], dtype: Any) -> dict[str, np.ndarray]:
    """(P, G) advantages of every estimator. The rows are shuffled, so that prompts are told apart by id only."""
    import torch
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    rewards, lengths = np.array(batch["rewards"]), np.array(batch["lengths"])
    shape, order = rewards.shape, np.random.default_rng(3).permutation(rewards.size)
    prompt = np.repeat(np.arange(shape[0]), shape[1])[order]
    mask = torch.tensor(np.arange(20) < lengths.reshape(-1, 1)[order]).to(dtype)
    scores = at_last_token(torch.tensor(rewards.reshape(-1)[order], dtype=dtype), mask)
    ids = np.array([f"prompt {i}" for i in prompt], dtype=object)
    greedy = torch.tensor(np.array(batch["greedy"])[prompt], dtype=dtype)
    common = {"token_level_rewards": scores, "response_mask": mask, "config": AlgoConfig(gamma=1.0)}
    special = {
        "grpo": ("grpo", {"index": ids}),
        "dr_grpo": ("grpo", {"index": ids, "norm_adv_by_std_in_grpo": False}),
        "reinforce_plus_plus": ("reinforce_plus_plus", {}),
        "remax": ("remax", {"reward_baselines": greedy}),
    }
    names = ["grpo_passk", "rloo", "rloo_vectorized", "reinforce_plus_plus_baseline", "opo", "gpg"]
    calls = special | {name: (name, {"index": ids}) for name in names}
    return {
        key: per_rollout(get_adv_estimator_fn(name)(**common, **options)[0], mask, order).reshape(shape)
        for key, (name, options) in calls.items()
    }


def verl_gdpo(batch: dict[str, Any]) -> list[Any]:
    import torch
    from omegaconf import OmegaConf
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    rewards, lengths = np.array(batch["rewards"], np.float32), np.array(batch["lengths"])
    prompts, rollouts, number = rewards.shape
    order, keys = np.arange(prompts * rollouts), [f"reward {k}" for k in range(number)]
    mask = torch.tensor(np.arange(20) < lengths.reshape(-1, 1)).long()
    flat = rewards.reshape(-1, number)
    advantages, _ = get_adv_estimator_fn("gdpo")(
        token_level_rewards=at_last_token(torch.tensor(flat.sum(1)), mask.float()),
        response_mask=mask,
        index=np.repeat(np.arange(prompts), rollouts),
        config=OmegaConf.create({"gdpo_reward_keys": keys, "gdpo_reward_weights": batch["weights"]}),
        non_tensor_batch={key: flat[:, k] for k, key in enumerate(keys)},
        batch={
            "prompts": torch.zeros(len(flat), 3),
            "attention_mask": torch.cat([torch.ones(len(flat), 3).long(), mask], 1),
        },
    )
    return per_rollout(advantages, mask, order).reshape(prompts, rollouts).tolist()


def verl_losses(tokens: dict[str, Any]) -> list[dict[str, Any]]:
    """Loss, its gradient by the log-probabilities, and the shares of bounded tokens."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import ActorConfig

    names = {"clip": "vanilla", "gspo": "gspo", "cispo": "cispo"}
    bounds = {"clip": [(0.2, 0.28, 3.0), (0.1, 0.1, 1.5)], "gspo": [(0.2, 0.28, None)]}
    bounds["cispo"] = [(0.2, 0.28, None), (1.0, 0.5, None)]
    cases = [(kind, bound, mode, False) for kind in names for bound in bounds[kind] for mode in MODES]
    cases += [(kind, bounds[kind][0], "token", True) for kind in names]
    golden = []
    for kind, (low, high, dual), mode, weighted in cases:
        rows = token_rows(tokens)
        logprobs = rows["logprobs"].requires_grad_()
        level = "sequence" if kind == "gspo" else "token"
        weights = importance_weights(rows, level, "2.0") if weighted else None
        config = ActorConfig(
            strategy="fsdp",
            rollout_n=4,
            use_dynamic_bsz=True,
            clip_ratio_low=low,
            clip_ratio_high=high,
            clip_ratio_c=dual or 3.0,
            global_batch_info={},
        )
        loss, metrics = get_policy_loss_fn(names[kind])(
            rows["old_logprobs"], logprobs, rows["advantages"], rows["mask"], MODES[mode], config, weights
        )
        loss.backward()
        golden.append(
            {
                "options": {"kind": kind, "clip_low": low, "clip_high": high, "dual_clip": dual, "aggregation": mode},
                "weights": level if weighted else None,
                "loss": loss.item(),
                "gradient": logprobs.grad.reshape(3, 4, 6).tolist(),
                "clipped": metrics["actor/pg_clipfrac"],
                "dual_clipped": metrics["actor/pg_clipfrac_lower"],
            }
        )
    return golden


def verl_aggregates(tokens: dict[str, Any]) -> list[dict[str, Any]]:
    """The log-probabilities themselves, aggregated: alone, and as part of a batch of 100 tokens in 20 rollouts."""
    from verl.trainer.ppo.core_algos import agg_loss

    rows = token_rows(tokens)
    whole = {"batch_num_tokens": 100, "global_batch_size": 20, "loss_scale_factor": 16}
    modes = [*MODES.values(), "token-sum", "seq-mean-token-sum"]
    cases = [(mode, options) for mode in modes for options in ({}, whole)]
    return [
        {
            "mode": mode,
            "whole": bool(options),
            "value": agg_loss(rows["logprobs"], rows["mask"], mode, **options).item(),
        }
        for mode, options in cases
    ]


def verl_kl(tokens: dict[str, Any]) -> dict[str, Any]:
    """Divergence of each token from the old policy, and its gradient by the log-probabilities."""
    from verl.trainer.ppo.core_algos import kl_penalty

    golden = {}
    for name in ("k1", "k2", "k3", "low_var_kl"):
        rows = token_rows(tokens)
        logprobs = rows["logprobs"].requires_grad_()
        values = kl_penalty(logprobs, rows["old_logprobs"], name)
        values.sum().backward()
        golden[name] = {"value": values.reshape(3, 4, 6).tolist(), "gradient": logprobs.grad.reshape(3, 4, 6).tolist()}
    return golden


def verl_importance_weights(tokens: dict[str, Any]) -> list[dict[str, Any]]:
    """Truncated at 2, and set to 0 above 1.5 (verl's IcePop with a lower bound of 0)."""
    rows = token_rows(tokens)
    cases = [(level, mode) for level in ("token", "sequence") for mode in ("truncate", "mask")]
    caps = {"truncate": (2.0, "2.0"), "mask": (1.5, "1e-9_1.5")}
    return [
        {
            "options": {"level": level, "mode": mode, "cap": caps[mode][0]},
            "weights": importance_weights(rows, level, caps[mode][1]).reshape(3, 4, 6).tolist(),
        }
        for level, mode in cases
    ]


def importance_weights(rows: dict[str, Any], level: str, threshold: str) -> Any:
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    log_ratio = (rows["old_logprobs"] - rows["sampler_logprobs"]).detach()
    return compute_rollout_correction_weights(log_ratio, rows["mask"], level, threshold)[0]


def token_rows(tokens: dict[str, Any]) -> dict[str, Any]:
    """(P, G, T) arrays as (P G, T) tensors; an advantage at every token."""
    import torch

    arrays = {name: np.array(values, np.float64) for name, values in tokens.items()}
    arrays["advantages"] = np.repeat(arrays["advantages"][..., None], 6, axis=2)
    return {name: torch.tensor(values.reshape(-1, 6)) for name, values in arrays.items()}


def at_last_token(scores: Any, mask: Any) -> Any:
    """Outcome rewards as verl carries them: at the last token of the answer, 0 elsewhere."""
    rewards = mask.new_zeros(mask.shape)
    rewards[range(len(scores)), mask.sum(1).long() - 1] = scores
    return rewards


def per_rollout(advantages: Any, mask: Any, order: np.ndarray) -> np.ndarray:
    """The one value that every token of a rollout carries, in the order before the shuffle."""
    first = advantages[:, 0]
    assert (advantages == first[:, None] * mask).all()
    values = np.empty(len(first))
    values[order] = first.double().numpy()
    return values


# TRL


def trl_advantages() -> list[dict[str, Any]]:
    """Cases of (P, G, K) rewards; null is a reward function that returned None."""
    one = [
        [[1.0], [0.0], [None], [0.5]],
        [[0.2], [0.3], [0.4], [0.4]],
        [[1.0], [1.0], [1.0], [1.0]],
        [[None], [0.75], [None], [-2.0]],
        [[None], [None], [None], [None]],
    ]
    two = [
        [[1.0, 10.0], [0.0, 30.0], [0.0, 20.0], [1.0, 50.0]],
        [[1.0, 5.0], [1.0, 7.5], [1.0, 1.0], [1.0, 2.0]],
        [[0.0, None], [1.0, 4.0], [None, 3.0], [0.0, 8.0]],
        [[None, None], [1.0, None], [0.0, None], [1.0, None]],
    ]
    cases = [("grpo", {"scale_rewards": scale}, one, None) for scale in ("group", "batch", "none")]
    cases += [("rloo", {"beta": 0.0}, one, None)]
    cases += [("grpo", {"multi_objective_aggregation": "normalize_then_sum"}, two, [1.0, 0.5])]
    return [
        {
            "trainer": trainer,
            "options": options,
            "rewards": rewards,
            "weights": weights,
            "advantages": trl_step(trainer, options, rewards, weights),
        }
        for trainer, options, rewards, weights in cases
    ]


def trl_step(trainer: str, options: dict[str, Any], rewards: list, weights: list[float] | None) -> list[list[float]]:
    """One step of the trainer, which takes the prompts in an order of its own."""
    seen: list[int] = []

    def component(k: int):
        def reward(prompts, completions, row, **_):
            seen[:] = row
            place = [row[:i].count(prompt) for i, prompt in enumerate(row)]
            return [rewards[prompt][rollout][k] for prompt, rollout in zip(row, place, strict=True)]

        reward.__name__ = f"reward_{k}"
        return reward

    number = len(rewards[0][0])
    run = trl_trainer(
        trainer, options | {"reward_weights": weights}, [component(k) for k in range(number)], len(rewards)
    )
    run.train()
    advantages: list[list[float]] = [[] for _ in rewards]
    for prompt, value in zip(seen, run._logs["advantages"], strict=True):
        advantages[prompt].append(value)
    return advantages


def trl_losses(tokens: dict[str, Any]) -> list[dict[str, Any]]:
    """The first two prompts, whose rollouts all have tokens. ``delta`` is TRL's bound for negative advantages."""
    import torch

    two_sided = {"epsilon": 0.2, "epsilon_high": 0.28}
    cases = [
        {"loss_type": kind, "importance_sampling_level": level, **two_sided}
        for kind in ("grpo", "dapo", "dr_grpo")
        for level in ("token", "sequence")
    ]
    cases += [{"loss_type": "dapo", "delta": 1.5, **two_sided}, {"loss_type": "cispo", "epsilon_high": 1.5}]
    golden = []
    for options in cases:
        run = trl_trainer("grpo", options, [lambda completions, **_: [0.0] * len(completions)], 2)
        rows = {name: values[:8] for name, values in token_rows(tokens).items()}
        logprobs = rows["logprobs"].requires_grad_()
        zeros = torch.zeros_like(logprobs)
        inputs = {
            "prompt_ids": zeros[:, :1].long(),
            "prompt_mask": zeros[:, :1].long(),
            "completion_ids": zeros.long(),
            "completion_mask": rows["mask"].long(),
            "advantages": rows["advantages"][:, 0],
            "old_per_token_logps": rows["old_logprobs"],
            "num_items_in_batch": rows["mask"].sum(),
        }
        run.current_gradient_accumulation_steps = 1
        run.model.train()
        with mock.patch.object(run, "_get_per_token_logps_and_entropies", return_value=(logprobs, zeros, None)):
            loss = run._compute_loss(run.model, inputs)
        loss.backward()
        golden.append({"options": options, "loss": loss.item(), "gradient": logprobs.grad.reshape(2, 4, 6).tolist()})
    return golden


def trl_trainer(trainer: str, options: dict[str, Any], rewards: list, prompts: int) -> Any:
    """A real trainer: 4 rollouts of at most 6 tokens for each prompt in one batch, on a random model."""
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    make, settings = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[trainer]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny" / "tiny_tokenizer")
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **small, **heads))
    arguments = settings(
        output_dir=tempfile.gettempdir(),  # nothing is saved
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=4 * prompts,
        num_generations=4,
        max_completion_length=6,
        max_steps=1,
        learning_rate=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    dataset = Dataset.from_list([{"prompt": f"case {i}", "row": i} for i in range(prompts)])
    return make(model=model, reward_funcs=rewards, args=arguments, train_dataset=dataset, processing_class=tokenizer)


# Numbers


def single(values: np.ndarray) -> list[Any]:
    """Rounded to float32, as Python floats."""
    return np.asarray(values, np.float32).tolist()


def as_text(value: Any, depth: int = 0) -> str:
    """JSON that a person can find things in: dictionaries and lists of cases over lines, arrays on one."""
    if depth == 4 or not isinstance(value, dict | list) or isinstance(value, list) and not isinstance(value[0], dict):
        return json.dumps(rounded(value), allow_nan=False)
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {as_text(item, depth + 1)}" for key, item in value.items()]
        return "{" + inner + ("," + inner).join(items) + outer + "}"
    return "[" + inner + ("," + inner).join(json.dumps(rounded(item), allow_nan=False) for item in value) + outer + "]"


def rounded(value: Any) -> Any:
    """Floats to 12 significant digits."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
