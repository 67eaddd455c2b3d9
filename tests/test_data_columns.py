"""One's own columns: each is read, kept as an attribute or named, whatever it is called; nothing is lost in silence."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fairgrpo_jax import config as options, data, sources
from fairgrpo_jax.data.__main__ import main
from fairgrpo_jax.data.datasets import jsonl


ROW = {"prompt": "What is seen?", "answer": "Nodule"}


def rows(path, *given):
    path.write_text("".join(json.dumps(ROW | row) + "\n" for row in given))
    return path


def load(path, **more):
    return jsonl.load(path.parent, split=path.stem, **more)


@pytest.mark.parametrize("name", ["patient", "patient_id", "Patient_ID", "subject_id", "SubjectID", "PATIENT"])
def test_a_patient_of_any_name_is_the_unit_of_the_split(tmp_path, name):
    path = rows(tmp_path / "all.jsonl", *({name: f"P{i // 3}"} for i in range(60)))
    train, test = (jsonl.load(path, split=split) for split in ("train", "test"))
    patients = [{record.patient for record in source.records} for source in (train, test)]
    assert len(train) + len(test) == 60 and not patients[0] & patients[1] and len(patients[0] | patients[1]) == 20
    assert all("no column patient" not in note for note in train.notes)


def test_without_a_patient_it_is_said(tmp_path):
    source = load(rows(tmp_path / "train.jsonl", {"race": "Black"}))
    assert source.notes == (
        "columns that are read: answer, prompt",
        "columns that are kept as attributes: race",
        "no column patient, patient_id or subject_id: every row counts as its own patient",
    )


@pytest.mark.parametrize("shown", [{}, {"prompt": [{"role": "user", "content": "What is seen?"}]}])
def test_rows_that_name_no_patient_are_told(tmp_path, shown):
    """Whether they are read by column or one by one."""
    told = ({"patient_id": name} for name in ("P1", "", None, "P1", " "))
    source = load(rows(tmp_path / "train.jsonl", *(shown | row for row in told)))
    assert source.notes[1:] == (
        "3 of 5 rows name no patient and count as patients of their own, who can be on both sides of a split: line 2, "
        "3, 5",
    )
    assert len({record.patient for record in source}) == 4


def test_splits_of_other_names_are_told_and_of_other_spellings_refused(tmp_path):
    names = ["train", "test", "val", "train", "val"]
    path = rows(tmp_path / "all.jsonl", *({"patient": f"P{i}", "split": name} for i, name in enumerate(names)))
    for split, count in (("train", 2), ("test", 1)):
        source = jsonl.load(path, split=split)
        assert len(source) == count and "other splits in the column split: 'val': 2 rows" in source.notes
    assert len(jsonl.load(path, split="val")) == 2
    with pytest.raises(ValueError, match="got 'train': 2 rows, 'val': 2 rows, 'test': 1 rows in .*; wanted 'dev'"):
        jsonl.load(path, split="dev")
    rows(path, *({"patient": f"P{i}", "split": name} for i, name in enumerate(["train", "Train", "test"])))
    with pytest.raises(ValueError, match="'Train': 1 rows.*wanted 'train' for rows of that split, spelled so"):
        jsonl.load(path, split="train")


def test_capitals_do_not_matter_and_two_columns_of_one_name_must_agree(tmp_path):
    (record,) = load(rows(tmp_path / "train.jsonl", {"Sex": "F", "AGE": 60, "Race": "Black", "ID": "a"})).records
    assert (record.sex, record.age, record.uid, record.extra) == ("F", 60.0, f"{tmp_path.name}/a", {"Race": "Black"})
    (record,) = load(rows(tmp_path / "train.jsonl", {"Sex": "F", "sex": "F", "gender": "F"})).records
    assert record.sex == "F"
    for pair in ({"Sex": "F", "sex": "M"}, {"Sex": "F", "Gender": "M"}, {"patient": "a", "patient_id": "b"}):
        with pytest.raises(ValueError, match="line 1: .*differ; keep one"):
            load(rows(tmp_path / "train.jsonl", pair))


@pytest.mark.parametrize(
    "row, kinds",
    [
        ({"file_name": "a.png"}, ["image"]),
        ({"file_name": "a.mp4"}, ["video"]),
        ({"image": "a.png"}, ["image"]),
        ({"Images": ["a.png", "b.png"]}, ["image", "image"]),
        ({"video": "a.mp4"}, ["video"]),
        ({"image": "a.png", "video": "b.mp4"}, ["image", "video"]),
        ({"video": ["1.png", "2.png"], "fps": 2}, ["video"]),
    ],
)
def test_media_under_the_names_that_people_use(tmp_path, row, kinds):
    (record,) = load(rows(tmp_path / "train.jsonl", row)).records
    assert [medium.kind for medium in record.media] == kinds and not record.extra


def test_media_that_are_overlooked_are_an_error_or_named(tmp_path):
    path = rows(tmp_path / "train.jsonl", {"scan": "1.dcm"}, {"scan": "2.dcm"})
    with pytest.raises(ValueError, match="no media, but columns scan that look like files; .*columns image=scan"):
        load(path)
    assert [r.media[0].path for r in load(path, columns={"image": "scan"}).records] == [
        tmp_path / f"{i}.dcm" for i in (1, 2)
    ]
    source = load(rows(tmp_path / "train.jsonl", {"image": "1.png", "mask": "m.png"}, {"mask": "n.png"}, {}))
    assert "column mask looks like files of media; it is not read as such" in source.notes
    assert source.notes[-1] == "2 of 3 rows have no media: line 2, 3"


def test_columns_are_given_by_hand(tmp_path):
    """The given one counts, and what had its name is kept as an attribute of another."""
    path = rows(tmp_path / "train.jsonl", {"label": "Edema", "mrn": 7, "patient_id": "x"})
    source = load(path, columns={"answer": "label", "patient": "mrn"})
    (record,) = source.records
    assert (record.answer, record.patient) == ("Edema", "7")
    assert record.extra == {"answer (not read)": "Nodule", "patient_id (not read)": "x"}
    assert source.notes[0] == "columns that are read: label as answer, mrn as patient, prompt"
    with pytest.raises(ValueError, match="got columns lable, which no row has; wanted some of answer, label, mrn"):
        load(path, columns={"answer": "lable"})
    with pytest.raises(ValueError, match="got columns for labels; wanted some of age, answer"):
        load(path, columns={"labels": "label"})


def test_codes_mean_what_they_are_told_to(tmp_path):
    path = rows(tmp_path / "train.jsonl", {"Sex": 1, "age": "999"}, {"Sex": 2, "age": "63 years"}, {"Sex": "F"})
    with pytest.raises(ValueError, match=r"line 1: sex is '?1'?.*--data.codes sex.CODE=F.*line 1|line 2"):
        load(path)
    codes = data.codes(["sex.1=M", "sex.2=F", "age.999="])
    source = load(path, codes=codes)
    assert [(r.sex, r.age) for r in source.records] == [("M", None), ("F", 63.0), ("F", None)]
    assert "codes: age '999' as unknown, sex '1' as M, sex '2' as F" in source.notes
    more = codes | {"sex": codes["sex"] | {"3": "F"}}
    assert "codes that no row has: sex.3" in load(path, codes=more).notes
    rows(tmp_path / "test.jsonl", {"Sex": 2})
    config = options.Config(data=options.Data(name="jsonl", root=tmp_path, codes=("sex.1=M", "sex.2=F", "age.999=")))
    found = sources.load(config)
    assert {r.sex for use in ("train", "test") for r in found[use].records} == {"M", "F"}
    for given in (("sex=M",), ("sex.1",)):
        with pytest.raises(ValueError, match="wanted COLUMN.CODE=VALUE"):
            options.Data(codes=given)
        with pytest.raises(ValueError, match="wanted COLUMN.CODE=VALUE"):
            data.codes(given)


def test_a_class_label_is_its_name(tmp_path):
    """The metadata that Hugging Face's datasets writes, here by hand."""
    names = ["Normal", "Nodule"]
    features = {"answer": {"names": names, "_type": "ClassLabel"}, "site": {"names": ["A", "B"], "_type": "ClassLabel"}}
    features |= {"prompt": {"dtype": "string", "_type": "Value"}, "many": [{"dtype": "string", "_type": "Value"}]}
    table = pa.table({"prompt": ["?", "?"], "answer": [1, 0], "site": [1, -1]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train.parquet")
    first, second = jsonl.load(tmp_path, split="train").records
    assert (first.answer, second.answer) == ("Nodule", "Normal") and first.choices == ("Normal", "Nodule")
    assert first.extra == {"site": "B"} and second.extra == {"site": ""}


def test_what_verl_knows_of_the_patient_is_read(tmp_path):
    info = {"index": 3, "answer": "no", "split": "train", "sex": "M", "age": 50, "patient_id": "p", "race": "Asian"}
    (record,) = load(rows(tmp_path / "train.jsonl", {"extra_info": info, "age": 40})).records
    assert (record.answer, record.sex, record.age, record.patient) == ("Nodule", "M", 40.0, "p")
    assert record.extra == {"index": "3", "race": "Asian"}


def test_the_command_and_the_run_tell_of_columns(tmp_path, capsys):
    for split in ("train", "test"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{split}.png")
        given = {"scan": f"{split}.png", "mrn": split, "label": "Edema", "Sex": "F", "Race": "Asian"}
        rows(tmp_path / f"{split}.jsonl", given)
    columns = ["image=scan", "patient=mrn", "answer=label"]
    assert main(["check", "jsonl", "--root", str(tmp_path), "--columns", *columns, "--data.prompt-length", "80"]) == 0
    output = capsys.readouterr().out
    assert "train: columns that are read: Sex as sex, label as answer, mrn as patient, prompt, scan as image" in output
    assert "2 media files, 0 missing" in output and "0 records do not fit" in output
    config = options.Config(data=options.Data(name="jsonl", root=tmp_path, columns=tuple(columns)))
    assert sources.load(config)["train"].records[0].media[0].path == tmp_path / "train.png"
    assert "jsonl, test: columns that are kept as attributes: Race, answer" in capsys.readouterr().out
    with pytest.raises(ValueError, match="data.columns for synthetic; wanted it for one's own data alone"):
        sources.load(options.Config(data=options.Data(columns=tuple(columns))))
    with pytest.raises(ValueError, match="data.columns=.*wanted NAME=COLUMN"):
        options.Data(columns=("answer",))
