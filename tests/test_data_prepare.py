"""A prepared folder gives the same records and the same pixels as the owner's, and refuses to be another's."""

import dataclasses
import importlib
import io
import json
import sys
import tempfile
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fairgrpo_jax import data
from fairgrpo_jax.data import media, prepare as preparing, prepared
from fairgrpo_jax.data.record import Media, Record, RecordList
from tests import covid_fixture
from tests.test_data_dicom import dataset, written


@pytest.fixture
def own_root(tmp_path):
    """Rows with every kind of medium: JPEG, two images, DICOM, frames, a video, none."""
    root = tmp_path / "mine"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        picture = Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(root / f"{i}.jpg", quality=70 + i, exif=exif)
    (root / "m.dicom").write_bytes(written(dataset(WindowCenter=1500, WindowWidth=900)))
    covid_fixture.video(root / "v.mp4")
    rows = [
        {"prompt": "One?", "image": "0.jpg", "answer": "a", "age": 25.5, "sex": "F", "race": "x\u2028y"},
        {"prompt": "Two?", "images": ["1.jpg", "m.dicom"], "answer": "b", "choices": ["a", "b"]},
        {"prompt": "Frames?", "videos": [["2.jpg", "3.jpg", "2.jpg"], "v.mp4"], "fps": 0.5, "answer": "c"},
        {"prompt": "None?", "answer": "d"},
        {"prompt": "Last? <image>", "image": "3.jpg", "answer": "e"},
    ]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "test.jsonl").write_text(json.dumps(rows[1]) + "\n")
    return root


def told(record):
    """All of a record but where its media lie."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "media"}


def same(one, other):
    assert [told(record) for record in one] == [told(record) for record in other]
    for a, b in zip(one, other, strict=True):
        assert [(m.kind, m.num_frames, m.box) for m in a.media] == [(m.kind, m.num_frames, m.box) for m in b.media]
        first, second = media.decode_record(a), media.decode_record(b)
        for x, y in zip(first.images, second.images, strict=True):
            np.testing.assert_array_equal(x, y)
        for x, y in zip(first.videos, second.videos, strict=True):
            np.testing.assert_array_equal(x.frames, y.frames)
            np.testing.assert_allclose(x.times, y.times)


def test_the_same_records_and_pixels(own_root, tmp_path):
    out = tmp_path / "out"
    preparing.prepare("jsonl", own_root, out, rows_per_part=2)
    for split in ("train", "test"):
        same(data.load("jsonl", own_root, split=split).records, data.load("jsonl", out, split=split).records)
    assert sorted(path.name for path in out.glob("train-*")) == ["train-00000", "train-00001", "train-00002"]
    assert "tensorflow" not in sys.modules
    for file in own_root.iterdir():  # the owner's files are needed no more
        file.rename(file.with_suffix(".gone"))
    (two,) = data.load("jsonl", out, split="test").records
    assert [image.shape for image in media.decode_record(two).images] == [(30, 20, 3), (48, 64, 3)]
    more = data.load("jsonl", out, split="train", num_frames=6)[2]
    assert [m.num_frames for m in more.media] == [6, 6]


def test_nothing_is_left_in_the_temporary_folder(own_root, tmp_path, monkeypatch):
    """TFDS makes a folder for every part, were it asked to look up what others know of the dataset."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    preparing.prepare("jsonl", own_root, tmp_path / "out", rows_per_part=2)
    assert not list(temporary.iterdir())


def test_jpeg_and_video_keep_their_bytes_and_dicom_becomes_png(own_root, tmp_path):
    preparing.prepare("jsonl", own_root, tmp_path / "out", splits=["train"])
    builder: Any = tfds.builder_from_directory(str(tmp_path / "out/train-00000/prepared/1.0.0"))
    examples: Any = builder.as_data_source("train")
    stored = [example["media"] for example in examples]
    assert stored[0] == [(own_root / "0.jpg").read_bytes()]
    assert stored[2] == [(own_root / name).read_bytes() for name in ("2.jpg", "3.jpg", "2.jpg", "v.mp4")]
    assert stored[1][0] == (own_root / "1.jpg").read_bytes() and stored[3] == []
    picture = Image.open(io.BytesIO(stored[1][1]))
    assert picture.format == "PNG" and picture.mode == "L" and picture.size == (64, 48)
    assert json.loads(examples[1]["record"])["uid"] == examples[1]["uid"].decode() == "mine/train-2"


def test_datasets_in_memory_and_from_their_owners(tmp_path):
    preparing.prepare("synthetic", None, tmp_path / "clinic", splits=["test"], domains=("us",), scale=0.2)
    made = data.load("synthetic", split="test", domains=("us",), scale=0.2).records
    same(made, data.load("synthetic", tmp_path / "clinic", split="test").records)
    root = covid_fixture.write(tmp_path / "blues")
    preparing.prepare("covid_blues", root, tmp_path / "out")
    for split in ("train", "test"):
        same(
            data.load("covid_blues", root, split=split, num_frames=6).records,
            data.load("covid_blues", tmp_path / "out", split=split, num_frames=6).records,
        )


def test_boxes_stay(tmp_path):
    pixels = np.full((4, 30, 40, 3), 90, np.uint8)
    clip = Media("video", pixels=pixels, fps=2.0, box=(2, 3, 4, 20, 25), num_frames=2)
    record = Record("d/1", "d", "", (clip,), "?", "x", (), "p", None, None, {}, "train")
    line = prepared.line(record, prepared.stored_media(record.media))
    builder = preparing.Prepared("train", [record], [line], 1, data_dir=tmp_path / "train-00000")
    builder.download_and_prepare()
    (tmp_path / "prepared.json").write_text(
        json.dumps(dict.fromkeys(("schema", "name", "options", "splits", "sources", "complete")) | {"rows_per_part": 1})
    )
    again = Media("video", path=tmp_path, member="train/0/0-3", fps=2.0, box=clip.box, num_frames=2)
    np.testing.assert_array_equal(media.decode(clip), media.decode(again))


def test_an_interrupted_run_goes_on_where_it_stopped(own_root, tmp_path, monkeypatch):
    whole, calls = preparing._stored, []

    def interrupted(record):
        calls.append(record.uid)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(record)

    monkeypatch.setattr(preparing, "_stored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preparing.prepare("jsonl", own_root, tmp_path / "out", rows_per_part=2, threads=1)
    with pytest.raises(ValueError, match="not fully prepared; run the same prepare command again"):
        data.load("jsonl", tmp_path / "out", split="train")
    done = tmp_path / "out/train-00000/prepared/1.0.0/dataset_info.json"
    before = done.stat().st_mtime_ns
    preparing.prepare("jsonl", own_root, tmp_path / "out", rows_per_part=2, threads=1)
    assert done.stat().st_mtime_ns == before and calls[4:] == [f"mine/train-{i}" for i in (3, 4, 5)] + ["mine/test-1"]
    same(
        data.load("jsonl", own_root, split="train").records, data.load("jsonl", tmp_path / "out", split="train").records
    )
    assert not list(tmp_path.glob("out/*/prepared/incomplete*"))


def test_broken_media_are_found_on_the_way(own_root, tmp_path):
    (own_root / "3.jpg").write_bytes((own_root / "3.jpg").read_bytes()[:200])
    with pytest.raises(ValueError, match="dataset mine, record mine/train-.*3.jpg is broken"):
        preparing.prepare("jsonl", own_root, tmp_path / "out")
    with pytest.warns(UserWarning, match="2 of 5 records are left out"):
        preparing.prepare("jsonl", own_root, tmp_path / "other", splits=["train"], on_broken="skip")
    assert len(data.load("jsonl", tmp_path / "other", split="train")) == 3


def test_another_source_is_refused(own_root, tmp_path):
    out = tmp_path / "out"
    preparing.prepare("jsonl", own_root, out)
    preparing.prepare("jsonl", own_root, out)  # nothing to do
    text = (own_root / "train.jsonl").read_text()
    (own_root / "train.jsonl").write_text(text.replace('"a"', '"z"', 1))
    with pytest.raises(ValueError, match="source train.jsonl, records of train differ; give another folder"):
        preparing.prepare("jsonl", own_root, out)
    (own_root / "train.jsonl").write_text(text)
    with pytest.raises(ValueError, match="options, records of train differ"):
        preparing.prepare("jsonl", own_root, out, num_frames=2)
    with pytest.raises(ValueError, match="holds files that are not of a prepared dataset"):
        preparing.prepare("jsonl", own_root, own_root)
    with pytest.raises(ValueError, match="is prepared already"):
        preparing.prepare("jsonl", out, tmp_path / "again")


def test_a_folder_that_was_changed_is_refused(own_root, tmp_path):
    out = tmp_path / "out"
    preparing.prepare("jsonl", own_root, out, splits=["train"])
    with pytest.raises(ValueError, match="prepared from 'jsonl'; load it by that name"):
        data.load("chexpert", out, split="train")
    with pytest.raises(ValueError, match="split is 'test'; .* prepared with train"):
        data.load("jsonl", out, split="test")
    with pytest.raises(ValueError, match="options are {'lang': 'en'}"):
        data.load("jsonl", out, split="train", lang="en")
    side = json.loads((out / "prepared.json").read_text())
    for change, message in (
        ({"schema": 2}, "has the form 2, this version reads 1"),
        ({"complete": False}, "not fully"),
    ):
        (out / "prepared.json").write_text(json.dumps(side | change))
        with pytest.raises(ValueError, match=message):
            data.load("jsonl", out, split="train")
    (out / "prepared.json").write_text(json.dumps(side))
    (out / "train.jsonl").write_text((out / "train.jsonl").read_text().replace("One?", "Who?"))
    with pytest.raises(ValueError, match="train.jsonl is not the file that was written"):
        data.load("jsonl", out, split="train")
    (out / "prepared.json").write_text("{")
    with pytest.raises(ValueError, match="prepared.json is damaged"):
        data.load("jsonl", out, split="train")


class Chexpert(tfds.core.GeneratorBasedBuilder):
    """What the builder of that name in TensorFlow Datasets yields, features as there."""

    VERSION = tfds.core.Version("3.1.0")
    code_path = None
    names = ("train/patient00002/study2/view1_frontal.jpg", "train/patient00001/study1/view1_frontal.jpg")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "name": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 1)),
                "image_view": tfds.features.ClassLabel(names=["frontal", "lateral"]),
                "label": tfds.features.Sequence(tfds.features.ClassLabel(names=["uncertain", "positive"])),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, name in enumerate(self.names):
            buffer = io.BytesIO()
            Image.new("L", (5, 6), 50 + 100 * i).save(buffer, "png")
            buffer.seek(0)
            yield name, {"name": f"CheXpert-v1.0-small/{name}", "image": buffer, "image_view": 0, "label": [0, 1]}


def test_images_of_the_tfds_builder_meet_age_and_sex_of_the_owner(tmp_path):
    builder = Chexpert(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    media_of = [Media("image", path=tmp_path / "absent" / name) for name in Chexpert.names]
    rows = [
        Record(f"chexpert/{i}", "chexpert", "", (medium,), "?", "x", (), f"p{i}", "F", 60.0 + i, {}, "train")
        for i, medium in enumerate(media_of)
    ]
    joined = preparing.join_tfds(RecordList(tuple(rows)), builder.data_dir, split="train")
    assert [told(record) for record in joined] == [told(record) for record in rows]
    assert [int(media.decode(record.media[0]).mean()) for record in joined] == [50, 150]
    rows.append(dataclasses.replace(rows[0], uid="chexpert/9", media=(Media("image", path=tmp_path / "a/b/c/d.jpg"),)))
    with pytest.raises(ValueError, match=r"1 of 3 records have no image .*chexpert/9"):
        preparing.join_tfds(RecordList(tuple(rows)), builder.data_dir, split="train")


@pytest.mark.filterwarnings("ignore:.*records are left out")
@pytest.mark.parametrize(
    "name",
    ["chexpert", "ham10000", "hemorrhage", "isic2020", "medvidbench", "pad_ufes_20", "slake", "vindr_mammo", "vqa_rad"],
)
def test_every_dataset_prepared_is_the_same(name, tmp_path):
    root, fixture = tmp_path / "owner", importlib.import_module(f"tests.dataset_fixtures.{name}")
    root.mkdir()
    fixture.write(root)
    found = {}
    for split in data.module(name).SPLITS:
        try:
            found[split] = data.load(name, root, split=split, on_broken="skip").records
        except ValueError:  # so few patients that none is held out
            continue
    found = {split: records for split, records in found.items() if records}
    preparing.prepare(name, root, tmp_path / "out", splits=list(found), on_broken="skip")
    assert found
    for split, records in found.items():
        same(records, data.load(name, tmp_path / "out", split=split).records)
