"""Converts chat messages, images and videos to the arrays of a Hugging Face processor, without torch or torchvision."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fairgrpo_jax.models import pixels
from fairgrpo_jax.models.chat import Clock, Expansion, Grid, TextProcessor, for_each


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
        dtype: of the patches or pixels.

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

    def _grids(self, kind: str, rows: Sequence) -> list[Grid]:
        return for_each(kind, rows, lambda medium: self._grid(kind, medium))

    def _grid(self, kind: str, medium: Any) -> Grid:
        frames = [medium] if kind == "image" else medium
        shapes = {pixels.extent(frame) for frame in frames}
        if len(shapes) != 1:
            raise ValueError(f"got frames of the sizes {sorted(shapes)}; wanted at least one frame, all of one size")
        size = self._image_size if kind == "image" else self._video_size
        height, width = size(len(frames), *shapes.pop())
        return -(-len(frames) // self.temporal_patch_size), height // self.patch_size, width // self.patch_size

    def _units(self, grid: Grid) -> int:
        return int(np.prod(grid)) // self.merge_size**2

    def _expansions(self, kind: str, grids: list[Grid], clock: Clock) -> list[Expansion]:
        if kind == "image":
            return [Expansion(self.tokens["image"][1], self._units(grid)) for grid in grids]
        return [
            self._video_expansion(grid[0], self._units(grid) // grid[0], times)
            for grid, times in zip(grids, clock.times, strict=True)
        ]

    def _video_expansion(self, steps: int, size: int, times: np.ndarray) -> Expansion:
        return Expansion(self.tokens["video"][1], steps * size)

    def _arrays(self, kind: str, rows: Sequence, grids: list[Grid], clock: Clock) -> dict[str, np.ndarray]:
        if not grids:
            return {}
        sizes = iter(grids)
        patches = np.concatenate(for_each(kind, rows, lambda medium: self._cut(kind, medium, next(sizes))))
        if kind == "image":
            return {"pixel_values": patches, "image_grid_thw": np.array(grids, np.int64)}
        return {"pixel_values_videos": patches, "video_grid_thw": np.array(grids, np.int64)} | self._seconds(clock)

    def _seconds(self, clock: Clock) -> dict[str, np.ndarray]:
        return {"second_per_grid_ts": clock.spacing * self.temporal_patch_size}

    def _cut(self, kind: str, medium: Any, grid: Grid) -> np.ndarray:
        """The patches of a medium, resized to its grid."""
        size = grid[1] * self.patch_size, grid[2] * self.patch_size
        frames = [pixels.to_rgb(frame) for frame in ([medium] if kind == "image" else medium)]
        resized = np.stack([pixels.resize(frame, size, Image.Resampling.BICUBIC) for frame in frames])
        table = pixels.value_table(self.mean, self.std).astype(self.dtype)
        return pixels.patchify(resized, table, self.patch_size, self.merge_size, self.temporal_patch_size)[0]


class Qwen2Processor(Processor):
    """:class:`Processor` of Qwen2-VL, which does not use seconds: no ``second_per_grid_ts``."""

    def _seconds(self, clock: Clock) -> dict[str, np.ndarray]:
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
        dtype: of the patches or pixels.
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

    def _grids(self, kind: str, rows: Sequence) -> list[Grid]:
        return for_each(kind, rows, lambda image: (1, *pixels.extent(image)))

    def _units(self, grid: Grid) -> int:
        return 1

    def _expansions(self, kind: str, grids: list[Grid], clock: Clock) -> list[Expansion]:
        begin, feature = self.tokens["image"]
        end = getattr(self.tokenizer, "eoi_token", "<end_of_image>")
        return [Expansion(f"\n\n{begin}{feature}{end}\n\n", self.tokens_per_image)] * len(grids)

    def _arrays(self, kind: str, rows: Sequence, grids: list[Grid], clock: Clock) -> dict[str, np.ndarray]:
        return {"pixel_values": np.stack(for_each(kind, rows, self._square))} if grids else {}

    def _square(self, image: Any) -> np.ndarray:
        size = (self.image_size, self.image_size)
        square = pixels.resize(pixels.to_rgb(image), size, Image.Resampling.BILINEAR)
        table = pixels.value_table(self.mean, self.std).astype(self.dtype)
        return np.stack([table[c][square[..., c]] for c in range(3)])


def tiny_processor() -> Processor:
    """The processor of the tiny model: the tiny tokenizer, patches of 4 pixels, frames of up to 64 x 64."""
    from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer

    return Processor(tiny_tokenizer(), patch_size=4, min_pixels=8 * 8, max_pixels=64 * 64)
