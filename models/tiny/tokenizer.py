"""The tiny tokenizer, read from the package without network."""

import logging
import pathlib
from typing import Any


FOLDER = pathlib.Path(__file__).parent / "tiny_tokenizer"


def tiny_tokenizer() -> Any:
    r"""The byte-level BPE tokenizer of the tiny model, a ``transformers.PreTrainedTokenizerFast``.

    Qwen's special tokens and chat format; every answer and finding of the synthetic clinic is one token.
    ``build_tokenizer.py`` builds it.

    Example:
        >>> tiny_tokenizer().tokenize(r"<think>ring</think>\boxed{Basal Cell Carcinoma}")
        ['<think>', 'ring', '</think>', '\\boxed{', 'BasalĠCellĠCarcinoma', '}']
    """
    quiet_transformers()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(FOLDER)


def quiet_transformers() -> None:
    """Silences transformers' advice to install torch, which is not needed; call before importing transformers."""
    logging.getLogger("transformers").addFilter(_wanted)


def _wanted(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage()
