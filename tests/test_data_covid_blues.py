"""The owners' files: a small folder in their form, made here, and the real one where it lies beside the project."""

import csv
import dataclasses
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fairgrpo_jax import data
from fairgrpo_jax.data import check, demographics, media, splits
from fairgrpo_jax.data.datasets import covid_blues
from fairgrpo_jax.data.record import conversation
from tests import covid_fixture


REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "covid-blues"
CLINICAL = (
    "patient_id,cov_test,patient_symp#Fever,pat_sex,pulse,pat_age\r\n"
    "15,1,1,1.0,-99,78.0\r\n"
    "3,0,0,0.0,,49.5\r\n"
    "20,1,,-99,80,-99\r\n"
    "100,0,0,1.0,80,26\r\n"
)
SEVERITY = (
    "video_file,Severity Score,A-lines,B-lines,comments\n"
    'patient_15_L2,2.0,yes ,no ,"broken pleura, consolidated"\n'
    "patient_15_L2_2,1.0,no,yes,\n"
    "patient_3_R1,0.0,yes,no,\n"
    "patient_20_R3,3.0,no,yes,\n"
    "patient_100_L1,,,,\n"
)
STEMS = ["patient_15_L2", "patient_15_L2_2", "patient_3_R1", "patient_20_R3", "patient_100_L1"]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "clinical_variables.csv").write_bytes(b"\xef\xbb\xbf" + CLINICAL.encode())
    (tmp_path / "severity.csv").write_text(SEVERITY)
    (tmp_path / "lus_videos").mkdir()
    for stem in STEMS:
        covid_fixture.video(tmp_path / "lus_videos" / f"{stem}.mp4")
    return tmp_path


def test_records(root):
    train, test = (data.load("covid_blues", root, split=split) for split in ("train", "test"))
    assert [r.uid for r in train.records] == [  # patients 3, 15, 20 of 3, 15, 20, 100
        "covid_blues/patient_3_R1",
        "covid_blues/patient_15_L2",
        "covid_blues/patient_15_L2_2",
        "covid_blues/patient_20_R3",
    ]
    assert [r.uid for r in test.records] == ["covid_blues/patient_100_L1"]
    rows = {r.uid.split("/")[1]: r for r in (*train.records, *test.records)}
    told = {stem: (r.patient, r.sex, r.age, r.answer) for stem, r in rows.items()}
    assert told == {
        "patient_3_R1": ("3", "F", 49.5, "No COVID"),
        "patient_15_L2": ("15", "M", 78.0, "Has COVID"),
        "patient_15_L2_2": ("15", "M", 78.0, "Has COVID"),
        "patient_20_R3": ("20", None, None, "Has COVID"),
        "patient_100_L1": ("100", "M", 26.0, "No COVID"),
    }
    assert rows["patient_15_L2"].extra == {"severity": "2.0", "a_lines": "yes", "b_lines": "no", "blue_point": "L2"}
    assert rows["patient_100_L1"].extra["severity"] == ""
    assert all(r.choices == ("Has COVID", "No COVID") and r.answer in r.choices for r in rows.values())
    assert {r.split for r in train.records} == {"train"} and {r.split for r in test.records} == {"test"}


def test_videos_are_decoded_when_asked(root):
    record = data.load("covid_blues", root, split="train", num_frames=6)[0]
    (clip,) = media.decode_record(record).videos
    assert clip.frames.shape == (6, 48, 64, 3)
    assert clip.seconds_per_frame == pytest.approx(19 / 25 / 5)


def test_the_prompt_tells_nothing_of_the_patient(root):
    prompts = [conversation(r) for r in data.load("covid_blues", root, split="train").records]
    assert prompts.count(prompts[0]) == len(prompts)
    assert [part["type"] for part in prompts[0][0]["content"]] == ["video", "text"]


@pytest.mark.parametrize(
    "absent,message",
    [
        (["clinical_variables.csv", "severity.csv"], "missing clinical_variables.csv, severity.csv; get the dataset"),
        (["severity.csv"], "missing severity.csv; get the dataset from https://"),
    ],
)
def test_all_that_is_missing_is_named_at_once(root, absent, message):
    for name in absent:
        (root / name).unlink()
    with pytest.raises(ValueError, match=message):
        covid_blues.load(root, split="train")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="missing clinical_variables.csv, severity.csv, lus_videos"):
        covid_blues.load(tmp_path / "nowhere", split="train")


def test_videos_nobody_described(root):
    covid_fixture.video(root / "lus_videos" / "patient_3_R2.mp4")
    covid_fixture.video(root / "lus_videos" / "patient_77_L1.mp4")
    with pytest.raises(ValueError, match=r"2 videos in .*lus_videos have no row \(patient_3_R2, patient_77_L1\)"):
        covid_blues.load(root, split="train")


def test_all_bad_rows_are_named_at_once(root):
    text = CLINICAL.replace("\r\n3,0,0,0.0", "\r\n3,0,0,2.0").replace("\r\n20,1,", "\r\n20,,").replace("100,", "x,")
    (root / "clinical_variables.csv").write_text(text + "15,1,1,1.0,-99,78.0\r\n15,1\r\n")
    with pytest.raises(ValueError) as raised:
        covid_blues.load(root, split="train")
    for part in (
        "5 bad rows",
        "line 3: sex is '2.0'",
        "line 4: patient 20: cov_test is ''",
        "line 5: patient_id is 'x'",
    ):
        assert part in str(raised.value)
    assert "line 6: patient 15 is there twice; line 7: 2 fields" in str(raised.value)
    (root / "clinical_variables.csv").write_text(CLINICAL)
    (root / "severity.csv").write_text(SEVERITY + "patient_15_L2,2.0,yes,no,\npatient_77_L1,2.0,yes,no,\n")
    with pytest.raises(
        ValueError, match="line 7: patient_15_L2 is there twice; line 8: patient_77_L1 is of no patient"
    ):
        covid_blues.load(root, split="train")


def test_the_order_of_rows_and_columns_changes_nothing(root):
    before = [[dataclasses.astuple(r)[4:] for r in covid_blues.load(root, split=s)] for s in ("train", "test")]
    for name, text in (("clinical_variables.csv", CLINICAL), ("severity.csv", SEVERITY)):
        head, *rows = csv.reader(io.StringIO(text))
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows([[*head[::-1], "more"], *([*row[::-1], "1"] for row in rows[::-1])])
    after = [[dataclasses.astuple(r)[4:] for r in covid_blues.load(root, split=s)] for s in ("train", "test")]
    assert before == after


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([("clinical_variables.csv", CLINICAL), ("severity.csv", SEVERITY)]), st.data())
def test_damage_never_changes_another_patient(root, table, draw):
    name, text = table
    lines = text.splitlines()
    number = draw.draw(st.integers(1, len(lines) - 1))
    fields = lines[number].split(",")
    place = draw.draw(st.integers(0, len(fields) - 1))
    match draw.draw(st.sampled_from(["drop", "twice", "text", "cut"])):
        case "drop":
            del fields[place]
        case "twice":
            fields.insert(place, fields[place])
        case "text":
            fields[place] = draw.draw(st.text(st.characters(codec="utf-8"), max_size=6))
        case "cut":
            del lines[number + 1 :], fields[place:]
    lines[number] = ",".join(fields)
    for file, content in (("clinical_variables.csv", CLINICAL), ("severity.csv", SEVERITY)):
        (root / file).write_text("\n".join(lines) if file == name else content, encoding="utf-8")
    try:
        found = [*covid_blues.load(root, split="train"), *covid_blues.load(root, split="test")]
    except ValueError as error:
        assert str(root) in str(error)
        return
    right = {"3": "No COVID", "15": "Has COVID", "20": "Has COVID", "100": "No COVID"}
    damaged = re.sub(r"\D.*", "", text.splitlines()[number].removeprefix("patient_"))
    assert all(r.answer == right[r.patient] for r in found if r.patient in right and r.patient != damaged)


@pytest.mark.parametrize(
    "name,old,new,message",
    [
        ("clinical_variables.csv", "pat_age", "age", "missing columns pat_age"),
        ("clinical_variables.csv", "15,1,1", "15,-99,1", "line 2: patient 15: cov_test is '-99'"),
        ("clinical_variables.csv", "1,1,1.0", "1,1,2.0", "sex is '2.0'"),
        ("severity.csv", "B-lines", "blines", "missing columns B-lines"),
        ("severity.csv", "patient_3_R1", "patient_3_R7", "patient_3_R7"),
    ],
)
def test_tables_of_another_form(root, name, old, new, message):
    text = (root / name).read_text(encoding="utf-8")
    (root / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        covid_blues.load(root, split="train")


@pytest.mark.parametrize("options,message", [({"split": "valid"}, "'valid'"), ({"num_frames": 0}, "at least 1")])
def test_options_that_cannot_be(root, options, message):
    with pytest.raises(ValueError, match=message):
        covid_blues.load(root, **{"split": "train", **options})


@pytest.mark.skipif(not REAL.is_dir(), reason=f"COVID-BLUES is not at {REAL}")
def test_the_real_dataset_has_its_published_numbers():
    train, test = (covid_blues.load(REAL, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (266, 96)
    splits.check_leakage(train.records, test.records)
    records = [*train.records, *test.records]
    people = {r.patient: r for r in records}
    assert (len({r.patient for r in train}), len({r.patient for r in test})) == (47, 16)
    assert Counter(r.answer for r in people.values()) == {"Has COVID": 33, "No COVID": 30}
    assert Counter(r.answer for r in records) == {"Has COVID": 197, "No COVID": 165}
    assert Counter(r.sex for r in people.values()) == {"M": 41, "F": 22}
    bins = Counter(demographics.age_name(r.age) for r in people.values())
    assert bins == {"26–50": 12, "51–75": 32, ">75": 19}
    assert Counter(r.extra["severity"] for r in records) == {"0.0": 120, "1.0": 111, "2.0": 83, "3.0": 48}
    assert {r.extra["a_lines"] for r in records} | {r.extra["b_lines"] for r in records} == {"yes", "no"}
    (clip,) = media.decode_record(test[0]).videos
    assert clip.frames.shape == (4, 350, 350, 3)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"COVID-BLUES is not at {REAL}")
def test_every_real_video_decodes():
    records = [r for split in ("train", "test") for r in covid_blues.load(REAL, split=split)]
    clips = [media.decode_record(record).videos[0] for record in records]
    assert len(clips) == 362
    assert all(clip.frames.shape[0] == 4 and clip.frames.shape[3] == 3 for clip in clips)
    assert all(clip.frames.std() > 1 and np.all(np.diff(clip.times) > 0) for clip in clips)
    assert check.check("covid_blues", REAL).wrong == []
