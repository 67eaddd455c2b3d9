"""The groups that a record's patient belongs to, in the words of ``fairgrpo_jax.demographics``.

``sex`` and ``age`` read what owners write into one form; unknown is None, and never a guess.
"""

from collections.abc import Sequence

from fairgrpo_jax.data.record import Record
from fairgrpo_jax.demographics import EDGES, UNKNOWN as UNKNOWN, Scheme, age as age, age_name, groups, sex as sex


def age_bin(years: float | None, *, edges: Sequence[float] = EDGES) -> str | None:
    """The name of the bin of an age, ``demographics.age_name``.

    An edge belongs to the bin below it, and fractions count: 25.5 is in ``"26–50"``.

    Example:
        >>> from fairgrpo_jax.data import demographics
        >>> [demographics.age_bin(years) for years in (25, 25.5, 75, 76, None)]
        ['≤25', '26–50', '51–75', '>75', None]
    """
    return age_name(years, edges)


def attributes(
    record: Record, *, edges: Sequence[float] = EDGES, names: Sequence[str] = ("sex", "age")
) -> dict[str, str | None]:
    """The patient's group by attribute, ready for ``grouping``; None where unknown.

    Args:
        record: whose patient.
        edges: of the age bins, in years, rising, each belonging to the bin below it.
        names: ``"sex"``, ``"age"``, and names of ``record.extra`` such as ``"race"``, in the order wanted.
            What a dataset does not tell is unknown.

    Example:
        >>> from fairgrpo_jax.data import demographics
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> demographics.attributes(synthetic.load("test", domains=("digits",))[0], names=("sex", "age", "race"))
        {'sex': None, 'age': None, 'race': None}
    """
    person = {**record.extra, "sex": record.sex, "age": record.age}
    return groups(person, Scheme(tuple(names), tuple(edges)))
