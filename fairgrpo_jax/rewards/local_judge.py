"""A judge without a server: the probabilities of Yes and No after a question, from a checkpoint on our own devices.

    with LocalJudge(Options(path=Path("BioMistral-7B"))) as judge:
        judged = judge_components.coherent(answers, judge).result()

One forward pass a question; nothing is sampled, and nothing leaves the machine. What a question scores depends on
nothing but the question. What was read is kept, in a file if there is one, so that a question is read once.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import jax
import numpy as np

from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.models import next_words
from fairgrpo_jax.rewards.judge_cache import Cache, Disk
from fairgrpo_jax.rewards.judge_prompts import Question, yes_or_no


ANSWER = "\n\nAnswer:"  # after a question, for a checkpoint without a chat template


class LocalJudge:
    """Answers the Yes or No questions of ``judge_prompts``; ``with LocalJudge(options) as judge`` frees it at the end.

    Attributes:
        options: how questions are posed to it: always as text.
    """

    def __init__(self, options: Options, *, mesh: jax.sharding.Mesh | str | None = None):
        """Reads the checkpoint; what is wrong with it is found before its weights are.

        Args:
            options: ``path``, ``dtype`` and ``context``; ``cache``, the file that keeps what was read, None: memory.
                With ``mode`` text a question is worth 1 where Yes is likelier than No, and else 0; with typed,
                P(Yes) / (P(Yes) + P(No)).
            mesh: over which the weights and the questions are split, or its shape such as ``"4x1"``; None: the first
                device.

        Raises:
            ValueError: if there is no path, or from ``models.next_words.load``: several processes run, the folder has
                no tokenizer or one in which Yes and No are no single tokens, or the cache is no file of ours.
        """
        if options.path is None:
            raise ValueError("got judge.path=None; wanted the checkpoint folder of a judge on our own devices")
        self.options = dataclasses.replace(options, mode="text")
        self._typed = options.mode == "typed"
        self._reader = next_words.load(options.path, "Yes", "No", mesh=mesh, dtype=options.dtype)
        self._identity = [*_identity(options.path), options.dtype]
        self._disk = Disk(options.cache)
        self._counts: collections.Counter[str] = collections.Counter()
        self._said = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the weights and closes the cache."""
        if self._reader is not None:
            self._reader = None
            self._disk.close()

    def check(self) -> None:
        """Does nothing: what could be wrong was found when the folder was read."""

    def submit(self, questions: Sequence[Question]) -> "concurrent.futures.Future[np.ndarray]":
        """Answers all questions, before it returns.

        Args:
            questions: N questions for Yes or No, as text: ``judge_prompts.coherent``.

        Returns:
            A future that is done, of (N, 1) float32 in [0, 1]. NaN where a question is longer than ``context`` tokens:
            it is never judged by a part of itself.

        Raises:
            ValueError: for questions of another kind.
        """
        other = {question.version for question in questions if question.typed or question.read is not yes_or_no}
        if other:
            raise ValueError(
                f"got questions {', '.join(sorted(other))} for a judge without a server, which says Yes or No; wanted "
                "judge_prompts.coherent as text, or an endpoint: judge.url"
            )
        before, texts = self._counts["calls"], [question.text for question in questions]
        read = self._read(list(dict.fromkeys(texts)))
        found = np.array([read.get(text, (np.nan, np.nan)) for text in texts]).reshape(-1, 2)
        odds = found[:, :1] - found[:, 1:]
        scores = 1 / (1 + np.exp(-odds)) if self._typed else np.where(np.isnan(odds), np.nan, odds > 0)
        missing = int(np.isnan(odds).sum())
        self._said += float(np.nansum(np.exp(found)))
        self._counts["asked"] += len(texts)
        self._counts["scored"] += len(texts) - missing
        self._counts["cache_hits"] += len(texts) - missing - (self._counts["calls"] - before)
        if missing:
            self._counts["failed/long"] += missing
        done: concurrent.futures.Future[np.ndarray] = concurrent.futures.Future()
        done.set_result(scores.astype(np.float32))
        return done

    def _read(self, texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """The log-probabilities of Yes and No after different questions; those that are too long are left out."""
        if self._reader is None:
            raise ValueError("got a question to a judge that is closed; wanted it inside its with")
        keys = {text: self._key(text) for text in texts}
        kept = self._disk.run(Cache.found, [*keys.values()]).result()
        ids = {text: self._reader.tokens(text, plain_end=ANSWER) for text in texts if keys[text] not in kept}
        short = [text for text, tokens in ids.items() if len(tokens) <= self.options.context]
        found = self._reader.log_probs([ids[text] for text in short]).tolist()
        waiting = [
            self._disk.run(Cache.store, keys[text], tuple(row), "") for text, row in zip(short, found, strict=True)
        ]
        kept |= {keys[text]: future.result() for text, future in zip(short, waiting, strict=True)}
        self._counts["calls"] += len(short)
        self._counts["tokens_in"] += sum(len(ids[text]) for text in short)
        return {text: kept[key] for text, key in keys.items() if key in kept}

    def _key(self, text: str) -> str:
        return hashlib.sha256(json.dumps([self._identity, text]).encode()).hexdigest()

    def counts(self) -> dict[str, float]:
        """What has happened since the start, for the log.

        ``asked`` = ``scored`` + ``failed/long``, ``scored`` = ``calls`` + ``cache_hits``: questions that were read, and
        that had been read before. ``said`` is the mean of P(Yes) + P(No): near 0, this judge does not answer such
        questions, and its scores mean little.
        """
        counts = dict(self._counts)
        names = ("asked", "scored", "calls", "cache_hits", "tokens_in")
        said = self._said / counts["scored"] if counts.get("scored") else 0.0
        return {**dict.fromkeys(names, 0.0), **counts, "said": said}


def _identity(folder: Path) -> list[str]:
    """What tells checkpoints apart without reading them: place, size and time of the files."""
    files = [(path, path.stat()) for path in sorted(folder.resolve().iterdir()) if path.is_file()]
    return [f"{path} {about.st_size} {about.st_mtime_ns}" for path, about in files]
