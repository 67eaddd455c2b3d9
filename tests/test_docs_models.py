"""The figures of docs/models.md are those of the code."""

import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from fairgrpo_jax import mesh, models
from tests import real_sizes


PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "models.md").read_text()
MESHES = ("1x1", "2x1", "4x1", "2x2", "8x1")


def table(first):
    """Rows of the table whose header's second cell is ``first``, by their own first cell."""
    lines = PAGE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| | {first} |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[name] = cells
    return rows


@pytest.mark.parametrize("name,repository", [*zip(table("parameters"), real_sizes.CONFIGS, strict=True)])
def test_sizes_and_memory_by_mesh(name, repository):
    assert name.split("-")[0].split(" ")[0].lower() in repository.lower()
    config = models.read_config(real_sizes.CONFIGS[repository])
    shapes = jax.eval_shape(lambda: models.family(config).init(config, jax.random.key(0), jnp.bfloat16))
    told = [f"{sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)):,}"]
    for spec in MESHES:
        parts = zip(jax.tree.leaves(shapes), jax.tree.leaves(mesh.shardings(shapes, mesh.make(spec))), strict=True)
        told.append(f"{sum(2 * math.prod(where.shard_shape(leaf.shape)) for leaf, where in parts) / 1e9:.2f}")
    told.append(f"{2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim / 1e3:.1f}")
    assert table("parameters")[name] == told


def test_every_family_is_named():
    for family in models.FAMILIES:
        assert f"`{family}`" in PAGE, f"docs/models.md does not name {family}"
