"""MedVidBench in its owners' form: every task, frames found by other paths, answers that are not there, boxes, keys."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings

from fairgrpo_jax import data
from fairgrpo_jax.data import media, splits
from fairgrpo_jax.data.datasets import medvidbench
from fairgrpo_jax.data.record import conversation
from fairgrpo_jax.rewards.medvid import board
from fairgrpo_jax.rewards.medvid.samples import Sample
from tests.dataset_fixtures import damage, medvidbench as fixture


ANSWERED = ("train", "validation")


def together(root, **options):
    """The questions of both answered splits by question; these are all different but two."""
    return {r.question: r for split in ANSWERED for r in medvidbench.load(root, split=split, **options).records}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fixture.write(tmp_path_factory.mktemp("medvidbench"))


@pytest.fixture
def change(tmp_path):
    """Writes the folder with other rows."""
    return lambda rows, **options: fixture.write(tmp_path, rows, **options)


def test_every_task(root):
    records = together(root)
    told = {q: (r.extra["task"], r.extra["writer"], r.extra["source"], r.patient, r.answer) for q, r in records.items()}
    assert told == {
        "When is thread cut?": ("tal", "", "AVOS", "AVOS/v", "1.0-1.0, 2.0-3.0 seconds."),
        "When is a knot tied?": ("tal", "", "AVOS", "AVOS/v", "3.0-4.0 seconds."),
        "Where is the needle?": ("stg", "", "AVOS", "AVOS/v", "1.0 seconds: [1.5, 2.0, 30.25, 31.0]"),
        "What comes next: cut, tie?": ("next_action", "", "AVOS", "AVOS/w", "tie"),
        "Describe each event.": ("dense_captioning", "gemini", "AVOS", "AVOS/v", "1.0-2.0 seconds: cut: A cut."),
        "Sum up the clip.": ("video_summary", "gpt", "NurViD", "NurViD/n-1", ""),
        "What does the marked tool do?": ("region_caption", "gpt", "AVOS", "AVOS/v", "It holds tissue."),
        "Rate the skill.": ("skill_assessment", "", "JIGSAWS", "JIGSAWS/B001", "Respect for tissue: 2/5"),
        "Rate the view.": (
            "cvs_assessment",
            "",
            "Cholec80_CVS",
            "cholec/12",
            "Two structures: 2, Cystic plate: 1, Hepatocystic triangle: 0",
        ),
        "Where is the hook?": ("stg", "", "CholecT50", "cholec/12", "1.0 seconds: [1, 2, 3, 4]"),
    }
    assert all(r.choices == () and r.sex is None and r.age is None for r in records.values())
    assert sum(sum(medvidbench.load(root, split=s).left_out.values()) for s in ANSWERED) == 1  # one without an answer


def test_what_the_owners_tell_beside(root):
    records = together(root)
    first, summary, view = (records[q] for q in ("When is thread cut?", "Sum up the clip.", "Rate the view."))
    assert first.extra["id"] == "v&&0&&60&&1.0" and first.extra["row"] == "0" and view.extra["row"] == "8"
    assert [first.extra[key] for key in ("start", "end", "unit")] == ["0", "60", "frames"]
    assert [summary.extra[key] for key in ("start", "end", "unit")] == ["12.5", "14.5", "seconds"]
    assert [view.extra[key] for key in ("start", "end", "unit")] == ["0", "60", "frames"]
    assert json.loads(first.extra["struc_info"]) == fixture.SPANS
    assert json.loads(view.extra["struc_info"]) == [fixture.VIEW]
    assert json.loads(records["Describe each event."].extra["struc_info"]) == fixture.EVENTS
    assert records["What comes next: cut, tie?"].extra["struc_info"] == ""
    assert records["Sum up the clip."].extra["struc_info"] == ""


def test_the_answers_are_what_their_structure_says(root):
    """Of every task of the fixture, so that what rests on it is not empty; strictly, a missing part would be wrong."""
    answered = [record for record in together(root).values() if record.answer]
    samples = [Sample.of(record, record.answer) for record in answered]
    assert {sample.task for sample in samples} == {*medvidbench.TASKS} - {"video_summary"}
    found = board.columns(samples)
    assert {name: found[name] for name in board.COLUMNS[:7]} == dict.fromkeys(board.COLUMNS[:7], 1.0)


def test_questions_without_answers(root):
    test = medvidbench.load(root, split="test")
    assert [r.question for r in test.records] == ["When is the skin closed?"] * 2 + ["Sum up the clip."]
    assert {r.answer for r in test.records} == {""} and test.left_out == {"kept without an answer": 3}
    assert [r.extra["row"] for r in test.records] == ["0", "1", "2"]
    assert test[1].uid == f"{test[0].uid}-2" and test[2].uid != test[0].uid
    assert test[0].media[0].frames[0] == root / "testdata/AVOS/frames_15fps/v/0000.jpg"


def test_frames_are_decoded_in_order_with_repeats(root):
    records = together(root)
    record = records["What comes next: cut, tie?"]
    (clip,) = media.decode_record(record).videos
    assert clip.frames.shape == (6, 32, 40, 3)
    np.testing.assert_array_equal(clip.frames[4], clip.frames[5])  # the owners list the last twice
    assert not (clip.frames[3] == clip.frames[4]).all()
    np.testing.assert_allclose(clip.times, np.arange(6.0))
    (slow,) = media.decode_record(records["When is a knot tied?"]).videos
    np.testing.assert_allclose(slow.times, [0, 2, 4, 6])  # fps "0.5"
    record = records["Where is the needle?"]  # whose frames go back in time
    assert [frame.stem for frame in record.media[0].frames] == ["0000", "0003", "0001", "0002"]
    (fewer,) = media.decode_record(together(root, num_frames=2)["When is thread cut?"]).videos
    assert fewer.frames.shape[0] == 2
    assert [part["type"] for part in conversation(record)[0]["content"]] == ["video", "text"]


def test_the_region_is_boxed_on_its_frame(root):
    records = together(root)
    boxed = records["What does the marked tool do?"]
    assert boxed.media[0].box == (2.0, 5.0, 6.0, 20.5, 21.0) and boxed.extra["box"] == "2, 5, 6, 20.5, 21"
    assert [r.media[0].box for r in records.values() if r is not boxed] == [None] * 9
    (clip,), (plain,) = (media.decode_record(r).videos for r in (boxed, records["When is thread cut?"]))
    changed = (clip.frames != plain.frames).any(axis=(1, 2, 3))
    assert changed.tolist() == [False, False, True, False]


def test_the_region_in_the_authors_order_lands_elsewhere(root):
    """Frames of 40 x 32 are reduced to 56 x 56, where the same corners are a smaller part of the picture."""
    plain, reduced = (together(root, box_area=area)["What does the marked tool do?"] for area in (None, 56 * 56))
    assert reduced.media[0].box == plain.media[0].box and reduced.media[0].box_area == 56 * 56
    green = []
    for record in (plain, reduced):
        (clip,) = media.decode_record(record).videos
        marked = (clip.frames[2].astype(int) - [0, 255, 0] == 0).all(-1)
        green.append([np.flatnonzero(marked.any(axis)).max() + 1 for axis in (0, 1)])
    assert green[0] == [21, 22] and green[1][0] < 21 * 40 / 56 + 2 and green[1][1] < 22 * 32 / 56 + 2


def test_long_clips_are_sampled_down(change):
    rows = [fixture.row("tal", "When?", "1.0-2.0 seconds.")]
    rows[0]["video"] = rows[0]["video"] * 200
    (record,) = together(change(rows)).values()
    assert len(record.media[0].frames) == 800 and record.media[0].num_frames == medvidbench.MOST_FRAMES == 768


def test_a_region_on_no_frame_of_the_clip_is_kept_and_counted(change):
    region = {**fixture.REGION, "start_frame": "/root/data/AVOS/frames_15fps/v/0009.jpg"}
    rows = [fixture.row("region_caption_gpt", "What is marked?", "A hook.", is_RC=True, RC_info=region)]
    loaded = [medvidbench.load(change(rows), split=split) for split in ANSWERED]
    (record,) = [r for source in loaded for r in source.records]
    assert record.media[0].box is None and record.extra["box"] == ""
    assert [source.left_out for source in loaded if len(source)] == [{"kept without the box to caption": 1}]


@pytest.mark.parametrize("folder,prefix", [("", "/root/data"), ("valdata", "/root/data"), ("valdata", "/mnt/x/frames")])
def test_frames_by_other_paths(change, folder, prefix):
    rows = [fixture.row("tal", "When?", "1.0-2.0 seconds.", prefix=prefix)]
    root = change(rows, folder=folder)
    (record,) = together(root, prefix=prefix).values()
    assert record.media[0].frames[1] == root / folder / "AVOS/frames_15fps/v/0001.jpg"
    assert media.decode_record(record).videos[0].frames.shape == (4, 32, 40, 3)


def test_frames_that_are_nowhere_are_found_missing_when_decoded(change):
    (record,) = together(change([fixture.row("tal", "When?", "x", source="CoPESD")])).values()
    with pytest.raises(ValueError, match=rf"record {record.uid}: .*CoPESD/frames_15fps/v/0000\.jpg does not exist"):
        media.decode_record(record)


def test_frames_still_in_the_zip(change):
    root = change(fixture.ROWS)
    (root / "testdata").rename(root / "elsewhere")
    (root / "testdata.zip").write_bytes(b"")
    (root / "AVOS").rename(root / "hidden")
    with pytest.raises(ValueError, match=r"0000\.jpg does not exist: unpack testdata\.zip in"):
        medvidbench.load(root, split="test")


def test_videos_are_on_one_side_whatever_the_order(change):
    rows = [fixture.row("tal", f"Question {n}?", "x", video=f"v{n % 40}") for n in range(200)]
    rows += [fixture.row("stg", f"Hook {n}?", "x", source="CholecT50", video=f"VID{n:02}") for n in range(40)]
    rows += [fixture.row("stg", f"Duct {n}?", "x", source="Cholec80-CVS", video=f"video{n}") for n in range(40)]
    root = change(rows)
    train, validation = (medvidbench.load(root, split=split).records for split in ANSWERED)
    splits.check_leakage(train, validation)
    assert len(train) + len(validation) == 280 and 0 < len(validation) < len(train)
    assert {r.patient for r in validation if r.extra["source"] == "CholecT50"} == {
        r.patient for r in validation if r.extra["source"] == "Cholec80-CVS"
    }
    random.Random(0).shuffle(rows)
    root = change(rows[:100])
    for split, part in zip(ANSWERED, (train, validation), strict=True):
        sides = {r.uid for r in part}
        assert all(r.uid in sides and r.split == split for r in medvidbench.load(root, split=split).records)


def test_a_key_for_every_question(root, change):
    uids = [r.uid for r in together(root).values()]
    assert len(set(uids)) == len(fixture.ROWS)
    same = fixture.row("tal", "When?", "1.0-2.0 seconds.")
    rows = [same, {**same, "qa_type": "stg"}, {**same, "id": "other"}, {**same, "video": same["video"][:2]}, dict(same)]
    rows.append({**same, "conversations": same["conversations"][:1]})  # the same question without its answer
    rows.append({**same, "conversations": [{"from": "human", "value": "<video>\nWhen not?"}]})
    keys = [r.uid for split in ANSWERED for r in medvidbench.load(change(rows), split=split).records]
    assert len(set(keys)) == 7
    assert sorted(keys[4:6]) == [f"{keys[0]}-2", f"{keys[0]}-3"] and not keys[6].startswith(keys[0])


def test_some_tasks_and_another_file(root):
    chosen = together(root, tasks=("tal", "region_caption"))
    assert {r.extra["task"] for r in chosen.values()} == {"tal", "region_caption"} and len(chosen) == 3
    assert len(medvidbench.load(root, split="test", annotations=fixture.TRAINVAL)) == len(fixture.ROWS)
    other = together(root, annotations=fixture.TESTING)
    assert {r.question for r in other.values()} == {"When is the skin closed?", "Sum up the clip."}


def test_all_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=f"missing {fixture.TRAINVAL}; get the dataset from https"):
        medvidbench.load(tmp_path, split="validation")
    with pytest.raises(ValueError, match=f"missing {fixture.TESTING}; get the dataset from https"):
        data.load("medvidbench", tmp_path, split="test")


REGION = {"start_frame": fixture.frames()[0]}
TURN = {"from": "human", "value": "<video>\nWhen?"}


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"qa_type": "talk"}, "qa_type is 'talk'; wanted one that begins with tal, stg"),
        ({"video": []}, r"video is \[\]; wanted a list of frame files"),
        ({"video": "a.mp4"}, "video is 'a.mp4'; wanted a list"),
        ({"video": ["/data/AVOS/0.jpg"]}, r"frame '/data/AVOS/0.jpg' does not begin with /root/data; pass prefix="),
        ({"video": ["/root/data/../x.jpg"]}, "wanted one inside the dataset's folder"),
        ({"metadata": None}, "metadata is None; wanted an object"),
        ({"metadata": {"video_id": "v"}}, "metadata.fps is None; wanted frames a second"),
        ({"metadata": {"video_id": "v", "fps": "0"}}, "metadata.fps is '0'"),
        ({"metadata": {"video_id": "v", "fps": "fast"}}, "metadata.fps is 'fast'"),
        ({"metadata": {"fps": "1.0"}}, "video_id is None; wanted text"),
        ({"conversations": []}, "conversations hold no question"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "conversations hold no question"),
        ({"conversations": [TURN, TURN]}, "wanted one human turn and at most one of gpt"),
        ({"conversations": [TURN, {"from": "gpt", "value": 3}]}, "wanted one human turn and at most one of gpt"),
        ({"struc_info": "x"}, "struc_info is 'x'; wanted a list, an object or null"),
        ({"RC_info": [1]}, r"RC_info is \[1\]; wanted an object or null"),
        ({"RC_info": {**REGION, "start_frame_bbox": [1, 2, 3]}}, r"start_frame_bbox is \[1, 2, 3\]; wanted \[x1, y1"),
        ({"RC_info": {**REGION, "start_frame_bbox": [9, 2, 3, 4]}}, r"start_frame_bbox is \[9, 2, 3, 4\]"),
        ({"RC_info": {**REGION, "start_frame_bbox": [1, 2, 3, "4"]}}, "start_frame_bbox is"),
        ({"RC_info": {**REGION, "start_frame_bbox": [1, 2, float("nan"), 4]}}, "start_frame_bbox is"),
        ({"data_source": None, "dataset_name": None}, "dataset_name is None; wanted text"),
    ],
)
def test_bad_rows(change, changes, message):
    rows = [dict(row) for row in fixture.ROWS]
    rows[0].update(changes)
    rows[9]["id"] = {}
    with pytest.raises(ValueError, match=rf"trainval\.json: 2 bad rows: row 1: .*{message}.*; row 10: id is \{{\}}"):
        medvidbench.load(change(rows), split="train")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"split": "val"}, "split is 'val'"),
        ({"tasks": ("tag",)}, r"tasks are \['tag'\]; wanted some of tal"),
        ({"num_frames": 0}, "num_frames is 0"),
    ],
)
def test_options_that_cannot_be(root, options, message):
    with pytest.raises(ValueError, match=message):
        medvidbench.load(root, **{"split": "train", **options})


@settings(deadline=None, derandomize=True)
@given(damage.rows(len(fixture.ROWS)))
def test_damage_is_an_error_or_leaves_the_other_rows_alone(tmp_path_factory, drawn):
    index, apply = drawn
    root = tmp_path_factory.getbasetemp() / "medvidbench_damaged"
    root.mkdir(exist_ok=True)
    turns = [row["conversations"] for n, row in enumerate(fixture.ROWS) if n != index]
    right = {t[0]["value"].removeprefix("<video>\n"): t[1]["value"] if len(t) > 1 else "" for t in turns}
    (root / fixture.TRAINVAL).write_text(apply(fixture.ROWS), encoding="utf-8")
    try:
        records = together(root)
    except ValueError as error:
        assert fixture.TRAINVAL in str(error)
        return
    assert right.items() <= {question: r.answer for question, r in records.items()}.items()
