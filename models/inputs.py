"""Packs the output of a Hugging Face processor into static, right-padded arrays.

Everything that depends on image grids is integer arithmetic on the host: rotary positions, the row of the vision
features that replaces a token, the segment in which each patch attends, and the learned positions around it. The device
sees only arrays.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Vision:
    """The patches of each prompt, with all its media in order of appearance, padded to a common length S.

    The merge² patches of a merged token are adjacent. Merged tokens are in the order of the text, or, for a tower with
    windows, window by window; ``Prompt.feature`` says which is which.

    Attributes:
        patches: (P, S, C * tp * p * p) float32 or bfloat16, S a multiple of merge².
        position: (P, S, 2) int32, row and column of the patch in its frame.
        frame: (P, S) int32, the segment for blocks with full attention; -1 is padding.
        window: (P, S) int32, the segment for blocks with windows, whose patches are adjacent; -1 is padding; None for a
            tower without windows.
        taps: (P, S, 4) int32, the learned positions around the patch; None for a tower without learned positions.
        weights: (P, S, 4) float32, their interpolation weights.
    """

    patches: Any
    position: Any
    frame: Any
    window: Any = None
    taps: Any = None
    weights: Any = None


@flax.struct.dataclass
class Prompt:
    """Right-padded prompts; order, rotary position and feature row are stored separately, not derived from each other.

    Attributes:
        tokens: (P, T) int32.
        valid: (P, T) bool, false at padding.
        order: (P, T) int32, ``cumsum(valid) - 1``: decides causality.
        rope: (P, T, 3) int32, rotary position in time, height and width; 0 at padding.
        following: (P,) int32, rotary position of the token after the prompt, the same in time, height and width.
        feature: (P, T) int32, row of this prompt's merged vision features that replaces the embedding; -1 is text.
        block: (P, T) int32, k in the k-th image of its prompt, 0 elsewhere; None if images are read causally.
        vision: :class:`Vision`, or None for a batch of text.
    """

    tokens: Any
    valid: Any
    order: Any
    rope: Any
    following: Any
    feature: Any
    block: Any = None
    vision: Vision | None = None


def pack(
    inputs: Mapping[str, Any],
    config: Any,
    *,
    length: int | None = None,
    num_patches: int | None = None,
    dtype: Any = np.float32,
) -> Prompt:
    """Packs the arrays of a Hugging Face processor, padded on either side, into a right-padded :class:`Prompt`.

    Rotary positions are those of transformers 5: text counts up in all three rows; a medium starting at ``s`` has
    ``(s + floor(frame * interval), s + row, s + column)`` on its merged grid, after which text continues at
    ``s + max(height, width)``. The interval is 1, except for videos of Qwen2.5-VL: tokens per second times
    ``second_per_grid_ts``, with which the last time steps may exceed the positions of the text that follows.
    (transformers 4 continued the text after the last time step instead.) A model without M-RoPE counts image tokens
    like text.

    Args:
        inputs: ``input_ids`` (P, T), ``attention_mask`` (P, T; default all ones), and for media ``pixel_values`` with
            ``image_grid_thw`` (n, 3), ``pixel_values_videos`` with ``video_grid_thw`` (n, 3) and ``second_per_grid_ts``
            (n,; default 1 second); or ``pixel_values`` (n, 3, S, S) for images of fixed size. The kind of a token
            follows from its id.
        config: the model's config (token ids, vision sizes).
        length: static prompt length; default the longest prompt.
        num_patches: static number of patches per prompt, a multiple of merge² (or of an image's patches for images of
            fixed size); default: the largest. If given, a batch of text also has (padded) patches.
        dtype: of the patches.

    Returns:
        A :class:`Prompt` of NumPy arrays.

    Raises:
        ValueError: if a prompt is empty or longer than ``length`` or ``num_patches``, or media do not fit the tokens.
    """
    ids = np.asarray(inputs["input_ids"])
    mask = np.asarray(inputs.get("attention_mask", np.ones_like(ids))).astype(bool)
    if ids.ndim != 2 or mask.shape != ids.shape:
        raise ValueError(f"input_ids must be (P, T) and attention_mask alike; got {ids.shape} and {mask.shape}")
    sizes = mask.sum(1)
    length = _fit(sizes, length, "tokens", "length")
    if (sizes == 0).any():
        raise ValueError(f"prompt {int(sizes.argmin())} has no valid token; drop it before packing")

    shape = (len(ids), length)
    tokens = np.full(shape, config.pad_id, np.int32)
    valid = np.arange(length) < sizes[:, None]
    rope, following = np.zeros((*shape, 3), np.int32), np.zeros(len(ids), np.int32)
    feature = np.full(shape, -1, np.int32)
    media = _Media(inputs, config)
    patches = []
    for row, n in enumerate(sizes):
        tokens[row, :n] = ids[row, mask[row]]
        rope[row, :n], following[row], feature[row, :n], own = media.place(tokens[row, :n], row)
        patches.append(own)
    media.check_all_used()
    order = (np.cumsum(valid, axis=1) - 1).astype(np.int32)
    if config.vision is None:
        return Prompt(tokens, valid, order, rope, following, feature)
    block = _image_blocks((tokens == config.image_id) & valid) if config.vision.block_attention else None
    packed = _pack_vision(patches, config.vision, num_patches, dtype)
    if packed is not None and packed.window is not None:
        packed, feature = _window_by_window(packed, feature, config.vision.unit)
    return Prompt(tokens, valid, order, rope, following, feature, block, packed)


def prompt_shapes(
    config: Any, *, prompts: int, length: int, num_patches: int | None, dtype: Any = np.float32
) -> Prompt:
    """The result of :func:`pack` for this number of prompts, as shapes; for a model of text ``num_patches`` is ignored.

    Raises:
        ValueError: from :func:`pack`, if no batch can have this number of patches.
    """
    size = num_patches if config.vision is not None else None
    one = pack({"input_ids": np.zeros((1, 1), np.int32)}, config, length=length, num_patches=size, dtype=dtype)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((prompts, *x.shape[1:]), x.dtype), one)


def sizes(prompt: Prompt) -> np.ndarray:
    """Tokens and patches (P, 2) of each prompt, without padding."""
    patches = np.zeros(len(prompt.valid), int) if prompt.vision is None else (prompt.vision.frame >= 0).sum(1)
    return np.stack([prompt.valid.sum(1), patches], axis=1)


def cut(prompt: Prompt, length: int, num_patches: int) -> Prompt:
    """Drops padding: the prompts at this length and this number of patches, which must hold them; host arrays."""
    shorter = lambda x: x[:, :length] if x.ndim > 1 else x
    bare = jax.tree.map(shorter, dataclasses.replace(prompt, vision=None))
    if prompt.vision is None or not num_patches:
        return bare
    return dataclasses.replace(bare, vision=jax.tree.map(lambda x: x[:, :num_patches], prompt.vision))


def widen(prompt: Prompt, length: int) -> Prompt:
    """Adds padding up to this length, and leaves out the patches, which are not needed after the prompt pass."""

    def longer(x: jax.Array) -> jax.Array:
        if x.ndim == 1:
            return x
        return jnp.pad(x, [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])

    wide = jax.tree.map(longer, dataclasses.replace(prompt, vision=None))
    last = jnp.pad(prompt.order, [(0, 0), (0, length - prompt.order.shape[1])], mode="edge")
    return dataclasses.replace(wide, order=last)


def _image_blocks(is_image: np.ndarray) -> np.ndarray:
    """Numbers the runs of image tokens in every row (P, T) from 1; 0 elsewhere."""
    starts = is_image & ~np.pad(is_image, [(0, 0), (1, 0)])[:, :-1]
    return (np.cumsum(starts, axis=1) * is_image).astype(np.int32)


def _fit(sizes: np.ndarray, limit: int | None, what: str, option: str) -> int:
    """The common length of rows; raises for the first row over the limit."""
    longest = int(sizes.max(initial=0))
    if limit is not None and longest > limit:
        row = int(sizes.argmax())
        raise ValueError(
            f"prompt {row} has {longest} {what} but {option}={limit}: raise {option} or shorten the prompt"
        )
    return longest if limit is None else limit


class _Media:
    """Iterates over the media of a batch in the order in which the prompts use them."""

    def __init__(self, inputs: Mapping[str, Any], config: Any):
        self.config = config
        self.kind = {config.image_id: "image", config.video_id: "video"}
        self.kind.pop(None, None)
        self.patches, self.grids, self.used = {}, {}, {"image": 0, "video": 0}
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            self.grids[kind], self.patches[kind] = _media_of_kind(inputs, kind, pixels, config.vision)
        timed = config.vision is not None and config.vision.tokens_per_second is not None
        seconds = inputs.get("second_per_grid_ts") if timed else None
        self.seconds = np.ones(len(self.grids["video"])) if seconds is None else np.asarray(seconds, np.float64)
        if len(self.seconds) != len(self.grids["video"]):
            raise ValueError(f"second_per_grid_ts has {len(self.seconds)} values for {len(self.grids['video'])} videos")

    def place(self, tokens: np.ndarray, row: int) -> tuple[np.ndarray, int, np.ndarray, list]:
        """Rotary positions (n, 3), the one after them, feature rows (n,) and (patches, grid) of a prompt's n tokens."""
        rope = np.empty((len(tokens), 3), np.int32)
        feature = np.full(len(tokens), -1, np.int32)
        own, start, features, at = [], 0, 0, 0
        vision_at = np.append(np.flatnonzero(np.isin(tokens, list(self.kind))), len(tokens))
        while at < len(tokens):
            text = int(vision_at[np.searchsorted(vision_at, at)]) - at
            rope[at : at + text] = start + np.arange(text)[:, None]
            at, start = at + text, start + text
            if at == len(tokens):
                break
            patches, grid, interval = self._next(int(tokens[at]), row)
            positions, extent = _merged_positions(grid, interval, self.config)
            stop = at + len(positions)
            if stop > len(tokens) or (tokens[at:stop] != tokens[at]).any():
                raise ValueError(
                    f"prompt {row}: a medium of grid {grid} takes {len(positions)} tokens, but fewer placeholders "
                    f"stand from token {at} on; was the prompt truncated?"
                )
            rope[at:stop] = start + positions
            feature[at:stop] = features + np.arange(len(positions))
            own.append((patches, grid))
            features, at, start = features + len(positions), stop, start + extent
        return rope, start, feature, own

    def _next(self, token: int, row: int) -> tuple[np.ndarray, tuple[int, ...], float]:
        kind = self.kind[token]
        index = self.used[kind]
        if index == len(self.grids[kind]):
            raise ValueError(f"prompt {row} has a placeholder for {kind} {index}, but only {index} were given")
        self.used[kind] += 1
        rate = self.config.vision.tokens_per_second
        interval = 1.0 if kind == "image" or rate is None else rate * float(self.seconds[index])
        return self.patches[kind][index], self.grids[kind][index], interval

    def check_all_used(self) -> None:
        for kind, grids in self.grids.items():
            if self.used[kind] < len(grids):
                raise ValueError(f"{len(grids)} {kind}s were given, but the prompts have places for {self.used[kind]}")


def _media_of_kind(
    inputs: Mapping[str, Any], kind: str, pixels: str, vision: Any
) -> tuple[list[tuple[int, ...]], list[np.ndarray]]:
    """Grids and patches of all images, or of all videos; raises if sizes contradict each other."""
    given, grids = inputs.get(pixels), inputs.get(f"{kind}_grid_thw")
    if given is None and grids is None:
        return [], []
    if vision is None or (vision.image_size and kind == "video"):
        raise ValueError(f"the inputs have {pixels}, but this model reads no {kind}s; leave them out")
    if vision.image_size:
        return _images_of_fixed_size(np.asarray(given), vision)
    grids = np.zeros((0, 3), np.int64) if grids is None else np.asarray(grids)
    patches = np.zeros((0, vision.patch_dim), np.float32) if given is None else np.asarray(given)
    shape = (int(grids.prod(1).sum()), vision.patch_dim)
    if patches.shape != shape:
        raise ValueError(f"{pixels} is {patches.shape}; {kind}_grid_thw and the config's patches describe {shape}")
    if (grids[:, 1:] % vision.spatial_merge_size).any():
        raise ValueError(f"{kind}_grid_thw has sides that are no multiple of {vision.spatial_merge_size}: {grids}")
    if vision.frames_apart:
        grids = np.repeat(grids, grids[:, 0], axis=0)
        grids[:, 0] = 1
    return [tuple(map(int, grid)) for grid in grids], np.split(patches, np.cumsum(grids.prod(1)))[:-1]


def _images_of_fixed_size(pixels: np.ndarray, vision: Any) -> tuple[list[tuple[int, ...]], list[np.ndarray]]:
    """Grids and patches of images (n, C, S, S), with the patches of a merged token adjacent."""
    shape = (vision.in_channels, vision.image_size, vision.image_size)
    if pixels.ndim != 4 or pixels.shape[1:] != shape:
        raise ValueError(f"pixel_values is {pixels.shape}; this model wants (images, {', '.join(map(str, shape))})")
    side, merge, patch = vision.image_size // vision.patch_size, vision.spatial_merge_size, vision.patch_size
    split = pixels.reshape(-1, shape[0], side // merge, merge, patch, side // merge, merge, patch)
    patches = split.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(len(pixels), side**2, -1)
    return [(1, side, side)] * len(pixels), list(patches)


@functools.lru_cache(maxsize=1024)
def _merged_positions(grid: tuple[int, ...], interval: float, config: Any) -> tuple[np.ndarray, int]:
    """(t * h * w / merge², 3) time, row and column of the merged tokens of one medium, and their extent."""
    merge = config.vision.spatial_merge_size
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    if not config.mrope_section:
        return np.repeat(np.arange(t * h * w, dtype=np.int32)[:, None], 3, axis=1), t * h * w
    time = np.floor(np.arange(t, dtype=np.float32) * np.float32(interval)).astype(np.int32)
    axes = np.meshgrid(time, np.arange(h), np.arange(w), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 3).astype(np.int32), max(h, w)


@functools.lru_cache(maxsize=1024)
def _patch_geometry(grid: tuple[int, ...], merge: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column (S, 2), frame (S,) and window (S,) of the patches of one medium.

    Patches are in merge-block order: the merge x merge patches of one merged token are adjacent. Windows are squares of
    ``window`` merged tokens in every frame, smaller at the right and lower edges; if it is 0, each frame is one window.
    """
    t, h, w = grid
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    position = np.stack([rows, columns], axis=-1).reshape(h // merge, merge, w // merge, merge, 2)
    position = position.transpose(0, 2, 1, 3, 4).reshape(h * w, 2)
    squares = position // (merge * window or max(h, w))
    square = squares[:, 0] * (squares[:, 1].max() + 1) + squares[:, 1]
    frame = np.repeat(np.arange(t), h * w)
    return np.tile(position, (t, 1)), frame, frame * (square.max() + 1) + np.tile(square, t)


@functools.lru_cache(maxsize=1024)
def _learned_positions(grid: tuple[int, ...], merge: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (S, 4) of a learned table of side x side positions around each patch of one medium, and their weights.

    The corners of the grid map to the corners of the table (``align_corners``); patches between four learned positions
    are interpolated bilinearly.
    """
    position, _, _ = _patch_geometry(grid, merge, 0)
    taps, weights = np.zeros((len(position), 1), np.int32), np.ones((len(position), 1), np.float32)
    for axis in (0, 1):
        size = np.float32(max(grid[1 + axis] - 1, 1))
        source = position[:, axis].astype(np.float32) * np.float32(side - 1) / size
        low = np.floor(source).astype(np.int32)
        share = (source - low)[:, None]
        ends = np.stack([low, np.minimum(low + 1, side - 1)], axis=1)
        taps = (taps[:, :, None] * side + ends[:, None, :]).reshape(len(position), -1)
        weights = (weights[:, :, None] * np.concatenate([1 - share, share], 1)[:, None]).reshape(len(position), -1)
    return taps, weights


def _pack_vision(rows: list[list], vision: Any, num_patches: int | None, dtype: Any) -> Vision | None:
    """Pads the media of every prompt to one length; segment ids continue from medium to medium."""
    sizes = np.array([sum(len(patches) for patches, _ in media) for media in rows])
    size = _fit(sizes, num_patches, "patches", "num_patches")
    if size % vision.unit:
        what = "image" if vision.image_size else "merged token"
        raise ValueError(f"num_patches={size} must be a multiple of {vision.unit}, the patches of one {what}")
    if size == 0:
        return None
    patches = np.zeros((len(rows), size, vision.patch_dim), dtype)
    position = np.zeros((len(rows), size, 2), np.int32)
    frame, window = (np.full((len(rows), size), -1, np.int32) for _ in range(2))
    taps, weights = np.zeros((len(rows), size, 4), np.int32), np.zeros((len(rows), size, 4), np.float32)
    side = round(vision.num_positions**0.5)
    for row, media in enumerate(rows):
        at = 0
        for values, grid in media:
            own = slice(at, at + len(values))
            if vision.parts(size)[0] > 1 and (longest := len(values) // grid[0]) > vision.frame:
                raise ValueError(
                    f"prompt {row} has a frame or image of {longest} patches for a vision tower in parts, whose frames "
                    f"have at most {vision.frame}; wanted a smaller one, or vision.in_parts(config, {longest})"
                )
            places, frames, windows = _patch_geometry(grid, vision.spatial_merge_size, vision.window)
            patches[row, own], position[row, own] = values, places
            frame[row, own] = frames + frame[row, :at].max(initial=-1) + 1
            window[row, own] = windows + window[row, :at].max(initial=-1) + 1
            if side:
                taps[row, own], weights[row, own] = _learned_positions(grid, vision.spatial_merge_size, side)
            at += len(values)
    learned = (taps, weights) if side else (None, None)
    return Vision(patches, position, frame, window if vision.window else None, *learned)


def _window_by_window(vision: Vision, feature: np.ndarray, unit: int) -> tuple[Vision, np.ndarray]:
    """Puts the patches of each window side by side, padding last; merged tokens of ``unit`` patches stay together."""
    window = vision.window[:, ::unit]
    order = np.argsort(np.where(window < 0, np.iinfo(np.int32).max, window), axis=1, kind="stable")
    place = np.argsort(order, axis=1)
    rows = (order[:, :, None] * unit + np.arange(unit)).reshape(len(order), -1)
    moved = jax.tree.map(lambda x: x[np.arange(len(order))[:, None], rows], vision)
    found = np.take_along_axis(place, np.maximum(feature, 0), axis=1)
    return moved, np.where(feature < 0, -1, found).astype(np.int32)
