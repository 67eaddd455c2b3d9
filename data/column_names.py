"""The columns of one's own data: their names in the forms of TRL, verl and Hugging Face, and what became of each."""

import collections
import functools
import itertools
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fairgrpo_jax.data.columnar import Column


NAMES = {
    "prompt": ("prompt", "problem", "question", "messages", "conversations"),
    "answer": ("answer", "solution"),
    "sex": ("sex", "gender"),
    "id": ("id", "uid"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "subjectid"),
    "image": ("image", "file_name"),
}
_FIELDS = {name: field for field, names in NAMES.items() for name in names}
KNOWN = {name for names in NAMES.values() for name in names} | {
    *("images", "video", "videos", "fps", "age", "data_source", "modality", "choices"),
    *("split", "finding", "reward_model"),
}
# What verl's `extra_info` may not say: what a row has itself.
OWN = {*NAMES["prompt"], *NAMES["answer"], *NAMES["id"], *NAMES["image"]}
OWN |= {"images", "video", "videos", "fps", "choices", "split", "reward_model"}
_PERSON = re.compile("patient|subject|person|^mrn$|^pid$|^case|participant")
FILMS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
MEDIA = (*FILMS, ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm", ".dicom")


class Row(NamedTuple):
    """A row under the names of this module; None where it has no such column.

    Attributes:
        extra: the columns of other names, as text.
    """

    prompt: Any
    answer: Any
    reward_model: Any
    data_source: Any
    id: Any
    modality: Any
    image: Any
    images: Any
    video: Any
    videos: Any
    fps: Any
    choices: Any
    patient: Any
    sex: Any
    age: Any
    split: Any
    finding: Any
    extra: Mapping[str, str]


class _Plan(NamedTuple):
    """What is done with rows of the same columns.

    Attributes:
        fields: takes the fields of a ``Row`` from their values, of which the last is None.
        extra: names and places of the other columns.
        coded: names and places of columns whose values are codes.
        same: names and places of columns of which several are one of a row; the first place takes the value.
        kept: columns of which some values are kept, with their places.
    """

    fields: Callable[[Sequence[Any]], tuple[Any, ...]]
    extra: tuple[tuple[str, ...], tuple[int, ...]]
    coded: tuple[tuple[str, int], ...]
    same: tuple[tuple[tuple[str, int], ...], ...]
    kept: tuple[tuple[list[str], int], ...]


class Columns:
    """Gives columns their names in this module, and remembers what became of each.

    Args:
        given: names of the file's columns by those of this module.
        codes: what values mean, by column.
    """

    def __init__(self, given: Mapping[str, str], codes: Mapping[str, Mapping[str, str]]):
        if unknown := sorted(given.keys() - KNOWN):
            known = {_FIELDS.get(name, name) for name in KNOWN} - {"reward_model"}
            raise ValueError(f"got columns for {', '.join(unknown)}; wanted some of {', '.join(sorted(known))}")
        self._given = {column: _FIELDS.get(name, name) for name, column in given.items()}
        self._codes: dict[str, dict[str, str]] = {}  # by the name in this module
        for column, own in codes.items():
            self._codes.setdefault(_coded(column), {}).update(own)
        self._coded = collections.Counter[tuple[str, str]]()
        self._names: dict[str, str] = {}  # by the column's own name, as the next two
        self._read: dict[str, str] = {}
        self._kept: dict[str, list[str]] = {}  # some values of columns that became attributes
        self._plans: dict[tuple[str, ...], _Plan] = {}  # by the columns of a row
        self.without_media: list[int] = []
        self.without_patient: list[int] = []
        self.said = 0  # answers that the assistant says last

    def name(self, column: str) -> str:
        """The name of a column in this module; its own if it is none of them."""
        if column not in self._names:
            self._names[column] = self._named(column)
        return self._names[column]

    def _named(self, column: str) -> str:
        if column in self._given:
            return self._given[column]
        plain = _small(column)
        if plain not in KNOWN:
            return column
        return f"{column} (not read)" if {plain, *_others(plain)} & set(self._given.values()) else plain

    def named(self, row: Mapping[str, Any]) -> Row:
        """A row under these names, with what verl's ``extra_info`` tells of the patient.

        Raises:
            ValueError: if two columns of one name, or two names of one thing, differ.
        """
        if isinstance(info := row.get("extra_info"), dict):
            told = {key: value for key, value in row.items() if key != "extra_info" or not info}
            row = told | {key: value for key, value in info.items() if key not in row and self.name(key) not in OWN}
        columns, values = tuple(row), [*row.values(), None]
        plan = self._plans.get(columns) or self._planned(columns)
        for name, place in plan.coded:
            values[place] = self._meant(name, values[place])
        for places in plan.same:
            values[places[0][1]] = _agreed(places, values)
        for some, place in plan.kept:
            if len(some) < 100 and (value := values[place]) is not None:
                some.append(plain(value))
        names, places = plan.extra
        extra = others(names, tuple([whole(plain(values[place])) for place in places]))
        return Row._make((*plan.fields(values), extra))

    def of_columns(self, columns: Mapping[str, Column]) -> Row | None:
        """Columns under these names, in the place of values; None if each row must be looked at by itself."""
        names = tuple(columns)
        if "extra_info" in names:
            return None
        plan = self._plans.get(names) or self._planned(names)
        if plan.same:
            return None
        told: list[Any] = [*columns.values(), None]
        for name, place in plan.coded:
            column = told[place]
            known = dict(zip(column.keys, column.values, strict=True))
            meant = {key: self._meant(name, value) for key, value in known.items()}
            told[place] = Column([meant[key] for key in column.keys], column.keys, column.kind)
        for some, place in plan.kept:
            there = (plain(value) for value in told[place].values if value is not None)
            some += itertools.islice(there, 100 - len(some))
        return Row._make((*plan.fields(told), dict.fromkeys(plan.extra[0], "")))

    def _planned(self, columns: tuple[str, ...]) -> _Plan:
        names = [*map(self.name, columns)]
        places: dict[str, list[tuple[str, int]]] = {field: [] for field in Row._fields[:-1]}
        for place, (column, name) in enumerate(zip(columns, names, strict=True)):
            places.setdefault(_FIELDS.get(name, name), []).append((name, place))
            if name in KNOWN:
                self._read[column] = name
        extra = [name for name in places if name not in KNOWN]
        for field, aliases in NAMES.items():
            places[field].sort(key=lambda pair: aliases.index(pair[0]))
        if len(self._plans) > 1000:
            self._plans.clear()
        plan = self._plans[columns] = _Plan(
            operator.itemgetter(*(places[field][0][1] if places[field] else -1 for field in Row._fields[:-1])),
            (tuple(extra), tuple(places[name][0][1] for name in extra)),
            tuple((_coded(name), place) for place, name in enumerate(names) if _coded(name) in self._codes),
            tuple(tuple(several) for several in places.values() if len(several) > 1),
            tuple(
                (self._kept.setdefault(column, []), place)
                for place, (column, name) in enumerate(zip(columns, names, strict=True))
                if name not in KNOWN
            ),
        )
        return plan

    def require_asked(self, where: str) -> None:
        """Checks that some column is the prompt.

        Args:
            where: the file, for the error.

        Raises:
            ValueError: with the columns that are there.
        """
        there = sorted({*self._read, *self._kept})
        if there and not set(NAMES["prompt"]) & set(self._read.values()):
            raise ValueError(
                f"{where} has the columns {', '.join(there)}; wanted one named {', '.join(NAMES['prompt'])}, or "
                "--data.columns prompt=COLUMN answer=COLUMN"
            )

    def has(self, name: str) -> bool:
        """Whether some row had the column."""
        return name in self._read.values()

    def _meant(self, name: str, value: Any) -> Any:
        """The value that a code stands for."""
        code = next((code for code in (plain(value), whole(plain(value))) if code in self._codes[name]), None)
        if code is None:
            return value
        self._coded[name, code] += 1
        return self._codes[name][code] or None

    def require_given(self) -> None:
        """Checks that the columns that were given by hand are there.

        Raises:
            ValueError: if no row has one of them.
        """
        there = {*self._read, *self._kept}
        if absent := sorted(set(self._given) - there) if there else []:
            raise ValueError(
                f"got columns {', '.join(absent)}, which no row has; wanted some of {', '.join(sorted(there))}"
            )

    def notes(self, count: int, unit: str) -> tuple[str, ...]:
        """What became of the columns, in sentences.

        Raises:
            ValueError: if media were overlooked.
        """
        read = [column if column == name else f"{column} as {name}" for column, name in sorted(self._read.items())]
        lines = [f"columns that are read: {', '.join(read)}"]
        if self._coded:
            told = [f"{name} {code!r} as {self._codes[name][code] or 'unknown'}" for name, code in sorted(self._coded)]
            lines.append(f"codes: {', '.join(told)}")
        unused = [f"{name}.{code}" for name, own in self._codes.items() for code in own if not self._coded[name, code]]
        if unused:
            lines.append(f"codes that no row has: {', '.join(unused)}")
        if self.said:
            lines.append(f"the assistant's last message is the answer of {self.said} rows")
        if self._kept:
            lines.append(f"columns that are kept as attributes: {', '.join(sorted(self._kept))}")
        if not set(self._read.values()) & set(NAMES["patient"]):
            like = [column for column in sorted(self._kept) if _PERSON.search(_small(column))]
            hint = f" (is it {like[0]!r}? then --data.columns patient='{like[0]}')" if like else ""
            lines.append(f"no column patient, patient_id or subject_id: every row counts as its own patient{hint}")
        elif self.without_patient:
            lines.append(
                f"{len(self.without_patient)} of {count} rows name no patient and count as patients of their own, who "
                f"can be on both sides of a split: {unit} {_first(self.without_patient)}"
            )
        for column, values in sorted(self._kept.items()):
            held = {_small(key) for value in values if value.startswith("{") for key in _keys(value)}
            if found := sorted(held & KNOWN):
                lines.append(
                    f"column {column} holds {', '.join(found)}, which are not read there: make columns of them"
                )
        like_files = sorted(
            column
            for column, values in self._kept.items()
            if any(values) and all(value.lower().endswith(MEDIA) for value in values if value)
        )
        if like_files and len(self.without_media) == count:
            raise ValueError(
                f"got no media, but columns {', '.join(like_files)} that look like files; wanted a column image or "
                f"video: rename it, or columns image={like_files[0]}"
            )
        lines += [f"column {column} looks like files of media; it is not read as such" for column in like_files]
        if 0 < len(self.without_media) < count:
            lines.append(
                f"{len(self.without_media)} of {count} rows have no media: {unit} {_first(self.without_media)}"
            )
        return tuple(lines)


def _first(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:10]))}{', ...' if len(numbers) > 10 else ''}"


def _small(column: str) -> str:
    """A column's name in small letters, with underscores between its words."""
    return re.sub(r"[\s_-]+", "_", column.strip().lower())


def _coded(name: str) -> str:
    """The name of a column whose values are codes."""
    return _FIELDS.get(_small(name), _small(name)) if _small(name) in KNOWN else name


def _keys(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [*found] if isinstance(found, dict) else []


def _others(name: str) -> tuple[str, ...]:
    """Other names of a column, with the one that stands for all."""
    return next((names for names in NAMES.values() if name in names), ())


def _agreed(places: Sequence[tuple[str, int]], values: Sequence[Any]) -> Any:
    """The value of several columns that are one of a row.

    Raises:
        ValueError: if two of them differ.
    """
    first, value = "", None
    for name, place in places:
        if (other := values[place]) is None:
            continue
        if value is not None and other != value:
            raise ValueError(
                f"two columns {name} differ; keep one" if name == first else f"{first} and {name} differ; keep one"
            )
        first, value = first or name, other if value is None else value
    return value


@functools.lru_cache(maxsize=1 << 14)
def others(names: tuple[str, ...], texts: tuple[str, ...]) -> Mapping[str, str]:
    """Other columns of a row. A million rows say few things: what is equal is one object."""
    return dict(zip(names, texts, strict=True))


def whole(text: str) -> str:
    """A name or code as text; 17.0, which is what pandas makes of 17 in a column where others are missing, is 17.

    Example:
        >>> from fairgrpo_jax.data.column_names import whole
        >>> whole("17.0"), whole("17.5"), whole("v17.0")
        ('17', '17.5', 'v17.0')
    """
    return text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text


def plain(value: Any) -> str:
    """A value of another column as text; a list or object as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
