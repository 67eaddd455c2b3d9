"""Answers the held-out records of a dataset with any checkpoint folder, for an audit; goes on after any stop.

Answers are greedy, each with the ``probability`` of its first token, given what the model wrote before it. With
``samples``, so many further ones are drawn of each record, and the share of them that agrees with the greedy one is its
``confidence``. An audit takes the share as a score, where there is one, and else the probability.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax import (
    answers,
    commandline,
    config as options,
    configs,
    files,
    mesh,
    processes,
    programs,
    runs,
    tracking,
)
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.rewards import accuracy


AT_ONCE = 4  # batches between two notes of what is done


def answer(config: options.Config, folder: Path, *, samples: int = 0) -> None:
    """Writes ``evals/000000.jsonl`` of a folder, the form of a run's evaluation.

    What is done is in ``evals/000000.part`` until all is; the same call goes on from there.

    Args:
        config: model, data, sizes; nothing is trained.
        folder: new, or of an earlier call with the same options.
        samples: sampled answers of each record beside the greedy one, at ``sampling.temperature``.

    Raises:
        ValueError: from opening the run, or if the records are others than those of the earlier call.
    """
    path = folder / "evals" / "000000.jsonl"
    if samples < 0:
        raise ValueError(f"got samples={samples}; wanted a number of sampled answers, or 0")
    with runs.open_run(config, folder) as run:
        records = run.sources["test"].records
        draft = path.with_suffix(".part")
        done = len(records) if path.is_file() else _kept(draft, records)
        if done == len(records) and path.is_file():
            return
        path.parent.mkdir(exist_ok=True)
        params = answers.sampler(run.initial_params(), run.config.sampling)
        step = AT_ONCE * run.config.evaluation.batch
        with tracking.Progress(len(records), "answers", start=done, every=step) as progress, draft.open("ab") as file:
            progress.note("the first batch compiles its program")
            for first in range(done, len(records), step):
                if run.stop:
                    print(f"stopped after {first} of {len(records)} records; the same command goes on", file=sys.stderr)
                    raise SystemExit(128 + (run.stop.signal or 0))
                rows = _rows(run, params, records[first : first + step], first, samples)
                file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
                files.sync(file)
                progress.update(first + len(rows), {})
        draft.replace(path)


def _rows(run: runs.Run, params: Any, records: Sequence[Record], first: int, samples: int) -> list[dict[str, Any]]:
    """Greedy answers to some records, with the share of sampled ones that agree."""
    temperatures = [0.0] + [run.config.sampling.temperature] * samples
    drawn = [
        answers.answer(
            params,
            records,
            pool=run.pool,
            config=run.config,
            scorer=run.scorer,
            devices=run.mesh,
            key=run.key(f"answers {number}", first),
            temperatures=(temperature,),
            sizes=[run.sizes[record.uid] for record in records],
            probabilities=number == 0,
        )[0]
        for number, temperature in enumerate(temperatures)
    ]
    rows: list[dict[str, Any]] = [dict(row) for row in drawn[0]]
    for place, row in enumerate(rows):
        if samples:
            said = [other[place]["prediction"] for other in drawn[1:]]
            agree = sum(accuracy.same_labels(text, row["prediction"]) for text in said)
            row |= {"samples": said, "confidence": agree / samples}
    return rows


def _kept(draft: Path, records: Sequence[Record]) -> int:
    """How many records are answered; what a killed process left half written is cut off."""
    if not draft.is_file():
        return 0
    text = draft.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    names = [json.loads(line)["uid"] for line in whole.splitlines()]
    if names != [record.uid for record in records[: len(names)]]:
        raise ValueError(
            f"{draft} has answers to other records; wanted the dataset it began with, or another --workdir"
        )
    if len(whole) < len(text):
        with files.replacing(draft) as file:
            file.write(whole)
    return len(names)


def main(argv: Sequence[str]) -> Path:
    """Parses options of a run, answers, and returns the folder.

    ``--preset NAME`` (by default ``mine``), ``--workdir DIR``, ``--samples K``, and any option of a run.
    """
    named = {"--preset": "mine", "--workdir": "", "--samples": "0"}
    rest = list[str]()
    given = iter(argv)
    for token in given:
        if token in named:
            named[token] = next(given, "")
        else:
            rest.append(token)
    with commandline.one_line_errors():
        if not named["--samples"].isdigit():
            raise ValueError(f"got --samples {named['--samples']!r}; wanted a number")
        config = commandline.apply(configs.get(named["--preset"]), ["--steps", "0", *rest])
        model = "tiny" if config.model.path is None else config.model.path.name
        folder = Path(named["--workdir"] or f"outputs/{model}-{config.data.name.replace(',', '-')}")
        mesh.simulate(config.mesh)
        programs.keep()
        with processes.until_nobody_reads():
            answer(config, folder, samples=int(named["--samples"]))
    return folder
