"""From what a Hugging Face processor returns to static, right-padded arrays.

Everything that depends on image grids is integer arithmetic on the host: rotary positions, the row of the vision
features that replaces a token, and the segment every patch attends in.  The device sees arrays only.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import numpy as np


@flax.struct.dataclass
class Vision:
    """The patches of every prompt, all its media in order of appearance, padded to a common length S.

    Attributes:
        patches: (P, S, C * tp * p * p) float32, S a multiple of merge².
        position: (P, S, 2) int32, row and column of the patch in its frame.
        frame: (P, S) int32, the segment a full-attention block attends in; -1 is padding.
        window: (P, S) int32, the segment a window block attends in; -1 is padding.
    """

    patches: Any
    position: Any
    frame: Any
    window: Any


@flax.struct.dataclass
class Prompt:
    """Right-padded prompts; order, rotation and feature row are three integers, never derived from each other.

    Attributes:
        tokens: (P, T) int32.
        valid: (P, T) bool, false at padding.
        order: (P, T) int32, ``cumsum(valid) - 1``: decides causality.
        rope: (P, T, 3) int32, rotary position in time, height and width; 0 at padding.
        feature: (P, T) int32, row of this prompt's merged vision features that replaces the embedding; -1 is text.
        vision: :class:`Vision`, or None in a batch of text.
    """

    tokens: Any
    valid: Any
    order: Any
    rope: Any
    feature: Any
    vision: Vision | None = None


def pack(
    inputs: Mapping[str, Any], config: Any, *, length: int | None = None, num_patches: int | None = None
) -> Prompt:
    """Packs the arrays of a Hugging Face processor, padded on either side, into a right-padded :class:`Prompt`.

    Rotary positions are those of transformers 5: text counts up in all three rows; a medium starting at ``s`` has
    ``(s + floor(frame * interval), s + row, s + column)`` on its merged grid, with ``interval`` = tokens per second
    times ``second_per_grid_ts`` (1 for an image), after which text continues at ``s + max(height, width)``.
    transformers 4 continued a video after its last time step instead.

    Args:
        inputs: ``input_ids`` (P, T), ``attention_mask`` (P, T; default all ones), and where there are media
            ``pixel_values`` with ``image_grid_thw`` (n, 3), ``pixel_values_videos`` with ``video_grid_thw`` (n, 3) and
            ``second_per_grid_ts`` (n,; default 1 second).  The kind of a token follows from its id.
        config: the model's config (token ids, vision sizes).
        length: static prompt length; default the longest prompt.
        num_patches: static number of patches a prompt, a multiple of merge²; default the largest.  When given, a
            batch of text has (padded) patches too.

    Returns:
        A :class:`Prompt` of NumPy arrays.

    Raises:
        ValueError: an empty prompt, one longer than ``length`` or ``num_patches``, or media that do not fit the tokens.
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
    rope = np.zeros((*shape, 3), np.int32)
    feature = np.full(shape, -1, np.int32)
    media = _Media(inputs, config)
    patches = []
    for row, n in enumerate(sizes):
        tokens[row, :n] = ids[row, mask[row]]
        rope[row, :n], feature[row, :n], own = media.place(tokens[row, :n], row)
        patches.append(own)
    media.check_all_used()
    order = (np.cumsum(valid, axis=1) - 1).astype(np.int32)
    return Prompt(tokens, valid, order, rope, feature, _pack_vision(patches, config.vision, num_patches))


def _fit(sizes: np.ndarray, limit: int | None, what: str, option: str) -> int:
    """The common length of rows, refusing the first row over the limit."""
    longest = int(sizes.max(initial=0))
    if limit is not None and longest > limit:
        row = int(sizes.argmax())
        raise ValueError(
            f"prompt {row} has {longest} {what} but {option}={limit}: raise {option} or shorten the prompt"
        )
    return longest if limit is None else limit


class _Media:
    """Hands out the media of a batch in the order in which the prompts ask for them."""

    def __init__(self, inputs: Mapping[str, Any], config: Any):
        self.config = config
        self.kind = {config.image_id: "image", config.video_id: "video"}
        self.patches, self.grids, self.used = {}, {}, {"image": 0, "video": 0}
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            self.grids[kind], self.patches[kind] = _media_of_kind(inputs, kind, pixels, config.vision)
        seconds = inputs.get("second_per_grid_ts")
        self.seconds = np.ones(len(self.grids["video"])) if seconds is None else np.asarray(seconds, np.float64)
        if len(self.seconds) != len(self.grids["video"]):
            raise ValueError(f"second_per_grid_ts has {len(self.seconds)} values for {len(self.grids['video'])} videos")

    def place(self, tokens: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray, list]:
        """Rotary positions (n, 3), feature rows (n,) and the (patches, grid) of one prompt's n tokens."""
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
            positions = _merged_positions(grid, interval, self.config.vision.spatial_merge_size)
            stop = at + len(positions)
            if stop > len(tokens) or (tokens[at:stop] != tokens[at]).any():
                raise ValueError(
                    f"prompt {row}: a medium of grid {grid} takes {len(positions)} tokens, but fewer placeholders "
                    f"stand from token {at} on; was the prompt truncated?"
                )
            rope[at:stop] = start + positions
            feature[at:stop] = features + np.arange(len(positions))
            own.append((patches, grid))
            features, at = features + len(positions), stop
            start += max(grid[1:]) // self.config.vision.spatial_merge_size
        return rope, feature, own

    def _next(self, token: int, row: int) -> tuple[np.ndarray, tuple[int, ...], float]:
        kind = self.kind[token]
        index = self.used[kind]
        if index == len(self.grids[kind]):
            raise ValueError(f"prompt {row} has a placeholder for {kind} {index}, but only {index} were given")
        self.used[kind] += 1
        interval = 1.0 if kind == "image" else self.config.vision.tokens_per_second * float(self.seconds[index])
        return self.patches[kind][index], self.grids[kind][index], interval

    def check_all_used(self) -> None:
        for kind, grids in self.grids.items():
            if self.used[kind] < len(grids):
                raise ValueError(f"{len(grids)} {kind}s were given, but the prompts have places for {self.used[kind]}")


def _media_of_kind(
    inputs: Mapping[str, Any], kind: str, pixels: str, vision: Any
) -> tuple[list[tuple[int, ...]], list[np.ndarray]]:
    """Grids and patches of all images, or of all videos, refusing sizes that contradict each other."""
    given = inputs.get(f"{kind}_grid_thw")
    grids = np.zeros((0, 3), np.int64) if given is None else np.asarray(given)
    given = inputs.get(pixels)
    patches = np.zeros((0, vision.patch_dim), np.float32) if given is None else np.asarray(given)
    counts = grids.prod(1)
    shape = (int(counts.sum()), vision.patch_dim)
    if patches.shape != shape:
        raise ValueError(f"{pixels} is {patches.shape}; {kind}_grid_thw and the config's patches describe {shape}")
    if (grids[:, 1:] % vision.spatial_merge_size).any():
        raise ValueError(f"{kind}_grid_thw has sides that are no multiple of {vision.spatial_merge_size}: {grids}")
    return [tuple(map(int, grid)) for grid in grids], np.split(patches, np.cumsum(counts))[:-1]


@functools.lru_cache(maxsize=1024)
def _merged_positions(grid: tuple[int, ...], interval: float, merge: int) -> np.ndarray:
    """(t * h * w / merge², 3) time, row and column of the merged tokens of one medium, counted from its start."""
    t, h, w = grid
    time = np.floor(np.arange(t, dtype=np.float32) * np.float32(interval)).astype(np.int32)
    axes = np.meshgrid(time, np.arange(h // merge), np.arange(w // merge), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 3).astype(np.int32)


@functools.lru_cache(maxsize=1024)
def _patch_geometry(grid: tuple[int, ...], merge: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column (S, 2), frame (S,) and window (S,) of the patches of one medium.

    Patches come in merge-block order: the merge x merge patches of one merged token are neighbours.  Windows are
    squares of ``window`` merged tokens in every frame, ragged at the right and lower edges.
    """
    t, h, w = grid
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    position = np.stack([rows, columns], axis=-1).reshape(h // merge, merge, w // merge, merge, 2)
    position = position.transpose(0, 2, 1, 3, 4).reshape(h * w, 2)
    squares = position // (merge * window)
    square = squares[:, 0] * (squares[:, 1].max() + 1) + squares[:, 1]
    frame = np.repeat(np.arange(t), h * w)
    return np.tile(position, (t, 1)), frame, frame * (square.max() + 1) + np.tile(square, t)


def _pack_vision(rows: list[list], vision: Any, num_patches: int | None) -> Vision | None:
    """Pads the media of every prompt to one length; segments count on from medium to medium."""
    merge = vision.spatial_merge_size
    sizes = np.array([sum(len(patches) for patches, _ in media) for media in rows])
    size = _fit(sizes, num_patches, "patches", "num_patches")
    if size % merge**2:
        raise ValueError(f"num_patches={size} must be a multiple of {merge**2}, the patches of one merged token")
    if size == 0:
        return None
    patches = np.zeros((len(rows), size, vision.patch_dim), np.float32)
    position = np.zeros((len(rows), size, 2), np.int32)
    frame = np.full((len(rows), size), -1, np.int32)
    window = np.full((len(rows), size), -1, np.int32)
    for row, media in enumerate(rows):
        at = 0
        for values, grid in media:
            own = slice(at, at + len(values))
            places, frames, windows = _patch_geometry(grid, merge, vision.window)
            patches[row, own], position[row, own] = values, places
            frame[row, own] = frames + frame[row, :at].max(initial=-1) + 1
            window[row, own] = windows + window[row, :at].max(initial=-1) + 1
            at += len(values)
    return Vision(patches, position, frame, window)
