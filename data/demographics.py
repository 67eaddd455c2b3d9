"""The groups of a record's patient, named as in ``fairgrpo_jax.demographics``.

``sex`` and ``age`` parse the values of all datasets into one form; an unknown value is None, never a guess.
"""

from collections.abc import Sequence

from fairgrpo_jax.data.record import Record
from fairgrpo_jax.demographics import (
    EDGES,
    UNKNOWN as UNKNOWN,
    Scheme,
    age as age,
    age_name as age_name,
    groups,
    sex as sex,
)


def attributes(
    record: Record, *, edges: Sequence[float] = EDGES, names: Sequence[str] = ("sex", "age")
) -> dict[str, str | None]:
    """The patient's group by attribute, for ``grouping``; None if unknown.

    Args:
        record: a record of the patient.
        edges: increasing upper edges of the age bins in years, inclusive.
        names: ``"sex"``, ``"age"``, and keys of ``record.extra`` such as ``"race"``, in the desired order. Attributes
            that a dataset does not have are unknown.

    Example:
        >>> from fairgrpo_jax.data import demographics
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> demographics.attributes(synthetic.load("test", domains=("digits",))[0], names=("sex", "age", "race"))
        {'sex': None, 'age': None, 'race': None}
    """
    person = {**record.extra, "sex": record.sex, "age": record.age}
    return groups(person, Scheme(tuple(names), tuple(edges)))
