"""How alike the answer and the reference are: the cosine of their sentence embeddings, or the F1 of their words.

The encoder knows synonyms; the words are a fallback without weights. Neither replaces the other in silence: ``measure``
says which one it is. What either can be had with is in docs/rewards.md, negation above all.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fairgrpo_jax.models import sentence
from fairgrpo_jax.rewards import accuracy
from fairgrpo_jax.rewards.answers import Answers
from fairgrpo_jax.rewards.parsing import plain_answer


# From N texts and N references to (N,) float32: 1 for the same, 0 for a blank text, NaN for a blank reference.
Measure = Callable[[Sequence[str], Sequence[str]], np.ndarray]

KEPT = 65_536  # embeddings of references that are kept, the oldest leaving first


class Similarity:
    """The cosine of sentence embeddings; each reference is embedded once."""

    def __init__(self, path: str | Path):
        """Reads the encoder.

        Args:
            path: its folder, such as all-MiniLM-L6-v2; see ``models.sentence.load``.

        Raises:
            ValueError: from ``models.sentence.load``.
        """
        self._encoder = sentence.load(path)
        self._references: dict[str, np.ndarray] = {}

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self._encoder.name} ({self._encoder.max_tokens} tokens)"

    def cosine(self, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Compares each text with its reference.

        Args:
            texts: N texts.
            references: N references.

        Returns:
            (N,) float32 in [-1, 1]; 0 for a blank text, NaN for a blank reference.

        Raises:
            ValueError: if the numbers differ.
        """
        out, rows = _begin(texts, references)
        if not rows:
            return out
        said = list(dict.fromkeys(texts[i] for i in rows))
        new = list(dict.fromkeys(references[i] for i in rows if references[i] not in self._references))
        found = self._encoder.encode([*said, *new])
        place = {text: i for i, text in enumerate(said)}
        held = self._references | dict(zip(new, found[len(said) :], strict=True))
        for i in rows:
            out[i] = np.dot(found[place[texts[i]]], held[references[i]])
        self._references = dict(list(held.items())[-KEPT:])
        return np.clip(out, -1, 1)


def words_f1(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """2 |A and B| / (|A| + |B|) over words with repetition, ``accuracy.words``: no weights, no synonyms.

    Args:
        texts: N texts.
        references: N references.

    Returns:
        (N,) float32 in [0, 1]; 0 for a blank text, NaN for a blank reference.

    Raises:
        ValueError: if the numbers differ.

    >>> words_f1(["a small effusion", "", "nevus"], ["an effusion", "nevus", "nevus"]).round(2).tolist()
    [0.6700000166893005, 0.0, 1.0]
    """
    out, rows = _begin(texts, references)
    for i in rows:
        said, wanted = Counter(accuracy.words(texts[i])), Counter(accuracy.words(references[i]))
        out[i] = 2 * (said & wanted).total() / (said.total() + wanted.total())
    return out


def measure(path: str | Path | None, *, option: str = "reward.similarity") -> Measure:
    """The measure that an option names; prints which one it is.

    Args:
        path: folder of a sentence encoder; None: words are compared.
        option: the name of the option, to be told.

    Raises:
        ValueError: from ``models.sentence.load``.
    """
    if path is None:
        line = f"similarity: F1 of words; {option} may name the folder of a sentence encoder instead"
        print(line, flush=True)
        return words_f1
    encoder = Similarity(path)
    print(f"similarity: cosine of embeddings by {encoder.name}", flush=True)
    return encoder.cosine


def similar(measure: Measure) -> Callable[[Answers], np.ndarray]:
    """The component of a measure: a completion's answer against the record's, (P, G) float32 in [0, 1].

    A negative cosine is 0, what an empty answer gets: to say nothing must not pay. NaN where the record has no answer.
    """

    def score(answers: Answers) -> np.ndarray:
        texts, records = answers.flat()
        found = measure([plain_answer(text) for text in texts], [record.answer for record in records])
        return np.maximum(found, 0).reshape(answers.lengths.shape)

    return score


def _begin(texts: Sequence[str], references: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """Scores of what needs no comparison, and the rows that need one."""
    if len(texts) != len(references):
        raise ValueError(f"got {len(texts)} texts and {len(references)} references; wanted one reference for each text")
    out = np.array([0.0 if reference.strip() else np.nan for reference in references], np.float32)
    return out, [i for i, text in enumerate(texts) if text.strip() and references[i].strip()]
