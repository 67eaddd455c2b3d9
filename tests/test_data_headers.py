"""Sizes from headers against the decoded media, and what is remembered of files."""

import dataclasses
import os
import zipfile

import av
import numpy as np
import pytest
from PIL import Image

from fairgrpo_jax.data import headers, media
from fairgrpo_jax.data.datasets import synthetic
from fairgrpo_jax.data.record import Media, Record
from tests import test_data_dicom
from tests.test_data_media import write_video


def record(*found):
    return Record("r", "d", "none", found, "?", "A", ("A", "B"), "p", None, None, {}, "train")


def assert_as_decoded(*found):
    """Shapes, times and intervals are those of the decoded media, in memory of one byte."""
    told, decoded = headers.sizes(record(*found)), media.decode_record(record(*found))
    assert [x.shape for x in told.images] == [x.shape for x in decoded.images]
    assert all(not any(x.strides) for x in told.images)
    for clip, wanted in zip(told.videos, decoded.videos, strict=True):
        assert clip.frames.shape == wanted.frames.shape
        np.testing.assert_allclose(clip.times, wanted.times, atol=1e-9)
        assert clip.seconds_per_frame == pytest.approx(wanted.seconds_per_frame)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tiff", "x.bmp"])
def test_images_of_all_formats(tmp_path, name):
    Image.new("RGB", (50, 31), (9, 9, 9)).save(tmp_path / name)
    assert_as_decoded(Media("image", path=tmp_path / name))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["phone.jpg", "phone.png", "phone.webp", "phone.tiff"])
def test_photographs_that_are_shown_upright(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (50, 31)).save(tmp_path / name, exif=exif)
    assert_as_decoded(Media("image", path=tmp_path / name))


@pytest.mark.parametrize("num_frames", [None, 1, 4, 39])
def test_videos_and_the_frames_of_them(tmp_path, num_frames):
    path = write_video(tmp_path / "clip.mp4")
    assert_as_decoded(Media("video", path=path, num_frames=num_frames))
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.write(path, "a/clip.mp4")
    assert_as_decoded(Media("video", path=tmp_path / "clips.zip", member="a/clip.mp4", num_frames=num_frames))


def test_a_video_that_is_shown_turned(tmp_path):
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(-90)
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert_as_decoded(Media("video", path=path, num_frames=2))
    assert headers.sizes(record(Media("video", path=path))).videos[0].frames.shape == (4, 64, 48, 3)


def test_media_in_memory_and_frames_of_their_own(tmp_path):
    assert_as_decoded(Media("image", pixels=np.zeros((20, 30, 3), np.uint8)))
    assert_as_decoded(Media("video", pixels=np.zeros((7, 20, 30, 3), np.uint8), fps=3.0, num_frames=4))
    frames = []
    for number in range(5):
        frames.append(tmp_path / f"{number}.png")
        Image.new("RGB", (24, 16)).save(frames[-1])
    assert_as_decoded(Media("video", frames=tuple(frames), fps=2.0, num_frames=2))


def test_every_record_of_the_clinic():
    for one in synthetic.load("test", scale=0.05).records:
        assert_as_decoded(*one.media)


def test_dicom(tmp_path):
    (tmp_path / "x.dcm").write_bytes(test_data_dicom.written(test_data_dicom.dataset()))
    assert_as_decoded(Media("image", path=tmp_path / "x.dcm"))


def test_a_window_that_is_none_is_refused_by_the_header_too(tmp_path):
    file = test_data_dicom.dataset(WindowCenter=10, WindowWidth=-3)
    (tmp_path / "x.dcm").write_bytes(test_data_dicom.written(file))
    for kind in ("image", "video"):
        with pytest.raises(ValueError, match="width -3.0, .*; pass window='minmax'"):
            headers.sizes(record(Media(kind, path=tmp_path / "x.dcm")))
        assert_as_decoded(Media(kind, path=tmp_path / "x.dcm", window="minmax"))


def test_files_that_are_no_media_are_named(tmp_path):
    for name in ("noise.mp4", "noise.png"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 40)
    for medium, words in (
        (Media("image", path=tmp_path / "absent.png"), "record r: image .*absent.png does not exist"),
        (Media("video", path=tmp_path / "absent.mp4"), "record r: video .*absent.mp4 does not exist"),
        (Media("image", path=tmp_path / "noise.png"), "record r: .*noise.png"),
        (Media("video", path=tmp_path / "noise.mp4"), "record r: .*noise.mp4 is broken"),
    ):
        with pytest.raises(ValueError, match=words), headers.Known(tmp_path / "known.sqlite") as known:
            headers.sizes(record(medium), known)


@pytest.fixture
def opened(monkeypatch):
    """Counts the files whose headers are read."""
    seen, read = [], headers._read
    monkeypatch.setattr(headers, "_read", lambda medium: seen.append(medium.path) or read(medium))
    return seen


def test_a_file_is_opened_once_until_it_changes(tmp_path, opened):
    path, table = tmp_path / "x.png", tmp_path / "cache" / "known.sqlite"
    Image.new("RGB", (50, 31)).save(path)
    one = record(Media("image", path=path))
    for _ in range(2):
        with headers.Known(table) as known:
            assert headers.sizes(one, known).images[0].shape == (31, 50, 3)
            headers.sizes(one, known)
    assert len(opened) == 1
    Image.new("RGB", (20, 10)).save(path)
    with headers.Known(table) as known:
        assert headers.sizes(one, known).images[0].shape == (10, 20, 3)
    os.utime(path, ns=(1, 1))  # a copy of another time may be another file
    with headers.Known(table) as known:
        headers.sizes(one, known)
    assert len(opened) == 3


def test_another_number_of_frames_is_another_entry(tmp_path, opened):
    path = write_video(tmp_path / "clip.mp4")
    one = Media("video", path=path, num_frames=4)
    with headers.Known(tmp_path / "known.sqlite") as known:
        found = [headers.sizes(record(medium), known) for medium in (one, dataclasses.replace(one, num_frames=8), one)]
    assert [len(clip.times) for (clip,) in (x.videos for x in found)] == [4, 8, 4] and len(opened) == 2


def test_a_cache_that_cannot_be_read_or_written_costs_time_alone(tmp_path):
    Image.new("RGB", (50, 31)).save(tmp_path / "x.png")
    one = record(Media("image", path=tmp_path / "x.png"))
    (tmp_path / "garbage").write_bytes(b"no database" * 200)
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "garbage", tmp_path / "file" / "known.sqlite"):
        with headers.Known(path) as known:
            assert headers.sizes(one, known).images[0].shape == (31, 50, 3)


def test_the_cache_is_where_caches_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert headers.Known().path == tmp_path / "fairgrpo_jax" / "media.sqlite"
