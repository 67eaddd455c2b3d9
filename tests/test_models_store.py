"""Checkpoint folders: read in blocks onto any mesh, refused with one clear error, and written again."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from fairgrpo_jax import mesh, models
from fairgrpo_jax.models import lora
from fairgrpo_jax.models.checkpoints import names, published, store, tensorfile
from fairgrpo_jax.models.tree import flatten, unflatten
from tests import tiny_folder, tiny_models


def write(folder, family="qwen2_5_vl", seed=0, dtype=np.float32, **settings):
    """A golden model as a folder; returns its config and tensors."""
    config, tensors, _ = tiny_models.published(family, int(seed))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    put(folder, tensors, **settings)
    return models.read_config(config), tensors


def put(folder, tensors, max_shard_bytes=10**9):
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    tensorfile.write_folder(folder, shapes, tensors.values(), max_shard_bytes)


def assert_equal(params, wanted):
    got, wanted = flatten(params), flatten(wanted)
    assert got.keys() == wanted.keys()
    for path, leaf in got.items():
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), np.asarray(wanted[path], np.float32), err_msg=path)


@pytest.fixture
def in_blocks(monkeypatch):
    """Everything goes the way of large leaves, in blocks of a few rows; the last ones are ragged."""
    monkeypatch.setattr(store, "SMALL", -1)
    monkeypatch.setattr(store, "LARGEST_BLOCK", 37 * 32 * 4)


@pytest.mark.parametrize("family, seed", tiny_models.ONE_EACH)
def test_a_folder_of_every_family(tmp_path, family, seed):
    config, tensors = write(tmp_path, family, seed, max_shard_bytes=40_000)
    vlm = models.load(tmp_path, dtype="float32")
    assert vlm.config == config and vlm.source == tmp_path and vlm.processor is None
    assert_equal(vlm.params, names.from_hugging_face(tensors, config))
    assert {leaf.dtype for leaf in jax.tree.leaves(vlm.params)} == {np.dtype("float32")}


# Every leaf is two programs a device: a tower on one device here, and on many when slow.
@pytest.mark.parametrize(
    "family, seed, spec",
    [
        ("mistral", 0, "2x2"),
        pytest.param("qwen3_vl", 1, None, marks=pytest.mark.slow),
        pytest.param("qwen3_vl", 1, "2x2", marks=pytest.mark.slow),
        pytest.param("mistral", 0, "1x4", marks=pytest.mark.slow),
    ],
)
def test_in_blocks_onto_any_mesh(tmp_path, in_blocks, family, seed, spec):
    """The same arrays, sharded by the rules, and where both axes are there the same logits as on one device."""
    config, tensors = write(tmp_path, family, seed)
    wanted = names.from_hugging_face(tensors, config)
    with jax.set_mesh(mesh.make("4x1")):  # as inside a run; of no consequence
        vlm = models.load(tmp_path, mesh=spec, dtype="float32")
    assert_equal(vlm.params, wanted)
    if spec is not None:
        places = mesh.shardings(vlm.params, mesh.make(spec))
        assert jax.tree.map(lambda leaf: leaf.sharding, vlm.params) == places
        assert any(not place.is_fully_replicated for place in jax.tree.leaves(places))
    if spec == "2x2":
        inputs, _ = next(iter(tiny_models.published(family, seed)[2].values()))
        np.testing.assert_allclose(vlm.logits(inputs), models.VLM(config, wanted).logits(inputs), atol=1e-5)


@pytest.mark.parametrize("of_file", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("wanted", ["bfloat16", "float32", jax.numpy.float16])
def test_any_dtype_of_file_and_model(tmp_path, of_file, wanted):
    config, tensors = write(tmp_path, "mistral", 0, of_file)
    params = models.load(tmp_path, dtype=wanted).params
    cast = jax.tree.map(lambda leaf: leaf.astype(wanted), names.from_hugging_face(tensors, config))
    assert params["embedding"].dtype == np.dtype(wanted)
    assert_equal(params, cast)


def test_a_repeated_tied_head_is_read_once(tmp_path, in_blocks):
    config, tensors = write(tmp_path, "qwen2_5_vl", 0)
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    put(tmp_path, tensors | head)
    assert "head" not in models.load(tmp_path).params
    put(tmp_path, tensors | {"lm_head.weight": head["lm_head.weight"] + np.eye(96, 32, k=-70, dtype=np.float32)})
    with pytest.raises(ValueError, match="unexpected lm_head.weight"):
        models.load(tmp_path)


def test_all_misfits_in_one_error_before_anything_is_read(tmp_path, monkeypatch):
    _, tensors = write(tmp_path, "qwen2_5_vl", 1)
    del tensors["lm_head.weight"]
    tensors |= {"model.norm.weight": np.zeros(3), "extra": np.zeros(())}
    put(tmp_path, {name: tensor.astype(np.float32) for name, tensor in tensors.items()})
    monkeypatch.setattr(tensorfile.Tensor, "rows", None)
    with pytest.raises(ValueError, match="(?s)3 faults.*missing lm_head.*model.norm.weight is.*unexpected extra"):
        models.load(tmp_path)


def moved(entry, by):
    entry["data_offsets"] = [place + by for place in entry["data_offsets"]]


# Headers that say something else about the first two tensors than is there.
HEADERS = {
    "at one place": lambda one, other: one.update(data_offsets=other["data_offsets"]),
    "shifted": lambda one, other: moved(one, 4),
    "shorter than its shape": lambda one, other: one.update(shape=[one["shape"][0] + 1, *one["shape"][1:]]),
    "a negative start": lambda one, other: moved(one, -8),
    "text for numbers": lambda one, other: one.update(data_offsets=["0", "64"]),
}


def spoil(folder, fault):
    """Breaks a sound folder of two weight files in one way."""
    first, second = sorted(folder.glob("*.safetensors"))
    index = folder / tensorfile.INDEX
    if fault == "no folder":
        return folder / "nowhere"
    if fault == "pickled":
        [path.unlink() for path in (first, second, index)]
        (folder / "pytorch_model.bin").write_bytes(b"")
    elif fault == "no weights":
        [path.unlink() for path in (first, second, index)]
    elif fault == "no config":
        (folder / "config.json").unlink()
    elif fault == "broken config":
        (folder / "config.json").write_text("{")
    elif fault == "odd config":
        (folder / "config.json").write_text('{"model_type": "qwen2", "hidden_size": "wide"}')
    elif fault == "unknown family":
        (folder / "config.json").write_text('{"model_type": "llava"}')
    elif fault == "cut short":
        first.write_bytes(first.read_bytes()[:-1000])
    elif fault == "cut in the header":
        first.write_bytes(first.read_bytes()[:50])
    elif fault == "not safetensors":
        first.write_bytes(b"<!doctype html><html>not found</html>")
    elif fault == "missing shard":
        second.unlink()
    elif fault == "wrong shard":
        second.write_bytes(first.read_bytes())
    elif fault == "unlisted":
        listed = json.loads(index.read_text())
        del listed["weight_map"]["model.norm.weight"]
        index.write_text(json.dumps(listed))
    elif fault == "broken index":
        index.write_text("[]")
    elif fault == "empty":
        first.write_bytes(b"")
    elif fault in HEADERS:
        data = first.read_bytes()
        size = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + size])
        HEADERS[fault](*[entry for name, entry in entries.items() if name != "__metadata__"][:2])
        text = json.dumps(entries).encode()
        first.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    elif fault == "an index that leaves its folder":
        listed = json.loads(index.read_text())
        listed["weight_map"]["model.norm.weight"] = "../outside/m.safetensors"
        index.write_text(json.dumps(listed))
    elif fault == "an index of lists":
        index.write_text('{"weight_map": ' + "[" * 100_000)
    elif fault == "quantised":
        first.write_bytes(first.read_bytes().replace(b'"F32"', b'"I32"'))
    return folder


@pytest.mark.parametrize(
    "fault, said",
    [
        ("no folder", "nowhere, which is not a folder; wanted a checkpoint folder"),
        ("pickled", r"only pickled weights \(pytorch_model.bin\); wanted model.safetensors"),
        ("no weights", "with no weights; wanted model.safetensors or model.safetensors.index.json"),
        ("no config", "config.json does not exist; wanted a checkpoint folder"),
        ("broken config", "config.json is not JSON"),
        ("odd config", "config.json, which transformers refuses: .*hidden_size"),
        ("unknown family", "model_type='llava'; wanted one of qwen2_vl, .*mistral"),
        (
            "cut short",
            r"00001-of-00002.safetensors, \d+ bytes, as no whole safetensors file .*; wanted one: copy again",
        ),
        ("cut in the header", "50 bytes, as no whole safetensors file"),
        ("not safetensors", "37 bytes, as no whole safetensors file"),
        ("empty", "0 bytes, as no whole safetensors file"),
        ("at one place", "as no whole safetensors file .*[Oo]ffset"),
        ("shifted", "as no whole safetensors file .*[Oo]ffset"),
        ("shorter than its shape", "as no whole safetensors file"),
        ("a negative start", "as no whole safetensors file"),
        ("text for numbers", "as no whole safetensors file"),
        ("an index that leaves its folder", r"names \.\./outside/m.safetensors; wanted files of its own folder"),
        ("an index of lists", "without a weight_map"),
        ("missing shard", "without model-00002-of-00002.safetensors, which model.safetensors.index.json names"),
        ("wrong shard", "(?s)faults:.*00002.safetensors lacks .*00002.safetensors holds .* beyond the index"),
        ("unlisted", "1 faults:\n  model-00002-of-00002.safetensors holds model.norm.weight beyond the index"),
        ("broken index", "index.json without a weight_map"),
        ("quantised", "00001-of-00002.safetensors with tensors of I32; wanted F16, BF16, F32"),
    ],
)
def test_bad_folders_are_refused_with_what_to_do(tmp_path, fault, said):
    _, tensors = write(tmp_path, "qwen2_5_vl", 1)
    (tmp_path / tensorfile.SINGLE).unlink()
    put(tmp_path, tensors, max_shard_bytes=sum(tensor.nbytes for tensor in tensors.values()) * 6 // 10)
    with pytest.raises(ValueError, match=said):
        models.load(spoil(tmp_path, fault))


def test_a_dtype_that_is_none_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="dtype=int8; wanted one of bfloat16, float16, float32"):
        models.load(tmp_path, dtype="int8")


def test_processor_and_end_tokens_come_with_the_folder(tmp_path):
    tiny_folder.shrink(tiny_folder.write(tmp_path / "in", "qwen2_5_vl"), "qwen2_5_vl")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    vlm = models.init(models.qwen2_5_vl.tiny(eos_ids=(0,), vocab_size=520), jax.random.key(0))
    vlm.save(tmp_path / "bare")
    whole = json.loads((tmp_path / "bare" / "config.json").read_text()) | config
    (tmp_path / "in" / "config.json").write_text(json.dumps(whole))
    (tmp_path / "bare" / "model.safetensors").rename(tmp_path / "in" / "model.safetensors")
    back = models.load(tmp_path / "in", dtype="float32")
    assert back.config.eos_ids == (2, 0) and back.processor.patch_size == 4
    (tmp_path / "in" / "generation_config.json").write_text('{"eos_token_id": [9, 2]}')
    (tmp_path / "in" / "tokenizer.json").unlink()
    again = models.load(tmp_path / "in")
    assert again.config.eos_ids == (9, 2, 0) and again.processor is None


@pytest.mark.parametrize("family, seed", tiny_models.ONE_EACH)
def test_saved_and_loaded_again_is_exact(tmp_path, family, seed):
    config, _ = write(tmp_path / "in", family, seed)
    vlm = models.load(tmp_path / "in", dtype="float32")
    vlm.save(tmp_path / "out", max_shard_bytes=80_000)
    again = models.load(tmp_path / "out", dtype="float32")
    assert again.config == config
    assert_equal(again.params, vlm.params)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    sizes = [(tmp_path / "out" / name).stat().st_size for name in files if name.endswith(".safetensors")]
    assert len(sizes) > 1 and max(sizes) < 90_000 and not [name for name in files if name.startswith(".")]
    index = json.loads((tmp_path / "out" / tensorfile.INDEX).read_text())
    assert set(index["weight_map"].values()) == {name for name in files if name.endswith(".safetensors")}
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(vlm.params))


def test_saved_from_a_mesh_in_another_dtype_with_its_small_files(tmp_path):
    config, _ = write(tmp_path / "in")
    said = {"dtype": "float32", "text_config": {"torch_dtype": "float32"}, "architectures": ["kept"]}
    path = tmp_path / "in" / "config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | said | {"text_config": whole["text_config"] | said["text_config"]}))
    carried = {"tokenizer_config.json": "{}", "chat_template.jinja": "x", "LICENSE": "y", "vocab.txt": "z"}
    for name, text in (carried | {"README.md": "of the original", "training_args.bin": ""}).items():
        (tmp_path / "in" / name).write_text(text)
    vlm = models.load(tmp_path / "in", mesh="2x2")
    (tmp_path / "out").mkdir()
    vlm.save(tmp_path / "out")
    got = {path.name for path in (tmp_path / "out").iterdir()}
    assert got == {*carried, "config.json", "model.safetensors"}
    assert all((tmp_path / "out" / name).read_text() == text for name, text in carried.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["torch_dtype"] == "bfloat16" and config["architectures"] == ["kept"]
    assert {tensor.dtype.name for tensor in tensorfile.folder(tmp_path / "out").values()} == {"bfloat16"}
    assert_equal(models.load(tmp_path / "out").params, vlm.params)
    with pytest.raises(ValueError, match="out, which already holds config.json; wanted a new or an empty folder"):
        vlm.save(tmp_path / "out")


def test_config_is_moved_last_so_that_an_interrupted_save_leaves_none(tmp_path, monkeypatch):
    vlm, moved = models.init(models.text.tiny(), jax.random.key(0)), []

    def replace(source, target):
        moved.append(target.name)
        if target.name == "config.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        vlm.save(tmp_path / "out")
    assert sorted(moved[:-1]) == ["generation_config.json", "model.safetensors"] and moved[-1] == "config.json"
    assert not [*(tmp_path / "out").iterdir()]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .*wanted another folder"):
        vlm.save(tmp_path / "file" / "out")


def test_adapters_are_merged_on_the_way_out(tmp_path):
    vlm = lora.add(models.init(models.gemma3.tiny(), jax.random.key(0)), lora.LoRA(4, 6, "."), jax.random.key(1))
    leaves = {path: 0.3 * np.asarray(leaf) + 0.1 for path, leaf in flatten(vlm.params).items()}
    vlm = dataclasses.replace(vlm, params=unflatten(leaves))
    vlm.save(tmp_path / "out")
    merged = flatten(lora.merge(vlm).params)
    for path, leaf in flatten(models.load(tmp_path / "out", dtype="float32").params).items():
        np.testing.assert_allclose(leaf, merged[path], rtol=1e-6, atol=1e-6, err_msg=path)


MEASURE = """
import sys
import jax
from pathlib import Path
from fairgrpo_jax import models
from fairgrpo_jax.models.checkpoints import tensorfile
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
status = lambda name: next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
small = Path(sys.argv[1]) / "small"  # what a first load imports is no part of the measure: torch, where it is installed
models.init(models.text.tiny("qwen2"), jax.random.key(0)).save(small)
jax.block_until_ready(models.load(small, mesh=sys.argv[2] or None, dtype=sys.argv[3]).params)
before = status("VmRSS")
params = jax.block_until_ready(models.load(sys.argv[1], mesh=sys.argv[2] or None, dtype=sys.argv[3]).params)
arrays = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
largest = max(tensor.nbytes for tensor in tensorfile.folder(Path(sys.argv[1])).values())
print((status("VmHWM") - before - arrays) / largest)
"""


@pytest.mark.slow
@pytest.mark.parametrize("spec, dtype", [("", "bfloat16"), ("", "float32"), ("2x2", "bfloat16")])
def test_peak_memory_beside_the_arrays_is_below_the_largest_tensor(tmp_path, spec, dtype):
    """A checkpoint of 300 MB, loaded by a process of its own."""
    sizes: dict = dict(vocab_size=60_000, hidden_size=1024, head_dim=256, intermediate_size=4096, num_layers=6)
    config = models.text.tiny("qwen2", **sizes)
    (tmp_path / "config.json").write_text(json.dumps(published.config_json(config)))
    slots = [slot for part in names.slots(config).values() for slot in part]
    row = np.random.default_rng(0).normal(size=1 << 20).astype(ml_dtypes.bfloat16)
    shapes = {slot.name: (slot.shape, row.dtype) for slot in slots}
    tensorfile.write_folder(tmp_path, shapes, (np.resize(row, slot.shape) for slot in slots), 10**8)
    command = [sys.executable, "-c", MEASURE, tmp_path, spec, dtype]
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert 0 < float(result.stdout) < 1.5, result.stdout
