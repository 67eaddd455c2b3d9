"""Reward functions of the user, as they are written for TRL and for verl.

TRL's form gets the whole batch, and one value for each completion is wanted; None is not scored::

    def short(completions, answer, **columns):  # also async, also an object with __call__
        return [1.0 if len(text) < 200 else 0.0 for text in completions]

verl's form gets one completion at a time; a dict has its value under ``score``::

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return {"score": float(ground_truth in solution_str)}
"""

import asyncio
import importlib
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from fairgrpo_jax.rewards.answers import Answers, Asked, task


LARGEST = float(np.finfo(np.float32).max)  # of a score


def load(name: str, *, messages: bool = False) -> Callable[[Answers], np.ndarray]:
    """The component of a function named ``package.module:function``, found from the working directory as Python does.

    In TRL's form the keyword arguments are ``prompts``, ``completions``, and the columns ``answer``, ``solution`` (the
    same), ``uid``, ``dataset``, ``task``, ``choices``, ``completion_lengths`` and every entry of ``Record.extra``, each
    a list with one entry a completion; a function gets those that it names, or all with ``**columns``.

    Args:
        name: of the function; a class is called once without arguments, and its object is the function.
        messages: TRL's form for chats: prompts and completions are lists of messages instead of text.

    Raises:
        ValueError: if there is no such module or function, or it is in neither form.

    >>> component = load("statistics:mean")
    Traceback (most recent call last):
    ...
    ValueError: got statistics:mean(data); wanted a reward function with completions (TRL) or solution_str (verl)
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path:  # a console script has its own folder there instead
        sys.path.insert(0, str(Path.cwd()))
    try:
        function: Any = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
        function = function() if inspect.isclass(function) else function
        known = inspect.signature(function).parameters
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"got reward function {name} ({error}); wanted package.module:function") from error
    if "solution_str" in known:
        return lambda answers: _one_by_one(name, function, answers)
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if "completions" not in known and not everything:
        raise ValueError(
            f"got {name}({', '.join(known)}); wanted a reward function with completions (TRL) or solution_str (verl)"
        )
    wanted = None if everything else frozenset(known)
    return lambda answers: _batch(name, function, answers, wanted, messages)


def _batch(
    name: str, function: Callable[..., Any], answers: Answers, wanted: frozenset[str] | None, messages: bool
) -> np.ndarray:
    texts, records = answers.flat()
    lengths = answers.lengths.reshape(-1)

    def call(rows: Sequence[int]) -> list[Any]:
        named = _columns([texts[i] for i in rows], [records[i] for i in rows], lengths[np.array(rows, int)], messages)
        values = function(**{key: value for key, value in named.items() if wanted is None or key in wanted})
        return list(_waited(values) if inspect.isawaitable(values) else values)

    everyone = list(range(len(texts)))
    try:
        values = call(everyone)
    except Exception as error:
        raise _first_fault(name, call, records, error) from error
    if len(values) != len(texts):
        raise ValueError(f"got {len(values)} rewards of {name} for {len(texts)} completions; wanted one for each")
    found = [_number(name, value, record) for value, record in zip(values, records, strict=True)]
    return np.array(found, np.float32).reshape(answers.lengths.shape)


def _one_by_one(name: str, function: Callable[..., Any], answers: Answers) -> np.ndarray:
    texts, records = answers.flat()
    values: list[float] = []
    for text, record in zip(texts, records, strict=True):
        info = {"uid": record.uid, "task": task(record), "choices": list(record.choices), **record.extra}
        given = dict(data_source=record.dataset, solution_str=text, ground_truth=record.answer, extra_info=info)
        try:
            value = function(**given)
            value = _waited(value) if inspect.isawaitable(value) else value
        except Exception as error:
            raise ValueError(f"got {type(error).__name__} ({error}) of {name} for {_named(record)}; mend it") from error
        values.append(_number(name, _score(name, value, record), record))
    return np.array(values, np.float32).reshape(answers.lengths.shape)


def _score(name: str, value: Any, record: Asked) -> Any:
    """The value of a result of verl's form."""
    if not isinstance(value, Mapping):
        return value
    if "score" not in value:
        raise ValueError(f"got a dict without score of {name} for {_named(record)}; wanted {{'score': number}}")
    return cast(Mapping[str, Any], value)["score"]


def _columns(texts: list[str], records: list[Asked], lengths: np.ndarray, messages: bool) -> dict[str, list[Any]]:
    prompts: list[Any] = [record.question for record in records]
    completions: list[Any] = list(texts)
    if messages:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
        completions = [[{"role": "assistant", "content": text}] for text in texts]
    names = sorted({key for record in records for key in record.extra})
    further = {key: [record.extra.get(key, "") for record in records] for key in names}
    return further | {
        "prompts": prompts,
        "completions": completions,
        "answer": [record.answer for record in records],
        "solution": [record.answer for record in records],
        "uid": [record.uid for record in records],
        "dataset": [record.dataset for record in records],
        "task": [task(record) for record in records],
        "choices": [list(record.choices) for record in records],
        "completion_lengths": lengths.tolist(),
    }


def _first_fault(
    name: str, call: Callable[[Sequence[int]], list[Any]], records: Sequence[Asked], error: Exception
) -> ValueError:
    """The error with the first record for which the function raises alone, or with none if it needs several."""
    for row, record in enumerate(records):
        try:
            call([row])
        except Exception as alone:
            return ValueError(f"got {type(alone).__name__} ({alone}) of {name} for {_named(record)}; mend it")
    return ValueError(
        f"got {type(error).__name__} ({error}) of {name} for {len(records)} completions together, of "
        f"{_named(records[0])} and others, and for none alone; mend it"
    )


def _number(name: str, value: Any, record: Asked) -> float:
    """A score as a number; None and NaN are not scored."""
    if value is None:
        return math.nan
    if not isinstance(value, numbers.Real) and not (np.ndim(value) == 0 and hasattr(value, "item")):
        raise ValueError(f"got {value!r} of {name} for {_named(record)}; wanted a number, or None for not scored")
    number = float(value)
    if abs(number) > LARGEST:
        raise ValueError(f"got {number} of {name} for {_named(record)}; wanted a finite number, or None for not scored")
    return number


def _named(record: Asked) -> str:
    return f"record {record.uid} of {record.dataset}"


def _waited(values: Any) -> Any:
    async def wait() -> Any:
        return await values

    return asyncio.run(wait())
