"""Frames as a language model is shown them: reduced, with the experts' boxes and labels."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fairgrpo_jax.construct.annotated import Marked
from fairgrpo_jax.data import media, pictures


COLOURS = ((0, 255, 0), (255, 255, 0), (0, 255, 255), (255, 0, 255), (255, 128, 0))
QUALITY = 90  # of JPEG


@functools.lru_cache(4096)
def frame_size(path: Path) -> tuple[int, int]:
    """Height and width of a frame, from its header.

    Raises:
        ValueError: if it is missing or broken.
    """
    with media.existing("frame", path).open("rb") as file, pictures.opened(file, str(path)) as image:
        return pictures.size(image)


def jpeg(path: Path, marks: Sequence[Marked], *, side: int) -> bytes:
    """A frame with boxes and their labels, drawn before it is reduced to ``side`` pixels at most, as JPEG.

    Raises:
        ValueError: if the file is missing or broken, or a box is not on the frame.
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(media.decode(media.Media("image", path=path)))
    scale = min(1.0, side / max(picture.size))
    draw = ImageDraw.Draw(picture)
    for number, (label, (x1, y1, x2, y2)) in enumerate(marks):
        if x2 > picture.width or y2 > picture.height:
            raise ValueError(f"{path} has {picture.width} x {picture.height} pixels; wanted {label} {(x1, y1, x2, y2)}")
        colour = COLOURS[number % len(COLOURS)]
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=max(1, round(2 / scale)))
        if label:
            draw.text((x1 + 3 / scale, y1 + 3 / scale), label, fill=colour, font_size=round(12 / scale), stroke_width=1,
                      stroke_fill=(0, 0, 0))  # fmt: skip
    if scale < 1:
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly spaced, the first and the last among them.

    >>> spread(10, 4), spread(3, 8), spread(5, 1)
    ([0, 3, 6, 9], [0, 1, 2], [0])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
