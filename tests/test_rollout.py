"""The sampler against the learner, and against what sampling must never do."""

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import learner, mesh, models, rollout
from fairgrpo_jax.models import decoder, next_token
from fairgrpo_jax.rewards import accuracy
from tests import compiled_text, tiny_batch


LENGTH = 10
LOGPROBS = jax.jit(learner.completion_logprobs, static_argnums=1, static_argnames="temperature")
SAMPLE: Any = dict(architecture=tiny_batch.MODEL, num_rollouts=4, max_new_tokens=LENGTH)


def draw(params, prompt, key=0, **options: Any) -> Any:
    return rollout.sample(rollout.sampler_params(params), prompt, jax.random.key(key), **(SAMPLE | options))


@pytest.fixture(scope="module")
def batch():
    rows = tiny_batch.records(6)
    return rows, tiny_batch.params(), tiny_batch.prompt(rows)


@pytest.fixture(scope="module")
def sampled(batch):
    _, params, prompt = batch
    return draw(params, prompt)


def test_sampler_and_learner_agree_on_every_token(batch, sampled):
    _, params, prompt = batch
    learned = LOGPROBS(params, tiny_batch.MODEL, prompt, jnp.asarray(sampled.tokens))
    np.testing.assert_allclose(np.where(sampled.mask, learned, 0), sampled.logprobs, atol=1e-5)


def test_temperature_is_the_same_in_sampler_and_learner(batch):
    _, params, prompt = batch
    got = draw(params, prompt, temperature=0.7)
    learned = LOGPROBS(params, tiny_batch.MODEL, prompt, jnp.asarray(got.tokens), temperature=0.7)
    np.testing.assert_allclose(np.where(got.mask, learned, 0), got.logprobs, atol=1e-5)


def test_keys_and_values_in_bfloat16(batch, sampled):
    """They put log-probabilities off by less than a tenth, where float32 is off by 1e-5; the noise is the same."""
    _, params, prompt = batch
    got = draw(params, prompt, cache="bfloat16")
    learned = LOGPROBS(params, tiny_batch.MODEL, prompt, jnp.asarray(got.tokens))
    apart = np.abs(np.where(got.mask, learned, 0) - got.logprobs)
    assert 1e-4 < apart.max() < 0.1 and apart.mean() < 5e-3
    assert (got.tokens[:, :, 0] == sampled.tokens[:, :, 0]).all()  # before any cache is read


def test_mask_ends_with_the_end_token_and_nothing_follows(sampled):
    tokens, mask = sampled.tokens, sampled.mask
    ends = np.isin(tokens, tiny_batch.MODEL.eos_ids)
    for row, kept, end in zip(
        tokens.reshape(-1, LENGTH), mask.reshape(-1, LENGTH), ends.reshape(-1, LENGTH), strict=True
    ):
        length = kept.sum()
        assert length >= 1 and kept[:length].all()
        assert not end[: length - 1].any(), "a token after the end was kept"
        assert end[length - 1] or length == LENGTH
        assert (row[length:] == tiny_batch.MODEL.pad_id).all()
    assert (sampled.logprobs[~mask] == 0).all()


def test_vision_tokens_are_never_sampled(batch):
    _, params, prompt = batch
    banned = tiny_batch.MODEL.banned_ids
    assert len(banned) >= 4
    eager = dict(
        params, embedding=params["embedding"].at[jnp.array(banned)].multiply(50.0)
    )  # logits that win if allowed
    got = draw(eager, prompt)
    assert not np.isin(got.tokens[got.mask], banned).any()


def test_two_steps_and_two_rows_never_share_noise(batch):
    _, params, prompt = batch
    one = jax.tree.map(lambda x: jnp.repeat(x[:1], 6, axis=0), prompt)
    first = draw(params, one).tokens
    again = draw(params, one).tokens
    other = draw(params, one, key=1).tokens
    np.testing.assert_array_equal(first, again)
    rows = np.concatenate([first, other]).reshape(-1, LENGTH)
    assert len(np.unique(rows, axis=0)) == len(rows), "equal prompts gave equal samples"


def test_a_row_samples_the_same_whatever_stands_beside_it(batch, sampled):
    _, params, prompt = batch
    swapped = jax.tree.map(lambda x: x.at[3:].set(x[:3]), prompt)
    got = draw(params, swapped)
    np.testing.assert_array_equal(got.tokens[:3], sampled.tokens[:3])


@pytest.mark.parametrize(
    "spec, tensor",
    [
        pytest.param("2x1", False, marks=pytest.mark.slow),
        pytest.param("2x2", False, marks=pytest.mark.slow),
        ("2x2", True),
    ],
)
def test_a_mesh_changes_neither_samples_nor_their_logits(batch, sampled, spec, tensor):
    _, params, prompt = batch
    devices = mesh.make(spec)
    with jax.set_mesh(devices):
        placed = jax.device_put(params, mesh.shardings(params, devices))
        copy = rollout.sampler_params(placed, tensor=tensor)
        wanted = mesh.shardings(decoder.by_layer(params), devices)
        for leaf, where in zip(jax.tree.leaves(copy), jax.tree.leaves(wanted), strict=True):
            kept = "tensor" if tensor and "tensor" in where.spec else None
            assert {axis for axis in leaf.sharding.spec if axis} == ({kept} - {None})
        prompt = mesh.put(prompt, devices)
        got = rollout.sample(copy, prompt, jax.random.key(0), tensor=tensor, **SAMPLE)
        short = rollout.sample(copy, prompt, jax.random.key(0), tensor=tensor, first=2, **SAMPLE)
    np.testing.assert_array_equal(short.tokens, sampled.tokens)
    np.testing.assert_array_equal(got.tokens, sampled.tokens)
    np.testing.assert_allclose(got.logprobs, sampled.logprobs, atol=1e-5)


def test_the_copy_that_samples(batch):
    _, params, _ = batch
    half = rollout.sampler_params(params, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    same = rollout.sampler_params(params)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *same["layers"])
    jax.tree.map(np.testing.assert_array_equal, {**same, "layers": stacked}, params)


def test_the_sampler_gathers_nothing_inside_its_loop(batch):
    """The weights once, before it; of the rows only whether all have ended."""
    _, params, prompt = batch
    prompt = jax.tree.map(lambda x: x[:4], prompt)
    devices = mesh.make("4x1")
    with jax.set_mesh(devices):
        placed = jax.device_put(params, mesh.shardings(params, devices))
        copy, prompt = rollout.sampler_params(placed), mesh.put(prompt, devices)
        how: Any = dict(architecture=tiny_batch.MODEL, temperature=1.0, top_p=1.0)
        keys = rollout.row_keys(jax.random.key(0), 4, 4)
        passed: dict = dict(places=prompt.tokens.shape[1], architecture=tiny_batch.MODEL)
        kept, hidden, kv = rollout.prefill(copy, prompt, **passed)
        start = rollout.Rows(kept, mesh.put(keys, devices), mesh.put(np.arange(4), devices))
        begun: dict = dict(length=9, size=8, cache="float32", **how)
        rows, now, caches = rollout.begin(copy, start, hidden, **begun)
        texts = [
            rollout.prefill.lower(copy, prompt, **passed),
            rollout.begin.lower(copy, start, hidden, **begun),
            rollout._join.lower([(kept, hidden, kv)] * 2),
            rollout.decode.lower(copy, rows, kv, now, caches, np.int32(0), **how),
            rollout._take.lower((rows, now, kv, caches), rollout._kept(now.done, 1)),
        ]
        first, begin, joined, text, moved = (lowered.compile().as_text() for lowered in texts)
        gathered = rollout.sampler_params.lower(placed, dtype=None, tensor=False).compile().as_text()
    shared = compiled_text.exchanged(text)
    assert shared and all(kind == "all-reduce" and np.prod(shape) <= 1 for kind, shape in shared), shared
    for other in (first, begin, joined, moved):
        assert not compiled_text.exchanged(other)
    assert compiled_text.exchanged(gathered) and not compiled_text.strange(gathered, params)


def test_frequencies_are_the_softmax(batch):
    _, params, prompt = batch
    many = rollout.sample(
        rollout.sampler_params(params),
        jax.tree.map(lambda x: x[:1], prompt),
        jax.random.key(5),
        architecture=tiny_batch.MODEL,
        num_rollouts=4000,
        max_new_tokens=1,
    )
    tokens, counts = np.unique(many.tokens, return_counts=True)
    probability = {int(t): float(np.exp(p)) for t, p in zip(many.tokens.ravel(), many.logprobs.ravel(), strict=True)}
    for token, count in zip(tokens, counts, strict=True):
        p = probability[int(token)]
        assert abs(count / 4000 - p) < 5 * np.sqrt(p * (1 - p) / 4000) + 1e-9


def test_greedy_takes_the_likeliest_token(batch):
    rows, params, prompt = batch
    vlm = models.VLM(tiny_batch.MODEL, params)
    got = rollout.generate(vlm, tiny_batch.inputs(rows), max_new_tokens=3, temperature=0)
    logits = vlm.logits(tiny_batch.inputs(rows))  # left-padded: the last column predicts the first token
    logits[..., list(tiny_batch.MODEL.banned_ids)] = -np.inf
    np.testing.assert_array_equal(got.tokens[:, 0, 0], logits[:, -1].argmax(-1))


def test_draws_are_those_of_jax():
    """The noise of ``jax.random.categorical`` and its largest number, of equal ones the first."""
    x = jax.random.randint(jax.random.key(0), (50, 6), 0, 3).astype(jnp.float32)
    np.testing.assert_array_equal(next_token.largest(x), np.asarray(x).argmax(-1))
    assert next_token.largest(x.at[3, 2].set(jnp.nan))[3] == 6  # no token
    for seed in range(20):
        noise = jax.random.gumbel(jax.random.key(seed), (50, 6))
        np.testing.assert_array_equal(next_token.largest(x + noise), jax.random.categorical(jax.random.key(seed), x))


@pytest.mark.parametrize("kind, partitionable", [("threefry2x32", True), ("threefry2x32", False), ("rbg", True)])
def test_the_noise_of_many_rows_is_that_of_each_key(kind, partitionable):
    keys = jax.random.split(jax.random.key(7, impl=kind), (3, 4))
    with jax.threefry_partitionable(partitionable):
        each = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (700,))))(keys)
        got = jax.jit(next_token.gumbel, static_argnums=1)(keys, 700)
    np.testing.assert_array_equal(got, each)
    assert len(np.unique(got)) > 8000  # of 8400: no row is another's


def test_logits_that_are_not_finite_are_named(batch):
    """Embeddings of one token, so that rows are spoiled from the token after it on."""
    _, params, prompt = batch
    sound = draw(params, prompt)
    token = int(np.bincount(sound.tokens[:, :, :3][sound.mask[:, :, :3]]).argmax())
    hit = ((sound.tokens == token) & sound.mask)[..., :-1].cumsum(-1).astype(bool)
    rows = (hit & sound.mask[..., 1:]).any(-1)
    broken = params | {"embedding": params["embedding"].at[token].set(jnp.nan)}
    if tiny_batch.MODEL.tie_word_embeddings:
        rows[:] = True
    with pytest.raises(FloatingPointError, match=f"the logits of {rows.sum()} of 24 completions are not finite"):
        draw(broken, prompt)


def test_top_p_keeps_only_the_nucleus():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    kept = np.isfinite(np.where(next_token.nucleus(logits, 0.7) > -1e29, 1.0, np.inf))
    np.testing.assert_array_equal(kept, [[True, True, False, False]])
    np.testing.assert_array_equal(next_token.nucleus(logits, 1e-6) > -1e29, [[True, False, False, False]])


@pytest.fixture
def steps(monkeypatch):
    """Positions, prompts and sizes of the largest cache of every token that is decoded."""
    seen, decode = [], decoder.decode_step

    def counted(params, config, prompt, kv, caches, tokens, t, turns):
        size = max(v.shape[3] for _, v in caches)
        jax.debug.callback(lambda t: seen.append((int(t), len(tokens), size)), t)
        return decode(params, config, prompt, kv, caches, tokens, t, turns)

    monkeypatch.setattr(decoder, "decode_step", counted)
    jitted: Any = rollout.decode
    jitted.clear_cache()
    yield seen
    jitted.clear_cache()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_the_nucleus_is_that_of_a_sort(top_p):
    """By NumPy: in falling order, as long as what came before adds up to less; equal chances stay or go together."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 50)).astype(np.float32) * rng.uniform(0.1, 8, (200, 1)).astype(np.float32)
    logits[:20] = np.round(logits[:20])  # ties
    kept = np.asarray(next_token.nucleus(jnp.asarray(logits), top_p)) > -1e29
    chances = np.asarray(jax.nn.softmax(logits))
    for row, mine in zip(chances, kept, strict=True):
        order = np.argsort(-row, kind="stable")
        before = np.cumsum(row[order].astype(np.float64)) - row[order]
        if np.abs(before - top_p).min() > 1e-5:  # else rounding decides
            np.testing.assert_array_equal(mine, row >= row[order][before < top_p].min())
    assert kept.any(-1).all()


def test_loop_stops_when_every_row_has_ended(batch, steps):
    _, params, prompt = batch
    options: Any = dict(max_new_tokens=LENGTH - 1, temperature=0.0)
    flat = dict(params, norm={"weight": params["norm"]["weight"] * 0})  # all logits 0: greedy takes id 0, an end token
    got = draw(flat, prompt, **options)
    jax.effects_barrier()
    assert tiny_batch.MODEL.eos_ids[-1] == 0 and (got.mask.sum(-1) == 1).all() and (got.steps == 1).all()
    assert steps == []
    got = draw(params, prompt, **options)
    jax.effects_barrier()
    assert [t for t, *_ in steps] == list(range(LENGTH - 2)) and (got.steps == LENGTH - 1).all()


LONG = 40
WORK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "decode_rows.py"))["wave"]


def test_prompts_leave_and_caches_grow_and_nothing_else_changes(batch, steps):
    """Few rows of a batch are long: the others are neither computed nor kept to the end."""
    _, params, prompt = batch
    prompt = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), prompt)  # 8
    often = dataclasses.replace(tiny_batch.MODEL, eos_ids=tuple(range(100, 140)))  # a token in twelve ends a completion
    options: Any = dict(max_new_tokens=LONG, num_rollouts=2, architecture=often)
    free = draw(params, prompt, **options)
    jax.effects_barrier()
    assert [each[1:] for each in steps] == [(8, LONG - 1)] * len(steps)
    plain, steps[:] = len(steps), []
    got = draw(params, prompt, first=4, **options)
    jax.effects_barrier()
    np.testing.assert_array_equal(got.tokens, free.tokens)
    np.testing.assert_array_equal(got.mask, free.mask)
    np.testing.assert_allclose(got.logprobs, free.logprobs, atol=1e-6)
    assert [t for t, *_ in steps] == list(range(plain))
    assert all(size > t and (size <= 4 or size <= 2 * t or size == LONG - 1) for t, _, size in steps), steps
    lengths = got.mask.sum(-1).max(1)
    for t, prompts, _ in steps:  # token t is decoded to draw token t + 1
        alive = (lengths > t + 1).sum()
        assert alive <= prompts and (prompts == 1 or alive > prompts // 2 or t == 0), (t, prompts, alive)
    assert len({prompts for _, prompts, _ in steps}) > 1, "no prompt left"
    assert got.steps.sum() * 2 == sum(prompts * 2 for _, prompts, _ in steps) + 16
    assert (got.steps >= lengths).all() and got.steps.sum() < 0.9 * free.steps.sum()
    work, reads, _, shapes = WORK(got.mask.sum(-1), 1, LONG, first=4)
    assert work == got.steps.sum() * 2 and shapes == {(prompts, size) for _, prompts, size in steps}
    assert reads == sum(prompts * 2 * size for _, prompts, size in steps)


def test_text_after_the_end_changes_no_reward(sampled):
    tokenizer = tiny_batch.PROCESSOR.tokenizer
    before = rollout.texts(sampled, tokenizer)
    right = tokenizer.encode(r"</think>\boxed{A-lines}", add_special_tokens=False)
    tokens = sampled.tokens.copy()
    for row, kept in zip(tokens.reshape(-1, LENGTH), sampled.mask.reshape(-1, LENGTH), strict=True):
        spare = (~kept).sum()
        row[LENGTH - spare :] = (right * LENGTH)[:spare]
    after = rollout.texts(sampled.replace(tokens=tokens), tokenizer)
    assert before == after
    flat = [text for row in after for text in row]
    answers = ["A-lines"] * len(flat)
    np.testing.assert_array_equal(
        accuracy.exact(flat, answers), accuracy.exact([t for r in before for t in r], answers)
    )


@pytest.mark.parametrize("bad", [dict(temperature=-1.0), dict(top_p=0.0), dict(num_rollouts=0), dict(key=None)])
def test_bad_options_are_refused(batch, bad):
    rows, params, _ = batch
    vlm = models.VLM(tiny_batch.MODEL, params)
    with pytest.raises(ValueError, match="wanted"):
        rollout.generate(vlm, tiny_batch.inputs(rows), max_new_tokens=2, **({"key": jax.random.key(0)} | bad))
