"""Parameter trees by dotted path."""

from collections.abc import Mapping
from typing import Any

import jax


def flatten(tree: dict) -> dict[str, Any]:
    """A nested dict as ``{"layers.attention.q.kernel": leaf, ...}``."""
    leaves = jax.tree.leaves_with_path(tree)
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict:
    """The inverse of ``flatten``."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, last = path.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree
