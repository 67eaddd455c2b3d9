"""Splits by patient: no patient is on both sides."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fairgrpo_jax.data.record import Record


def by_patient(patients: Sequence[str], *, fraction: float, seed: int) -> np.ndarray:
    """Holds out about ``fraction`` of the patients: those whose hash, as a number in [0, 1), is below it.

    A patient's side depends only on the patient id and the seed, so adding or reordering rows never moves a patient. On
    the other hand, the share of patients is ``fraction`` only in expectation.

    Args:
        patients: the patient of each row.
        fraction: share to hold out, in [0, 1].
        seed: random seed of the split.

    Returns:
        bool (rows,), True = held out.

    Raises:
        ValueError: if ``fraction`` is outside [0, 1].

    Example:
        >>> from fairgrpo_jax.data.splits import by_patient
        >>> by_patient(["p1", "p2", "p1", "p3"], fraction=0.5, seed=0).tolist()
        [True, True, True, False]
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; wanted the share of patients to hold out, in [0, 1]")
    held_out = {patient: _uniform(f"{seed}/{patient}") < fraction for patient in set(patients)}
    return np.array([held_out[patient] for patient in patients], dtype=bool)


def by_number(patients: Sequence[str], *, fraction: float) -> np.ndarray:
    """Holds out the patients after the first ``int(n · fraction)`` in numerical order of their ids.

    This is the split of COVID-BLUES in the benchmark on which FairGRPO was trained: 63 patients, ``fraction=0.75``, 47
    kept, 266 videos for training and 96 held out.

    Args:
        patients: the patient of each row, integers as text.
        fraction: share of the patients to keep, in [0, 1].

    Returns:
        bool (rows,), True = held out.

    Raises:
        ValueError: if an id is not an integer, or ``fraction`` is outside [0, 1].

    Example:
        >>> from fairgrpo_jax.data.splits import by_number
        >>> by_number(["10", "9", "9", "2"], fraction=0.75).tolist()
        [True, False, False, False]
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; wanted the share of patients to keep, in [0, 1]")
    if strange := sorted({patient for patient in patients if not patient.isdecimal()}):
        raise ValueError(f"patient ids {strange[:5]} are no whole numbers; split them with by_patient")
    order = sorted(set(patients), key=int)
    kept = set(order[: int(len(order) * fraction)])
    return np.array([patient not in kept for patient in patients], dtype=bool)


@dataclass(frozen=True)
class Shared:
    """Patients and media that two splits of a dataset share.

    Attributes:
        dataset: name of the dataset.
        splits: names of the two splits.
        patients: names of the patients in both, sorted.
        media: number of files or archive members in both.
    """

    dataset: str
    splits: tuple[str, str]
    patients: tuple[str, ...]
    media: int

    def __str__(self) -> str:
        shown = ", ".join(self.patients[:5]) + (" ..." if len(self.patients) > 5 else "")
        names = f" ({shown})" if self.patients else ""
        return (
            f"{self.dataset}: {' and '.join(self.splits)} share {len(self.patients)} patients{names} and "
            f"{self.media} media files"
        )


def leakage(records: Iterable[Record]) -> list[Shared]:
    """Finds the pairs of splits (``record.split``) of a dataset that share patients or media files.

    Example:
        >>> from fairgrpo_jax.data import splits
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> sides = [synthetic.load(split, domains=("us",)) for split in ("train", "test")]
        >>> splits.leakage(record for side in sides for record in side)
        []
    """
    patients: dict[tuple[str, str], set[str]] = {}
    files: dict[tuple[str, str], set[object]] = {}
    for record in records:
        side = (record.dataset, record.split)
        patients.setdefault(side, set()).add(record.patient)
        files.setdefault(side, set()).update(
            (media.path, media.member) if media.path else media.frames for media in record.media if media.pixels is None
        )
    found: list[Shared] = []
    for one, other in itertools.combinations(patients, 2):
        if one[0] == other[0]:
            people, shared = patients[one] & patients[other], files[one] & files[other]
            if people or shared:
                found.append(Shared(one[0], (one[1], other[1]), tuple(sorted(people)), len(shared)))
    return found


def check_leakage(train: Iterable[Record], test: Iterable[Record]) -> None:
    """Checks that two sets share no patient; patients of different datasets count as different.

    Raises:
        ValueError: naming the datasets and patients found on both sides.

    Example:
        >>> from fairgrpo_jax.data import splits
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> splits.check_leakage(synthetic.load("train", domains=("us",)), synthetic.load("test", domains=("us",)))
    """
    shared = sorted({(r.dataset, r.patient) for r in train} & {(r.dataset, r.patient) for r in test})
    if shared:
        names = ", ".join(f"{dataset} patient {patient}" for dataset, patient in shared[:10])
        more = f" and {len(shared) - 10} more" if len(shared) > 10 else ""
        raise ValueError(
            f"{len(shared)} patients are in both the training and the test set: {names}{more}; split by patient"
        )


def _uniform(text: str) -> float:
    """A number in [0, 1) from the hash of a text, identical on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
