"""Every implementation of attention against jax.nn's with the prompt repeated for every rollout, in value and gradient.

No GPU or TPU is needed: the TPU kernel runs interpreted; of the cuDNN form the merging and the backward pass run with a
kernel written out in JAX, and the calls of the real kernels are read in the program lowered for CUDA.
"""

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import mesh
from fairgrpo_jax.models import attention, kernels
from fairgrpo_jax.models.attention import Masks, attend
from fairgrpo_jax.models.flash import Flash, Seen
from fairgrpo_jax.models.remat import maybe_remat
from tests.flash_kernel import flash_backward, flash_forward, written_out


P, G, T, TP, N, K, H = 3, 2, 20, 15, 4, 2, 64
LENGTHS = np.array([15, 2, 9])  # ragged prompts


def arrays(dtype: Any = jnp.float32, rollouts=G, steps=T, prompt=TP, prompts=P) -> tuple:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    q, prompt_kv = draw(prompts, rollouts, steps, N, H), (draw(prompts, prompt, K, H), draw(prompts, prompt, K, H))
    return q, prompt_kv, (draw(prompts, rollouts, steps, K, H), draw(prompts, rollouts, steps, K, H))


def masks_of(args, lengths=LENGTHS):
    q, prompt_kv, _ = args
    valid = np.arange(prompt_kv[0].shape[1]) < lengths[:, None]
    causal = np.tril(np.ones((q.shape[2], q.shape[2]), bool))
    return Masks(jnp.asarray(causal), jnp.asarray(valid)[:, None], jnp.asarray(lengths, jnp.int32))


def reference(q, prompt_kv, own_kv, masks) -> Any:
    """Prompt and own keys side by side, the prompt copied for every rollout."""
    (p, g, t), size = q.shape[:3], prompt_kv[0].shape[1]
    k, v = (
        jnp.concatenate([jnp.broadcast_to(shared[:, None], (p, g, size, K, H)), own], axis=2).reshape(p * g, -1, K, H)
        for shared, own in zip(prompt_kv, own_kv, strict=True)
    )
    seen = [np.broadcast_to(masks.prompt, (p, t, size)), np.broadcast_to(masks.own, (p, t, t))]
    mask = np.repeat(np.concatenate(seen, axis=2), g, axis=0)[:, None]
    return jax.nn.dot_product_attention(q.reshape(p * g, t, N, H), k, v, mask=mask).reshape(p, g, t, N * H)


def under(way, masks):
    return lambda q, prompt_kv, own_kv: way(q, prompt_kv, own_kv, masks)


def value_and_gradients(way, args):
    """Of a weighted sum, by queries and all keys and values, in float32."""
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(*args[0].shape[:3], N * H)), jnp.float32)

    @jax.jit
    def run(args):
        out, back = jax.vjp(way, *args)
        return out, back(weight.astype(out.dtype))

    return jax.tree.map(lambda x: x.astype(jnp.float32), run(args))


def assert_same(way, args, masks, atol=1e-5):
    expected = value_and_gradients(under(reference, masks), args)
    got = value_and_gradients(under(way, masks), args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, expected)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = dict(
    plain=functools.partial(attend, implementation="plain"),
    mapped=functools.partial(attend, implementation="mapped"),
    merged=written_out,
    splash=functools.partial(attend, implementation="splash"),
)
implementations = pytest.mark.parametrize("name", IMPLEMENTATIONS)


@pytest.fixture
def small_blocks(monkeypatch):
    """Scores are large from the first byte on, and blocks have few queries."""
    monkeypatch.setattr(attention, "LARGE", 1)
    monkeypatch.setattr(attention, "LEAST_QUERIES", 8)


@implementations
def test_every_implementation_is_one_softmax_in_value_and_gradient(name):
    args = arrays()
    assert_same(IMPLEMENTATIONS[name], args, masks_of(args))


@implementations
def test_without_a_prompt_of_their_own_rows_are_causal(name):
    """The prompt's own pass; what a query at padding gets is nobody's business."""
    q, prompt_kv, _ = arrays(rollouts=1, steps=TP)
    kv = prompt_kv[0][:, None], prompt_kv[1][:, None]
    valid = np.arange(TP) < LENGTHS[:, None]
    seen = np.tril(np.ones((TP, TP), bool)) & valid[:, None]
    masks = Masks(jnp.asarray(seen), lengths=jnp.asarray(LENGTHS, jnp.int32))
    inside = valid[:, None, :, None]
    cut = lambda way: lambda q, k, v: jnp.where(inside, way(q, k, v), 0)
    public = lambda q, k, v: jax.nn.dot_product_attention(q[:, 0], k[:, 0], v[:, 0], mask=jnp.asarray(seen)[:, None])
    expected = value_and_gradients(cut(lambda q, k, v: public(q, k, v).reshape(P, 1, TP, -1)), (q, *kv))
    got = value_and_gradients(cut(lambda q, k, v: IMPLEMENTATIONS[name](q, None, (k, v), masks)), (q, *kv))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


@pytest.mark.parametrize("kind", ["lengths", "segments"])
def test_no_mask_by_score_is_kept_for_the_gradient(kind):
    """What a backward pass holds are arrays of numbers; masks are as small as they were given."""
    args = arrays()
    ids = jnp.arange(P * T).reshape(P, T) % 3
    masks = masks_of(args) if kind == "lengths" else Masks(segments=(ids, ids))
    _, back = jax.vjp(under(IMPLEMENTATIONS["plain"], masks), *args)
    kept = [x.shape for x in jax.tree.leaves(back) if x.dtype == bool]
    assert all(np.prod(shape) <= P * T * T for shape in kept), kept


@pytest.mark.parametrize("rollouts", [1, 3])
@pytest.mark.parametrize("by_row", [False, True])
def test_blocks_of_queries_change_nothing(rollouts, by_row, small_blocks):
    """Prompts one by one, 20 queries in blocks of 8, 8 and 4; with masks for every query of every row."""
    args = arrays(rollouts=rollouts)
    masks: Any = masks_of(args)._replace(lengths=None)
    if by_row:
        near = np.arange(T)[:, None] - np.arange(T) < np.array([3, 50, 5])[:, None, None]
        since = np.arange(T)[:, None] + LENGTHS[:, None, None] - np.arange(TP) < 18
        masks = Masks(masks.own[None] & near, masks.prompt & since)
    program = str(jax.make_jaxpr(under(attend, masks))(*args))
    assert f"f32[1,{K},1,{N // K},8,{T}]" in program and f"{N // K},{T},{T}]" not in program
    assert_same(attend, args, masks)


@pytest.mark.parametrize("prompt, rollouts, steps", [(140, 3, 90), (128, 2, 64)])
def test_the_tree_of_many_tiles(prompt, rollouts, steps):
    """Rollouts that straddle tiles, with filling and without."""
    lengths = np.array([prompt, 3])
    args = arrays(prompt=prompt, rollouts=rollouts, steps=steps, prompts=2)
    assert_same(IMPLEMENTATIONS["splash"], args, masks_of(args, lengths))


@functools.cache
def bfloat16_errors(name):
    """Norms of the errors of value and gradients against attention in float32."""
    args = arrays(jnp.bfloat16, rollouts=8)
    masks = masks_of(args)
    truth = value_and_gradients(under(reference, masks), jax.tree.map(lambda x: x.astype(jnp.float32), args))
    got = value_and_gradients(under(IMPLEMENTATIONS[name], masks), args)
    return np.array(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), got, truth)))


@pytest.mark.parametrize("name", ["mapped", "merged", pytest.param("splash", marks=pytest.mark.slow)])
def test_in_bfloat16_none_is_further_from_float32_than_plain(name):
    """Merging rounds twice where one softmax rounds once: sqrt(2) of the error of its output."""
    assert (bfloat16_errors(name) <= 1.5 * bfloat16_errors("plain")).all()


def test_a_block_knows_the_whole_softmax_or_its_gradient_is_wrong():
    """The kernel's backward pass with its own block's output and denominator, as differentiating each call would."""

    def local(q, k, v, seen, scale, log_total, out, d_out):
        out, log_total = flash_forward(q, k, v, seen, scale)
        return flash_backward(q, k, v, seen, scale, log_total, out, d_out)

    args = arrays()
    masks = masks_of(args)
    value, grads = value_and_gradients(under(reference, masks), args)
    wrong = functools.partial(written_out, flash=Flash(flash_forward, local))
    same, others = value_and_gradients(under(wrong, masks), args)
    np.testing.assert_allclose(same, value, atol=1e-5)
    for got, wanted in zip(jax.tree.leaves(others), jax.tree.leaves(grads), strict=True):
        assert jnp.linalg.norm(got - wanted) > 0.2 * jnp.linalg.norm(wanted)


@pytest.mark.parametrize("name", ["plain", "mapped"])
def test_large_scores_neither_overflow_nor_lose_the_smaller_block(name):
    one, way = jnp.ones((1, 1, 1, 1, 4)), functools.partial(attend, implementation=name)
    prompt, own = (100 * one[:, 0], 3 * one[:, 0]), (100 * one, one)
    yes = jnp.ones((1, 1, 1), bool)
    np.testing.assert_allclose(way(100 * one, prompt, own, Masks(yes[0], yes)), 2)
    np.testing.assert_allclose(way(100 * one, prompt, own, Masks(yes[0], ~yes)), 1)
    np.testing.assert_allclose(way(100 * one, prompt, own, Masks(~yes[0], yes)), 3)
    assert jnp.isfinite(way(100 * one, prompt, own, Masks(~yes[0], ~yes))).all()


@implementations
def test_scores_are_scaled_as_told(name):
    args = arrays()
    masks = masks_of(args)
    way = IMPLEMENTATIONS[name]
    scaled = jax.jit(under(functools.partial(way, scale=0.2), masks))(*args)
    np.testing.assert_allclose(scaled, jax.jit(under(reference, masks))(1.6 * args[0], *args[1:]), atol=1e-5)


@implementations
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_keeps_the_dtype(name, dtype):
    args = arrays(dtype)
    assert jax.eval_shape(under(IMPLEMENTATIONS[name], masks_of(args)), *args).dtype == dtype


# Which implementation is chosen.

FULL = Masks(lengths=jnp.zeros(0, jnp.int32))  # the choice asks only whether there are lengths


def shapes(prompts, rollouts, steps, prompt, heads=(16, 8, 128), dtype: Any = jnp.bfloat16) -> Any:
    n, k, h = heads
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, dtype)
    own = shape(prompts, rollouts, steps, k, h)
    return shape(prompts, rollouts, steps, n, h), (shape(prompts, prompt, k, h),) * 2, (own, own)


def chosen(masks, **sizes):
    q, prompt_kv, own_kv = shapes(**sizes)
    return attention.choose(q, prompt_kv, own_kv, masks)


LARGE_UPDATE = dict(prompts=4, rollouts=8, steps=256, prompt=1024)


@pytest.fixture
def platform(monkeypatch):
    """Pretends that programs are traced for a platform, whose GPUs have cuDNN."""

    def pretend(name, capability=True):
        monkeypatch.setattr(attention, "_platform", lambda: name)
        monkeypatch.setattr(kernels, "cudnn_runs", lambda head_dim: capability)

    return pretend


@pytest.mark.parametrize(
    "name, changes, masks, wanted",
    [
        ("cpu", {}, FULL, "mapped"),
        ("cpu", dict(steps=16), FULL, "plain"),
        ("gpu", {}, FULL, "cudnn"),
        ("cuda", {}, FULL, "cudnn"),
        ("gpu", dict(steps=16), FULL, "plain"),
        ("gpu", dict(prompts=64, rollouts=16, steps=1, prompt=4096), FULL, "plain"),  # decoding
        ("gpu", dict(dtype=jnp.float32), FULL, "mapped"),
        ("gpu", dict(heads=(16, 8, 260)), FULL, "mapped"),
        ("gpu", dict(heads=(16, 8, 264)), FULL, "mapped"),
        ("gpu", {}, Masks(), "cudnn"),
        ("gpu", {}, Masks(own=jnp.ones((1, 1), bool)), "mapped"),
        ("gpu", {}, FULL._replace(window=(True, 100), block=jnp.ones((1, 1))), "cudnn"),
        ("tpu", {}, FULL, "splash"),
        ("tpu", dict(dtype=jnp.float32), FULL, "splash"),
        ("tpu", dict(heads=(16, 8, 72)), FULL, "splash"),
        ("tpu", {}, Masks(), "splash"),
        ("tpu", {}, Masks(own=jnp.ones((1, 1), bool)), "mapped"),
        ("tpu", {}, FULL._replace(window=(True, 100)), "mapped"),
        ("tpu", {}, FULL._replace(block=jnp.ones((1, 1))), "mapped"),
    ],
)
def test_platform_shape_dtype_and_masks_decide(platform, name, changes, masks, wanted):
    platform(name)
    assert chosen(masks, **LARGE_UPDATE | changes) == wanted


def test_a_gpu_without_cudnn_or_too_old_is_left_to_matrix_products(platform):
    platform("gpu", capability=False)
    assert chosen(FULL, **LARGE_UPDATE) == "mapped"


def test_a_gpu_is_asked_for_its_age(monkeypatch):
    functions, asked = kernels.cudnn(), []
    monkeypatch.setattr(functions, "check_compute_capability", lambda wanted: asked.append(wanted) or True)
    monkeypatch.setattr(functions, "check_cudnn_version", lambda: 91100)
    assert kernels.cudnn_runs(128) and kernels.cudnn_runs(256) and asked == ["8.0", "9.0"]
    monkeypatch.setattr(functions, "check_cudnn_version", lambda: exec("raise RuntimeError('cuDNN is not detected.')"))
    assert not kernels.cudnn_runs(128)


def test_scores_are_counted_by_device():
    sizes: Any = dict(prompts=8, rollouts=8, prompt=128, heads=(8, 8, 64))
    assert attention._score_bytes(*shapes(steps=128, **sizes)) == 8 * 8 * 128 * 8 * 256 * 4 == attention.LARGE
    assert [chosen(FULL, steps=steps, **sizes) for steps in (128, 129)] == ["plain", "mapped"]
    with jax.set_mesh(mesh.make("2x2")):
        assert chosen(FULL, steps=129, **sizes) == "plain"


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("flash", {}, "wanted plain, mapped, cudnn, splash or None"),
        ("cudnn", {}, r"dtypes \['float32'\]; wanted bfloat16 or float16"),
        ("splash", dict(lengths=None), "masks of no known structure; wanted lengths of prompts, segments, or no"),
        ("splash", dict(window=(True, 8)), "a window or images that are read in both directions"),
    ],
)
def test_an_implementation_that_cannot_is_refused(name, changes, message):
    args = arrays()
    with pytest.raises(ValueError, match=message):
        under(functools.partial(attend, implementation=name), masks_of(args)._replace(**changes))(*args)


# cuDNN, as far as a machine without a GPU can see it.


def lowered_for_cuda(args, remat=False):
    def run(args, masks):
        way = maybe_remat(under(functools.partial(attend, implementation="cudnn"), masks), remat)
        out, back = jax.vjp(way, *args)
        return back(out)

    return jax.jit(run).trace(args, masks_of(args)).lower(lowering_platforms=("cuda",)).as_text()


def cudnn_calls(program):
    """Name, mask and text of the calls of cuDNN in a program."""
    pattern = r".*custom_call @(__cudnn\$\w+).*mask_type\\22: \\22(\w+)\\22.*"
    return [(match[1], match[2], match[0]) for match in re.finditer(pattern, program)]


def test_the_program_for_cuda_calls_two_kernels_forward_and_two_backward():
    calls = cudnn_calls(lowered_for_cuda(arrays(jnp.bfloat16)))
    forward, backward = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
    assert sorted(call[:2] for call in calls) == [
        (forward, "CAUSAL"),
        (forward, "PADDING"),
        (backward, "CAUSAL"),
        (backward, "PADDING"),
    ]
    for _, mask, line in calls:  # rollouts are rows of their own keys, and more queries of the prompt's
        rows, keys = (f"{P}x{G * T}x{N}x{H}xbf16", f"{P}x{TP}x{K}x{H}xbf16")
        logs = f"{P}x{N}x{G * T}xf32"
        if mask == "CAUSAL":
            rows, keys, logs = f"{P * G}x{T}x{N}x{H}xbf16", f"{P * G}x{T}x{K}x{H}xbf16", f"{P * G}x{N}x{T}xf32"
        assert f"(tensor<{rows}>, tensor<{keys}>, tensor<{keys}>" in line and f"tensor<{logs}>" in line


@pytest.mark.parametrize("remat, forward", [(True, 4), ("selective", 2)])
def test_selective_recomputation_calls_no_kernel_twice(remat, forward):
    calls = cudnn_calls(lowered_for_cuda(arrays(jnp.bfloat16), remat))
    assert [name for name, *_ in calls].count("__cudnn$fmhaSoftmax") == forward and len(calls) == forward + 2


def test_the_program_for_cuda_calls_the_kernels_on_every_device_of_a_mesh():
    with jax.set_mesh(mesh.make("1x2")):
        calls = cudnn_calls(lowered_for_cuda(arrays(jnp.bfloat16)))
    assert len(calls) == 4 and all(
        f"x{N // 2}x{H}xbf16" in line and f"x{K // 2}x{H}xbf16" in line for *_, line in calls
    )


CALLS = {
    "NO_MASK": Seen(),
    "CAUSAL": Seen(causal=True, window=7),
    "PADDING": Seen(keys=jnp.asarray(LENGTHS)),
    "PADDING_CAUSAL": Seen(causal=True, queries=jnp.asarray(LENGTHS), keys=jnp.asarray(LENGTHS + 1)),
}


@pytest.mark.parametrize("kind", CALLS)
def test_the_kernels_are_called_as_jax_calls_them(kind, monkeypatch):
    """Our calls against those of JAX's own rule of differentiation, argument by argument."""
    functions, calls, seen = kernels.cudnn(), [], CALLS[kind]

    class Recorder:
        def bind(self, *args, **options):
            calls.append((args, options))
            return args[:3]

    for name in ("fwd", "bwd"):
        monkeypatch.setattr(functions, f"_dot_product_attention_{name}_p_wrapper", Recorder())
    monkeypatch.setattr(functions, "check_is_flash_attention", lambda *args: None)
    draw = lambda number, *shape: jnp.full(shape, number, jnp.bfloat16)
    q, k, v, out, d_out = (draw(i, P, T, N if i in (0, 3, 4) else K, H) for i in range(5))
    log_total, unused = jnp.full((P, N, T), 5.0), jnp.zeros(0, jnp.bfloat16)
    kernels.cudnn_forward(q, k, v, seen, 0.3)
    kernels.cudnn_backward(q, k, v, seen, 0.3, log_total, out, d_out)
    sizes = (unused, unused)
    if "PADDING" in kind:
        sizes = jnp.full(P, T, jnp.int32) if seen.queries is None else seen.queries, seen.keys
    given, how = (q, k, v, unused, *sizes, unused, unused, unused, unused), (0.3, 42, 0.0, (False, False))
    how += functions.MaskType[kind], functions.AttentionLayout.BTNH.value, seen.window or None
    functions._dot_product_attention_fwd_rule(*given, *how, 91100, True)
    functions._dot_product_attention_bwd_rule(*how, True, False, (*given, log_total, out), d_out)
    for (args, options), (wanted, wanted_options) in zip(calls[:2], calls[2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, args, wanted)
        assert [arg.dtype for arg in args] == [arg.dtype for arg in wanted] and options == wanted_options


def test_this_jax_has_the_cudnn_functions_where_they_are_looked_for():
    assert kernels.cudnn() is not None, "jax has moved its private cuDNN functions: look at kernels.cudnn"


def test_a_jax_without_them_is_warned_of_once_and_computes_by_matrix_products(platform, monkeypatch, caplog):
    platform("gpu")
    monkeypatch.delattr(kernels.cudnn(), "_dot_product_attention_bwd_p_wrapper")
    kernels.cudnn.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert [chosen(FULL, **LARGE_UPDATE) for _ in range(3)] == ["mapped"] * 3
        assert len(caplog.records) == 1 and "no cuDNN attention" in caplog.text
    finally:
        kernels.cudnn.cache_clear()


# Meshes.


@pytest.mark.parametrize("name", ["mapped", pytest.param("splash", marks=pytest.mark.slow)])
def test_on_a_mesh_a_prompt_stays_on_its_device(name, small_blocks):
    args = arrays(prompts=4)
    masks = masks_of(args, np.array([15, 2, 9, 1]))
    expected = value_and_gradients(under(reference, masks), args)
    way = IMPLEMENTATIONS[name]
    with jax.set_mesh(mesh.make("2x2")):
        placed = mesh.put(args, mesh.make("2x2"))
        run = jax.jit(lambda args, masks: under(way, masks)(*args))
        program = str(run.lower(placed, masks).compile().as_text())
        assert not re.search("all-to-all|all-gather|collective-permute", program)
        got = value_and_gradients(under(way, masks), placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


def test_prompts_that_the_mesh_does_not_divide_get_no_kernel():
    args = arrays()
    with jax.set_mesh(mesh.make("2x1")), pytest.raises(ValueError, match="3 prompts; wanted a multiple of .* fsdp=2"):
        under(IMPLEMENTATIONS["splash"], masks_of(args))(*args)
