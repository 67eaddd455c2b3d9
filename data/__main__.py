"""``python -m fairgrpo_jax.data check|prepare NAME --root DIR``: checks a dataset, or writes it as ArrayRecord.

``construct`` makes questions and answers out of experts' annotations of videos; see ``construct --help``.

``construct`` makes questions and answers out of experts' annotations of videos; see its ``--help``.

With options of a run, ``check`` also measures the prompts that a model would be given, from the headers of the files:

    python -m fairgrpo_jax.data check slake --root Slake1.0 --model.path Qwen2.5-VL-7B-Instruct --data.prompt-length 700
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fairgrpo_jax import data, processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, or 1 if the dataset has problems."""
    with processes.until_nobody_reads():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fairgrpo_jax.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="compare with what the owner published; look for missing files and leaks")
    check.add_argument("--all", action="store_true", help="list every dataset: where to get it, licence, download")
    prepare = commands.add_parser("prepare", help="write as ArrayRecord; run again, it goes on where it stopped")
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    for command in (check, prepare):
        command.add_argument("name", nargs="?" if command is check else None, help=", ".join(data.DATASETS))
        command.add_argument(
            "--root", "--data.root", dest="root", type=Path, help="the dataset's folder as its owner publishes it"
        )
        command.add_argument("--splits", nargs="+", help="by default all")
        command.add_argument(
            "--columns",
            "--data.columns",
            dest="columns",
            nargs="+",
            default=[],
            metavar="NAME=COLUMN",
            help="of one's own data",
        )
        command.add_argument(
            "--codes",
            "--data.codes",
            dest="codes",
            nargs="+",
            default=[],
            metavar="COLUMN.CODE=VALUE",
            help="of one's own data",
        )
        command.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the dataset's load")
    commands.add_parser("construct", add_help=False, help="experts' annotations of videos to questions and answers")
    told, of_run = parser.parse_known_args(arguments)
    if told.command != "construct" and of_run and (told.command != "check" or told.all):
        parser.error(f"unknown arguments: {' '.join(of_run)}")
    if told.command == "check" and (told.all == bool(told.name)):
        parser.error("name a dataset, or give --all")
    try:
        if told.command == "construct":
            from fairgrpo_jax.construct import command

            return command.main(of_run)
        options = dict(map(data.option, told.option))
        if told.columns:
            options["columns"] = data.columns(told.columns)
        if told.codes:
            options["codes"] = data.codes(told.codes)
        return _check(told, options, of_run) if told.command == "check" else _prepare(told, options)
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _check(told: argparse.Namespace, options: dict, of_run: list[str]) -> int:
    from fairgrpo_jax.data import check

    if told.all:
        print("\n".join(check.listing()))
        return 0
    report = check.check(told.name, told.root, names=told.splits, **options)
    print("\n".join(report.lines))
    if told.name == "jsonl" and not report.wrong:
        given = {"root": [f"{told.root}"], "columns": told.columns, "codes": told.codes}
        words = [word for name, values in given.items() if values for word in (f"--data.{name}", *values)]
        print(f"to train: python -m fairgrpo_jax.train mine --model.path MODEL {shlex.join(words)}")
    unfit = _measure(told, of_run) if of_run and not report.wrong else 0
    return 1 if report.wrong or unfit else 0


def _measure(told: argparse.Namespace, of_run: list[str]) -> int:
    """Prints the sizes of the prompts of a run with these options; returns how many records do not fit."""
    from fairgrpo_jax import commandline, config, configs, lengths, policy, runs

    usual = configs.get("mine").data if told.name == "jsonl" else config.Data(prompt_length=0, num_patches=0)
    given = dict(options=tuple(told.option), columns=tuple(told.columns), codes=tuple(told.codes))
    usual = dataclasses.replace(usual, name=told.name, root=told.root, **given)
    run = policy.settled(commandline.apply(config.Config(data=usual), of_run))
    everything = dataclasses.replace(
        run.data, prompt_length=1 << 30, num_patches=1 << 30, on_broken="skip", over_length="skip"
    )
    sources, encode = runs.load(run)
    fitted = lengths.fit(sources, encode, dataclasses.replace(run, data=everything, warmup=config.Warmup(steps=0)))
    wrong = [(one.uid, one.why) for one in fitted.unfit]
    for use in ("train", "test"):
        records, sizes = fitted.sources[use].records, fitted.sizes[use]
        print(f"\nprompts, {use}: {'; '.join(lengths.told(sizes))}")
        print("\n".join(lengths.histogram(sizes)))
        found = zip(records, sizes, strict=True)
        wrong += [(record.uid, why) for record, size in found if (why := lengths.over(size, run.data))]
    for uid, why in wrong:
        print(f"WRONG: {why if uid in why else f'{uid}: {why}'}")
    every = [size for use in ("train", "test") for size in fitted.sizes[use]]
    left = dataclasses.replace(run.data, prompt_length=0, num_patches=0)
    print(f"\nroom for all prompts: {lengths.flags(lengths.settle(left, every, encode))}")
    print(f"{len(wrong)} records do not fit; see options data.over_length and data.on_broken of a run")
    return len(wrong)


def _prepare(told: argparse.Namespace, options: dict) -> int:
    from fairgrpo_jax.data import prepare

    prepare.prepare(told.name, told.root, told.out, splits=told.splits, **options)
    print(f'prepared: data.load("{told.name}", "{told.out}", split=...)')
    return 0


if __name__ == "__main__":
    sys.exit(main())
