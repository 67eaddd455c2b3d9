"""Gradients in stages: each prompt forward once, its rollouts in chunks of similar length, the prompt backward once.

    ends, back = vjp(prompt pass)                       ends: the last hidden state, keys and values of all layers
    for each chunk of the rollouts:
        sums += d loss / d (parameters, ends)           a forward and a backward pass of this chunk alone
    sums += back(d loss / d ends)

By the chain rule this is the gradient of the whole, while only the activations of one chunk exist at a time. The
rollouts of each prompt are sorted by length, so that chunk j holds the j-th shortest of every prompt, and a chunk is
run at the shortest of a few lengths (``ladder``) that holds its longest completion. All lengths are part of one
compiled program. The form is that of prefill and decoding; AReaL-DTA (arXiv 2602.00482) sums the gradients of keys and
values alike.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairgrpo_jax import mesh, models
from fairgrpo_jax.models import decoder, lora
from fairgrpo_jax.models.remat import Remat


STEP = 64  # tokens; lengths of the ladder are multiples of it, so short completions share one length

Ends = tuple[jax.Array, tuple[jax.Array, jax.Array]]  # last hidden (P, d); keys and values, each (L, P, Tp, K, H)
Rollouts = dict[str, jax.Array]  # "tokens" and "mask" (P, G, T), and whatever else the loss needs, (P, G) or (P, G, T)
Loss = Callable[[jax.Array, Rollouts], tuple[jax.Array, dict[str, jax.Array]]]


class Plan(NamedTuple):
    """How the passes over a batch are run; static under jit."""

    architecture: Any  # the model
    chunks: int = 1  # number of chunks of each prompt's rollouts
    temperature: float = 1.0
    remat: Remat = False


def ladder(length: int) -> tuple[int, ...]:
    """The lengths at which completions of up to ``length`` tokens are run: 1/4, 1/2, 3/4 and all of it.

    Each is rounded up to a multiple of 64, and none is longer than ``length``. Each is compiled: adding an eighth would
    take a quarter more compile time and, with all lengths equally likely, save 3 % of the tokens.

    >>> ladder(256), ladder(100), ladder(12)
    ((64, 128, 192, 256), (64, 100), (12,))
    """
    return tuple(sorted({min(length, -(-length * quarters // (4 * STEP)) * STEP) for quarters in (1, 2, 3, 4)}))


def prompt_ends(params: dict, prompt: models.Prompt, plan: Plan) -> Ends:
    """Runs each prompt once; returns what its completions need."""
    hidden, kv = decoder.prompt_pass(params, plan.architecture, prompt, remat=plan.remat)
    return decoder.last_hidden(prompt, hidden), kv


def completion_logprobs(params: dict, prompt: models.Prompt, ends: Ends, tokens: jax.Array, plan: Plan) -> jax.Array:
    """Log-probabilities (P, G, T) of the completions' tokens, from the ends of their prompts.

    The first token is predicted by the prompt's last valid position, token t by token t - 1.
    """
    last, kv = ends
    P, G, T = tokens.shape
    states = jnp.broadcast_to(last[:, None, None], (P, G, 1, last.shape[-1]))
    if T > 1:
        rest = decoder.completion_pass(params, plan.architecture, prompt, kv, tokens[..., :-1], remat=plan.remat)
        states = jnp.concatenate([states, rest], axis=2)
    return decoder.log_probs(params, plan.architecture, states, tokens, temperature=plan.temperature)


def gradients(
    loss: Loss,
    trained: dict,
    frozen: dict,
    prompt: models.Prompt,
    rollouts: Rollouts,
    plan: Plan,
    sums: dict | None = None,
) -> tuple[dict, dict[str, jax.Array]]:
    """Gradient of a loss over all chunks, and its metrics by chunk.

    Args:
        loss: maps the log-probabilities (p, g, t) of a piece of the batch and that piece of ``rollouts`` to its term of
            the loss (divided by totals of the whole batch) and metrics: ``tokens``, their number, and means over them;
            ``ratio_max`` is a maximum. A piece has the length of its chunk.
        trained: the parameters that get a gradient.
        frozen: the other parameters; ``lora.join`` merges both.
        prompt: P prompts.
        rollouts: arrays (P, G) and (P, G, T), including ``tokens`` and ``mask``.
        plan: ``chunks`` divides G.
        sums: gradients of other prompts, to which these are added; default: none.

    Returns:
        The float32 gradients of ``trained``, and a dict of ``loss``, the metrics, and ``computed``, the number of
        completion tokens with padding, each (chunks,): ``combined`` makes those of the whole batch.
    """
    sums = mesh.keep_sharded(zeros(trained)) if sums is None else sums
    ends, back = jax.vjp(lambda trained: prompt_ends(lora.join(trained, frozen), prompt, plan), trained)

    def chunk(carry, rollouts):
        def at(size):
            piece = _cut(rollouts, size)

            def value(trained, ends):
                params = lora.join(trained, frozen)
                return loss(completion_logprobs(params, prompt, ends, piece["tokens"], plan), piece)

            (part, metrics), pulls = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(trained, ends)
            return pulls, {"loss": part, "computed": jnp.float32(piece["tokens"].size)} | metrics

        (grads, pulls), metrics = _at_its_length(at, rollouts["mask"])
        return (_add_sharded(carry[0], grads), _add_ends(carry[1], pulls)), metrics

    (sums, pulls), metrics = jax.lax.scan(chunk, (sums, zeros(ends)), _chunks(rollouts, plan.chunks)[0])
    (grads,) = back(jax.tree.map(lambda pull, end: pull.astype(end.dtype), pulls, ends))
    return _add_sharded(sums, grads), metrics


def logprobs(params: dict, prompt: models.Prompt, rollouts: Rollouts, plan: Plan) -> jax.Array:
    """Log-probabilities (P, G, T) of ``rollouts["tokens"]``, computed by chunk; 0 where masked."""
    ends = prompt_ends(params, prompt, plan)

    def chunk(rollouts):
        def at(size):
            values = completion_logprobs(params, prompt, ends, rollouts["tokens"][..., :size], plan)
            return jnp.pad(values, [(0, 0), (0, 0), (0, rollouts["tokens"].shape[-1] - size)])

        return jnp.where(rollouts["mask"], _at_its_length(at, rollouts["mask"]), 0.0)

    chunks, order = _chunks({name: rollouts[name] for name in ("tokens", "mask")}, plan.chunks)
    values = jnp.moveaxis(jax.lax.map(chunk, chunks), 0, 1)
    return mesh.constrain(_reorder(values.reshape(rollouts["tokens"].shape), jnp.argsort(order, axis=1)))


def combined(metrics: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Combines the metrics of ``gradients``, one dict for each part of a batch, into those of the whole.

    ``padding_share`` is the share of padding among the completion tokens that were computed.
    """
    joined = {name: jnp.concatenate([part[name] for part in metrics]) for name in metrics[0]}
    sums = {name: joined.pop(name).sum() for name in ("loss", "computed")}
    tokens = joined.pop("tokens")
    share = tokens / jnp.maximum(tokens.sum(), 1)
    means = {name: (values * share).sum() for name, values in joined.items()}
    if "ratio_max" in joined:
        means["ratio_max"] = joined["ratio_max"].max()
    padding = 1 - tokens.sum() / sums["computed"]
    return means | {"loss": sums["loss"], "tokens": tokens.sum(), "padding_share": padding}


def _chunks(rollouts: Rollouts, chunks: int) -> tuple[Rollouts, jax.Array]:
    """Splits arrays (P, G, ...) into (chunks, P, G / chunks, ...), shortest first; also returns the order (P, G)."""
    mask = rollouts["mask"]
    order = jnp.argsort(_lengths(mask), axis=1)

    def split(x):
        x = _reorder(x, order)
        return _prompts_second(jnp.moveaxis(x.reshape(x.shape[0], chunks, x.shape[1] // chunks, *x.shape[2:]), 1, 0))

    return jax.tree.map(split, rollouts), order


def _reorder(x: jax.Array, order: jax.Array) -> jax.Array:
    """Reorders each prompt's rollouts in (P, G, ...) by ``order`` (P, G)."""
    return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)


def _lengths(mask: jax.Array) -> jax.Array:
    """Number of tokens up to the last one that is not masked."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[-1] + 1).reshape(1, 1, -1), 0), axis=-1)


def _at_its_length(run: Callable[[int], Any], mask: jax.Array) -> Any:
    """Calls ``run`` with the shortest length of the ladder that holds all tokens of the mask (P, g, T)."""
    sizes = ladder(mask.shape[-1])
    index = jnp.searchsorted(jnp.array(sizes), _lengths(mask).max())
    return jax.lax.switch(index, [lambda size=size: run(size) for size in sizes])


def _cut(rollouts: Rollouts, size: int) -> Rollouts:
    return {name: x[..., :size] if x.ndim == 3 else x for name, x in rollouts.items()}


def zeros(tree: Any) -> Any:
    """Sums of gradients, to begin with."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)


def _add_sharded(sums: Any, grads: Any) -> Any:
    return mesh.keep_sharded(jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, grads))


def _add_ends(sums: Ends, pulls: Ends) -> Ends:
    last, kv = jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, pulls)
    return mesh.constrain(last), jax.tree.map(_prompts_second, kv)


def _prompts_second(x: jax.Array) -> jax.Array:
    """Keeps axis 1 (prompts) on mesh axis ``fsdp``; without a mesh, returns ``x``."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(None, "fsdp"))
