"""Configs as JSON: written to a run folder, read from one of another version, compared."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from fairgrpo_jax.config.experiment import Config


# Options of earlier versions: their name, the name now in the same section, and the value now for each one then.
_RENAMED = {
    "data.resample": ("sampling", {False: "natural", True: "balanced"}),
    "reward.kind": ("components", {"exact": ["exact"], "set_f1": ["set_f1"]}),
}


def to_dict(config: Any) -> dict:
    """Converts a config to a nested dict for JSON: paths become strings, tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(values: dict, schema: type = Config) -> Any:
    """Rebuilds a config from the result of ``to_dict``; unknown keys are an error."""
    hints = typing.get_type_hints(schema)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(
            f"got unknown options {sorted(unknown)} for {schema.__name__}; wanted a config.json of this version"
        )
    return schema(**{key: _cast(hints[key], value) for key, value in values.items()})


def read(path: Path) -> tuple[Config, list[str]]:
    """Reads a ``config.json``, also of another version of this library.

    Returns:
        The config, and a line for every option that this version does not know, which is left out, or that the file
        lacks, which gets its default.

    Raises:
        ValueError: naming the file, if it is missing, cut short, or has a value that this version refuses.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kept, lines = _known(values, Config)
        return from_dict(kept), lines
    except OSError as error:
        raise ValueError(f"got {path} ({error.strerror}); wanted the config.json of a run folder") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"got {path} with {error}; wanted a config.json as a run writes it") from error


def _known(values: dict, schema: Any, prefix: str = "") -> tuple[dict, list[str]]:
    """The values that the schema has, and what is told of the others."""
    for old, (new, renamed) in _RENAMED.items():
        section, _, name = old.rpartition(".")
        if prefix == f"{section}." and name in values:
            values = {key: value for key, value in values.items() if key != name} | {new: renamed[values[name]]}
    typed, kept, lines = typing.get_type_hints(schema), {}, []
    hints = {field.name: typed[field.name] for field in dataclasses.fields(schema)}
    lines += [f"{prefix}{name} is not an option of this version: left out" for name in sorted(values.keys() - hints)]
    for name, hint in hints.items():
        if name not in values:
            default = "its defaults" if dataclasses.is_dataclass(hint) else getattr(schema(), name)
            lines.append(f"{prefix}{name} is new in this version: {default}")
        elif dataclasses.is_dataclass(hint):
            kept[name], more = _known(values[name], hint, f"{prefix}{name}.")
            lines += more
        else:
            kept[name] = values[name]
    return kept, lines


def _cast(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in hint.__args__ if arg is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    return Path(value) if hint is Path else value


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Flattens a nested dict to ``{"optim.lr": 1e-4, ...}``."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def difference(old: dict, new: dict, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Returns a line such as ``optim.lr: 0.0001 -> 0.001`` for every option that differs between two configs."""
    a, b = flatten(old), flatten(new)
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key) and key not in ignore]
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys]
