"""A model's answers as they come from a file or a run folder, column by column."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fairgrpo_jax import demographics
from fairgrpo_jax.demographics import Scheme


@dataclasses.dataclass(frozen=True)
class Records:
    """N answers of one model, with who the patients are.

    Attributes:
        name: of the model, in tables.
        source: the file or folder they come from.
        ids: N different names of the records; None if the file has none.
        predictions: N answers, None = no answer.
        labels: N reference answers.
        attributes: N values of each attribute, in the order of tables.
        datasets: N names.
        patients: N ids; None = every record counts as its own patient.
        scores: N probabilities, NaN = none; None if there are no scores.
        texts: N completions that the answers were extracted from; None if they are not known.
        notes: sentences about what was read as what.
        scheme: attributes and edges of the age groups.
    """

    name: str
    source: str
    ids: Sequence[str] | None
    predictions: Sequence[str | None]
    labels: Sequence[str]
    attributes: Mapping[str, Sequence[Any]]
    datasets: Sequence[str]
    patients: Sequence[str] | None
    scores: Sequence[float] | None = None
    texts: Sequence[str] | None = None
    notes: Sequence[str] = ()
    scheme: Scheme = demographics.DEFAULT

    def __len__(self) -> int:
        return len(self.labels)

    def taken(self, rows: Sequence[int]) -> "Records":
        """The records at these places."""
        pick = lambda column: None if column is None else [column[row] for row in rows]
        names = ("ids", "predictions", "labels", "datasets", "patients", "scores", "texts")
        columns: dict[str, Any] = {name: pick(getattr(self, name)) for name in names}
        attributes = {name: [column[row] for row in rows] for name, column in self.attributes.items()}
        return dataclasses.replace(self, attributes=attributes, **columns)


def matched(models: Sequence[Records]) -> tuple[list[Records], list[str]]:
    """The records that all models answered, in the order of the first, and sentences about those left out.

    Raises:
        ValueError: if a model's records have no ids, none are common, or labels, attributes or patients differ.
    """
    without = [model.source for model in models if model.ids is None]
    if without:
        raise ValueError(f"{without[0]} has no ids; wanted a column with the same id for the same record: --id COLUMN")
    places = [{name: row for row, name in enumerate(model.ids or ())} for model in models]
    common = [name for name in places[0] if all(name in other for other in places[1:])]
    if not common:
        first = ", ".join(
            f"{model.source}: {', '.join(list(own)[:3])}" for model, own in zip(models, places, strict=True)
        )
        raise ValueError(f"the models have no record in common ({first}); wanted the same ids for the same records")
    found = [model.taken([own[name] for name in common]) for model, own in zip(models, places, strict=True)]
    first = found[0]
    for other in found[1:]:
        wrong = [row for row in range(len(first)) if other.labels[row] != first.labels[row]]
        if wrong:
            row = wrong[0]
            raise ValueError(
                f"{len(wrong)} labels differ between {first.source} and {other.source}, such as {first.labels[row]!r} "
                f"and {other.labels[row]!r} of {common[row]}; wanted answers to the same questions"
            )
        _require_same_people(first, other, common)
    notes = [
        f"{len(model) - len(common):,} of {len(model):,} records of {model.name} were not answered by all models and "
        "are left out of the comparison"
        for model in models
        if len(model) > len(common)
    ]
    return found, notes


def _require_same_people(first: Records, other: Records, names: Sequence[str]) -> None:
    """Checks that two models' records are of the same patients, whose names may differ, as far as both tell.

    Raises:
        ValueError: with an attribute that differs, or a patient who is several in the other file.
    """
    for attribute in first.attributes.keys() & other.attributes.keys():
        pairs = list(zip(first.attributes[attribute], other.attributes[attribute], names, strict=True))
        wrong = [(a, b, name) for a, b, name in pairs if a is not None and b is not None and a != b]
        if wrong:
            a, b, name = wrong[0]
            raise ValueError(
                f"{len(wrong)} values of {attribute} differ between {first.source} and {other.source}, such as {a!r} "
                f"and {b!r} of {name}; wanted the same patients"
            )
    if first.patients is None or other.patients is None:
        return
    both = zip(first.datasets, first.patients, strict=True), zip(other.datasets, other.patients, strict=True)
    for one, two in itertools.permutations([list(people) for people in both]):
        known = dict[tuple[str, str], tuple[str, str]]()
        for a, b, name in zip(one, two, names, strict=True):
            if known.setdefault(a, b) != b:
                raise ValueError(
                    f"{first.source} and {other.source} group the records by other patients: {a[1]} is {known[a][1]} "
                    f"and, for {name}, {b[1]}; wanted the same patients, whatever their names"
                )
