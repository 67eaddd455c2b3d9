"""How likely some words are as the next after a text: one forward pass, nothing is sampled.

A text is padded to a length that depends on itself alone, and always as many run together, so that neither its
neighbours nor their number change what it gives.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax import mesh as meshes
from fairgrpo_jax.models import decoder
from fairgrpo_jax.models.checkpoints import store
from fairgrpo_jax.models.inputs import Prompt, pack


SHORTEST = 256  # tokens to which texts are padded at least; then doubled
TOGETHER = 8192  # tokens that run together, padding included
# How vocabularies spell a word: as it is, or with the blank before it, in three kinds of tokenizers.
FORMS = ("", "Ġ", "▁", " ")

Words = tuple[tuple[int, ...], ...]  # of each word, its tokens


def spellings(vocabulary: Mapping[str, int], size: int, *wanted: str) -> Words:
    """The tokens of words: of each, in the spellings that the vocabulary has of all.

    Args:
        vocabulary: token to id.
        size: number of ids that the model has.
        *wanted: the words.

    Raises:
        ValueError: if no spelling makes a single token of each.

    >>> spellings({"Yes": 3, "No": 4, "ĠYes": 5, "ĠNo": 6, "▁Yes": 7}, 8, "Yes", "No")
    ((3, 5), (4, 6))
    """
    rows = [[vocabulary.get(form + word, size) for word in wanted] for form in FORMS]
    whole = [row for row in rows if max(row) < size and len(set(row)) == len(row)]
    if not whole:
        raise ValueError(
            f"got a tokenizer in which {' and '.join(wanted)} are not distinct single tokens; wanted one in which they "
            "are: the answer is read from their probabilities"
        )
    return tuple(zip(*whole, strict=True))


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model that reads texts and tells how likely its words are as the next; made by ``load``.

    Attributes:
        config: of the model, of any family.
        params: its parameters, on the devices of the mesh.
        tokenizer: a Hugging Face tokenizer.
        template: Jinja source of its chats; None: texts are read as they are.
        words: of each word its tokens, whose probabilities are added; see ``spellings``.
        mesh: over which the texts are split; None: they run where the parameters are.
    """

    config: decoder.TextConfig
    params: Any
    tokenizer: Any
    template: str | None
    words: Words
    mesh: jax.sharding.Mesh | None = None

    def tokens(self, text: str, *, plain_end: str = "") -> list[int]:
        """The tokens of a text: as a user's turn and the opening of the answer, if the model has a chat template.

        Args:
            text: the text.
            plain_end: what follows it where there is no template.
        """
        if self.template is None:
            return self.tokenizer(text + plain_end)["input_ids"]
        talk = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(
            talk, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def log_probs(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Log-probabilities (N, W) float32 of the W words as the next after N texts, given as tokens."""
        out = np.zeros((len(rows), len(self.words)), np.float32)
        for places, inputs in _batches(rows, 1 if self.mesh is None else self.mesh.shape["fsdp"]):
            prompt: Any = pack(inputs, self.config, length=inputs["input_ids"].shape[1])
            with meshes.unset() if self.mesh is None else jax.set_mesh(self.mesh):
                prompt = prompt if self.mesh is None else meshes.put(prompt, self.mesh)
                found = _log_probs(self.params, self.config, prompt, self.words)
            out[places] = np.asarray(found)[: len(places)]
        return out


def load(folder: Path, *wanted: str, mesh: jax.sharding.Mesh | str | None = None, dtype: str = "bfloat16") -> Reader:
    """Reads a checkpoint folder; what is wrong with it is found before its weights are read.

    Args:
        folder: as Hugging Face publishes it, of any family.
        *wanted: the words.
        mesh: over which weights and texts are split, or its shape such as ``"4x1"``; None: the first device.
        dtype: of the weights.

    Raises:
        ValueError: if several processes run, there is no tokenizer, a word is no single token in it, or from
            ``models.load``.
    """
    if (count := jax.process_count()) > 1:
        raise ValueError(f"got {count} processes; wanted one, in which the texts are")
    config, processor = store.describe(folder)
    if processor is None:
        raise ValueError(f"got {folder} without a tokenizer; wanted its files beside the weights")
    tokenizer = processor.tokenizer
    words = spellings(tokenizer.get_vocab(), config.vocab_size, *wanted)
    mesh = meshes.make(mesh) if isinstance(mesh, str) else mesh
    params = store.load_params(folder, config, mesh=mesh, dtype=dtype)
    return Reader(config, params, tokenizer, processor.chat_template or tokenizer.chat_template, words, mesh)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _log_probs(params: dict, config: decoder.TextConfig, prompt: Prompt, words: Words) -> jax.Array:
    hidden, _ = decoder.prompt_pass(params, config, prompt)
    logits = decoder.head(params, config, decoder.last_hidden(prompt, hidden))
    of_words = [jax.nn.logsumexp(logits[:, np.array(tokens)], axis=-1) for tokens in words]
    return jnp.stack(of_words, axis=1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _batches(rows: Sequence[Sequence[int]], devices: int) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Texts of one padded length together: their places, and inputs of always the same shape for a length."""
    of_length: dict[int, list[int]] = {}
    for place, tokens in enumerate(rows):
        length = SHORTEST
        while length < len(tokens):
            length *= 2
        of_length.setdefault(length, []).append(place)
    for length, places in sorted(of_length.items()):
        size = max(1, TOGETHER // length // devices) * devices
        for start in range(0, len(places), size):
            own = places[start : start + size]
            tokens, mask = np.zeros((size, length), np.int64), np.zeros((size, length), np.int64)
            mask[len(own) :, 0] = 1  # rows without a text
            for row, place in enumerate(own):
                tokens[row, : len(rows[place])], mask[row, : len(rows[place])] = rows[place], 1
            yield own, {"input_ids": tokens, "attention_mask": mask}
