"""The attention of ``gpu.py``: how near the kernels come to plain JAX in float32, by kind of mask."""

from typing import Any

import jax
import jax.numpy as jnp

from fairgrpo_jax.models.attention import Masks, attend


def errors_of(configs: dict[str, Any], *, group: int, tokens: int, prompt: int) -> dict[str, Any]:
    """Largest errors of the kernel's value and gradients, beside those of plain JAX in the same dtype.

    Args:
        configs: models by name.
        group: completions of a prompt.
        tokens: of a completion.
        prompt: tokens of the longest prompt.
    """
    kernel = "cudnn" if jax.default_backend() == "gpu" else "mapped"
    lines = {}
    cases = [(name, *case) for name, config in configs.items() for case in cases_of(config, group, tokens, prompt)]
    for name, what, arguments, masks in cases:

        def errors(implementation: str, arguments: tuple = arguments, masks: Any = masks) -> list[float]:
            def run(dtype: Any, implementation: str) -> Any:
                cast = jax.tree.map(lambda x: x.astype(dtype), arguments[:3])

                def total(q: Any, shared: Any, own_kv: Any) -> Any:
                    out = attend(q, shared, own_kv, masks, implementation=implementation).astype(jnp.float32)
                    return (out * arguments[3]).sum(), out

                grads, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*cast)
                return jax.tree.map(lambda x: x.astype(jnp.float32), (out, *jax.tree.leaves(grads)))

            pairs = zip(run(jnp.bfloat16, implementation), run(jnp.float32, "plain"), strict=True)
            return [float(jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted)) for got, wanted in pairs]

        found, plain = errors(kernel), errors("plain")
        text = ", ".join(f"{a:.1e} ({b:.1e})" for a, b in zip(found, plain, strict=True))
        right = all(a <= 2 * b for a, b in zip(found, plain, strict=True))
        lines[f"{name}, {what}: {kernel} (plain)"] = {
            "errors": found,
            "plain": plain,
            "text": f"{text}: {'as' if right else 'NOT as'} near",
        }
    return {"lines": lines, "failed": any("NOT" in line["text"] for line in lines.values())}


def cases_of(config: Any, G: int, T: int, Tp: int) -> list[tuple[str, tuple, Any]]:
    """Queries, keys, values and weights of the output with masks: of completions, of windows, of images in prompts.

    Windows are a third of a prompt, so that they end inside; the last third of each prompt is an image, read both ways.
    """
    P, N, K, H = 2, config.num_heads, config.num_kv_heads, config.head_dim
    keys = iter(jax.random.split(jax.random.key(0), 12))
    normal = lambda *shape: jax.random.normal(next(keys), shape).astype(jnp.bfloat16).astype(jnp.float32)
    own, prompt = (P, G, T, K, H), (P, Tp, K, H)
    lengths = jnp.array([Tp, Tp * 2 // 3], jnp.int32)
    steps, places = jnp.arange(T), jnp.arange(Tp)
    seen, causal = (places < lengths[:, None])[:, None], steps[:, None] >= steps
    arguments = normal(P, G, T, N, H), (normal(*prompt), normal(*prompt)), (normal(*own), normal(*own))
    arguments = (*arguments, normal(P, G, T, N * H))
    cases = [("completions", arguments, Masks(causal, seen, lengths))]
    if not any(config.local_layers):
        return cases
    window = Tp // 3
    near = causal & (steps[:, None] - steps < window)
    since = lengths[:, None, None] + steps[:, None] - places
    cases.append(("window", arguments, Masks(near, seen & (since < window), lengths, (True, window))))
    block = jnp.where((places >= lengths[:, None] * 2 // 3) & seen[:, 0], 1, 0)
    same = (block[:, :, None] == block[:, None]) & (block[:, None] > 0)
    masks = Masks(((places[:, None] >= places) | same) & seen, lengths=lengths, block=block)
    itself = normal(P, 1, Tp, K, H), normal(P, 1, Tp, K, H)
    real = seen[:, :, :, None].transpose(0, 2, 1, 3).reshape(P, 1, Tp, 1)  # nothing is promised at padding
    cases.append(("images", (normal(P, 1, Tp, N, H), None, itself, normal(P, 1, Tp, N * H) * real), masks))
    return cases
