"""Converts chat messages, images and videos to the arrays of a Hugging Face processor, without torch or torchvision."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fairgrpo_jax.models import pixels


class Expansion(NamedTuple):
    """The text and features of one image or video in the prompt.

    Attributes:
        text: replaces the placeholder of the chat template.
        size: number of vision features for each feature token of ``text``; the token is repeated as often.
    """

    text: str
    size: int


@dataclasses.dataclass(frozen=True)
class TextProcessor:
    """Converts chat messages to token ids, for a decoder without vision; base class of the processors below.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        chat_template: Jinja source; None takes the tokenizer's own.

    Example:
        >>> from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer
        >>> TextProcessor(tiny_tokenizer())([{"role": "user", "content": "Which digit is this?"}])["input_ids"].shape
        (1, 13)
    """

    tokenizer: Any
    chat_template: str | None = dataclasses.field(default=None, kw_only=True)

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
        if messages and isinstance(messages[0], Mapping):
            messages = [messages]
            images, videos, times = (None if rows is None else [rows] for rows in (images, videos, times))
            if not np.isscalar(seconds_per_frame):
                seconds_per_frame = [seconds_per_frame]
        count = len(messages)
        images, videos = ([[]] * count if rows is None else rows for rows in (images, videos))
        if not count == len(images) == len(videos):
            raise ValueError(f"got {count} conversations, {len(images)} rows of images, {len(videos)} of videos")
        texts = self._render(messages, add_generation_prompt)
        self._check_places(texts, {"image": images, "video": videos})
        clock = _Clock(videos, seconds_per_frame, times)
        stills, of_images = self._images(images)
        films, of_videos = self._videos(videos, clock)
        return self._tokenize(texts, {"image": of_images, "video": of_videos}) | stills | films

    def _images(self, rows: Sequence) -> tuple[dict[str, np.ndarray], list[Expansion]]:
        """The arrays of all images and their expansions in the prompt."""
        return {}, []

    def _videos(self, rows: Sequence, clock: "_Clock") -> tuple[dict[str, np.ndarray], list[Expansion]]:
        """The arrays of all videos and their expansions in the prompt."""
        return {}, []

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
                        list(talk),
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


@dataclasses.dataclass(frozen=True)
class Processor(TextProcessor):
    """Converts Qwen2.5-VL's chat messages, images and videos to the dict of arrays of a Hugging Face processor.

    A medium is resized (bicubic) so that both sides are multiples of ``patch_size * merge_size`` and its area is
    between ``min_pixels`` and ``max_pixels``, scaled to 0..1, normalised and cut into patches in merge-block order. An
    image is a video of one frame; the last frame is repeated up to a multiple of ``temporal_patch_size``. Images are
    bit-identical to transformers' ``Qwen2VLImageProcessorPil``; videos differ from its torchvision processor in the
    rounding of the resize.

    Adds ``mm_token_type_ids`` (P, T); for images ``pixel_values`` (patches, C * tp * p * p) float32 and
    ``image_grid_thw`` (n, 3) int64; for videos ``pixel_values_videos``, ``video_grid_thw`` and ``second_per_grid_ts``
    (n,), the seconds of one patch.

    Attributes:
        tokenizer: a Hugging Face tokenizer with Qwen's special tokens.
        patch_size: side of a patch in pixels.
        merge_size: patches along the side of one merged token.
        temporal_patch_size: frames in a patch.
        min_pixels: least area of a resized image.
        max_pixels: largest area of a resized image.
        video_min_pixels: least area of a resized frame; None is ``min_pixels``.
        video_max_pixels: largest area of a resized frame; None is ``max_pixels``.
        mean: mean of the normalisation, one number per channel, on the 0..1 scale.
        std: standard deviation, as above.
        chat_template: Jinja source; None takes the tokenizer's own.

    Raises:
        ValueError: if bounds contradict each other.

    Example:
        >>> talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]}]
        >>> inputs = tiny_processor()([talk], images=[[np.zeros((32, 32, 3), np.uint8)]])
        >>> inputs["image_grid_thw"].tolist(), inputs["pixel_values"].shape
        ([[1, 8, 8]], (64, 96))
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    mean: tuple[float, ...] = pixels.CLIP_MEAN
    std: tuple[float, ...] = pixels.CLIP_STD

    types_name = "mm_token_type_ids"

    def __post_init__(self):
        for kind, (least, most) in {"": (self.min_pixels, self.max_pixels), "video_": self._video_bounds}.items():
            if not 0 < least <= most:
                raise ValueError(
                    f"got {kind}min_pixels={least}, {kind}max_pixels={most}; wanted 0 < min <= max: set both"
                )

    @property
    def tokens(self) -> dict[str, tuple[str, str]]:
        """See :class:`TextProcessor`."""
        image = getattr(self.tokenizer, "image_token", "<|image_pad|>")
        video = getattr(self.tokenizer, "video_token", "<|video_pad|>")
        return {"image": (image, image), "video": (video, video)}

    @property
    def _video_bounds(self) -> tuple[int, int]:
        least = self.min_pixels if self.video_min_pixels is None else self.video_min_pixels
        return least, self.max_pixels if self.video_max_pixels is None else self.video_max_pixels

    @property
    def _factor(self) -> int:
        return self.patch_size * self.merge_size

    def _image_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        return pixels.smart_resize(height, width, self._factor, self.min_pixels, self.max_pixels)

    def _video_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        return pixels.smart_resize(height, width, self._factor, *self._video_bounds)

    def _images(self, rows: Sequence) -> tuple[dict[str, np.ndarray], list[Expansion]]:
        made = _each("image", rows, lambda image: self._cut([image], self._image_size))
        token = self.tokens["image"][1]
        return _joined("pixel_values", "image_grid_thw", made), [
            Expansion(token, t * h * w // self.merge_size**2) for _, (t, h, w) in made
        ]

    def _videos(self, rows: Sequence, clock: "_Clock") -> tuple[dict[str, np.ndarray], list[Expansion]]:
        made = _each("video", rows, lambda video: self._cut(list(video), self._video_size))
        arrays = _joined("pixel_values_videos", "video_grid_thw", made)
        seconds = self._seconds(clock) if made else {}
        return arrays | seconds, [
            self._video_expansion(t, h * w // self.merge_size**2, frame_times)
            for (_, (t, h, w)), frame_times in zip(made, clock.times, strict=True)
        ]

    def _seconds(self, clock: "_Clock") -> dict[str, np.ndarray]:
        return {"second_per_grid_ts": clock.spacing * self.temporal_patch_size}

    def _video_expansion(self, steps: int, size: int, times: np.ndarray) -> Expansion:
        return Expansion(self.tokens["video"][1], steps * size)

    def _cut(self, frames: list, size: Callable) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Patches and grid of frames resized to ``size(count, height, width)``."""
        frames = [pixels.to_rgb(frame) for frame in frames]
        shapes = {frame.shape[:2] for frame in frames}
        if len(shapes) != 1:
            raise ValueError(f"got frames of the sizes {sorted(shapes)}; wanted at least one frame, all of one size")
        wanted = size(len(frames), *shapes.pop())
        resized = np.stack([pixels.resize(frame, wanted, Image.Resampling.BICUBIC) for frame in frames])
        table = pixels.value_table(self.mean, self.std)
        return pixels.patchify(resized, table, self.patch_size, self.merge_size, self.temporal_patch_size)


class Qwen2Processor(Processor):
    """:class:`Processor` of Qwen2-VL, which does not use seconds: no ``second_per_grid_ts``."""

    def _seconds(self, clock: "_Clock") -> dict[str, np.ndarray]:
        return {}


@dataclasses.dataclass(frozen=True)
class Qwen3Processor(Qwen2Processor):
    """:class:`Processor` of Qwen3-VL: the prompt contains the time of every patch of a video as text.

    Each of the t steps of a video becomes ``<1.5 seconds>``, the start token, its features, the end token; the time is
    the mean of its first and last frame. The start and end token that the chat template writes around the video are
    kept, as in transformers 5 (transformers before 5 and vLLM drop that outer pair).

    Attributes:
        video_min_pixels: least frames x height x width of a resized video.
        video_max_pixels: largest frames x height x width of a resized video.
    """

    patch_size: int = 16
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    video_min_pixels: int = 4096
    video_max_pixels: int = 25_165_824
    mean: tuple[float, ...] = pixels.HALF
    std: tuple[float, ...] = pixels.HALF

    def _video_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        return pixels.smart_resize_film(
            frames, height, width, self.temporal_patch_size, self._factor, *self._video_bounds
        )

    def _video_expansion(self, steps: int, size: int, times: np.ndarray) -> Expansion:
        start = getattr(self.tokenizer, "vision_start_token", "<|vision_start|>")
        end = getattr(self.tokenizer, "vision_end_token", "<|vision_end|>")
        tp = self.temporal_patch_size
        spare = steps * tp - len(times)
        padded = [*map(float, times), *[float(times[-1])] * spare]
        middles = [(padded[first] + padded[first + tp - 1]) / 2 for first in range(0, len(padded), tp)]
        token = self.tokens["video"][1]
        return Expansion("".join(f"<{middle:.1f} seconds>{start}{token}{end}" for middle in middles), size)


@dataclasses.dataclass(frozen=True)
class Gemma3Processor(TextProcessor):
    """Converts Gemma3's and MedGemma's chat messages and images to the dict of arrays of a Hugging Face processor.

    An image is resized (bilinear) to a square whatever its shape, scaled to 0..1 and normalised, bit-identical to
    transformers' ``Gemma3ImageProcessorPil``; pan and scan is off, as there. Gemma3 has no video input: pass frames as
    images.

    Adds ``token_type_ids`` (P, T), 1 at image features, and for images ``pixel_values`` (n, C, S, S) float32.

    Attributes:
        tokenizer: a Hugging Face tokenizer with Gemma's special tokens.
        image_size: side S of the square in pixels.
        tokens_per_image: number of features of an image in the prompt.
        mean: mean of the normalisation, one number per channel, on the 0..1 scale.
        std: standard deviation, as above.
        chat_template: Jinja source; None takes the tokenizer's own.
    """

    image_size: int = 896
    tokens_per_image: int = 256
    mean: tuple[float, ...] = pixels.HALF
    std: tuple[float, ...] = pixels.HALF

    types_name = "token_type_ids"

    @property
    def tokens(self) -> dict[str, tuple[str, str]]:
        """See :class:`TextProcessor`."""
        begin = getattr(self.tokenizer, "boi_token", "<start_of_image>")
        return {"image": (begin, getattr(self.tokenizer, "image_token", "<image_soft_token>"))}

    def _images(self, rows: Sequence) -> tuple[dict[str, np.ndarray], list[Expansion]]:
        squares = _each("image", rows, self._square)
        begin, feature = self.tokens["image"]
        end = getattr(self.tokenizer, "eoi_token", "<end_of_image>")
        expansion = Expansion(f"\n\n{begin}{feature}{end}\n\n", self.tokens_per_image)
        return ({"pixel_values": np.stack(squares)} if squares else {}), [expansion] * len(squares)

    def _square(self, image: Any) -> np.ndarray:
        size = (self.image_size, self.image_size)
        square = pixels.resize(pixels.to_rgb(image), size, Image.Resampling.BILINEAR)
        table = pixels.value_table(self.mean, self.std)
        return np.stack([table[c][square[..., c]] for c in range(3)])


def tiny_processor() -> Processor:
    """The processor of the tiny model: the tiny tokenizer, patches of 4 pixels, frames of up to 64 x 64."""
    from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer

    return Processor(tiny_tokenizer(), patch_size=4, min_pixels=8 * 8, max_pixels=64 * 64)


class _Clock:
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


def _each(kind: str, rows: Sequence, process: Callable) -> list:
    """Applies ``process`` to every medium; an error names row and position."""
    made = []
    for row, media in enumerate(rows):
        for place, medium in enumerate(media):
            try:
                made.append(process(medium))
            except ValueError as error:
                raise ValueError(f"row {row}, {kind} {place}: {error}") from error
    return made


def _joined(values: str, grids: str, made: list) -> dict[str, np.ndarray]:
    """The concatenated patches of all media, and their grids; empty without media."""
    if not made:
        return {}
    return {values: np.concatenate([one for one, _ in made]), grids: np.array([grid for _, grid in made], np.int64)}
