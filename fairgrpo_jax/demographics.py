"""One vocabulary for patients: sex, age bin, other attributes, and the joint cell of all of them.

Training, metrics, tables and plots name groups with these functions and the ``Scheme`` of the run. An unknown value is
None, never a guess.
"""

import ast
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike


OLDEST = 130  # years
EDGES: tuple[float, ...] = (25, 50, 75)  # upper edges of the age bins in years, inclusive
MISSING = "?"  # stands for an unknown attribute inside a cell
SEPARATOR = ", "  # between the attributes of a cell
JOINT = "joint"  # name of the combination of all attributes
AGE_TOLD = "age_told"  # attribute that keeps an age that is told as a band, such as "60–69" or "90+"
UNKNOWN = frozenset(
    {"", "?", "unknown", "unk", "u", "none", "null", "nan", "na", "n/a", "not reported", "prefer not to say"}
)

_SEX: Mapping[str, Literal["F", "M"]] = {"f": "F", "female": "F", "m": "M", "male": "M"}
_SEX_OTHER = {"o", "other"}
# Further spellings in the authors' evaluation files, read only by `group`: `sex` reads no numbers.
_SEX_CODES: Mapping[str, str] = {"w": "F", "woman": "F", "0": "F", "0.0": "F", "man": "M", "1": "M", "1.0": "M"}
_SEX_KEYS = {"F": "female", "M": "male"}
_MISSING_AGE = -99.0
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}.*|\d{1,2}[./]\d{1,2}[./]\d{2,4}")
_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*(years?|yrs?|y/?o|months?|weeks?|days?)\.?(?: old)?")
_BAND = re.compile(r"(\d+)\s*(?:-|–|—|\bto\b)\s*(\d+)(?:\s*(?:years?|yrs?|y/?o?)\.?(?: old)?)?")
_INTERVAL = re.compile(r"([\[(])\s*(\d+(?:\.\d*)?)\s*,\s*(\d+(?:\.\d*)?)\s*([\])])")
_BELOW = re.compile(r"(<=|≤|<)\s*(\d+)")
_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The groups that a run distinguishes: ``config.data.attributes`` and ``config.data.age_edges``.

    Args:
        attributes: names in the order of cells and tables; None = all that the records have, in order of appearance.
        age_edges: increasing upper edges of all age bins but the last, in years.
    """

    attributes: tuple[str, ...] | None = None
    age_edges: tuple[float, ...] = EDGES


DEFAULT = Scheme()


def sex(raw: object, *, codes: Mapping[str, Literal["F", "M"] | None] | None = None) -> Literal["F", "M"] | None:
    """Parses the sex of a patient as datasets write it.

    ``F``, ``female``, ``M``, ``male`` in any case; None for empty, ``unknown``, NaN, and for DICOM's ``O`` (other).

    Args:
        raw: the value in the file.
        codes: a dataset's own codes, such as ``{"0.0": "F", "1.0": "M", "-99": None}``; without them numbers are
            errors.

    Raises:
        ValueError: for any other value, because an undocumented code must not become "unknown".

    Example:
        >>> [sex(raw) for raw in ("FEMALE", "M", "Unknown", None)]
        ['F', 'M', None, None]
        >>> sex("1.0", codes={"0.0": "F", "1.0": "M"})
        'M'
    """
    text = "" if raw is None else str(raw).strip()
    if codes and text in codes:
        return codes[text]
    if text.lower() in UNKNOWN | _SEX_OTHER:
        return None
    if text.lower() not in _SEX:
        raise ValueError(
            f"sex is {raw!r}; wanted F, M, female, male or unknown; explain other codes with codes={{...}}, or "
            "those of your own data with --data.codes sex.CODE=F"
        )
    return _SEX[text.lower()]


def age(raw: object) -> float | None:
    """Parses an age as datasets write it; returns years.

    Accepts a number, a DICOM age string such as ``"053Y"``, ``"006M"``, ``"012D"`` (365.25 days a year), a number with
    its unit such as ``"63 years"`` or ``"6 months"``, or one of them in a list of one element, also as text. Ages that
    hospitals code from above, as in ``"90+"``, ``">=90"`` and ``">89"``, are the least that they can be, here 90. None
    for empty, ``unknown``, NaN and the code -99. Zero is a valid age.

    Raises:
        ValueError: for any other value: another word, a date of birth, several ages or a range of them, less than 0 or
            more than 130 years.

    Example:
        >>> [age(raw) for raw in (53, "053Y", "['36Y']", "006M", "", -99, ">89", "63 yrs")]
        [53.0, 53.0, 36.0, 0.5, None, None, 90.0, 63.0]
    """
    text = _only(raw)
    if text.lower() in UNKNOWN:
        return None
    if _DATE.fullmatch(text):
        raise ValueError(f"age is {raw!r}, a date; wanted years when the picture was taken: subtract a date of birth")
    years = _top_coded(text)
    years = _years(_with_unit(text)) if years is None else years
    if math.isnan(years) or years == _MISSING_AGE:
        return None
    if not 0 <= years <= OLDEST:
        raise ValueError(
            f"age is {raw!r}; wanted years from 0 to 130, a DICOM age such as '053Y', '90+', or -99 for unknown"
        )
    return years


def age_band(raw: object) -> tuple[float, float] | None:
    """Parses an age that is told as a band; returns its first and last year of life, or None for anything else.

    Accepts ``"60-69"`` with any dash or ``to``, ``"<18"``, ``"<=25"``, ``"90+"``, ``">=90"``, ``">89"`` (without an
    upper end), and intervals as pandas writes them, ``"(60, 70]"``, where a round bracket leaves its end out.

    Raises:
        ValueError: if it ends before it begins, or after 130 years.

    Example:
        >>> [age_band(raw) for raw in ("60–69", "<18", ">89", "(60, 70]", "61")]
        [(60.0, 69.0), (0.0, 17.0), (90.0, inf), (61.0, 70.0), None]
    """
    text = _only(raw).lower()
    if (least := _top_coded(text)) is not None:
        low, high = least, math.inf
    elif found := _BELOW.fullmatch(text):
        low, high = 0.0, float(found[2]) - (found[1] == "<")
    elif found := _BAND.fullmatch(text):
        low, high = float(found[1]), float(found[2])
    elif found := _INTERVAL.fullmatch(text):
        low = math.ceil(float(found[2])) if found[1] == "[" else math.floor(float(found[2])) + 1.0
        high = math.floor(float(found[3])) if found[4] == "]" else math.ceil(float(found[3])) - 1.0
    else:
        return None
    if not low <= high or max(low, 0 if math.isinf(high) else high) > OLDEST:
        raise ValueError(f"age is {raw!r}; wanted a band of years from 0 to 130, the younger end first")
    return float(low), float(high)


def within(band: tuple[float, float]) -> float:
    """An age inside a band: its middle, or its first year where it has no upper end.

    Example:
        >>> within((60.0, 69.0)), within((90.0, math.inf))
        (64.5, 90.0)
    """
    return band[0] if math.isinf(band[1]) else (band[0] + band[1]) / 2


def is_cut(band: tuple[float, float], edges: Sequence[float] = EDGES) -> bool:
    """Whether a band lies in several age bins.

    Example:
        >>> is_cut((60, 69)), is_cut((40, 59)), is_cut((40, 59), (39, 59))
        (False, True, False)
    """
    first, last = age_bins(band, edges)
    return bool(first != last)


def whole_edges(bands: Iterable[tuple[float, float]]) -> list[str]:
    """Edges of age bins that cut none of the bands, as text: upper ends of bands.

    Example:
        >>> whole_edges([(0, 17), (18, 39), (30, 49), (50, 130)])
        ['17', '49']
    """
    bands = [*bands]
    ends = sorted({high for _, high in bands if high < OLDEST})
    return [f"{end:g}" for end in ends if not any(is_cut(band, [end]) for band in bands)]


def age_bins(age: ArrayLike | Sequence[float | None], edges: Sequence[float] = EDGES) -> np.ndarray:
    """Index of the age bin; upper edges are inclusive.

    Args:
        age: (N,) years, fractions allowed, >= 0; None or NaN = unknown.
        edges: increasing upper edges of all bins but the last. The default gives <= 25, (25, 50], (50, 75], > 75.

    Returns:
        (N,) int32 in 0 .. len(edges), or -1 where the age is unknown.

    Raises:
        ValueError: if an age is negative, or the edges are no ages or do not increase.

    Source: the bins of FairGRPO (arXiv 2510.19893). The authors' code puts an age of NaN into the oldest bin; here it
    is unknown.

    Example:
        >>> age_bins([25, 25.5, 80, None]).tolist()
        [0, 1, 3, -1]
    """
    years = np.asarray(age, np.float64)
    if np.any(years < 0):
        raise ValueError(f"got a negative age, {years[years < 0][0]}; wanted years >= 0, or None where unknown")
    if not (np.all(np.isfinite(edges)) and np.all(np.asarray(edges) >= 0) and np.all(np.diff(edges) > 0)):
        raise ValueError(f"got edges={tuple(edges)}; wanted increasing ages")
    return np.where(np.isnan(years), -1, np.searchsorted(edges, years, side="left")).astype(np.int32)


def age_names(edges: Sequence[float] = EDGES) -> tuple[str, ...]:
    """The names of the bins of ``age_bins``, youngest first.

    Example:
        >>> age_names(), age_names((40, 65))
        (('≤25', '26–50', '51–75', '>75'), ('≤40', '41–65', '>65'))
    """
    between = [f"{low + 1:g}–{high:g}" for low, high in itertools.pairwise(edges)]
    return (f"≤{edges[0]:g}", *between, f">{edges[-1]:g}")


def age_name(years: float | None, edges: Sequence[float] = EDGES) -> str | None:
    """The name of the bin of an age; upper edges are inclusive, and fractions count.

    Example:
        >>> [age_name(years) for years in (25, 25.5, 75, 76, None)]
        ['≤25', '26–50', '51–75', '>75', None]
    """
    return _age_name(years, tuple(edges))


@functools.lru_cache(maxsize=1 << 12)
def _age_name(years: float | None, edges: tuple[float, ...]) -> str | None:
    place = int(age_bins([years], edges)[0])
    return None if place < 0 else age_names(edges)[place]


def group(attribute: str, raw: Any, scheme: Scheme = DEFAULT) -> str | None:
    """The group of an attribute's value, as tables name it; None if unknown.

    ``sex`` or ``gender`` becomes ``"F"`` or ``"M"``, or stays as it is if it is another word; ``age`` becomes the name
    of a bin, from years, a DICOM age, or the authors' ``"a2"``; every other attribute keeps its text.

    Example:
        >>> group("sex", "female"), group("age", "053Y"), group("age", 53, Scheme(age_edges=(40, 65)))
        ('F', '51–75', '41–65')
    """
    text = str(raw).strip()
    lower = text.lower()
    if lower in UNKNOWN:
        return None
    if attribute in ("sex", "gender"):
        return ({**_SEX, **_SEX_CODES}).get(lower, lower)
    if attribute != "age":
        return text
    names = age_names(scheme.age_edges)
    if lower in (keys := [f"a{place}" for place, _ in enumerate(names, start=1)]):
        return names[keys.index(lower)]
    years = _years(text)
    if not math.isfinite(years):
        return text
    return None if years < 0 else age_name(years, scheme.age_edges)


def key(attribute: str, name: str, scheme: Scheme = DEFAULT) -> str:
    """The name of a group in the authors' logs: ``"female"`` for ``"F"``, ``"a2"`` for the second age bin.

    Example:
        >>> key("sex", "F"), key("age", "26–50"), key("race", "Asian")
        ('female', 'a2', 'Asian')
    """
    if attribute in ("sex", "gender"):
        return _SEX_KEYS.get(name, name)
    names = age_names(scheme.age_edges) if attribute == "age" else ()
    return f"a{names.index(name) + 1}" if name in names else name


def groups(person: Mapping[str, Any], scheme: Scheme = DEFAULT) -> dict[str, str | None]:
    """A patient's group by attribute: those of the scheme, or all that ``person`` has if the scheme names none.

    Example:
        >>> groups({"sex": "F", "age": 31.0}, Scheme(("race", "age")))
        {'race': None, 'age': '26–50'}
    """
    names = person if scheme.attributes is None else scheme.attributes
    return {name: group(name, person.get(name), scheme) for name in names}


def cell(values: Iterable[str | None]) -> str | None:
    """The joint group of a patient's groups, with ``"?"`` for an unknown one; None if all are unknown.

    Example:
        >>> cell(["F", "26–50"]), cell([None, "26–50"]), cell([None, None])
        ('F, 26–50', '?, 26–50', None)
    """
    parts = [MISSING if value is None else value for value in values]
    return None if all(part == MISSING for part in parts) else SEPARATOR.join(parts)


def rank(attribute: str, name: str, scheme: Scheme = DEFAULT) -> tuple[int, str]:
    """Sort key of an attribute's groups in tables: F, M; ages ascending; other words alphabetically, last."""
    first = ("F", "M") if attribute in ("sex", "gender") else age_names(scheme.age_edges) if attribute == "age" else ()
    return (first.index(name), "") if name in first else (len(first), name)


def members(
    people: Sequence[Mapping[str, Any]], datasets: Sequence[str], scheme: Scheme = DEFAULT
) -> list[tuple[dict[str, str], np.ndarray]]:
    """Lists the records of each group of each dataset, in the order of tables.

    Args:
        people: one mapping attribute -> value for each of N records, with values that ``group`` reads.
        datasets: N names.
        scheme: the groups to distinguish.

    Returns:
        Pairs (head, positions of the records), where the head holds ``dataset``, ``attribute``, ``group`` (see ``key``)
        and ``name``. Each dataset begins with attribute and group ``"all"``, followed by the attributes known for some
        of its records and, if there are several, the joint groups of the records for which all are known.

    Raises:
        ValueError: if an attribute is called ``joint`` or ``all``.

    Example:
        >>> [(head["name"], rows.tolist()) for head, rows in members([{"age": 80}, {}, {"age": 20}], ["d"] * 3)]
        [('all', [0, 1, 2]), ('≤25', [2]), ('>75', [0])]
    """
    names = scheme.attributes or tuple(dict.fromkeys(name for person in people for name in person))
    if taken := {JOINT, "all"} & set(names):
        raise ValueError(f"got an attribute named {sorted(taken)}; these names are taken, rename it")
    told = [groups(person, dataclasses.replace(scheme, attributes=names)) for person in people]
    found: list[tuple[dict[str, str], np.ndarray]] = []
    for dataset in sorted(set(datasets)):
        rows = [row for row, its in enumerate(datasets) if its == dataset]
        head = {"dataset": dataset, "attribute": "all", "group": "all", "name": "all"}
        found.append((head, np.asarray(rows)))
        known = [name for name in names if any(told[row][name] is not None for row in rows)]
        for attribute, parts in [*((name, [name]) for name in known), *([(JOINT, known)] if len(known) > 1 else [])]:
            cells: dict[tuple[tuple[str, str], ...], list[int]] = {}
            for row in rows:
                cell = tuple((part, name) for part in parts if (name := told[row][part]) is not None)
                if len(cell) == len(parts):
                    cells.setdefault(cell, []).append(row)
            for cell in sorted(cells, key=lambda cell: [rank(*part, scheme) for part in cell]):
                head = {"dataset": dataset, "attribute": attribute}
                head |= {"group": SEPARATOR.join(key(*part, scheme) for part in cell)}
                head |= {"name": SEPARATOR.join(name for _, name in cell)}
                found.append((head, np.asarray(cells[cell])))
    return found


def _years(text: str) -> float:
    """Years from a number or a DICOM age; infinite for any other text."""
    dicom = re.fullmatch(r"(\d+(?:\.\d*)?)([YMWD])", text.upper())
    try:
        return float(dicom[1]) / _PER_YEAR[dicom[2]] if dicom else float(text)
    except ValueError:
        return math.inf


def _top_coded(text: str) -> float | None:
    """The least age of a code for all from there on; None for any other text."""
    if found := re.fullmatch(r"(?:>=|≥)\s*(\d+)|(\d+)\s*\+", text):
        return float(found[1] or found[2])
    found = re.fullmatch(r">\s*(\d+)", text)
    return None if found is None else float(found[1]) + 1


def _with_unit(text: str) -> str:
    """A number with a unit in words, as a DICOM age."""
    found = _UNIT.fullmatch(text.lower())
    return text if found is None else f"{found[1]}{found[2][0].upper()}"


def _only(raw: object) -> str:
    """The text of a value, or of the only element of a list, or of a list written as text."""
    if isinstance(raw, str) and raw.strip().startswith("["):
        try:
            raw = ast.literal_eval(raw.strip())
        except (ValueError, SyntaxError):
            return str(raw)
    if isinstance(raw, (list, tuple)) and len(raw) == 1:
        raw = raw[0]
    return "" if raw is None else str(raw).strip()
