"""The tiny tokenizer, read from the package: no network."""

import logging
import pathlib
from typing import Any


FOLDER = pathlib.Path(__file__).parent / "tiny_tokenizer"


def tiny_tokenizer() -> Any:
    r"""The byte-level BPE tokenizer of the tiny model, a ``transformers.PreTrainedTokenizerFast``.

    Qwen's special tokens and chat format; every answer and finding of the synthetic clinic is one token.
    ``build_tokenizer.py`` makes it.

    Example:
        >>> tiny_tokenizer().tokenize(r"<think>ring</think>\boxed{Basal Cell Carcinoma}")
        ['<think>', 'ring', '</think>', '\\boxed{', 'BasalĠCellĠCarcinoma', '}']
    """
    # transformers advises at import to install torch; this program is made to do without.
    logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(FOLDER)
