"""Worker of ``step.py``: a step of Tunix's GRPOLearner on text, for an interpreter with google-tunix.

What costs Tunix time and does nothing here is off: the reference model (beta is 0) and checkpoints. No token ends a
completion. Its sampler cannot be told to leave the padding token out, and its learner masks that token, so about one
token in five hundred is not trained on; nor does its sampling noise change from step to step, its default.
"""

import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import worker
from flax import nnx
from transformers import PreTrainedTokenizerFast
from tunix.models.qwen2 import model as qwen2, params as checkpoint
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout


def main() -> None:
    """Answers one line for every step."""
    spec, say = worker.start()
    logging.disable(logging.INFO)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(spec["folder"])
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        model = checkpoint.create_model_from_safe_tensors(spec["folder"], architecture(spec), mesh, jnp.float32)
    talks = [[{"role": "user", "content": text}] for text in spec["questions"]]
    texts = [tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in talks]
    ids = [tokenizer.encode(text) for text in texts]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    say(prompts=ids, logits=logits(model, ids[0]), parameters=parameters)

    longest = max(map(len, ids))
    cluster = rl_cluster.RLCluster(actor=model, tokenizer=tokenizer, cluster_config=settings(spec, mesh, longest))
    made: dict[str, Any] = {}
    generate = cluster.rollout.generate

    def counted(*arguments: Any, **named: Any) -> Any:
        output = generate(*arguments, **named)
        made["tokens"] = sum(map(len, output.tokens))
        return output

    def reward(prompts: list, completions: list[str], **_: Any) -> list[float]:
        scores = [worker.reward(text) for text in completions]
        made["reward"] = float(np.mean(scores))
        return scores

    def batches() -> Iterator[dict]:
        """The batch of every step; being asked for the next is the end of the step before."""
        for _ in worker.requests():
            with worker.Stopwatch() as watch:
                rendered = [
                    tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in talks
                ]
                yield {"prompts": np.array(rendered)}
                jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
            say(**watch.spent, **made, memory=None)

    cluster.rollout.generate = counted
    algorithm = grpo_learner.GRPOConfig(num_generations=spec["rollouts"], beta=0.0, loss_agg_mode="token-mean")
    learner = grpo_learner.GRPOLearner(rl_cluster=cluster, algo_config=algorithm, reward_fns=reward)
    with mesh:
        learner.train(batches())


def architecture(spec: dict) -> qwen2.ModelConfig:
    """The model of the checkpoint folder."""
    config = json.loads((pathlib.Path(spec["folder"]) / "config.json").read_text())
    return qwen2.ModelConfig(
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        num_kv_heads=config["num_key_value_heads"],
        rope_theta=int(config["rope_theta"]),
        norm_eps=config["rms_norm_eps"],
        use_tied_embedding=config["tie_word_embeddings"],
    )


def settings(spec: dict, mesh: jax.sharding.Mesh, longest: int) -> rl_cluster.ClusterConfig:
    """One mesh for all roles, the plain sampler, AdamW, one update a batch."""
    prompts = len(spec["questions"])
    return rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys((rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT), mesh),
        rollout_engine="vanilla",
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.0)),
            eval_every_n_steps=10**6,
            max_steps=10**6,
            mini_batch_size=prompts,
            train_micro_batch_size=prompts,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=spec["tokens"],
            max_prompt_length=longest,
            kv_cache_size=longest + spec["tokens"],
            temperature=1.0,
            top_p=1.0,
            eos_tokens=[-1],
        ),
    )


def logits(model: Any, ids: list[int]) -> list[float]:
    """Logits of the first tokens after a prompt."""
    count = len(ids)
    mask = jnp.tril(jnp.ones((1, count, count), bool))
    out, _ = model(jnp.array([ids]), jnp.arange(count)[None], None, mask)
    return np.asarray(out[0, -1, :32], np.float32).tolist()


if __name__ == "__main__":
    main()
