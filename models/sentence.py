"""Sentence encoders as sentence-transformers publishes them: a BERT, pooled over a text's tokens, to unit length.

encoder = sentence.load("all-MiniLM-L6-v2")
a, b = encoder.encode(["The lungs are clear.", "No consolidation."])
a @ b  # the cosine
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fairgrpo_jax import mesh as meshes
from fairgrpo_jax.models import bert
from fairgrpo_jax.models.checkpoints import tensorfile
from fairgrpo_jax.models.checkpoints.processor import read_json


ROWS = (8, 64)  # texts that run together: few, or many
SHORTEST = 32  # tokens to which texts are padded at least; then doubled

Pooling = Literal["mean", "cls"]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A sentence encoder; made by ``load``.

    Attributes:
        config: of its BERT.
        params: nested dict of arrays, float32.
        tokenizer: a ``tokenizers.Tokenizer`` that cuts and pads nothing.
        max_tokens: tokens of a text that are read, its marks included; what follows is not.
        pooling: over the tokens of a text: their mean, or the first.
        lower: whether texts are lower-cased before the tokenizer.
        name: for the log.
    """

    config: bert.Config
    params: dict
    tokenizer: Any
    max_tokens: int
    pooling: Pooling = "mean"
    lower: bool = False
    name: str = "sentence encoder"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, d) float32 of unit length.

        Texts run in batches of a few sizes, padded to a few lengths, so that few programs are compiled.
        """
        out = np.zeros((len(texts), self.config.hidden_size), np.float32)
        ids = self._tokens(texts)
        for rows, tokens, valid in _batches(ids, self.max_tokens):
            with meshes.unset():
                pooled = _pooled(self.params, self.config, self.pooling, tokens, valid)
            out[rows] = np.asarray(pooled)[: len(rows)]
        return out

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        read = [text.lower() for text in texts] if self.lower else list(texts)
        return [encoding.ids for encoding in self.tokenizer.encode_batch(read)]


def load(path: str | Path) -> Encoder:
    """Reads a sentence encoder from its folder; offline, without torch.

    Args:
        path: folder as sentence-transformers publishes it: ``modules.json``, ``config.json``, ``model.safetensors``,
            ``tokenizer.json``, and the settings of its pooling.

    Raises:
        ValueError: if a file is missing or broken, the model is no BERT, or its steps are others than pooling by mean
            or first token, and normalisation.

    All-MiniLM-L6-v2 reads 256 tokens and takes the mean over them.
    """
    folder = Path(path)
    tensorfile.require_folder(folder)
    pooling = _pooling(folder)
    config = bert.Config.from_hugging_face(read_json(folder / "config.json"))
    own = folder / "sentence_bert_config.json"
    settings = read_json(own) if own.is_file() else {}
    limit = min(settings.get("max_seq_length") or config.max_positions, config.max_positions)
    tokenizer = _tokenizer(folder, limit, config.vocab_size)
    params = jax.tree.map(jnp.asarray, bert.from_hugging_face(_tensors(folder), config))
    return Encoder(config, params, tokenizer, limit, pooling, bool(settings.get("do_lower_case")), folder.name)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pooled(params: dict, config: bert.Config, pooling: Pooling, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        hidden = bert.encode(params, config, tokens, valid)
    weights = valid[..., None].astype(hidden.dtype)
    mean = (hidden * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
    out = mean if pooling == "mean" else hidden[:, 0]
    return out / jnp.maximum(jnp.linalg.norm(out, axis=-1, keepdims=True), 1e-12)


def _batches(ids: Sequence[Sequence[int]], most: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Texts of like length together: their rows, tokens (R, T) int32 and which of them are valid (R, T)."""
    order = np.argsort([len(row) for row in ids], kind="stable")
    while len(order):
        size = ROWS[-1] if len(order) > ROWS[0] else ROWS[0]
        rows, order = order[:size], order[size:]
        length = SHORTEST
        while length < len(ids[rows[-1]]):
            length *= 2
        tokens = np.zeros((size, min(length, most)), np.int32)
        valid = np.zeros(tokens.shape, bool)
        for place, row in enumerate(rows):
            tokens[place, : len(ids[row])] = ids[row]
            valid[place, : len(ids[row])] = True
        yield rows, tokens, valid


def _tokenizer(folder: Path, limit: int, vocab_size: int) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"got {folder} without tokenizer.json; wanted it, as sentence-transformers publishes it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"got {path}, which cannot be read ({error}); copy it again") from error
    if (known := tokenizer.get_vocab_size()) > vocab_size:
        raise ValueError(f"got {path} with {known} tokens; wanted at most vocab_size={vocab_size} of config.json")
    tokenizer.enable_truncation(limit)
    tokenizer.no_padding()
    return tokenizer


def _tensors(folder: Path) -> Mapping[str, np.ndarray]:
    path = folder / tensorfile.SINGLE
    if not path.is_file():
        raise ValueError(f"got {folder} without {tensorfile.SINGLE}; wanted it: pickles run code and are never read")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"got {path} as no whole safetensors file ({error}); copy it again") from error


def _pooling(folder: Path) -> Pooling:
    """The pooling that ``modules.json`` names; what else it names must be computed here."""
    path = folder / "modules.json"
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        steps = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    except OSError as error:
        raise ValueError(
            f"got {path} ({error.strerror}); wanted the folder of a sentence encoder, such as all-MiniLM-L6-v2"
        ) from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"got {path}, which is no list of modules; copy it again") from error
    if [*steps][:2] != ["Transformer", "Pooling"] or set(steps) - {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(f"got {path} with {', '.join(steps)}; wanted Transformer, Pooling and perhaps Normalize")
    if steps["Transformer"]:
        raise ValueError(f"got {path} with the Transformer in {steps['Transformer']!r}; wanted it in the folder itself")
    settings = read_json(folder / steps["Pooling"] / "config.json")
    chosen = [name for name, value in settings.items() if name.startswith("pooling_mode") and value is True]
    modes: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(chosen) != 1 or chosen[0] not in modes:
        raise ValueError(
            f"got pooling by {', '.join(chosen) or 'nothing'} in {folder / steps['Pooling']}; wanted one of "
            f"{', '.join(modes)}"
        )
    return modes[chosen[0]]
