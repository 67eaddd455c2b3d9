"""Decoding against files written here with known pixels and times."""

import struct
import zipfile
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from fairgrpo_jax.data import media
from fairgrpo_jax.data.record import Media, Record, RecordList


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


def test_what_is_transparent_is_white(tmp_path):
    """Colours under full transparency are anything; half of black on white is grey."""
    pixels = np.array([[[9, 9, 9, 0], [0, 0, 0, 127], [250, 10, 40, 255]]], np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
    shown = media.decode(Media("image", path=tmp_path / "x.png"))
    assert shown.tolist() == [[[255, 255, 255], [128, 128, 128], [250, 10, 40]]]
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "x.gif", transparency=0)
    assert media.decode(Media("image", path=tmp_path / "x.gif")).tolist() == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize("name", ["x.tiff", "x.gif", "x.png", "x.webp"])
def test_images_of_several_pages_are_refused(tmp_path, name):
    pages = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(3)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=f"image .*{name} has 3 pages; wanted one picture: give it as a video"):
        media.decode(Media("image", path=tmp_path / name))


@pytest.mark.parametrize("angle", [90, -90, 180, 45])
def test_videos_are_turned_as_players_turn_them(tmp_path, angle):
    """A corner that is bright, by the display matrix of the file; counterclockwise as FFmpeg counts."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:16, :16] = 255
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        stream.set_display_rotation(angle)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    if angle == 45:
        with pytest.raises(ValueError, match="phone.mp4 is turned by 45 degrees; wanted multiples of 90"):
            media.decode(Media("video", path=path))
        return
    shown = media.decode(Media("video", path=path))[0]
    with Image.fromarray(picture) as image:  # which turns counterclockwise too
        wanted = np.asarray(image.rotate(angle, expand=True))
    assert shown.shape == wanted.shape and np.abs(shown.astype(int) - wanted).mean() < 10


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


# ---- frames, boxes, budgets ------------------------------------------------------------------------------------------


@pytest.fixture
def frames(tmp_path):
    """Twenty JPEG frames, grey of frame i as in the clip."""
    folder = tmp_path / "frames_15fps" / "v"
    folder.mkdir(parents=True)
    for i, level in enumerate(LEVELS):
        Image.new("L", (64, 48), int(level)).save(folder / f"{i:04d}.jpg")
    return tuple(sorted(folder.iterdir()))


def test_a_video_kept_as_frames_in_order_with_repeats(frames):
    order = (*frames[:5], frames[2], frames[2], frames[19])
    clip = media.decode_clip(Media("video", frames=order, fps=0.5))
    assert shown(clip.frames) == [0, 1, 2, 3, 4, 2, 2, 19]
    np.testing.assert_allclose(clip.times, 2.0 * np.arange(8))
    assert clip.seconds_per_frame == 2.0
    four = media.decode_clip(Media("video", frames=frames, fps=10.0, num_frames=4))
    assert shown(four.frames) == [0, 6, 13, 19] and four.frames.shape == (4, 48, 64, 3)
    np.testing.assert_allclose(four.times, [0.0, 0.6, 1.3, 1.9])


def test_only_sampled_frames_are_read_and_a_missing_one_is_named(frames):
    frames[7].unlink()
    assert shown(media.decode(Media("video", frames=frames, fps=1.0, num_frames=4))) == [0, 6, 13, 19]
    with pytest.raises(ValueError, match="frame .*0007.jpg does not exist"):
        media.decode(Media("video", frames=frames, fps=1.0))


def test_frames_of_several_sizes(frames):
    Image.new("L", (32, 48)).save(frames[3])
    with pytest.raises(ValueError, match=r"0003.jpg has the shape \(48, 32\), the first of its video \(48, 64\)"):
        media.decode(Media("video", frames=frames, fps=1.0))


def green(picture):
    return np.argwhere((picture == (0, 255, 0)).all(axis=-1))


def test_a_box_is_drawn_in_the_pixels_of_the_file():
    pixels = np.full((100, 200, 3), 90, np.uint8)
    picture = media.decode(Media("image", pixels=pixels, box=(0, 40, 20, 160, 90)))
    drawn = green(picture)  # rows, columns
    assert drawn.min(axis=0).tolist() == [20, 40] and drawn.max(axis=0).tolist() == [90, 160]
    assert len(drawn) == 71 * 121 - (71 - 16) * (121 - 16)  # eight pixels wide, inwards
    assert (pixels == 90).all() and (picture[50, 100] == 90).all()


def test_the_boxed_frame_stays_in_the_sample(frames, video):
    for where in ({"frames": frames, "fps": 10.0}, {"path": video}):
        clip = media.decode_clip(Media("video", num_frames=4, box=(11, 5, 5, 60, 40), **where))
        assert [len(green(frame)) > 0 for frame in clip.frames] == [False, False, True, False]
        np.testing.assert_allclose(clip.times, [0.0, 0.6, 1.1, 1.9], atol=1e-9)
        assert shown(clip.frames[[0, 1, 3]]) == [0, 6, 19]
    held = np.full((3, 48, 64, 3), 90, np.uint8)
    media.decode(Media("video", pixels=held, fps=1.0, box=(1, 5, 5, 60, 40)))
    assert (held == 90).all()
    repeated = media.decode(Media("video", frames=(frames[0], frames[0]), fps=1.0, box=(1, 0, 0, 9, 9)))
    assert [len(green(frame)) > 0 for frame in repeated] == [False, True]
    with pytest.raises(ValueError, match="box is on frame 20 of 20 of .*clip.mp4"):
        media.decode(Media("video", path=video, box=(20, 0, 0, 9, 9)))


@pytest.mark.parametrize(
    "seconds,frames,expected",
    [
        (10, 64, 30),  # 3 a second are enough
        (10, 20, 20),  # the budget
        (10, 21, 20),  # down to an even number
        (100, 4, 10),  # 0.1 a second at least
        (0, 64, 2),
        (1e4, 64, 1000),
    ],
)
def test_frames_by_budget(seconds, frames, expected):
    assert media.adaptive_frames(seconds, 1000, max_pixels=1000 * frames) == expected


def test_a_clip_by_budget(video, frames):
    """2 seconds of 20 frames: six at 3 a second, fewer by budget, two at least."""
    for medium in (Media("video", path=video), Media("video", frames=frames, fps=10.0)):
        for budget, count in ((100, 6), (5, 4), (1, 2)):
            assert len(media.decode_clip(medium, max_pixels=budget * 48 * 64).frames) == count
    assert len(media.decode_clip(Media("video", path=video, num_frames=9), max_pixels=1).frames) == 9
    with pytest.raises(ValueError, match="budget"):
        media.adaptive_frames(-1, 10, max_pixels=10)
    with pytest.raises(ValueError, match="slowest"):
        media.adaptive_frames(1, 10, max_pixels=10, slowest=4)


def test_long_videos_are_not_held(video, monkeypatch):
    whole = [media.decode(Media("video", path=video, num_frames=n)) for n in (3, 7)]
    opened, really = [], av.open
    monkeypatch.setattr(av, "open", lambda *args: opened.append(args) or really(*args))
    media.decode(Media("video", path=video))
    assert len(opened) == 1  # a short one is decoded once
    monkeypatch.setattr(media, "HELD_PIXELS", 48 * 64 * 5)
    for n, expected in zip((3, 7), whole, strict=True):
        np.testing.assert_array_equal(media.decode(Media("video", path=video, num_frames=n)), expected)
    assert len(opened) == 5


def test_a_video_in_an_archive(video, tmp_path):
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.write(video, "lus/clip.mp4")
    inside = Media("video", path=tmp_path / "v.zip", member="lus/clip.mp4", num_frames=4)
    np.testing.assert_array_equal(media.decode(inside), media.decode(Media("video", path=video, num_frames=4)))


def test_broken_records_are_left_out_and_named(frames, video, tmp_path):
    (tmp_path / "noise.mp4").write_bytes(b"no video")
    items = [Media("video", path=video), Media("video", path=tmp_path / "noise.mp4"), Media("image", path=frames[3])]
    items.append(Media("image", path=tmp_path / "absent.jpg"))
    rows = [Record(f"d/{i}", "d", "", (m,), "?", "x", (), "p", None, None, {}, "train") for i, m in enumerate(items)]
    with pytest.warns(UserWarning, match="2 of 4 records are left out: .*d/1: .*noise.mp4.*d/3: .*absent.jpg"):
        kept = media.without_broken(RecordList(tuple(rows)))
    assert [record.uid for record in kept] == ["d/0", "d/2"]
    assert media.without_broken(kept).records == kept.records  # and no warning


def test_pictures_too_large_are_refused_before_they_are_decoded(tmp_path):
    """A PNG of 9,000 x 9,000 pixels by its header, with nothing behind it."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    with pytest.raises(
        ValueError, match="x.png has 9000 x 9000 pixels; wanted at most 80,000,000: make a smaller copy"
    ):
        media.decode(Media("image", path=tmp_path / "x.png"))


def test_formats_that_start_other_programs_are_not_opened(tmp_path):
    (tmp_path / "x.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(ValueError, match="x.eps is broken or of a form that is not read .cannot identify image file"):
        media.decode(Media("image", path=tmp_path / "x.eps"))


def test_every_error_of_pillow_names_the_file(tmp_path):
    """A palette of more colours than its 8 bits can tell makes Pillow raise a ValueError of few words."""
    head = struct.pack("<2sIHHI", b"BM", 2000, 0, 0, 14 + 40 + 4 * 300)
    head += struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 0, 64, 0, 0, 300, 0)
    (tmp_path / "x.bmp").write_bytes(head + bytes(4 * 300 + 64))
    with pytest.raises(ValueError, match="image .*x.bmp is broken or of a form that is not read .invalid palette size"):
        media.decode(Media("image", path=tmp_path / "x.bmp"))
