"""Several seeds of one method: the mean of each figure and gap, with an interval between the seeds."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from fairgrpo_jax.audit.parts import finite
from fairgrpo_jax.audit.records import Records


def comparable(models: Sequence[Records]) -> list[str]:
    """Whether runs may be pooled; returns sentences about what the interval between them holds.

    Raises:
        ValueError: if there are not two, if datasets, attributes, age groups or classes differ, or if some of the
            records are the same and others not.
    """
    if len(models) < 2:
        raise ValueError(f"got {len(models)} run to pool; wanted two or more, one for each seed")
    first = models[0]
    for other in models[1:]:
        asked = f"wanted runs of one method on the same kind of records; got {first.source} and {other.source}"
        for name, (one, two) in {
            "datasets": (sorted(set(first.datasets)), sorted(set(other.datasets))),
            "attributes": (list(first.attributes), list(other.attributes)),
            "age groups": (list(first.scheme.age_edges), list(other.scheme.age_edges)),
        }.items():
            if one != two:
                raise ValueError(f"the {name} differ, {_listed(one)} and {_listed(two)}: {asked}")
        same = len({*_people(first)} & {*_people(other)})
        if same and 2 * same > min(len(first), len(other)) and same < max(len(first), len(other)):
            raise ValueError(
                f"{same:,} records are the same in both, of {len(first):,} and {len(other):,}: wanted all the same, or "
                f"patients of its own for each seed; {asked}"
            )
    if all({*_people(first)} == {*_people(other)} for other in models[1:]):
        return ["All seeds answered the same records: the intervals between seeds say how the training varies."]
    return [
        "Each seed has records of its own: the intervals between seeds hold the training and the choice of patients."
    ]


def pool(found: Mapping[str, Mapping[str, Any]], level: float = 0.95) -> list[dict[str, Any]]:
    """The mean over seeds of each figure of each group, and of each gap.

    Args:
        found: of ``audit.examine``, by the name of the seed.
        level: coverage of the intervals.

    Returns:
        Rows with ``dataset``, ``attribute``, ``group``, ``name``, ``figure``, ``seeds`` (how many have a value),
        ``mean``, ``std`` (ddof 1), an interval ``low``, ``high`` by Student's t, inside 0 to 1 and None for a single
        seed; ``values`` by seed; ``small``, whether the group is small in any seed; for rows with group ``"gap"``
        ``expected``, the mean of the gaps expected by chance.

    Raises:
        ValueError: if the seeds have other classes in a dataset.

    >>> from fairgrpo_jax.audit import examine
    >>> seeds = {name: examine(said, ["a", "b"] * 40, {}) for name, said in (("0", ["a"] * 80), ("1", ["a", "b"] * 40))}
    >>> row = pool(seeds)[0]
    >>> row["figure"], row["mean"], row["values"], (row["low"], row["high"])
    ('top1', 0.75, {'0': 0.5, '1': 1.0}, (0.0, 1.0))
    """
    names = list(found)
    for one, other in itertools.pairwise(found.values()):
        for a, b in zip(one["datasets"], other["datasets"], strict=True):
            if not a["limited"] and a["classes"] != b["classes"]:
                raise ValueError(
                    f"the classes of {a['dataset']} differ between seeds, {_listed(a['classes'])} and "
                    f"{_listed(b['classes'])}; wanted answers to the same questions"
                )
    cells: dict[tuple[str, ...], dict[str, tuple[float | None, Mapping[str, Any]]]] = {}
    for name in names:
        for row in found[name]["groups"]:
            for figure, told in row["figures"].items():
                key = (row["dataset"], row["attribute"], row["group"], row["name"], figure)
                cells.setdefault(key, {})[name] = (told["value"], row)
        for row in found[name]["gaps"]:
            key = (row["dataset"], row["attribute"], "gap", "gap", row["figure"])
            cells.setdefault(key, {})[name] = (row["gap"], row)
    rows = []
    for key, its in cells.items():
        values = {name: value for name, (value, _) in its.items() if value is not None}
        row = dict(zip(("dataset", "attribute", "group", "name", "figure"), key, strict=True))
        row |= {"seeds": len(values)} | _student(list(values.values()), level) | {"values": values}
        if key[2] == "gap":
            chance = [told["expected"] for _, told in its.values() if told["expected"] is not None]
            row |= {"small": False, "expected": float(np.mean(chance)) if chance else None}
        else:
            row |= {"small": any(told["small"] for _, told in its.values()), "expected": None}
        rows.append(row)
    return rows


def _student(values: Sequence[float], level: float) -> dict[str, float | None]:
    if len(values) < 2:
        return {"mean": values[0] if values else None, "std": None, "low": None, "high": None}
    middle, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(special.stdtrit(len(values) - 1, (1 + level) / 2)) * spread / len(values) ** 0.5
    return {"mean": middle, "std": finite(spread), "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def _people(model: Records) -> list[tuple[Any, ...]]:
    """What tells records apart: id, label and who the patient is."""
    ids = model.ids or range(len(model))
    return list(zip(ids, model.labels, model.datasets, *model.attributes.values(), strict=True))


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:6])) + (" ..." if len(names) > 6 else "") if names else "none"
