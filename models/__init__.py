"""Vision-language models as Flax NNX blocks over plain parameter trees, one file per family."""

if not __name__.startswith("fairgrpo_jax."):
    raise ImportError("import fairgrpo_jax.models, not models: a second copy of these modules would not know the first")

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairgrpo_jax.models import (
    decoder,
    gemma3 as gemma3,
    qwen2_5_vl as qwen2_5_vl,
    qwen2_vl as qwen2_vl,
    qwen3_vl as qwen3_vl,
    text as text,
)
from fairgrpo_jax.models.checkpoints import store
from fairgrpo_jax.models.checkpoints.processor import processor as processor
from fairgrpo_jax.models.families import FAMILIES as FAMILIES, family as family, read_config as read_config
from fairgrpo_jax.models.inputs import (
    Prompt as Prompt,
    cut as cut,
    pack as pack,
    prompt_shapes as prompt_shapes,
    sizes as sizes,
)
from fairgrpo_jax.models.processing import Processor as Processor


@dataclasses.dataclass(frozen=True)
class VLM:
    """A vision-language model: its config, parameters, and processor.

    Attributes:
        config: the architecture, e.g. ``qwen2_5_vl.Config``.
        params: nested dict of arrays.
        processor: converts messages, images and videos to inputs; None if the caller has one.
        source: the checkpoint folder that the model was loaded from, if any.
    """

    config: Any
    params: dict
    processor: Any = None
    source: Path | None = None

    def logits(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Next-token logits (B, T, V) float32 in the layout of the inputs; 0 at padding.

        Args:
            inputs: the arrays of a Hugging Face processor, padded on the left or the right; see ``inputs.pack``.

        Raises:
            ValueError: from ``inputs.pack``.
        """
        ids = np.asarray(inputs["input_ids"])
        mask = np.asarray(inputs.get("attention_mask", np.ones_like(ids))).astype(bool)
        packed = np.asarray(_logits(self.params, self.config, pack(inputs, self.config)))
        order = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        return np.where(mask[..., None], np.take_along_axis(packed, order[..., None], axis=1), 0.0)

    def save(self, checkpoint_dir: str | Path, *, max_shard_bytes: int = 5 * 10**9) -> None:
        """Writes the model as a checkpoint folder that transformers and vLLM load; see ``store.save``."""
        store.save(self, checkpoint_dir, max_shard_bytes=max_shard_bytes)


def init(config: Any, key: jax.Array, *, processor: Any = None) -> VLM:
    """Initialises a model with random weights.

    Args:
        config: the family's config, e.g. ``qwen2_5_vl.tiny()``.
        key: PRNG key.
        processor: stored with the model.

    Example:
        >>> from fairgrpo_jax.models import qwen2_5_vl
        >>> vlm = init(qwen2_5_vl.tiny(), jax.random.key(0))
        >>> vlm.logits({"input_ids": np.array([[7, 8, 9]])}).shape
        (1, 3, 512)
    """
    return VLM(config, family(config).init(config, key), processor)


def load(checkpoint_dir: str | Path, *, mesh: jax.sharding.Mesh | str | None = None, dtype: Any = "bfloat16") -> VLM:
    """Loads a model from a checkpoint folder as Hugging Face publishes it.

    Args:
        checkpoint_dir: folder with ``config.json`` and safetensors files; if it also has a tokenizer and image
            settings, the model gets its processor.
        mesh: mesh over which the parameters are sharded, or its shape such as ``"4x1"``; None: the first device.
        dtype: dtype of the parameters, independent of the files: bfloat16, float16 or float32.

    Raises:
        ValueError: if the folder has no config or safetensors, is of an unknown family, or has broken files or tensors
            that do not fit its config (all are named); before any weight is read.
    """
    folder = Path(checkpoint_dir)
    config, processor = store.describe(folder)
    return VLM(config, store.load_params(folder, config, mesh=mesh, dtype=dtype), processor, folder)


@functools.partial(jax.jit, static_argnums=1)
def _logits(params: dict, config: decoder.TextConfig, prompt: Prompt) -> jax.Array:
    hidden, _ = decoder.prompt_pass(params, config, prompt)
    return decoder.head(params, config, hidden)
