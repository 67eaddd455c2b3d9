"""Checkpoints know when they are damaged: flipped bits and lost files, on any mesh; saving in the background."""

import contextlib
import json
import random
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fairgrpo_jax import checkpoint, mesh


HOST = {"data": {"next_index": 3}, "groups": ["F, ≤25"]}


def trees(seed=0):
    """Parameters and the rest, of several dtypes, in names that the sharding rules split."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"embedding": normal(64, 32), "layers": {"q": {"kernel": normal(2, 32, 32).astype(jnp.bfloat16)}}}
    return params, {"moments": {"mu": normal(64, 32)}, "step": jnp.int32(7), "seen": jnp.asarray([True, False])}


def saved(folder, steps=(5,)):
    with contextlib.closing(checkpoint.manager(folder)) as checkpoints:
        for step in steps:
            checkpoint.save(checkpoints, step, *trees(step), HOST)
    return folder


def restored(folder, step=5):
    with contextlib.closing(checkpoint.manager(folder)) as checkpoints:
        return checkpoint.restore(checkpoints, step, *trees())


def assert_equal(got, wanted):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole") / "checkpoints")


def test_what_is_restored_is_what_was_saved(whole):
    params, training, host = restored(whole)
    assert_equal((params, training), trees(5))
    assert host == HOST
    with contextlib.closing(checkpoint.manager(whole, read_only=True)) as checkpoints:
        assert_equal(checkpoint.saved_params(checkpoints, 5), trees(5)[0])
        assert_equal(checkpoint.restore_params(checkpoints, 5, trees()[0]), trees(5)[0])
        half = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), params) for params in (trees()[0], trees(5)[0])]
        assert_equal(checkpoint.restore_params(checkpoints, 5, half[0]), half[1])  # as the reference policy is


@pytest.mark.parametrize("spec", ["4x1", "2x2"])
def test_the_digest_is_that_of_any_mesh(whole, spec, tmp_path):
    devices = mesh.make(spec)
    with jax.set_mesh(devices):
        params, training = (jax.device_put(tree, mesh.shardings(tree, devices)) for tree in trees())
        with contextlib.closing(checkpoint.manager(whole, read_only=True)) as checkpoints:
            got = checkpoint.restore(checkpoints, 5, params, training)
        assert_equal(got[:2], trees(5))
        with contextlib.closing(checkpoint.manager(tmp_path)) as checkpoints:
            checkpoint.save(checkpoints, 5, *got)
    assert_equal(restored(tmp_path)[:2], trees(5))


def mixed(word):
    word = ((word ^ (word >> 16)) * 0x7FEB352D) % 2**32
    return word ^ (word >> 15)


def test_two_flipped_signs_are_two_changes():
    array = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    digest, seen = jax.jit(checkpoint._digest), set()
    for i, j in [(0, 1), (5, 9), (63, 0), (17, 40)]:
        other = array.copy()
        other[i, j], other[j, i] = -other[i, j], -other[j, i]
        seen.add(int(digest(other)))
    assert len(seen | {int(digest(array))}) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "int64"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 2)])
def test_the_digest_by_hand(dtype, shape):
    """Mixed words times odd numbers in a row, in integers without bound; 64 bits are two words, the lower one first."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=shape) * 100
    array = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    word = np.dtype(f"uint{8 * min(array.itemsize, 4)}")
    words = np.frombuffer(array.tobytes(), word).tolist()
    wanted = sum(mixed(value) * (2 * place + 1) for place, value in enumerate(words)) % 2**32
    with jax.enable_x64(dtype == "int64"):
        assert int(jax.jit(checkpoint._digest)(array)) == wanted


@pytest.mark.parametrize("item", ["params", "training"])
def test_no_flipped_bit_becomes_other_numbers(whole, tmp_path, item):
    """40 bits at random in the arrays' files: each is noticed, or in a byte that is read by nobody."""
    rng, noticed = random.Random(0), 0
    files = sorted(path.relative_to(whole) for path in (whole / "5" / item).rglob("d/*") if path.is_file())
    for trial in range(40):
        folder = tmp_path / str(trial)
        shutil.copytree(whole, folder)
        path = folder / rng.choices(files, [(whole / file).stat().st_size for file in files])[0]
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            got = restored(folder)
        except checkpoint.Damaged as error:
            noticed += 1
            assert str(folder / "5") in str(error)
        else:
            assert_equal(got[:2], trees(5))
    assert noticed >= 30


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 0x10
    path.write_bytes(data)


def lose(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGE = [
    (half, "params/_METADATA"),
    (half, "params/manifest.ocdbt"),
    (half, "host/metadata"),
    (half, "training/_METADATA"),
    (flip, "host/metadata"),
    (flip, "params/manifest.ocdbt"),
    (lose, "params"),
    (lose, "training"),
    (lose, "host"),
    (lose, "params/manifest.ocdbt"),
    (half, "params/d"),
    (lose, "params/d"),
]


@pytest.mark.parametrize("how, where", DAMAGE, ids=lambda value: getattr(value, "__name__", value))
def test_every_damage_is_named_with_its_checkpoint(whole, tmp_path, how, where):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    path = folder / "5" / where
    how(max(path.iterdir(), key=lambda file: file.stat().st_size) if (how, path.name) == (half, "d") else path)
    with pytest.raises(checkpoint.Damaged, match=f"checkpoint {folder}/5 is damaged"):
        restored(folder)


def test_a_host_that_holds_other_numbers_is_damaged(whole, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    path = folder / "5" / "host" / "metadata"
    path.write_text(path.read_text().replace('"next_index": 3', '"next_index": 8'))
    with pytest.raises(checkpoint.Damaged, match="host/metadata is not what was saved"):
        restored(folder)


def test_the_array_that_differs_is_named(whole, tmp_path):
    """A checkpoint whose arrays are those of another step, sound in every file."""
    folder = saved(tmp_path / "checkpoints", steps=(5, 6))
    lose(folder / "5" / "training")
    shutil.copytree(folder / "6" / "training", folder / "5" / "training")
    with pytest.raises(checkpoint.Damaged, match="training/moments/mu is not what was saved"):
        restored(folder)


def test_what_is_set_aside_is_kept_and_the_rest_goes_on(tmp_path):
    folder = saved(tmp_path / "checkpoints", steps=(5, 6))
    with contextlib.closing(checkpoint.manager(folder)) as checkpoints:
        kept = checkpoint.set_aside(checkpoints, 6)
        assert checkpoints.latest_step() == 5 and kept == tmp_path / "damaged" / "6"
        checkpoint.save(checkpoints, 6, *trees(6), HOST)
        checkpoints.wait_until_finished()
        assert checkpoint.set_aside(checkpoints, 6) == tmp_path / "damaged" / "6-1"
    assert_equal(restored(folder)[:2], trees(5))


@pytest.mark.parametrize("tree, name", [(0, "params/embedding"), (1, "training/moments/mu")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_never_saved(tmp_path, tree, name, value):
    spoiled = trees()
    place = spoiled[0] if tree == 0 else spoiled[1]["moments"]
    key = name.rsplit("/", 1)[1]
    place[key] = place[key].at[3, 4].set(value)
    with contextlib.closing(checkpoint.manager(tmp_path)) as checkpoints:
        with pytest.raises(FloatingPointError, match=f"{name} is not finite after update 5"):
            checkpoint.save(checkpoints, 5, *spoiled, HOST)
        assert checkpoints.all_steps() == []


def test_arrays_may_be_donated_while_their_files_are_written(tmp_path):
    """Saved values are those of the moment of saving, however soon their buffers are used again."""
    program = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    arrays = {"embedding": jnp.zeros((512, 2048))}
    with contextlib.closing(checkpoint.manager(tmp_path, keep=6)) as checkpoints:
        for step in range(6):
            checkpoint.save(checkpoints, step, arrays, {"step": jnp.int32(step)}, HOST)
            for _ in range(5):
                arrays = program(arrays)
            checkpoints.wait_until_finished()
        for step in range(6):
            like = {"embedding": arrays["embedding"]}, {"step": jnp.int32(0)}
            params, _, _ = checkpoint.restore(checkpoints, step, *like)
            np.testing.assert_array_equal(params["embedding"], np.full((512, 2048), 5.0 * step))


def test_a_checkpoint_of_the_version_before_is_taken_with_a_word(whole, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    path = folder / "5" / "host" / "metadata"
    path.write_text(json.dumps(HOST))
    assert restored(folder)[2] == HOST
    assert "of an earlier version and has no digests" in capsys.readouterr().out


def test_a_checkpoint_of_a_later_version_is_refused(whole, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    path = folder / "5" / "host" / "metadata"
    path.write_text(json.dumps({"format": 9}))
    with pytest.raises(ValueError, match="of format 9; wanted at most 2") as refusal:
        restored(folder)
    assert not isinstance(refusal.value, checkpoint.Damaged)
