"""The identity of a run: its folder, the config that it began with, and which options may change later.

A folder belongs to one config. An option may change if it cannot have changed what the run has done so far (``FREE``);
the change is written into the log. Any other change is refused with the difference, but for a folder without a
checkpoint, which may still become any run.
"""

import contextlib
import dataclasses
import hashlib
import json
import socket
from pathlib import Path

import jax

from fairgrpo_jax import __version__, config as options, files, hosts


# Options whose change cannot falsify what a run has done: its length, what is measured and kept, where and on what it
# computes, and limits that nothing so far has reached. With the schedule "cosine", or a warm-up of the learning rate
# that is longer than the shorter run, another number of steps bends the learning rate from here on.
FREE = (
    "steps",
    "checkpoint_every",
    "mesh",
    "evaluation.every",
    "evaluation.batch",
    "evaluation.records",
    "evaluation.samples",
    "evaluation.components",
    "evaluation.perplexity",
    "evaluation.completions",
)
FREE += ("data.root", "data.workers", "data.prompt_length", "data.num_patches", "data.on_broken", "data.leakage")
FREE += ("data.over_length", "data.buckets", "data.processes")
FREE += tuple(
    f"judge.{name}"
    for name in (
        *("url", "key_variable", "limit_name", "concurrency", "requests_per_minute", "tokens_per_minute", "attempts"),
        *("attempt_seconds", "total_seconds", "cache", "price_in", "price_out"),
    )
)
FREE += ("reward.max_unscored", "sampling.waves", "update.accumulation", "update.chunks")


def default(config: options.Config) -> Path:
    """``outputs/<name>-<algorithm>-<mesh>-<digest>``: one folder for each config, so that equal commands resume."""
    digest = hashlib.sha256(json.dumps(options.to_dict(config), sort_keys=True).encode()).hexdigest()[:8]
    return Path("outputs") / f"{config.name.replace('/', '-')}-{config.algorithm}-{config.mesh}-{digest}"


def create(folder: Path) -> None:
    """Creates a run folder, or checks that an existing one can be written; all processes must see it.

    Raises:
        ValueError: if it cannot, or another host does not see it.
    """
    hosts.on_first(lambda: _create(folder))
    seen = hosts.everyone((socket.gethostname(), folder.is_dir()))
    if blind := sorted({name for name, there in seen if not there}):
        raise ValueError(
            f"got a run folder {folder} that {', '.join(blind)} cannot see; wanted one on a file system that all hosts "
            "share: --workdir DIR"
        )


def _create(folder: Path) -> None:
    try:
        files.require_writable(folder)
    except OSError as error:
        raise ValueError(
            f"got a run folder {folder} that cannot be written ({error.strerror}); wanted a writable one: --workdir DIR"
        ) from error


def require_alike(config: options.Config, folder: Path) -> None:
    """Tells which processes run together, and refuses those that would not do the same.

    Raises:
        ValueError: if versions, options or run folders differ, or a process leaves GPUs of its host to nobody.
    """
    for line in hosts.everyone(hosts.told()):
        print(line, flush=True)
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))))
    hosts.require_equal("version", f"fairgrpo_jax {__version__}, jax {jax.__version__}, {code.hexdigest()[:8]}")
    hosts.require_equal("run folder", str(folder))
    shown = json.dumps(options.to_dict(config), sort_keys=True)
    hosts.require_equal("options", hashlib.sha256(shown.encode()).hexdigest()[:8])
    hosts.require_devices_in_use()


def recall(folder: Path, config: options.Config) -> options.Config | None:
    """The config with what the run of the folder found out when it began, in place of options that are left open.

    These are sizes of prompts that are left to the data, the pixel budget, the steps of ``warmup.epochs``, and what
    ``model.adapter`` decides: a resumed run has the same programs, whatever has become of data and adapter since. None
    if the folder has no run yet.
    """
    path = folder / "config.json"
    if not path.exists() or not _has_steps(folder):
        return None
    return filled(config, options.read(path)[0])


def filled(config: options.Config, begun: options.Config) -> options.Config:
    """The config with what was found out for ``begun`` in place of options that it leaves open; see ``recall``."""
    data, model = config.data, config.model
    data = dataclasses.replace(
        data,
        prompt_length=data.prompt_length or begun.data.prompt_length,
        num_patches=data.num_patches or begun.data.num_patches,
        max_pixels=begun.data.max_pixels if data.max_pixels is None else data.max_pixels,
    )
    if model.adapter is not None and model.adapter == begun.model.adapter and not model.lora_rank:
        decided = {name: getattr(begun.model, name) for name in ("lora_rank", "lora_alpha", "lora_targets")}
        model = dataclasses.replace(model, **decided)
    warmup = config.warmup
    if warmup.epochs is not None and warmup.epochs == begun.warmup.epochs:
        warmup = dataclasses.replace(warmup, steps=begun.warmup.steps)
    return dataclasses.replace(config, data=data, model=model, warmup=warmup)


def claim(folder: Path, config: options.Config) -> list[str]:
    """Makes the folder that of a config; returns the changes since it was last opened, such as ``steps: 4 -> 8``.

    Raises:
        ValueError: if it belongs to another config, or its ``config.json`` cannot be read.
    """
    path, changes = folder / "config.json", []
    if _has_steps(folder) and not path.exists():
        raise ValueError(
            f"got a run folder {folder} with checkpoints and without its config.json; wanted that file back, or "
            "another --workdir"
        )
    if path.exists() and _has_steps(folder):
        begun, told = options.read(path)
        for line in told:
            print(f"{path}: {line}", flush=True)
        before, now = options.to_dict(begun), options.to_dict(config)
        refused = options.difference(before, now, ignore=FREE)
        if refused:
            raise ValueError(
                f"got a run folder {folder} of another config ({'; '.join(refused)}); wanted the same options, "
                f"or another --workdir. These may change: {', '.join(FREE)}"
            )
        changes = options.difference(before, now)
    files.write(path, json.dumps(options.to_dict(config), indent=2) + "\n")
    return changes


def _has_steps(folder: Path) -> bool:
    """Whether a checkpoint has been written, damaged ones included."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.name.isdigit() for path in (folder / "checkpoints").iterdir()) or (folder / "damaged").exists()
    return (folder / "damaged").exists()
