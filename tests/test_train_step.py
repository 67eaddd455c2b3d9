"""One step as data: from rewards to advantages, whatever is masked, drawn again or not scored."""

import dataclasses
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairgrpo_jax import (
    advantages,
    batches,
    chunking,
    config as options,
    estimators,
    fairness,
    learner,
    mesh,
    models,
    rollout,
    train,
)
from fairgrpo_jax.data.datasets import synthetic
from fairgrpo_jax.plan import cost
from fairgrpo_jax.rewards import Scores, build
from tests import tiny_batch
from tests.test_train import SMALL


RECORD = synthetic.load("test", domains=("us",))[0]
MEMORY = estimators.Memory(fairness.init(1, 1, 4))
SCORER = build(SMALL.reward, SMALL.sampling, [RECORD])


def step_of(rewards, domains, groups, rollouts=None):
    """A step's prompts by their rewards: one token each, numbered tokens and records."""
    part: Any = np.arange(len(rewards)) + 1
    G = rewards.shape[1]
    tokens: Any = np.repeat(part, 3 * G).reshape(-1, G, 3)
    rollouts = rollout.RolloutBatch(tokens, tokens >= 0, tokens / 10, part * 0 + 3) if rollouts is None else rollouts
    prompt = models.Prompt(**{f.name: part for f in dataclasses.fields(models.Prompt)})
    names: Any = [f"record {i}" for i in part]
    batch = batches.PromptBatch(prompt, names, domains, groups, np.arange(len(names)))
    learned = np.asarray(rollouts.mask)
    return train.Sampled(
        batch, rollouts, [[f"text {i}"] for i in part], Scores.of(rewards), np.ones(rewards.shape, bool), learned
    )


@pytest.mark.parametrize("algorithm", typing.get_args(options.Algorithm))
def test_the_loop_computes_the_public_functions(algorithm):
    """As a user calls them: without options, those of the config at their defaults."""
    rng = np.random.default_rng(0)
    rewards = (rng.random((40, 4)) < rng.beta(0.5, 0.9, (40, 1))).astype(np.float32)
    lengths = rng.integers(1, 20, rewards.shape).astype(np.int32)
    domains, groups = (np.arange(40) % 3 // 2).astype(np.int32), rng.integers(-1, 2, 40).astype(np.int32)
    state = fairness.init(2, 2, 4, history="binary")
    mask = np.arange(20) < lengths[..., None]
    arrays: Any = mask.astype(np.int32), mask, mask * 0.0, mask.sum(-1).max(-1)
    sampled = step_of(rewards, domains, groups, rollout.RolloutBatch(*arrays))
    kept, _ = train.refill(None, [sampled])
    order = kept.rows
    config = dataclasses.replace(SMALL, algorithm=algorithm)
    devices = jax.make_mesh((1, 1), ("fsdp", "tensor"))
    got, memory, watched = train.estimate(kept, [sampled], estimators.Memory(state), config, SCORER, devices)
    wanted, after = {
        "fair_grpo": lambda: fairness.fair_grpo(rewards, domains, groups, state),
        "fair_grpo_nd": lambda: fairness.fair_grpo_nd(rewards, domains, state),
        "drpo": lambda: fairness.drpo(rewards, domains, state),
        "group_dro": lambda: fairness.group_dro(rewards, domains, groups, state),
        "gdpo": lambda: (advantages.gdpo(rewards[..., None], [1.0]), state),
        "opo": lambda: (advantages.opo(rewards, lengths), state),
        "reinforce_plus_plus": lambda: (advantages.reinforce_plus_plus(rewards, lengths), state),
        "reinforce_plus_plus_baseline": lambda: (advantages.reinforce_plus_plus_baseline(rewards, lengths), state),
    }.get(algorithm, lambda: (getattr(advantages, algorithm)(rewards), state))()
    np.testing.assert_allclose(got, np.asarray(wanted)[order], atol=1e-6)
    for mine, theirs in zip(jax.tree.leaves(memory.fairness), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert watched["advantage/max_abs"] == np.abs(got).max()


LADDER = (batches.Size(40, 64), batches.Size(64, 128), batches.Size(100, 256))
DEVICES = jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def encoder(*ladder):
    vocabulary: Any = types.SimpleNamespace(cells=())
    return batches.Encoder(SMALL.data, tiny_batch.MODEL, tiny_batch.PROCESSOR, ("d",), vocabulary, ladder=ladder)


def options_of(buckets=1, waves=0, **update):
    return dataclasses.replace(
        SMALL,
        data=dataclasses.replace(SMALL.data, buckets=buckets),
        sampling=dataclasses.replace(SMALL.sampling, waves=waves),
        update=options.Update(**update),
    )


def drawn(ladder, config, prompt):
    with jax.set_mesh(DEVICES):
        params = rollout.sampler_params(tiny_batch.params())
        return train.sample(params, prompt, jax.random.key(3), config, encoder(*ladder), DEVICES)


def test_neither_waves_nor_buckets_change_a_sample(monkeypatch):
    """One whole call, four waves or two, padded to one size or to three: the same tokens to the last bit."""
    prompt, sizes, prefill = tiny_batch.mixed(8), [], rollout.prefill
    watch = lambda params, group, **more: sizes.append(group.tokens.shape) or prefill(params, group, **more)
    monkeypatch.setattr(rollout, "prefill", watch)
    whole = drawn(LADDER[-1:], options_of(), prompt)
    assert sizes == [(8, 100)] and len(np.unique(whole.tokens.reshape(8 * 4, -1), axis=0)) > 28
    for buckets, waves in ((1, 4), (3, 0), (3, 2)):
        sizes.clear()
        other = drawn(LADDER if buckets > 1 else LADDER[-1:], options_of(buckets, waves), prompt)
        np.testing.assert_array_equal(other.tokens, whole.tokens)
        np.testing.assert_array_equal(other.mask, whole.mask)
        np.testing.assert_allclose(other.logprobs, whole.logprobs, atol=1e-5)
        assert (other.steps <= whole.steps).all()
        assert sum(rows for rows, _ in sizes) == 8
        assert {length for _, length in sizes} == ({100} if buckets == 1 else {40, 64, 100})


@pytest.mark.slow  # test_learner has pieces of two sizes
@pytest.mark.parametrize(
    "update, sizes",
    [
        (dict(), LADDER[::2]),
        (dict(beta=0.1, mini_batches=2), LADDER),
        (dict(chunks=2), LADDER),
    ],
    ids=str,
)
def test_buckets_change_neither_loss_nor_update(update, sizes):
    prompt = tiny_batch.mixed(8)
    rng = np.random.default_rng(0)
    tokens = rng.integers(7, 500, (8, 4, 12)).astype(np.int32)
    mask = np.arange(12) < rng.integers(1, 13, (8, 4, 1))
    batch = learner.PolicyBatch(
        prompt, tokens, mask, np.zeros(tokens.shape, np.float32), rng.normal(size=(8, 4)).astype(np.float32)
    )
    found = []
    # Adam makes an update of 1e-6 of what is noise in a gradient, too: little enough for the second mini-batch.
    optim = options.Optim(lr=1e-6, warmup_steps=0, schedule="constant", b1=0.0, weight_decay=0.0)
    for ladder, accumulation in ((sizes[-1:], 1), (sizes, 0)):
        config = dataclasses.replace(options_of(len(ladder), accumulation=accumulation, **update), optim=optim)
        if not accumulation:
            tree = jax.eval_shape(tiny_batch.params)
            config = chunking.fit(config, tiny_batch.MODEL, tree, 1 << 40)
            assert config.update.accumulation == 4  # of 8 prompts, or of 4: at most twice as many as sizes
        memory = estimators.Memory(fairness.init(1, 1, 4, history=None))
        with jax.set_mesh(DEVICES):  # placed as in a run, where every update has the programs of the first
            params = jax.device_put(tiny_batch.params(), mesh.shardings(tiny_batch.params(), DEVICES))
            moments = learner.fresh_moments(params, optim=optim, steps=8)
            step, memory = jax.device_put((np.int32(0), memory), mesh.whole(DEVICES))
            state = learner.TrainState(params, moments, step, memory)
            state, values = train.update(state, batch, config, encoder(*ladder), DEVICES, learner.reference)
        found.append((optax.tree.get(state.moments, "mu"), values))
    whole, *others = found
    for grads, values in others:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5), grads, whole[0])
        for name in values:
            if "padding" not in name:
                np.testing.assert_allclose(values[name], whole[1][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_mini_batches_are_strided_and_pieces_hold_their_prompts():
    """Every second prompt; in each the small prompts first, and no prompt twice."""
    prompt = tiny_batch.mixed(16)
    names = np.arange(16)
    batch = learner.PolicyBatch(prompt, names, names, names, names)
    halves = train.micro_batches(batch, options_of(3, mini_batches=2, accumulation=4), LADDER)
    for index, pieces in enumerate(halves):
        assert sorted(np.concatenate([piece.tokens for piece in pieces])) == [*range(index, 16, 2)]
        lengths = [piece.prompt.tokens.shape[1] for piece in pieces]
        assert lengths == sorted(lengths) and len(pieces) == 4
        for piece in pieces:
            for name in ("tokens", "rope"):
                whole = getattr(prompt, name)[piece.tokens]
                np.testing.assert_array_equal(getattr(piece.prompt, name), whole[:, : piece.prompt.tokens.shape[1]])
            assert (models.sizes(piece.prompt) == models.sizes(prompt)[piece.tokens]).all()
    assert {length for pieces in halves for length in [p.prompt.tokens.shape[1] for p in pieces]} >= {40, 100}


@pytest.mark.parametrize("tries, rows, counts", [(1, [1, 0, 2, 3], (3, 0)), (2, [1, 4, 6, 0], (1, 4))])
def test_prompts_that_teach_replace_those_that_do_not(tries, rows, counts):
    """By hand: of batches of four prompts, those with different rewards first, then the oldest of the others."""
    rewards = np.array([[1, 1], [0, 1], [0, 0], [1, 1], [1, 0], [0, 0], [0, 1], [1, 1]], np.float32)
    whole = step_of(rewards, np.arange(8), -np.arange(8))
    kept, drawn, seen = None, {}, []
    for attempt in range(tries):
        seen.append(whole.take(np.arange(4) + 4 * attempt))
        kept, drawn = train.refill(kept, seen)
    assert kept is not None
    assert (drawn["rollout/zero_variance"], drawn["rollout/replaced"]) == counts
    np.testing.assert_array_equal(kept.rows, rows)
    np.testing.assert_array_equal(kept.rewards, rewards[rows])
    np.testing.assert_array_equal(kept.rollouts.tokens[:, 0, 0], np.array(rows) + 1)
    np.testing.assert_array_equal([kept.batch.domains, -kept.batch.groups, kept.batch.prompt.tokens - 1], [rows] * 3)
    assert kept.batch.records == [f"record {i + 1}" for i in rows] and kept.texts == [[f"text {i + 1}"] for i in rows]


def test_a_lost_prompt_is_replaced_by_one_of_its_own_cell():
    """By hand: cells a a b b; both of a and one of b are lost, and the second batch has one of a that teaches."""
    rewards = np.array([[1, 1], [0, 0], [1, 1], [0, 1], [1, 0], [1, 1], [0, 1], [0, 1]], np.float32)
    groups = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int32)
    whole = step_of(rewards, np.zeros(8, np.int32), groups)
    seen = [whole.take(np.arange(4))]
    kept, _ = train.refill(None, seen, by_cell=True)
    assert [*kept.lost[1]] == [0, 0, 1]
    seen.append(whole.take(np.arange(4, 8)))
    kept, drawn = train.refill(kept, seen, by_cell=True)
    assert sorted(kept.rows.tolist()) == [0, 3, 4, 6] and sorted(kept.batch.groups.tolist()) == [0, 0, 1, 1]
    assert (drawn["rollout/zero_variance"], drawn["rollout/replaced"]) == (1, 4)


@pytest.mark.parametrize("algorithm", ["fair_grpo", "fair_grpo_nd", "group_dro", "grpo"])
def test_statistics_and_logged_rewards_are_those_of_all_sampled_prompts(algorithm):
    """Dynamic sampling keeps the half that teaches; groups are still as well served as they were drawn."""
    rng = np.random.default_rng(1)
    groups = np.arange(24).astype(np.int32) % 2
    rewards = (rng.random((24, 4)) < np.where(groups, 0.1, 0.6)[:, None]).astype(np.float32)
    domains = np.zeros(24, np.int32)
    whole = step_of(rewards, domains, groups)
    kept, seen = None, []
    for attempt in range(2):
        seen.append(whole.take(np.arange(8) + 8 * attempt))
        kept, _ = train.refill(kept, seen)
    assert kept is not None
    config = dataclasses.replace(SMALL, algorithm=algorithm, sampling=options.Sampling(tries=3))
    state = fairness.init(1, 2, 4, history="binary")
    devices = jax.make_mesh((1, 1), ("fsdp", "tensor"))
    got, memory, watched = train.estimate(kept, seen, estimators.Memory(state), config, SCORER, devices)
    drawn = rewards[:16]
    if algorithm != "grpo":
        shown = [0, 1] if algorithm != "fair_grpo_nd" else [2]
        means = [drawn[groups[:16] == g].mean() for g in (0, 1)] if len(shown) == 2 else [drawn.mean()]
        np.testing.assert_array_equal(memory.fairness.group_count[0, shown], [16 // len(shown)] * len(shown))
        np.testing.assert_allclose(memory.fairness.group_mean[0, shown], means, rtol=1e-6)
    if algorithm == "group_dro":  # q / p by hand, of everyone that was drawn
        q = np.exp(0.01 * (1 - np.array(means)))
        weights = (q / q.sum() / 0.5)[kept.batch.groups]
        np.testing.assert_allclose(got, weights[:, None] * advantages.grpo(kept.rewards), rtol=1e-5)
    elif algorithm == "grpo":
        np.testing.assert_allclose(got, advantages.grpo(kept.rewards), rtol=1e-6)
    else:
        hidden = groups[:16] if algorithm == "fair_grpo" else np.full(16, -1)
        weights, _ = fairness.weigh(algorithm, drawn, domains[:16], hidden, state)
        np.testing.assert_allclose(got, fairness.rescale(kept.rewards, weights[kept.rows]), rtol=1e-5, atol=1e-6)
    encoder: Any = types.SimpleNamespace(domains=("d",), vocabulary=types.SimpleNamespace(cells=("a", "b")))
    values = train.step_metrics(kept, seen, np.asarray(got), encoder, SCORER)
    assert values["reward/mean"] == pytest.approx(drawn.mean()) and values["reward/unscored_share"] == 0
    assert values["reward/kept_mean"] == pytest.approx(kept.rewards.mean())
    assert values["reward/group/d/b"] == pytest.approx(drawn[groups[:16] == 1].mean())


def test_agreement_of_clusters_is_that_of_each_dataset_by_its_prompts():
    """Two datasets with groups, one found out and one not; one without groups has no say; padding is cut off."""
    domains = np.array([0] * 4 + [1] * 8 + [2] * 4, np.int32)
    groups = np.array([0, 0, 1, 1, 0, 1] + [0, 1] * 3 + [-1] * 4, np.int32)
    seen = [step_of(np.zeros((16, 2), np.float32), domains, groups)]
    clusters = np.array([2, 2, 3, 3, *[2] * 8, *[2] * 4, 9, 9])
    found = train.agreement(jnp.asarray(clusters), seen)
    assert found["clusters/ari"] == pytest.approx((4 * 1 + 8 * 0) / 12)
    assert found["clusters/nmi"] == pytest.approx((4 * 1 + 8 * 0) / 12)
    assert train.agreement(None, seen) == {}


def test_effective_sample_size_of_group_dro_is_that_of_its_weights():
    """By hand: q of two cells after losses of 1 and 0 at step size 5, over shares of 7/8 and 1/8."""
    rewards = np.array([[1.0, 0.0]] * 8, np.float32)
    state = fairness.init(1, 2, 2, history=None)
    state = dataclasses.replace(state, dro_log_weight=np.array([[0.0, 5.0, 0.0]], np.float32))
    scored = estimators.Scored.of(rewards, np.zeros(8, int), np.array([0] * 7 + [1]))
    _, _, watched = estimators.estimate("group_dro", scored, estimators.Memory(state))
    q = np.exp([0, 5]) / np.exp([0, 5]).sum()
    weights = np.array([q[0] / (7 / 8)] * 7 + [q[1] / (1 / 8)])
    assert watched["fairness/effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-4)
    assert watched["fairness/effective_sample_size"] < 1.2


def test_a_completion_that_was_not_scored_costs_neither_log_nor_advantage():
    rewards = np.array([[1.0, np.nan, 0.0], [1.0, 0.0, 0.0]], np.float32)
    sampled = step_of(rewards, np.zeros(2, np.int32), np.array([0, -1], np.int32))
    kept, _ = train.refill(None, [sampled])
    devices = jax.make_mesh((1, 1), ("fsdp", "tensor"))
    memory = estimators.Memory(fairness.init(1, 1, 3, history="binary"))
    got, _, watched = train.estimate(kept, [sampled], memory, SMALL, SCORER, devices)
    assert np.isfinite(got).all() and got[0, 1] == 0 and all(np.isfinite(value) for value in watched.values())
    encoder: Any = types.SimpleNamespace(domains=("d",), vocabulary=types.SimpleNamespace(cells=("a",)))
    values = train.step_metrics(kept, [sampled], np.asarray(got), encoder, SCORER)
    assert values["reward/mean"] == pytest.approx(2 / 5) and values["reward/unscored_share"] == pytest.approx(1 / 6)
    assert values["reward/group/d/a"] == 0.5 and all(np.isfinite(value) for value in values.values())


def test_lengths_of_the_best_and_of_the_worst_completions():
    """By hand, over the prompts that teach: one without a difference and one with a gap have no say."""
    rewards = np.array([[1, 0, 0.5], [0, 0, 0], [0.2, 0.2, 0.1], [1, np.nan, 0]], np.float32)
    tokens: Any = np.zeros((4, 3, 3), np.int32)
    steps: Any = np.full(4, 3)
    mask: Any = np.arange(3) < np.array([[1, 3, 2], [3, 3, 3], [2, 3, 1], [3, 3, 3]])[..., None]
    rollouts = rollout.RolloutBatch(tokens, mask, tokens / 10, steps)
    sampled = step_of(rewards, np.zeros(4, np.int32), np.zeros(4, np.int32), rollouts)
    encoder: Any = types.SimpleNamespace(domains=("d",), vocabulary=types.SimpleNamespace(cells=("a",)))
    values = train.step_metrics(sampled, [sampled], np.ones((4, 3)), encoder, SCORER)
    assert values["rollout/length_best"] == pytest.approx((1 + 2 + 3) / 3)
    assert values["rollout/length_worst"] == pytest.approx((3 + 1) / 2)
    same = step_of(np.ones((4, 3), np.float32), np.zeros(4, np.int32), np.zeros(4, np.int32), rollouts)
    assert not {"rollout/length_best", "rollout/length_worst"} & {
        *train.step_metrics(same, [same], np.ones((4, 3)), encoder, SCORER)
    }


@pytest.mark.parametrize("truncated", ["mask", "penalise"])
def test_truncated_completions(truncated):
    """Completions that ended are learned from as before; cut ones have no loss, or a lower reward."""
    sampling = options.Sampling(max_new_tokens=4, truncated=truncated, overlong_buffer=2)
    config = dataclasses.replace(SMALL, algorithm="grpo", sampling=sampling)
    end = tiny_batch.MODEL.eos_ids[0]
    tokens = np.array([[[9, end, 0, 0], [9, 9, 9, 9], [9, 9, 9, end], [9, 9, end, 0]]], np.int32)
    mask = np.arange(4) < np.array([2, 4, 4, 3])[None, :, None]
    arrays: Any = tokens, mask, np.zeros(tokens.shape, np.float32), mask.sum(-1).max(-1)
    rollouts = rollout.RolloutBatch(*arrays)
    record = dataclasses.replace(RECORD, answer="Nevus")
    batch: Any = types.SimpleNamespace(records=[record])
    scorer = build(config.reward, sampling, [record])
    sampled = train.score(batch, rollouts, [[r"\boxed{Nevus}"] * 4], scorer, tiny_batch.MODEL, MEMORY)
    np.testing.assert_array_equal(sampled.finished, [[True, False, True, True]])
    np.testing.assert_allclose(sampled.rewards, [[1, 0, 0, 0.5]] if truncated == "penalise" else [[1, 1, 1, 1]])
    np.testing.assert_array_equal(sampled.learned[0, 1], [truncated != "mask"] * 4)
    np.testing.assert_array_equal(sampled.learned[0, ::2], mask[0, ::2])
    compared = [[1, 0, 0, 0.5]] if truncated == "penalise" else [[1, np.nan, 1, 1]]
    np.testing.assert_allclose(sampled.compared, compared)


@pytest.mark.parametrize("algorithm", ["reinforce_plus_plus", "reinforce_plus_plus_baseline", "opo", "grpo"])
def test_advantages_are_centred_over_the_tokens_that_are_learned_from(algorithm):
    """Where cut completions are masked: mean 0, and deviation 1 where the estimator whitens."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 13, (16, 4))
    mask = np.arange(12) < lengths[..., None]
    finished = lengths < 10
    rewards = np.where(finished, rng.random((16, 4)) < 0.6, 0).astype(np.float32)
    arrays: Any = mask.astype(np.int32), mask, mask * 0.0, mask.sum(-1).max(-1)
    sampled = step_of(rewards, np.zeros(16, np.int32), np.zeros(16, np.int32), rollout.RolloutBatch(*arrays))
    sampled = dataclasses.replace(sampled, finished=finished, learned=mask & finished[..., None])
    kept, _ = train.refill(None, [sampled])
    config = dataclasses.replace(SMALL, algorithm=algorithm)
    devices = jax.make_mesh((1, 1), ("fsdp", "tensor"))
    memory = estimators.Memory(fairness.init(1, 1, 4, history="binary"))
    got = np.asarray(train.estimate(kept, [sampled], memory, config, SCORER, devices)[0], np.float64)
    tokens = kept.learned.sum(-1)
    assert (got[tokens == 0] == 0).all()
    if algorithm == "opo":
        np.testing.assert_allclose((got * tokens).sum(1), 0, atol=1e-5)
    elif algorithm == "grpo":
        np.testing.assert_allclose(got.sum(1), 0, atol=1e-5)
    else:
        mean = (got * tokens).sum() / tokens.sum()
        assert mean == pytest.approx(0, abs=1e-5)
        assert (got**2 * tokens).sum() / (tokens.sum() - 1) == pytest.approx(1, abs=1e-3)


def test_speed_counts_tokens_and_useful_work_only():
    """Padding of prompts and completions is no work; MFU by hand from the formula of the work and an H200's peak."""
    prompt = tiny_batch.prompt(tiny_batch.records(4))
    mask = np.arange(6) < np.array([[2, 4], [6, 4], [3, 1], [4, 4]])[..., None]
    arrays: Any = mask.astype(int), mask, mask * 0.0, mask.sum(-1).max(-1)
    sampled: Any = types.SimpleNamespace(
        batch=types.SimpleNamespace(sizes=models.sizes(jax.device_get(prompt))), rollouts=rollout.RolloutBatch(*arrays)
    )
    config = dataclasses.replace(SMALL, prompts=4, rollouts=2)
    device = types.SimpleNamespace(device_kind="NVIDIA H200")
    mesh: Any = types.SimpleNamespace(devices=np.array([[device]], object), size=1)
    values = {"time/rollout": 0.5, "time/update": 0.1, "time/data": 0.2}
    got = train.speed(sampled, [sampled], values, config, encoder(), mesh)
    lengths = np.asarray(prompt.valid).sum(1)
    sizes = cost.Sizes(prompts=4, rollouts=2, prompt=int(lengths.mean()), completion=3.5, patches=64)
    work = cost.update_flops(tiny_batch.MODEL, sizes, recomputed=False).total
    assert got["speed/rollout_tokens_per_s"] == 56 and got["speed/data_wait_share"] == pytest.approx(0.25)
    assert (
        got["speed/padding/tokens"] == pytest.approx(1 - lengths.sum() / (4 * 48)) and not got["speed/padding/patches"]
    )
    assert got["speed/update_mfu"] == pytest.approx(work / 0.1 / 494.5e12)
    device.device_kind = "cpu"
    assert train.speed(sampled, [sampled], values, config, encoder(), mesh).keys() == got.keys() - {"speed/update_mfu"}
