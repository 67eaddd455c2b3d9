"""What a study compares, and its registration: written before the first run, and what is tested follows from it."""

import dataclasses
import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax import __version__, commandline, config as options, files
from fairgrpo_jax.configs import _methods


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method or a setting: a name, and the options that it changes."""

    label: str  # as it was given, e.g. "fair_sampling focus=0"
    changes: tuple[tuple[str, str], ...]  # dotted option -> value as text

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^\w.=,+-]+", "-", self.label)

    def apply(self, config: options.Config) -> options.Config:
        """The config with the method of that name, if it is one, and the changes."""
        head = self.label.split()[0] if self.label else ""
        if head in _methods.METHODS:
            config = _methods.method(config, head)
        return commandline.override(config, dict(self.changes))


def method(text: str) -> Variant:
    """Reads a method: one of ``configs._methods.METHODS``, and options, as in "fair_sampling draw.window=1".

    Raises:
        ValueError: for an unknown name or an option without a value.
    """
    name, *rest = text.split() or [""]
    if name not in _methods.METHODS:
        raise ValueError(f"got method {text!r}; wanted one of {', '.join(_methods.METHODS)}, then OPTION=VALUE ...")
    return Variant(" ".join([name, *rest]), tuple(_change(part) for part in rest))


def setting(text: str) -> Variant:
    """Reads a setting: options alone, as in "prompts=256 optim.lr=1e-4"; empty text changes nothing.

    Raises:
        ValueError: for an option without a value.
    """
    return Variant(" ".join(text.split()), tuple(_change(part) for part in text.split()))


def _change(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"got {text!r}; wanted OPTION=VALUE, such as focus=0")
    return name, value


@dataclasses.dataclass(frozen=True)
class Primary:
    """A comparison on which the study is judged: ``better`` > ``than`` - ``margin`` in ``figure``."""

    figure: str
    better: str
    than: str
    margin: float = 0.0

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        return f"{self.figure}: {self.better} > {self.than}" + (f" - {self.margin:g}" if self.margin else "")


def primary(text: str, methods: Sequence[str], figures: Sequence[str]) -> Primary:
    """Reads a comparison such as "worst_f1: fair_sampling > grpo_rs" or "f1: fair_sampling > grpo - 0.02".

    Raises:
        ValueError: for another form, an unknown figure, or a method that the study does not run.
    """
    found = re.fullmatch(r"\s*(\w+)\s*:\s*(.+?)\s*>\s*(.+?)(?:\s+-\s*(\d*\.?\d+))?\s*", text)
    if not found:
        raise ValueError(f"got primary {text!r}; wanted FIGURE: METHOD > METHOD, or FIGURE: METHOD > METHOD - MARGIN")
    figure, better, than, margin = found.groups()
    if figure not in figures:
        raise ValueError(f"got primary figure {figure!r}; wanted one of {', '.join(figures)}")
    for name in (better, than):
        if name not in methods:
            raise ValueError(f"got primary method {name!r}; wanted one that runs: {', '.join(methods)}")
    return Primary(figure, better, than, float(margin or 0))


def register(folder: Path, plan: dict[str, Any]) -> str:
    """Writes ``preregistration.json`` before the first run, or checks that the study is the one registered.

    Returns:
        A line with the time and the digest, for the result.

    Raises:
        ValueError: if the folder has runs without a registration, or was registered for another study.
    """
    path = folder / "preregistration.json"
    if path.exists():
        text = path.read_text(encoding="utf-8")
        known = json.loads(text)
        written = {name: known.pop(name) for name in ("written", "version")}
        if lines := options.difference(known, json.loads(json.dumps(plan))):
            raise ValueError(
                f"got a study other than the one registered in {path} ({'; '.join(lines)}); wanted the same, or "
                "another --workdir"
            )
    else:
        if any(folder.rglob("metrics.jsonl")):
            raise ValueError(f"got {folder} with runs made before any registration; wanted an empty --workdir")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        written = {"written": now, "version": __version__}
        text = json.dumps(written | plan, indent=2, ensure_ascii=False) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        files.write(path, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"registered {written['written']}, sha256 {digest[:16]}"
