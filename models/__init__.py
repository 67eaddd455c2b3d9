"""Vision-language models as Flax NNX blocks over plain parameter trees, one file per family."""

if not __name__.startswith("fairgrpo_jax."):
    raise ImportError("import fairgrpo_jax.models, not models: a second copy of these modules would not know the first")

import dataclasses
import functools
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from fairgrpo_jax.models.inputs import Prompt as Prompt, pack as pack
from fairgrpo_jax.models.processing import Processor as Processor


@dataclasses.dataclass(frozen=True)
class VLM:
    """A model: what it is, its parameters, and the processor that feeds it.

    Attributes:
        config: static description, e.g. ``qwen2_5_vl.Config``.
        params: nested dict of arrays.
        processor: messages, images and videos to inputs; None when the caller has one.
    """

    config: Any
    params: dict
    processor: Any = None

    def logits(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Next-token logits (B, T, V) float32 in the layout of the inputs; 0 at padding.

        Args:
            inputs: what a Hugging Face processor returns, padded on either side; see ``inputs.pack``.

        Raises:
            ValueError: from ``inputs.pack``.
        """
        ids = np.asarray(inputs["input_ids"])
        mask = np.asarray(inputs.get("attention_mask", np.ones_like(ids))).astype(bool)
        packed = np.asarray(_logits(self.params, self.config, pack(inputs, self.config)))
        order = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        return np.where(mask[..., None], np.take_along_axis(packed, order[..., None], axis=1), 0.0)


def init(config: Any, key: jax.Array, *, processor: Any = None) -> VLM:
    """A freshly initialised model.

    Args:
        config: of the family, e.g. ``qwen2_5_vl.tiny()``.
        key: PRNG key.
        processor: kept beside the model.

    Example:
        >>> from fairgrpo_jax.models import qwen2_5_vl
        >>> vlm = init(qwen2_5_vl.tiny(), jax.random.key(0))
        >>> vlm.logits({"input_ids": np.array([[7, 8, 9]])}).shape
        (1, 3, 512)
    """
    return VLM(config, family(config).init(config, key), processor)


def family(config: Any) -> ModuleType:
    """The module of a config's class, with ``prompt_pass``, ``completion_pass``, ``decode_step``, ``head``."""
    return sys.modules[type(config).__module__]


@functools.partial(jax.jit, static_argnums=1)
def _logits(params: dict, config: Any, prompt: Prompt) -> jax.Array:
    hidden, _ = family(config).prompt_pass(params, config, prompt)
    return family(config).head(params, config, hidden)
