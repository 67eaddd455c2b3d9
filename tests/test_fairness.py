"""FairGRPO against the authors' numbers, a restatement in NumPy, and its symmetries."""

import json
from pathlib import Path

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads

from fairgrpo_jax import advantages, diagnostics, fairness


CASES = json.loads((Path(__file__).parent / "golden" / "advantages.json").read_text())["cases"]
NAN = float("nan")
D, GROUPS, G = 2, 3, 4
fuzz = hypothesis.settings(derandomize=True, database=None)


def batch(seed, prompts=10, binary=True, unlabelled=False):
    rng = np.random.default_rng(seed)
    rewards = rng.random((prompts, G))
    rewards = (rewards < rng.random((prompts, 1))).astype(np.float32) if binary else rewards.astype(np.float32)
    groups = rng.integers(-1 if unlabelled else 0, GROUPS, prompts)
    return rewards, rng.integers(0, D, prompts).astype(np.int32), groups.astype(np.int32)


def fresh(history=None, capacity=64):
    return fairness.init(D, GROUPS, G, history=history, capacity=capacity)


def restated(
    batches,
    statistics="cumulative",
    decay=0.99,
    clamp="code",
    max_weight=None,
    size_exponent=0.5,
    mean_exponent=1.0,
    levels="both",
    shift=0.0,
    epsilon=1e-6,
):
    """The definition in plain loops, labelled prompts only: the weights and advantages of the last batch."""
    seen, ema = {}, {}
    for r, d, g in batches:
        new = {}
        for row, domain, group in zip(np.asarray(r, np.float64), d, g, strict=True):
            if not np.isnan(row).all():
                for cell in ((domain,), (domain, group)):
                    new.setdefault(cell, []).append(np.nanmean(row) + shift)
        seen = {} if statistics == "batch" else seen
        for cell, means in new.items():
            seen[cell] = seen.get(cell, []) + means
            pace = max(len(means) / len(seen[cell]), 1 - decay)
            ema[cell] = ema.get(cell, 0) * (1 - pace) + pace * np.mean(means)

    def temperature(cell):
        mean = (ema.get(cell, 0) if statistics == "ema" else np.mean(seen.get(cell, [0]))) * (cell in seen)
        return len(seen.get(cell, [])) ** size_exponent * mean**mean_exponent

    weights, scores = np.ones(len(r)), np.zeros(r.shape)
    for i, (row, domain, group) in enumerate(zip(np.asarray(r, np.float64), d, g, strict=True)):
        t_d = 1 if levels == "group" else temperature((domain,))
        t_g = 1 if levels == "domain" else temperature((domain, group))
        product = {
            "code": max(t_d, epsilon) * t_g,
            "product": max(t_d * t_g, epsilon),
            "factor": max(t_d, epsilon) * max(t_g, epsilon),
        }[clamp]
        weights[i] = 1 / product if product > 0 else 1
        scored = row[~np.isnan(row)]
        if len(set(scored)) > 1:
            scores[i] = np.nan_to_num((row - scored.mean()) / (scored.std(ddof=1) + epsilon))
    active = np.any(scores != 0, axis=1)
    if max_weight is not None and active.any():
        median = np.median(weights[active])
        weights = np.clip(weights, median / max_weight, median * max_weight)
    scores *= weights[:, None]
    deviation = np.sqrt(np.sum(scores**2) / max(np.sum(~np.isnan(r)) - 1, 1))
    return weights[active], scores / (deviation + epsilon)


def run_case(case, history, clustering):
    domains = sorted({d for step in case["steps"] for d in step["domain"]})
    groups = sorted({g for step in case["steps"] for g in step["demo"]} - {"UNK"})
    state = fairness.init(len(domains), len(groups), 4, history=history, capacity=16)
    for step in case["steps"]:
        rewards = np.array(step["rewards"], np.float32)
        d = np.array([domains.index(x) for x in step["domain"]])
        if case["method"] == "fair_grpo":
            g = np.array([-1 if x == "UNK" else groups.index(x) for x in step["demo"]])
            got, state = fairness.fair_grpo(rewards, d, g, state, clustering=clustering)
        else:
            method = {"fair_grpo_nd": fairness.fair_grpo_nd, "drpo": fairness.drpo}[case["method"]]
            got, state = method(rewards, d, state, k_max=3, clustering=clustering)
        yield got, step["adv"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['name']}-{c['method']}")
def test_golden_with_scikit_learn(case):
    for got, wanted in run_case(case, "ring", "sklearn"):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize("history", ["ring", "binary"])
@pytest.mark.parametrize("case", [c for c in CASES if c["method"] == "fair_grpo"], ids=lambda c: c["name"])
def test_golden_with_jax(case, history):
    """The other methods' cases cluster three equidistant vectors in two: any answer is as good."""
    for got, wanted in run_case(case, history, "jax"):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


REWARDS = arrays(np.int8, (2, 6, 4), elements=st.integers(-1, 8))  # eighths, -1 = not scored
IDS = arrays(np.int32, (2, 6), elements=st.integers(0, 1))


@pytest.mark.parametrize("statistics", ["cumulative", "batch", "ema"])
@fuzz
@hypothesis.given(
    eighths=REWARDS,
    domains=IDS,
    groups=IDS,
    scale=st.sampled_from([1e-5, 0.1, 1.0, 1e4]),
    clamp=st.sampled_from(["code", "product", "factor"]),
    levels=st.sampled_from(["both", "group", "domain"]),
    max_weight=st.sampled_from([None, 1.0, 1.7]),
    size_exponent=st.sampled_from([0.0, 0.5, 1.0]),
    mean_exponent=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    shift=st.sampled_from([0.0, 0.25]),
    epsilon=st.sampled_from([1e-6, 1e-2]),
    decay=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_every_switch_in_64_bit(statistics, eighths, domains, groups, scale, shift, **options):
    """Two steps from an empty state; with a shift the rewards go down to minus it."""
    options |= {"statistics": statistics, "shift": scale * shift}
    rewards = scale * (np.where(eighths < 0, np.nan, eighths / 8) - shift)
    batches = list(zip(rewards, domains, groups, strict=True))
    with jax.enable_x64(True):
        state = fairness.init(2, 2, 4, history=None)
        for i, one in enumerate(batches):
            weights, _, _ = fairness.temperatures(*one, state, **options)
            got, state = fairness.fair_grpo(*one, state, **options)
            wanted_weights, wanted = restated(batches[: i + 1], **options)
            active = np.asarray(advantages.has_signal(one[0]))
            np.testing.assert_allclose(np.asarray(weights)[active], wanted_weights, rtol=1e-9)
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)
            assert got.dtype == weights.dtype == state.domain_mean.dtype == np.float64


@pytest.mark.parametrize("binary", [True, False])
def test_every_step_in_32_bit(binary):
    state, batches = fresh(), [batch(seed, binary=binary) for seed in range(3)]
    for i, one in enumerate(batches):
        got, state = fairness.fair_grpo(*one, state, max_weight=1.5)
        np.testing.assert_allclose(got, restated(batches[: i + 1], max_weight=1.5)[1], rtol=2e-4, atol=2e-5)
        assert got.dtype == state.domain_mean.dtype == np.float32


@pytest.mark.parametrize("method", ["fair_grpo", "fair_grpo_nd", "drpo"])
def test_rows_sum_to_zero_and_the_batch_has_deviation_one(method):
    rewards, d, g = batch(4, unlabelled=True)
    args = (rewards, d, g) if method == "fair_grpo" else (rewards, d)
    got, _ = getattr(fairness, method)(*args, fresh("binary"))
    got = np.asarray(got)
    np.testing.assert_allclose(got.sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(ddof=1), 1, rtol=1e-4)
    assert np.array_equal(np.sign(got), np.sign(np.round(np.asarray(advantages.grpo(rewards)), 6)))
    assert np.abs(got).max() <= diagnostics.ceiling(*rewards.shape) * (1 + 1e-5)


@pytest.mark.parametrize("exponents", [{}, {"size_exponent": 0.0, "mean_exponent": 0.0, "clamp": "product"}])
def test_without_differences_it_is_grpo_over_its_deviation(exponents):
    """One domain and one group; or temperatures that are all 1, even of a group that was never rewarded."""
    rewards, d, g = batch(0)
    rewards[g == 1] = 0
    d, g = (d, g) if exponents else (0 * d, 0 * g)
    got, _ = fairness.fair_grpo(rewards, d, g, fresh(), **exponents)
    weights, _, _ = fairness.temperatures(rewards, d, g, fresh(), **exponents)
    assert len(set(weights.tolist())) == 1
    scores = np.asarray(advantages.grpo(rewards))
    np.testing.assert_allclose(got, scores / scores.std(ddof=1), rtol=1e-4)


def test_permuting_prompts_and_rollouts_permutes():
    rewards, d, g = batch(0)
    rows, columns = np.random.default_rng(0).permutation(len(d)), [2, 0, 3, 1]
    base, _ = fairness.fair_grpo(rewards, d, g, fresh())
    got, _ = fairness.fair_grpo(rewards[rows][:, columns], d[rows], g[rows], fresh())
    np.testing.assert_allclose(got, np.asarray(base)[rows][:, columns], rtol=1e-4)


def test_names_of_domains_and_groups_do_not_matter():
    rewards, d, g = batch(0)
    base, _ = fairness.fair_grpo(rewards, d, g, fresh())
    got, _ = fairness.fair_grpo(rewards, 1 - d, np.array([2, 0, 1])[g], fresh())
    np.testing.assert_allclose(got, base, rtol=1e-4)


def test_scale_of_rewards_cancels_but_their_shift_does_not():
    rewards, d, g = batch(0, binary=False)
    base, _ = fairness.fair_grpo(rewards, d, g, fresh())
    scaled, _ = fairness.fair_grpo(3 * rewards, d, g, fresh())
    shifted, _ = fairness.fair_grpo(rewards + 0.5, d, g, fresh())
    np.testing.assert_allclose(scaled, base, rtol=1e-4)
    assert np.abs(np.asarray(shifted) - np.asarray(base)).max() > 0.05


@pytest.mark.parametrize("value", [0.0, 1.0, 0.35])
def test_equal_rewards_give_zero(value):
    got, state = fairness.fair_grpo(np.full((4, G), value), [0, 0, 1, 1], [0, 1, 2, 2], fresh())
    assert np.all(np.asarray(got) == 0) and state.domain_count.tolist() == [2, 2]


def test_rarer_and_harder_groups_weigh_more():
    easy, hard = [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    weights, _, _ = fairness.temperatures([easy] * 4 + [hard] * 2, [0] * 6, [0, 0, 0, 1, 2, 2], fresh())
    # groups: 0 is 3 easy, 1 is 1 easy, 2 is 2 hard
    np.testing.assert_allclose(weights[3] / weights[0], np.sqrt(3), rtol=1e-5)
    np.testing.assert_allclose(weights[4] / weights[0], np.sqrt(3 / 2) * 3, rtol=1e-5)


def test_max_weight_bounds_the_weights_of_active_prompts():
    rewards, d, g = batch(7, prompts=40)
    free, _, _ = fairness.temperatures(rewards, d, g, fresh())
    held, _, _ = fairness.temperatures(rewards, d, g, fresh(), max_weight=1.5)
    active = rewards.std(1) > 0
    median = np.median(np.asarray(free)[active])
    assert np.asarray(free)[active].max() > 1.5 * median
    np.testing.assert_allclose(held, np.clip(free, median / 1.5, median * 1.5), rtol=1e-5)
    assert diagnostics.effective_sample_size(held[active]) > diagnostics.effective_sample_size(free[active])


def test_nan_is_excluded():
    rewards, d, g = batch(3, prompts=6, binary=False)
    rewards[0, 1], rewards[2] = NAN, NAN
    got, state = fairness.fair_grpo(rewards, d, g, fresh())
    got = np.asarray(got)
    assert np.all(np.isfinite(got)) and got[0, 1] == 0 and np.all(got[2] == 0)
    assert state.domain_count.sum() == 5
    for domain in range(D):
        rows = [i for i in range(6) if d[i] == domain and i != 2]
        np.testing.assert_allclose(
            state.domain_mean[domain], np.mean([np.nanmean(rewards[i]) for i in rows]), rtol=1e-5
        )
    np.testing.assert_allclose(got[~np.isnan(rewards)].std(ddof=1), 1, rtol=1e-4)


def test_nan_vector_is_not_kept_but_joins_the_nearest_cluster():
    """The last is nearer to 0, where a third cluster would be if there were one."""
    low, high = [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    rewards = [low, low, high, high, [NAN, 1.0, 1.0, 0.0], [NAN, 0.0, 0.0, 0.4]]
    weights, labels, state = fairness.temperatures(rewards, [0] * 6, [-1] * 6, fresh("ring"))
    assert state.cursor[0] == 4 and state.group_count[0, -1] == 6
    assert labels[4] == labels[2] != labels[0] and weights[4] == weights[2]
    assert labels[5] == labels[0] and weights[5] == weights[0]


def test_labels_name_groups_and_clusters():
    low, high = [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    for history in ("ring", "binary"):
        _, labels, state = fairness.temperatures([low, high, low, high], [0, 0, 0, 0], [-1, -1, -1, 1], fresh(history))
        labels = labels.tolist()
        assert labels[3] == 1 and labels[0] == labels[2] != labels[1] and min(labels[:3]) >= GROUPS
        assert state.history is not None and state.history.sum() == (
            3 if history == "binary" else 1 + 3 + 1
        )  # the labelled one is not kept


def test_clusters_give_count_and_mean():
    low, high = [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    rewards = [low, low, low, high]
    weights, _, _ = fairness.temperatures(rewards, [0] * 4, [-1] * 4, fresh("ring"))
    t_d = np.sqrt(4) * 6 / 16
    np.testing.assert_allclose(weights, 1 / (t_d * np.array([np.sqrt(3) / 4] * 3 + [0.75])), rtol=1e-5)
    inverse, _, _ = fairness.temperatures(rewards, [0] * 4, [-1] * 4, fresh("ring"), domain_mean="inverse_size")
    t_inverse = np.sqrt(4) * (0.25 / 3 + 0.75 / 1) / (1 / 3 + 1)
    np.testing.assert_allclose(inverse, np.asarray(weights) * t_d / t_inverse, rtol=1e-5)


def test_without_history_the_unlabelled_are_one_group():
    rewards, d, g = batch(5, unlabelled=True)
    got, _ = fairness.fair_grpo(rewards, d, g, fresh(None))
    np.testing.assert_allclose(got, restated([(rewards, d, g)])[1], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("history", ["ring", "binary"])
def test_one_trace_serves_every_make_up(history):
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(lambda *a: fairness.fair_grpo(*a, max_weight=4.0), 1))
    state, eager = fresh(history), fresh(history)
    for seed in range(3):
        one = batch(seed, unlabelled=seed > 0)
        got, state = step(*map(jnp.asarray, one), state)
        wanted, eager = fairness.fair_grpo(*one, eager, max_weight=4.0)
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(state, eager, rtol=1e-5)


class TestCompilation(chex.TestCase):
    """The same numbers compiled, not compiled, and for many states at once."""

    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_variants(self):
        rewards, d, g = batch(1, unlabelled=True)
        got = self.variant(fairness.fair_grpo)(rewards, d, g, fresh())[0]
        np.testing.assert_allclose(got, restated([(rewards, d, g)])[1], rtol=2e-4, atol=2e-5)
        got = self.variant(fairness.group_dro)(rewards, d, g, fresh())
        chex.assert_trees_all_close(got, fairness.group_dro(rewards, d, g, fresh()), rtol=1e-5)

    def test_states_under_vmap(self):
        options = {"max_weight": 2.0, "levels": "group", "statistics": "ema"}
        states = [fairness.fair_grpo(*batch(seed, unlabelled=True), fresh("binary"))[1] for seed in (1, 2)]
        rewards, d, g = batch(3, unlabelled=True)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        got = jax.vmap(lambda state: fairness.fair_grpo(rewards, d, g, state, **options))(stacked)
        wanted = [fairness.fair_grpo(rewards, d, g, state, **options) for state in states]
        wanted = jax.tree.map(lambda *leaves: jnp.stack(leaves), *wanted)
        chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-5)

    def test_no_host_callback(self):
        text = jax.jit(fairness.fair_grpo).lower(*map(jnp.asarray, batch(0)), fresh("ring")).as_text()
        assert "callback" not in text and "stablehlo.case" in text


def test_derivatives_of_soft_rewards():
    """First order forward and backward, second order backward, against differences; and with respect to exponents."""
    with jax.enable_x64(True):
        rewards = np.random.default_rng(0).uniform(0.1, 0.9, (6, 3))
        d, g, state = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, -1, -1]), fairness.init(2, 2, 3, history=None)
        fair = jax.jit(lambda r: fairness.fair_grpo(r, d, g, state, max_weight=1.5, mean_exponent=0.7)[0])
        check_grads(fair, (rewards,), order=1, atol=1e-5, rtol=1e-5)
        check_grads(fair, (rewards,), order=2, modes=("rev",), atol=1e-3, rtol=1e-3)
        dro = jax.jit(lambda r: fairness.group_dro(r, d, g, state, step_size=0.5)[0])
        check_grads(dro, (rewards,), order=1, modes=("rev",), atol=1e-5, rtol=1e-5)
        rewards[d == 1] = 0  # never rewarded: the exponents still have a derivative
        of_exponents = jax.jit(
            lambda a, b: fairness.fair_grpo(rewards, d, g, state, size_exponent=a, mean_exponent=b)[0]
        )
        check_grads(of_exponents, (0.5, 1.0), order=1, modes=("fwd",), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sort_vectors", [pytest.param(False, marks=pytest.mark.slow), True])
def test_gradients_through_clusters_are_those_of_fixed_labels(sort_vectors):
    low, high = np.array([0.1, 0.2, 0.15, 0.3]), np.array([0.9, 0.7, 0.8, 0.95])
    rewards = np.stack([low, low + 0.02, high, high - 0.03, low - 0.01]).astype(np.float32)
    weigh = jax.jit(
        lambda r: fairness.temperatures(r, [0] * 5, [-1] * 5, fresh("ring"), k_max=2, sort_vectors=sort_vectors)[0]
    )

    def by_hand(r):
        mean = jnp.array([r[jnp.array([0, 1, 4])].mean(), r[2:4].mean()])[jnp.array([0, 0, 1, 1, 0])]
        return 1 / (jnp.sqrt(5) * r.mean() * jnp.sqrt(jnp.array([3, 3, 2, 2, 3])) * mean)

    np.testing.assert_allclose(jax.jit(jax.jacrev(weigh))(rewards), jax.jit(jax.jacrev(by_hand))(rewards), rtol=1e-4)


@pytest.mark.parametrize("history", [None, "ring"])
def test_rows_without_signal_have_no_gradient(history):
    rewards, d, g = batch(0, binary=False, unlabelled=True)
    rewards[0], rewards[1], rewards[2, 1:], rewards[3, 0] = 0.5, 0.0, NAN, NAN

    def spread(r):
        return jnp.sum(fairness.fair_grpo(r, d, g, fresh(history), max_weight=1.3)[0] ** 3)

    got, gradient = fairness.fair_grpo(rewards, d, g, fresh(history))[0], jax.jit(jax.grad(spread))(rewards)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    assert np.all(np.asarray(got)[:3] == 0) and got[3, 0] == 0


@pytest.mark.parametrize("clamp", ["code", "product", "factor"])
def test_a_negative_mean_never_turns_the_sign(clamp):
    """Under jit nobody refuses negative rewards."""
    rewards, d, g = batch(0, binary=False)
    rewards -= 0.6
    got, _ = jax.jit(lambda r: fairness.fair_grpo(r, d, g, fresh(), clamp=clamp, mean_exponent=0.5))(rewards)
    assert np.all(np.asarray(got) * np.asarray(advantages.grpo(rewards)) >= 0) and np.any(got != 0)


def test_shift_moves_means_and_vectors_but_not_scores():
    """Two clusters, near 0 and near 0.8 when shifted; without, all vectors would be nearest to the lower."""
    rewards, d, _ = batch(2, binary=False)
    g = np.full(10, -1)
    rewards = rewards / 10 - np.where(np.arange(10) % 2, 0.2, 1).astype(np.float32)[:, None]
    weights, _, state = fairness.temperatures(rewards, d, g, fresh("ring"), shift=1.0)
    wanted, _, wanted_state = fairness.temperatures(rewards + 1, d, g, fresh("ring"))
    np.testing.assert_allclose(weights, wanted, rtol=1e-5)
    chex.assert_trees_all_close(state, wanted_state, atol=1e-6)
    got, _ = fairness.fair_grpo(rewards, d, g, fresh("ring"), shift=1.0)
    np.testing.assert_allclose(got, fairness.rescale(rewards, weights), rtol=1e-5)
    fairness.fair_grpo([[np.float32(-0.3), 0.0]], [0], [0], fairness.init(1, 1, 2), shift=0.3)  # the bound itself


@pytest.mark.parametrize("method", ["fair_grpo_nd", "drpo"])
def test_variants_without_demographics_take_the_options(method):
    """Half of the rewards are so small that the clamp of T_g matters, which is what tells the two apart."""
    rewards, d, _ = batch(5, prompts=16, binary=False)
    rewards[::2] /= 100
    options = {"size_exponent": 0.25, "mean_exponent": 2.0, "levels": "group", "max_weight": 1e3, "epsilon": 1e-3,
               "sort_vectors": True, "statistics": "batch", "k_max": 2}  # fmt: skip
    got, _ = getattr(fairness, method)(rewards, d, fresh("ring"), **options)
    clamps = ("factor", "code") if method == "fair_grpo_nd" else ("code", "factor")
    wanted, other = (
        fairness.temperatures(rewards, d, 0 * d - 1, fresh("ring"), clamp=c, domain_mean="inverse_size", **options)[0]
        for c in clamps
    )
    np.testing.assert_allclose(got, fairness.rescale(rewards, wanted, epsilon=1e-3), rtol=1e-5)
    assert len(set(np.asarray(wanted).round(3).tolist())) > 1 and not np.allclose(wanted, other, rtol=0.1)


def test_drpo_has_up_to_ten_clusters():
    corners = 10 * np.eye(4, dtype=np.float32)
    rewards = np.repeat(np.array([1, 2, 3, 4], np.float32)[:, None] * corners, 3, axis=0)
    got, _ = fairness.drpo(rewards, [0] * 12, fresh("ring"))
    few, _ = fairness.drpo(rewards, [0] * 12, fresh("ring"), k_max=3)
    # Each corner is its own cluster, all of one size: the domain's mean is 6.25 / 4 x 4.
    t = np.sqrt(12) * 6.25 * np.sqrt(3) * np.repeat([2.5, 5, 7.5, 10], 3)
    np.testing.assert_allclose(got, fairness.rescale(rewards, 1 / t), rtol=1e-4)
    assert np.abs(np.asarray(got) - np.asarray(few)).max() > 0.01


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rewards": [[-0.5, 1.0]]}, "rewards from -0.5"),
        ({"rewards": [[np.inf, 1.0]]}, "finite"),
        ({"domains": [2]}, "domains from 2 to 2"),
        ({"domains": [-1]}, "domains from -1"),
        ({"groups": [3]}, "wanted 0 .. 2"),
        ({"groups": [-2]}, "groups from -2"),
        ({"groups": [0, 0]}, "wanted \\(P, G\\)"),
        ({"groups": [0.0]}, "wanted integers"),
        ({"rewards": [[1.0, 0.0, 1.0]]}, "num_rollouts=3"),
        ({"rewards": [[0.5, 1.0]]}, "other than 0 and 1"),
        ({"statistics": "mean"}, "statistics='mean'"),
        ({"clamp": "none"}, "clamp='none'"),
        ({"clustering": "torch"}, "clustering='torch'"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"max_weight": 0.5}, "max_weight=0.5"),
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"levels": "cell"}, "levels='cell'"),
        ({"size_exponent": -0.5}, "size_exponent=-0.5"),
        ({"mean_exponent": -1.0}, "mean_exponent=-1.0"),
        ({"shift": -1.0}, "shift >= 0"),
        ({"shift": 0.5}, "got shift=0.5 with history='binary'"),
        ({"rewards": [[-0.5, 1.0]], "shift": 0.25, "state": fairness.init(2, 3, 2)}, ">= -shift = -0.25; raise shift"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"rewards": [[1.0, 0.0]], "domains": [0], "groups": [0], "state": fairness.init(2, 3, 2, history="binary")}
    with pytest.raises(ValueError, match=message):
        fairness.fair_grpo(**{**good, **change})


def test_more_bad_input_is_refused():
    state = fairness.init(2, 3, 2, history="binary")
    with pytest.raises(ValueError, match="got shift=0.5"):
        jax.jit(lambda r: fairness.fair_grpo(r, [0], [0], state, shift=0.5))(jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="'sklearn' under jit"):
        jax.jit(lambda r: fairness.fair_grpo(r, [0], [0], state, clustering="sklearn"))(jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="one a prompt"):
        fairness.rescale([[1.0, 0.0]], [1.0, 1.0])
    with pytest.raises(ValueError, match="got rewards from 0.0 to 1.5; wanted 0 <= rewards <= 1"):
        fairness.group_dro([[0.0, 1.5]], [0], [0], fairness.init(1, 1, 2))
    with pytest.raises(ValueError, match="step_size=0.0"):
        fairness.group_dro([[0.0, 0.5]], [0], [0], fairness.init(1, 1, 2), step_size=0.0)
