"""What it saves to run a prompt once in the update: ``python benchmarks/prefix.py``.

One update (gradient of the clipped loss, AdamW) of a text decoder of 4 layers of 256 on P prompts with G completions:

* once: ``learner.policy_gradient`` and ``descend``, each prompt once and its completions against its keys and values;
* repeated: one row for every completion, prompt and completion one after the other, padded to the longest;
* packed: the same rows without their padding. Sorted by length, every four rows are as long as the longest of them:
  what a kernel for packed sequences computes, give or take a few tokens, without the need for one.

All must give the same loss before anything is timed. ``ideal`` is (Tp + G Tc) / (G (Tp + Tc)) with the mean Tc,
the tokens that prompt-once has to run over those of the repeated form without padding; the output head, which nobody
shares, is not in it. FLOPs are XLA's, of the compiled program with its loops unrolled (a conditional counts with its
dearest branch); memory is the temporary memory of the compiled program. The forms take turns; times are processor
seconds of one thread, medians.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock


os.environ["NPROC"] = "1"  # one thread; read when the backend starts

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402

from fairgrpo_jax import chunking, config as options, estimators, fairness, learner, losses, models, staged  # noqa: E402
from fairgrpo_jax.models import decoder, text  # noqa: E402


PROMPTS = 4
OPTIM = options.Optim(lr=1e-6, warmup_steps=0, schedule="constant", weight_decay=0.0)
MODEL = text.tiny(
    vocab_size=8192, hidden_size=256, intermediate_size=768, num_layers=4, head_dim=64, initializer_range=0.02
)
QUICK: Any = {"xla_backend_optimization_level": 0}  # for programs that are counted and never run
TOY = text.tiny(num_layers=1, initializer_range=0.02)


class Shape(NamedTuple):
    """Prompt and completion tokens, rollouts of a prompt, and how long the completions are."""

    prompt: int
    completion: int
    rollouts: int = 8
    lengths: str = "full"

    @property
    def name(self) -> str:
        """As the command line knows it."""
        return f"{self.prompt} + {self.rollouts} x {self.completion} {self.lengths}"


SHAPES = (
    *(Shape(prompt, completion) for prompt in (64, 256, 1024) for completion in (64, 256)),
    *(Shape(256, 64, rollouts) for rollouts in (2, 4, 16)),
    *(Shape(*sizes, lengths=kind) for sizes in ((350, 256), (350, 1024), (1100, 256))
      for kind in ("narrow", "log-normal", "geometric")),
)  # fmt: skip
TOYS = (Shape(24, 16, 2, "log-normal"),)


class Case(NamedTuple):
    """One form of the update: a jitted step, and its arguments after the state."""

    step: Any
    inputs: tuple
    static: dict[str, Any]
    tokens: int  # positions that go through the layers, padding included


class Rows(NamedTuple):
    """Whole sequences of prompt and completion, padded to the longest of them."""

    prompt: models.Prompt  # N sequences of C tokens
    tokens: jax.Array  # (N, 1, M) int32, the completions again; C - M is the length of the prompt
    mask: jax.Array  # (N, 1, M) bool
    advantages: jax.Array  # (N, 1) float32


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a tiny model and one shape, to see that it runs")
    parser.add_argument("--only", default="", help='shapes whose name, as in "1024 + 8 x 256 full", contains this')
    parser.add_argument("--steps", type=int, default=3, help="timed updates of each form (default 3)")
    parser.add_argument("--update", nargs="*", default=[], metavar="NAME=VALUE", help="options of the update, as JSON")
    parser.add_argument("--json", type=pathlib.Path, help="writes every figure here, after each shape")
    chosen = parser.parse_args()
    shapes = [shape for shape in (TOYS if chosen.toy else SHAPES) if chosen.only in shape.name]
    if not shapes:
        parser.error(f"got --only {chosen.only!r}; wanted a part of one of {[shape.name for shape in SHAPES]}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    changes = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in chosen.update)}
    update = dataclasses.replace(options.Update(), **changes)
    config = TOY if chosen.toy else MODEL

    console, rows = Console(width=150), []
    for shape in track(shapes, "shapes", console=console, transient=True):
        rows.append(measure(config, shape, update, chosen.steps))
        if chosen.json:
            chosen.json.write_text(json.dumps(rows, indent=1))
    console.print(table(rows))
    console.print(f"{PROMPTS} prompts, {config.num_layers} layers of {config.hidden_size}; jax {jax.__version__}")


def table(rows: list[dict]) -> Table:
    """All figures: those of prompt-once, and the share that it is of the others'."""
    out = Table(title="The update: a prompt once (1), repeated (R), repeated and packed (K)")
    for name in ("Tp", "Tc", "G", "lengths", "ideal", "tokens 1/R", "1/K"):
        out.add_column(name, justify="right")
    for name in ("CPU s", "GFLOP", "temp MiB"):
        for column in (f"{name} 1", "1/R", "1/K"):
            out.add_column(column, justify="right")
    for row in rows:
        shape, forms = Shape(*row["shape"]), row["forms"]

        def shares(name: str, forms: dict = forms) -> list[str]:
            others = [forms.get(other) for other in ("repeated", "packed")]
            return ["-" if other is None else f"{forms['once'][name] / other[name]:.2f}" for other in others]

        cells = [*map(str, shape), f"{row['ideal']:.2f}", *shares("tokens")]
        for name, scale in (("cpu", 1), ("flops", 1e9), ("temp", 2**20)):
            cells += [f"{forms['once'][name] / scale:.3g}", *shares(name)]
        out.add_row(*cells)
    return out


def measure(config: Any, shape: Shape, update: options.Update, steps: int) -> dict:
    """The figures of all forms on one batch."""
    batch, lengths = make_batch(config, shape)
    cases = {"once": once(config, batch, update), "repeated": repeated(config, batch, update, part=lengths.size)}
    if shape.lengths != "full":
        cases["packed"] = repeated(config, batch, update, part=4)
    found: dict[str, dict] = {}
    steppers, states = {}, {}
    for name, case in cases.items():
        state = fresh(config, shape.rollouts)
        steppers[name] = case.step.lower(state, *case.inputs, **case.static).compile()
        jax.clear_caches()  # or functions that are jitted inside it would be counted as traced now, with their loops
        found[name] = {
            "tokens": case.tokens,
            "temp": steppers[name].memory_analysis().temp_size_in_bytes,
            "flops": flops(case, state),
        }
        states[name], metrics = steppers[name](state, *case.inputs)
        found[name] |= {"loss": float(metrics["loss"]), "norm": float(metrics["optim/grad_norm"])}
    for name, figures in found.items():
        for what in ("loss", "norm"):
            np.testing.assert_allclose(
                figures[what], found["once"][what], rtol=2e-3, atol=1e-5, err_msg=f"{what} of {name} at {shape}"
            )
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(steps):
        for name, case in cases.items():
            begun = time.process_time()
            states[name], _ = jax.block_until_ready(steppers[name](states[name], *case.inputs))
            times[name].append(time.process_time() - begun)
    for name in cases:
        found[name]["cpu"] = statistics.median(times[name])
    mean, G = float(lengths.mean()), shape.rollouts
    return {"shape": shape, "ideal": (shape.prompt + G * mean) / (G * (shape.prompt + mean)), "forms": found}


def fresh(config: Any, rollouts: int) -> learner.TrainState:
    """The state before the first update, always the same; the step donates it."""
    params = models.family(config).init(config, jax.random.key(0))
    moments = learner.fresh_moments(params, optim=OPTIM, steps=1)
    seen = estimators.Memory(fairness.init(1, 1, rollouts, history=None))
    return jax.device_put(learner.TrainState(params, moments, jnp.int32(0), seen), jax.devices()[0])


def make_batch(config: Any, shape: Shape) -> tuple[learner.PolicyBatch, np.ndarray]:
    """Prompts of one length with random completions whose lengths (P, G) are drawn."""
    rng = np.random.default_rng(0)
    lengths = draw(rng, shape)
    ids = rng.integers(7, config.vocab_size, (PROMPTS, shape.prompt))
    tokens = rng.integers(7, config.vocab_size, (*lengths.shape, shape.completion)).astype(np.int32)
    mask = np.arange(shape.completion) < lengths[..., None]
    batch = learner.PolicyBatch(
        prompt=models.pack({"input_ids": ids}, config),
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        sampler_logprobs=jnp.zeros(tokens.shape),
        advantages=jnp.asarray(rng.normal(size=lengths.shape), jnp.float32),
    )
    return jax.device_put(batch), lengths


def draw(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Lengths (P, G) between 1 and the limit M: all M; M/2 ± M/16; log-normal, median M/3; geometric, mean M/4."""
    size, limit = (PROMPTS, shape.rollouts), shape.completion
    values = {
        "full": lambda: np.full(size, limit),
        "narrow": lambda: rng.normal(limit / 2, limit / 16, size),
        "log-normal": lambda: rng.lognormal(np.log(limit / 3), 0.5, size),
        "geometric": lambda: rng.geometric(4 / limit, size),
    }[shape.lengths]()
    return np.clip(values.round().astype(int), 1, limit)


# ---- the forms -------------------------------------------------------------------------------------------------------


def once(config: Any, batch: learner.PolicyBatch, update: options.Update) -> Case:
    """The library's own update; the only place that calls it."""
    chunks = update.chunks or chunking.quickest(batch.tokens.shape[1], batch.tokens.size, jax.default_backend())
    static = dict(plan=staged.Plan(config, chunks, remat=update.remat), update=update)
    tokens = batch.prompt.tokens.size + batch.tokens.size
    return Case(own_step, (batch, jnp.float32(losses.denominator(batch.mask, update.aggregation))), static, tokens)


@functools.partial(jax.jit, static_argnames=("plan", "update"), donate_argnums=0)
def own_step(
    state: learner.TrainState, batch: learner.PolicyBatch, total: jax.Array, *, plan: staged.Plan, update: Any
) -> tuple[learner.TrainState, dict[str, jax.Array]]:
    """The gradient and the optimizer's step in one program, as the other forms are."""
    gradient, metrics = learner.policy_gradient(state.params, None, batch, total, plan=plan, update=update)
    return learner.descend(state, (gradient, [metrics]), OPTIM, 1, ())


def repeated(config: Any, batch: learner.PolicyBatch, update: options.Update, *, part: int) -> Case:
    """Whole rows, sorted by length, in parts of ``part`` rows that are as long as the longest of them."""
    ids, prompt, made = (np.asarray(x) for x in (batch.tokens, batch.prompt.tokens, batch.mask))
    P, G, T = ids.shape
    lengths = made.sum(-1).ravel()
    order = np.argsort(-lengths)
    parts = []
    for start in range(0, P * G, part):
        rows = order[start : start + part]
        longest = T if part == P * G else lengths[rows].max()
        completion, mask = (x.reshape(P * G, T)[rows, :longest] for x in (ids, made))
        whole = np.concatenate([prompt[rows // G], completion], axis=1)
        present = np.concatenate([np.ones((len(rows), prompt.shape[1]), int), mask], axis=1)
        packed = models.pack({"input_ids": whole, "attention_mask": present}, config, length=whole.shape[1])
        advantages = np.asarray(batch.advantages).ravel()[rows]
        parts.append(Rows(packed, *(jnp.asarray(x[:, None]) for x in (completion, mask, advantages))))
    tokens = sum(part.prompt.tokens.size for part in parts)
    return Case(rows_step, (jax.device_put(tuple(parts)),), dict(config=config, update=update), tokens)


@functools.partial(jax.jit, static_argnames=("config", "update"), donate_argnums=0)
def rows_step(state: learner.TrainState, parts: tuple[Rows, ...], *, config: Any, update: options.Update) -> tuple:
    """One update on whole sequences."""
    total = sum(part.mask.sum() for part in parts)

    def loss(params: dict) -> jax.Array:
        return sum(part_loss(params, part) for part in parts)  # pyright: ignore[reportReturnType]

    def part_loss(params: dict, part: Rows) -> jax.Array:
        hidden, _ = decoder.prompt_pass(params, config, part.prompt, remat=update.remat)
        hidden = hidden[:, None, -part.tokens.shape[-1] - 1 : -1]
        logprobs = decoder.log_probs(params, config, hidden, part.tokens)
        old = jax.lax.stop_gradient(logprobs)
        return losses.policy_loss(logprobs, old, part.advantages, part.mask, aggregation="token", normalizer=total)[0]

    value, grads = jax.value_and_grad(loss)(state.params)
    norm = optax.global_norm(grads)
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, OPTIM.max_grad_norm / (norm + 1e-6)), grads)
    updates, moments = learner.optimizer(OPTIM, 1).update(grads, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    state = dataclasses.replace(state, params=params, moments=moments, step=state.step + 1)
    return state, {"loss": value, "optim/grad_norm": norm}


# ---- counting --------------------------------------------------------------------------------------------------------


def flops(case: Case, state: learner.TrainState) -> float:
    """Floating-point operations of the compiled program, every turn of its loops counted."""
    scan: Callable = functools.partial(jax.lax.scan, unroll=True)

    def over(function: Callable, xs: Any, **_: Any) -> Any:
        return scan(lambda carry, x: (carry, function(x)), None, xs)[1]

    inner = case.step.__wrapped__
    with mock.patch.object(jax.lax, "scan", scan), mock.patch.object(jax.lax, "map", over):
        program = jax.jit(functools.partial(inner, **case.static)).lower(state, *case.inputs).compile(QUICK)
    return float((program.cost_analysis() or {})["flops"])


if __name__ == "__main__":
    main()
