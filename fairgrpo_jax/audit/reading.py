"""Reads predictions of any model from tables; columns are found by name, told, and read strictly."""

import collections
import dataclasses
import decimal
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax import demographics
from fairgrpo_jax.audit.records import Records
from fairgrpo_jax.data import column_names, forms, tables
from fairgrpo_jax.data.tables import Problems
from fairgrpo_jax.demographics import Scheme


# Where a column is not named, the first of these that is there; compared without case, blanks and underscores.
USUAL = {
    "prediction": ("prediction", "predicted", "pred", "y_pred", "predicted_label"),
    "label": ("label", "answer", "y_true", "ground_truth", "truth", "reference", "target"),
    "patient": column_names.NAMES["patient"],
    "id": ("id", "uid", "record_id", "image_id"),
    "dataset": ("dataset", "data_source"),
}
ATTRIBUTES = {
    "sex": (*column_names.NAMES["sex"], "patient_sex", "patients_sex"),
    "age": ("age", "patient_age", "age_years", "age_at_study", "patients_age"),
    "race": ("race", "patient_race"),
    "ethnicity": ("ethnicity", "patient_ethnicity"),
    "skin_type": ("skin_type", "fitzpatrick", "fitzpatrick_skin_type", "skin_tone"),
    "insurance": ("insurance",),
    "language": ("language",),
}
NO_ANSWER = frozenset({"none", "nan", "null", "n/a", "na", "-"})


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Args:
        prediction: the model's answer; blank = no answer.
        label: the reference answer.
        attributes: names of attributes, or NAME=COLUMN; by default those of ``ATTRIBUTES`` that are there.
        patient: id of the patient.
        score: probability of the positive class, or that the answer is right.
        dataset: name of the dataset, if the file holds several.
        id: name of the record.
        metadata: a second table with attributes, and whatever else the first does not have.
        on: the column by which both are joined.
        age_edges: upper edges of the age groups, inclusive.
        codes: what codes mean, as ``sex.1=M``; ``sex.9=`` is unknown.
        no_answer: predictions that stand for no answer.
        ignore_case: whether ``Yes`` equals ``yes``.
    """

    prediction: str = ""
    label: str = ""
    attributes: Sequence[str] = ()
    patient: str = ""
    score: str = ""
    dataset: str = ""
    id: str = ""
    metadata: Path | None = None
    on: str = ""
    age_edges: Sequence[float] = demographics.EDGES
    codes: Sequence[str] = ()
    no_answer: Sequence[str] = ()
    ignore_case: bool = False


def read(path: Path, columns: Columns = Columns(), *, name: str = "") -> Records:
    r"""Reads a table of predictions.

    Args:
        path: CSV (commas or semicolons; with semicolons, decimal commas are read), TSV, JSONL, JSON, Parquet or Arrow.
        columns: which columns hold what.
        name: of the model; by default the file's.

    Returns:
        The records, with notes about what was read as what.

    Raises:
        ValueError: if a file or a column is missing; for all bad rows in one error, with their lines and columns: no
            label, an age or a sex that cannot be read, a score that is no probability, an id that is there twice.

    Example:
        >>> import pathlib, tempfile
        >>> from fairgrpo_jax.audit import reading
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = path.write_text("Patient ID,y_pred,y_true,Gender\n7,yes,yes,F\n8,,no,m\n")
        >>> found = reading.read(path)
        >>> found.predictions, dict(found.attributes), found.patients
        (['yes', None], {'sex': ['F', 'M']}, ['7', '8'])
    """
    table = _Table(path)
    if columns.metadata is not None:
        _join(table, _Table(columns.metadata), columns.on)
    find = lambda role, given: _found(table, role, given, USUAL[role])
    prediction, label = find("prediction", columns.prediction), find("label", columns.label)
    if prediction is None or label is None:
        role = "prediction" if prediction is None else "label"
        raise ValueError(
            f"{path} has no column {' or '.join(USUAL[role])}; it has {', '.join(table.columns)}: --{role} COLUMN"
        )
    patient, key, dataset = (find(role, getattr(columns, role)) for role in ("patient", "id", "dataset"))
    score = _found(table, "score", columns.score, ()) if columns.score else None
    chosen = _attributes(table, columns.attributes)
    codes = _codes(columns.codes, chosen)
    used = {"prediction": prediction, "label": label, "patient": patient, "id": key, "dataset": dataset, "score": score}
    read = [column if role == column else f"{column} as {role}" for role, column in (used | chosen).items() if column]
    table.notes.insert(0, f"columns that are read: {', '.join(read)}")
    problems = table.problems
    labels = table.text(label, require=True)
    predictions: list[str | None] = [value or None for value in table.text(prediction)]
    values = lambda name, column: _values(table, name, column, codes.get(name, {}), columns.age_edges)
    attributes = {name: values(name, column) for name, column in chosen.items()}
    ids = table.text(key, require=True) if key else None
    if ids is not None and not columns.id and _same(str(key)) == "imageid" and len(set(ids)) < len(ids):
        ids = None
        table.notes.append(f"{key} repeats, as images of several questions do, and is read as no id: --id COLUMN")
    if ids is not None:
        _require_different(ids, str(key), table)
    scores = [_score(table, score, row) for row in range(len(table))] if score else None
    patients = table.text(patient, require=True) if patient else None
    datasets = table.text(dataset, require=True) if dataset else [path.stem] * len(table)
    problems.raise_if_any()
    if patients is None:
        table.notes.append(
            "there is no column with the patient: every record counts as its own patient, and intervals are too narrow "
            "if patients have several: --patient COLUMN"
        )
    predictions, labels = _alike(predictions, labels, columns, table.notes)
    return Records(
        name=name or path.stem,
        source=str(path),
        ids=ids,
        predictions=predictions,
        labels=labels,
        attributes=attributes,
        datasets=datasets,
        patients=patients,
        scores=scores,
        notes=tuple(table.notes),
        scheme=Scheme(tuple(attributes) or None, tuple(columns.age_edges)),
    )


class _Table:
    """The columns of a file."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise ValueError(f"{path} does not exist; wanted a table of predictions or a run folder")
        self.path, self.notes, self.decimal_commas = path, list[str](), False
        if path.suffix.lower() in (".csv", ".tsv", ".tab", ".txt"):
            self.problems = Problems(path)
            separator = tables.delimiter(path)
            self.decimal_commas = separator == ";"
            if self.decimal_commas:
                self.notes.append(f"{path.name} is separated by semicolons; commas in its numbers are decimal points")
            rows: Iterator[tuple[int, dict[str, Any]]] = tables.read_all(path, self.problems, separator=separator)
        else:
            found = forms.find(path, "")
            self.problems = found.problems()
            rows = found.read(self.problems)
        self.lines, self.columns = list[int](), dict[str, list[Any]]()
        for line, row in rows:
            for column in row:
                if column not in self.columns:
                    self.columns[column] = [None] * len(self.lines)
            for column, values in self.columns.items():
                values.append(row.get(column))
            self.lines.append(line)
        self.problems.raise_if_any()
        if not self.lines:
            raise ValueError(f"{path} has no rows; wanted one for each answer")

    def __len__(self) -> int:
        return len(self.lines)

    def text(self, column: str, *, require: bool = False) -> list[str]:
        """The values of a column as stripped text, blank where there is none."""
        found = [_text(value) for value in self.columns[column]]
        if require:
            for row, value in enumerate(found):
                if not value:
                    self.problems.add(self.lines[row], f"{column} is empty")
        return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return ", ".join(_text(part) for part in value)
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.0f}" if value.is_integer() else repr(value)
    return column_names.plain(value)


def _same(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _found(table: _Table, role: str, given: str, usual: Sequence[str]) -> str | None:
    """The column of a role: the one that is given, or the first of the usual names that is there."""
    known = collections.defaultdict[str, list[str]](list)
    for column in table.columns:
        known[_same(column)].append(column)
    for name in (given,) if given else usual:
        if name in table.columns:
            return name
        if len(found := known.get(_same(name), [])) > 1:
            raise ValueError(f"{table.path} has the columns {', '.join(found)}; wanted one: --{role} COLUMN")
        if found:
            return found[0]
    if given:
        raise ValueError(f"{table.path} has no column {given} for the {role}; it has {', '.join(table.columns)}")
    return None


def _attributes(table: _Table, given: Sequence[str]) -> dict[str, str]:
    """The column of each attribute."""
    chosen = dict[str, str]()
    for part in given or ATTRIBUTES:
        name, _, column = part.partition("=")
        usual = ATTRIBUTES.get(_same(name), ATTRIBUTES.get(name, (name,)))
        name = "sex" if _same(name) in ("sex", "gender") else "age" if _same(name) == "age" else name
        found = _found(table, f"attribute {name}", column, usual) if column else _found(table, "attributes", "", usual)
        if found is None and given:
            raise ValueError(
                f"{table.path} has no column for the attribute {name}; it has {', '.join(table.columns)}: "
                f"--attributes {name}=COLUMN"
            )
        if found is not None:
            chosen[name] = found
    if not chosen:
        table.notes.append(
            "there is no attribute of patients, so no groups are compared: --attributes, or --metadata FILE --on ID"
        )
    return chosen


def _codes(given: Sequence[str], chosen: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What codes mean, by attribute."""
    found = collections.defaultdict[str, dict[str, str]](dict)
    for code in given:
        left, equals, meaning = code.partition("=")
        name, dot, value = left.partition(".")
        if not (equals and dot) or name not in chosen:
            raise ValueError(
                f"got the code {code!r}; wanted ATTRIBUTE.CODE=MEANING, such as sex.1=M, for one of {', '.join(chosen)}"
            )
        found[name][value] = meaning
    return found


def _values(table: _Table, name: str, column: str, codes: Mapping[str, str], edges: Sequence[float]) -> list[Any]:
    """The values of an attribute, read strictly."""
    raw = [codes.get(value, value) for value in table.text(column)]
    read: Callable[[str], Any] = {"sex": _sex, "age": demographics.age}.get(name, lambda value: value)
    if name == "age" and table.decimal_commas:
        raw = [value.replace(",", ".") if re.fullmatch(r"\d+,\d+", value) else value for value in raw]
    known, wrong = dict[str, Any](), dict[str, str]()
    for value in dict.fromkeys(raw):
        try:
            known[value] = read(value)
        except ValueError as error:
            known[value], wrong[value] = None, str(error)
    if name == "age" and wrong:
        known, wrong = _bands(table, column, known, wrong, edges)
    for row, value in enumerate(raw):
        if value in wrong:
            table.problems.add(table.lines[row], f"{column}: {wrong[value]}")
    return [known[value] for value in raw]


def _sex(value: str) -> str | None:
    """``demographics.sex``, with other words as groups of their own; a number is a code that must be explained."""
    try:
        return demographics.sex(value)
    except ValueError:
        if re.fullmatch(r"[\d.,+-]+", value):
            raise ValueError(
                f"sex is {value!r}, a code; wanted F, M, female, male or unknown: --codes sex.{value}=F"
            ) from None
        return value


def _bands(
    table: _Table, column: str, known: dict[str, Any], wrong: Mapping[str, str], edges: Sequence[float]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Ages that are told in bands or words: groups as they are told, if all are; else an error.

    Raises:
        ValueError: if an edge of the age groups lies inside a band.
    """
    numbers = [value for value, years in known.items() if years is not None]
    words = [value for value in wrong if not re.search(r"\d", value)]
    if not numbers and len(words) == len(wrong):
        table.notes.append(f"{column} holds words ({', '.join(words[:9])}), which are taken as groups")
        return {value: value or None for value in known}, {}
    left, bands = dict[str, str](), dict[str, tuple[float, float]]()
    for value, complaint in wrong.items():
        try:
            band = demographics.age_band(value)
        except ValueError as error:
            band, complaint = None, str(error)
        if band is None:
            left[value] = complaint
        else:
            known[value] = demographics.within(band)
            bands[value] = band
    if cut := sorted(value for value, band in bands.items() if demographics.is_cut(band, edges)):
        whole = demographics.whole_edges(bands.values())
        better = f"edges from {', '.join(whole)} (--age-edges)" if whole else "ages in years"
        raise ValueError(
            f"{table.path}: {column} holds bands, and the edges {', '.join(f'{edge:g}' for edge in edges)} of the age "
            f"groups cut {', '.join(cut[:9])}; wanted {better}, or --attributes band={column}, which takes each band "
            "as a group"
        )
    return known, left


def _score(table: _Table, column: str, row: int) -> float:
    value = table.columns[column][row]
    text = _text(value)
    if not text or text.lower() in NO_ANSWER:
        return math.nan
    if table.decimal_commas:
        text = text.replace(",", ".")
    try:
        score = float(text)
    except ValueError:
        hint = "; write it with a decimal point" if re.fullmatch(r"\d+,\d+", text) else ""
        table.problems.add(table.lines[row], f"{column} is {text!r}; wanted a probability from 0 to 1{hint}")
        return math.nan
    if not 0 <= score <= 1:
        table.problems.add(table.lines[row], f"{column} is {text}; wanted a probability from 0 to 1")
    return score


def _require_different(ids: Sequence[str], column: str, table: _Table) -> None:
    first = dict[str, int]()
    for row, name in enumerate(ids):
        if name and first.setdefault(name, row) != row:
            table.problems.add(
                table.lines[row], f"{column} {name} is also on {table.problems.unit} {table.lines[first[name]]}"
            )


def _join(table: _Table, other: _Table, on: str) -> None:
    """Adds the columns of ``other`` that the table does not have, by a column that both have."""
    if not on:
        raise ValueError(
            f"got the metadata {other.path} and no --on COLUMN; wanted the column by which both are joined"
        )
    here, there = _found(table, "on", on, ()), _found(other, "on", on, ())
    keys = other.text(str(there), require=True)
    _require_different(keys, str(there), other)
    other.problems.raise_if_any()
    places = {key: row for row, key in enumerate(keys)}
    wanted = table.text(str(here), require=True)
    table.problems.raise_if_any()
    rows = [places.get(key) for key in wanted]
    missing = [key for key, row in zip(wanted, rows, strict=True) if row is None]
    if len(missing) == len(rows):
        raise ValueError(
            f"no {here} of {table.path} is in {other.path} ({', '.join(wanted[:3])}; {', '.join(keys[:3])}); wanted "
            "the same ids, written alike"
        )
    if missing:
        table.notes.append(
            f"{len(missing):,} of {len(rows):,} rows have no metadata, their attributes are unknown: "
            f"{', '.join(dict.fromkeys(missing[:10]))}{', ...' if len(missing) > 10 else ''}"
        )
    both = sorted(name for name in other.columns.keys() & table.columns.keys() if name != there)
    if both:
        table.notes.append(f"columns {', '.join(both)} are in both files; those of {table.path.name} are read")
    for name, values in other.columns.items():
        if name not in table.columns:
            table.columns[name] = [None if row is None else values[row] for row in rows]


def _alike(
    predictions: Sequence[str | None], labels: Sequence[str], columns: Columns, notes: list[str]
) -> tuple[list[str | None], list[str]]:
    """Predictions and labels in one spelling, with notes about answers that look as if they were spelled otherwise."""
    said, true = [*predictions], [*labels]
    stated = {text.strip().casefold() for text in columns.no_answer}
    said = [None if value is not None and value.casefold() in stated else value for value in said]
    different = {value for value in [*said, *true] if value is not None}
    if different and all(_is_number(value) for value in different):
        spelled = {value: _number(value) for value in different}
        if len(set(spelled.values())) < len(different):
            notes.append("labels are numbers: 1, 1.0 and 01 are one")
        said, true = [spelled[value] if value is not None else None for value in said], [spelled[x] for x in true]
    if columns.ignore_case:
        said, true = [value.casefold() if value is not None else None for value in said], [x.casefold() for x in true]
    known = set(true) | {part.strip() for label in set(true) for part in label.split(",")}
    plain = {_same(label): label for label in known}
    strange = collections.Counter(
        value for value in said if value is not None and value not in known and not {*value.split(", ")} <= known
    )
    for value, count in strange.most_common(20):
        if value.casefold() in NO_ANSWER:
            notes.append(
                f"{count:,} predictions are {value!r}, which is no label: a wrong answer; if the model gave none: "
                f"--no-answer {value!r}"
            )
        elif (meant := plain.get(_same(value))) is not None:
            notes.append(
                f"{count:,} predictions are {value!r}, and the label is {meant!r}: a wrong answer; --ignore-case"
            )
    if strange:
        listed = ", ".join(f"{value[:40]!r} ({count:,})" for value, count in strange.most_common(5))
        notes.append(f"{strange.total():,} predictions are the label of no record, and count as wrong: {listed}")
    if failed := sum(value is None for value in said):
        notes.append(f"{failed:,} of {len(said):,} records have no answer; they count as wrong, and are shown by group")
    return said, true


def _number(value: str) -> str:
    """One spelling of equal numbers, with all of their digits.

    >>> [_number(value) for value in ("1234561", "01", "1.50", "-0", "1e3")]
    ['1234561', '1', '1.5', '0', '1000']
    """
    plain = f"{decimal.Decimal(value):f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain == "-0" else plain


def _is_number(value: str) -> bool:
    try:
        number = decimal.Decimal(value)
    except decimal.InvalidOperation:
        return False
    return number.is_finite() and abs(number.adjusted()) < 400
