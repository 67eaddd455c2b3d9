"""Opens image files with Pillow: one picture, or the pages of an animation or a TIFF as the frames of a video."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from PIL import Image


FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000")  # others would run more of Pillow than needed
LARGEST_IMAGE = 80_000_000  # pixels; more is refused before anything is decoded
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Refused(ValueError):
    """A sound file that is not shown; the text goes on after the file's name."""


def has_pages(head: bytes) -> bool:
    """Whether a file is of a format that may hold several pictures: TIFF, GIF, PNG or WebP, by its first 12 bytes.

    Example:
        >>> from fairgrpo_jax.data.pictures import has_pages
        >>> has_pages(b"GIF89a"), has_pages(b"RIFF....WEBP"), has_pages(b"RIFF....AVI ")
        (True, True, False)
    """
    web = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head[:4] in _TIFF or head[:4] in (b"GIF8", b"\x89PNG") or web


@contextlib.contextmanager
def opened(file: IO[bytes], name: str, *, pages: bool = False) -> Iterator["Image.Image"]:
    """Opens an image of 8 bits and bounded size; reads its header alone.

    Args:
        file: the open file.
        name: its name for error messages.
        pages: whether it may have several.

    Raises:
        ValueError: if it is another file, or broken, then or while its pixels are decoded in the block.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as image:
            _require_shown(image)
            # A photograph in MPO has previews behind it, which nobody asks for.
            if not pages and (count := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
                raise Refused(f"has {count} pages; wanted one picture: give it as a video, or split it first")
            yield image
    except Refused as error:
        raise ValueError(f"image {name} {error}") from error
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {name} is too large ({error}); make a smaller copy") from error
    except Exception as error:  # the decoders raise many kinds of errors
        raise ValueError(
            f"image {name} is broken or of a form that is not read ({error}); download it again from the dataset's "
            "owner, or convert it to PNG"
        ) from error


def upright(image: "Image.Image") -> np.ndarray:
    """Decodes an opened image as a viewer shows it: turned by its EXIF data, on white, uint8 RGB (H, W, 3)."""
    from PIL import ImageOps

    return np.array(_on_white(ImageOps.exif_transpose(image)).convert("RGB"))


def size(image: "Image.Image") -> tuple[int, int]:
    """Height and width of an opened image as ``upright`` gives it, from its header."""
    from PIL import ImageOps

    late = image.format == "PNG" and "exif" not in image.info  # to look for it would decode the pixels
    done = late or image.format == "TIFF"  # whose size is that of the turned image
    turned = not done and image.getexif().get(ImageOps.ExifTags.Base.Orientation, 1) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def film(file: IO[bytes], name: str, fps: float | None) -> tuple[tuple[int, int], np.ndarray]:
    """Height and width of the pages of an open image, and their times in seconds.

    The times are those of the file (GIF, PNG, WebP), else ``fps`` gives them. Of a PNG whose first picture is no part
    of its animation, that picture is left out.

    Raises:
        ValueError: as ``opened``; if the pages differ in size, or nothing says how fast they follow.
    """
    with opened(file, name, pages=True) as image:
        found, seconds = None, []
        for page in _pages(image):
            image.seek(page)
            _require_shown(image)
            if found not in (None, size(image)):
                raise Refused(f"has pages of {found} and {size(image)} pixels; wanted one size: split it first")
            found = size(image)
            if image.format == "WEBP":
                image.load()  # only then does it tell
            seconds.append(float(image.info.get("duration") or 0) / 1000)
        if len(seconds) > 1 and min(seconds[:-1]) <= 0:
            if not fps:
                raise Refused(
                    f"has {len(seconds)} pages and does not say for how long each is shown; give fps, the pages per "
                    "second, for a video, or split it into images"
                )
            seconds = [1 / fps] * len(seconds)
        assert found is not None
        return found, np.cumsum([0.0, *seconds[:-1]])


def frames(file: IO[bytes], name: str, indices: Sequence[int]) -> dict[int, np.ndarray]:
    """Decodes some pages of an open image, by the index that ``film`` gives them.

    Raises:
        ValueError: as ``opened``.
    """
    with opened(file, name, pages=True) as image:
        pages, found = _pages(image), {}
        for index in sorted(set(indices)):
            image.seek(pages[index])
            found[index] = upright(image)
        return found


def _pages(image: "Image.Image") -> range:
    return range(bool(image.info.get("default_image")), getattr(image, "n_frames", 1))


def require_size(width: int, height: int) -> None:
    """Checks that a picture may be decoded.

    Raises:
        Refused: if it has more than ``LARGEST_IMAGE`` pixels.
    """
    if width * height > LARGEST_IMAGE:
        raise Refused(f"has {width} x {height} pixels; wanted at most {LARGEST_IMAGE:,}: make a smaller copy")


def _require_shown(image: "Image.Image") -> None:
    require_size(image.width, image.height)
    if image.mode.startswith(("I", "F")):
        raise Refused(f"holds {image.mode} pixels; window it to 8 bits first")


def _on_white(image: "Image.Image") -> "Image.Image":
    """The image as a viewer shows it on white paper; what is transparent would else have any colour."""
    from PIL import Image

    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    shown = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
