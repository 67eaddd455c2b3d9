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
    """Where images lie, by file name.

    Attributes:
        places: file and, inside an archive, member (``"!"`` between nested archives) of each image.
        usual: the folder where an image that is not there should have been.
    """

    places: Mapping[str, tuple[Path, str | None]]
    usual: Path

    def media(self, name: str) -> Media:
        """The image of this file name, not opened; a missing one has the path where it was expected."""
        path, member = self.places.get(name, (self.usual / name, None))
        return Media("image", path=path, member=member)


def images(root: Path, places: Iterable[str], suffix: str) -> Images:
    """Finds images by file name in folders (with all below them), archives, and archives inside those.

    Args:
        root: the dataset's folder.
        places: folders and zip files under ``root``; those that are not there are passed over. Of two images of one
            name the first counts, and an unpacked one before one in an archive of the same place. The first place is
            where a missing image is expected.
        suffix: of the images, such as ``".jpg"``; case does not matter.

    Raises:
        ValueError: an archive that is damaged or not finished downloading.

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
    """Members of a zip with this suffix, also of zips inside it, written as ``Media.member``.

    Raises:
        ValueError: a file that is no whole zip.
    """
    for member in archives.members(archive, inside=inside):
        if "__MACOSX/" in member:
            continue
        if member.lower().endswith(suffix):
            yield member
        elif member.lower().endswith(".zip"):
            yield from members(archive, suffix, inside=member)


def told(problems: Problems, line: int, sex: str, age: str) -> tuple[Literal["F", "M"] | None, float | None]:
    """Sex and age of a row; what cannot be read goes to ``problems``."""
    out = []
    for read, raw in ((_sex, sex), (_age, age)):
        try:
            out.append(read(raw))
        except ValueError as error:
            problems.add(line, str(error))
            out.append(None)
    return out[0], out[1]


def once(problems: Problems, seen: dict[str, int], line: int, name: str) -> None:
    """Notes a row whose name an earlier row has."""
    if (first := seen.setdefault(name, line)) != line:
        problems.add(line, f"{name} is also on line {first}")


def check_split(split: str, splits: tuple[str, ...], title: str) -> None:
    """Refuses a split the dataset does not have."""
    if split not in splits:
        raise ValueError(f"split is {split!r}; {title} has {' and '.join(map(repr, splits))}")


def _name(member: str) -> str:
    return member.rpartition("!")[2].rpartition("/")[2]
