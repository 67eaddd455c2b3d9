"""Answers the held-out records of a dataset with any checkpoint folder, for an audit; goes on after any stop.

Answers are greedy, each with the ``probability`` of its first token, given what the model wrote before it. With
``samples``, so many further ones are drawn of each record, and the share of them that agrees with the greedy one is its
``confidence``. An audit takes the share as a score, where there is one, and else the probability.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax import (
    answers,
    commandline,
    config as options,
    configs,
    export,
    files,
    folder as folders,
    leaderboard,
    mesh,
    processes,
    programs,
    runs,
    tracking,
)
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.rewards import accuracy


AT_ONCE = 4  # batches between two notes of what is done


def answer(config: options.Config, folder: Path, *, samples: int = 0) -> Sequence[Record]:
    """Writes ``evals/000000.jsonl`` of a folder, the form of a run's evaluation; returns the records.

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
    _require_own(folder, path, config, samples)
    with runs.open_run(config, folder) as run:
        records = run.sources["test"].records
        draft = path.with_suffix(".part")
        done = _kept(path if path.is_file() else draft, records)
        if path.is_file():
            if done != len(records):
                raise ValueError(
                    f"got {done} answers in {path} for {len(records)} records; wanted the dataset that was answered, "
                    "or another --workdir"
                )
            return records
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
        return records


def _require_own(folder: Path, path: Path, config: options.Config, samples: int) -> None:
    """Checks that the answers in a folder are those of the same model, options and number of samples.

    Raises:
        ValueError: with what differs.
    """
    held = [file for file in (path, path.with_suffix(".part")) if file.is_file() and file.stat().st_size]
    if not held or not (folder / "config.json").is_file():
        return
    before, _ = options.read(folder / "config.json")
    now = folders.filled(config, before)
    differs = options.difference(options.to_dict(before), options.to_dict(now), ignore=folders.FREE)
    first = json.loads(held[0].read_bytes().split(b"\n")[0] or b"{}")
    if len(first.get("samples", ())) != samples:
        differs.append(f"--samples: {len(first.get('samples', ()))} -> {samples}")
    weights = [] if config.model.path is None else [*config.model.path.glob("*.safetensors")]
    if any(file.stat().st_mtime > held[0].stat().st_mtime for file in weights):
        differs.append(f"the weights in {config.model.path} are newer than the answers")
    if differs:
        raise ValueError(
            f"got {held[0]} with answers of other options ({'; '.join(differs)}); wanted the same, or another --workdir"
        )


def submit(argv: Sequence[str]) -> None:
    """Answers the test questions of MedVidBench and writes the file that its board takes.

    ``[medvidbench | RUN] --submission FILE``, ``--preset NAME``, ``--workdir DIR`` and any option of a run. Of a run
    folder the policy of its last checkpoint answers, with the options of the run.
    """
    named, rest = _named(argv, {"--preset": "mine", "--workdir": "", "--submission": ""})
    with commandline.one_line_errors(), processes.until_nobody_reads():
        subject = rest.pop(0) if rest and not rest[0].startswith("-") else "medvidbench"
        begun = Path(subject) / "config.json"
        run = Path(subject) if begun.is_file() else None
        config = options.read(begun)[0] if run else configs.get(named["--preset"])
        name = config.data.name if run else subject
        if not named["--submission"] or name not in ("medvidbench", "medvid_toy"):
            raise ValueError(
                f"got {subject!r}, a run or dataset of {name!r}, and --submission {named['--submission']!r}; wanted "
                "medvidbench, or a run folder of it, and a file"
            )
        config = dataclasses.replace(
            config,
            steps=0,
            warmup=options.Warmup(steps=0),
            reward=options.Reward(),
            judge=options.Judge(),
            data=dataclasses.replace(
                config.data, name=name, tasks=(), plain_answers=not run or config.data.plain_answers
            ),
            evaluation=options.Evaluation(batch=config.evaluation.batch, split="test"),
        )
        config = commandline.apply(config, rest)
        model = subject if run else "tiny" if config.model.path is None else config.model.path.name
        folder = Path(named["--workdir"] or f"outputs/{Path(model).name}-submission")
        if run is not None:
            policy = folder / "policy"
            saved = [path.stat().st_mtime for path in (run / "checkpoints").glob("[0-9]*")]
            if not (policy / "config.json").is_file():
                export.export(run, policy)
            elif (policy / "config.json").stat().st_mtime < max(saved, default=0):
                raise ValueError(
                    f"got {policy}, exported before {run} saved its last checkpoint; wanted another --workdir"
                )
            whole = options.Model(path=policy, compute=config.model.compute)  # adapters are merged
            config = dataclasses.replace(config, model=whole)
        mesh.simulate(config.mesh)
        programs.keep()
        records = answer(config, folder)
        rows = leaderboard.read(folder / "evals" / "000000.jsonl")
        leaderboard.write(Path(named["--submission"]), records, leaderboard.answers(records, rows))


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
    named, rest = _named(argv, {"--preset": "mine", "--workdir": "", "--samples": "0"})
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


def _named(argv: Sequence[str], usual: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The values of some options, or what they usually are, and the other arguments.

    >>> _named(["--workdir", "W", "--mesh=2x1"], {"--workdir": "", "--samples": "0"})
    ({'--workdir': 'W', '--samples': '0'}, ['--mesh=2x1'])
    """
    named, rest, given = {**usual}, list[str](), iter(argv)
    for token in given:
        name, equals, value = token.partition("=")
        if name in named:
            named[name] = value if equals else next(given, "")
        else:
            rest.append(token)
    return named, rest
