"""A judge of random weights, to walk the path of one: a text decoder, and the tiny tokenizer with the words Yes and No.

Its scores are the same for the same text and say nothing about it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from fairgrpo_jax import models
from fairgrpo_jax.models import text
from fairgrpo_jax.models.chat import TextProcessor
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer


WORDS = ("Yes", "No", " Yes", " No")


def tokenizer(words: Sequence[str] = WORDS) -> Any:
    """The tiny tokenizer, to which words are added as tokens of their own."""
    found = tiny_tokenizer()
    found.add_tokens([*words])
    return found


def write(
    folder: Path,
    family: str = "qwen2",
    *,
    words: Sequence[str] = WORDS,
    template: bool = True,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Writes the checkpoint folder of a judge, whose vocabulary has rows to spare; returns it.

    Args:
        folder: to write.
        family: as of ``text.tiny``.
        words: that are tokens.
        template: whether it has a chat template.
        seed: of the weights.
        **changes: fields of ``text.Config`` to replace.
    """
    known = tokenizer(words)
    if not template:
        known.chat_template = None
    if family == "mistral":
        changes = {"window": 300, "tie_word_embeddings": False, **changes}
    rows = 8 * (len(known) // 8 + 1)
    config = text.tiny(family, vocab_size=rows, initializer_range=0.3, **changes)
    models.init(config, jax.random.key(seed), processor=TextProcessor(known)).save(folder)
    return folder
