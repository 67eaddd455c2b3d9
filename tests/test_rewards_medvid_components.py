"""Rewards of MedGRPO's second stage: gates, scales by source and task, a judge of Yes and No for each dimension."""

import concurrent.futures
import dataclasses
import types

import numpy as np
import pytest

from fairgrpo_jax import config as options, rewards
from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.data.datasets import medvidbench
from fairgrpo_jax.normalization import PercentileTable
from fairgrpo_jax.rewards import judge_components, judge_prompts
from fairgrpo_jax.rewards.answers import Answers
from tests.dataset_fixtures import medvidbench as fixture


COMPONENTS = (
    *("tag@*/tal,normalised", "tag_form@*/tal,gate", "stg@*/stg,normalised", "stg_form@*/stg,gate"),
    *("similarity@*/region_caption=0.5,normalised", "nap@*/next_action", "sa@*/skill_assessment"),
    *("cvs@*/cvs_assessment", "dvc@*/dense_captioning"),
)
WRONG = "I cannot say."


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """One of each task."""
    root = fixture.write(tmp_path_factory.mktemp("medvid"))
    return [r for split in ("train", "validation") for r in medvidbench.load(root, split=split).records if r.answer]


def given(records, *texts):
    shape = (len(records), len(texts[0]) if texts else 1)
    return Answers(list(texts), records, np.ones(shape, int), np.ones(shape, bool))


def scorer(records, percentiles=None, **changes):
    reward = options.Reward(COMPONENTS, percentiles=percentiles, **changes)
    return rewards.build(reward, options.Sampling(), records)


def test_the_right_answer_is_worth_all_and_another_nothing(records):
    plain = options.Reward(tuple(part.replace(",normalised", "") for part in COMPONENTS))
    score = rewards.build(plain, options.Sampling(), records)(given(records, *([r.answer, WRONG, ""] for r in records)))
    right = [0.5 if r.extra["task"] == "region_caption" else 1.0 for r in records]
    np.testing.assert_allclose(score.rewards[:, 0], right)
    assert (score.rewards[:, 2] == 0).all() and score.rewards[:, 1].max() < 0.2  # words in common


def test_what_cannot_be_read_is_0_behind_the_scale_and_each_source_has_its_own(records, tmp_path):
    chosen = [r for r in records if r.extra["task"] in ("tal", "stg")]
    parts = tuple(part for part in COMPONENTS if "tal" in part or "stg" in part)
    keys = [("AVOS", "tal", "tag"), ("AVOS", "stg", "stg"), ("CholecT50", "stg", "stg")]
    table = PercentileTable.fit({key: [0.0, 0.5 + 0.1 * n, 1.0] for n, key in enumerate(keys)})
    (tmp_path / "table.json").write_text(table.to_json())
    reward = options.Reward(parts, percentiles=tmp_path / "table.json")
    score = rewards.build(reward, options.Sampling(), chosen)(given(chosen, *([r.answer, WRONG] for r in chosen)))
    assert (score.rewards[:, 1] == 0).all()  # and not the logistic function at 0
    middle = [
        0.5 + 0.1 * keys.index((r.extra["source"], r.extra["task"], r.extra["task"].replace("tal", "tag")))
        for r in chosen
    ]
    iqr = [np.subtract(*np.quantile([0, m, 1], (0.75, 0.25))) for m in middle]
    wanted = [1 / (1 + np.exp(-3 * (1 - m) / q)) for m, q in zip(middle, iqr, strict=True)]
    np.testing.assert_allclose(score.rewards[:, 0], wanted, rtol=1e-5)
    followed = rewards.build(options.Reward(parts), options.Sampling(), chosen)
    assert sorted(followed.keys) == sorted(keys)
    missing = PercentileTable({key: table.stats[key] for key in keys[:2]})
    (tmp_path / "table.json").write_text(missing.to_json())
    with pytest.raises(ValueError, match=r"without CholecT50\|stg\|stg \(dataset"):
        rewards.build(reward, options.Sampling(), chosen)


def test_a_reference_that_says_nothing_is_not_scored_and_one_that_is_broken_is_named(records):
    empty = dataclasses.replace(records[0], answer="no", extra={**records[0].extra, "struc_info": ""})
    for name in ("tag", "stg", "dvc", "sa", "cvs"):
        assert np.isnan(rewards.BUILTIN[name](None)(given([empty], ["1.0-2.0 seconds."]))).all()  # type: ignore[arg-type]
    broken = dataclasses.replace(records[0], extra={"struc_info": '[{"spans": [{"start": "a", "end": 1}]}]'})
    with pytest.raises(ValueError, match=f"record {broken.uid} has a structured answer that cannot be read"):
        rewards.BUILTIN["tag"](None)(given([broken], ["x"]))  # type: ignore[arg-type]


class Heard:
    """A judge that says Yes where the candidate is the reference, and remembers what it was asked."""

    def __init__(self, **changes):
        self.options, self.versions = Options(**changes), []

    def submit(self, questions):
        self.versions += [question.version for question in questions]
        done = concurrent.futures.Future()
        done.set_result(
            np.array(
                [[float(question.text.count("A hook.") == 2)] * len(question.dimensions) for question in questions],
                np.float32,
            )
        )
        return done

    def check(self):
        pass

    def counts(self):
        return {}


def caption(task):
    return types.SimpleNamespace(uid="1", question="?", choices=(), answer="A hook.", dataset="d", extra={"task": task})


def test_a_judge_of_yes_and_no_is_asked_once_a_dimension(tmp_path):
    judge = Heard(path=tmp_path)
    found = judge_components.clinical(given([caption("region_caption")], ["A hook.", "", "No."]), judge).result()
    assert found.scores.tolist() == [[1, 0, 0]] and set(found.parts) == set(judge_prompts.DIMENSIONS)
    assert judge.versions[:5] == [f"agree_caption_{name}/1" for name in judge_prompts.DIMENSIONS]
    assert len(judge.versions) == 10


def test_a_judge_is_not_asked_where_there_is_nothing_to_compare_with(tmp_path):
    judge, blank = Heard(path=tmp_path), caption("region_caption")
    blank.answer = " "
    found = judge_components.clinical(given([blank], ["A hook.", ""]), judge).result()
    assert np.isnan(found.scores).all() and not judge.versions


@pytest.mark.parametrize(
    "task, prompt, wording",
    [
        ("region_caption", None, "caption"),
        ("video_summary", None, "summary"),
        ("", None, "summary"),
        ("region_caption", "summary", "summary"),
    ],
)
def test_the_wording_goes_by_the_task(task, prompt, wording):
    judge = Heard(model="m", prompt=prompt)
    judge_components.clinical(given([caption(task)], ["x"]), judge).result()
    assert judge.versions == [f"clinical_{wording}_text/1"]
