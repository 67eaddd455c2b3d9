"""The columns of one's own data: their names in the forms of TRL, verl and Hugging Face, and what became of each."""

import collections
import json
import math
from collections.abc import Mapping
from typing import Any


NAMES = {
    "prompt": ("prompt", "problem", "question", "messages", "conversations"),
    "answer": ("answer", "solution"),
    "sex": ("sex", "gender"),
    "id": ("id", "uid"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "subjectid"),
    "image": ("image", "file_name"),
}
KNOWN = {name for names in NAMES.values() for name in names} | {
    *("images", "video", "videos", "fps", "age", "data_source", "modality", "choices"),
    *("split", "finding", "reward_model"),
}
# What verl's `extra_info` may not say: what a row has itself.
OWN = {*NAMES["prompt"], *NAMES["answer"], *NAMES["id"], *NAMES["image"]}
OWN |= {"images", "video", "videos", "fps", "choices", "split", "reward_model"}
FILMS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
MEDIA = (*FILMS, ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm", ".dicom")


class Columns:
    """Gives columns their names in this module, and remembers what became of each.

    Args:
        given: names of the file's columns by those of this module.
        codes: what values mean, by column.
    """

    def __init__(self, given: Mapping[str, str], codes: Mapping[str, Mapping[str, str]]):
        known = {"prompt", "answer", "sex", "age", "id", "patient", "image", "images", "video", "videos", "fps"}
        known |= {"data_source", "modality", "choices", "split", "finding"}
        if unknown := sorted(given.keys() - known):
            raise ValueError(f"got columns for {', '.join(unknown)}; wanted some of {', '.join(sorted(known))}")
        self._given = {column: name for name, column in given.items()}
        self._codes, self._coded = codes, collections.Counter[tuple[str, str]]()
        self._names: dict[str, str] = {}  # by the column's own name, as the next two
        self._read: dict[str, str] = {}
        self._kept: dict[str, list[str]] = {}  # some values of columns that became attributes
        self.without_media: list[int] = []
        self.said = 0  # answers that the assistant says last

    def name(self, column: str) -> str:
        """The name of a column in this module; its own if it is none of them."""
        if column not in self._names:
            self._names[column] = self._named(column)
        return self._names[column]

    def _named(self, column: str) -> str:
        if column in self._given:
            return self._given[column]
        plain = column.strip().lower()
        if plain not in KNOWN:
            return column
        return f"{column} (not read)" if {plain, *_others(plain)} & set(self._given.values()) else plain

    def named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row under these names, with what verl's ``extra_info`` tells of the patient.

        Raises:
            ValueError: if two columns of one name differ.
        """
        found: dict[str, Any] = {}
        info = row.get("extra_info")
        told = [*row.items()]
        if isinstance(info, dict):
            told = [pair for pair in told if pair[0] != "extra_info" or not info]
            told += [(key, value) for key, value in info.items() if key not in row and self.name(key) not in OWN]
        for column, value in told:
            name = self.name(column)
            value = self._meant(name, value) if name in self._codes else value
            if found.get(name) is None:
                found[name] = value
            elif value is not None and found[name] != value:
                raise ValueError(f"two columns {name} differ; keep one")
            if name in KNOWN:
                self._read[column] = name
            else:
                values = self._kept.setdefault(column, [])
                if value is not None and len(values) < 100:
                    values.append(plain(value))
        return found

    def _meant(self, name: str, value: Any) -> Any:
        """The value that a code stands for."""
        code = plain(value)
        if code not in self._codes[name]:
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
            lines.append("no column patient, patient_id or subject_id: every row counts as its own patient")
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
            first = ", ".join(map(str, self.without_media[:10]))
            more = ", ..." if len(self.without_media) > 10 else ""
            lines.append(f"{len(self.without_media)} of {count} rows have no media: {unit} {first}{more}")
        return tuple(lines)


def _others(name: str) -> tuple[str, ...]:
    """Other names of a column, with the one that stands for all."""
    return next((names for names in NAMES.values() if name in names), ())


def plain(value: Any) -> str:
    """A value of another column as text; a list or object as JSON."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
