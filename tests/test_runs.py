"""What a run is made of: records of several datasets, prompts of every family."""

import dataclasses

import numpy as np
import pytest

from fairgrpo_jax import batches, config as options, sources
from fairgrpo_jax.data import media
from fairgrpo_jax.data.record import Media, Record, RecordList, Turn, conversation, spoken
from tests import covid_fixture


def test_several_datasets_stand_side_by_side(tmp_path, capsys):
    """Two folders under one root: first split for training, last for evaluation."""
    for name in ("covid_blues", "other"):
        (tmp_path / name).mkdir()
    covid_fixture.write(tmp_path / "covid_blues")
    config = options.Config(data=options.Data(name="synthetic"))
    clinic = sources.load(config)
    assert {r.split for r in clinic["warmup"].records} == {"warmup"}
    only = sources.load(
        dataclasses.replace(config, data=options.Data(name="covid_blues", root=tmp_path / "covid_blues", num_frames=2))
    )
    assert {r.split for r in only["train"].records} == {"train"} == {r.split for r in only["warmup"].records}
    assert {r.split for r in only["test"].records} == {"test"}
    assert {m.num_frames for r in only["train"].records for m in r.media} == {2}
    with pytest.raises(ValueError, match="without data.root; wanted the folder that holds them all"):
        sources.load(dataclasses.replace(config, data=options.Data(name="covid_blues,chexpert")))
    both = dataclasses.replace(config, data=options.Data(name="covid_blues,chexpert", root=tmp_path))
    with pytest.raises(ValueError, match="CheXpert"):
        sources.load(both)


def test_a_video_is_its_frames_for_a_family_without_video():
    """Media keep their order: image, two frames, image."""
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 255, (4, 6, 3), np.uint8) for _ in range(2))
    film = rng.integers(0, 255, (2, 4, 6, 3), np.uint8)
    shown = (Media("image", pixels=one), Media("video", pixels=film, fps=1.0), Media("image", pixels=two))
    record = Record("d/1", "d", "x", shown, "What?", "A", ("A",), "p", None, None, {}, "train")
    messages, decoded = batches._as_images(conversation(record), media.decode_record(record))
    assert [part["type"] for part in messages[0]["content"]] == ["image"] * 4 + ["text"]
    assert decoded.videos == () and len(decoded.images) == 4
    for got, wanted in zip(decoded.images, (one, *film, two), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_frames_stand_where_their_video_stood():
    """In the first of two questions: frames before the text, an image behind it."""
    film, one = np.zeros((2, 4, 6, 3), np.uint8), np.ones((4, 6, 3), np.uint8)
    shown = (Media("video", pixels=film, fps=1.0), Media("image", pixels=one))
    turns = (Turn("user", (None, "Old?")), Turn("assistant", ("A",)), Turn("user", ("New?", None)))
    record = Record("d/1", "d", "x", shown, spoken(turns), "A", (), "p", None, None, {}, "train", turns=turns)
    talk, decoded = batches._as_images(conversation(record), media.decode_record(record))
    assert [[part["type"] for part in message["content"]] for message in talk] == [
        ["image", "image", "text"],
        ["text"],
        ["text", "image"],
    ]
    assert [int(picture.max()) for picture in decoded.images] == [0, 0, 1]


def test_leakage_is_refused_or_reported(capsys):
    def source(patient):
        return RecordList((Record("d/1", "d", "x", (), "?", "A", (), patient, None, None, {}, "train"),))

    sources.check_leakage(source("a"), source("b"), options.Data())
    with pytest.raises(ValueError, match="d patient a; split by patient .or --data.leakage report"):
        sources.check_leakage(source("a"), source("a"), options.Data())
    sources.check_leakage(source("a"), source("a"), options.Data(leakage="report"))
    assert "warning: 1 patients are in both" in capsys.readouterr().out


def test_groups_are_made_of_the_attributes_asked_for():
    record = Record("d/1", "d", "x", (), "?", "A", (), "p", "F", 30.0, {"race": "Asian", "note": ""}, "train")
    assert batches.groups_of(record, options.Data()) == {"sex": "F", "age": "26–50"}
    settings = options.Data(attributes=("race", "sex", "note"))
    assert batches.groups_of(record, settings) == {"race": "Asian", "sex": "F", "note": None}


def test_options_reach_the_loaders_of_their_datasets():
    one = options.Data(name="pmc_vqa", options=("version=2", "split_by=article"))
    assert sources.loader_options(one, ["pmc_vqa"]) == {"pmc_vqa": {"version": 2, "split_by": "article"}}
    two = options.Data(name="chexpert,slake", options=("chexpert.uncertain=ones",))
    assert sources.loader_options(two, ["chexpert", "slake"]) == {"chexpert": {"uncertain": "ones"}, "slake": {}}
    with pytest.raises(ValueError, match="uncertain=ones with 2 datasets; wanted NAME.KEY=VALUE"):
        sources.loader_options(options.Data(options=("uncertain=ones",)), ["chexpert", "slake"])
    with pytest.raises(ValueError, match="data.options speed for synthetic; wanted some of: .*domains"):
        sources.load(options.Config(data=options.Data(options=("speed=1",))))
    with pytest.raises(ValueError, match="data.options seed=3,scale=1 for synthetic; wanted a value like 0, spaces"):
        sources.load(options.Config(data=options.Data(options=("seed=3,scale=1",))))
