"""What devices exchange, read from the text of a compiled program."""

import re

import jax


KINDS = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"


def exchanged(text):
    """(operation, shape) of every collective, all parts of combined ones."""
    found = []
    for line in text.splitlines():
        match = re.search(rf"= *(.*) ({KINDS})(-start)?\(", line)
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found += [(match[2], tuple(int(size) for size in shape.split(",") if size)) for shape in shapes]
    return found


def strange(text, params):
    """What is exchanged beside weights, their gradients and scalars; and all that is exchanged block by block."""
    bare = lambda shape: tuple(sorted(size for size in shape if size > 1))
    weights = {bare(x.shape[drop:]) for x in jax.tree.leaves(params) for drop in (0, 1)} | {()}
    blocks = ("all-to-all", "collective-permute")
    return [(kind, shape) for kind, shape in exchanged(text) if kind in blocks or bare(shape) not in weights]
