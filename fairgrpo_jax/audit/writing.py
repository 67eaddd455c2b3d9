"""The files of an audit beside its page: every number as JSON, the groups as a tidy table, answers for other tools."""

import csv
import hashlib
import importlib.metadata
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax import __version__, demographics
from fairgrpo_jax.audit.coding import UNKNOWN
from fairgrpo_jax.audit.records import Records


TIDY = ("model", "dataset", "attribute", "group", "n", "patients", "small", "known", "reference", "figure", "value")
TIDY += ("low", "high", "difference", "difference_low", "difference_high", "ratio", "ratio_low", "ratio_high")
TIDY += ("detectable",)


def tidy(model: str, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each group and figure, with the columns of ``TIDY``."""
    rows = []
    for group in groups:
        head = {name: group[name] for name in ("dataset", "attribute", "n", "patients", "small", "known", "reference")}
        for figure, told in group["figures"].items():
            row = dict.fromkeys(TIDY) | {"model": model} | head | {"group": group["name"], "figure": figure}
            row |= {name: told[name] for name in ("value", "low", "high", "detectable")}
            for name in ("difference", "ratio"):
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), told[name] or (None,) * 3, strict=True))
            rows.append(row)
    return rows


def tidy_pool(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds in the form of ``tidy``: the model is ``"all seeds"``, its interval the one between seeds."""
    heads = [{"model": "all seeds"} | {name: row[name] for name in ("dataset", "attribute", "small")} for row in rows]
    values = [
        {"group": row["name"], "figure": row["figure"], "value": row["mean"], "low": row["low"], "high": row["high"]}
        for row in rows
    ]
    return [dict.fromkeys(TIDY) | head | value for head, value in zip(heads, values, strict=True)]


def answers(records: Records, *, identified: bool = False) -> list[dict[str, Any]]:
    """One row for each record, as fairlearn and fairmedfm take them: label, prediction, score, group by attribute.

    Ages leave as groups, and neither ids nor patients leave unless ``identified``.
    """
    groups = {
        name: [demographics.group(name, value, records.scheme) or UNKNOWN for value in values]
        for name, values in records.attributes.items()
    }
    rows = []
    for row, label in enumerate(records.labels):
        found: dict[str, Any] = {}
        if identified:
            found |= {
                "id": records.ids[row] if records.ids else row,
                "patient": (records.patients or range(row + 1))[row],
            }
        said = records.predictions[row]
        found |= {"dataset": records.datasets[row], "label": label, "prediction": "" if said is None else said}
        if records.scores is not None:
            found["score"] = records.scores[row]
        rows.append(found | {name: values[row] for name, values in groups.items()})
    return rows


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Rows of one form as CSV; a cell that a spreadsheet would take for a formula begins with an apostrophe.

    >>> as_csv([{"prediction": "=1+1", "value": -0.5, "high": None}])
    "prediction,value,high\n'=1+1,-0.5,\n"
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([_cell(value) for value in row.values()])
    return file.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str) and value[:1] in ("=", "+", "@", "\t", "\r") or value == "-":
        return f"'{value}"
    return value


def as_json(value: Any) -> str:
    """JSON that every reader takes: numbers that are not finite are null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def provenance(sources: Sequence[str]) -> dict[str, Any]:
    """What made an audit: versions, and a digest of each file."""
    names = ("numpy", "scipy")
    digests = {
        source: hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in sources if Path(source).is_file()
    }
    return (
        {"fairgrpo_jax": __version__} | {name: importlib.metadata.version(name) for name in names} | {"sha256": digests}
    )
