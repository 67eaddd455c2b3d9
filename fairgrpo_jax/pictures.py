"""The pictures of a run's held-out records, read again from its dataset: for an audit that is asked to show them."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fairgrpo_jax import config as options, sources
from fairgrpo_jax.data import media


LARGEST = 240  # pixels, of the longer side


def of_run(folder: Path, uids: Sequence[str]) -> dict[str, str]:
    """The first image, or first frame, of some held-out records of a run.

    Args:
        folder: of the run; its ``config.json`` says where the dataset lies.
        uids: of the records.

    Returns:
        PNG as ``data:`` URLs, reduced to ``LARGEST``, of the records that have an image or a video.

    Raises:
        ValueError: if the dataset is not where it was, or has not these records.
    """
    config, _ = options.read(folder / "config.json")
    records = {record.uid: record for record in sources.load(config)["test"].records}
    if missing := [uid for uid in uids if uid not in records]:
        raise ValueError(
            f"the dataset of {folder} has {len(missing)} of the records no more, such as {missing[0]}; wanted the data "
            "that the run was evaluated on, or no --images"
        )
    found = {}
    for uid in uids:
        decoded = media.decode_record(records[uid])
        frames = [*decoded.images, *(clip.frames[0] for clip in decoded.videos)]
        if frames:
            data, image = io.BytesIO(), Image.fromarray(frames[0])
            image.thumbnail((LARGEST, LARGEST))
            image.convert("RGB").save(data, "PNG", optimize=True)
            found[uid] = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return found
