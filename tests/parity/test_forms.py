"""What Hugging Face's ``datasets`` writes is read as it reads it."""

import io

import numpy as np
import pytest
from PIL import Image

from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import jsonl


datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.parity
CLASSES = ["Normal", "Nodule"]


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


@pytest.fixture
def whole():
    rows = [
        {
            "id": f"r{i}",
            "prompt": "?",
            "answer": i % 2,
            "images": [png(i)] * (i % 3),
            "age": 40 + i,
            "patient_id": f"p{i}",
        }
        for i in range(8)
    ]
    text, number = datasets.Value("string"), datasets.Value("int64")
    features = {"id": text, "prompt": text, "answer": datasets.ClassLabel(names=CLASSES), "age": number}
    features |= {"images": datasets.List(datasets.Image()), "patient_id": text}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def same(root, split, wanted):
    found = jsonl.load(root, split=split)
    assert len(found) == len(wanted)
    for record, row in zip(found, wanted, strict=True):
        assert record.uid == f"{root.name}/{row['id']}" and record.answer == CLASSES[row["answer"]]
        assert (record.age, record.patient, record.choices) == (row["age"], row["patient_id"], tuple(CLASSES))
        for medium, picture in zip(record.media, row["images"], strict=True):
            np.testing.assert_array_equal(media.decode(medium), np.asarray(picture))


def test_saved_to_disk(whole, tmp_path):
    sides = {"train": whole.filter(lambda row: row["age"] > 42), "test": whole.select([6, 1])}
    datasets.DatasetDict(sides).save_to_disk(tmp_path / "mine", num_shards={"train": 2, "test": 1})
    for split, wanted in sides.items():
        same(tmp_path / "mine", split, wanted)


def test_one_split_saved_to_disk(whole, tmp_path):
    whole.save_to_disk(tmp_path / "mine")
    found = [record for split in ("train", "test") for record in jsonl.load(tmp_path / "mine", split=split)]
    assert sorted(record.uid for record in found) == [f"mine/r{i}" for i in range(8)]


def test_parquet_as_on_the_hub(whole, tmp_path):
    root = tmp_path / "mine"
    for part in range(2):
        name = f"train-{part:05d}-of-00002.parquet"
        whole.shard(2, part, contiguous=True).to_parquet(root / "data" / name)
    same(root, "train", whole)
    again = datasets.load_dataset(str(root), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["id"] for row in again] == [record.uid.rpartition("/")[2] for record in jsonl.load(root, split="train")]
