"""Converts chat messages to tokens, with places for images and videos; the part that all processors share."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Expansion(NamedTuple):
    """The text and features of one image or video in the prompt.

    Attributes:
        text: replaces the placeholder of the chat template.
        size: number of vision features for each feature token of ``text``; the token is repeated as often.
    """

    text: str
    size: int


class Measure(NamedTuple):
    """The size of a prompt.

    Attributes:
        tokens: number of tokens, those of its media included.
        units: number of units of the vision tower: merged tokens, or images where these have a fixed size.
        frame: units of the largest frame or image.
    """

    tokens: int
    units: int
    frame: int


Grid = tuple[int, int, int]  # frames, rows and columns of the patches of a medium


@dataclasses.dataclass(frozen=True)
class TextProcessor:
    """Converts chat messages to token ids, for a decoder without vision; base class of the families' processors.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        chat_template: Jinja source; None takes the tokenizer's own.
        dtype: of the patches or pixels.

    Example:
        >>> from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer
        >>> TextProcessor(tiny_tokenizer())([{"role": "user", "content": "Which digit is this?"}])["input_ids"].shape
        (1, 13)
    """

    tokenizer: Any
    chat_template: str | None = dataclasses.field(default=None, kw_only=True)
    dtype: str = dataclasses.field(default="float32", kw_only=True)

    types_name = None  # name of the array that marks images (1), videos (2) and text (0)

    @property
    def tokens(self) -> dict[str, tuple[str, str]]:
        """For each kind of medium, the chat template's placeholder and the token of one vision feature."""
        return {}

    def __call__(
        self,
        messages: Sequence,
        images: Sequence | None = None,
        videos: Sequence | None = None,
        *,
        seconds_per_frame: Any = 1.0,
        times: Sequence | None = None,
        add_generation_prompt: bool = True,
    ) -> dict[str, np.ndarray]:
        """Processes a batch, or one conversation with its images and videos.

        Args:
            messages: one conversation per row; a message's content is a string or a list of parts
                ``{"type": "text", "text": ...}``, ``{"type": "image"}``, ``{"type": "video"}``.
            images: the images of every row in order: PIL images, or uint8 arrays (H, W, 3), (H, W, 4) or (H, W).
            videos: the videos of every row in order: uint8 arrays (F, H, W, 3) or (F, H, W), or sequences of images.
            seconds_per_frame: time between the given frames, one number, or one for every video of every row.
            times: seconds of every frame (F,) for every video of every row, for uneven spacing; only Qwen3-VL writes
                them into the prompt.
            add_generation_prompt: whether to end with the opening of the assistant's turn.

        Returns:
            ``input_ids`` and ``attention_mask`` (P, T) int64, padded on the tokenizer's side, and the arrays of the
            media, listed for each class.

        Raises:
            ValueError: if a row has more or fewer media than placeholders, or a medium cannot be processed; names the
                row.
        """
        texts, rows, clock = self._prepare(messages, images, videos, seconds_per_frame, times, add_generation_prompt)
        grids = {kind: self._grids(kind, media) for kind, media in rows.items()}
        inputs = self._tokenize(texts, {kind: self._expansions(kind, grids[kind], clock) for kind in rows})
        for kind, media in rows.items():
            inputs |= self._arrays(kind, media, grids[kind], clock)
        return inputs

    def measure(
        self,
        messages: Sequence,
        images: Sequence | None = None,
        videos: Sequence | None = None,
        *,
        seconds_per_frame: Any = 1.0,
        times: Sequence | None = None,
        add_generation_prompt: bool = True,
    ) -> list[Measure]:
        """The sizes of what a call with the same arguments returns, row by row; pixels are not looked at.

        Of images and videos only the shapes count, so that they may be views of a single byte.

        Raises:
            ValueError: as a call.

        Example:
            >>> talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}]}]
            >>> from fairgrpo_jax.models.processing import tiny_processor
            >>> tiny_processor().measure(talk, [np.broadcast_to(np.uint8(0), (32, 32, 3))])
            [Measure(tokens=29, units=16, frame=16)]
        """
        texts, rows, clock = self._prepare(messages, images, videos, seconds_per_frame, times, add_generation_prompt)
        grids = {kind: self._grids(kind, media) for kind, media in rows.items()}
        inputs = self._tokenize(texts, {kind: self._expansions(kind, grids[kind], clock) for kind in rows})
        units, frame = np.zeros((2, len(texts)), np.int64)
        for kind, media in rows.items():
            row = np.repeat(np.arange(len(texts)), [len(own) for own in media])
            its = np.array([self._units(grid) for grid in grids[kind]], np.int64)
            np.add.at(units, row, its)
            np.maximum.at(frame, row, its // np.array([grid[0] for grid in grids[kind]], np.int64))
        tokens = inputs["attention_mask"].sum(1)
        return [Measure(*map(int, sizes)) for sizes in zip(tokens, units, frame, strict=True)]

    def _prepare(
        self, messages: Sequence, images: Any, videos: Any, seconds_per_frame: Any, times: Any, generation: bool
    ) -> tuple[list[str], dict[str, Sequence], "Clock"]:
        """The rendered conversations, their media by kind, and the times of the videos."""
        if messages and isinstance(messages[0], Mapping):
            messages = [messages]
            images, videos, times = (None if rows is None else [rows] for rows in (images, videos, times))
            if not np.isscalar(seconds_per_frame):
                seconds_per_frame = [seconds_per_frame]
        count = len(messages)
        images, videos = ([[]] * count if rows is None else rows for rows in (images, videos))
        if not count == len(images) == len(videos):
            raise ValueError(f"got {count} conversations, {len(images)} rows of images, {len(videos)} of videos")
        rows = {"image": images, "video": videos}
        texts = self._render(messages, generation)
        self._check_places(texts, rows)
        return texts, rows, Clock(videos, seconds_per_frame, times)

    def _grids(self, kind: str, rows: Sequence) -> list[Grid]:
        """The grid of every medium of a kind."""
        return []

    def _expansions(self, kind: str, grids: list[Grid], clock: "Clock") -> list[Expansion]:
        """What stands in the prompt for every medium of a kind."""
        return []

    def _arrays(self, kind: str, rows: Sequence, grids: list[Grid], clock: "Clock") -> dict[str, np.ndarray]:
        """The arrays of all media of a kind."""
        return {}

    def _units(self, grid: Grid) -> int:
        """Number of units of a medium; see ``Measure``."""
        return 0

    def _render(self, messages: Sequence, add_generation_prompt: bool) -> list[str]:
        """Renders the conversations with the chat template."""
        from jinja2 import TemplateError

        if not (self.chat_template or self.tokenizer.chat_template):
            raise ValueError(
                "the checkpoint has no chat template: take the instruction-tuned one, or add chat_template.jinja to it"
            )
        texts = []
        for row, talk in enumerate(messages):
            try:
                texts.append(
                    self.tokenizer.apply_chat_template(
                        list(talk) if self.tokens else list(map(_as_text, talk)),
                        chat_template=self.chat_template,
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                    )
                )
            except (TemplateError, TypeError) as error:
                raise ValueError(f"row {row}: the checkpoint's chat template refuses the messages: {error}") from error
        return texts

    def turn_end(self, eos_ids: Sequence[int]) -> int:
        """The token that closes an assistant's turn in the chat template; supervised completions end with it.

        Args:
            eos_ids: tokens that end generation.

        Returns:
            The first of ``eos_ids`` that the template writes after an answer; the first of all if it writes none.
        """
        said = "0"
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
        text = self._render([talk], add_generation_prompt=False)[0].rpartition(said)[2]
        written = self.tokenizer.encode(text, add_special_tokens=False)
        return next((token for token in written if token in eos_ids), eos_ids[0])

    def _check_places(self, texts: list[str], given: Mapping[str, Sequence]) -> None:
        for kind, rows in given.items():
            placeholder = self.tokens.get(kind, (None,))[0]
            for row, (text, media) in enumerate(zip(texts, rows, strict=True)):
                if placeholder is None and len(media):
                    raise ValueError(f"row {row} has {len(media)} {kind}s, but this model takes no {kind}s")
                places = text.count(placeholder) if placeholder else 0
                if places != len(media):
                    raise ValueError(f"row {row} has {places} places for {kind}s, but {len(media)} {kind}s were given")

    def _tokenize(self, texts: list[str], expansions: Mapping[str, list[Expansion]]) -> dict[str, np.ndarray]:
        """Token ids, with each feature token repeated for all features of its medium, padded to one length."""
        queues = {self.tokens[kind][0]: iter(made) for kind, made in expansions.items() if made}
        features = {self.tokenizer.convert_tokens_to_ids(token): kind for kind, (_, token) in self.tokens.items()}
        rows = []
        for row, text in enumerate(texts):
            text, sizes = self._expand(text, queues)
            begins = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
            ids = np.array(self.tokenizer(text, add_special_tokens=not begins)["input_ids"], np.int64)
            places = np.isin(ids, list(features))
            if places.sum() != len(sizes):
                raise ValueError(
                    f"row {row} has {', '.join(t for _, t in self.tokens.values())} in its text; remove them"
                )
            repeats = np.ones(len(ids), np.int64)
            repeats[places] = sizes
            rows.append(np.repeat(ids, repeats))
        inputs = self._pad(rows)
        if self.types_name:
            inputs[self.types_name] = np.zeros_like(inputs["input_ids"])
            for token, kind in features.items():
                inputs[self.types_name][inputs["input_ids"] == token] = {"image": 1, "video": 2}[kind]
        return inputs

    def _expand(self, text: str, queues: Mapping[str, Iterator[Expansion]]) -> tuple[str, list[int]]:
        """The text with its placeholders replaced, and the size of each of its feature tokens."""
        pieces = re.split("(" + ("|".join(map(re.escape, queues)) or r"(?!)") + ")", text)
        sizes = []
        for index in range(1, len(pieces), 2):
            pieces[index], size = next(queues[pieces[index]])
            sizes += [size] * sum(pieces[index].count(token) for _, token in self.tokens.values())
        return "".join(pieces), sizes

    def _pad(self, rows: list[np.ndarray]) -> dict[str, np.ndarray]:
        shape = (len(rows), max(map(len, rows), default=0))
        pad = self.tokenizer.pad_token_id
        ids = np.full(shape, self.tokenizer.eos_token_id if pad is None else pad, np.int64)
        mask = np.zeros(shape, np.int64)
        for row, tokens in enumerate(rows):
            left = self.tokenizer.padding_side == "left"
            own = slice(shape[1] - len(tokens), None) if left else slice(len(tokens))
            ids[row, own], mask[row, own] = tokens, 1
        return {"input_ids": ids, "attention_mask": mask}


class Clock:
    """The times of the frames of every video of a batch, in order.

    Attributes:
        spacing: (n,) seconds between frames.
        times: seconds of the frames (F,) of each video.
    """

    def __init__(self, videos: Sequence, seconds_per_frame: Any, times: Any):
        counts = [len(row) for row in videos]
        flat = [video for row in videos for video in row]
        if np.isscalar(seconds_per_frame):
            seconds_per_frame = [[seconds_per_frame] * count for count in counts]
        if [len(row) for row in seconds_per_frame] != counts:
            raise ValueError("seconds_per_frame must be one number, or hold one for every video of every row")
        self.spacing = np.array([value for row in seconds_per_frame for value in row], np.float64)
        self.times = [np.arange(len(video)) * gap for video, gap in zip(flat, self.spacing, strict=True)]
        if times is not None:
            given = [np.asarray(own, np.float64) for row in times for own in row]
            if [len(row) for row in times] != counts or [len(own) for own in given] != [len(own) for own in self.times]:
                raise ValueError("times must hold the seconds of every frame for every video of every row")
            self.times = given


def _as_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with its text parts as one text, which is what templates of models without vision take."""
    content = message["content"]
    if isinstance(content, str) or any(part["type"] != "text" for part in content):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def for_each(kind: str, rows: Sequence, process: Callable) -> list:
    """Applies ``process`` to every medium; an error names row and position."""
    made = []
    for row, media in enumerate(rows):
        for place, medium in enumerate(media):
            try:
                made.append(process(medium))
            except ValueError as error:
                raise ValueError(f"row {row}, {kind} {place}: {error}") from error
    return made
