"""Owners' tables against pandas' reading of them, and damaged rows against the undamaged."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fairgrpo_jax.data import tables


PLAIN = "id,sex,age\na,F,61\nb,M,35\nc,,7\n"


@pytest.fixture
def table(tmp_path):
    def write(content, name="people.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows(path, required=("id", "sex", "age"), **options):
    return list(tables.read_csv(path, required, **options))


EXPECTED = [
    (2, {"id": "a", "sex": "F", "age": "61"}),
    (3, {"id": "b", "sex": "M", "age": "35"}),
    (4, {"id": "c", "sex": "", "age": "7"}),
]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.rstrip("\n"),
        PLAIN + "\n\n",
        PLAIN.replace("\n", "\r\n"),
        "\ufeff" + PLAIN,
        "\ufeff" + PLAIN.replace("id,", '"id",').replace("\n", "\r\n"),
        PLAIN.replace("id,sex,age", " ID , sex,Age "),
        PLAIN.replace("a,F,61", " a ,F , 61"),
        'age,note,sex,id\n61,x,F,a\n35,,M,b\n7,"1,2",,c\n',
    ],
)
def test_forms_of_one_table(table, content):
    assert rows(table(content)) == EXPECTED


def test_tabs(table):
    assert rows(table(PLAIN.replace(",", "\t"), "HAM10000_metadata.tab")) == EXPECTED


def test_lines_are_those_of_the_file(table):
    path = table('id,"Age\n(years)",note\r\na,1,"two\nlines"\r\n\r\nb,2,x\r\n')
    assert rows(path, ["id", "Age (years)"]) == [
        (3, {"id": "a", "Age (years)": "1"}),
        (6, {"id": "b", "Age (years)": "2"}),
    ]


def test_other_spellings_and_columns_that_may_be_absent(table):
    path = table("Question,Anwser\nWhy?,So\n")
    found = tables.read_csv(path, ["Question", "Answer"], optional=["split"], aliases={"Answer": ["Anwser"]})
    assert found.columns == ("Question", "Answer")
    assert list(found) == [(2, {"Question": "Why?", "Answer": "So", "split": ""})]
    assert list(found) == list(found)  # read anew each time


def test_one_column(table):
    assert rows(table("id\na\n"), ["id"]) == [(2, {"id": "a"})]


@pytest.mark.parametrize(
    "content,message",
    [
        ("id,gender,age\n", "people.csv: missing columns sex; it has id, gender, age"),
        ("", "people.csv is empty; wanted a table with the columns id, sex, age"),
        ("id,sex,age,Sex\n", "columns sex are there more than once"),
        (PLAIN.encode("utf-16"), "people.csv: .* not UTF-8"),
        ('id,sex,"age\n', "people.csv: 1 bad rows: line 1: unexpected end of data"),
        ("id,\0sex,age\na,F,61\n", "people.csv: a NUL character in the header; get the file again"),
    ],
)
def test_headers_that_do_not_fit(table, content, message):
    with pytest.raises(ValueError, match=message):
        tables.read_csv(table(content), ["id", "sex", "age"])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="gone.csv does not exist; wanted a table with the columns id"):
        tables.read_csv(tmp_path / "gone.csv", ["id"])


def test_all_damaged_rows_are_named_and_none_is_handed_out(table):
    path = table('id,sex,age\na,F,61\nb,M\nc,M,1,2\n"d"d,F,3\ne,F,4\n' + "f\n" * 30)
    found, seen = tables.read_csv(path, ["id", "sex", "age"]), []
    with pytest.raises(ValueError) as raised:
        for line, row in found:
            seen.append((line, row["id"]))
            if row["id"] == "e":
                found.problems.add(line, "e is no id")
    assert seen == [(2, "a"), (6, "e")]
    text = str(raised.value)
    assert text.startswith(f"{path}: 34 bad rows: line 3: 2 fields, the header has 3; line 4: 4 fields, ")
    assert "line 5: " in text and "line 6: e is no id" in text and text.count("; line") == 19 and "and 14 more" in text


def test_text_that_is_not_utf8_further_down(table):
    content = (PLAIN + "d,F,1\n" * 20_000).encode() + b"\xff,F,1\n"
    with pytest.raises(ValueError, match="people.csv: .*not UTF-8"):
        rows(table(content))


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0\ufeff"), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_is_written_is_read_as_pandas_reads_it(table, content, end, mark):
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "sex", "age"), *content])
    path = table(("\ufeff" if mark else "") + buffer.getvalue())
    read = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    expected = [tuple(str(cell).strip() for cell in row) for row in read.itertuples(index=False)]
    assert [tuple(row.values()) for _, row in rows(path)] == expected


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2), st.sampled_from(["drop", "twice", "text", "cut"]), cells)
def test_damage_never_changes_another_row(table, number, damage, text):
    lines = [line.split(",") for line in PLAIN.splitlines()]
    row = lines[number + 1]
    match damage:
        case "drop":
            del row[1]
        case "twice":
            row.insert(1, row[1])
        case "text":
            row[1] = text
    content = "\n".join(map(",".join, lines)) + "\n"
    content = content[: content.rindex(row[-1])] if damage == "cut" else content
    found, seen = tables.read_csv(table(content), ["id", "sex", "age"]), {}
    try:
        for _, values in found:
            seen[values["id"]] = values
    except ValueError as error:
        assert "people.csv" in str(error)
    whole = {values["id"]: values for _, values in EXPECTED}
    for name in set(seen) & set(whole) - {row[0]}:
        assert seen[name] == whole[name]
    if damage in ("drop", "twice") or (damage == "text" and "\0" in text):
        assert row[0] not in seen and len(found.problems) == 1
