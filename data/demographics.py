"""The groups of a record's patient, named as in ``fairgrpo_jax.demographics``.

``sex`` and ``age`` parse the values of all datasets into one form; an unknown value is None, never a guess.
"""

from collections.abc import Sequence

from fairgrpo_jax.data.record import Record
from fairgrpo_jax.demographics import (
    AGE_TOLD as AGE_TOLD,
    EDGES,
    UNKNOWN as UNKNOWN,
    Scheme,
    age as age,
    age_band as age_band,
    age_name,
    groups,
    is_cut,
    sex as sex,
    within as within,
)


def age_bin(years: float | None, *, edges: Sequence[float] = EDGES) -> str | None:
    """The name of an age's bin, as ``demographics.age_name``.

    Upper edges are inclusive, and fractions count: 25.5 is in ``"26–50"``.

    Example:
        >>> from fairgrpo_jax.data import demographics
        >>> [demographics.age_bin(years) for years in (25, 25.5, 75, 76, None)]
        ['≤25', '26–50', '51–75', '>75', None]
    """
    return age_name(years, edges)


def attributes(
    record: Record, *, edges: Sequence[float] = EDGES, names: Sequence[str] = ("sex", "age")
) -> dict[str, str | None]:
    """The patient's group by attribute, for ``grouping``; None if unknown.

    Args:
        record: a record of the patient.
        edges: increasing upper edges of the age bins in years, inclusive. An age that is known as a band alone
            (``extra["age_told"]``) is unknown where an edge cuts the band.
        names: ``"sex"``, ``"age"``, and keys of ``record.extra`` such as ``"race"``, in the desired order. Attributes
            that a dataset does not have are unknown.

    Example:
        >>> from fairgrpo_jax.data import demographics
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> demographics.attributes(synthetic.load("test", domains=("digits",))[0], names=("sex", "age", "race"))
        {'sex': None, 'age': None, 'race': None}
    """
    band = age_band(record.extra.get(AGE_TOLD))
    known = None if band is not None and is_cut(band, edges) else record.age
    person = {**record.extra, "sex": record.sex, "age": known}
    return groups(person, Scheme(tuple(names), tuple(edges)))
