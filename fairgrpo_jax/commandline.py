"""Helpers of all commands: an optional preset name, dotted overrides, ``--list``, readable errors."""

import contextlib
import csv
import dataclasses
import io
import logging
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from fairgrpo_jax import config as options, configs, hosts, mesh, processes, programs, runs


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of every command that opens a run."""

    config: Annotated[options.Config, tyro.conf.arg(name="")]
    workdir: Path | None = None
    """Run folder; default: a folder under outputs/ named after the options. The same command resumes it."""


@dataclasses.dataclass(frozen=True)
class Distributed(Arguments):
    """Options of a command that several processes may run together."""

    distributed: str = "auto"
    """Other processes of this run: auto (those of SLURM, Open MPI, Kubernetes or a Cloud TPU, if JAX detects one), off,
    or HOST:PORT,N,I: the address of the first process, the number of processes, and which of them this one is, from 0.
    See docs/clusters.md."""


def run(command: Callable[[options.Config, Path | None], Any], *, prog: str, description: str | None) -> None:
    """Parses the command line, prepares the devices and calls ``command(config, workdir)``.

    ``prog [CONFIG] [--workdir DIR] [--any.option VALUE ...]``; without CONFIG the default preset is used.
    """
    with hosts.alone(), one_line_errors():
        arguments = parse(sys.argv[1:], prog=prog, description=description, schema=Distributed)
        processes_ = hosts.start(arguments.distributed)
        mesh.simulate(arguments.config.mesh, processes_)
        programs.keep()
        command(arguments.config, arguments.workdir)


def parse(argv: list[str], *, prog: str, description: str | None, schema: type = Arguments) -> Any:
    """Parses the arguments of a command: an optional preset name, then overrides.

    Raises:
        ValueError: if the preset is unknown (naming the known ones), or an option is unknown or has an invalid value.
    """
    if argv[:1] == ["--list"]:
        summaries = configs.summaries()
        width = 2 + max(map(len, summaries))
        for name, summary in summaries.items():
            print(f"{name:{width}s}{summary}")
        raise SystemExit(0)
    named = bool(argv) and not argv[0].startswith("-")
    config = configs.get(argv[0] if named else configs.DEFAULT)
    usage = f"{description}\nOptions of config {config.name!r}; for another one: {prog} NAME --help; all: {prog} --list"
    return cli(schema, argv[named:], schema(config=config), f"{prog} [CONFIG]", usage)


def override(config: options.Config, changes: Mapping[str, str]) -> options.Config:
    """The config with other values of options, by their dotted names.

    A list is joined by commas, as a line of CSV: an element with a comma of its own stands in double quotes.

    Raises:
        ValueError: for an unknown option or an invalid value, as the command line says it.
    """
    argv = []
    for name, value in changes.items():
        flag = "--" + name.replace("_", "-")
        if value in ("true", "false") and isinstance(options.flatten(options.to_dict(config)).get(name), bool):
            section, dot, option = name.replace("_", "-").rpartition(".")
            argv.append(f"--{section}{dot}{'' if value == 'true' else 'no-'}{option}")
        else:
            argv += [flag, *next(csv.reader([value]), [""])]
    return apply(config, argv)


def apply(config: options.Config, argv: list[str]) -> options.Config:
    """The config with other values of options, as arguments of a command line.

    Raises:
        ValueError: for an unknown option or an invalid value.
    """
    return cli(options.Config, argv, config, "options", "")


def cli(schema: type, argv: list[str], default: Any, prog: str, description: str) -> Any:
    """An object of a schema from the arguments of a command; ``default`` is one, or None if there is no default.

    Raises:
        ValueError: for an unknown option or an invalid value, in one line.
    """
    given = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(schema, args=argv, prog=prog, description=description, **given)
    except SystemExit as stop:
        if not stop.code:
            raise
        words = " ".join(re.sub(r"[╭╮╰╯│─]+", " ", complaint.getvalue()).split())
        raise ValueError(words) from stop


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints errors of the user and of the machine, and interruptions, as one line, and exits with a status.

    2 for an error, 128 + signal for an interruption; not a word where nobody reads the output any more. Anything else
    is a defect of this library: its traceback stays, with a line that says so.
    """
    for name in ("absl", "asyncio"):  # Orbax logs a page for every error that it also raises
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with processes.until_nobody_reads():
        try:
            yield
        except runs.Interrupted as stopped:
            _say(stopped.message)
            raise
        except KeyboardInterrupt as error:
            _say("interrupted; what was saved stays, and the same command goes on from there")
            raise SystemExit(128 + signal.SIGINT) from error
        except Exception as error:
            if isinstance(error, BrokenPipeError) and processes.nobody_reads():
                raise
            line = hosts.lost(error) or _line(error)
            if line is None:
                traceback.print_exc()
                line = "this is a defect of fairgrpo_jax, not of your input: please report it with the lines above"
            _say(f"error: {line}")
            raise SystemExit(2) from error


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(line, file=sys.stderr)


# Libraries that are called with what has been checked: a ValueError from their inside is not about the user's input.
_INSIDE = re.compile(r"[/\\](jax|jaxlib|flax|optax|numpy)[/\\]")
_FULL = re.compile("No space left on device|Disk quota exceeded|File too large")


def _line(error: Exception) -> str | None:
    """What is wrong and where, in one line; None if it is a defect."""
    links: list[BaseException] = [error]
    while (cause := links[-1].__cause__ or links[-1].__context__) is not None:
        links.append(cause)
    for link in links:
        if found := _FULL.search(str(link)):
            return f"{found[0]}: {' '.join(str(link).split())[:300]}; make room, and the same command goes on"
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    known = isinstance(error, ValueError) and not (frames and _INSIDE.search(frames[-1].filename))
    known = known or isinstance(error, ImportError) and "pip install" in str(error)
    return str(error) if known or isinstance(error, FloatingPointError) else None
