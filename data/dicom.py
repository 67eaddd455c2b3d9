"""Reads DICOM files as 8-bit RGB pictures and films; needs ``pip install fairgrpo_jax[dicom]``.

What the tags show is checked before any pixel is decoded, the same for a size and for a picture: an object without a
picture, one that was cut, a compression without a decoder.
"""

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np

from fairgrpo_jax.data import decoder_process, dicom_values
from fairgrpo_jax.data.pictures import Refused, require_size


if TYPE_CHECKING:
    from pydicom import Dataset

# De-identified files hold hashes where the standard requires an identifier; the pixels are not affected.
_QUIET = ("ignore", re.compile("Invalid value for VR UI", re.IGNORECASE), UserWarning, None, 0)
# Decoders in the order in which they are tried: all give the same values.
_DECODERS = ("pylibjpeg", "pillow", "pyjpegls", "pydicom", "gdcm")
_APART = ("gdcm",)  # which can end its process on a damaged stream
_PIXELS = {"PixelData": 16, "FloatPixelData": 8, "DoubleFloatPixelData": 9}  # and their numbers in group 7FE0
_EXPLICIT = (b"OB", b"OW", b"OF", b"OD", b"UN")  # types of pixel data where each element names its type
Window = Literal["voi", "minmax"]
_UNDEFINED = 0xFFFFFFFF  # the length of compressed pixel data
_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation")


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
        with open(path, "rb") as file, _named(path):
            return _tags(file, path)
    except OSError as error:
        raise ValueError(f"DICOM file {path}: {error.strerror}; download it again from the dataset's owner") from error


def size(file: IO[bytes], name: str | Path, *, window: Window = "voi") -> tuple[int, int]:
    """Height and width of an open file's picture, without its pixels.

    Raises:
        ValueError, ImportError: as ``pixels``, for what the tags show.
    """
    with _named(name):
        dataset = _shown(file, name, window)
        _require_one(dataset)
        return int(dataset.Rows), int(dataset.Columns)


def film(
    file: IO[bytes], name: str | Path, fps: float | None = None, *, window: Window = "voi"
) -> tuple[tuple[int, int], np.ndarray]:
    """Height and width of the frames of an open file, and the time of each in seconds, without its pixels.

    The file's FrameTimeVector, FrameTime, CineRate or RecommendedDisplayFrameRate gives the times; if it has none of
    them, ``fps`` does.

    Raises:
        ValueError: as ``pixels``, for what the tags show; if nothing says how fast the frames follow.
        ImportError: as ``pixels``.
    """
    with _named(name):
        dataset = _shown(file, name, window)
        return (int(dataset.Rows), int(dataset.Columns)), _times(dataset, fps)


def frames(
    file: IO[bytes], name: str | Path, indices: Sequence[int], *, window: Window = "voi"
) -> dict[int, np.ndarray]:
    """Decodes some frames of an open file, and no others; each is converted as by ``pixels``, by its own window.

    Raises:
        ValueError, ImportError: as ``pixels``.
    """
    with _named(name):
        return _decoded(file, _shown(file, name, window), sorted(set(indices)), window)


def pixels(content: bytes, name: str | Path, *, window: Window = "voi") -> np.ndarray:
    """Converts a DICOM file of one frame to an image.

    Stored values pass the modality transform (rescale slope and intercept, or its table), then the window, then, for
    MONOCHROME1, where low values are bright, 1 - y; y in [0, 1] becomes 255 y, rounded. Padding is black. 8-bit colour
    is not changed. Of enhanced objects the transform and window are those of the frame. A file without the 128 bytes
    and "DICM" of the standard is read if it names a known class of objects.

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
        ValueError: if the file is broken, holds no picture or several frames, or a photometric interpretation that is
            not an image.
        ImportError: if pydicom, or a decoder of this compression, is not installed; the file may be sound.

    Source: DICOM PS3.3 C.11.1, C.11.2 and C.7.5.1.1.2 (padding). Preparations of VinDr-Mammo elsewhere divide by the
        maximum instead; ``"minmax"`` comes closest.
    """
    file = io.BytesIO(content)
    with _named(name):
        dataset = _shown(file, name, window)
        _require_one(dataset)
        return _decoded(file, dataset, [0], window)[0]


@contextlib.contextmanager
def _named(name: str | Path) -> Iterator[None]:
    """Names the file in whatever goes wrong; its tags can fail wherever they are read."""
    try:
        yield
    except Refused as error:
        raise ValueError(f"DICOM file {name} {error}") from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"DICOM file {name} is broken ({error}); download it again from the dataset's owner"
        ) from error


def _tags(file: IO[bytes], name: str | Path) -> "Dataset":
    """The tags before the pixels, with a transfer syntax; the file then stands at the pixels."""
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
        from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
    except ImportError as error:
        raise ImportError(f"{name} is a DICOM file; to read it: pip install fairgrpo_jax[dicom]") from error
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", "Invalid value for VR UI", UserWarning)
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
    except InvalidDicomError:
        file.seek(0)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        if UID(str(dataset.get("SOPClassUID", ""))).type != "SOP Class":
            raise
    if not len(dataset):
        raise ValueError("none of its tags can be read")
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _shown(file: IO[bytes], name: str | Path, window: str) -> "Dataset":
    """The tags of a file that holds a picture, as far as they show it.

    The pixels are among them if the file is deflated, or not encoded as its transfer syntax says.
    """
    import pydicom
    from pydicom.pixels.utils import get_expected_length

    dataset = _tags(file, name)
    syntax, start = dataset.file_meta.TransferSyntaxUID, file.tell()
    head = file.read(12)
    if syntax.is_deflated or (head and (head[4:6] in _EXPLICIT) == syntax.is_implicit_VR):
        file.seek(0)
        dataset = pydicom.dcmread(file, force=True)
        dataset.file_meta.TransferSyntaxUID = syntax
        held = next((len(dataset[tag].value) for tag in _PIXELS if tag in dataset), None)
    else:
        held = _held(head, syntax)
        held = (
            None
            if held is None
            else min(held, file.seek(0, os.SEEK_END) - start - (8 if syntax.is_implicit_VR else 12))
        )
    if held is None:
        raise Refused(_without_picture(dataset))
    if absent := [tag for tag in _NEEDED if dataset.get(tag) in (None, "")]:
        raise ValueError(f"it has pixel data but no {', '.join(absent)}")
    _frames(dataset)
    require_size(int(dataset.Columns), int(dataset.Rows))
    dicom_values.require_shown(dataset, window)
    _decoder(dataset, name)
    if not syntax.is_encapsulated and held < (wanted := get_expected_length(dataset)):
        raise ValueError(f"{held} of {wanted} bytes of pixel data")
    return dataset


def _held(head: bytes, syntax: Any) -> int | None:
    """Bytes of the pixel data that an element announces; None if it is another element."""
    order = "little" if syntax.is_little_endian else "big"
    group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))
    if group != 0x7FE0 or element not in _PIXELS.values():
        return None
    length = int.from_bytes(head[4:8] if syntax.is_implicit_VR else head[8:12], order)
    if length == _UNDEFINED and not syntax.is_encapsulated:
        raise ValueError("its pixels are compressed and it does not say how")
    return length


def _without_picture(dataset: "Dataset") -> str:
    from pydicom.uid import UID

    told = UID(str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""))
    kind = f"is of the class {told.name}" if told else "names no class"
    if dataset.get("Rows"):
        return (
            f"{kind}, has the tags of {dataset.Rows} x {dataset.get('Columns')} pixels and ends before them; download "
            "it again from the dataset's owner, or leave it out if the owner gives headers alone"
        )
    return f"{kind} and holds no picture; leave it out"


def _decoder(dataset: "Dataset", name: str | Path) -> str:
    """The plugin of pydicom that decodes the pixels; ``""`` if they are not compressed.

    Raises:
        Refused: if nothing decodes this compression.
        ImportError: if none of its decoders is installed.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGExtended12Bit, JPEGLSTransferSyntaxes

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return ""
    try:
        able = [plugin for plugin in _DECODERS if plugin in get_decoder(syntax).available_plugins]
    except NotImplementedError:
        raise Refused(
            f"is compressed as {syntax.name}, which is not read; convert it to an uncompressed file, or save the "
            "stream of a film as a video file"
        ) from None
    package = "python-gdcm"
    if syntax == JPEGExtended12Bit and dataset.get("BitsStored") != 8:
        able = [plugin for plugin in able if plugin not in ("pillow", "gdcm")]  # which know 8 bits
        package = "pylibjpeg-libjpeg (GPL), or convert it to an uncompressed file"
    elif syntax in JPEGLSTransferSyntaxes:
        package = "pyjpegls"
    elif syntax in JPEG2000TransferSyntaxes or "High-Throughput" in syntax.name:
        package = "pylibjpeg pylibjpeg-openjpeg"
    if not able:
        raise ImportError(
            f"DICOM file {name} is compressed as {syntax.name}, of which no decoder is installed: pip install {package}"
        )
    return able[0]


def _frames(dataset: "Dataset") -> int:
    told = dataset.get("NumberOfFrames") or 1
    try:
        return int(told)
    except (TypeError, ValueError):
        raise ValueError(f"NumberOfFrames is {told!r}") from None


def _require_one(dataset: "Dataset") -> None:
    if (count := _frames(dataset)) != 1:
        raise Refused(f"has {count} frames; wanted one picture: give it as a video, or split it first")


def _times(dataset: "Dataset", fps: float | None) -> np.ndarray:
    count = _frames(dataset)
    steps = np.atleast_1d(np.array(dataset.get("FrameTimeVector") or 0.0, np.float64))  # ms since the frame before
    if len(steps) == count > 1 and (steps[1:] > 0).all():
        return np.cumsum([0.0, *steps[1:]]) / 1000
    seconds = float(dataset.get("FrameTime") or 0) / 1000
    rate = next((float(told) for tag in ("CineRate", "RecommendedDisplayFrameRate") if (told := dataset.get(tag))), fps)
    if seconds <= 0 and count > 1:
        if not rate or rate <= 0:
            raise Refused(
                f"has {count} frames and does not say how fast they follow (FrameTime, CineRate, "
                "RecommendedDisplayFrameRate); give fps, the frames per second, for a video"
            )
        seconds = 1 / rate
    return np.arange(count) * seconds


def _decoded(file: IO[bytes], dataset: "Dataset", indices: Sequence[int], window: str) -> dict[int, np.ndarray]:
    decoder = _decoder(dataset, "")
    stored, found = _stored(file, dataset, indices, decoder), {}
    for index in indices:
        try:
            values = next(stored)
        except decoder_process.Silent as error:
            raise Refused(
                f"keeps its decoder {decoder} busy without end ({error}); download it again from the dataset's owner, "
                "or convert it to an uncompressed file"
            ) from error
        except Exception as error:
            how = f", or {decoder} does not know this form of {dataset.file_meta.TransferSyntaxUID.name}"
            told = f"is broken{how if decoder else ''} ({error})"
            raise Refused(f"{told}; download it again from the dataset's owner") from error
        found[index] = dicom_values.picture(dicom_values.of_frame(dataset, index), values, window)
    return found


def _stored(file: IO[bytes], dataset: "Dataset", indices: Sequence[int], decoder: str) -> Iterator[np.ndarray]:
    """The values of frames as they are stored."""
    from pydicom.pixels.utils import iter_pixels

    syntax, whole = dataset.file_meta.TransferSyntaxUID, any(tag in dataset for tag in _PIXELS)
    options: dict[str, Any] = {"indices": indices, "decoding_plugin": decoder, "transfer_syntax_uid": syntax}
    if decoder not in _APART:
        yield from iter_pixels(dataset if whole else cast(BinaryIO, file), **options)
    else:
        file.seek(0)
        yield from decoder_process.decode(dataset if whole else file.read(), options)
