"""Sums by patient and group, resampled over patients or with the groups dealt out anew.

Patients with equal records are of one kind, and a resample needs to know only how many of each kind were drawn. With
one record a patient there are few kinds however many patients there are, which makes the exact bootstrap quick.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

from fairgrpo_jax.audit.coding import Answers, People, Sparse


BLOCK = 2**22  # numbers that a block of resamples holds, at most


@dataclasses.dataclass(frozen=True)
class Tally:
    """What the patients of each kind add to the sums of each group.

    Attributes:
        sums: (kinds, groups * features), of one patient of each kind.
        number: (kinds,) patients of each kind.
        groups: number of groups.
    """

    sums: Sparse
    number: np.ndarray
    groups: int

    def observed(self) -> np.ndarray:
        """The sums as they are, (groups, features)."""
        return np.asarray(self.number @ self.sums, float).reshape(self.groups, -1)

    def resampled(self, num: int, seed: int) -> Iterator[np.ndarray]:
        """Sums (block, groups, features) of ``num`` resamples of the patients with replacement, block by block.

        Equal seeds draw the same patients of tallies with the same kinds.
        """
        rng = np.random.default_rng(seed)
        for size in _blocks(num, len(self.number) + self.sums.shape[1]):
            yield (_resample(rng, self.number, size) @ self.sums).reshape(size, self.groups, -1)


def tally(people: People, answers: Sequence[Answers]) -> list[Tally]:
    """One tally for each model's answers to the same records; all have the same kinds of patients."""
    pair = answers[0].pair
    for other in answers[1:]:
        pair = pair * len(other.features.indptr) + other.pair  # one more than pairs: no two combinations meet
    _, pair = np.unique(pair, return_inverse=True)
    first = np.zeros(pair.max() + 1, np.int64)
    first[pair] = np.arange(len(pair))  # a record of each combination of pairs
    width = len(first)
    kinds, number, codes = _kinds(people.patient, people.cell * width + pair)
    cell, records = codes // width, first[codes % width]
    found = []
    for one in answers:
        added = one.features[one.pair[records]]
        parts = []
        for group in people.groups:
            its = np.flatnonzero(group.cells[cell])
            parts.append(kinds[:, its] @ added[its])
        found.append(Tally(sparse.csr_matrix(sparse.hstack(parts)), number, len(people.groups)))
    return found


def dealt(people: People, answers: Answers, groups: Sequence[int], num: int, seed: int) -> Iterator[np.ndarray]:
    """Sums (block, groups, features) with patients dealt to the groups at random, as if the groups did not differ.

    What is dealt is a patient with all records of a group; the number of patients in each group stays.

    Args:
        people: who is in which group.
        answers: what was answered.
        groups: places of groups of one attribute in ``people.groups``, without records in common.
        num: how often.
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    of = np.full(len(people.groups[0].cells), -1)
    for place, group in enumerate(groups):
        of[people.groups[group].cells] = place
    group = of[people.cell]
    its = np.flatnonzero(group >= 0)
    unit, where = np.unique(people.patient[its] * len(groups) + group[its], return_inverse=True)
    kinds, _, codes, kind = _kinds_of(where.reshape(-1), answers.pair[its])
    table = np.zeros((len(groups), kinds.shape[0]), np.int64)
    np.add.at(table, (unit % len(groups), kind), 1)
    sums: Sparse = sparse.csr_matrix(kinds @ answers.features[codes])
    sizes, number = table.sum(1), table.sum(0)
    few = len(number) * len(groups) < len(unit) // 4
    for size in _blocks(num, len(groups) * (len(number) + sums.shape[1])):
        deal = np.stack([_deal(rng, number, sizes, kind, few) for _ in range(size)])
        flat = deal.reshape(size * len(groups), -1) @ sums
        yield np.asarray(flat, float).reshape(size, len(groups), -1)


def swapped(one: Tally, other: Tally, num: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sums of two models with the answers of a random half of the patients exchanged, as if the models were one.

    Yields:
        Two arrays (block, groups, features).
    """
    rng = np.random.default_rng(seed)
    for size in _blocks(num, len(one.number) + one.sums.shape[1] + other.sums.shape[1]):
        moved = rng.binomial(one.number, 0.5, (size, len(one.number)))
        kept = one.number - moved
        yield (
            (kept @ one.sums + moved @ other.sums).reshape(size, one.groups, -1),
            (kept @ other.sums + moved @ one.sums).reshape(size, one.groups, -1),
        )


def _blocks(num: int, width: int) -> Iterator[int]:
    block = max(1, BLOCK // width)
    for done in range(0, num, block):
        yield min(block, num - done)


def _resample(rng: np.random.Generator, number: np.ndarray, size: int) -> np.ndarray:
    """How many of each kind are drawn, (size, kinds), as floats."""
    total = int(number.sum())
    if len(number) * 8 < total:
        return rng.multinomial(total, number / total, size).astype(float)
    kind = np.repeat(np.arange(len(number)), number)
    drawn = [np.bincount(kind[rng.integers(0, total, total)], minlength=len(number)) for _ in range(size)]
    return np.stack(drawn).astype(float)


def _deal(rng: np.random.Generator, number: np.ndarray, sizes: np.ndarray, kind: np.ndarray, few: bool) -> np.ndarray:
    """A random table (groups, kinds) with these sums over groups and over kinds."""
    if not few:
        group = np.repeat(np.arange(len(sizes)), sizes)
        order = rng.permutation(len(kind))
        flat = np.bincount(group * len(number) + kind[order], minlength=len(sizes) * len(number))
        return flat.reshape(len(sizes), -1)
    left, rows = number.copy(), []
    for size in sizes[:-1].tolist():
        rows.append(rng.multivariate_hypergeometric(left, size, method="marginals"))
        left = left - rows[-1]
    return np.stack([*rows, left])


def _kinds(owner: np.ndarray, code: np.ndarray) -> tuple[Sparse, np.ndarray, np.ndarray]:
    """Kinds of owners: their records by code (kinds, codes), how many there are of each, and the codes."""
    kinds, number, codes, _ = _kinds_of(owner, code)
    return kinds, number, codes


def _kinds_of(owner: np.ndarray, code: np.ndarray) -> tuple[Sparse, np.ndarray, np.ndarray, np.ndarray]:
    """As ``_kinds``, with the kind of each owner; owners are numbered from 0, and each has a record."""
    codes, place = np.unique(code, return_inverse=True)
    keys, count = np.unique(owner.astype(np.int64) * len(codes) + place.reshape(-1), return_counts=True)
    who, what = keys // len(codes), keys % len(codes)
    starts = np.flatnonzero(np.diff(who, prepend=-1))
    mark = _mixed((what.astype(np.uint64) << np.uint64(24)) + count.astype(np.uint64))
    _, first, kind, number = np.unique(
        np.add.reduceat(mark, starts), return_index=True, return_inverse=True, return_counts=True
    )
    lengths = np.diff(starts, append=len(keys))[first]
    rows = np.repeat(np.arange(len(first)), lengths)
    chosen = np.arange(len(rows)) + np.repeat(starts[first] - np.cumsum(lengths) + lengths, lengths)
    kinds = sparse.csr_matrix((count[chosen].astype(float), (rows, what[chosen])), shape=(len(first), len(codes)))
    return kinds, number, codes, kind.reshape(-1)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits that look random, equal for equal ones: SplitMix64."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
