"""Videos that are DICOM objects of several frames, animations or pages: frames and times against single pictures."""

import io
import json
import warnings
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from fairgrpo_jax import data
from fairgrpo_jax.data import dicom, media
from fairgrpo_jax.data.datasets import jsonl
from fairgrpo_jax.data.prepare import prepare
from fairgrpo_jax.data.record import Media
from tests.test_data_dicom import dataset, written
from tests.test_data_headers import assert_as_decoded


FRAMES = np.random.default_rng(3).integers(0, 4096, (5, 48, 64), np.uint16)
COLOURS = np.random.default_rng(4).integers(0, 256, (4, 6, 8, 3), np.uint8)


def film(stored=FRAMES, **tags: Any):
    """A multi-frame object; the frames lie one after the other."""
    count, height = stored.shape[:2]
    flat = stored.reshape(count * height, *stored.shape[2:])
    return dataset(flat, **{"NumberOfFrames": count, "Rows": height} | tags)


def saved(path, file):
    path.write_bytes(written(file))
    return path


def compressed(file, syntax=RLELossless):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.compress(syntax, generate_instance_uid=False)
    return file


WINDOW: dict[str, Any] = {"WindowCenter": 1500, "WindowWidth": 1800, "FrameTime": 40}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("window", [None, "minmax"])
def test_every_frame_is_the_picture_of_its_own_values(tmp_path, syntax, window):
    file = film(**WINDOW)
    path = saved(tmp_path / "x.dcm", file if syntax == ExplicitVRLittleEndian else compressed(file, syntax))
    clip = media.decode_clip(Media("video", path=path, num_frames=3, window=window))
    for picture, index in zip(clip.frames, (0, 2, 4), strict=True):
        one = dataset(FRAMES[index], WindowCenter=1500, WindowWidth=1800)
        np.testing.assert_array_equal(picture, dicom.pixels(written(one), "one.dcm", window=window or "voi"))
    np.testing.assert_allclose(clip.times, [0, 0.08, 0.16])
    assert clip.seconds_per_frame == pytest.approx(0.08)
    assert_as_decoded(Media("video", path=path, num_frames=3))


def test_frames_of_colour(tmp_path):
    path = saved(tmp_path / "x.dcm", film(COLOURS, FrameTime=100))
    np.testing.assert_array_equal(media.decode(Media("video", path=path)), COLOURS)


def test_only_sampled_frames_are_decoded(tmp_path):
    whole = written(compressed(film(**WINDOW)))
    third = get_frame(pydicom.dcmread(io.BytesIO(whole)).PixelData, 2, number_of_frames=5)
    (tmp_path / "x.dcm").write_bytes(whole.replace(third[64:], bytes(len(third) - 64)))
    assert len(media.decode(Media("video", path=tmp_path / "x.dcm", num_frames=2))) == 2
    with pytest.raises(ValueError, match="x.dcm is broken, or pydicom does not know this form of RLE Lossless"):
        media.decode(Media("video", path=tmp_path / "x.dcm"))


@pytest.mark.parametrize(
    "tags,times",
    [
        ({"FrameTime": 40}, [0, 0.04, 0.08, 0.12, 0.16]),
        ({"CineRate": 10}, [0, 0.1, 0.2, 0.3, 0.4]),
        ({"RecommendedDisplayFrameRate": 20}, [0, 0.05, 0.1, 0.15, 0.2]),
        ({"FrameTimeVector": [0, 10, 20, 30, 40], "CineRate": 10}, [0, 0.01, 0.03, 0.06, 0.1]),
        ({"FrameTime": 40, "CineRate": 10}, [0, 0.04, 0.08, 0.12, 0.16]),
    ],
)
def test_the_file_says_how_fast_its_frames_follow(tmp_path, tags, times):
    medium = Media("video", path=saved(tmp_path / "x.dcm", film(**tags)), fps=2.0)
    np.testing.assert_allclose(media.decode_clip(medium).times, times)
    assert_as_decoded(medium)


def test_a_speed_is_asked_for_where_the_file_has_none(tmp_path):
    path = saved(tmp_path / "x.dcm", film())
    with pytest.raises(ValueError, match="x.dcm has 5 frames and does not say how fast .*; give fps"):
        media.decode(Media("video", path=path))
    np.testing.assert_allclose(media.decode_clip(Media("video", path=path, fps=2.0)).times, [0, 0.5, 1, 1.5, 2])
    row = {"prompt": "?", "answer": "a", "video": "x.dcm", "fps": 2, "split": "train"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (record,) = jsonl.load(tmp_path / "rows.jsonl", split="train")
    assert media.decode_record(record).videos[0].seconds_per_frame == pytest.approx(2 / 3)  # of four frames


def test_several_frames_are_no_image_and_one_frame_is_a_video(tmp_path):
    path = saved(tmp_path / "x.dcm", film(**WINDOW))
    with pytest.raises(ValueError, match="x.dcm has 5 frames; wanted one picture: give it as a video"):
        media.decode(Media("image", path=path))
    clip = media.decode_clip(Media("video", path=saved(tmp_path / "one.dcm", dataset())))
    assert clip.frames.shape == (1, 48, 64, 3) and clip.times.tolist() == [0]


def test_enhanced_objects_have_windows_of_their_frames(tmp_path):
    def group(**tags):
        item, inner = pydicom.Dataset(), pydicom.Dataset()
        for name, value in tags.items():
            setattr(inner, name, value)
        rescale = "RescaleSlope" in tags
        setattr(item, "PixelValueTransformationSequence" if rescale else "FrameVOILUTSequence", [inner])
        return item

    file = film(FrameTime=40)
    file.SharedFunctionalGroupsSequence = [group(RescaleSlope=2, RescaleIntercept=-1000)]
    centres = [500 + 1000 * i for i in range(5)]
    file.PerFrameFunctionalGroupsSequence = [group(WindowCenter=centre, WindowWidth=900) for centre in centres]
    frames = media.decode(Media("video", path=saved(tmp_path / "x.dcm", file)))
    for stored, picture, centre in zip(FRAMES, frames, centres, strict=True):
        one = dataset(stored, WindowCenter=centre, WindowWidth=900, RescaleSlope=2, RescaleIntercept=-1000)
        np.testing.assert_array_equal(picture, dicom.pixels(written(one), "one.dcm"))
    del file.PerFrameFunctionalGroupsSequence
    single = dataset(FRAMES[0])
    single.SharedFunctionalGroupsSequence = [group(WindowCenter=1500, WindowWidth=900)]
    wanted = dicom.pixels(written(dataset(FRAMES[0], WindowCenter=1500, WindowWidth=900)), "one.dcm")
    np.testing.assert_array_equal(dicom.pixels(written(single), "x.dcm"), wanted)


def test_a_prepared_film_keeps_its_window_and_its_speed(tmp_path):
    root, out = tmp_path / "own", tmp_path / "out"
    root.mkdir()
    saved(root / "x.dcm", film(WindowCenter=1500, WindowWidth=1800))
    row = {"prompt": "?", "answer": "a", "video": "x.dcm", "fps": 2}
    (root / "train.jsonl").write_text(json.dumps(row))
    prepare("jsonl", root, out, splits=["train"])
    (own,), (again,) = (data.load("jsonl", folder, split="train").records for folder in (root, out))
    one, other = (media.decode_record(record).videos[0] for record in (own, again))
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_allclose(one.times, other.times)


def test_frames_in_files_of_their_own_have_the_window_of_the_video(tmp_path):
    paths = [saved(tmp_path / f"{i}.dcm", dataset(stored, **WINDOW)) for i, stored in enumerate(FRAMES)]
    for window in ("voi", "minmax"):
        frames = media.decode(Media("video", frames=tuple(paths), fps=1.0, window=window))
        for path, picture in zip(paths, frames, strict=True):
            np.testing.assert_array_equal(picture, dicom.pixels(path.read_bytes(), path.name, window=window))


# ---- pages -----------------------------------------------------------------------------------------------------------


def pages(path, frames=COLOURS, **options):
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=others, **options)
    return path


@pytest.mark.parametrize("name,options", [("x.png", {}), ("x.webp", {"lossless": True})])
def test_an_animation_is_a_video_with_its_durations(tmp_path, name, options):
    path = pages(tmp_path / name, duration=[100, 200, 300, 400], **options)
    clip = media.decode_clip(Media("video", path=path, num_frames=3, fps=9.0))
    np.testing.assert_array_equal(clip.frames, COLOURS[[0, 2, 3]])
    np.testing.assert_allclose(clip.times, [0, 0.3, 0.6])
    assert_as_decoded(Media("video", path=path))


def test_a_gif_is_a_video_on_white(tmp_path):
    frames = [Image.new("P", (8, 6), colour) for colour in (0, 1, 2)]
    for frame in frames:
        frame.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250])
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=[50, 70, 90], transparency=1)
    clip = media.decode_clip(Media("video", path=tmp_path / "x.gif"))
    assert clip.frames[0, 0, 0].tolist() == [250, 0, 0] and clip.frames[2, 0, 0].tolist() == [0, 0, 250]
    np.testing.assert_allclose(clip.times, [0, 0.05, 0.12])
    assert_as_decoded(Media("video", path=tmp_path / "x.gif"))


def test_a_picture_before_an_animation_is_no_frame_of_it(tmp_path):
    path = pages(tmp_path / "x.png", duration=100, default_image=True)
    np.testing.assert_array_equal(media.decode(Media("video", path=path)), COLOURS[1:])
    assert_as_decoded(Media("video", path=path))


def test_pages_of_a_tiff_follow_at_the_given_speed(tmp_path):
    path = pages(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="x.tiff has 4 pages and does not say for how long .*; give fps"):
        media.decode(Media("video", path=path))
    clip = media.decode_clip(Media("video", path=path, fps=4.0))
    np.testing.assert_array_equal(clip.frames, COLOURS)
    np.testing.assert_allclose(clip.times, [0, 0.25, 0.5, 0.75])
    assert_as_decoded(Media("video", path=path, fps=4.0, num_frames=2))
    one = pages(tmp_path / "one.tiff", COLOURS[:1])
    np.testing.assert_array_equal(media.decode(Media("video", path=one)), COLOURS[:1])


def test_pages_that_are_no_film_are_refused(tmp_path):
    two = [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))]
    two[0].save(tmp_path / "sizes.tiff", save_all=True, append_images=two[1:])
    deep = [Image.new("L", (8, 8)), Image.new("I;16", (8, 8))]
    deep[0].save(tmp_path / "deep.tiff", save_all=True, append_images=deep[1:])
    for name, words in (("sizes", "pages of .8, 8. and .9, 8. pixels"), ("deep", "holds I;16 pixels")):
        with pytest.raises(ValueError, match=f"{name}.tiff .*{words}"):
            media.decode(Media("video", path=tmp_path / f"{name}.tiff", fps=1.0))
