"""Helpers of all commands: an optional preset name, dotted overrides, ``--list``, readable errors."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from fairgrpo_jax import config as options, configs, mesh, runs


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of every command that opens a run."""

    config: Annotated[options.Config, tyro.conf.arg(name="")]
    workdir: Path | None = None
    """Run folder; default: a folder under outputs/ named after the options. The same command resumes it."""


def run(command: Callable[[options.Config, Path | None], Any], *, prog: str, description: str | None) -> None:
    """Parses the command line, prepares the devices and calls ``command(config, workdir)``.

    ``prog [CONFIG] [--workdir DIR] [--any.option VALUE ...]``; without CONFIG the default preset is used.
    """
    with one_line_errors():
        arguments = parse(sys.argv[1:], prog=prog, description=description)
        mesh.simulate(arguments.config.mesh)
        command(arguments.config, arguments.workdir)


def parse(argv: list[str], *, prog: str, description: str | None, schema: type = Arguments) -> Any:
    """Parses the arguments of a command: an optional preset name, then overrides.

    Raises:
        ValueError: if the preset is unknown (naming the known ones), or an option is unknown or has an invalid value.
    """
    if argv[:1] == ["--list"]:
        for name, summary in configs.summaries().items():
            print(f"{name:40s}{summary}")
        raise SystemExit(0)
    named = bool(argv) and not argv[0].startswith("-")
    config = configs.get(argv[0] if named else configs.DEFAULT)
    usage = f"{description}\nOptions of config {config.name!r}; for another one: {prog} NAME --help; all: {prog} --list"
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                schema, args=argv[named:], default=schema(config=config), prog=f"{prog} [CONFIG]", description=usage
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        words = " ".join(re.sub(r"[╭╮╰╯│─]+", " ", complaint.getvalue()).split())
        raise ValueError(words) from stop


class one_line_errors:  # noqa: N801
    """Prints user errors and interruptions as one line and exits with a status."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, ValueError | FloatingPointError):
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        if isinstance(error, runs.Interrupted):
            print(error.message, file=sys.stderr)
