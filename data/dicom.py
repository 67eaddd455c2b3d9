"""Converts DICOM files to 8-bit RGB with a viewer's window; needs ``pip install fairgrpo_jax[dicom]``."""

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np


if TYPE_CHECKING:
    from pydicom import Dataset

# De-identified files hold hashes where the standard requires an identifier; the pixels are not affected.
_QUIET = ("ignore", re.compile("Invalid value for VR UI", re.IGNORECASE), UserWarning, None, 0)


def is_dicom(name: str | Path, head: bytes) -> bool:
    """Whether a file is DICOM, by its name (``.dcm``, ``.dicom``) or its first 132 bytes.

    Example:
        >>> from fairgrpo_jax.data.dicom import is_dicom
        >>> is_dicom("a.dicom", b""), is_dicom("a", bytes(128) + b"DICM"), is_dicom("a.png", b"PNG")
        (True, True, False)
    """
    return str(name).lower().endswith((".dcm", ".dicom")) or head[128:132] == b"DICM"


def header(path: str | Path) -> "Dataset":
    """Reads the tags of a file without its pixels: ``header(path).get("PatientAge", "")``.

    Raises:
        ValueError: if there is no such file, or it is not DICOM.
        ImportError: if pydicom is not installed.
    """
    try:
        with open(path, "rb") as file:
            return _parse(file, path, stop_before_pixels=True)
    except OSError as error:
        raise ValueError(f"DICOM file {path}: {error.strerror}; download it again from the dataset's owner") from error


def size(file: Any, name: str | Path) -> tuple[int, int]:
    """Height and width of an open file's picture, without its pixels.

    Raises:
        ValueError: as ``pixels``, for what the tags show.
        ImportError: if pydicom is not installed.
    """
    dataset = _parse(file, name, stop_before_pixels=True)
    _require_one(dataset, name)
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise ValueError(f"DICOM file {name} has no picture; leave it out")
    return int(dataset.Rows), int(dataset.Columns)


def pixels(content: bytes, name: str | Path, *, window: Literal["voi", "minmax"] = "voi") -> np.ndarray:
    """Converts a DICOM file to an image.

    Stored values pass the modality transform (rescale slope and intercept, or its table), then the window, then, for
    MONOCHROME1, where low values are bright, 1 - y; y in [0, 1] becomes 255 y, rounded. Padding is black. 8-bit colour
    is not changed.

    Args:
        content: the bytes of the file.
        name: name of the file for error messages.
        window: ``"voi"``: the first VOI table, or the first window centre c and width w of the file, by its function:
            y = (x - c + 0.5) / (w - 1) + 0.5 (LINEAR), (x - c) / w + 0.5 (LINEAR_EXACT), 1 / (1 + exp(-4 (x - c) / w))
            (SIGMOID); a file with neither is converted as by ``"minmax"``: y = (x - min) / (max - min), over values
            that are not padding.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: if the file is broken or has no pixels, several frames, or a photometric interpretation that is not
            an image.
        ImportError: if pydicom, or the decoder of this compression, is not installed.

    Source: DICOM PS3.3 C.11.1, C.11.2 and C.7.5.1.1.2 (padding). Preparations of VinDr-Mammo elsewhere divide by the
        maximum instead; ``"minmax"`` comes closest.
    """
    dataset = _parse(io.BytesIO(content), name)
    _require_one(dataset, name)
    try:
        from pydicom.pixels.utils import pixel_array

        stored = pixel_array(dataset)
        return _picture(dataset, stored, window)
    except _Refused as error:
        raise ValueError(f"DICOM file {name} {error}") from error
    except Exception as error:  # the decoders raise many kinds of errors
        raise ValueError(
            f"DICOM file {name} is broken ({error}); download it again from the dataset's owner"
        ) from error


def _require_one(dataset: "Dataset", name: str | Path) -> None:
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ValueError(f"DICOM file {name} has {dataset.NumberOfFrames} frames; wanted one picture: split it first")


class _Refused(ValueError):
    """A valid file without an image that can be shown."""


def _parse(file: Any, name: str | Path, **options: Any) -> "Dataset":
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(f"{name} is a DICOM file; to read it: pip install fairgrpo_jax[dicom]") from error
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", "Invalid value for VR UI", UserWarning)
    try:
        return pydicom.dcmread(file, **options)
    except Exception as error:  # a damaged file can fail anywhere in the parser
        raise ValueError(
            f"DICOM file {name} is broken ({error}); download it again from the dataset's owner"
        ) from error


def _picture(dataset: "Dataset", stored: np.ndarray, window: str) -> np.ndarray:
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        coloured = apply_color_lut(stored, dataset)
        wide = coloured.dtype == np.uint16 and _largest_colour(dataset) > 255  # some devices write 8 bits into 16
        return (coloured >> (8 if wide else 0)).astype(np.uint8)[..., :3]
    if kind in ("MONOCHROME1", "MONOCHROME2"):

        def grey(levels: np.ndarray) -> np.ndarray:
            shown = _windowed(dataset, levels, window)
            if kind == "MONOCHROME1":
                shown = 1 - shown
            shown[_padding(dataset, levels)] = 0
            return np.rint(255 * shown).astype(np.uint8)

        return np.repeat(_by_level(stored, grey)[..., None], 3, axis=-1)
    if stored.dtype == np.uint8 and stored.ndim == 3 and stored.shape[-1] == 3:  # the decoder has converted it to RGB
        return stored
    raise _Refused(f"holds {kind} as {stored.dtype} {stored.shape}; wanted a grey or an 8-bit colour picture")


def _largest_colour(dataset: "Dataset") -> int:
    """The largest value in a palette of 16 bits."""
    tables = (dataset.get(f"{name}PaletteColorLookupTableData") for name in ("Red", "Green", "Blue"))
    order = "<u2" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">u2"
    return max((int(np.frombuffer(table, order).max()) for table in tables if table), default=2**16 - 1)


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
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if window == "minmax" or centre is None or width is None:
        seen = values[~_padding(dataset, stored)]
        low, high = (seen.min(), seen.max()) if seen.size else (0.0, 0.0)
        return np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1)
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width <= 0 or (function == "LINEAR" and width < 1):
        raise _Refused(f"has the window centre {centre}, width {width}, function {function}; pass window='minmax'")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


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
