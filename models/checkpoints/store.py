"""Reads Hugging Face checkpoint folders into sharded arrays, and writes them.

The host needs little memory: tensors are read in blocks of rows that are copied to their devices, and for writing they
are fetched one at a time.
"""

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress

from fairgrpo_jax import mesh as meshes
from fairgrpo_jax.models import families, lora, processing
from fairgrpo_jax.models.checkpoints import names, processor as folders, published, tensorfile
from fairgrpo_jax.models.checkpoints.tensorfile import Tensor
from fairgrpo_jax.models.tiny.tokenizer import quiet_transformers
from fairgrpo_jax.models.tree import flatten, unflatten


LARGEST_BLOCK = 32 << 20  # bytes read at once
SMALL = 1 << 20  # bytes up to which leaves are assembled on the host
LONG = 1 << 30  # least number of bytes for a progress bar
DTYPES = ("bfloat16", "float16", "float32")
# Files that are copied unread when a model from a folder is written again.
CARRIED = (
    *("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "*.model", "tekken.json"),
    *("chat_template*", "*processor_config.json", "generation_config.json", "LICENSE*", "NOTICE*"),
)

Part = Sequence[tuple[names.Slot, Tensor]]


def describe(
    folder: Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> tuple[Any, processing.TextProcessor | None]:
    """Reads config and processor of a checkpoint folder, without its weights.

    Args:
        folder: checkpoint folder as Hugging Face publishes it.
        min_pixels: least pixels for the processor, instead of the folder's; see ``models.processor``.
        max_pixels: largest, as above.

    Returns:
        The family's config with all end tokens and banned tokens of the folder; and the processor, or None if its files
        are missing.

    Raises:
        ValueError: if folder or config do not exist, or for an unknown family or unsupported settings.
    """
    quiet_transformers()
    tensorfile.require_folder(folder)
    values = folders.read_json(folder / "config.json")
    try:
        config = families.read_config(values)
    except ValueError:
        raise
    except Exception as error:  # transformers' classes raise many kinds of errors
        raise ValueError(f"got {folder / 'config.json'}, which transformers refuses: {error}") from error
    kinds = ("tokenizer.json", "vocab.json", "tokenizer.model"), ("preprocessor_config.json", "processor_config.json")
    here = [any((folder / name).is_file() for name in names) for names in kinds]
    whole = here[0] and (here[1] or config.vision is None)
    processor = folders.processor(folder, min_pixels=min_pixels, max_pixels=max_pixels) if whole else None
    return folders.with_token_ids(config, folder, processor and processor.tokenizer), processor


def progress(total: int) -> Progress:
    """A progress bar on standard error, only for long work."""
    return Progress(console=Console(stderr=True), transient=True, disable=total < LONG)


def load_params(folder: Path, config: Any, *, mesh: jax.sharding.Mesh | str | None, dtype: Any) -> dict:
    """Loads the parameters of a checkpoint folder as device arrays.

    Every shard of every leaf is allocated on its device and filled block by block, so that less than the largest tensor
    of the checkpoint is held at any time in addition to the arrays.

    Args:
        folder: folder with safetensors files.
        config: the model's config.
        mesh: mesh over which the arrays are sharded by the rules of ``fairgrpo_jax.mesh``; None: the first device.
        dtype: dtype of the arrays, independent of the files: bfloat16, float16 or float32.

    Raises:
        ValueError: for another dtype, or from ``tensorfile.folder`` and ``names.match``; before any weight is read.
    """
    if (name := getattr(dtype, "__name__", str(dtype))) not in DTYPES:
        raise ValueError(f"got dtype={name}; wanted one of {', '.join(DTYPES)}")
    mesh, dtype = meshes.make(mesh) if isinstance(mesh, str) else mesh, np.dtype(dtype)
    tensors = tensorfile.folder(folder)
    found = names.match(tensors, config, _same)
    block = min(LARGEST_BLOCK, max(tensor.nbytes for tensor in tensors.values()) // 8)
    tree = jax.eval_shape(lambda: families.family(config).init(config, jax.random.key(0), dtype))
    shapes, places = flatten(tree), flatten(_shardings(tree, mesh))
    parts = {path: [(slot, tensors[found[slot.name]]) for slot in part] for path, part in names.slots(config).items()}
    total = sum(tensor.nbytes for part in parts.values() for _, tensor in part)
    leaves = {}
    with progress(total) as bar, meshes.unset():
        task = bar.add_task(f"reading {folder.name}", total=total)
        for path, part in parts.items():
            leaf, sharding = shapes[path], places[path]
            small = tensorfile.nbytes(leaf.shape, leaf.dtype) <= SMALL
            leaves[path] = _gather(leaf, sharding, part) if small else _fill(leaf, sharding, part, block)
            bar.advance(task, sum(tensor.nbytes for _, tensor in part))
    return unflatten(leaves)


def _shardings(tree: dict, mesh: jax.sharding.Mesh | None) -> dict:
    if mesh is not None:
        return meshes.shardings(tree, mesh)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: here, tree)


def _gather(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, part: Part) -> jax.Array:
    """Builds a small leaf on the host."""
    host = np.empty(leaf.shape, leaf.dtype)
    for slot, tensor in part:
        host[... if slot.layer is None else slot.layer] = slot.to_ours(tensor.read())
    return jax.make_array_from_callback(leaf.shape, sharding, host.__getitem__)


def _fill(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, part: Part, block: int) -> jax.Array:
    """Builds a large leaf: zeros on every device, then the device's share of every tensor in blocks of rows."""
    index = sharding.addressable_devices_indices_map(leaf.shape)
    own = {d: tuple(s.indices(n)[:2] for s, n in zip(i or (), leaf.shape, strict=True)) for d, i in index.items()}
    buffers = {
        device: _zeros(tuple(stop - start for start, stop in bounds), leaf.dtype, device)
        for device, bounds in own.items()
    }
    for slot, tensor in part:
        axis = len(leaf.shape) - 1 if slot.transposed else int(slot.layer is not None)  # the tensor's rows, in the leaf
        step = max(1, block * tensor.shape[0] // tensor.nbytes)
        for first, last in sorted({bounds[axis] for bounds in own.values()}):
            for start in range(first, last, step):
                rows = slot.to_ours(tensor.rows(start, min(start + step, last)))
                for device in [device for device, bounds in own.items() if bounds[axis] == (first, last)]:
                    piece, offset = _cut(rows, own[device], axis, start, slot.layer)
                    buffers[device] = _write(buffers[device], jax.device_put(piece, device), offset)
                jax.block_until_ready([*buffers.values()])
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, [*buffers.values()])


def _cut(rows: np.ndarray, own: Sequence, axis: int, start: int, layer: int | None) -> tuple[np.ndarray, tuple]:
    """The part of a block of rows that a device keeps, and its position in the device's buffer."""
    keep, offset = [slice(*bounds) for bounds in own], [0] * len(own)
    keep[axis], offset[axis] = slice(None), start - own[axis][0]
    if layer is not None:
        rows, keep[0], offset[0] = rows[None], slice(None), layer
    return rows[tuple(keep)], tuple(map(np.int32, offset))


def _zeros(shape: tuple[int, ...], dtype: Any, device: Any) -> jax.Array:
    """Zeros allocated on their device; ``jnp.zeros(device=)`` allocates on the first device and copies."""
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=jax.sharding.SingleDeviceSharding(device))()


@functools.partial(jax.jit, donate_argnums=0)
def _write(buffer: jax.Array, piece: jax.Array, offset: tuple) -> jax.Array:
    return jax.lax.dynamic_update_slice(buffer, piece.astype(buffer.dtype), offset)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, compared in blocks."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    count = one.shape[0]
    step = max(1, LARGEST_BLOCK * count // max(one.nbytes, 1))
    return all(
        np.array_equal(one.rows(start, min(start + step, count)), other.rows(start, min(start + step, count)))
        for start in range(0, count, step)
    )


def save(vlm: Any, checkpoint_dir: str | Path, *, max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes a model as a checkpoint folder that transformers and vLLM load; adapters are merged into its kernels.

    Tokenizer, processor and other small files are copied from the folder that the model was loaded from, with the
    pixel budget of the model's processor; for other models they are made from its config and processor. Files are
    written under a temporary name and moved, ``config.json`` last, so a folder that has one is complete.

    Args:
        vlm: the model, with parameters on any devices.
        checkpoint_dir: a new folder, or one without a model.
        max_shard_bytes: maximum bytes of tensors in one safetensors file.

    Raises:
        ValueError: if the folder already holds a model or cannot be written, or parameters span several processes.
    """
    folder = Path(checkpoint_dir)
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(vlm.params)):
        raise ValueError("got parameters spread over several processes; wanted all of them in one: gather them first")
    require_free(folder)
    small = _small_files(vlm)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
            part = Path(name)
            _write_weights(vlm, part, max_shard_bytes)
            for path in _carried(vlm.source):
                shutil.copyfile(path, part / path.name)
            if vlm.source is None and vlm.processor is not None:
                vlm.processor.tokenizer.save_pretrained(part)
                if vlm.processor.chat_template:
                    (part / "chat_template.jinja").write_text(vlm.processor.chat_template)
            for path, values in small.items():
                (part / path).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
            for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, folder / path.name)
    except OSError as error:
        raise ValueError(f"got {folder}, which cannot be written ({error.strerror}); wanted another folder") from error


def require_free(folder: Path) -> None:
    """Checks that a folder does not hold a model.

    Raises:
        ValueError: if it does.
    """
    held = [name for name in ("config.json", tensorfile.SINGLE, tensorfile.INDEX) if (folder / name).exists()]
    if held:
        raise ValueError(f"got {folder}, which already holds {held[0]}; wanted a new or an empty folder")


def _write_weights(vlm: Any, folder: Path, max_shard_bytes: int) -> None:
    leaves, slots = flatten(vlm.params), names.slots(vlm.config)
    shapes = {slot.name: (slot.shape, np.dtype(leaves[path].dtype)) for path, part in slots.items() for slot in part}
    total = sum(tensorfile.nbytes(*entry) for entry in shapes.values())

    def tensors(bar: Progress) -> Iterator[np.ndarray]:
        task = bar.add_task(f"writing {folder.parent.name}", total=total)
        for path, part in slots.items():
            a, b = (leaves.get(path.removesuffix("kernel") + name) for name in lora.PAIR)
            for slot in part:
                yield slot.to_published(_fetch(_layer(leaves[path], a, b, slot.layer, vlm.config.lora_scale)))
                bar.advance(task, tensorfile.nbytes(*shapes[slot.name]))

    with progress(total) as bar, meshes.unset():
        tensorfile.write_folder(folder, shapes, tensors(bar), max_shard_bytes)


def _layer(leaf: jax.Array, a: jax.Array | None, b: jax.Array | None, layer: int | None, scale: float) -> jax.Array:
    """One layer of a leaf, with its adapter merged."""
    if layer is not None:
        leaf, a, b = _take((leaf, a, b), np.int32(layer))
    return leaf if a is None or b is None else lora.merged(leaf, a, b, scale=scale)


def _fetch(array: jax.Array) -> np.ndarray:
    """Copies an array to the host; unlike with ``np.asarray``, arrays sharded over devices do not keep the copy."""
    if isinstance(array, np.ndarray) or len(array.devices()) == 1:
        return np.asarray(array)
    host = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        host[shard.index] = shard.data
    return host


@jax.jit
def _take(leaves: Any, layer: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), leaves)


def _small_files(vlm: Any) -> dict[str, dict]:
    """The generated JSON files: ``config.json``, and those of the processor unless they are the source folder's."""
    dtype = np.dtype(vlm.params["embedding"].dtype).name
    if vlm.source is not None:
        config = folders.read_json(vlm.source / "config.json")
        _set_dtype(config, dtype)
        if vlm.config.model_type == "gemma3":
            config["vision_config"]["vision_use_head"] = False  # SigLIP's unused weights are not kept
        return {"config.json": config} | folders.with_budget(vlm.source, vlm.processor)
    files = {"config.json": published.config_json(vlm.config) | {"dtype": dtype}}
    files["generation_config.json"] = {"eos_token_id": [*vlm.config.eos_ids], "pad_token_id": vlm.config.pad_id}
    return files if vlm.processor is None else files | published.processor_json(vlm.processor)


def _set_dtype(config: dict, dtype: str) -> None:
    """Sets the dtype of the weights in the config and its parts, under the name that the config uses."""
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:
        names = {"dtype", "torch_dtype"} & part.keys()
        part.update(dict.fromkeys(names or ({"dtype"} if part is config else ()), dtype))


def _carried(source: Path | None) -> list[Path]:
    if source is None:
        return []
    return sorted({path for pattern in CARRIED for path in source.glob(pattern) if path.is_file()})
