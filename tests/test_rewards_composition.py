"""Several components to one reward: the text form, the sum by hand, percentiles, and what the log says."""

import dataclasses
import math

import chex
import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import config as options, rewards
from fairgrpo_jax.config import Component
from fairgrpo_jax.data.datasets import synthetic
from fairgrpo_jax.normalization import PercentileTable


RECORD = synthetic.load("test", domains=("us",))[0]
SAMPLING = options.Sampling(max_new_tokens=8)
NAMES = st.from_regex(r"[a-z_]+(\.[a-z_]+:[a-z_]+)?", fullmatch=True)
PLACES = st.from_regex(r"([A-Za-z0-9-]+|\*)(/[a-z_]+)?", fullmatch=True)


def record(dataset="a", task="", answer="Yes", **extra):
    return dataclasses.replace(
        RECORD, uid=f"{dataset}/{task}", dataset=dataset, answer=answer, extra={"task": task} | extra
    )


def answers(records, texts):
    lengths = np.array([[len(text.split()) for text in row] for row in texts])
    return rewards.Answers(texts, records, lengths, np.ones(lengths.shape, bool))


@hypothesis.given(NAMES, st.lists(PLACES, max_size=3), st.sampled_from([0.25, 1.0, 3.0]), st.booleans(), st.booleans())
def test_the_text_form_is_read_back(name, only, weight, normalised, messages):
    part = Component(name, tuple(only), weight, normalised, messages=messages)
    assert Component.parse(str(part)) == part


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"wanted NAME\[@WHERE"),
        ("exact=", r"wanted NAME\[@WHERE"),
        ("exact=two", "wanted a number behind ="),
        ("exact=-1", "wanted a weight above 0"),
        ("exact=nan", "wanted a weight above 0"),
        ("exact,often", r"wanted NAME\[@WHERE"),
        ("exact=2,gate", "wanted a gate without weight"),
        ("exact,gate,normalised", "wanted a gate without weight"),
    ],
)
def test_another_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        options.Reward((text,))


@pytest.mark.parametrize(
    "components, message",
    [
        (("exact", "exact=0.5"), "wanted each component once"),
        (("exact,gate",), "wanted at least one component that is no gate"),
        ((), "wanted at least one component that is no gate"),
    ],
)
def test_components_must_make_a_reward(components, message):
    with pytest.raises(ValueError, match=message):
        options.Reward(components)


def test_three_components_with_a_gate_by_hand():
    """p25, p50, p75 = .4, .5, .6 with k = 3 map .6 to .81757 and .4 to .18243."""
    parts = [
        Component("iou", weight=2, normalised=True),
        Component("judge", weight=0.5),
        Component("parsed", gate=True),
    ]
    percentiles = [np.full((2, 3), p) for p in (0.4, 0.5, 0.6)]
    scores = [
        [[0.6, 1.0, 1.0], [0.4, 0.0, 1.0], [0.6, 1.0, 0.0]],
        [[0.5, 0.2, 1.0], [np.nan, 1.0, 1.0], [0.5, 0.0, 0.5]],
    ]
    got = rewards.compose(scores, parts, percentiles)
    wanted = [[2 * 0.81757 + 0.5, 2 * 0.18243, 0], [1 + 0.1, np.nan, 0.5]]
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    without = rewards.compose(scores, parts, percentiles, applies=[[True, True, False], [False, True, False]])
    np.testing.assert_allclose(without, [[2.13514, 0.36486, 2.13514], [0.1, 0.5, 0.0]], atol=2e-5)
    none = rewards.compose(scores, parts, percentiles, applies=np.zeros((2, 3), bool))
    assert np.isnan(none).all()


def test_composition_under_jit_vmap_and_grad():
    parts = (Component("a", weight=2, normalised=True), Component("b"), Component("c", gate=True))
    rng = np.random.default_rng(0)
    scores, percentiles = jnp.array(rng.random((5, 4, 3))), [jnp.full((5, 3), p) for p in (0.2, 0.5, 0.7)]
    plain = rewards.compose(scores, parts, percentiles)
    chex.assert_shape(plain, (5, 4))
    chex.assert_trees_all_close(jax.jit(lambda s: rewards.compose(s, parts, percentiles))(scores), plain, rtol=1e-6)
    one = [p[:1] for p in percentiles]
    chex.assert_trees_all_close(jax.vmap(lambda s: rewards.compose(s[None], parts, one)[0])(scores), plain, rtol=1e-6)
    gradient = jax.grad(lambda s: rewards.compose(s, parts, percentiles).sum())(scores)
    chex.assert_tree_all_finite(gradient)
    np.testing.assert_allclose(gradient[..., 1], scores[..., 2], rtol=1e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    arrays.arrays(np.float32, (3, 2, 3), elements=st.one_of(st.floats(0, 1, width=32), st.just(math.nan))),
    arrays.arrays(bool, (3, 3)),
)
def test_nan_is_never_a_number(scores, applies):
    """A reward is a number exactly where every component that applies has one, and one that is no gate applies."""
    parts = [Component("a"), Component("b", weight=0.5), Component("c", gate=True)]
    got = np.asarray(rewards.compose(scores, parts, applies=applies))
    known = (~np.isnan(scores) | ~applies[:, None, :]).all(2) & applies[:, None, :2].any(2)
    np.testing.assert_array_equal(np.isfinite(got), known)


def test_a_component_sees_its_own_records_alone(monkeypatch):
    seen = []

    def score(given):
        seen.append([record.uid for record in given.records])
        return np.full(given.lengths.shape, 0.5)

    monkeypatch.setitem(rewards.BUILTIN, "half", lambda _: score)
    records = [record("a", "x"), record("a", "y"), record("b", "x"), record("c")]
    reward = options.Reward(("exact@c@a/y", "half@*/x"))
    scorer = rewards.build(reward, SAMPLING, records)
    got = scorer(answers(records, [[r"\boxed{Yes}", "no"]] * 4))
    assert seen == [["a/x", "b/x"]] * 2  # once to see that it can
    np.testing.assert_array_equal(got.rewards, [[0.5, 0.5], [1, 0], [0.5, 0.5], [1, 0]])
    np.testing.assert_array_equal(got.applies, [[False, True], [True, False], [False, True], [True, False]])
    assert np.isnan(got.raw[0, :, 0]).all()


@pytest.mark.parametrize(
    "components, message",
    [
        (("exactly",), "got reward component 'exactly'; wanted one of exact, set_f1, letter"),
        (("exact@z",), "got reward.components 'exact@z', which applies to no record; wanted some of a/x, b"),
        (("exact@b",), "got no reward component for records of a/x; wanted one"),
        (("exact", "set_f1@b,gate", "set_f1x"), "got reward component 'set_f1x'"),
        (("exact,messages",), "wanted messages for a function of yours alone"),
        (("letter@b", "exact@a/x"), "reward component letter: got .*; choose its records with letter@DATASET/TASK"),
        (("no.such:thing",), r"got reward function no.such:thing \(No module named 'no'\)"),
    ],
)
def test_a_reward_that_does_not_fit_the_records_is_refused(components, message):
    with pytest.raises(ValueError, match=message):
        rewards.build(options.Reward(components), SAMPLING, [record("a", "x"), record("b")])


def test_percentiles_of_a_table(tmp_path):
    path = tmp_path / "table.json"
    reward = options.Reward(("exact,normalised",), percentiles=path)
    records = [record("a", "x"), record("b")]
    with pytest.raises(ValueError, match="got reward.percentiles=.*No such file"):
        rewards.build(reward, SAMPLING, records)
    path.write_text("{}")
    with pytest.raises(ValueError, match="reward.percentiles=.*wanted a table as PercentileTable.to_json writes it"):
        rewards.build(reward, SAMPLING, records)
    path.write_text(PercentileTable({("a", "x", "exact"): (0.0, 0.25, 0.5, 9)}).to_json())
    with pytest.raises(
        ValueError, match=r"got reward.percentiles=.* without b\|\|exact \(dataset\|task\|component\); wanted"
    ):
        rewards.build(reward, SAMPLING, records)
    with pytest.raises(ValueError, match="and no normalised component; wanted NAME,normalised"):
        rewards.build(options.Reward(percentiles=path), SAMPLING, records)
    scorer = rewards.build(reward, SAMPLING, records[:1])
    assert scorer.begin() is None
    got = scorer(answers(records[:1], [[r"\boxed{Yes}", ""]])).rewards
    np.testing.assert_allclose(got, [[1 / (1 + np.exp(-4.5)), 1 / (1 + np.exp(1.5))]], rtol=1e-5)


def test_running_percentiles_are_those_of_numpy_by_dataset_and_task(monkeypatch):
    rng = np.random.default_rng(0)
    drawn = iter(rng.random((3, 4, 3)).astype(np.float32))  # the first is for the check of the records
    monkeypatch.setitem(rewards.BUILTIN, "drawn", lambda _: lambda given: next(drawn))
    records = [record("a", "x"), record("a", "y"), record("a", "x"), record("b")]
    scorer = rewards.build(options.Reward(("drawn,normalised",), window=32), SAMPLING, records)
    assert scorer.keys == (("a", "x", "drawn"), ("a", "y", "drawn"), ("b", "", "drawn"))
    given, state = answers(records, [["", "", ""]] * 4), scorer.begin()
    first = scorer(given, state)
    state = scorer.observe(state, [(first, records)])
    second = scorer(given, state)
    own = first.raw[[0, 2], :, 0].ravel()
    p25, p50, p75 = np.quantile(own, [0.25, 0.5, 0.75])
    wanted = 1 / (1 + np.exp(-3 * (second.raw[0, :, 0] - p50) / (p75 - p25)))
    np.testing.assert_allclose(second.rewards[0], wanted, rtol=1e-4)
    np.testing.assert_allclose(first.rewards, 1 / (1 + np.exp(-6 * (first.raw[..., 0] - 0.5))), rtol=1e-5)


def test_evaluation_without_percentiles_pays_the_score_itself(monkeypatch):
    monkeypatch.setitem(rewards.BUILTIN, "half", lambda _: lambda given: np.full(given.lengths.shape, 0.25))
    scorer = rewards.build(options.Reward(("half,normalised",)), SAMPLING, [RECORD])
    np.testing.assert_array_equal(scorer(answers([RECORD], [["", ""]])).rewards, [[0.25, 0.25]])


def test_the_log_says_what_each_component_is_worth(monkeypatch):
    scores = {"one": [[1.0, 0.0], [0.5, np.nan]], "two": [[0.0, 0.2], [0.0, 0.0]]}
    for name, values in scores.items():
        monkeypatch.setitem(rewards.BUILTIN, name, lambda _, values=values: lambda given: np.array(values))
    records = [record("a"), record("b")]
    scorer = rewards.build(options.Reward(("one=2", "two")), SAMPLING, records)
    got = scorer(answers(records, [["", ""]] * 2))
    values = rewards.figures(scorer, got, np.array([0, 1]), np.array([0, -1]), (("a", "b"), ("F", "unlabelled")))
    # one: |1 - .5| + |0 - .5| = 1, times 2; two: .1 + .1; the second prompt has one scored completion, without signal
    wanted = {
        "reward/component/one": 0.5,
        "reward/component/one/a/F": 0.5,
        "reward/component/one/b/unlabelled": 0.5,
        "reward/component_unscored/one": 0.25,
        "reward/component/two": 0.05,
        "reward/component/two/a/F": 0.1,
        "reward/component/two/b/unlabelled": 0.0,
        "advantage/component/one": 2 / 2.2,
        "advantage/component/two": 0.2 / 2.2,
    }
    assert values == pytest.approx(wanted)
    alone = rewards.build(options.Reward(("one",)), SAMPLING, records)
    assert rewards.figures(alone, got, np.array([0, 1]), np.array([0, -1]), (("a", "b"), ("F", "?"))) == {}


def test_gates_reach_the_summands_of_gdpo(monkeypatch):
    scores = {"one": [[1.0, 1.0]], "two": [[0.5, 0.25]], "parsed": [[1.0, 0.0]]}
    for name, values in scores.items():
        monkeypatch.setitem(rewards.BUILTIN, name, lambda _, values=values: lambda given: np.array(values))
    scorer = rewards.build(options.Reward(("one=2", "parsed,gate", "two")), SAMPLING, [RECORD])
    got = scorer(answers([RECORD], [["", ""]]))
    np.testing.assert_array_equal(got.rewards, [[2.5, 0.0]])
    np.testing.assert_array_equal(scorer.summands(got), [[[1.0, 0.5], [0.0, 0.0]]])
    assert scorer.weights == (2.0, 1.0)
