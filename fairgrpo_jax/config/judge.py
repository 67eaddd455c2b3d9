"""The options of a language model behind an endpoint in OpenAI's form, and of one that judges."""

import dataclasses
import re
import urllib.parse
from pathlib import Path
from typing import ClassVar, Literal

from fairgrpo_jax.config.checks import require, require_finite


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A language model behind an endpoint in OpenAI's form: where it is, how fast it may be asked, what it costs."""

    section: ClassVar[str] = "endpoint"  # what its options are called on the command line

    url: str = "http://127.0.0.1:8000/v1"
    """Base address of the endpoint, up to and including /v1."""
    model: str = ""
    """Name of the model as the endpoint knows it; empty: there is none."""
    key_variable: str | None = None
    """Name of the environment variable that holds the API key; default: the endpoint asks for none."""
    temperature: float | None = 0.0
    """Sampling temperature; None leaves it to the endpoint, for models that accept no other."""
    max_tokens: int = 64
    """Largest answer in tokens; one that is cut off has failed. Models that think aloud need more."""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name under which the endpoint takes max_tokens."""
    concurrency: int = 16
    """Largest number of calls in flight."""
    requests_per_minute: float | None = None
    """Limit of the calls that begin, spread evenly; default: none."""
    tokens_per_minute: float | None = None
    """Limit of tokens in and out, spread evenly, estimated before a call and corrected after it; default: none."""
    attempts: int = 5
    """Largest number of calls for one question."""
    attempt_seconds: float = 60.0
    """Deadline of one call."""
    total_seconds: float = 600.0
    """Deadline of all questions that are asked together, those of a step; what is open then has failed."""
    cache: Path | None = None
    """SQLite file that keeps the answers, shared by processes; default: judge.sqlite in the run folder."""
    price_in: float = 0.0
    """Price of a million tokens read, in any currency, for the log."""
    price_out: float = 0.0
    """Price of a million tokens written."""

    def __post_init__(self):
        own = self.section
        require_finite(f"{own}.", self)
        address = urllib.parse.urlsplit(self.url)
        require(
            address.scheme in ("http", "https") and bool(address.hostname),
            f"{own}.url={self.url!r}",
            "an address such as http://127.0.0.1:8000/v1",
        )
        require(
            address.username is None and not address.query,
            f"{own}.url with a password or a query",
            "the key in an environment variable that key_variable names; options are written into run folders",
        )
        require(
            self.key_variable is None or re.fullmatch(r"[A-Za-z_]\w*", self.key_variable) is not None,
            f"{own}.key_variable that is no name of an environment variable",  # it may be the key itself
            "the name of the variable that holds the key, such as OPENAI_API_KEY",
        )
        require(
            self.temperature is None or self.temperature >= 0, f"{own}.temperature={self.temperature}", "a number >= 0"
        )
        for name in ("max_tokens", "concurrency", "attempts"):
            require(getattr(self, name) > 0, f"{own}.{name}={getattr(self, name)}", "at least 1")
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{own}.{name}={value}", "a positive number, or none for no limit")
        require(
            0 < self.attempt_seconds <= self.total_seconds,
            f"{own}.attempt_seconds={self.attempt_seconds}, {own}.total_seconds={self.total_seconds}",
            "0 < attempt_seconds <= total_seconds",
        )
        for name in ("price_in", "price_out"):
            require(getattr(self, name) >= 0, f"{own}.{name}={getattr(self, name)}", "a price >= 0")


@dataclasses.dataclass(frozen=True)
class Judge(Endpoint):
    """A language model that scores completions, behind an endpoint in OpenAI's form or on our own devices."""

    section: ClassVar[str] = "judge"

    path: Path | None = None
    """Checkpoint folder of a judge on our own devices, instead of url and model: of any family in docs/models.md. It
    answers questions for Yes or No by the probabilities of the two words. "tiny": one of random weights, written into
    the run folder, whose scores mean nothing; it shows that the parts work together."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Dtype of its weights."""
    context: int = 4096
    """Largest question to it in tokens; a longer one is not scored."""
    mode: Literal["text", "typed"] = "text"
    """How the judge is asked: by chat, with strict lines as answer, or by typed questions that are answered with
    probabilities (/v1/systemone of `transformers serve`). One on our own devices says with text whether Yes is likelier
    than No, with typed how likely it is of the two."""
    prompt: Literal["summary", "caption"] | None = None
    """Wording of the clinical dimensions: a summary of a whole video, or the caption of one region; default: by the
    record's task, caption for region_caption and else summary."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.path is None or not self.model,
            f"judge.path={self.path} and judge.model={self.model!r}",
            "one judge: a folder on our own devices, or a model behind judge.url",
        )
        require(self.context > 0, f"judge.context={self.context}", "at least 1")
