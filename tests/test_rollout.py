"""The sampler against the learner, and against what sampling must never do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import learner, mesh, models, rollout
from fairgrpo_jax.models import decoder
from fairgrpo_jax.rewards import accuracy
from tests import compiled_text, tiny_batch


LENGTH = 10
LOGPROBS = jax.jit(learner.completion_logprobs, static_argnums=1, static_argnames="temperature")
SAMPLE = dict(architecture=tiny_batch.MODEL, num_rollouts=4, max_new_tokens=LENGTH)


@pytest.fixture(scope="module")
def batch():
    rows = tiny_batch.records(6)
    return rows, tiny_batch.params(), tiny_batch.prompt(rows)


@pytest.fixture(scope="module")
def sampled(batch):
    _, params, prompt = batch
    return jax.device_get(rollout.sample(params, prompt, jax.random.key(0), **SAMPLE))


def test_sampler_and_learner_agree_on_every_token(batch, sampled):
    _, params, prompt = batch
    learned = LOGPROBS(params, tiny_batch.MODEL, prompt, jnp.asarray(sampled.tokens))
    np.testing.assert_allclose(np.where(sampled.mask, learned, 0), sampled.logprobs, atol=1e-5)


def test_temperature_is_the_same_in_sampler_and_learner(batch):
    _, params, prompt = batch
    got = jax.device_get(rollout.sample(params, prompt, jax.random.key(0), temperature=0.7, **SAMPLE))
    learned = LOGPROBS(params, tiny_batch.MODEL, prompt, jnp.asarray(got.tokens), temperature=0.7)
    np.testing.assert_allclose(np.where(got.mask, learned, 0), got.logprobs, atol=1e-5)


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
    got = jax.device_get(rollout.sample(eager, prompt, jax.random.key(0), **SAMPLE))
    assert not np.isin(got.tokens[got.mask], banned).any()


def test_two_steps_and_two_rows_never_share_noise(batch):
    _, params, prompt = batch
    one = jax.tree.map(lambda x: jnp.repeat(x[:1], 6, axis=0), prompt)
    first = rollout.sample(params, one, jax.random.key(0), **SAMPLE).tokens
    again = rollout.sample(params, one, jax.random.key(0), **SAMPLE).tokens
    other = rollout.sample(params, one, jax.random.key(1), **SAMPLE).tokens
    np.testing.assert_array_equal(first, again)
    rows = np.concatenate([first, other]).reshape(-1, LENGTH)
    assert len(np.unique(rows, axis=0)) == len(rows), "equal prompts gave equal samples"


def test_a_row_samples_the_same_whatever_stands_beside_it(batch, sampled):
    _, params, prompt = batch
    swapped = jax.tree.map(lambda x: x.at[3:].set(x[:3]), prompt)
    got = rollout.sample(params, swapped, jax.random.key(0), **SAMPLE)
    np.testing.assert_array_equal(got.tokens[:3], sampled.tokens[:3])


@pytest.mark.parametrize("spec, tensor", [("2x1", False), ("2x2", False), ("2x2", True)])
def test_a_mesh_changes_neither_samples_nor_their_logits(batch, sampled, spec, tensor):
    _, params, prompt = batch
    devices = mesh.make(spec)
    with jax.set_mesh(devices):
        placed = jax.device_put(params, mesh.shardings(params, devices))
        copy = rollout.sampler_params(placed, tensor=tensor)
        for leaf, where in zip(jax.tree.leaves(copy), jax.tree.leaves(mesh.shardings(params, devices)), strict=True):
            kept = "tensor" if tensor and "tensor" in where.spec else None
            assert {axis for axis in leaf.sharding.spec if axis} == ({kept} - {None})
        prompt = mesh.put(prompt, devices)
        got = jax.device_get(rollout.sample(copy, prompt, jax.random.key(0), tensor=tensor, **SAMPLE))
    np.testing.assert_array_equal(got.tokens, sampled.tokens)
    np.testing.assert_allclose(got.logprobs, sampled.logprobs, atol=1e-5)


def test_the_copy_that_samples_is_made_only_where_it_differs(batch):
    _, params, _ = batch
    assert rollout.sampler_params(params) is params and rollout.sampler_params(params, dtype="float32") is params
    with jax.set_mesh(mesh.make("1x1")):
        assert rollout.sampler_params(params) is params
    half = rollout.sampler_params(params, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}


def test_the_sampler_gathers_nothing_inside_its_loop(batch):
    """The weights once, before it; of the rows only whether all have ended."""
    _, params, prompt = batch
    prompt = jax.tree.map(lambda x: x[:4], prompt)
    devices = mesh.make("4x1")
    with jax.set_mesh(devices):
        placed = jax.device_put(params, mesh.shardings(params, devices))
        copy, prompt = rollout.sampler_params(placed), mesh.put(prompt, devices)
        lowered = rollout.sample.lower(
            copy, prompt, jax.random.key(0), architecture=tiny_batch.MODEL, num_rollouts=4, max_new_tokens=9
        )
        text = lowered.compile().as_text()
        gathered = rollout.copy.lower(placed, dtype=None, tensor=False).compile().as_text()
    shared = compiled_text.exchanged(text)
    assert shared and all(kind == "all-reduce" and np.prod(shape) <= 1 for kind, shape in shared), shared
    assert compiled_text.exchanged(gathered) and not compiled_text.strange(gathered, params)


def test_frequencies_are_the_softmax(batch):
    _, params, prompt = batch
    many = rollout.sample(
        params,
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


def test_top_p_keeps_only_the_nucleus():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    kept = np.isfinite(np.where(rollout._nucleus(logits, 0.7) > -1e29, 1.0, np.inf))
    np.testing.assert_array_equal(kept, [[True, True, False, False]])
    np.testing.assert_array_equal(rollout._nucleus(logits, 1e-6) > -1e29, [[True, False, False, False]])


def test_loop_stops_when_every_row_has_ended(batch, monkeypatch):
    _, params, prompt = batch
    steps = []
    decode = decoder.decode_step

    def counted(*args):
        jax.debug.callback(lambda t: steps.append(int(t)), args[-1])
        return decode(*args)

    monkeypatch.setattr(decoder, "decode_step", counted)
    options = SAMPLE | dict(max_new_tokens=LENGTH - 1, temperature=0.0)
    flat = dict(params, norm={"weight": params["norm"]["weight"] * 0})  # all logits 0: greedy takes id 0, an end token
    got = jax.block_until_ready(rollout.sample(flat, prompt, jax.random.key(0), **options))
    jax.effects_barrier()
    assert tiny_batch.MODEL.eos_ids[-1] == 0 and (np.asarray(got.mask).sum(-1) == 1).all()
    assert steps == []
    jax.block_until_ready(rollout.sample(params, prompt, jax.random.key(0), **options))
    jax.effects_barrier()
    assert steps == list(range(LENGTH - 2))


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
