"""Splits by patient: no patient is ever on both sides."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from fairgrpo_jax.data.record import Record


def by_patient(patients: Sequence[str], *, fraction: float, seed: int) -> np.ndarray:
    """Holds out about ``fraction`` of the patients: those whose hash, read as a number in [0, 1), lies below it.

    A patient's side depends on the name and the seed alone: not on the order of the rows, nor on who else is there, so
    rows added later move nobody. The price: the share of patients is ``fraction`` in expectation only.

    Args:
        patients: the patient of each row.
        fraction: share to hold out, in [0, 1].
        seed: another seed, another split.

    Returns:
        bool (rows,), True = held out.

    Raises:
        ValueError: ``fraction`` outside [0, 1].

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

    The split of COVID-BLUES in the benchmark FairGRPO was trained on: 63 patients, ``fraction=0.75``, 47 kept,
    266 videos to train on and 96 held out.

    Args:
        patients: the patient of each row, whole numbers as text.
        fraction: share of the patients to keep, in [0, 1].

    Returns:
        bool (rows,), True = held out.

    Raises:
        ValueError: an id that is no number, or ``fraction`` outside [0, 1].

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


def check_leakage(train: Iterable[Record], test: Iterable[Record]) -> None:
    """Refuses a pair of sets that share a patient; patients of different datasets are different people.

    Raises:
        ValueError: naming the datasets and patients found on both sides.

    Example:
        >>> from fairgrpo_jax.data import splits, synthetic
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
    """A number in [0, 1) from the hash of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
