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
    age_name as age_name,
    groups,
    is_cut,
    sex as sex,
    whole_edges as whole_edges,
    within as within,
)


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
    told = band(record)
    known = None if told is not None and is_cut(told, edges) else record.age
    person = {**record.extra, "sex": record.sex, "age": known}
    return groups(person, Scheme(tuple(names), tuple(edges)))


def band(record: Record) -> tuple[float, float] | None:
    """The band of years that is all that is known of the patient's age, kept in ``extra["age_told"]``; else None.

    Example:
        >>> from fairgrpo_jax.data import demographics
        >>> from fairgrpo_jax.data.record import Record
        >>> record = Record("demo/1", "demo", "", (), "?", "a", (), "p", "F", 64.5, {"age_told": "60–69"}, "train")
        >>> demographics.band(record), demographics.attributes(record, edges=(50, 65))["age"]
        ((60.0, 69.0), None)
    """
    try:
        told = age_band(record.extra.get(AGE_TOLD))
    except ValueError:
        return None
    return told if told is not None and record.age == within(told) else None
