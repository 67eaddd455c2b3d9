"""JSON lists as owners publish them: strict reading, all bad rows in one error."""

import json

import pytest

from fairgrpo_jax.data.rows import inside, read_json, text


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_rows_are_counted_from_one(tmp_path):
    path = write(tmp_path / "a.json", b"\xef\xbb\xbf" + b'[{"qid": 1, "x": "\xe8\x82\xba"},\r\n {"y": 0, "qid": "2"}]')
    assert list(read_json(path, ["qid"])) == [(1, {"qid": 1, "x": "肺"}), (2, {"y": 0, "qid": "2"})]


@pytest.mark.parametrize(
    "content,message",
    [
        (b'[{"qid": 1}, {"qi', r"a\.json is no JSON .*get the file again"),
        (b'[{"qid": "\xff"}]', r"a\.json is no JSON .*utf-8"),
        (b"[" * 100_000, r"a\.json is no JSON"),
        (b"", r"a\.json is no JSON"),
        ({"qid": 1}, r"a\.json holds \{'qid': 1\}; wanted a list of objects with qid"),
        ([], r"a\.json holds \[\]; wanted a list"),
    ],
)
def test_a_file_that_is_no_list(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_json(write(tmp_path / "a.json", content), ["qid"])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json does not exist; wanted a JSON list with the keys qid, answer"):
        read_json(tmp_path / "nowhere.json", ["qid", "answer"])


def test_all_bad_rows_in_one_error(tmp_path):
    rows = read_json(write(tmp_path / "a.json", [{"qid": 1}, 7, {"answer": ""}, {"qid": 4}]), ["qid"])
    got = []
    with pytest.raises(
        ValueError, match=r"a\.json: 3 bad rows: row 2: 7 is no object; row 3: missing keys qid; row 4: odd"
    ):
        for number, _ in rows:
            got.append(number)
            if number == 4:
                rows.problems.add(number, "odd")
    assert got == [1, 4]


@pytest.mark.parametrize(
    "value,want", [(" a \n b　c ", "a b c"), (3, "3"), (0, "0"), (2.5, "2.5"), ("0", "0"), ("肺", "肺")]
)
def test_text(value, want):
    assert text({"key": value}, "key") == want


@pytest.mark.parametrize("value", [None, True, [], {}, ["a"], float("nan"), float("inf"), "", " \n", "\ud800"])
def test_what_is_no_text(value):
    with pytest.raises(ValueError, match="key is "):
        text({"key": value}, "key")


def test_text_that_may_be_empty():
    assert [text(row, "key", empty=True) for row in ({}, {"key": None}, {"key": " "})] == ["", "", ""]
    with pytest.raises(ValueError, match=r"key is \[\]; wanted text"):
        text({"key": []}, "key", empty=True)


@pytest.mark.parametrize("name", ["", "/etc/a.jpg", "a/../../b.jpg", "..\\b.jpg", "C:\\a.jpg", "a\0.jpg"])
def test_names_that_lead_out_of_the_folder(name):
    with pytest.raises(ValueError, match="wanted one inside the dataset's folder"):
        inside(name)
