"""The ten columns from answers: what the reference says in each of the owners' forms, and how columns are pooled."""

import math

import numpy as np
import pytest

from fairgrpo_jax.data.datasets import medvidbench
from fairgrpo_jax.rewards.medvid import board, ratings, samples
from fairgrpo_jax.rewards.medvid.board import Pair
from fairgrpo_jax.rewards.medvid.events import Event
from fairgrpo_jax.rewards.medvid.samples import Sample
from fairgrpo_jax.rewards.similarity import words_f1
from tests.dataset_fixtures import medvidbench as fixture


def sample(task, answer, reference="", given=(), source="AVOS", question="?", fps=1.0):
    return Sample(task, source, question, reference, list(given), fps, answer)


def both(answered, **options):
    return [board.columns(answered, leaderboard=leaderboard, **options) for leaderboard in (True, False)]


def told(found, *names):
    return [found[name] for name in names]


# ---- what the reference says -----------------------------------------------------------------------------------------


def test_references_of_grounding():
    assert samples.wanted_spans(fixture.SPANS) == [(1, 1), (2, 3)]
    assert samples.wanted_spans([], "1.0-2.0, 3.0-4.0 seconds.") == [(1, 2), (3, 4)]
    box = {"1.0": [1, 2, 3, 4]}
    for given in ([{"bbox_dict": box, "object": "hook"}], [box]):
        assert samples.wanted_boxes(given) == {"1.0": (1, 2, 3, 4)}
    assert samples.wanted_boxes([], "2.0 seconds: [1, 2, 3, 4]") == {"2.0": (1, 2, 3, 4)}
    assert samples.wanted_boxes([{"object": "hook"}]) == {}


def test_references_of_events_have_three_forms():
    told = [{"start": 1, "end": "2.5", "caption": "a"}, {"start": 3, "end": 4}]  # the second has no caption
    for given in (told, [told], [{"dc_segments": told}]):
        assert samples.wanted_events(given) == [Event(1, 2.5, "a")]
    assert samples.wanted_events([], "1.0-2.0 seconds: b") == [Event(1, 2, "b")]


def test_references_of_ratings():
    given = [{"skill_level": "N", "skill_scores": {"respect_for_tissue": 2, "Time and motion": "3"}}]
    assert samples.wanted_skills(given) == {"Respect for tissue": 2, "Time and motion": 3}
    assert samples.wanted_skills(given, leaderboard=True) == {"respect_for_tissue": 2, "Time and motion": 3}
    assert samples.wanted_skills([], "Time and motion: 3/5") == {"Time and motion": 3}
    assert samples.wanted_cvs([{"cvs_scores": {"cystic_plate": 1, "total": 1}}]) == {"cystic_plate": 1}
    assert samples.wanted_cvs([], "Cystic plate: 1") == {"cystic_plate": 1}


def test_samples_of_records(tmp_path):
    root = fixture.write(tmp_path)
    records = [r for split in ("train", "validation") for r in medvidbench.load(root, split=split).records]
    found = {record.question: Sample.of(record, "an answer") for record in records}
    one = found["When is a knot tied?"]
    assert (one.task, one.source, one.fps, one.answer) == ("tal", "AVOS", 0.5, "an answer")
    assert one.structure == fixture.spans("tie", (3.0, 4.0)) and found["Rate the skill."].structure == []
    right = [Sample.of(record, record.answer) for record in records if record.answer]
    assert {each.task for each in right} == set(medvidbench.TASKS) - {"video_summary"}
    strict = board.columns(right)
    assert told(strict, "CVS_acc", "NAP_acc", "SA_acc", "STG_mIoU", "TAG_mIoU@0.5", "DVC_F1") == [1] * 6


# ---- how columns are pooled ------------------------------------------------------------------------------------------


def test_grounding_is_pooled_over_samples():
    spans = [{"spans": [{"start": 0, "end": 10}]}]
    answered = [sample("tal", "0-10 seconds.", given=spans), sample("tal", "0-4", given=spans, source="NurViD")]
    answered += [sample("tal", "0-10", "0-10 seconds.")] * 2  # only in the text
    board_, strict = both(answered)
    names = ("TAG_mIoU@0.3", "TAG_mIoU@0.5")
    assert told(board_, *names) == pytest.approx([1.4 / 4, 1 / 4]) and told(strict, *names) == pytest.approx(
        [0.85, 0.75]
    )
    box = [{"bbox_dict": {"1.0": [0, 0, 4, 4], "2.0": [0, 0, 4, 4]}}]
    answered = [
        sample("stg", "1.0 seconds: [0, 0, 4, 4]", given=box),
        sample("stg", "x", given=box),
        sample("stg", "x"),
    ]
    assert [found["STG_mIoU"] for found in both(answered)] == [1 / 2, 1 / 4]


def test_events_are_weighed_by_the_records_of_a_dataset_skipped_ones_too():
    given = [[{"start": 0, "end": 10, "caption": "a"}]]
    one = sample("dense_captioning", "0-10 seconds: a", given=given)
    answered = [one, sample("dense_captioning", "", given=given)]
    answered += [sample("dense_captioning", "20-30 seconds: a", given=given, source="NurViD")]
    assert [found["DVC_F1"] for found in both(answered)] == pytest.approx([2 / 3, 1 / 3])  # AVOS: 1 with weight 2


def test_ratings_are_means_over_aspects_then_datasets():
    given = [{"cvs_scores": {"two_structures": 2, "cystic_plate": 1, "hepatocystic_triangle": 0}}]
    answered = [
        sample("cvs_assessment", "Two structures: 2", given=given),
        sample("cvs_assessment", "Two structures: 0, Cystic plate: 1", given=given),
        sample("cvs_assessment", "", given=given),
    ]
    assert [found["CVS_acc"] for found in both(answered)] == pytest.approx([(0.5 + 1) / 2, 2 / 9])
    skills = ", ".join(f"{name}: 2/5" for name in ratings.SKILLS)
    answered = [
        sample("skill_assessment", "Respect for tissue: 2/5", skills),
        sample("skill_assessment", "Good", skills),
    ]
    answered += [sample("skill_assessment", skills.replace("2/5", "3/5"), skills, source="other")]
    assert [found["SA_acc"] for found in both(answered)] == pytest.approx([1 / 2, (1 / 12 + 0) / 2])


def test_next_steps():
    answered = [sample("next_action", "It is suturing", "suturing"), sample("next_action", "tying", "cutting")]
    answered += [sample("next_action", "tying", "washing")]
    assert [found["NAP_acc"] for found in both(answered, measure=words_f1)] == pytest.approx([1 / 2, 0])
    assert both(answered)[0]["NAP_acc"] == 0  # nothing tells what is alike
    ask = lambda said, truth, what: sample("next_action", said, truth, source="NurViD", question=f"In {what}: next?")
    answered = [
        ask("Check it", "Check", "skin testing"),
        ask("Wash", "Comb hair", "bed shampoo"),
        ask("x", "Wash", "?"),
    ]
    lists = {"Skin Testing": ["Check", "Document"], "Bed Shampoo": ["Wash"]}
    found = board.columns(answered, leaderboard=True, measure=words_f1, procedures=lists)
    assert found["NAP_acc"] == pytest.approx(
        1 / 2
    )  # the second is in no list; the third is the first of all labels: no


def test_levels_of_a_judge():
    asked = []

    def judge(pairs):
        asked.extend(pairs)
        return np.array(
            [[np.nan] * 5 if pair.answer == "failed" else [float(pair.answer == pair.reference)] * 5 for pair in pairs]
        )

    answered = [sample("video_summary", said, "a") for said in ("a", "b", "", "failed", "a")]
    answered += [sample("region_caption", " ", "a"), sample("region_caption", "a", "")]
    board_, strict = both(answered, judge=judge)
    assert told(board_, "VS_llm", "RC_llm") == pytest.approx([(5 + 1 + 5) / 3, 1])
    assert told(strict, "VS_llm", "RC_llm") == pytest.approx([(5 + 1 + 1 + 5) / 4, 1])
    assert Pair("", "a", "summary") not in asked and Pair(" ", "a", "caption") in asked
    given = [[{"start": 0, "end": 10, "caption": "a"}, {"start": 20, "end": 30, "caption": "b"}]]
    answered = [sample("dense_captioning", "0-10 seconds: a\n20-26 seconds: x", given=given)]
    board_, strict = both(answered, judge=judge)
    assert board_["DVC_llm"] == pytest.approx((3 + 3 + 5) / 3)  # IoU 0.6: no pair at 0.7
    assert strict["DVC_llm"] == pytest.approx((3 + 3 + 3) / 3)
    missed = [sample("dense_captioning", "", given=given)]
    assert (
        math.isnan(board.columns(missed, judge=judge)["VS_llm"]) and board.columns(missed, judge=judge)["DVC_llm"] == 1
    )


def test_the_average_takes_levels_as_shares_and_what_is_there():
    answered = [sample("next_action", "tying", "tying"), sample("video_summary", "a", "a")]
    found = board.columns(answered, judge=lambda pairs: np.full((len(pairs), 5), 0.5))
    assert found["VS_llm"] == 3 and found["average"] == pytest.approx((1 + 0.5) / 2)
    assert tuple(found) == (*board.COLUMNS, "average") and math.isnan(found["RC_llm"])
    assert list(board.by_source([*answered, sample("tal", "", source="A")])) == ["A", "AVOS"]
