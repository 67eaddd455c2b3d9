"""Experiments as Python: one file per experiment, overridable from the command line."""

if not __name__.startswith("fairgrpo_jax."):
    raise ImportError(
        "import fairgrpo_jax.configs, not configs: a second copy of these modules would not know the first"
    )

import dataclasses
import importlib
import pkgutil
from types import ModuleType

from fairgrpo_jax.config import Config


DEFAULT = "clinic"


def names() -> list[str]:
    """The presets, by name; a file with ``METHODS`` has one more for each, ``file/method``."""
    files = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return [name for file in files for name in (file, *(f"{file}/{method}" for method in _methods_of(file)))]


def get(name: str) -> Config:
    """The preset of that name.

    Raises:
        ValueError: if there is none, naming the known ones.
    """
    if name not in names():
        files = [known for known in names() if "/" not in known]
        raise ValueError(
            f"got config {name!r}; wanted one of {', '.join(files)} (or options only, for {DEFAULT}), or one of their "
            "methods, such as clinic/grpo; --list shows all"
        )
    file, _, method = name.partition("/")
    return dataclasses.replace(_module(file).get_config(*([method] if method else [])), name=name)


def summaries() -> dict[str, str]:
    """The first line of each file's docstring, by preset."""
    told = {name: (_module(name.partition("/")[0]).__doc__ or "").strip().splitlines()[0] for name in names()}
    return {name: f"the same with {name.partition('/')[2]}" if "/" in name else line for name, line in told.items()}


def _methods_of(file: str) -> list[str]:
    return [*getattr(_module(file), "METHODS", ())]


def _module(file: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{file}")
