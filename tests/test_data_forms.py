"""One small dataset in every form that people keep data in, written without our code, gives the same records."""

import csv
import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from fairgrpo_jax import data
from fairgrpo_jax.data import forms, headers, media
from fairgrpo_jax.data.datasets import jsonl
from fairgrpo_jax.data.record import conversation
from fairgrpo_jax.data.splits import leakage


CLASSES = ["Normal", "Nodule", "Edema"]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(number):
    pixels = np.random.default_rng(number).integers(0, 255, (4 + number, 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def rows(split, count=12):
    first = 0 if split == "train" else 100
    return [
        {
            "id": f"s{first + i}",
            "prompt": f"<image>What is seen in picture {i}, “here”?",
            "answer": CLASSES[i % 3],
            "choices": CLASSES,
            "patient": f"P{first + i // 2}",
            "sex": "F" if i % 2 else None,
            "age": f"{20 + i}" if i else "90+",
            "race": "Asian" if i % 3 else None,
        }
        for i in range(count)
    ]


def with_files(root, split, prefix="images/", column="image"):
    """The rows, with the names of files, which are written."""
    found = []
    for i, row in enumerate(rows(split)):
        name = f"{prefix}{split}{i}.png"
        found.append(row | {column: name})
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(i))
    return found


def with_bytes(split, label=False):
    """The rows as a table, with the pictures inside, as Hugging Face's ``datasets`` writes it."""
    table = pa.Table.from_pylist(rows(split))
    pictures = [{"bytes": png(i), "path": f"{i}.png"} for i in range(len(table))]
    table = table.append_column("image", pa.array(pictures, PICTURE))
    features: dict[str, dict] = {"image": {"_type": "Image"}}
    if label:
        place = table.schema.get_field_index("answer")
        numbers = pa.array([CLASSES.index(answer) for answer in table["answer"].to_pylist()])
        table = table.set_column(place, "answer", numbers).drop_columns(["choices"])
        features["answer"] = {"names": CLASSES, "_type": "ClassLabel"}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def json_lines(root, split):
    (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, with_files(root, split))))


def json_list(root, split):
    (root / f"{split}.json").write_text("\ufeff" + json.dumps(with_files(root, split), indent=1), encoding="utf-8")


def json_lines_called_json(root, split):
    pd.DataFrame(with_files(root, split)).to_json(root / f"{split}.json", orient="records", lines=True)


def comma(root, split, suffix=".csv", folder="."):
    table = pd.DataFrame(with_files(root, split))
    table["choices"] = table["choices"].map(json.dumps)
    (root / folder).mkdir(exist_ok=True)
    separator = "\t" if suffix == ".tsv" else ","
    table.to_csv(root / folder / f"{split}{suffix}", index=False, sep=separator, encoding="utf-8-sig")


def tabs(root, split):
    comma(root, split, ".tsv")


def comma_in_data(root, split):
    comma(root, split, folder="data")


def parquet_with_names(root, split):
    pd.DataFrame(with_files(root, split)).to_parquet(root / f"{split}.parquet")


def parquet_with_bytes(root, split):
    pq.write_table(with_bytes(split), root / f"{split}.parquet", row_group_size=5)


def parquet_of_the_hub(root, split, folder="data", parts=3, hashed=""):
    (root / folder).mkdir(exist_ok=True)
    table, size = with_bytes(split, label=True), -(-12 // parts)
    for part in range(parts):
        name = f"{split}-{part:05d}-of-{parts:05d}{hashed}.parquet"
        pq.write_table(table.slice(part * size, size), root / folder / name, row_group_size=3)


def parts_in_the_folder(root, split):
    parquet_of_the_hub(root, split, ".", 2, "-a09b74b3ef9c3b56")


def parts_of_a_configuration(root, split):
    parquet_of_the_hub(root, split, "chest", 1)


def parts_in_a_folder_of_the_split(root, split):
    (root / split).mkdir()
    for part in range(2):
        pq.write_table(with_bytes(split).slice(6 * part, 6), root / split / f"{part:04d}.parquet")


def arrow_stream(path, table):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def saved(folder, split, label=True):
    """As ``datasets`` saves a split to disk; see tests/parity/test_forms.py."""
    folder.mkdir(parents=True)
    names = [f"data-{part:05d}-of-00002.arrow" for part in range(2)]
    for part, name in enumerate(names):
        arrow_stream(folder / name, with_bytes(split, label).slice(7 * part, 7))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": split}))
    (folder / "dataset_info.json").write_text("{}")


def saved_to_disk(root, split):
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    saved(root / split, split)


def arrow_file(root, split):
    table = with_bytes(split)
    with pa.OSFile(str(root / f"{split}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def image_folder(root, split, form="jsonl"):
    (root / split).mkdir(parents=True)
    table = pd.DataFrame(with_files(root / split, split, "pictures/", "file_name"))
    if form == "jsonl":
        table.to_json(root / split / "metadata.jsonl", orient="records", lines=True)
    elif form == "parquet":
        table.to_parquet(root / split / "metadata.parquet")
    else:
        table["choices"] = table["choices"].map(json.dumps)
        table.to_csv(root / split / "metadata.csv", index=False)


def image_folder_csv(root, split):
    image_folder(root, split, "csv")


def image_folder_parquet(root, split):
    image_folder(root, split, "parquet")


FORMS = [
    *(json_lines, json_list, json_lines_called_json, comma, tabs, comma_in_data, parquet_with_names),
    *(parquet_with_bytes, parquet_of_the_hub, parts_in_the_folder, parts_of_a_configuration),
    *(parts_in_a_folder_of_the_split, saved_to_disk, arrow_file, image_folder, image_folder_csv, image_folder_parquet),
]


def made(form, folder, name="mine"):
    root = folder / form.__name__ / name
    root.mkdir(parents=True)
    for split in ("train", "test"):
        form(root, split)
    return root


def plain(record):
    """A record without the places of its media."""
    return dataclasses.replace(record, media=())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_records_prompts_and_pictures(form, tmp_path):
    root = made(form, tmp_path)
    for split in ("train", "test"):
        found = data.load("jsonl", root, split=split)
        assert len(found) == 12 and forms.splits(root) == ("train", "test")
        for i, (record, row) in enumerate(zip(found.records, rows(split), strict=True)):
            assert record.uid == f"mine/{row['id']}" and (record.dataset, record.split) == ("mine", split)
            assert (record.patient, record.sex, record.answer) == (row["patient"], row["sex"], row["answer"])
            assert record.choices == tuple(CLASSES) and record.age == (20.0 + i if i else 90.0)
            told = {"race": row["race"] or ""} | ({} if i else {"age_told": "90+"})
            assert record.extra == told
            (message,) = conversation(record)
            text = {"type": "text", "text": "\n".join([row["prompt"].removeprefix("<image>"), *CLASSES])}
            assert message["content"] == [{"type": "image"}, text]
            (picture,) = record.media
            assert picture.pixels is None
            np.testing.assert_array_equal(media.decode(picture), np.asarray(Image.open(io.BytesIO(png(i)))))
            assert headers.sizes(record).images[0].shape == (4 + i, 9, 3)
    both = [record for split in ("train", "test") for record in data.load("jsonl", root, split=split).records]
    assert leakage(both) == []


def alone(form, folder):
    """One file, or a folder that holds one split saved alone."""
    if form is saved_to_disk:
        saved(folder / "mine", "train")
        return folder / "mine"
    folder.mkdir()
    form(folder, "train")
    (path,) = [path for path in folder.iterdir() if path.name.startswith("train.")]
    return path.rename(folder / f"mine{path.suffix}")


@pytest.mark.parametrize(
    "form", [json_list, comma, tabs, parquet_with_bytes, arrow_file, saved_to_disk], ids=lambda form: form.__name__
)
def test_one_file_of_any_form_is_split_alike(form, tmp_path):
    wanted = alone(json_lines, tmp_path / "lines")
    path = alone(form, tmp_path / "other")
    for split in ("train", "test"):
        one, other = (jsonl.load(root, split=split) for root in (wanted, path))
        assert list(map(plain, one)) == list(map(plain, other)) and len(one)
        for this, that in zip(one, other, strict=True):
            np.testing.assert_array_equal(media.decode(this.media[0]), media.decode(that.media[0]))


def test_numbers_are_the_same_where_a_table_has_them_as_text(tmp_path):
    told = [
        {"prompt": "?", "answer": 2, "videos": [["1.png", "2.png"]], "fps": 2.5, "age": 61, "patient": 7, "grade": 3}
    ]
    told += [told[0] | {"videos": ["1.mp4", "2.mp4"], "fps": 25, "age": 61.5, "patient": 8}]
    roots = [tmp_path / name / "mine" for name in ("lines", "table", "parquet")]
    for root in roots:
        root.mkdir(parents=True)
    (roots[0] / "train.jsonl").write_text("\n".join(map(json.dumps, told)))
    table = pd.DataFrame(told)
    table.assign(videos=table["videos"].map(json.dumps)).to_csv(roots[1] / "train.csv", index=False)
    pq.write_table(pa.Table.from_pylist([told[0] | {"videos": ["1.mp4"]}, told[1]]), roots[2] / "train.parquet")
    lines, table, parquet = ([*jsonl.load(root, split="train")] for root in roots)
    number = [dataclasses.replace(plain(record), uid="") for record in lines]
    assert all([dataclasses.replace(plain(record), uid="") for record in found] == number for found in (table, parquet))
    for found in (lines, table):
        assert [medium.fps for record in found for medium in record.media] == [2.5, 25.0, 25.0]
    assert [medium.fps for record in parquet for medium in record.media] == [2.5, 25.0, 25.0]
    assert [record.age for record in parquet] == [61.0, 61.5] and parquet[0].extra == {"grade": "3"}


def test_rows_without_ids_are_counted_through_all_parts(tmp_path):
    for part in range(3):
        table = pa.table({"prompt": ["?"] * 2, "answer": [f"{part}", "x"]})
        pq.write_table(table, tmp_path / f"train-{part}.parquet")
    assert [r.uid.rpartition("/")[2] for r in jsonl.load(tmp_path, split="train")] == [
        f"train-{i}" for i in range(1, 7)
    ]
    pq.write_table(pa.table({"prompt": ["?", "?"], "answer": ["", "x"]}), tmp_path / "train-1.parquet")
    with pytest.raises(ValueError, match=r"train-\*.parquet: 1 bad rows: row 3: answer is missing"):
        jsonl.load(tmp_path, split="train")


def test_an_image_folder_by_class(tmp_path):
    for i, name in enumerate(["nevus", "melanoma", "nevus"]):
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name / f"{i}.png").write_bytes(png(i))
    (tmp_path / "train" / "nevus" / ".DS_Store").touch()
    source = jsonl.load(tmp_path, split="train")
    found = [(record.answer, str(record.media[0].path)[-5:]) for record in source]
    assert found == [("melanoma", "1.png"), ("nevus", "0.png"), ("nevus", "2.png")]
    assert source[0].choices == ("melanoma", "nevus") and source[0].question == forms.QUESTION
    assert any(forms.QUESTION in note for note in source.notes)
    np.testing.assert_array_equal(media.decode(source[1].media[0]), np.asarray(Image.open(io.BytesIO(png(0)))))
    (tmp_path / "train" / "nevus" / "notes.txt").touch()
    with pytest.raises(ValueError, match="train has nevus/notes.txt; wanted a folder of images for each"):
        jsonl.load(tmp_path, split="train")
    (tmp_path / "test" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="test has one folder, images; wanted"):
        jsonl.load(tmp_path, split="test")
    json_lines(tmp_path, "test")  # folders of images beside a table are its images
    assert len(jsonl.load(tmp_path, split="test")) == 12


def test_several_forms_are_refused_by_name(tmp_path):
    json_lines(tmp_path, "train")
    parquet_of_the_hub(tmp_path, "train")
    saved(tmp_path / "train", "train")
    wanted = r"has train.jsonl, data/train-\*.parquet, train/state.json of .*remove the others, or give the folder of"
    with pytest.raises(ValueError, match=wanted):
        jsonl.load(tmp_path, split="train")
    assert len(jsonl.load(tmp_path / "data", split="train")) == 12
    for name in ("chest", "skin"):
        parquet_of_the_hub(tmp_path, "test", name)
    with pytest.raises(ValueError, match=r"has chest/test-\*.parquet, skin/test-\*.parquet of .*wanted one"):
        jsonl.load(tmp_path, split="test")


def test_parts_that_are_missing_are_named(tmp_path):
    parquet_of_the_hub(tmp_path, "train")
    (tmp_path / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match="data misses train-00001-of-00003.parquet; wanted all parts"):
        jsonl.load(tmp_path, split="train")
    parquet_of_the_hub(tmp_path, "train", parts=2)
    with pytest.raises(ValueError, match="data has train-00000-of-00002.parquet, .* wanted all parts of one set"):
        jsonl.load(tmp_path, split="train")
    saved(tmp_path / "test", "test")
    (tmp_path / "test" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match="test misses data-00001-of-00002.arrow, which state.json names"):
        jsonl.load(tmp_path, split="test")
    for damage in ("{", "[]", '{"_data_files": [1]}', "[" * 100_000):
        (tmp_path / "test" / "state.json").write_text(damage)
        with pytest.raises(ValueError, match="state.json is damaged"):
            jsonl.load(tmp_path, split="test")


def test_other_splits_are_named(tmp_path):
    for split in ("train", "validation", "test"):
        json_lines(tmp_path, split)
    assert "other splits that are there: validation" in jsonl.load(tmp_path, split="train").notes
    assert all("other splits" not in note for note in jsonl.load(tmp_path, split="validation").notes)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(ValueError, match="has none of test.jsonl.* \\(there are train, validation\\); wanted one"):
        jsonl.load(tmp_path, split="test")
    with pytest.raises(ValueError, match="nowhere does not exist; wanted a folder with train.jsonl"):
        jsonl.load(tmp_path / "nowhere", split="train")


BAD_LISTS = {
    '[{"prompt": "a", "answer": 1}, {"prompt": "b"': "row 2: or below: no JSON",
    '[{"prompt": "a", "answer": 1} {"prompt": "b"}]': "row 1: or below: no JSON .no comma at character 30",
    '[{"prompt": "a", "answer": 1}] x': "row 1: or below: no JSON .more behind its end",
    '[7, {"prompt": "a", "answer": 1, "answer": 2}, {"prompt": "\\ud800", "answer": 1}]': (
        "3 bad rows: row 1: 7 is no object; row 2: no JSON .keys answer are there twice.; row 3: no JSON"
    ),
    '[{"prompt": "a"}, {"prompt": "b"}]': "2 bad rows: row 1: answer is missing.*; row 2: answer is missing",
    "[" * 100_000: "row 1: or below: no JSON",
    "[": "row 1: or below: no JSON",
}


@pytest.mark.parametrize("text", BAD_LISTS, ids=range(len(BAD_LISTS)))
def test_bad_rows_of_a_list_are_named(tmp_path, text):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ValueError, match=BAD_LISTS[text]):
        jsonl.load(tmp_path, split="train")


BAD_TABLES = {
    "prompt,answer\n?,a\n?\n?,a,b\n": "2 bad rows: line 3: 1 fields, the header has 2; line 4: 3 fields",
    'prompt,answer\n"?"x,a\n': "line 2: ",
    'prompt,answer\n"?\nx,a\n': "line 2: ",
    "prompt,answer\n?,\n": "line 2: answer is missing",
    "prompt,answer,answer\n?,a,a\n": "columns answer are there more than once",
    "prompt;answer\n?;a\n?;a,b;c\n": "line 3: 3 fields, the header has 2",
    "Frage,answer\n?,a\n": "has the columns Frage, answer; wanted one named prompt, .*--data.columns prompt=COL",
    f"prompt,answer\n?,{'a' * 200_000}\n": "line 2: field larger than .* is a quote left open",
    "prompt,answer,choices\n?,a,a;b\n": "choices is .a;b.; wanted a list, in a table as JSON: ",
    "": "is empty; wanted a table with a header",
    'prompt,answer,choices\n?,a,"[""b"""\n': "choices is .* wanted a list",
}


@pytest.mark.parametrize("text", BAD_TABLES, ids=range(len(BAD_TABLES)))
def test_bad_rows_of_a_table_are_named(tmp_path, text):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=BAD_TABLES[text]):
        jsonl.load(tmp_path, split="train")


def test_what_pandas_writes_by_default(tmp_path):
    """The numbers of rows are a column without a name."""
    pd.DataFrame({"prompt": ["?"], "answer": ["a"], "Age": [61], "race": [None]}).to_csv(tmp_path / "train.csv")
    (record,) = jsonl.load(tmp_path, split="train").records
    assert (record.age, record.extra) == (61.0, {"Unnamed: 0": "0", "race": ""})
    (tmp_path / "train.csv").write_bytes("prompt,answer\n?,ä\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        jsonl.load(tmp_path, split="train")


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).map(str.strip)
said = words.filter(lambda text: text and not set(text) & {"<", "\\"})  # no tags, and no boxes
answered = st.fixed_dictionaries(
    {"prompt": said, "answer": said},
    optional={"race": words.filter(bool), "finding": words, "sex": st.sampled_from(["F", "male"])},
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(answered, min_size=1, max_size=4))
def test_any_rows_are_the_same_in_every_form(tmp_path, some):
    """But for what looks like JSON in a cell of a table."""
    names = sorted({name for row in some for name in row})
    some = [{name: row.get(name) for name in names} | {"id": f"{i}"} for i, row in enumerate(some)]
    if any(str(value)[:1] in ("[", "{") for row in some for value in row.values()):
        return
    roots = [tmp_path / name / "mine" for name in ("lines", "list", "csv", "parquet", "saved")]
    for root in roots:
        root.mkdir(parents=True, exist_ok=True)
    lines, listed, table, parquet, saved_root = roots
    (lines / "train.jsonl").write_text("\n".join(map(json.dumps, some)))
    (listed / "train.json").write_text(json.dumps(some, ensure_ascii=False), encoding="utf-8")
    with (table / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names, "id"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(some)
    pq.write_table(pa.Table.from_pylist(some), parquet / "train.parquet")
    (saved_root / "train").mkdir(exist_ok=True)
    arrow_stream(saved_root / "train" / "a.arrow", pa.Table.from_pylist(some))
    (saved_root / "train" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    found = [list(jsonl.load(root, split="train")) for root in roots]
    assert all(records == found[0] for records in found[1:])


@pytest.mark.parametrize("text", [b"\x80{}", b"{", b"[" * 100_000])
def test_damaged_metadata_of_datasets_is_refused(text, tmp_path):
    """Read as if there were none, numbers would stand for the names of classes."""
    table = pa.table({"prompt": ["?"], "answer": [0], "split": ["train"]}).replace_schema_metadata(
        {"huggingface": text}
    )
    pq.write_table(table, tmp_path / "all.parquet")
    with pytest.raises(ValueError, match=r"all\.parquet has damaged metadata"):
        jsonl.load(tmp_path / "all.parquet", split="train")


@pytest.mark.parametrize("form", [json_lines, json_list, comma, parquet_with_bytes, saved_to_disk, image_folder])
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(draw=st.data())
def test_damaged_files_are_refused_or_read(form, draw, tmp_path):
    """A byte that is part of a word gives another word; nothing else than a ValueError is ever raised."""
    whole = tmp_path / "whole"
    if not whole.exists():
        whole.mkdir()
        form(whole, "train")
    files = [path for path in sorted(whole.rglob("*")) if path.is_file() and path.suffix != ".png"]
    path = draw.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    broken = tmp_path / "broken"
    for one in [one for one in whole.rglob("*") if one.is_file()]:
        copy = broken / one.relative_to(whole)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(one.read_bytes())
    if draw.draw(st.booleans()):
        del content[draw.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(draw.draw(st.integers(0, 4))):
        if content:
            content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    (broken / path.relative_to(whole)).write_bytes(content)
    try:
        for record in jsonl.load(broken, split="train"):
            media.decode_record(record)
    except ValueError as error:
        assert "broken" in str(error) or "train" in str(error)
