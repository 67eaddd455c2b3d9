"""Keeps compiled programs on disk, so that the next start of a run does not compile them again."""

import hashlib
import platform
import re
from pathlib import Path

import jax

from fairgrpo_jax import files


def keep() -> Path:
    """Tells JAX where to keep compiled programs; to be called before the first is compiled.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder, ``JAX_ENABLE_COMPILATION_CACHE=0`` keeps none. A program is
    found again by its text, the versions of the compilers and the kind of the devices. JAX does not tell one CPU from
    another, whose programs may use instructions that the first does not have: each kind of CPU has its own folder.

    Returns:
        The folder, in ``$XDG_CACHE_HOME`` or ``~/.cache``; it may be removed at any time.
    """
    told = jax.config.values["jax_compilation_cache_dir"]
    if told is not None:
        return Path(told)
    folder = files.cache_folder() / "programs" / _machine()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _machine() -> str:
    """Architecture of this machine, and a digest of what its processor can do."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        told = platform.processor()
    able = re.search(r"(?m)^(?:flags|Features)\s*:.*$", told)
    return f"{platform.machine()}-{hashlib.sha256((able[0] if able else told).encode()).hexdigest()[:8]}"
