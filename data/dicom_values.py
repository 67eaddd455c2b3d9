"""Converts the stored values of DICOM files to 8-bit RGB with a viewer's window."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fairgrpo_jax.data.pictures import Refused


if TYPE_CHECKING:
    from pydicom import Dataset

_GREY = ("MONOCHROME1", "MONOCHROME2")
_TABLES = tuple(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue"))


def require_shown(dataset: "Dataset", window: str) -> None:
    """Checks by the tags that the first picture can be shown.

    Raises:
        Refused: if it is neither grey, nor of a palette, nor colour of 8 bits, or its window is none.
    """
    kind, samples, bits = dataset.PhotometricInterpretation, int(dataset.SamplesPerPixel), int(dataset.BitsAllocated)
    one = kind in (*_GREY, "PALETTE COLOR") and samples == 1
    if not one and (samples, bits) != (3, 8):
        raise Refused(f"holds {kind} of {samples} x {bits} bits; wanted a grey or an 8-bit colour picture: convert it")
    if kind in _GREY:
        _window(of_frame(dataset, 0), window)


def of_frame(dataset: "Dataset", index: int) -> "Dataset":
    """The tags of one frame: those of enhanced objects stand in the groups of all frames and of each."""
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]]
    groups += (dataset.get("PerFrameFunctionalGroupsSequence") or ())[index : index + 1]
    frame = dataset.copy() if groups else dataset
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for told in (group.get(name) or ())[:1]:
                frame.update(told)
    return frame


def picture(dataset: "Dataset", stored: np.ndarray, window: str) -> np.ndarray:
    """Converts the stored values of one frame to uint8 RGB (H, W, 3); see ``dicom.pixels``.

    Raises:
        Refused: if its window is none, or it is no picture.
    """
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        dataset = _little_endian(dataset)
        coloured = apply_color_lut(stored, dataset)
        wide = coloured.dtype == np.uint16 and _largest_colour(dataset) > 255  # some devices write 8 bits into 16
        return (coloured >> (8 if wide else 0)).astype(np.uint8)[..., :3]
    if kind in _GREY:

        def grey(levels: np.ndarray) -> np.ndarray:
            shown = _windowed(dataset, levels, window)
            if kind == "MONOCHROME1":
                shown = 1 - shown
            shown[_padding(dataset, levels) | np.isnan(shown)] = 0
            return np.rint(255 * shown).astype(np.uint8)

        return np.repeat(_by_level(stored, grey)[..., None], 3, axis=-1)
    if stored.dtype == np.uint8 and stored.ndim == 3 and stored.shape[-1] == 3:  # the decoder has converted it to RGB
        return stored
    raise Refused(f"holds {kind} as {stored.dtype} {stored.shape}; wanted a grey or an 8-bit colour picture")


def _little_endian(dataset: "Dataset") -> "Dataset":
    """The tags with the tables of a palette in the order of bytes that pydicom's function takes them to be in."""
    if dataset.file_meta.TransferSyntaxUID.is_little_endian:
        return dataset
    turned = dataset.copy()
    for name in _TABLES:
        if table := dataset.get(name):
            turned.add_new(name, "OW", np.frombuffer(table, ">u2").astype("<u2").tobytes())
    return turned


def _largest_colour(dataset: "Dataset") -> int:
    """The largest value in a palette of 16 bits."""
    tables = (dataset.get(name) for name in _TABLES)
    return max((int(np.frombuffer(table, "<u2").max()) for table in tables if table), default=2**16 - 1)


def _by_level(stored: np.ndarray, grey: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The grey level of every pixel, computed once per distinct value, since there are far fewer values than pixels."""
    low = stored.min()
    if stored.dtype.kind not in "iu" or int(stored.max()) - int(low) >= 2**16:
        levels, place = np.unique(stored, return_inverse=True)
        return grey(levels)[place.reshape(stored.shape)]
    place = stored.astype(np.int32) - int(low) if stored.dtype.kind == "i" else stored - low
    seen = np.zeros(2**16, bool)
    seen[place] = True
    table = np.zeros(2**16, np.uint8)
    table[seen] = grey((np.flatnonzero(seen) + int(low)).astype(stored.dtype))
    return table[place]


def _windowed(dataset: "Dataset", stored: np.ndarray, window: str) -> np.ndarray:
    """Windowed values in [0, 1], dark to bright for MONOCHROME2."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = apply_modality_lut(stored, dataset)
    if window == "voi" and (tables := dataset.get("VOILUTSequence")):
        return apply_voi(values, dataset, index=0) / (2.0 ** int(tables[0].LUTDescriptor[2]) - 1)
    values = values.astype(np.float64)
    if not np.isfinite(values).any():
        raise Refused("has no finite value")
    if (told := _window(dataset, window)) is None:
        seen = values[~_padding(dataset, stored) & np.isfinite(values)]
        low, high = (seen.min(), seen.max()) if seen.size else (0.0, 0.0)
        return np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1)
    centre, width, function = told
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _window(dataset: "Dataset", window: str) -> tuple[float, float, str] | None:
    """Centre, width and function of the window that is used; None without one, or where a table goes before it."""
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if window == "minmax" or centre is None or width is None or dataset.get("VOILUTSequence"):
        return None
    function = dataset.get("VOILUTFunction") or "LINEAR"
    known = function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") and np.isfinite([float(centre), float(width)]).all()
    if not known or width <= 0 or (function == "LINEAR" and width < 1):
        raise Refused(f"has the window centre {centre}, width {width}, function {function}; pass window='minmax'")
    return centre, width, function


def _padding(dataset: "Dataset", stored: np.ndarray) -> np.ndarray:
    """A mask of the stored values that mark padding: a single value, or a range."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(stored.shape, bool)
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _first(value: Any) -> float | None:
    """The first of one or several values; None if there is none."""
    from pydicom.multival import MultiValue

    value = (value[0] if len(value) else None) if isinstance(value, MultiValue) else value
    return None if value is None or value == "" else float(value)
