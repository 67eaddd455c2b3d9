"""A language model behind any endpoint in OpenAI's form, asked beside the device's work.

Calls run on an event loop in a thread of their own; ``Endpoint.ask`` returns at once. What has no answer is counted by
reason. Every call is one of ours: the client's own retries are off, so that what is billed can be counted. A question
is asked once for all who want it, in this process and in those that share the cache.
"""

import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import email.utils
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from fairgrpo_jax.config.judge import Endpoint as Options
from fairgrpo_jax.rewards import judge_cache
from fairgrpo_jax.rewards.judge_cache import Cache
from fairgrpo_jax.rewards.judge_prompts import Question, Unreadable


if TYPE_CHECKING:
    from openai import AsyncOpenAI

P = ParamSpec("P")
T = TypeVar("T")

BACK_OFF = 0.5  # seconds before the second attempt; doubled for each further one, and shortened by up to a half
LONGEST_BACK_OFF = 30.0
POLL = (0.05, 1.0)  # seconds between looks at what another process asks: at first, at most
IMAGE_TOKENS = 258  # of an image of at most 512 pixels a side, as two large providers count
MOST_TOKENS = 2**53  # of a call; more is no count
AGAIN = (408, 409, 429)  # and 500 or more


class Failed(Exception):
    """An attempt without an answer: why, whether another may help, and how many seconds the endpoint wants to rest."""

    def __init__(self, reason: str, *, again: bool, rest: float | None = None, detail: str = ""):
        super().__init__(f"{reason} {detail[:300]}".strip())
        self.reason, self.again, self.rest = reason, again, rest


class Outcome(NamedTuple):
    """What became of a question: what was read from its answer, or why there is nothing."""

    values: tuple[Any, ...] | None
    reason: str = ""


class Endpoint:
    """The client. ``with Endpoint(options) as endpoint`` closes it at the end."""

    def __init__(self, options: Options):
        """Opens the cache and starts the thread; nothing is sent yet.

        Raises:
            ValueError: if there is no model or no key, or the cache is no file of ours.
            ImportError: if the client library is not installed.
        """
        self.options = options
        key = _key(options)
        if not options.model:
            raise ValueError(f"got {options.section}.model=''; wanted the name of the model, as its endpoint knows it")
        self._client = _client(options, key)
        self._disk = judge_cache.Disk(options.cache, f"{options.section}.cache")
        self._counts: collections.Counter[str] = collections.Counter()
        self._flights: dict[str, asyncio.Task[Outcome]] = {}
        self._until: dict[str, float] = {}  # of each flight, when nobody waits for it any more
        self._slots = asyncio.Semaphore(options.concurrency)
        self._pace = Pace(options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=options.section, daemon=True)
        self._thread.start()
        self._beating = asyncio.run_coroutine_threadsafe(self._beat(), self._loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Asks the endpoint one short question, so that what is wrong with it is known before a run begins.

        Raises:
            ValueError: in one line, if nobody answers, the key is refused, or the model is not there.
        """
        asyncio.run_coroutine_threadsafe(self._check(), self._loop).result()

    def ask(self, questions: Sequence[Question]) -> "concurrent.futures.Future[list[Outcome]]":
        """Asks all questions and returns at once.

        Returns:
            A future of the outcome of each. It is done after ``total_seconds`` at the latest. Calls in flight then go
            on, and what they bring is in the cache.
        """
        return asyncio.run_coroutine_threadsafe(self._batch(list(questions), self._deadline()), self._loop)

    def counts(self) -> dict[str, float]:
        """What has happened since the start, for the log.

        ``asked`` = ``scored``, those with an answer, + all ``failed/REASON``. ``calls`` are requests that were sent,
        ``retries`` those of them that were not the first of their question, ``cache_hits`` questions that somebody had
        asked before or was just asking; ``unmetered`` are answers without a number of tokens. ``cost`` is in the
        currency of the prices.
        """
        counts = dict(self._counts)
        names = ("asked", "scored", "calls", "retries", "cache_hits", "unmetered", "tokens_in", "tokens_out")
        cost = counts.get("tokens_in", 0) * self.options.price_in + counts.get("tokens_out", 0) * self.options.price_out
        return {**dict.fromkeys(names, 0.0), **counts, "cost": cost / 1e6}

    def billed(self) -> judge_cache.Billed:
        """What the model has cost over all processes and runs that shared the cache."""
        return self._disk.run(Cache.billed, self.options.model).result()

    def close(self) -> None:
        """Stops what is in flight, gives claims back, and ends the thread. Futures that are open are cancelled."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._disk.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    async def _on_disk(self, method: Callable[Concatenate[Cache, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._disk.run(method, *args, **kwargs))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(judge_cache.BEAT)
            if self._flights:
                await self._on_disk(Cache.beat)

    def _deadline(self) -> float:
        return time.monotonic() + self.options.total_seconds

    async def _batch(self, questions: list[Question], until: float) -> list[Outcome]:
        keys = [_digest(self.options, question) for question in questions]
        found = await self._on_disk(Cache.found, list(dict.fromkeys(keys)))
        known = {key: Outcome(values) for key, values in found.items()}
        self._counts["cache_hits"] += sum(key in known for key in keys)
        for key, question in zip(keys, questions, strict=True):
            if key in known:
                continue
            self._until[key] = max(until, self._until.get(key, until))
            if key in self._flights:
                self._counts["cache_hits"] += 1
            else:
                self._flights[key] = asyncio.create_task(self._flight(key, question))
        flights = {key: self._flights[key] for key in keys if key not in known}
        if flights:
            await asyncio.wait(flights.values(), timeout=until - time.monotonic())
        late = Outcome(None, "deadline")
        known |= {key: flight.result() if flight.done() else late for key, flight in flights.items()}
        for key in keys:
            self._counts["scored" if known[key].values is not None else f"failed/{known[key].reason}"] += 1
        self._counts["asked"] += len(questions)
        return [known[key] for key in keys]

    async def _flight(self, key: str, question: Question) -> Outcome:
        """Brings one question to its end, and leaves the table of flights."""
        try:
            return await self._outcome(key, question)
        finally:
            del self._flights[key], self._until[key]

    async def _outcome(self, key: str, question: Question) -> Outcome:
        """Asks, or waits for the process that asks."""
        pause, longest = POLL
        while time.monotonic() < self._until[key]:
            async with self._slots:
                if time.monotonic() >= self._until[key]:
                    break
                claimed = await self._on_disk(Cache.claim, key)
                if claimed is True:
                    try:
                        values, reply = await self._attempts(key, question)
                    except Failed as failure:
                        await self._on_disk(Cache.release, key)
                        return Outcome(None, failure.reason)
                    return Outcome(await self._on_disk(Cache.store, key, values, reply))
            if claimed is not False:
                self._counts["cache_hits"] += 1
                return Outcome(claimed)
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, longest)
        return Outcome(None, "deadline")

    async def _attempts(self, key: str, question: Question) -> tuple[tuple[Any, ...], str]:
        """Asks until there is an answer that can be read, no attempt is left, or nobody waits any more."""
        for attempt in range(self.options.attempts):
            left = self._until[key] - time.monotonic()
            if not await self._pace.turn(guess(self.options, question), left):
                raise Failed("deadline", again=False)
            self._counts["retries"] += attempt > 0
            try:
                return await self._call(question)
            except Failed as failure:
                if not failure.again:
                    raise
                rest = failure.rest
                if rest is not None:
                    self._pace.rest(rest)  # all calls wait, not this one alone
                else:
                    rest = min(BACK_OFF * 2**attempt, LONGEST_BACK_OFF) * random.uniform(0.5, 1)
                if attempt + 1 == self.options.attempts or time.monotonic() + rest >= self._until[key]:
                    raise
                await asyncio.sleep(rest)
        raise AssertionError("at least one attempt")

    async def _call(self, question: Question) -> tuple[tuple[Any, ...], str]:
        """One call: what was read, and the text it was read from."""
        self._counts["calls"] += 1
        answer = await self._send(*_request(self.options, question))
        self._bill(answer, guess(self.options, question))
        try:
            body = json.loads(answer, object_pairs_hook=_no_duplicates)
            said = body["answers"] if question.typed else _text(body)
            return question.read(said), said if isinstance(said, str) else json.dumps(said)
        except Unreadable as error:
            raise Failed(error.reason, again=True, detail=str(error)) from error
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
            raise Failed("malformed", again=True, detail=answer) from error

    async def _send(self, path: str, body: Mapping[str, Any]) -> str:
        """One request: the body of the answer. Raises ``Failed``."""
        import openai

        try:
            async with asyncio.timeout(self.options.attempt_seconds):
                return await self._client.post(path, body=body, cast_to=str)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise Failed("timeout", again=True) from error
        except openai.APIConnectionError as error:
            raise Failed("connection", again=True, detail=str(error.__cause__ or error)) from error
        except openai.APIStatusError as error:
            status = error.status_code
            rest = _retry_after(error.response.headers)
            again = status in AGAIN or status >= 500
            raise Failed(f"http_{status}", again=again, rest=rest, detail=error.response.text) from error

    def _bill(self, answer: str, guess: int) -> None:
        """Counts the tokens of an answer, whether or not it can be read."""
        tokens = _usage(answer)
        if tokens is None:
            self._counts["unmetered"] += 1
            tokens = (0, 0)
        else:
            self._pace.correct(sum(tokens) - guess)
        self._counts["tokens_in"] += tokens[0]
        self._counts["tokens_out"] += tokens[1]
        self._disk.run(Cache.bill, self.options.model, *tokens)  # on disk no later than what is made of the answer

    async def _check(self) -> None:
        question = self._ready()
        for attempt in range(2):
            try:
                await self._call(question)
                return
            except Failed as failure:
                if failure.reason in ("http_429", "cut", "empty"):  # somebody is there, if busy or short of words
                    return
                if not failure.again or attempt:
                    raise ValueError(await self._complaint(failure)) from failure
            await asyncio.sleep(BACK_OFF)

    def _ready(self) -> Question:
        """What is asked to see whether somebody answers."""
        return Question("check/1", ("ready",), "Are you ready? Answer Yes or No.", {}, _anything)

    async def _complaint(self, failure: Failed) -> str:
        options, told = self.options, " ".join(str(failure).split())
        own = options.section
        if failure.reason in ("http_401", "http_403"):
            key = options.key_variable or f"none of {own}.key_variable"
            return (
                f"got {own}.url={options.url} that refuses the key ({failure.reason}; key: {key}); wanted a valid key"
            )
        if failure.reason in ("timeout", "connection"):
            return f"got {own}.url={options.url} where nobody answers ({told}); wanted an endpoint in OpenAI's form"
        with contextlib.suppress(Exception):
            there = [model.id async for model in self._client.models.list()]
            if options.model not in there:
                shown = ", ".join(there[:10]) + ", ..." * (len(there) > 10)
                return f"got {own}.model={options.model!r} at {options.url} ({told}); wanted one of its models: {shown}"
        path, _ = _request(options, self._ready())
        return f"got {told} from {own}.url={options.url} and {path} for {own}.model={options.model!r}; wanted an answer"


class Pace:
    """When calls may begin: evenly, as the limits of a minute allow, and not while the endpoint wants rest.

    Libraries of leaky buckets let a full minute's calls begin at once and refuse a call larger than the bucket; this
    spreads them, and a large call makes the next ones wait.
    """

    def __init__(self, options: Options):
        self._rates = (options.requests_per_minute, options.tokens_per_minute)
        self._free = [0.0, 0.0]  # when the next call may begin: by requests, by tokens
        self._rested = 0.0

    async def turn(self, tokens: int, left: float) -> bool:
        """Waits for one's turn; False, at once, if it would come after ``left`` seconds."""
        now = time.monotonic()
        begin = max(now, self._rested, *self._free)
        if begin - now > left:
            return False
        for i, (rate, amount) in enumerate(zip(self._rates, (1, tokens), strict=True)):
            if rate is not None:
                self._free[i] = begin + 60 * amount / rate
        await asyncio.sleep(begin - now)
        while (more := self._rested - time.monotonic()) > 0:  # told while we waited
            if now + left < self._rested:
                return False
            await asyncio.sleep(more)
        return True

    def correct(self, tokens: int) -> None:
        """Adds to the tokens of a turn that was taken; negative where it was guessed too high."""
        if self._rates[1] is not None:
            self._free[1] += 60 * tokens / self._rates[1]

    def rest(self, seconds: float) -> None:
        """Lets no call begin for a while."""
        self._rested = max(self._rested, time.monotonic() + seconds)


def _client(options: Options, key: str) -> "AsyncOpenAI":
    try:
        import openai
    except ImportError as error:
        raise ImportError("an endpoint needs the library openai: pip install 'fairgrpo_jax[judge]'") from error
    headers: dict[str, Any] = {}
    if options.key_variable != "OPENAI_API_KEY":  # what the environment holds for OpenAI is for nobody else
        custom = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
        names = ["OpenAI-Organization", "OpenAI-Project", *(line.partition(":")[0].strip() for line in custom)]
        headers |= {name: openai.Omit() for name in names if name and name.lower() != "authorization"}
        headers["Authorization"] = f"Bearer {key}"
    return openai.AsyncOpenAI(
        base_url=options.url,
        api_key=key,
        max_retries=0,
        timeout=options.attempt_seconds,
        default_headers=headers,
    )


def _key(options: Options) -> str:
    """The API key; "none" for endpoints that ask for none, so that no other key of the environment is sent."""
    if options.key_variable is None:
        return "none"
    key = os.environ.get(options.key_variable, "").strip()
    if not key:
        raise ValueError(
            f"got {options.section}.key_variable={options.key_variable}, which is not set or empty; wanted the API key "
            f"of {options.url} in this environment variable"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"got {options.section}.key_variable={options.key_variable} with blanks, several lines or letters that no "
            "key has; wanted one API key in this environment variable, as it was issued"
        )
    return key


def _digest(options: Options, question: Question) -> str:
    """The key of a question: whatever may change its answer."""
    path, body = _request(options, question)
    text = json.dumps([question.version, path, body], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _request(options: Options, question: Question) -> tuple[str, dict[str, Any]]:
    """The path and the body of a question."""
    if question.typed:
        return "/systemone", {"model": options.model, "state": question.text, "questions": question.typed}
    sampling: dict[str, Any] = {options.limit_name: options.max_tokens}
    if options.temperature is not None:
        sampling["temperature"] = options.temperature
    content: str | list[dict[str, Any]] = question.text
    if question.images:
        urls = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in question.images]
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = [*shown, {"type": "text", "text": question.text}]
    messages = [{"role": "user", "content": content}]
    return "/chat/completions", {"model": options.model, "messages": messages, **sampling}


def guess(options: Options, question: Question) -> int:
    """Tokens of a call before it is made, in and out: as ``guess_in``, and an answer of full length."""
    return guess_in(question.text, len(question.images)) + (0 if question.typed else options.max_tokens)


def guess_in(text: str, images: int = 0) -> int:
    """Tokens that a model reads: four characters each, and ``IMAGE_TOKENS`` for an image.

    >>> guess_in("What is seen?", 2)
    519
    """
    return len(text) // 4 + IMAGE_TOKENS * images


def _text(body: Mapping[str, Any]) -> str:
    """The text of a chat's answer."""
    choice = body["choices"][0]
    text = choice["message"]["content"]
    if choice.get("finish_reason") == "length":
        raise Unreadable("cut", str(text))
    if text is None or text == "":
        raise Unreadable("empty", "")
    if not isinstance(text, str):
        raise Unreadable("malformed", str(text))
    return text


def _anything(_: object) -> tuple[Any, ...]:
    return (1.0,)


def _usage(answer: str) -> tuple[int, int] | None:
    """The tokens in and out of an answer, as chats or as typed questions name them; None if it does not say."""
    for names in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError, OverflowError):
            tokens_in, tokens_out = (json.loads(answer)["usage"][name] for name in names)
            if 0 <= int(tokens_in) < MOST_TOKENS and 0 <= int(tokens_out) < MOST_TOKENS:
                return int(tokens_in), int(tokens_out)
    return None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an endpoint wants to be left alone: by ``retry-after-ms``, or ``retry-after``, seconds or a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit
            if 0 <= seconds < float("inf"):
                return seconds
    with contextlib.suppress(KeyError, ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    return None
