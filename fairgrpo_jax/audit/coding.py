"""Records in numbers: who is in which group, and what each different answer counts for.

A million records hold few different pairs of an answer and its reference, and few different cells of patients. Every
figure is a function of sums over pairs, so that nothing below this module looks at a record again.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from fairgrpo_jax import demographics, metrics
from fairgrpo_jax.demographics import JOINT, SEPARATOR, Scheme


UNKNOWN = "unknown"  # name of the group of records whose attribute is not known
N, FAILED, HIT, SIMILAR, HEAD = 0, 1, 2, 3, 4  # columns of features; behind them TP, FP, FN of each class
Sparse = Any  # a scipy.sparse.csr_matrix, whose types checkers do not know
MOST_GROUPS = 60  # of an attribute: more are numbers or names, not groups


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of patients: a row of the report.

    Attributes:
        attribute: its attribute; ``"all"`` for everybody, ``"joint"`` for a cell of all attributes.
        key: its name in the published figures, such as ``"female"`` or ``"a2"``.
        name: its name in tables, such as ``"F"`` or ``"26–50"``.
        known: whether the attribute is known; in a joint cell, whether all are.
        cells: (cells,) which of the dataset's cells belong to it.
    """

    attribute: str
    key: str
    name: str
    known: bool
    cells: np.ndarray


@dataclasses.dataclass(frozen=True)
class People:
    """The patients of a dataset's N records.

    Attributes:
        groups: everybody first, then attribute by attribute, joint cells last.
        cell: (N,) which combination of all attributes, the unknown included.
        patient: (N,) numbers from 0.
    """

    groups: list[Group]
    cell: np.ndarray
    patient: np.ndarray

    @property
    def attributes(self) -> list[str]:
        """The attributes that have groups, the joint one last."""
        return [name for name in dict.fromkeys(group.attribute for group in self.groups) if name != "all"]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model answered to N records.

    Attributes:
        pair: (N,) which pair of prediction and label.
        features: (pairs, HEAD + 3 classes) what each pair adds to the sums, see ``HEAD``.
        classes: labels that occur, sorted.
    """

    pair: np.ndarray
    features: Sparse
    classes: tuple[str, ...]

    def short(self) -> "Answers":
        """The same without the classes, with equal pairs merged."""
        features = self.features[:, :HEAD].toarray()
        kept, place = np.unique(features, axis=0, return_inverse=True)
        return Answers(place.reshape(-1)[self.pair], sparse.csr_matrix(kept), ())


def numbered(values: Sequence[Hashable]) -> tuple[np.ndarray, list[Any]]:
    """Numbers equal values alike, in order of appearance; returns the numbers (N,) and the different values.

    >>> numbered(["b", "a", "b"])
    (array([0, 1, 0]), ['b', 'a'])
    """
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values], np.int64), list(known)


def answers(predictions: Sequence[str | None], labels: Sequence[str]) -> Answers:
    """Counts what each different pair of prediction and label adds, by the definitions of ``metrics``.

    >>> found = answers(["A", None, "A"], ["A", "B", "A"])
    >>> found.pair.tolist(), found.classes, found.features.toarray()[0].tolist()
    ([0, 1, 0], ('A', 'B'), [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    said, predicted = numbered(predictions)
    true, references = numbered(labels)
    codes, pair = np.unique(said * len(references) + true, return_inverse=True)
    guesses, truths = [metrics.label_set(x) for x in predicted], [metrics.label_set(x) for x in references]
    classes = sorted(set().union(*truths), key=str)
    place = {name: HEAD + 3 * number for number, name in enumerate(classes)}
    rows, columns, values = list[int](), list[int](), list[float]()
    for row, code in enumerate(codes.tolist()):
        answer = predicted[code // len(references)]
        guess, truth = guesses[code // len(references)], truths[code % len(references)]
        similar = 1.0 if guess == truth else 2 * len(guess & truth) / (len(guess) + len(truth))
        added = {N: 1.0, FAILED: float(answer is None), HIT: float(guess == truth), SIMILAR: similar}
        added |= {place[name]: 1.0 for name in guess & truth}
        added |= {place[name] + 1: 1.0 for name in guess - truth if name in place}
        added |= {place[name] + 2: 1.0 for name in truth - guess}
        rows += [row] * len(added)
        columns += added
        values += added.values()
    shape = (len(codes), HEAD + 3 * len(classes))
    features = sparse.csr_matrix((values, (rows, columns)), shape=shape)
    return Answers(pair.reshape(-1), features, tuple(str(name) for name in classes))


def people(
    attributes: Mapping[str, Sequence[Any]], patients: Sequence[Hashable], scheme: Scheme = demographics.DEFAULT
) -> People:
    """Groups the records of one dataset.

    Args:
        attributes: N values of each attribute, as ``demographics.group`` reads them.
        patients: N ids.
        scheme: edges of the age groups; its attributes, if it names any, are taken in its order.

    Returns:
        The groups of ``demographics.members``, and beside them, as groups of their own, the records whose attribute is
        unknown.

    Raises:
        ValueError: if an attribute has a name that is taken, or more than ``MOST_GROUPS`` groups.

    >>> [(g.attribute, g.name) for g in people({"sex": ["F", "", "M"]}, [1, 2, 3]).groups]
    [('all', 'all'), ('sex', 'F'), ('sex', 'M'), ('sex', 'unknown')]
    """
    names = [name for name in scheme.attributes or attributes if name in attributes]
    if taken := {JOINT, "all"} & set(names):
        raise ValueError(f"got an attribute named {sorted(taken)}; these names are taken, rename it")
    told = {name: _groups_of(name, attributes[name], scheme) for name in names}
    number = len(patients)
    codes = np.zeros((number, max(1, len(names))), np.int64)
    for column, name in enumerate(names):
        codes[:, column] = told[name][0]
    different, cell = np.unique(codes, axis=0, return_inverse=True)
    found = [Group("all", "all", "all", True, np.ones(len(different), bool))]
    known = [column for column, name in enumerate(names) if (told[name][0] >= 0).any()]
    for column in known:
        name, groups = names[column], told[names[column]][1]
        for place, group in enumerate(groups):
            key = demographics.key(name, group, scheme)
            found.append(Group(name, key, group, True, different[:, column] == place))
        if (missing := different[:, column] < 0).any():
            found.append(Group(name, UNKNOWN, UNKNOWN, False, missing))
    if len(known) > 1:
        cells = np.unique(different[:, known], axis=0)
        full = cells[(cells >= 0).all(1)]
        for row in full:
            parts = [(names[column], told[names[column]][1][place]) for column, place in zip(known, row, strict=True)]
            key = SEPARATOR.join(demographics.key(*part, scheme) for part in parts)
            name = SEPARATOR.join(part for _, part in parts)
            found.append(Group(JOINT, key, name, True, np.all(different[:, known] == row, axis=1)))
        if len(full) < len(cells):
            missing = np.any(different[:, known] < 0, axis=1)
            found.append(Group(JOINT, UNKNOWN, UNKNOWN, False, np.asarray(missing)))
    return People(found, cell.reshape(-1), numbered(patients)[0])


def _groups_of(attribute: str, values: Sequence[Any], scheme: Scheme) -> tuple[np.ndarray, list[str]]:
    """Each record's group by its place, -1 = unknown, and the names of the groups in the order of tables."""
    raw, different = numbered(values)
    named = [demographics.group(attribute, value, scheme) for value in different]
    names = sorted({name for name in named if name is not None}, key=lambda x: demographics.rank(attribute, x, scheme))
    if len(names) > MOST_GROUPS:
        raise ValueError(
            f"{attribute} has {len(names)} groups, such as {', '.join(names[:5])}; wanted at most {MOST_GROUPS}: "
            "give bins instead of numbers"
        )
    place = {name: number for number, name in enumerate(names)}
    return np.array([-1 if name is None else place[name] for name in named], np.int64)[raw], names
