"""Folders of tiny random judges: a text decoder, and the tiny tokenizer with the words Yes and No."""

import jax

from fairgrpo_jax import models
from fairgrpo_jax.models import text
from fairgrpo_jax.models.chat import TextProcessor
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer


WORDS = ("Yes", "No", " Yes", " No")


def tokenizer(words=WORDS):
    found = tiny_tokenizer()
    found.add_tokens([*words])
    return found


def write(folder, family="qwen2", *, words=WORDS, template=True, seed=0, **changes):
    """A judge whose vocabulary has rows to spare."""
    known = tokenizer(words)
    if not template:
        known.chat_template = None
    if family == "mistral":
        changes = {"window": 300, "tie_word_embeddings": False, **changes}
    config = text.tiny(family, vocab_size=520, initializer_range=0.3, **changes)
    models.init(config, jax.random.key(seed), processor=TextProcessor(known)).save(folder)
    return folder
