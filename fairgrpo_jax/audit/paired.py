"""Two models on the same records: who gained, who lost, and whether that could be chance."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fairgrpo_jax.audit import coding, figures, parts, single, tallies
from fairgrpo_jax.audit.parts import Part, finite
from fairgrpo_jax.audit.settings import DEFAULT, Settings


ENDS = ("gap", "worst", "best")  # rows of an attribute, beside those of its groups
MOST = 20_000  # exchanges, unless the settings want more


def compare(
    predictions: Mapping[str, Sequence[str | None]],
    labels: Sequence[str],
    attributes: Mapping[str, Sequence[Any]],
    *,
    datasets: Sequence[str] | None = None,
    patients: Sequence[Hashable] | None = None,
    settings: Settings = DEFAULT,
) -> list[dict[str, Any]]:
    """Compares every model with the first one on the same records, group by group, and gap by gap.

    Args:
        predictions: N answers of each model, by its name, in the form of ``examine``; so are the other arguments.
        labels: N reference answers.
        attributes: N values of each attribute.
        datasets: N names.
        patients: N ids.
        settings: how the audit is made.

    Returns:
        Rows with ``model``, ``against``, ``dataset``, ``attribute``, ``group``, ``name``, ``small``, ``figure``,
        ``difference`` (the model's figure minus the other's) and its percentile interval ``low``, ``high``, ``p``,
        ``p_adjusted``. Rows with group ``"gap"`` compare the gaps max - min of an attribute: a negative difference is a
        smaller gap. ``"worst"`` and ``"best"``, which are not tested, say whether that is a gain or a loss: they
        compare the worst and the best group of one model with those of the other, whichever groups these are.

    Raises:
        ValueError: as ``examine``, or if there are not two models.

    Both models are resampled with the same patients. The test exchanges the two answers of each patient with all
    records at random: exact if the models answer alike. Small groups are not tested, nor where no answer differs.

    Source: Fisher's randomisation test for pairs, with patients as units, as ``study.compare`` has it with seeds.

    >>> labels = ["a", "b"] * 30
    >>> rows = compare({"old": ["a"] * 60, "new": labels}, labels, {"sex": ["F", "M"] * 30})
    >>> [(row["name"], row["difference"], row["p"] is None) for row in rows if row["figure"] == "top1"][:3]
    [('all', 0.5, False), ('F', 0.0, True), ('M', 1.0, False)]
    """
    if len(predictions) < 2:
        raise ValueError(f"got {len(predictions)} models; wanted two or more, with answers to the same records")
    first, *others = predictions
    number = len(labels)
    names = ["all"] * number if datasets is None else datasets
    ids: Sequence[Hashable] = range(number) if patients is None else patients
    for given in predictions.values():
        single.check(given, labels, [*attributes.items(), ("datasets", names), ("patients", ids)])
    pairs = list[tuple[str, Part, Part]]()
    for name, its in single.by_dataset(names):
        people = coding.people(single.taken(attributes, its), [ids[i] for i in its], settings.scheme)
        true = [str(labels[i]) for i in its]
        coded = {key: coding.answers([given[i] for i in its], true) for key, given in predictions.items()}
        pairs += [
            (other, Part(name, people, coded[first], its), Part(name, people, coded[other], its)) for other in others
        ]
    # Adjusted by Holm, the smallest p possible must be far below the level.
    tests = sum(_tests(part, settings) for _, part, _ in pairs)
    permutations = max(settings.num_permutations, min(MOST, 40 * tests if settings.adjust == "holm" else 0))
    rows = [
        {"model": name, "against": first} | row
        for name, *both in pairs
        for row in _compared(both[0], both[1], permutations, settings)
    ]
    single.adjust(rows, settings.adjust)
    return rows


def _tests(part: Part, settings: Settings) -> int:
    """The number of differences that are tested, at most."""
    known = {*figures.names(part.short.classes, settings.positive)} & {*figures.COMPARED}
    large = np.count_nonzero(part.patients() >= settings.least)
    return len(known) * (int(large) + len(part.people.attributes))


def _compared(one: Part, other: Part, permutations: int, settings: Settings) -> list[dict[str, Any]]:
    """The rows of one dataset: ``other`` minus ``one``."""
    answers, patients, groups = [one.short, other.short], one.patients(), one.people.groups
    classes = answers[0].classes
    here, there = tallies.tally(one.people, answers)
    compared = {
        name: places
        for name in one.people.attributes
        if len(places := parts.compared_in(groups, name, patients, settings)) > 1
    }

    def differences(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        """Columns: the groups, then gap, worst and best of each attribute."""
        old, new = (figures.values(sums, classes, settings.positive) for sums in (a, b))
        found = {name: [new[name] - old[name]] for name in figures.names(classes, settings.positive)}
        for places in compared.values():
            before, after = (figures.gaps(x[..., places, :], classes, settings.positive) for x in (a, b))
            for name, columns in found.items():
                columns.append((after[name] - before[name])[..., None])
                columns += [end(name, new, places) - end(name, old, places) for end in (_worst, _best)]
        return {name: np.concatenate(columns, -1) for name, columns in found.items()}

    observed = differences(here.observed(), there.observed())
    num, seed = settings.num_resamples, settings.seed
    drawn = [differences(*blocks) for blocks in zip(here.resampled(num, seed), there.resampled(num, seed), strict=True)]
    null = [differences(*blocks) for blocks in tallies.swapped(here, there, permutations, seed)]
    rows = []
    for name, values in observed.items():
        draws, chance = (np.concatenate([block[name] for block in blocks]) for blocks in (drawn, null))
        low, high = _ends(draws, settings.level)
        heads = [
            {"attribute": group.attribute, "group": group.key, "name": group.name, "small": bool(small)}
            for group, small in zip(groups, patients < settings.least, strict=True)
        ]
        heads += [{"attribute": key, "group": row, "name": row, "small": False} for key in compared for row in ENDS]
        for place, head in enumerate(heads):
            tested = name in figures.COMPARED and not head["small"] and head["group"] not in ENDS[1:]
            tested = tested and np.isfinite(values[place])
            exchanged = np.abs(chance[np.isfinite(chance[:, place]), place])  # where both models have the figure
            tested = tested and bool(exchanged.max(initial=0) > 0)
            beyond = exchanged >= abs(values[place]) - 1e-12
            row = {"dataset": one.name} | head | {"figure": name, "difference": finite(values[place])}
            row |= {"low": finite(low[place]), "high": finite(high[place])}
            row["p"] = float((1 + beyond.sum()) / (1 + len(beyond))) if tested else None
            rows.append(row | {"p_adjusted": None})
    return rows


def _worst(name: str, values: Mapping[str, np.ndarray], places: Sequence[int]) -> np.ndarray:
    """The figure of the worst of these groups, (..., 1); the lowest, where none is better."""
    reduce = np.fmax if figures.FIGURES[name].better < 0 else np.fmin
    return reduce.reduce(values[name][..., places], -1, keepdims=True)


def _best(name: str, values: Mapping[str, np.ndarray], places: Sequence[int]) -> np.ndarray:
    """The figure of the best of these groups, (..., 1); the highest, where none is better."""
    reduce = np.fmin if figures.FIGURES[name].better < 0 else np.fmax
    return reduce.reduce(values[name][..., places], -1, keepdims=True)


def _ends(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of (resamples, columns), NaN where there is no resample with a value."""
    ends = np.full((2, draws.shape[1]), np.nan)
    known = np.isfinite(draws).any(0)
    ends[:, known] = np.nanquantile(draws[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends[0], ends[1]
