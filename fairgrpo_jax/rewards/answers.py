"""What every component of a reward gets: the completions of some prompts, and the records that they answer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Graded(Protocol):
    """The attributes of a record by which its answer is graded."""

    @property
    def answer(self) -> str: ...

    @property
    def choices(self) -> Sequence[str]: ...


class Asked(Graded, Protocol):
    """The attributes of a record that components may use; ``data.record.Record`` has them."""

    @property
    def uid(self) -> str: ...

    @property
    def dataset(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def extra(self) -> Mapping[str, str]: ...


class Answers(NamedTuple):
    """The input of a component: G completions of each of P records."""

    texts: Sequence[Sequence[str]]  # P x G
    records: Sequence[Asked]  # P
    lengths: np.ndarray  # (P, G) int, tokens including the end token
    finished: np.ndarray  # (P, G) bool, whether the completion ended by itself

    def take(self, rows: np.ndarray) -> "Answers":
        """The answers of some of the records."""
        places: list[int] = rows.tolist()
        texts: list[Sequence[str]] = [self.texts[i] for i in places]
        records: list[Asked] = [self.records[i] for i in places]
        return Answers(texts, records, self.lengths[rows], self.finished[rows])

    def flat(self) -> tuple[list[str], list[Asked]]:
        """The P G completions, and the record of each."""
        pairs = [(text, record) for row, record in zip(self.texts, self.records, strict=True) for text in row]
        return [text for text, _ in pairs], [record for _, record in pairs]


def task(record: Asked) -> str:
    """The task of a record in its dataset, "" if it has a single one."""
    return record.extra.get("task", "")


def scale(record: Asked) -> str:
    """The dataset on whose scale a record's scores are: its own, or of a collection the part that it is from."""
    return record.extra.get("scale") or record.dataset
