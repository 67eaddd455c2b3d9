"""Meshes, their errors, and where the parameters lie."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from fairgrpo_jax import mesh
from tests import tiny_batch


def test_parse():
    assert mesh.parse("4x1") == (4, 1)


@pytest.mark.parametrize("bad", ["4", "0x1", "4x", "4x1x1", "axb", "-1x2", ""])
def test_bad_mesh_is_refused(bad):
    with pytest.raises(ValueError, match="wanted FSDPxTENSOR"):
        mesh.parse(bad)


def test_too_few_devices_is_an_error_with_a_way_out():
    with pytest.raises(ValueError, match="16 devices, with 8 of cpu"):
        mesh.make("16x1")


def test_indivisible_batch_names_the_nearest():
    with pytest.raises(ValueError, match="prompts=10 .* multiple of 4, e.g. 12"):
        mesh.require_divisible({"evaluation.batch": 8, "prompts": 10}, 4)


def test_every_matrix_is_sharded_on_both_axes_and_vectors_are_whole():
    devices = mesh.make("2x2")
    placed = mesh.shardings(tiny_batch.params(), devices)
    assert placed["embedding"].spec == P("tensor", "fsdp")
    attention = placed["layers"]["attention"]
    assert attention["q"]["kernel"].spec == P(None, "fsdp", "tensor")
    assert attention["o"]["kernel"].spec == P(None, "tensor", "fsdp")
    assert attention["q"]["bias"].is_fully_replicated
    for path, sharding in jax.tree_util.tree_leaves_with_path(placed):
        if "kernel" in jax.tree_util.keystr(path):
            assert {"fsdp", "tensor"} <= set(sharding.spec), path


def test_an_axis_that_does_not_divide_stays_whole():
    placed = mesh.shardings({"q": {"kernel": jnp.ones((6, 7))}}, mesh.make("2x2"))
    assert placed["q"]["kernel"].spec == P("fsdp", None)


def test_optimizer_moments_lie_where_their_parameters_lie():
    import optax

    devices, params = mesh.make("2x2"), tiny_batch.params()
    placed = mesh.shardings(optax.adam(1e-3).init(params), devices)
    assert jax.tree.leaves(placed[0].mu) == jax.tree.leaves(mesh.shardings(params, devices))


def test_constrain_is_nothing_without_a_mesh():
    x = jnp.ones((3, 2))
    assert mesh.constrain(x) is x and mesh.gather(x) is x and mesh.keep_sharded(x) is x
