"""Sex and age as owners write them, read into one form; unknown is None, and never a guess."""

import ast
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from fairgrpo_jax.data.record import Record
from fairgrpo_jax.grouping import age_bins


_UNKNOWN = {"", "unknown", "unk", "u", "none", "null", "nan", "na", "n/a", "not reported", "prefer not to say"}
_SEX: Mapping[str, Literal["F", "M"]] = {"f": "F", "female": "F", "m": "M", "male": "M"}
_SEX_OTHER = {"o", "other"}
_MISSING_AGE = -99.0
_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}


def sex(raw: object, *, codes: Mapping[str, Literal["F", "M"] | None] | None = None) -> Literal["F", "M"] | None:
    """Reads a sex as the owner writes it.

    ``F``, ``female``, ``M``, ``male`` in any case; None for empty, ``unknown``, NaN, and for DICOM's ``O`` (other).

    Args:
        raw: what the file holds.
        codes: a dataset's own codes, such as ``{"0.0": "F", "1.0": "M", "-99": None}``; numbers mean nothing without.

    Raises:
        ValueError: anything else, since a code nobody explained must not turn into "unknown".

    Example:
        >>> from fairgrpo_jax.data import demographics
        >>> [demographics.sex(raw) for raw in ("FEMALE", "M", "Unknown", None)]
        ['F', 'M', None, None]
        >>> demographics.sex("1.0", codes={"0.0": "F", "1.0": "M"})
        'M'
    """
    text = "" if raw is None else str(raw).strip()
    if codes and text in codes:
        return codes[text]
    if text.lower() in _UNKNOWN | _SEX_OTHER:
        return None
    if text.lower() not in _SEX:
        raise ValueError(
            f"sex is {raw!r}; wanted F, M, female, male or unknown; explain other codes with codes={{...}}"
        )
    return _SEX[text.lower()]


def age(raw: object) -> float | None:
    """Reads an age as the owner writes it, in years.

    A number; a DICOM age string such as ``"053Y"``, ``"006M"``, ``"012D"`` (365.25 days a year); either of them in a
    list of one, itself or as text. None for empty, ``unknown``, NaN and the code -99. Zero is an age.

    Raises:
        ValueError: anything else: another word, several ages, less than 0 or more than 130 years.

    Example:
        >>> from fairgrpo_jax.data import demographics
        >>> [demographics.age(raw) for raw in (53, "053Y", "['36Y']", "006M", "", -99)]
        [53.0, 53.0, 36.0, 0.5, None, None]
    """
    text = _only(raw)
    if text.lower() in _UNKNOWN:
        return None
    dicom = re.fullmatch(r"(\d+)([YMWD])", text.upper())
    try:
        years = int(dicom[1]) / _PER_YEAR[dicom[2]] if dicom else float(text)
    except ValueError:
        years = math.inf
    if math.isnan(years) or years == _MISSING_AGE:
        return None
    if not 0 <= years <= 130:
        raise ValueError(f"age is {raw!r}; wanted years from 0 to 130, a DICOM age such as '053Y', or -99 for unknown")
    return years


def age_bin(years: float | None, *, edges: Sequence[float] = (25, 50, 75)) -> str | None:
    """The name of the bin that ``grouping.age_bins`` puts an age in.

    An edge belongs to the bin below it, and fractions count: 25.5 is in ``"26–50"``.

    Example:
        >>> from fairgrpo_jax.data import demographics
        >>> [demographics.age_bin(years) for years in (25, 25.5, 75, 76, None)]
        ['≤25', '26–50', '51–75', '>75', None]
    """
    if years is None:
        return None
    between = [f"{low + 1:g}–{high:g}" for low, high in itertools.pairwise(edges)]
    labels = [f"≤{edges[0]:g}", *between, f">{edges[-1]:g}"]
    return labels[age_bins([years], edges)[0]]


def attributes(
    record: Record, *, edges: Sequence[float] = (25, 50, 75), names: Sequence[str] = ("sex", "age")
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
    known: dict[str, str | None] = {"sex": record.sex, "age": age_bin(record.age, edges=edges)}
    return {name: known[name] if name in known else _told(record.extra.get(name)) for name in names}


def _told(text: str | None) -> str | None:
    return None if text is None or text.strip().lower() in _UNKNOWN else text.strip()


def _only(raw: object) -> str:
    """The text of a value, or of the one element of a list, or of a list written as text."""
    if isinstance(raw, str) and raw.strip().startswith("["):
        try:
            raw = ast.literal_eval(raw.strip())
        except (ValueError, SyntaxError):
            return str(raw)
    if isinstance(raw, (list, tuple)) and len(raw) == 1:
        raw = raw[0]
    return "" if raw is None else str(raw).strip()
