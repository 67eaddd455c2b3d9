"""What every dataset of tables must stand: other forms of its header, other orders of its rows, damaged rows."""

import csv
import io
import random
import re

import pytest
from hypothesis import HealthCheck, settings, strategies as st

from fairgrpo_jax import data
from fairgrpo_jax.data import splits
from fairgrpo_jax.data.record import conversation


FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # conftest says how many


def facts(name, root, **options):
    """All records of all splits by their uid, without the media."""
    out = {}
    for split in data.module(name).SPLITS:
        for r in data.module(name).load(root, split=split, **options):
            assert r.uid not in out and r.split == split
            out[r.uid] = (split, r.answer, r.sex, r.age, r.patient, dict(r.extra))
    return out


def check_records(name, root, **options):
    """What holds for every closed question: names, answers among the choices, no patient in two splits."""
    parts = [data.load(name, root, split=split, **options).records for split in data.module(name).SPLITS]
    splits.check_leakage(parts[0], parts[1])
    for record in (*parts[0], *parts[1]):
        assert record.dataset == name and record.uid.startswith(f"{name}/")
        assert set(record.answer.split(", ")) <= set(record.choices)
        (turn,) = conversation(record)
        assert [part["type"] for part in turn["content"]] == [media.kind for media in record.media] + ["text"]
        asked = turn["content"][-1]["text"]
        assert asked.split("\n")[1:] == list(record.choices)
    assert len({conversation(r)[0]["content"][-1]["text"] for part in parts for r in part}) == 1  # tells of nobody


def check_held_out(name, root):
    """A fifth of the patients is held out by the hash of their names alone."""
    for uid, (split, _, _, _, patient, _) in facts(name, root).items():
        assert splits.by_patient([patient], fraction=0.2, seed=0)[0] == (split == "test"), uid


def check_published(name):
    """The owner's figures add up: answers, sexes and ages each to the number of images."""
    published = data.module(name).ABOUT.published
    for kind in ("answer", "sex", "age"):
        counts = [count for key, count in published.items() if key.startswith(f"{kind}/")]
        assert not counts or sum(counts) == published["media"] / len(getattr(data.module(name), "WINDOWS", "1"))


def check_header_forms(name, root, path):
    """The table at ``path`` in other forms gives the same records; without one of its columns it is refused."""
    wanted, whole = facts(name, root), path.read_bytes()
    header, *rows = _parsed(whole)
    forms = {
        "CRLF": _written([header, *rows], "\r\n"),
        "LF": _written([header, *rows], "\n"),
        "BOM": b"\xef\xbb\xbf" + _written([header, *rows], "\n"),
        "spaces": _written([[f" {name} " for name in header], *rows], "\n"),
        "reversed": _written([row[::-1] for row in (header, *rows)], "\n"),
        "more columns": _written([["new", *header, "x y"], *(["1,2", *row, "a\nb"] for row in rows)], "\n"),
    }
    for form, content in forms.items():
        path.write_bytes(content)
        assert facts(name, root) == wanted, form
    path.write_bytes(whole)


def check_missing_column(name, root, path, column):
    """Without a column that is needed the table is refused by name."""
    whole = path.read_bytes()
    header, *rows = _parsed(whole)
    path.write_bytes(_written([[f"no {n}" if n.split() == column.split() else n for n in header], *rows], "\n"))
    with pytest.raises(ValueError, match=f"{path.name}.*missing columns {re.escape(column)}"):
        facts(name, root)
    path.write_bytes(whole)


def check_order(name, root, path):
    """Shuffled rows move no record to another split and change nothing else."""
    wanted, whole = facts(name, root), path.read_bytes()
    header, *rows = _parsed(whole)
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        path.write_bytes(_written([header, *rows], "\n"))
        assert facts(name, root) == wanted
    path.write_bytes(whole)


@st.composite
def damages(draw, content):
    """The bytes of a table after one accident."""
    header, *rows = _parsed(content)
    place, field = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(header) - 1))
    kind = draw(st.sampled_from(("drop", "double", "text", "mark", "row", "away", "cut", "bytes")))
    row = list(rows[place])
    if kind == "drop":
        del row[field]
    elif kind == "double":
        row.insert(field, row[field])
    elif kind in ("text", "mark"):
        row[field] = draw(st.text(max_size=12) if kind == "text" else st.sampled_from(('"', ',"', "\n", "\0", "é")))
    touched = [*rows[:place], row, *rows[place + 1 :]]
    if kind == "row":
        touched.insert(draw(st.integers(0, len(rows))), row)
    elif kind == "away":
        del touched[place]
    made = _written([header, *touched], "\n")
    if kind == "cut":
        return made[: draw(st.integers(0, len(made) - 1))]
    if kind == "bytes":
        at = draw(st.integers(0, len(made)))
        return made[:at] + draw(st.binary(min_size=1, max_size=3)) + made[at:]
    return made


def check_damage(name, root, path, damaged, uids):
    """After damage: an error that names the file, or answer, sex and age of undamaged rows as they were.

    Without the name of a column that need not be there, what it tells is unknown.

    Args:
        name: the dataset.
        root: its folder.
        path: the table that is damaged.
        damaged: what becomes of it.
        uids: for each of its rows the uids of the records it tells of.
    """
    before, wanted = path.read_bytes(), facts(name, root)
    path.write_bytes(damaged)
    try:
        found = facts(name, root)
    except ValueError as error:
        assert path.name in str(error)
        return
    finally:
        path.write_bytes(before)
    rows, (header, *_) = _parsed(damaged), _parsed(before)
    known = lambda got, wanted: got == wanted or (got is None and rows[:1] != [header])
    intact = [told for row, told in zip(_parsed(before)[1:], uids, strict=True) if row in rows]
    for uid in (uid for told in intact for uid in told):
        assert uid not in found or all(map(known, found[uid][1:4], wanted[uid][1:4])), uid


def _parsed(content):
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def _written(rows, end):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end).writerows(rows)
    return file.getvalue().encode("utf-8", "surrogatepass")
