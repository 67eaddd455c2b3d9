"""``python -m fairgrpo_jax.report RUN [RUN ...] --out FILE`` rebuilds the report of finished or running runs."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from fairgrpo_jax import processes, report


@dataclasses.dataclass(frozen=True)
class Options:
    """Build the HTML report of one run folder, or of several side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; the others are compared with the first one."""
    out: Path
    """The HTML file to write."""
    title: str = ""
    """Heading of the report; default: the names of the runs."""


def main() -> None:
    """Runs the command line."""
    with processes.until_nobody_reads():
        _main()


def _main() -> None:
    given = tyro.cli(Options, prog="python -m fairgrpo_jax.report")
    names = [path.resolve().name for path in given.runs]
    if len(set(names)) < len(names):
        names = [str(path) for path in given.runs]
    try:
        if given.out.is_dir():
            raise ValueError(f"got --out {given.out}, which is a folder; wanted the name of an HTML file")
        path = report.build(
            dict(zip(names, given.runs, strict=True)), given.out, title=given.title or " and ".join(names)
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(path)


if __name__ == "__main__":
    main()
