"""Experts' annotations of videos to questions and answers in the form of MedVidBench.

    python -m fairgrpo_jax.data construct cholect50=CholecT50 --out OUT --dry-run
    python -m fairgrpo_jax.data construct cholect50=CholecT50 avos=AVOS --out OUT --similarity all-MiniLM-L6-v2
        --first.url URL --first.model NAME --first.key-variable KEY --second.url URL --second.model NAME

Run again, it goes on where it stopped: what a model has answered is in OUT/answers.sqlite, and is not paid twice. See
docs/medgrpo.md.
"""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from fairgrpo_jax import commandline, files
from fairgrpo_jax.construct import annotated, pairs
from fairgrpo_jax.construct.pairs import First, Read, Report, Rules, Second
from fairgrpo_jax.construct.written import Text
from fairgrpo_jax.rewards.endpoint import Endpoint
from fairgrpo_jax.rewards.similarity import measure
from fairgrpo_jax.tracking.progress import Progress


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of ``construct``."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """NAME=FOLDER, once or more: cholect50, avos, or package.module:function of your own."""
    out: Path
    """Folder for train.json, validation.json, construct.json, the models' answers, and links to the frames."""
    rules: Rules = Rules()
    first: First = First()
    second: Second = Second()
    similarity: Path | None = None
    """Folder of the sentence encoder that compares the two texts; default: the F1 of their words."""
    dry_run: bool = False
    """Say what would be asked and what it would cost, and ask nobody."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 0, or 1 if some texts are lacking."""
    prog = "python -m fairgrpo_jax.data construct"
    return run(commandline.cli(Arguments, [*arguments], None, prog, __doc__ or ""))


def run(told: Arguments) -> int:
    """Does what the command line says.

    Raises:
        ValueError: from the sources, the options or the models.
    """
    sources = _read(told.sources)
    pairs.sides(sources, told.rules)
    counts, left_out = Counter[str](), Counter[str]()
    sizes: list[int] = []  # tokens of what is to be written
    for source in sources:
        for found in pairs.questions(source, told.rules, left_out):
            counts[found.task if isinstance(found, Text) else found.kind] += 1
            sizes += [found.tokens] if isinstance(found, Text) else []
    videos = sum(len(source.videos) for source in sources)
    print(f"{videos} videos, {counts.total()} questions: {_listed(counts)}; {len(sizes)} of them by two models")
    writers = (told.first, told.second)
    estimates = [pairs.estimate(sizes, writer) for writer in writers] if sizes else []
    for writer, expected in zip(writers, estimates, strict=False):
        print(
            f"{writer.section}, estimated: {expected.calls} calls, {expected.tokens_in} tokens in, at most "
            f"{expected.most_tokens_out} out, at most {expected.most_cost:.2f} in the currency of its prices, less "
            "what is answered already, more what is asked again"
        )
    if told.dry_run:
        return 0
    if sizes:
        _require_two(told)
    files.require_writable(told.out)
    opened = [
        Endpoint(dataclasses.replace(writer, cache=writer.cache or told.out / "answers.sqlite"))
        for writer in (writers if sizes else ())
    ]
    try:
        alike = measure(told.similarity, option="--similarity") if sizes else None
        with Progress(max(len(sizes), 1), "construct") as progress:
            report = pairs.write(sources, told.out, told.rules, opened, alike, progress=progress)
        counted = {one.options.section: one.counts() | {"billed": one.billed()._asdict()} for one in opened}
    finally:
        for one in opened:
            one.close()
    _tell(report, counted)
    summary = _summary(told, report, counted) | {"estimated": [expected._asdict() for expected in estimates]}
    files.write(told.out / "construct.json", json.dumps(summary, indent=1, default=str) + "\n")
    print(
        f"{told.out}: load with --data.name medvidbench --data.root {told.out} --data.options "
        '"annotations={split}.json"'
    )
    return 1 if report.failed else 0


def _read(named: Sequence[str]) -> list[Read]:
    sources = []
    for word in named:
        name, equals, folder = word.partition("=")
        if not equals or not name or not folder:
            raise ValueError(f"got {word!r}; wanted NAME=FOLDER, such as cholect50=CholecT50")
        sources.append(Read(Path(folder), annotated.read(name, Path(folder))))
    kinds = [source.videos[0].source for source in sources]
    if not sources or len({*kinds}) < len(kinds):
        raise ValueError(f"got the sources {kinds}; wanted one or more, each once")
    return sources


def _require_two(told: Arguments) -> None:
    """Two models of two names: the agreement of a model with itself says nothing."""
    for writer in (told.first, told.second):
        if not writer.model:
            tasks = " ".join(task for task in told.rules.tasks if task not in pairs.WRITTEN)
            raise ValueError(
                f"got no {writer.section}.model; wanted a model that sees pictures, or none of the texts: "
                f"--rules.tasks {tasks}"
            )
    if told.first.model == told.second.model or told.first.name == told.second.name:
        raise ValueError(
            f"got first.model={told.first.model!r} and second.model={told.second.model!r}, in qa_type "
            f"{told.first.name} and {told.second.name}; wanted two models of two names"
        )


def _tell(report: Report, counted: dict[str, dict[str, Any]]) -> None:
    for side in pairs.SPLITS:
        its = Counter({kind: n for (split, kind), n in report.written.items() if split == side})
        print(f"{side}: {its.total()} rows: {_listed(its)}")
    for (task, reason), n in sorted(report.dropped.items()):
        print(f"dropped: {n} of {task}: {reason}")
    for reason, n in report.left_out.items():
        if n:
            print(f"left out: {n} {reason}")
    for (section, reason), n in sorted(report.failed.items()):
        print(f"no text: {n} of {section}: {reason}; the same command asks for these again, and for no others")
    for section, its in counted.items():
        billed = its["billed"]
        print(
            f"{section}: {its['calls']:.0f} calls, {its['tokens_in']:.0f} tokens in, {its['tokens_out']:.0f} out, "
            f"{its['cost']:.2f} in the currency of its prices; {its['cache_hits']:.0f} answered before; over all runs "
            f"{billed['calls']} calls, {billed['tokens_in']} tokens in, {billed['tokens_out']} out"
        )


def _summary(told: Arguments, report: Report, counted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    def nested(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
        return {a: {b: n for (own, b), n in counts.items() if own == a} for a in dict.fromkeys(a for a, _ in counts)}

    alike = {
        task: dict(zip(("p5", "p25", "p50", "p75", "p95"), np.percentile(found, (5, 25, 50, 75, 95)), strict=True))
        for task, found in report.similarity.items()
    }
    return {
        "sources": [*told.sources],
        "rules": dataclasses.asdict(told.rules),
        "models": {w.section: {"model": w.model, "url": w.url, "name": w.name} for w in (told.first, told.second)},
        "similarity": {"encoder": told.similarity, "of": alike},
        "written": nested(report.written),
        "dropped": nested(report.dropped),
        "failed": nested(report.failed),
        "left_out": {reason: n for reason, n in report.left_out.items() if n},
        "counted": counted,
    }


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
