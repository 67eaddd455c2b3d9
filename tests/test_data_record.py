import dataclasses
import gc
from pathlib import Path

import numpy as np
import pytest

from fairgrpo_jax import data
from fairgrpo_jax.data.datasets import synthetic
from fairgrpo_jax.data.record import Media, Record, RecordList, Turn, conversation, target, without_medium


RECORD = Record(
    uid="demo/1",
    dataset="demo",
    modality="ultrasound",
    media=(Media("video", path=Path("clip.mp4")), Media("image", path=Path("still.png"))),
    question="What is seen?",
    answer="A, C",
    choices=("A", "B", "C"),
    patient="p1",
    sex="F",
    age=81.0,
    extra={},
    split="train",
    finding="bright",
)


def test_conversation_has_one_part_a_medium_then_the_text():
    (turn,) = conversation(RECORD, instruction="Be brief.")
    assert turn["role"] == "user"
    assert turn["content"] == [
        {"type": "video"},
        {"type": "image"},
        {"type": "text", "text": "What is seen?\nA\nB\nC\nBe brief."},
    ]
    assert conversation(RECORD, list_choices=False)[0]["content"][-1]["text"] == "What is seen?"


TURNS = (
    Turn("system", ("You read films.",)),
    Turn("user", ("Look: ", None)),
    Turn("assistant", ("C",)),
    Turn("user", ("And ", None, "now?")),
)
TALK = dataclasses.replace(RECORD, question="You read films.\nLook:\nC\nAnd now?", turns=TURNS)


def test_turns_keep_their_order_and_the_last_one_gets_choices_and_instruction():
    talk = conversation(TALK, instruction="Be brief.")
    assert [message["role"] for message in talk] == ["system", "user", "assistant", "user"]
    assert talk[1]["content"] == [{"type": "text", "text": "Look: "}, {"type": "video"}]
    last = [{"type": "text", "text": "And "}, {"type": "image"}, {"type": "text", "text": "now?\nA\nB\nC\nBe brief."}]
    assert talk[3]["content"] == last
    shown = dataclasses.replace(RECORD, question="See:", turns=(Turn("user", ("See:", None, None)),))
    assert conversation(shown)[0]["content"][2:] == [{"type": "image"}, {"type": "text", "text": "\nA\nB\nC"}]
    assert conversation(shown, list_choices=False)[0]["content"][2:] == [{"type": "image"}]


def test_a_medium_leaves_with_its_place():
    first, second = without_medium(TALK, 0), without_medium(TALK, 1)
    assert first.media == RECORD.media[1:] and first.turns[1].content == ("Look: ",) and first.turns[3] == TURNS[3]
    assert second.media == RECORD.media[:1] and second.turns[3].content == ("And ", "now?")
    assert second.turns[:3] == TURNS[:3] and second.question == TALK.question
    assert without_medium(RECORD, 1) == dataclasses.replace(RECORD, media=RECORD.media[:1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"media": RECORD.media[:1]}, "demo/1: the turns have 2 places for media, the record 1 media"),
        ({"turns": TURNS[:3]}, "the record 2 media"),
        ({"media": RECORD.media[:1], "turns": TURNS[:3]}, "the last turn is of the assistant; wanted one of the user"),
        ({"question": "What?"}, "do not say the question"),
    ],
)
def test_turns_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TALK, **changes)


def test_target_is_finding_then_boxed_answer():
    assert target(RECORD) == "<think>bright</think>\\boxed{A, C}"


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"kind": "image"}, "exactly one"),
        ({"kind": "image", "path": Path("a.png"), "pixels": np.zeros((2, 2, 3), np.uint8)}, "exactly one"),
        ({"kind": "film", "path": Path("a.mp4")}, "'film'"),
        ({"kind": "image", "pixels": np.zeros((2, 2), np.uint8)}, r"\(H, W, 3\)"),
        ({"kind": "image", "pixels": np.zeros((2, 2, 3), np.float32)}, "float32"),
        ({"kind": "video", "pixels": np.zeros((2, 2, 3), np.uint8), "fps": 25.0}, r"\(F, H, W, 3\)"),
        ({"kind": "video", "pixels": np.zeros((5, 2, 2, 3), np.uint8)}, "fps"),
        ({"kind": "video", "frames": (Path("1.jpg"),)}, "fps"),
        ({"kind": "video", "frames": (Path("1.jpg"),), "path": Path("a.mp4"), "fps": 1.0}, "exactly one"),
        ({"kind": "image", "frames": (Path("1.jpg"),), "fps": 1.0}, "kind='video'"),
        ({"kind": "image", "path": Path("a.dcm"), "window": "bone"}, "'bone'"),
        ({"kind": "image", "pixels": np.zeros((2, 2, 3), np.uint8), "member": "a.png"}, "has no archive"),
        ({"kind": "image", "path": Path("a.png"), "box": (0, 9, 0, 3, 4)}, "x1 <= x2"),
        ({"kind": "image", "path": Path("a.png"), "box": (0.5, 0, 0, 3, 4)}, "frame index"),
        ({"kind": "image", "path": Path("a.png"), "box": (0, 0, float("nan"), 3, 4)}, "frame index"),
        ({"kind": "image", "path": Path("a.png"), "box": (0, 0, 3, 4)}, "frame index"),
    ],
)
def test_media_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Media(**arguments)


def test_load_by_name(monkeypatch):
    with pytest.raises(ValueError, match="'mnist'; known are chexpert, covid_blues, "):
        data.load("mnist", split="train")
    with pytest.raises(ValueError, match="leave root out"):
        data.load("synthetic", "/some/where", split="train")
    with pytest.raises(ValueError, match="pass root="):
        data.load("covid_blues", split="train")
    monkeypatch.setattr(synthetic, "load", lambda split: RecordList(()))
    with pytest.raises(ValueError, match="'test' split of synthetic has no record"):
        data.load("synthetic", split="test")


def test_loading_leaves_the_garbage_collector_as_it_was():
    assert gc.isenabled()
    data.load("synthetic", split="test", domains=("us",))
    with pytest.raises(ValueError):
        data.load("synthetic", split="nowhere")
    assert gc.isenabled()
