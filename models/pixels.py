"""Converts images to RGB bytes, resizes them and cuts patches, bit-identical to transformers' Pillow processors."""

import functools
import math
from typing import Any

import numpy as np
from PIL import Image


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def to_rgb(image: Any) -> np.ndarray:
    """Converts a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), to uint8 (H, W, 3).

    Transparent pixels are blended with white. As in transformers, an array is blended in floating point and a PIL image
    by Pillow, which rounds differently.

    Raises:
        ValueError: for another dtype or shape, no pixels, or an image of more than 8 bits.

    Example:
        >>> to_rgb(np.array([[[10, 20, 30, 0]]], np.uint8)).tolist()
        [[[255, 255, 255]]]
    """
    if not isinstance(image, Image.Image):
        return _array_to_rgb(np.asarray(image))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"got an image of mode {image.mode}; wanted 8 bits a channel: window it first")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def extent(image: Any) -> tuple[int, int]:
    """Height and width of a PIL image or an array.

    Raises:
        ValueError: if it has no pixels.

    Example:
        >>> extent(np.zeros((2, 3, 3), np.uint8))
        (2, 3)
    """
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else (*np.shape(image), 0, 0)[:2]
    if not height * width:
        raise ValueError(f"got an image of {height} x {width} pixels; wanted at least one")
    return height, width


def _array_to_rgb(pixels: np.ndarray) -> np.ndarray:
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise ValueError(
            f"got an image array of {pixels.dtype} {pixels.shape}; "
            "wanted uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] == 4:
        opaque = pixels[..., 3:] / 255
        return np.round(opaque * pixels[..., :3] + (1 - opaque) * 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def resize(pixels: np.ndarray, size: tuple[int, int], filter: Image.Resampling) -> np.ndarray:
    """Resizes bytes (H, W, 3) to ``(height, width)`` with Pillow."""
    if pixels.shape[:2] == size:
        return pixels
    height, width = size
    return np.asarray(Image.fromarray(pixels).resize((width, height), filter))


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest height and width that are multiples of ``factor``, with an area within the bounds and the same aspect.

    Halves round to even, as in Qwen's preprocessing. Sides never fall below ``factor``.

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
    return _fit(height, width, factor, min_pixels, max_pixels, real=1, counted=1)


def smart_resize_film(
    frames: int, height: int, width: int, temporal: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """:func:`smart_resize` for Qwen3-VL's videos: the bounds apply to frames x height x width.

    If a side is below ``factor``, both are first enlarged until they reach it.

    Args:
        frames: number of frames; fewer than ``temporal`` count as ``temporal``.
        height: pixels of a frame.
        width: pixels of a frame.
        temporal: frames in a patch; the bounds are compared with ``frames`` rounded to a multiple of it.
        factor: what both sides must be multiples of.
        min_pixels: least volume.
        max_pixels: largest volume.

    Raises:
        ValueError: one side is more than 200 times the other.

    Example:
        >>> smart_resize_film(8, 480, 640, 2, 32, 4096, 600_000)
        (224, 288)
    """
    frames = max(frames, temporal)
    if min(height, width) < factor:
        grow = max(factor / height, factor / width)
        height, width = int(height * grow), int(width * grow)
    counted = round(frames / temporal) * temporal
    return _fit(height, width, factor, min_pixels, max_pixels, real=frames, counted=counted)


def _fit(height, width, factor, min_pixels, max_pixels, *, real: int, counted: int) -> tuple[int, int]:
    """Implements both resizes: bounds are compared with ``counted`` frames, the scale follows from ``real`` ones."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"got {height} x {width} pixels, more than 200 to 1; wanted a squarer image: crop it")
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if counted * tall * wide > max_pixels:
        shrink = math.sqrt((real * height * width) / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif counted * tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (real * height * width))
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return tall, wide


@functools.cache
def value_table(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(3, 256) float32, the value of each byte in each channel: scaled in float64, normalised in float32."""
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return (scaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def patchify(
    pixels: np.ndarray, table: np.ndarray, patch: int, merge: int, temporal: int
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cuts frames into patches in merge-block order, repeating the last frame up to a multiple of ``temporal``.

    Args:
        pixels: uint8 (F, H, W, 3), both sides multiples of ``patch * merge``.
        table: from :func:`value_table`, of any dtype.
        patch: side of a patch.
        merge: patches along the side of a merged token.
        temporal: frames in a patch.

    Returns:
        The patches (t * h * w, 3 * temporal * patch * patch), of the table's dtype, and the grid (t, h, w).
    """
    t, h, w = -(-len(pixels) // temporal), pixels.shape[1] // patch, pixels.shape[2] // patch
    out = np.empty((t, h // merge, w // merge, merge, merge, 3, temporal, patch, patch), table.dtype)
    for number, frame in enumerate(pixels):
        for channel in range(3):
            values = table[channel].take(frame[..., channel])
            blocks = values.reshape(h // merge, merge, patch, w // merge, merge, patch).transpose(0, 3, 1, 4, 2, 5)
            out[number // temporal, :, :, :, :, channel, number % temporal] = blocks
    last = (len(pixels) - 1) % temporal
    out[-1, ..., last + 1 :, :, :] = out[-1, ..., last : last + 1, :, :]
    return out.reshape(t * h * w, -1), (t, h, w)
