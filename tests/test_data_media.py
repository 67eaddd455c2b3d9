"""Decoding against files written here with known pixels and times."""

import av
import numpy as np
import pytest
from PIL import Image

from fairgrpo_jax.data import media
from fairgrpo_jax.data.record import Media, Record


FPS = 10
LEVELS = np.arange(20) * 12  # grey of frame i, far enough apart to survive the codec


def write_video(path, levels=LEVELS, *, height=48, width=64):
    """An MPEG-4 clip, one grey level a frame, at 10 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 2_000_000
        for level in levels:
            pixels = np.full((height, width, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


def shown(frames):
    """Which frame of the clip each picture is, by its brightness."""
    return np.abs(frames.mean(axis=(1, 2, 3))[:, None] - LEVELS).argmin(axis=1).tolist()


@pytest.mark.parametrize(
    "num_frames,indices",
    [
        (1, [0]),
        (2, [0, 19]),
        (4, [0, 6, 13, 19]),  # 0, 6.33, 12.67, 19
        (5, [0, 5, 10, 14, 19]),  # 0, 4.75, 9.5 (half to even), 14.25, 19
        (39, [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8, 8, 8, 9, 10, 10, 10]),  # short clip: frames repeat
    ],
)
def test_frames_are_spread_evenly(video, num_frames, indices):
    frames = media.decode(Media("video", path=video), num_frames=num_frames)
    assert frames.shape == (num_frames, 48, 64, 3) and frames.dtype == np.uint8
    assert shown(frames)[: len(indices)] == indices


def test_all_frames_and_their_times(video):
    clip = media.decode_clip(Media("video", path=video))
    assert shown(clip.frames) == list(range(20))
    np.testing.assert_allclose(clip.times, np.arange(20) / FPS, atol=1e-9)
    assert clip.seconds_per_frame == pytest.approx(0.1)


def test_seconds_between_sampled_frames(video):
    clip = media.decode_clip(Media("video", path=video, num_frames=4))
    np.testing.assert_allclose(clip.times, [0.0, 0.6, 1.3, 1.9], atol=1e-9)
    assert clip.seconds_per_frame == pytest.approx(1.9 / 3)
    assert media.decode_clip(Media("video", path=video, num_frames=1)).seconds_per_frame == pytest.approx(0.1)


def test_a_video_in_memory_is_sampled_alike(video):
    every = media.decode(Media("video", path=video))
    held = media.decode_clip(Media("video", pixels=every, fps=FPS, num_frames=5))
    read = media.decode_clip(Media("video", path=video, num_frames=5))
    np.testing.assert_array_equal(held.frames, read.frames)
    np.testing.assert_allclose(held.times, read.times, atol=1e-9)
    assert held.seconds_per_frame == pytest.approx(read.seconds_per_frame)


def test_colours_are_red_green_blue(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (5, 3), (250, 10, 40)).save(path)
    pixels = media.decode(Media("image", path=path))
    assert pixels.shape == (3, 5, 3) and pixels.dtype == np.uint8
    assert (pixels == [250, 10, 40]).all()


def test_videos_too(tmp_path):
    with av.open(str(tmp_path / "red.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        red = np.full((48, 64, 3), (220, 30, 60), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode())
    (frame,) = media.decode(Media("video", path=tmp_path / "red.mp4"))
    np.testing.assert_allclose(frame.mean(axis=(0, 1)), [220, 30, 60], atol=8)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "image.tiff"
    Image.new("RGB", (4, 4), (102, 102, 102)).convert(mode).save(path)  # a colour of the web palette
    pixels = media.decode(Media("image", path=path))
    assert pixels.shape == (4, 4, 3) and np.abs(pixels.astype(int) - 102).max() <= 1


def test_photographs_are_turned_upright(tmp_path):
    picture = np.zeros((2, 4, 3), np.uint8)
    picture[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to show"
    Image.fromarray(picture).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(
        media.decode(Media("image", path=tmp_path / "phone.png")), np.rot90(picture, k=-1, axes=(0, 1))
    )


def test_sixteen_bit_images_are_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png holds I;16 pixels; window it"):
        media.decode(Media("image", path=tmp_path / "x.png"))


def broken(tmp_path, video):
    """Files that must not decode, by name."""
    whole = video.read_bytes()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    files = {
        "noise.mp4": b"no video at all" * 100,
        "empty.mp4": b"",
        "cut.mp4": whole[: len(whole) // 2],
        "noise.png": b"no image at all",
        "cut.png": (tmp_path / "whole.png").read_bytes()[:4000],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return [*files, "absent.mp4", "absent.png"]


def test_broken_files_are_errors_that_name_record_and_file(tmp_path, video):
    for name in broken(tmp_path, video):
        kind = "image" if name.endswith("png") else "video"
        medium = Media(kind, path=tmp_path / name)
        record = Record("lungs/7", "lungs", "", (medium,), "?", "x", (), "p", None, None, {}, "train")
        with pytest.raises(ValueError, match=f"dataset lungs, record lungs/7: .*{name} .*download it again"):
            media.decode_record(record)


def test_a_video_that_loses_frames_is_broken(tmp_path, video):
    """The index in front, as for streaming, and the pictures cut off: it opens, and decodes in part."""
    with av.open(str(video)) as source, av.open(str(tmp_path / "f.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    content = (tmp_path / "f.mp4").read_bytes()
    assert len(media.decode(Media("video", path=tmp_path / "f.mp4"))) == 20
    (tmp_path / "f.mp4").write_bytes(content[: -len(content) // 4])
    with pytest.raises(ValueError, match="f.mp4 is broken"):
        media.decode(Media("video", path=tmp_path / "f.mp4"))


def test_a_file_without_pictures(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no video stream"):
        media.decode(Media("video", path=tmp_path / "sound.mp4"))


def test_frames_that_make_no_sense(video):
    with pytest.raises(ValueError, match="at least one frame"):
        media.decode(Media("video", path=video), num_frames=0)
    with pytest.raises(ValueError, match="leave it out"):
        media.decode(Media("image", pixels=np.zeros((2, 2, 3), np.uint8)), num_frames=4)


def test_decode_record_keeps_order_by_kind(video):
    pictures = [np.full((2, 2, 3), level, np.uint8) for level in (1, 2)]
    items = (
        Media("image", pixels=pictures[0]),
        Media("video", path=video, num_frames=2),
        Media("image", pixels=pictures[1]),
    )
    decoded = media.decode_record(Record("d/1", "d", "", items, "?", "x", (), "p", None, None, {}, "train"))
    assert [int(image[0, 0, 0]) for image in decoded.images] == [1, 2]
    assert [shown(clip.frames) for clip in decoded.videos] == [[0, 19]]
