"""``python -m fairgrpo_jax.data check|prepare NAME --root DIR``: checks a dataset, or writes it as ArrayRecord."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fairgrpo_jax import data


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, or 1 if the dataset has problems."""
    parser = argparse.ArgumentParser(prog="python -m fairgrpo_jax.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="compare with what the owner published; look for missing files and leaks")
    check.add_argument("--all", action="store_true", help="list every dataset: where to get it, licence, download")
    prepare = commands.add_parser("prepare", help="write as ArrayRecord; run again, it goes on where it stopped")
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    for command in (check, prepare):
        command.add_argument("name", nargs="?" if command is check else None, help=", ".join(data.DATASETS))
        command.add_argument("--root", type=Path, help="the dataset's folder as its owner publishes it")
        command.add_argument("--splits", nargs="+", help="by default all")
        command.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the dataset's load")
    told = parser.parse_args(arguments)
    if told.command == "check" and (told.all == bool(told.name)):
        parser.error("name a dataset, or give --all")
    try:
        options = dict(map(data.option, told.option))
        return _check(told, options) if told.command == "check" else _prepare(told, options)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _check(told: argparse.Namespace, options: dict) -> int:
    from fairgrpo_jax.data import check

    if told.all:
        print("\n".join(check.listing()))
        return 0
    report = check.check(told.name, told.root, names=told.splits, **options)
    print("\n".join(report.lines))
    return 1 if report.wrong else 0


def _prepare(told: argparse.Namespace, options: dict) -> int:
    from fairgrpo_jax.data import prepare

    prepare.prepare(told.name, told.root, told.out, splits=told.splits, **options)
    print(f'prepared: data.load("{told.name}", "{told.out}", split=...)')
    return 0


if __name__ == "__main__":
    sys.exit(main())
