r"""``python -m fairgrpo_jax.evaluate``: for whom does a model fail?

    python -m fairgrpo_jax.evaluate predictions.csv --prediction answer --label truth --attributes sex age --patient mrn
    python -m fairgrpo_jax.evaluate predictions.parquet --metadata people.csv --on study_id
    python -m fairgrpo_jax.evaluate outputs/RUN
    python -m fairgrpo_jax.evaluate --model.path MODEL --data.name slake --data.root DATA --samples 8
    python -m fairgrpo_jax.evaluate ours.csv theirs.csv --id study_id
    python -m fairgrpo_jax.evaluate outputs/study/seed*/grpo --pool
    python -m fairgrpo_jax.evaluate medvidbench --model.path MODEL --data.root DIR --submission FILE

Reads the answers of any model, or of a run of this library, and writes a page (report.html), every number
(metrics.json), one row a group and figure (groups.csv), the answers with groups for other tools (predictions.csv), and
a section for a model card (model-card.md). Several inputs are compared on the records that all have; with --pool they
are seeds of one method, and get means and intervals between the seeds. No accelerator and
no model is needed, but for --model.path: any checkpoint folder then answers the held-out records of a dataset first,
with any option of a run (--preset NAME, --workdir DIR, --mesh 4x1), and goes on after any stop; --samples K sampled
answers beside the greedy one give its score. --submission answers a board's questions instead. A ten-minute guide:
docs/evaluation.md.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax import demographics, files, processes
from fairgrpo_jax.audit import figures, pooled, reading, records as kept, runs, sentences
from fairgrpo_jax.audit.multiplicity import ADJUSTMENTS
from fairgrpo_jax.audit.settings import Settings


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m fairgrpo_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="table of predictions, or a run folder")
    columns = made.add_argument_group(
        "columns of a table", "Found by their usual names if not given; names are compared without case and blanks."
    )
    columns.add_argument("--prediction", default="", metavar="COL", help="the model's answer; blank = no answer")
    columns.add_argument("--label", default="", metavar="COL", help="the right answer")
    columns.add_argument(
        "--attributes", nargs="+", default=(), metavar="NAME", help="sex age race ..., or NAME=COLUMN for another name"
    )
    columns.add_argument("--patient", default="", metavar="COL", help="the patient; records of one are not independent")
    columns.add_argument(
        "--score", default="", metavar="COL", help="probability of --positive, or that the answer is right"
    )
    columns.add_argument("--dataset", default="", metavar="COL", help="the dataset, if there are several")
    columns.add_argument("--id", default="", metavar="COL", help="the record; needed to compare two models")
    columns.add_argument("--metadata", type=Path, metavar="FILE", help="a second table, with the attributes")
    columns.add_argument("--on", default="", metavar="COL", help="the column by which both tables are joined")
    columns.add_argument(
        "--codes", nargs="+", default=(), metavar="CODE", help="what codes mean: sex.1=M sex.2=F sex.9= (unknown)"
    )
    columns.add_argument("--no-answer", nargs="+", default=(), metavar="TEXT", help="predictions that mean no answer")
    columns.add_argument("--ignore-case", action="store_true", help="Yes and yes are one answer")
    how = made.add_argument_group("the audit")
    how.add_argument(
        "--age-edges", nargs="+", type=float, metavar="YEARS", help="upper edges of the age groups (25 50 75)"
    )
    how.add_argument("--positive", metavar="LABEL", help="the class whose rates are wanted by themselves, such as yes")
    how.add_argument(
        "--reference", nargs="+", default=(), metavar="NAME=GROUP", help="compare with sex=M; else the largest group"
    )
    how.add_argument(
        "--figure", default="top1", choices=list(figures.FIGURES), help="the figure that is plotted (%(default)s)"
    )
    how.add_argument("--least", type=int, default=30, metavar="N", help="patients of a group to compare (%(default)s)")
    how.add_argument("--adjust", default="holm", choices=list(ADJUSTMENTS), help="of p values (%(default)s)")
    how.add_argument("--level", type=float, default=0.95, help="coverage of intervals (%(default)s)")
    how.add_argument("--resamples", type=int, default=1000, help="of the patients (%(default)s)")
    how.add_argument("--permutations", type=int, default=1000, help="at least, for tests (%(default)s)")
    how.add_argument("--seed", type=int, default=0, help="of both (%(default)s)")
    how.add_argument(
        "--pool", action="store_true", help="the inputs are seeds of one method: means, and intervals between seeds"
    )
    how.add_argument("--step", type=int, help="of a run's evaluation; the last")
    out = made.add_argument_group("output")
    out.add_argument("--out", type=Path, metavar="DIR", help="a folder beside the input, NAME-audit, if not given")
    out.add_argument("--title", default="", help="heading of the report")
    out.add_argument("--checklist", choices=["tripod"], help="what TRIPOD+AI and others ask, answered and missing")
    out.add_argument(
        "--images", action="store_true", help="pictures of some wrong answers, from a run's dataset, go into the page"
    )
    out.add_argument("--with-ids", action="store_true", help="ids and patients leave into predictions.csv and the page")
    return made


Pictures = Callable[[Path, Sequence[str]], Mapping[str, str]]


def main(arguments: Sequence[str] | None = None, pictures: Pictures | None = None) -> None:
    """Runs the command; errors of the user are one line and status 2.

    Args:
        arguments: of the command line.
        pictures: gives ``data:`` URLs of some records of a run folder, for ``--images``.
    """
    given = parser().parse_args(arguments)
    with processes.until_nobody_reads():
        with _told():
            folder = run(given, pictures)
        print(f"\n{folder / 'report.html'}")


def check(arguments: Sequence[str]) -> None:
    """Ends as ``main`` does if something is wrong with its arguments, before there are answers to audit."""
    given = parser().parse_args(arguments)
    with _told():
        checked(given)
        if given.out is not None:
            files.require_writable(given.out)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Prints what is wrong as one line, and ends with status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def run(given: argparse.Namespace, pictures: Pictures | None = None) -> Path:
    """Reads, audits, compares, prints the findings and writes the files; returns the folder.

    Raises:
        ValueError: for whatever is wrong with the input.
    """
    settings = checked(given)
    if given.images and (tables := [path for path in given.inputs if not path.is_dir()]):
        raise ValueError(f"got --images for {tables[0]}; wanted run folders: a table of predictions has no images")
    models = _read(given)
    for model in models:
        print(f"{model.source}: {len(model):,} records")
        print("".join(f"  {note}\n" for note in model.notes), end="", flush=True)
    notes = pooled.comparable(models) if given.pool else []
    found, compared, further = _audited(models, settings, compare=not given.pool)
    notes += further
    together = (
        pooled.pool({m.name: its for m, its in zip(models, found, strict=True)}, given.level) if given.pool else []
    )
    for model, its in zip(models, found, strict=True):
        if _figure(given.figure, its) != given.figure:
            notes.append(
                f"{model.name}: there are too many classes for {given.figure}; the share exactly right is shown"
            )
    if together:
        figure = _figure(given.figure, {"groups": [row for its in found for row in its["groups"]]})
        print("".join(f"  {line}\n" for line in sentences.of_seeds(together, figure)), end="")
    for model, its in zip(models, found, strict=True) if not given.pool else ():
        figure = _figure(given.figure, its)
        print(
            f"\n{model.name}\n" + "".join(f"  {line}\n" for line in sentences.short(its, figure, settings.level)),
            end="",
        )
    print("".join(f"  {note}\n" for note in notes), end="")
    first = given.inputs[0].resolve()
    folder = given.out or first.parent / f"{first.stem if first.is_file() else first.name}-audit"
    shown = dict[str, Mapping[str, str]]()
    if given.images and pictures is not None:
        from fairgrpo_jax.audit import page

        for path, model in zip(given.inputs, models, strict=True):
            uids = [str((model.ids or ())[row]) for row in page.examples(model)]
            shown[model.name] = pictures(path, uids)
    _write(folder, given, models, found, compared, together, notes, settings, shown)
    return folder


def checked(given: argparse.Namespace) -> Settings:
    """How to audit, after a look at all that can be wrong before there are answers.

    Raises:
        ValueError: for an option out of its range, or options that do not go together.
    """
    demographics.age_bins([0.0], given.age_edges or demographics.EDGES)
    if given.on and given.metadata is None:
        raise ValueError(f"got --on {given.on} without --metadata FILE; wanted the table that is joined by it")
    if given.step is not None and (tables := [path for path in given.inputs if path.is_file()]):
        raise ValueError(f"got --step for {tables[0]}; wanted run folders: a table of predictions has no steps")
    if given.out is not None and given.out.exists() and not given.out.is_dir():
        raise ValueError(f"got --out {given.out}, which is a file; wanted a folder")
    reference = {}
    for text in given.reference:
        name, equals, group = text.partition("=")
        if not equals:
            raise ValueError(f"got the reference {text!r}; wanted ATTRIBUTE=GROUP, such as sex=M")
        reference[name] = group
    if given.figure in figures.POSITIVE and given.positive is None:
        raise ValueError(f"got --figure {given.figure} without --positive; wanted the class that it is of, such as yes")
    return Settings(
        positive=given.positive,
        reference=reference,
        least=given.least,
        level=given.level,
        num_resamples=given.resamples,
        num_permutations=given.permutations,
        adjust=given.adjust,
        seed=given.seed,
    )


def _read(given: argparse.Namespace) -> list[kept.Records]:
    edges = tuple(given.age_edges or demographics.EDGES)
    options: dict[str, Any] = vars(given) | {"age_edges": edges}
    columns = reading.Columns(**{field.name: options[field.name] for field in dataclasses.fields(reading.Columns)})
    names = [path.resolve().stem if path.is_file() else path.resolve().name for path in given.inputs]
    if len(set(names)) < len(names):
        names = [str(path) for path in given.inputs]
        if len(set(names)) == len(names):  # seed0/grpo, seed1/grpo
            resolved = [path.resolve() for path in given.inputs]
            names = [str(path.relative_to(os.path.commonpath(resolved))) for path in resolved]
    if len(set(names)) < len(names):
        raise ValueError(f"got an input twice: {', '.join(names)}; wanted different ones")
    found = []
    for path, name in zip(given.inputs, names, strict=True):
        if path.is_dir():
            if not runs.is_run(path):
                raise ValueError(f"{path} has no evals/; wanted a run folder, or a table of predictions")
            model = runs.read(path, given.step, name=name)
            scheme = dataclasses.replace(model.scheme, age_edges=edges) if given.age_edges else model.scheme
            found.append(dataclasses.replace(model, scheme=scheme))
        else:
            found.append(reading.read(path, columns, name=name))
    return found


def _audited(
    models: Sequence[kept.Records], settings: Settings, *, compare: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Every model by itself, and all against the first on the records that they share."""
    from fairgrpo_jax import audit

    found = [
        audit.examine(
            model.predictions,
            model.labels,
            model.attributes,
            datasets=model.datasets,
            patients=_units(model),
            scores=model.scores,
            settings=dataclasses.replace(settings, scheme=model.scheme),
        )
        for model in models
    ]
    if len(models) < 2 or not compare:
        return found, [], []
    common, notes = kept.matched(models)
    first = common[0]
    compared = audit.compare(
        {model.name: model.predictions for model in common},
        first.labels,
        first.attributes,
        datasets=first.datasets,
        patients=_units(first),
        settings=dataclasses.replace(settings, scheme=first.scheme),
    )
    return found, compared, notes


def _units(model: kept.Records) -> list[tuple[str, str]] | None:
    """Patients, unique over datasets."""
    return None if model.patients is None else list(zip(model.datasets, model.patients, strict=True))


def _figure(wanted: str, found: dict[str, Any]) -> str:
    """The main figure; exactly right, where another is not had."""
    there = all(wanted in row["figures"] for row in found["groups"])
    return wanted if there else "top1"


def _write(
    folder: Path,
    given: argparse.Namespace,
    models: Sequence[kept.Records],
    found: Sequence[dict[str, Any]],
    compared: Sequence[dict[str, Any]],
    together: Sequence[dict[str, Any]],
    notes: Sequence[str],
    settings: Settings,
    pictures: Mapping[str, Mapping[str, str]],
) -> None:
    from fairgrpo_jax.audit import checklist, page, writing

    files.require_writable(folder)
    made = writing.provenance([*(model.source for model in models), *([str(given.metadata)] if given.metadata else [])])
    pairs = list(zip(models, found, strict=True))
    figure = _figure(given.figure, {"groups": [row for its in found for row in its["groups"]]})
    items = []
    if given.checklist:
        items = checklist.tripod(found[0], patients=models[0].patients is not None, several=len(models) > 1)
        files.write(folder / "checklist.md", checklist.markdown(items))
    title = given.title or " and ".join(model.name for model in models)
    page_text = page.render(
        title,
        pairs,
        figure=figure,
        settings=settings,
        compared=compared,
        together=together,
        items=items,
        notes=notes,
        made=made,
        identified=given.with_ids,
        pictures=pictures,
    )
    files.write(folder / "report.html", page_text)
    numbers = {"made": made, "settings": dataclasses.asdict(settings), "models": {m.name: its for m, its in pairs}}
    numbers |= {"compared": compared, "notes": notes} | ({"pooled": together} if together else {})
    files.write(folder / "metrics.json", writing.as_json(numbers))
    rows = [row for model, its in pairs for row in writing.tidy(model.name, its["groups"])]
    rows += writing.tidy_pool(together)
    files.write(folder / "groups.csv", writing.as_csv(rows))
    for place, model in enumerate(models):
        name = "predictions.csv" if place == 0 else f"predictions-{place + 1}.csv"
        files.write(folder / name, writing.as_csv(writing.answers(model, identified=given.with_ids)))
    cards = [sentences.card(model.name, its, figure, settings) for model, its in pairs]
    if together:
        cards = [sentences.card_of_seeds(title, together, figure, settings)]
    files.write(folder / "model-card.md", "\n".join(cards))
