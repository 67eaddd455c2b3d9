"""Every file of pydicom's and Pillow's own tests, or of any folder: ``python benchmarks/corpora.py [FOLDER ...]``.

Each file is decoded as an image; one of several frames or pages is refused then and decoded as a video. A picture is
compared with the reference of its library: for DICOM ``pixel_array``, ``apply_modality_lut`` and ``apply_voi_lut`` of
pydicom (palettes by hand), for others Pillow's own composition on white. The size that ``data.headers`` tells must be
that of the picture. Counted are the outcomes, of which only three are right:

    equal       the picture of the reference, to one grey level
    refused     a ValueError that names the file
    no decoder  an ImportError that says what to install

The folder of pydicom's wheel is the default. More of its files are in ``pydicom-data``, Pillow's in ``Tests/images`` of
its source distribution.
"""

import argparse
import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, ImageOps
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ImplicitVRLittleEndian
from rich.console import Console

from fairgrpo_jax.data import dicom, headers, media
from fairgrpo_jax.data.record import Media, Record


RIGHT = ("equal", "refused", "no decoder")
FRAMES = 3  # of a video


def judge(path: Path) -> tuple[str, str]:
    """The outcome of one file and what was said of it."""
    outcome, text = _decoded(path, Media("image", path=path))
    if outcome == "refused" and ("frames; wanted one" in text or "pages; wanted one" in text):
        return _decoded(path, Media("video", path=path, num_frames=FRAMES, fps=5.0))
    return outcome, text


def _decoded(path: Path, medium: Media) -> tuple[str, str]:
    outcome, text, shapes = "equal", "", None
    try:
        if medium.kind == "image":
            found = media.decode(medium)[None]
            indices = [0]
        else:
            found = media.decode_clip(medium).frames
            count = media.decode_clip(Media("video", path=path, fps=5.0)).frames.shape[0]
            indices = np.linspace(0, count - 1, FRAMES).round().astype(int).tolist()
        shapes = [picture.shape for picture in found]
        wanted = _reference(path, indices)
        worst = max(_apart(a, b) for a, b in zip(found, wanted, strict=True))
        if worst > 1:
            outcome, text = "different", f"by {worst} of 255 levels"
    except ValueError as error:
        outcome, text = ("refused" if path.name in str(error) else "unnamed"), str(error)
    except ImportError as error:
        outcome, text = ("no decoder" if path.name in str(error) else "unnamed"), str(error)
    except Exception as error:
        outcome, text = "bare", f"{type(error).__name__}: {error}"
    record = Record("r", "d", "", (medium,), "?", "", (), "p", None, None, {}, "")
    try:
        told = headers.sizes(record)
        sizes = [picture.shape for picture in (*told.images, *(frame for clip in told.videos for frame in clip.frames))]
        if shapes is not None and sizes != shapes:
            outcome, text = "headers differ", f"{sizes} told, {shapes} decoded"
    except (ValueError, ImportError) as error:
        if shapes is not None:
            outcome, text = "headers differ", f"decoded, and headers say {error}"
    except Exception as error:
        outcome, text = "bare", f"headers: {type(error).__name__}: {error}"
    return outcome, text


def _apart(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max()) if found.shape == wanted.shape else np.inf


def _reference(path: Path, indices: list[int]) -> list[np.ndarray]:
    content = path.read_bytes()
    if dicom.is_dicom(path.name, content[:132]):
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        if not dataset.file_meta.get("TransferSyntaxUID"):
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        source: Any = dataset
        if not len(dataset):  # pydicom reads nothing where the end of compressed pixels is missing
            source = io.BytesIO(content)
            dataset = pydicom.dcmread(source, stop_before_pixels=True)
        return [_by_pydicom(dataset, source, index) for index in indices]
    with Image.open(path) as image:
        first = bool(image.info.get("default_image"))
        found = []
        for index in indices:
            if getattr(image, "n_frames", 1) > 1:
                image.seek(index + first)
            shown = ImageOps.exif_transpose(image).convert("RGBA")
            paper = Image.new("RGB", shown.size, "white")
            paper.paste(shown, mask=shown.getchannel("A"))
            found.append(np.asarray(paper).astype(float))
    return found


def _by_pydicom(dataset: pydicom.Dataset, source: Any, index: int) -> np.ndarray:
    """One frame as pydicom's functions show it, stretched over 0 to 255."""
    stored = pixel_array(source, index=index if int(dataset.get("NumberOfFrames") or 1) > 1 else None)
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR" and "RedPaletteColorLookupTableData" in dataset:
        return _by_hand(dataset, stored)
    if kind == "PALETTE COLOR":
        return (apply_color_lut(stored, dataset)[..., :3] // 256).astype(float)
    if dataset.SamplesPerPixel == 3:
        return stored.astype(float)
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if items := dataset.get(groups):
            item = items[index if groups.startswith("Per") else 0]
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for element in item[name].value[0] if name in item else ():
                    dataset[element.tag] = element
    values = apply_modality_lut(stored, dataset)
    if tables := dataset.get("VOILUTSequence"):
        shown = apply_voi_lut(values, dataset) / (2.0 ** int(tables[0].LUTDescriptor[2]) - 1)
    elif dataset.get("WindowCenter") not in (None, "") and dataset.get("WindowWidth") not in (None, ""):
        signed, bits = int(dataset.PixelRepresentation), int(dataset.BitsStored)
        slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        low, high = low * slope + intercept, high * slope + intercept
        shown = (apply_voi_lut(values, dataset, index=0) - low) / (high - low)
    else:
        values = values.astype(float)
        shown = (values - values.min()) / ((values.max() - values.min()) or 1)
    shown = 1 - shown if kind == "MONOCHROME1" else shown
    if (padding := dataset.get("PixelPaddingValue")) is not None:
        shown[stored == int(padding)] = 0
    return np.repeat(255 * shown[..., None], 3, axis=-1)


def _by_hand(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """The colours of a palette; pydicom's function takes every table for little-endian."""
    count, first, _ = dataset.RedPaletteColorLookupTableDescriptor
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    tables = [dataset[f"{name}PaletteColorLookupTableData"].value for name in ("Red", "Green", "Blue")]
    words = np.array([np.frombuffer(table, f"{order}u2") for table in tables])
    if len(tables[0]) < 2 * (count or 2**16):  # two of 8 bits in each word, the first in its lower half
        words = np.stack([words % 256, words // 256], axis=-1).reshape(3, -1)
    colours = words[:, np.clip(stored.astype(int) - first, 0, words.shape[1] - 1)]
    return np.moveaxis(colours // (256 if words.max() > 255 else 1), 0, -1).astype(float)


def folders() -> list[Path]:
    """The folder of pydicom's files, from its wheel."""
    return [Path(pydicom.__file__).parent / "data" / "test_files"]


def main(argv: list[str] | None = None) -> Counter[str]:
    """Prints a line a file that is no picture, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=folders())
    options = parser.parse_args(argv)
    console, counts = Console(highlight=False, soft_wrap=True), Counter[str]()
    for path in sorted(path for folder in options.folders for path in folder.rglob("*") if path.is_file()):
        if path.suffix in (".py", ".pyc"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, text = judge(path)
        counts[outcome] += 1
        if outcome != "equal":
            console.print(
                f"{outcome}: {path.name}: {' '.join(text.replace(str(path), path.name).split())}", markup=False
            )
    console.print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    return counts


if __name__ == "__main__":
    raise SystemExit(any(outcome not in RIGHT for outcome in main()))
