"""Helpers of the image datasets: find image files by name; parse the sex and age of a row."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fairgrpo_jax.data import archives, demographics
from fairgrpo_jax.data.record import Media
from fairgrpo_jax.data.tables import Problems


_sex = lru_cache(demographics.sex)
_age = lru_cache(demographics.age)


@dataclass(frozen=True)
class Images:
    """The places of images, by file name.

    Attributes:
        places: for each image its file and, inside an archive, its member (``"!"`` between nested archives).
        usual: the folder where missing images are expected.
    """

    places: Mapping[str, tuple[Path, str | None]]
    usual: Path

    def media(self, name: str) -> Media:
        """The image with this file name, not opened; a missing image gets the path where it was expected."""
        path, member = self.places.get(name, (self.usual / name, None))
        return Media("image", path=path, member=member)


def images(root: Path, places: Iterable[str], suffix: str) -> Images:
    """Finds images by file name in folders (recursively), archives, and nested archives.

    Args:
        root: the dataset's folder.
        places: folders and zip files under ``root``; missing ones are skipped. Of two images with the same name the
            first is used, and an unpacked one before one in an archive of the same place. Missing images are expected
            in the first place.
        suffix: suffix of the images, such as ``".jpg"``; case does not matter.

    Raises:
        ValueError: if an archive is damaged or incompletely downloaded.

    Example:
        ``images(root, ("images", "images.zip"), ".png").media("PAT_1.png")``
    """
    found: dict[str, tuple[Path, str | None]] = {}
    where = [root / place for place in places]
    for place in where:
        packed = [place] if place.suffix == ".zip" and place.is_file() else []
        for folder, below, names in os.walk(place):
            below.sort()
            for name in sorted(names):
                if name.lower().endswith(suffix):
                    found.setdefault(name, (Path(folder, name), None))
                elif name.lower().endswith(".zip"):
                    packed.append(Path(folder, name))
        for archive in packed:
            for member in members(archive, suffix):
                found.setdefault(_name(member), (archive, member))
    return Images(found, where[0])


def members(archive: Path, suffix: str, *, inside: str = "") -> Iterator[str]:
    """Members of a zip with this suffix, including those of nested zips, in the form of ``Media.member``.

    Raises:
        ValueError: if the file is not a complete zip.
    """
    for member in archives.members(archive, inside=inside):
        if "__MACOSX/" in member:
            continue
        if member.lower().endswith(suffix):
            yield member
        elif member.lower().endswith(".zip"):
            yield from members(archive, suffix, inside=member)


def told(problems: Problems, line: int, sex: str, age: str) -> tuple[Literal["F", "M"] | None, float | None]:
    """Parses sex and age of a row; invalid values are added to ``problems``."""
    out = []
    for read, raw in ((_sex, sex), (_age, age)):
        try:
            out.append(read(raw))
        except ValueError as error:
            problems.add(line, str(error))
            out.append(None)
    return out[0], out[1]


def once(problems: Problems, seen: dict[str, int], line: int, name: str) -> None:
    """Adds a problem if an earlier row has the same name."""
    if (first := seen.setdefault(name, line)) != line:
        problems.add(line, f"{name} is also on line {first}")


def check_split(split: str, splits: tuple[str, ...], title: str) -> None:
    """Checks that the dataset has the split."""
    if split not in splits:
        raise ValueError(f"split is {split!r}; {title} has {' and '.join(map(repr, splits))}")


def _name(member: str) -> str:
    return member.rpartition("!")[2].rpartition("/")[2]
