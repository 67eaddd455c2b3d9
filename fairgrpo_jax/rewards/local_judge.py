"""A judge without a server: the probabilities of Yes and No after a question, from a checkpoint on our own devices.

    with LocalJudge(Options(path=Path("BioMistral-7B"))) as judge:
        judged = judge_components.coherent(answers, judge).result()

One forward pass a question; nothing is sampled, and nothing leaves the machine. What a question scores depends on
nothing but the question.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
import numpy as np

from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.models import next_words
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
            options: ``path``, ``dtype`` and ``context``. With ``mode`` text a question is worth 1 where Yes is likelier
                than No, and else 0; with typed, P(Yes) / (P(Yes) + P(No)).
            mesh: over which the weights and the questions are split, or its shape such as ``"4x1"``; None: the first
                device.

        Raises:
            ValueError: if there is no path, or from ``models.next_words.load``: several processes run, the folder has
                no tokenizer or one in which Yes and No are no single tokens.
        """
        if options.path is None:
            raise ValueError("got judge.path=None; wanted the checkpoint folder of a judge on our own devices")
        self.options = dataclasses.replace(options, mode="text")
        self._typed = options.mode == "typed"
        self._reader = next_words.load(options.path, "Yes", "No", mesh=mesh, dtype=options.dtype)
        self._counts: collections.Counter[str] = collections.Counter()
        self._said = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the weights."""
        self._reader = None

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
        known = list(dict.fromkeys(question.text for question in questions))
        found = dict(zip(known, self._scores(known), strict=True))
        scores = np.array([found[question.text] for question in questions], np.float32).reshape(-1, 1)
        missing = int(np.isnan(scores).sum())
        self._counts["asked"] += len(questions)
        self._counts["scored"] += len(questions) - missing
        self._counts["cache_hits"] += len(questions) - len(known)
        if missing:
            self._counts["failed/long"] += missing
        done: concurrent.futures.Future[np.ndarray] = concurrent.futures.Future()
        done.set_result(scores)
        return done

    def _scores(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) of different questions, NaN where one is too long."""
        if self._reader is None:
            raise ValueError("got a question to a judge that is closed; wanted it inside its with")
        ids = [self._reader.tokens(text, plain_end=ANSWER) for text in texts]
        short = [i for i, tokens in enumerate(ids) if len(tokens) <= self.options.context]
        found = self._reader.log_probs([ids[i] for i in short]).astype(np.float64)
        self._counts["calls"] += len(short)
        self._counts["tokens_in"] += sum(len(ids[i]) for i in short)
        self._said += float(np.exp(found).sum())
        odds = found[:, 0] - found[:, 1]
        scores = np.full(len(texts), np.nan)
        scores[short] = 1 / (1 + np.exp(-odds)) if self._typed else odds > 0
        return scores

    def counts(self) -> dict[str, float]:
        """What has happened since the start, for the log.

        ``asked`` = ``scored`` + ``failed/long``. ``cache_hits`` are questions that stood twice in a batch. ``said`` is
        the mean of P(Yes) + P(No): near 0, this judge does not answer such questions, and its scores mean little.
        """
        counts = dict(self._counts)
        names = ("asked", "scored", "calls", "cache_hits", "tokens_in")
        said = self._said / counts["calls"] if counts.get("calls") else 0.0
        return {**dict.fromkeys(names, 0.0), **counts, "said": said}
