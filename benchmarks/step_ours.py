"""Worker of ``step.py``: a GRPO step of this library, image processing and rewards included."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import worker

from fairgrpo_jax import advantages, chunking, config as options, estimators, fairness, learner, models, rollout


def main() -> None:
    """Answers one line for every step."""
    spec, say = worker.start()
    vlm = models.load(spec["folder"], dtype=spec["dtype"])
    # The end token is as impossible as the image tokens, so that every completion has its full length.
    config = dataclasses.replace(vlm.config, banned_ids=(*spec["banned"], *vlm.config.eos_ids))
    talks = [[{"role": "user", "content": content(text, spec["images"])}] for text in spec["questions"]]
    pixels = None if spec["images"] is None else [[image] for image in np.load(spec["images"])]
    optim = options.Optim(lr=1e-6, warmup_steps=0, schedule="constant", weight_decay=0.0)
    state = learner.TrainState(
        params=vlm.params,
        moments=learner.fresh_moments(vlm.params, optim=optim, steps=1),
        step=jnp.int32(0),
        memory=estimators.Memory(fairness.init(1, 1, spec["rollouts"], history=None)),
    )
    state = jax.device_put(state, jax.devices()[0])  # as the step gives it back, or the second step compiles again

    tokens = len(spec["questions"]) * spec["rollouts"] * spec["tokens"]
    chunks = chunking.quickest(spec["rollouts"], tokens, jax.default_backend())  # as a run chooses

    def step(state: learner.TrainState, number: int) -> tuple[learner.TrainState, dict]:
        prompt = jax.device_put(models.pack(vlm.processor(talks, pixels), config))
        rolled = rollout.sample(
            rollout.sampler_params(state.params),
            prompt,
            jax.random.fold_in(jax.random.key(0), number),
            architecture=config,
            num_rollouts=spec["rollouts"],
            max_new_tokens=spec["tokens"],
        )
        texts = rollout.texts(rolled, vlm.processor.tokenizer)
        rewards = jnp.array([[worker.reward(text) for text in row] for row in texts])
        batch = learner.PolicyBatch(
            prompt=prompt,
            tokens=rolled.tokens,
            mask=rolled.mask,
            sampler_logprobs=rolled.logprobs,
            advantages=advantages.grpo(rewards, epsilon=1e-4),
        )
        state, metrics = learner.policy_step(
            state,
            [batch],
            architecture=config,
            update=options.Update(remat=spec["remat"], chunks=chunks),
            optim=optim,
            temperature=1.0,
            steps=1,
        )
        return jax.block_until_ready(state), {"tokens": int(metrics["tokens"]), "reward": float(rewards.mean())}

    inputs = vlm.processor(talks, pixels)
    ids = [row[kept.astype(bool)].tolist() for row, kept in zip(inputs["input_ids"], inputs["attention_mask"])]  # noqa: B905
    first = vlm.processor(talks[:1], pixels and pixels[:1])
    say(prompts=ids, logits=vlm.logits(first)[0, -1, :32].tolist(), parameters=size(vlm.params))
    for number, _ in enumerate(worker.requests()):
        with worker.Stopwatch() as watch:
            state, made = step(state, number)
        say(**watch.spent, **made, memory=peak())


def content(text: str, images: pathlib.Path | None) -> list[dict[str, str]]:
    """A question, about an image where there are any."""
    return [{"type": "image"}] * (images is not None) + [{"type": "text", "text": text}]


def size(params: dict) -> int:
    """Parameters, each counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def peak() -> int | None:
    """Most bytes of an accelerator that were ever in use; None where the platform does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


if __name__ == "__main__":
    main()
