"""The ten columns of MedVidBench's board, from answers; in the board's own reading, or strictly."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fairgrpo_jax.rewards.medvid import boxes, events, labels, ratings, samples, spans
from fairgrpo_jax.rewards.medvid.samples import Sample


COLUMNS = (
    *("CVS_acc", "NAP_acc", "SA_acc", "STG_mIoU", "TAG_mIoU@0.3", "TAG_mIoU@0.5", "DVC_F1"),
    *("DVC_llm", "VS_llm", "RC_llm"),
)
LEVELS = COLUMNS[-3:]  # 1 to 5, by a judge
ASPECTS = 5


class Pair(NamedTuple):
    """A caption to be compared with its reference."""

    answer: str
    reference: str
    wording: Literal["summary", "caption"]


# From N pairs to (N, 5) in [0, 1], NaN where the judge failed.
Judge = Callable[[Sequence[Pair]], np.ndarray]


def columns(
    answered: Sequence[Sample],
    *,
    leaderboard: bool = False,
    measure: labels.Measure | None = None,
    judge: Judge | None = None,
    procedures: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """Each column over all samples, and their ``average``, in which a level s of a judge is (s - 1) / 4.

    Args:
        answered: of one dataset or all.
        leaderboard: as the board does, or strictly. Strictly, everything is pooled; an answer that is empty, and an
            event that is missed, has the lowest level.
        measure: likeness of texts for free answers to NAP on the board, which uses the cosine of all-MiniLM-L6-v2;
            without one they are wrong.
        judge: of captions; without one the columns of levels are NaN. The board has GPT-4.1.
        procedures: labels of NAP by procedure of NurViD, which the board looks for in the question, the first that
            occurs. Default: the labels that occur.

    Returns:
        By the names of ``COLUMNS``; NaN where no sample counts, and ``average`` over those that are not NaN.
    """
    by_task: dict[str, list[Sample]] = {}
    for sample in answered:
        by_task.setdefault(sample.task, []).append(sample)
    tag, stg, dvc = (by_task.get(task, []) for task in ("tal", "stg", "dense_captioning"))
    found = {
        "CVS_acc": _rated(by_task.get("cvs_assessment", []), leaderboard),
        "NAP_acc": _mean(_next(by_task.get("next_action", []), leaderboard, measure, procedures or {})),
        "SA_acc": _rated(by_task.get("skill_assessment", []), leaderboard),
        "STG_mIoU": _mean([_stg(sample, leaderboard) for sample in stg]),
        "TAG_mIoU@0.3": _mean([_tag(sample, 0.3, leaderboard) for sample in tag]),
        "TAG_mIoU@0.5": _mean([_tag(sample, 0.5, leaderboard) for sample in tag]),
        "DVC_F1": _weighed(dvc, lambda its: _mean([_f1(sample, leaderboard) for sample in its]), leaderboard),
    }
    compare = None if judge is None else _Levels(judge)
    found["DVC_llm"] = (
        math.nan
        if compare is None
        else _weighed(dvc, lambda its: _event_levels(its, compare, leaderboard), leaderboard)
    )
    for name, task in (("VS_llm", "video_summary"), ("RC_llm", "region_caption")):
        its = by_task.get(task, [])
        found[name] = math.nan if compare is None else _caption_level(its, compare, leaderboard)
    shares = [(value - 1) / 4 if name in LEVELS else value for name, value in found.items()]
    return found | {"average": _mean(shares)}


def by_source(answered: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each dataset."""
    found: dict[str, list[Sample]] = {}
    for sample in sorted(answered, key=lambda sample: sample.source):
        found.setdefault(sample.source, []).append(sample)
    return found


def _tag(sample: Sample, threshold: float, leaderboard: bool) -> float:
    wanted = samples.wanted_spans(sample.structure, "" if leaderboard else sample.reference)
    if not wanted and not leaderboard:
        return math.nan
    said = spans.parse(sample.answer, leaderboard=leaderboard)
    return spans.score(said, wanted, threshold=threshold, leaderboard=leaderboard)


def _stg(sample: Sample, leaderboard: bool) -> float:
    wanted = samples.wanted_boxes(sample.structure, "" if leaderboard else sample.reference)
    said = boxes.parse(sample.answer, times=list(wanted), leaderboard=leaderboard)
    return boxes.score(said, wanted, leaderboard=leaderboard)


def _f1(sample: Sample, leaderboard: bool) -> float:
    wanted = samples.wanted_events(sample.structure, "" if leaderboard else sample.reference)
    said = events.parse(sample.answer, leaderboard=leaderboard)
    return events.f1(said, wanted, fps=sample.fps, leaderboard=leaderboard)


def _weighed(dvc: Sequence[Sample], score: Callable[[Sequence[Sample]], float], leaderboard: bool) -> float:
    """On the board, the mean over datasets by their number of samples, of which some may not count."""
    if not leaderboard or not dvc:
        return score(dvc)
    parts = by_source(dvc).values()
    return sum(len(its) * np.nan_to_num(score(its)) for its in parts) / len(dvc)


def _rated(rated: Sequence[Sample], leaderboard: bool) -> float:
    """Mean over datasets of the mean over aspects of the share of right ratings."""
    found: list[float] = []
    for its in by_source(rated).values():
        hits: dict[str, list[float]] = {}
        for sample in its:
            said, wanted = _ratings(sample, leaderboard)
            for name, hit in ratings.right(said, wanted, leaderboard=leaderboard).items():
                hits.setdefault(name, []).append(hit)
        found.append(_mean([_mean(values) for values in hits.values()]))
    return _mean(found)


def _ratings(sample: Sample, leaderboard: bool) -> tuple[dict[str, int] | None, dict[str, int]]:
    given, reference = sample.structure, sample.reference
    if sample.task == "cvs_assessment":
        wanted = samples.wanted_cvs(given, reference, leaderboard=leaderboard)
        return ratings.cvs(sample.answer, leaderboard=leaderboard), wanted
    wanted = samples.wanted_skills(given, reference, leaderboard=leaderboard)
    return ratings.skills(sample.answer, leaderboard=leaderboard), wanted


def _next(
    asked: Sequence[Sample],
    leaderboard: bool,
    measure: labels.Measure | None,
    procedures: Mapping[str, Sequence[str]],
) -> list[float]:
    if not leaderboard:
        return [labels.score(sample.answer, sample.reference, sample.source) for sample in asked]
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in asked:
        names = procedures if sample.source == "NurViD" else ()
        procedure = next((name for name in names if name.lower() in sample.question.lower()), "")
        groups.setdefault((sample.source, procedure), []).append(sample)
    every = sorted({label for own in procedures.values() for label in own})
    found: list[float] = []
    for (source, procedure), its in groups.items():
        found += labels.scores(
            [sample.answer for sample in its],
            [sample.reference for sample in its],
            source,
            measure=measure or _nothing_alike,
            labels=procedures.get(procedure, every if source == "NurViD" and every else None),
        ).tolist()
    return found


def _nothing_alike(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    return np.zeros(len(texts))


class _Levels:
    """Levels 1 to 5 by a judge, of each different pair once."""

    def __init__(self, judge: Judge):
        self._judge, self._known = judge, dict[Pair, np.ndarray]()

    def __call__(self, pairs: Sequence[Pair]) -> np.ndarray:
        """(N, 5), NaN where it failed."""
        new = list(dict.fromkeys(pair for pair in pairs if pair not in self._known))
        if new:
            self._known |= dict(zip(new, 1 + 4 * np.asarray(self._judge(new), float), strict=True))
        return np.array([self._known[pair] for pair in pairs], float).reshape(-1, ASPECTS)


def _caption_level(captions: Sequence[Sample], compare: _Levels, leaderboard: bool) -> float:
    """The board leaves out answers that are empty; strictly their level is 1."""
    graded = [sample for sample in captions if sample.reference]
    asked = [sample for sample in graded if (sample.answer if leaderboard else sample.answer.strip())]
    levels = compare([Pair(sample.answer, sample.reference, _wording(sample)) for sample in asked])
    if not leaderboard:
        levels = np.concatenate([levels, np.ones((len(graded) - len(asked), ASPECTS))])
    return _mean([_mean(column) for column in levels.T.tolist()])


def _event_levels(dvc: Sequence[Sample], compare: _Levels, leaderboard: bool) -> float:
    """Mean over thresholds of the mean level of matched captions; strictly a wanted event without a match has 1."""
    found: list[float] = []
    for threshold in events.THRESHOLDS:
        pairs: list[Pair] = []
        missed = 0
        for sample in dvc:
            wanted = samples.wanted_events(sample.structure, "" if leaderboard else sample.reference)
            said = events.parse(sample.answer, leaderboard=leaderboard)
            if leaderboard:
                matched = events.pairs(said, wanted, threshold)
            else:  # each wanted event takes the answer's that covers it best
                matched = [(caption, truth) for truth, caption in events.pairs(wanted, said, threshold)]
                missed += len(wanted) - len(matched)
            pairs += [Pair(caption, truth, "caption") for caption, truth in matched]
        levels = np.concatenate([compare(pairs), np.ones((missed, ASPECTS))])
        found.append(_mean([_mean(column) for column in levels.T.tolist()]))
    return _mean(found)


def _wording(sample: Sample) -> Literal["summary", "caption"]:
    return "caption" if sample.task == "region_caption" else "summary"


def _mean(values: Sequence[float]) -> float:
    """Mean of those that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
