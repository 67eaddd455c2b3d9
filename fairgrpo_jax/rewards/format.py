r"""Scores the form of a completion, 1 or 0, whatever its answer."""

from collections.abc import Sequence

import numpy as np

from fairgrpo_jax.rewards.parsing import parse


def think_answer(texts: Sequence[str]) -> np.ndarray:
    r"""1.0 where the whole completion is ``<think>...</think>`` and then ``<answer>...</answer>``.

    White space around and between them is free; each tag occurs once; thought and answer may be empty.

    Args:
        texts: N completions.

    Returns:
        (N,) float32 of 0 and 1.

    Source: R1-V, the likely code base of arXiv 2505.13973, which matches the whole completion with
    ``<think>.*?</think>\s*<answer>.*?</answer>``. Unlike here, that lets tags repeat inside, and refuses white space
    around.

    >>> think_answer(["<think>Dark.</think> <answer>B</answer>", "<think>Dark.</think> B"]).tolist()
    [1.0, 0.0]
    """
    return np.asarray([found.whole and found.tags == 1 for found in map(parse, texts)], np.float32)


def think_box(texts: Sequence[str]) -> np.ndarray:
    r"""1.0 where the whole completion is ``<think>...</think>`` and then one ``\boxed{...}``, the form of our targets.

    White space around and between them is free; the think tags occur once and no answer tag does; the thought may be
    empty.

    Args:
        texts: N completions.

    Returns:
        (N,) float32 of 0 and 1.

    Source: ours, after the prompt of FairGRPO (arXiv 2510.19893), whose reward has no part for the form.

    >>> think_box([r"<think>Dark.</think>\boxed{Nevus}", r"\boxed{Nevus}"]).tolist()
    [1.0, 0.0]
    """
    return np.asarray([found.whole and found.tags == 0 for found in map(parse, texts)], np.float32)


def one_box(texts: Sequence[str]) -> np.ndarray:
    r"""1.0 where exactly one ``\boxed{...}`` closes after the thought, or in the completion if it has no thought.

    Text around the box is free.

    Args:
        texts: N completions.

    Returns:
        (N,) float32 of 0 and 1.

    Source: ours; for models that are not asked to think.

    >>> one_box([r"It is \boxed{Nevus}.", r"\boxed{Nevus} or \boxed{Melanoma}"]).tolist()
    [1.0, 0.0]
    """
    return np.asarray([found.boxes == 1 for found in map(parse, texts)], np.float32)
