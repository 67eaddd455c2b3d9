"""The policy of a run, from its options: architecture, processor and initial parameters."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fairgrpo_jax import checkpoint, config as options, mesh as meshes, models
from fairgrpo_jax.models import lora, qwen2_5_vl, vision
from fairgrpo_jax.models.checkpoints import adapters, store
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer


ADAPTERS = 1 << 20  # folded into the key for adapters; the parts of the architecture count from 0
MOST_PIXELS = 524_288  # of an image where the sizes of prompts are left to the data; the FairGRPO paper's


def settled(config: options.Config) -> options.Config:
    """The config with what the folders of the model decide in place of options that are left open.

    That is rank, alpha and targets of ``model.adapter``, and, where the sizes of prompts are left to the data, a pixel
    budget: with that of most checkpoints a single photograph makes a prompt of 16,384 tokens.

    Raises:
        ValueError: if the options contradict the adapter, or from reading the folders.
    """
    config = dataclasses.replace(config, model=with_adapter(config.model))
    data = config.data
    if not data.measured or data.max_pixels is not None or config.model.path is None:
        return config
    usual = getattr(describe(config.model, data)[1], "max_pixels", None)
    if usual is None:
        return config
    most = max(min(usual, MOST_PIXELS), data.min_pixels or 0)
    return dataclasses.replace(config, data=dataclasses.replace(data, max_pixels=most))


def with_adapter(model: options.Model) -> options.Model:
    """The options with rank, alpha and targets of ``model.adapter``, if there is one.

    Raises:
        ValueError: if they are given too, and differ; or from ``adapters.describe``.
    """
    if model.adapter is None or model.path is None:
        return model
    found = adapters.describe(model.adapter, store.describe(model.path)[0])
    its = {"lora_rank": found.rank, "lora_alpha": found.alpha, "lora_targets": found.targets}
    plain = options.Model()
    for name, value in its.items():
        if getattr(model, name) not in (getattr(plain, name), value):
            raise ValueError(
                f"got model.{name}={getattr(model, name)} with model.adapter={model.adapter}, which has {value}; "
                "wanted one of the two options"
            )
    return dataclasses.replace(model, **its)


def describe(model: options.Model, settings: options.Data) -> tuple[Any, Any]:
    """Returns the architecture, including the scale of its adapters, and the processor; reads no weights.

    Raises:
        ValueError: if the folder is not a checkpoint of a supported family, or has no tokenizer.
    """
    budget = dict(min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
    if model.path is None:
        least, most = (32 * 32 if pixels is None else pixels for pixels in budget.values())
        architecture = small(model)
        processor = models.Processor(tiny_tokenizer(), patch_size=4, min_pixels=least, max_pixels=max(least, most))
    else:
        architecture, processor = store.describe(model.path, **budget)
        if processor is None:
            raise ValueError(
                f"got model.path={model.path} without tokenizer or image settings; wanted the whole folder"
            )
    return (
        lora.scaled(architecture, model.lora_alpha / model.lora_rank) if model.lora_rank else architecture
    ), processor


def in_parts(architecture: Any, patches: int, frame: int) -> Any:
    """The architecture whose tower takes the frames of long prompts part by part (``models.vision.in_parts``).

    Args:
        architecture: the family's config.
        patches: of the longest prompts, to which they are padded.
        frame: the most patches of a frame or image of the data; 0 if it is not known.
    """
    if architecture.vision is None:
        return architecture
    tower = vision.in_parts(architecture.vision, frame)
    return architecture if tower.parts(patches)[0] == 1 else dataclasses.replace(architecture, vision=tower)


def largest_frame(architecture: Any, settings: options.Data) -> int:
    """The most patches that the pixel budget leaves a frame; 0 if it is not known, as where it is that of a film."""
    tower = architecture.vision
    if tower is None or tower.frames_apart or settings.max_pixels is None:
        return 0
    return settings.max_pixels // tower.patch_size**2


def small(model: options.Model) -> qwen2_5_vl.Config:
    """The Qwen2.5-VL architecture at the size of ``model``: heads a quarter of the width, patches of 4 pixels."""
    tiny, half = qwen2_5_vl.tiny(), model.hidden_size // 8
    tower = dataclasses.replace(
        tiny.vision,
        depth=model.vision_depth,
        hidden_size=model.hidden_size,
        intermediate_size=model.hidden_size,
        out_hidden_size=model.hidden_size,
        full_blocks=(model.vision_depth - 1,),
    )
    return dataclasses.replace(
        tiny,
        vision=tower,
        hidden_size=model.hidden_size,
        head_dim=2 * half,
        intermediate_size=model.hidden_size * 3 // 2,
        num_layers=model.num_layers,
        mrope_section=(half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8),
        tie_word_embeddings=model.tie_word_embeddings,
    )


def shapes(model: options.Model, architecture: Any) -> dict:
    """The parameters as ``jax.ShapeDtypeStruct``, adapters included; allocates no memory.

    Raises:
        ValueError: if the pattern of adapters matches nothing, or those of frozen parameters match nothing or
            everything.
    """
    return jax.tree.map(lambda shape: shape, _shapes(model, architecture))


@functools.lru_cache(maxsize=32)
def _shapes(model: options.Model, architecture: Any) -> dict:
    """:func:`shapes`, computed once: a plan asks for them again with every change that it tries."""
    tree = jax.eval_shape(
        lambda key: _adapted(models.family(architecture).init(architecture, key, jnp.dtype(model.dtype)), model, key),
        jax.random.key(0),
    )
    lora.trainable(tree, model.freeze)
    return tree


def initial(model: options.Model, architecture: Any, key: jax.Array, *, mesh: jax.sharding.Mesh) -> dict:
    """The initial parameters on the mesh: from the checkpoint folder or random, with its adapters or new ones."""
    if model.path is None:
        params = _random(key, architecture=architecture, dtype=model.dtype)
    else:
        params = store.load_params(model.path, architecture, mesh=mesh, dtype=model.dtype)
    if model.adapter is not None:
        return adapters.load(models.VLM(architecture, params), model.adapter, rank=model.lora_rank).params
    return _adapted(params, model, key)


def supervised(folder: Path, model: options.Model, architecture: Any, key: jax.Array, *, mesh: Any) -> dict:
    """The parameters after the supervised stage of another run folder, with adapters added if it trained none.

    Raises:
        ValueError: if the folder has no such checkpoint, or its policy differs.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(
            f"got warmup.run={folder} without a config.json; wanted a run folder of `python -m fairgrpo_jax.sft`"
        )
    begun, _ = options.read(path)
    free = ["freeze"] + ["lora_rank", "lora_alpha", "lora_targets"] * (not begun.model.lora_rank)
    lines = options.difference(options.to_dict(begun.model), options.to_dict(model), ignore=tuple(free))
    if lines:
        raise ValueError(f"got warmup.run={folder} of another model ({'; '.join(lines)}); wanted the same")
    steps = begun.warmup.own_steps
    tree = shapes(begun.model, architecture)
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        meshes.shardings(tree, mesh),
    )
    with contextlib.closing(checkpoint.manager(folder / "checkpoints", read_only=True)) as checkpoints:
        if steps not in checkpoints.all_steps():
            raise ValueError(
                f"got warmup.run={folder} with checkpoints {checkpoints.all_steps()}; wanted {steps}, the end of its "
                "supervised stage: let it finish"
            )
        params = checkpoint.restore_params(checkpoints, steps, like)
    return params if begun.model.lora_rank else _adapted(params, model, key)


def _adapted(params: dict, model: options.Model, key: jax.Array) -> dict:
    if not model.lora_rank:
        return params
    settings = lora.LoRA(model.lora_rank, model.lora_alpha, model.lora_targets)
    return lora.add_to(params, settings, jax.random.fold_in(key, ADAPTERS))


@functools.partial(jax.jit, static_argnames=("architecture", "dtype"))
def _random(key: jax.Array, *, architecture: Any, dtype: str) -> Any:
    return meshes.keep_sharded(models.family(architecture).init(architecture, key, jnp.dtype(dtype)))
