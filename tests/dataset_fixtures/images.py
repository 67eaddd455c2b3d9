"""Small images for the dataset fixtures: noise, so that a wrong file cannot pass for the right one."""

import io
import zipfile

import numpy as np
from PIL import Image


def pixels(seed, size=(39, 32), mode="RGB"):
    """Random pixels of ``size`` (width, height) in a Pillow mode."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), np.uint8)


def encoded(seed, size=(39, 32), mode="RGB", form="JPEG"):
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels(seed, size, mode)).save(file, form)
    return file.getvalue()


def save(path, seed=0, size=(39, 32), mode="RGB", form="JPEG"):
    """An image file, with the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed, size, mode, form))


def archive(members, compression=zipfile.ZIP_STORED):
    """The bytes of a zip of ``{name: bytes}``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return file.getvalue()
