"""Chat messages, images and videos to the arrays that Hugging Face's Qwen processor makes, in NumPy and Pillow."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Processor:
    """Chat messages with images and videos to the dict of arrays a Hugging Face processor returns.

    A medium is resized (bicubic) so that both sides are multiples of ``patch_size * merge_size`` and its area lies
    between ``min_pixels`` and ``max_pixels``, scaled to 0..1, normalised and cut into patches in merge-block order.  An
    image is a video of one frame; the last frame is repeated up to a multiple of ``temporal_patch_size``.  Images come
    out bit-identical to transformers' ``Qwen2VLImageProcessorPil``.

    Attributes:
        tokenizer: a Hugging Face tokenizer with Qwen's special tokens and a chat template.
        patch_size: side of a patch in pixels.
        merge_size: patches along the side of one merged token.
        temporal_patch_size: frames in a patch.
        min_pixels: least area of a resized frame.
        max_pixels: largest area of a resized frame.
        mean: of the normalisation, one number a channel, on the 0..1 scale.
        std: likewise.

    Example:
        >>> from fairgrpo_jax.models.processing import tiny_processor
        >>> talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]}]
        >>> inputs = tiny_processor()([talk], images=[[np.zeros((32, 32, 3), np.uint8)]])
        >>> inputs["image_grid_thw"].tolist(), inputs["pixel_values"].shape
        ([[1, 8, 8]], (64, 96))
    """

    tokenizer: Any
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __call__(
        self,
        messages: Sequence[Sequence[dict]],
        images: Sequence[Sequence[Any]] | None = None,
        videos: Sequence[Sequence[Any]] | None = None,
        *,
        seconds_per_frame: Sequence[Sequence[float]] | float = 1.0,
        add_generation_prompt: bool = True,
    ) -> dict[str, np.ndarray]:
        """Processes a batch.

        Args:
            messages: one conversation a row; the content of a message is a string or a list of parts
                ``{"type": "text", "text": ...}``, ``{"type": "image"}``, ``{"type": "video"}``.
            images: the images of every row in order: PIL images, or uint8 arrays (H, W, 3) or (H, W).
            videos: the videos of every row in order: uint8 arrays (F, H, W, 3) or (F, H, W), or sequences of images.
            seconds_per_frame: time between the frames handed in, one number, or one for every video.
            add_generation_prompt: end with the opening of the assistant's turn.

        Returns:
            ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` (P, T) int64, padded on the tokenizer's side;
            ``pixel_values`` (patches, C * tp * p * p) float32 and ``image_grid_thw`` (n, 3) int64 where there are
            images; ``pixel_values_videos``, ``video_grid_thw`` and ``second_per_grid_ts`` (n,) where there are videos.

        Raises:
            ValueError: a row with more or fewer media than places for them, an array that is not uint8, or an image
                with sides more than 200 to 1.
        """
        images = images if images is not None else [[] for _ in messages]
        videos = videos if videos is not None else [[] for _ in messages]
        if not len(messages) == len(images) == len(videos):
            raise ValueError(
                f"got {len(messages)} conversations, {len(images)} rows of images, {len(videos)} of videos"
            )
        stills = self._patchify([[image] for row in images for image in row])
        films = self._patchify([list(video) for row in videos for video in row])
        texts = self.tokenizer.apply_chat_template(
            [list(talk) for talk in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
        inputs = self._tokenize(texts, {"image": (images, stills[1]), "video": (videos, films[1])})
        if len(stills[1]):
            inputs |= {"pixel_values": stills[0], "image_grid_thw": stills[1]}
        if len(films[1]):
            seconds = _flatten(seconds_per_frame, videos) * self.temporal_patch_size
            inputs |= {"pixel_values_videos": films[0], "video_grid_thw": films[1], "second_per_grid_ts": seconds}
        return inputs

    def _tokenize(self, texts: list[str], media: dict[str, tuple[Sequence, np.ndarray]]) -> dict[str, np.ndarray]:
        """Token ids with every placeholder repeated as often as its medium has merged tokens, padded to one length."""
        kinds = {self.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"): kind for kind in media}
        counts = {kind: list(grids.prod(1) // self.merge_size**2)[::-1] for kind, (_, grids) in media.items()}
        rows = []
        for index, ids in enumerate(self.tokenizer(texts, add_special_tokens=False)["input_ids"]):
            ids = np.asarray(ids, np.int64)
            repeats = np.ones(len(ids), np.int64)
            for token, kind in kinds.items():
                places, given = np.flatnonzero(ids == token), len(media[kind][0][index])
                if len(places) != given:
                    raise ValueError(
                        f"row {index} has {len(places)} places for {kind}s, but {given} {kind}s were given"
                    )
                repeats[places] = [counts[kind].pop() for _ in places]
            rows.append(np.repeat(ids, repeats))
        shape = (len(rows), max(map(len, rows)))
        input_ids, mask = np.full(shape, self.tokenizer.pad_token_id, np.int64), np.zeros(shape, np.int64)
        for index, ids in enumerate(rows):
            own = slice(shape[1] - len(ids), None) if self.tokenizer.padding_side == "left" else slice(len(ids))
            input_ids[index, own], mask[index, own] = ids, 1
        image, video = kinds
        types = np.where(input_ids == image, 1, np.where(input_ids == video, 2, 0))
        return {"input_ids": input_ids, "attention_mask": mask, "mm_token_type_ids": types}

    def _patchify(self, media: list[list]) -> tuple[np.ndarray, np.ndarray]:
        """Patches (sum of t * h * w, C * tp * p * p) and grids (n, 3) of media given as lists of frames."""
        p, m, tp = self.patch_size, self.merge_size, self.temporal_patch_size
        table = _value_table(self.mean, self.std)
        patches, grids = [], []
        for frames in media:
            pixels = np.stack([self._resize(frame) for frame in frames])
            if spare := -len(pixels) % tp:
                pixels = np.concatenate([pixels, np.repeat(pixels[-1:], spare, axis=0)])
            t, h, w = len(pixels) // tp, pixels.shape[1] // p, pixels.shape[2] // p
            blocks = pixels.reshape(t, tp, h // m, m, p, w // m, m, p, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
            blocks = blocks.reshape(t * h * w, 3, tp * p * p)
            patches.append(np.concatenate([table[c][blocks[:, c]] for c in range(3)], axis=1))
            grids.append((t, h, w))
        if not media:
            return np.zeros((0, 3 * tp * p * p), np.float32), np.zeros((0, 3), np.int64)
        return np.concatenate(patches), np.array(grids, np.int64)

    def _resize(self, frame: Any) -> np.ndarray:
        """A frame as uint8 (H, W, 3), both sides multiples of patch_size * merge_size."""
        pixels = _to_rgb(frame)
        height, width = pixels.shape[:2]
        tall, wide = smart_resize(height, width, self.patch_size * self.merge_size, self.min_pixels, self.max_pixels)
        if (tall, wide) == (height, width):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BICUBIC))


def tiny_processor() -> Processor:
    """The processor of the tiny model: the tiny tokenizer, patches of 4 pixels, frames of up to 64 x 64."""
    from fairgrpo_jax.models.tokenizer import tiny_tokenizer

    return Processor(tiny_tokenizer(), patch_size=4, min_pixels=8 * 8, max_pixels=64 * 64)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest height and width that are multiples of ``factor``, with an area between the bounds and the same aspect.

    Halves round to even, as in Qwen's preprocessing.  Sides never fall below ``factor``.

    Args:
        height: pixels.
        width: pixels.
        factor: what both sides must be multiples of.
        min_pixels: least area.
        max_pixels: largest area.

    Raises:
        ValueError: one side is more than 200 times the other.

    Example:
        >>> smart_resize(100, 200, 28, 56 * 56, 28 * 28 * 1280)
        (112, 196)
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"an image of {height} x {width} pixels is more than 200 to 1; crop it")
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return tall, wide


@functools.cache
def _value_table(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(3, 256) float32: what each byte of each channel becomes; scaled in float64, normalised in float32."""
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return (scaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def _to_rgb(frame: Any) -> np.ndarray:
    """A PIL image or array as uint8 (H, W, 3); transparency is laid on white."""
    if not isinstance(frame, Image.Image):
        pixels = np.asarray(frame)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise ValueError(f"an image must be uint8 (H, W, 3) or (H, W); got {pixels.dtype} {pixels.shape}")
        if pixels.ndim == 3 and pixels.shape[2] == 3:
            return pixels
        frame = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    if frame.mode == "RGB":
        return np.asarray(frame)
    if "A" in frame.getbands() or "transparency" in frame.info:
        frame = frame.convert("RGBA")
        frame = Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame)
    return np.asarray(frame.convert("RGB"))


def _flatten(seconds: Sequence[Sequence[float]] | float, videos: Sequence[Sequence[Any]]) -> np.ndarray:
    """One number of seconds for every video of the batch, in order."""
    if isinstance(seconds, int | float):
        return np.full(sum(map(len, videos)), float(seconds))
    if [len(row) for row in seconds] != [len(row) for row in videos]:
        raise ValueError("seconds_per_frame must be one number, or hold one for every video of every row")
    return np.array([value for row in seconds for value in row], np.float64)
