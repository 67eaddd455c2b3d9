"""The page of an audit: one HTML file that needs no network, no script, and fits a phone, a printer and the dark."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from fairgrpo_jax import demographics, metrics
from fairgrpo_jax.audit import sentences
from fairgrpo_jax.audit.checklist import Item
from fairgrpo_jax.audit.coding import UNKNOWN
from fairgrpo_jax.audit.records import Records
from fairgrpo_jax.audit.settings import Settings
from fairgrpo_jax.demographics import JOINT


SHOWN = ("f1", "tpr", "fpr", "precision", "similarity")  # beside the main figure; with a positive class, its rates
EXAMPLES, LONGEST = 3, 300  # wrong answers of a group, and characters of one


def render(
    title: str,
    models: Sequence[tuple[Records, Mapping[str, Any]]],
    *,
    figure: str,
    settings: Settings,
    compared: Sequence[Mapping[str, Any]] = (),
    together: Sequence[Mapping[str, Any]] = (),
    items: Sequence[Item] = (),
    notes: Sequence[str] = (),
    made: Mapping[str, Any] | None = None,
    identified: bool = False,
    pictures: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The page as text.

    Args:
        title: its heading.
        models: the records of each model and what ``audit.examine`` found.
        figure: the main figure, which is plotted.
        settings: how the audit was made.
        compared: rows of ``audit.compare``.
        together: rows of ``pooled.pool``, if the models are seeds of one method.
        items: of ``checklist.tripod``.
        notes: about what was read and left out.
        made: of ``writing.provenance``.
        identified: whether examples of wrong answers name their records.
        pictures: by model and record, ``data:`` URLs of those of ``examples``.
    """
    shown = pictures or {}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": sentences.number,
        "p": sentences.probability,
        "interval": sentences.interval,
        "words": sentences.words,
        "between": sentences.between,
    }
    return environment.get_template("audit.html.jinja").render(
        title=title,
        models=[
            _model(records, found, figure, settings, identified, shown.get(records.name, {}))
            for records, found in models
        ],
        figure=figure,
        settings=settings,
        compared=_compared(compared, figure),
        seeds=_seeds(together, figure),
        seeds_short=sentences.of_seeds(together, figure),
        items=items,
        notes=notes,
        made=made or {},
        identified=identified,
        num_texts=len({(m.name, row) for m, _ in models if m.texts for row in examples(m)}),
        num_pictures=sum(map(len, shown.values())),
    )


def examples(records: Records) -> list[int]:
    """The places of the wrong answers that the page shows as examples, some of each group."""
    return sorted({row for rows in _wrong_rows(records).values() for row in _picked(rows)})


def _picked(rows: Sequence[int]) -> list[int]:
    return [int(row) for row in np.random.default_rng(0).permutation(rows)[:EXAMPLES]]


def _model(
    records: Records,
    found: Mapping[str, Any],
    figure: str,
    settings: Settings,
    identified: bool,
    pictures: Mapping[str, str],
) -> dict[str, Any]:
    wrong = _wrong(records, identified, pictures)
    parts = []
    for dataset in found["datasets"]:
        name = dataset["dataset"]
        groups = [row for row in found["groups"] if row["dataset"] == name]
        gaps = [row for row in found["gaps"] if row["dataset"] == name]
        there = [key for key in (figure, *SHOWN) if key in groups[0]["figures"]]
        if settings.positive is not None and "selection_rate" in groups[0]["figures"]:
            there += ["selection_rate", "true_positive_rate", "false_positive_rate", "positive_predictive_value"]
        single = [key for key in dict.fromkeys(row["attribute"] for row in groups) if key not in ("all", JOINT)]
        forests = []
        for attribute in dict.fromkeys(row["attribute"] for row in groups if row["attribute"] != "all"):
            rows = [row for row in groups if row["attribute"] == attribute]
            gap = next(row for row in gaps if row["attribute"] == attribute and row["figure"] == figure)
            forests.append(
                {
                    "attribute": sentences.called(attribute, single),
                    "rows": [groups[0], *rows],
                    "words": sentences.of_gap(gap, groups, settings.level),
                    "worst": gap["worst"] if (gap["p_adjusted"] or 1) <= 1 - settings.level else None,
                    "wrong": [
                        (row["name"], count, pairs, texts)
                        for row in rows
                        if (told := wrong.get((name, attribute, row["name"])))
                        for count, pairs, texts in [told]
                    ],
                }
            )
        parts.append(
            dataset
            | {
                "groups": groups,
                "figures": list(dict.fromkeys(there)),
                "forests": forests,
                "attributes": single,
                "gaps": [row | {"by": sentences.called(row["attribute"], single)} for row in gaps],
                "calibration": [row for row in found["calibration"] if row["dataset"] == name],
            }
        )
    return {
        "name": records.name,
        "short": sentences.short(found, figure, settings.level),
        "notes": records.notes,
        "datasets": parts,
        "permutations": found["permutations"],
        "published": found["published"],
    }


def _wrong_rows(records: Records) -> dict[tuple[str, str, str], list[int]]:
    """The places of the wrong answers of each dataset, attribute and group."""
    of: dict[tuple[str, str, str], list[int]] = collections.defaultdict(list)
    wrong = [row for row, label in enumerate(records.labels) if not _right(records.predictions[row], label)]
    for attribute, values in records.attributes.items():
        named = {value: demographics.group(attribute, value, records.scheme) or UNKNOWN for value in set(values)}
        for row in wrong:
            of[records.datasets[row], attribute, named[values[row]]].append(row)
    return of


def _wrong(
    records: Records, identified: bool, pictures: Mapping[str, str]
) -> dict[tuple[str, str, str], tuple[int, list[Any], list[Any]]]:
    """Wrong answers of each dataset, attribute and group: how many, the most frequent ones, some completions."""
    found = {}
    for key, rows in _wrong_rows(records).items():
        pairs = collections.Counter((records.labels[row], records.predictions[row]) for row in rows)
        common = [
            (_cut(label), None if said is None else _cut(said), n) for (label, said), n in pairs.most_common(EXAMPLES)
        ]
        texts: list[tuple[str, str, str, str]] = []
        if records.texts is not None:
            for row in _picked(rows):
                name = str(records.ids[row]) if records.ids else ""
                told = _cut(records.labels[row]), _cut(records.texts[row].strip() or "(blank)")
                texts.append((name if identified else "", *told, pictures.get(name, "")))
        found[key] = (len(rows), common, texts)
    return found


def _right(said: str | None, label: str) -> bool:
    return said == label or metrics.label_set(said) == metrics.label_set(label)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _compared(rows: Sequence[Mapping[str, Any]], figure: str) -> list[dict[str, Any]]:
    """Tables of differences between models: one for each pair and dataset."""
    tables: dict[tuple[str, str, str], list[Mapping[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        if row["figure"] == figure and row["difference"] is not None:
            tables[row["model"], row["against"], row["dataset"]].append(row)
    return [
        {"model": model, "against": against, "dataset": dataset, "rows": found}
        for (model, against, dataset), found in tables.items()
    ]


def _seeds(rows: Sequence[Mapping[str, Any]], figure: str) -> dict[str, list[dict[str, Any]]]:
    """By dataset, the rows of the main figure, each with the means of the other figures shown beside it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["figure"] == figure:
            key = [row[name] for name in ("dataset", "attribute", "group")]
            beside = [r for r in rows if [r[name] for name in ("dataset", "attribute", "group")] == key]
            others = {r["figure"]: r for r in beside if r["figure"] in SHOWN and r["figure"] != figure}
            its = dict.fromkeys(r["attribute"] for r in rows if r["dataset"] == row["dataset"])
            by = sentences.called(row["attribute"], [name for name in its if name not in ("all", JOINT)])
            found.setdefault(row["dataset"], []).append(dict(row) | {"others": others, "by": by})
    return found
