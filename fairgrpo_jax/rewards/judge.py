"""A language model as judge, behind any endpoint in OpenAI's form: questions to scores.

``Judge.submit`` returns at once. What cannot be scored is NaN and counted by reason, never 0.
"""

import asyncio
import concurrent.futures
from collections.abc import Sequence

import numpy as np

from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.rewards.endpoint import Endpoint
from fairgrpo_jax.rewards.judge_prompts import Question


class Judge(Endpoint):
    """An endpoint whose answers are scores. ``with Judge(options) as judge`` closes it at the end."""

    options: Options

    def __init__(self, options: Options):
        """Opens the cache and starts the thread; nothing is sent yet.

        Raises:
            ValueError: if there is no model or no key, or the cache is no file of ours.
            ImportError: if the client library is not installed.
        """
        super().__init__(options)

    def submit(self, questions: Sequence[Question]) -> "concurrent.futures.Future[np.ndarray]":
        """Asks all questions and returns at once.

        Args:
            questions: N questions with the same D dimensions.

        Returns:
            A future of (N, D) float32 in [0, 1], NaN where a question has no score. It is done after
            ``total_seconds`` at the latest. Calls in flight then go on, and what they bring is in the cache.

        Raises:
            ValueError: if the questions differ in their dimensions.
        """
        widths = {len(question.dimensions) for question in questions}
        if len(widths) > 1:
            raise ValueError(f"got questions with {sorted(widths)} dimensions; wanted the same number for all")
        scores = self._scores(list(questions), max(widths, default=0), self._deadline())
        return asyncio.run_coroutine_threadsafe(scores, self._loop)

    async def _scores(self, questions: list[Question], width: int, until: float) -> np.ndarray:
        scores = np.full((len(questions), width), np.nan, np.float32)
        for row, outcome in enumerate(await self._batch(questions, until)):
            if outcome.values is not None:
                scores[row] = outcome.values
        return scores

    def _ready(self) -> Question:
        typed = {"ready": {"type": "noul", "instructions": "Is this a question?"}}
        return super()._ready()._replace(typed=typed if self.options.mode == "typed" else {})
