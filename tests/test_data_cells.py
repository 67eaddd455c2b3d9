"""Bytes in Parquet and Arrow stay where they are until they are asked for, and are those that pyarrow reads."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from fairgrpo_jax.data import cells, headers, media
from fairgrpo_jax.data.cells import Address
from fairgrpo_jax.data.check import check
from fairgrpo_jax.data.datasets import jsonl
from fairgrpo_jax.data.prepare import prepare
from fairgrpo_jax.data.record import Media


PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(np.full((3 + number, 5, 3), number, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def stream(path, table, size):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=size)
    return path


def resolved(value):
    """A value with the bytes in place of their addresses."""
    if isinstance(value, Address):
        return cells.read(value.path, value.member)
    if isinstance(value, dict):
        return {key: resolved(one) for key, one in value.items()}
    return [resolved(one) for one in value] if isinstance(value, list) else value


def has_bytes(value):
    """Whether there are bytes in a value, however deep."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, bytes) or any(map(has_bytes, inside))


content = st.none() | st.binary(max_size=6)
picture = st.none() | st.fixed_dictionaries({"bytes": content, "path": st.none() | st.text(max_size=3)})
KINDS = {
    "raw": (pa.binary(), content),
    "large": (pa.large_binary(), content),
    "image": (PICTURE, picture),
    "bare": (pa.struct([("bytes", pa.binary())]), st.none() | st.fixed_dictionaries({"bytes": content})),
    "images": (pa.list_(PICTURE), st.none() | st.lists(picture, max_size=3)),
    "a.b/c": (pa.large_list(pa.binary()), st.none() | st.lists(content, max_size=3)),
    "deep": (pa.struct([("meta", PICTURE)]), st.none() | st.fixed_dictionaries({"meta": picture})),
    "text": (pa.string(), st.none() | st.text(max_size=3)),
}
tables = st.lists(st.fixed_dictionaries({name: values for name, (_, values) in KINDS.items()}), max_size=9)


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(tables, st.integers(1, 4), st.booleans(), st.booleans())
def test_cells_are_what_pyarrow_reads(tmp_path, rows, size, told, whole):
    """With statistics and without, in row groups and batches of any size, with and without missing values."""
    if whole:
        rows = [row for row in rows if all(row[name] is not None for name in KINDS)]
    table = pa.Table.from_pylist(rows, pa.schema([(name, kind) for name, (kind, _) in KINDS.items()]))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=size, write_statistics=told)
    stream(tmp_path / "a.arrow", table, size)
    for path in (tmp_path / "a.parquet", tmp_path / "a.arrow"):
        found = list(cells.rows(path))
        assert [resolved(row) for row in found] == rows
        assert not has_bytes(found)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_two_columns_of_one_name_are_refused(tmp_path, suffix):
    """As in CSV: of two columns one would be lost."""
    table, path = pa.table([pa.array(["a"]), pa.array(["b"])], names=["answer", "answer"]), tmp_path / f"x.{suffix}"
    pq.write_table(table, path) if suffix == "parquet" else stream(path, table, 1)
    with pytest.raises(ValueError, match="several columns answer; wanted different names"):
        list(cells.rows(path))


def test_bytes_that_are_all_there_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "train.parquet"
    rows = [{"image": {"bytes": b"x", "path": None}, "images": [{"bytes": b"y", "path": "p"}] * i} for i in range(4)]
    table = pa.Table.from_pylist(rows, pa.schema([("image", PICTURE), ("images", pa.list_(PICTURE))]))
    pq.write_table(table.append_column("raw", pa.array([b"z"] * 4)), path)
    asked = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: asked.append(k["columns"]) or real(*a, **k))
    assert len(list(cells.rows(path))) == 4
    assert asked == [["image.path", "images.list.element.path"]]


def test_images_are_read_when_they_are_decoded(tmp_path):
    path = tmp_path / "train.parquet"
    rows = [{"prompt": "?", "answer": "a", "image": {"bytes": png(i), "path": None}} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    source = jsonl.load(tmp_path, split="train")
    for i, record in enumerate(source):
        (picture,) = record.media
        assert picture.pixels is None and picture.path == path and len(pickle.dumps(record)) < 1000
        (again,) = pickle.loads(pickle.dumps(record)).media
        assert media.content(again) == png(i) and media.decode(again).shape == (3 + i, 5, 3)
    with headers.Known(tmp_path / "known.sqlite") as known:
        assert [headers.sizes(record, known).images[0].shape[0] for record in source] == [3, 4, 5, 6, 7, 8]
    with headers.Known(tmp_path / "known.sqlite") as known, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "read", None)
        assert headers.sizes(source[5], known).images[0].shape == (8, 5, 3)
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(media.decode_record, list(source) * 20))
    assert [one.images[0].shape[0] for one in decoded] == [3, 4, 5, 6, 7, 8] * 20


def test_a_film_in_a_cell(tmp_path):
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        film = container.add_stream("mpeg4", rate=5)
        film.width, film.height, film.pix_fmt = 32, 16, "yuv420p"
        for i in range(6):
            picture = np.full((16, 32, 3), 40 * i, np.uint8)
            container.mux(film.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(film.encode())
    row = {"prompt": "<video>?", "answer": "a", "video": {"bytes": buffer.getvalue(), "path": "a.mp4"}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    (record,) = jsonl.load(tmp_path, split="train", num_frames=3)
    assert media.decode_record(record).videos[0].frames.shape == headers.sizes(record).videos[0].frames.shape
    assert media.decode(record.media[0]).shape == (3, 16, 32, 3)


def test_few_row_groups_are_kept_and_large_ones_refused(tmp_path, monkeypatch):
    path = tmp_path / "train.parquet"
    rows = [{"prompt": "?", "answer": "a", "image": png(i) + bytes(4000)} for i in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    monkeypatch.setattr(cells, "HELD", 20_000)
    source = jsonl.load(tmp_path, split="train")
    assert "row groups hold up to 0 MiB of media" in source.notes[0]
    groups = cells._Groups()
    monkeypatch.setattr(cells, "_groups", groups)
    for record in source:
        assert media.content(record.media[0]).startswith(b"\x89PNG")
    assert [key[-2] for key in groups._held] == [2, 3]
    monkeypatch.setattr(cells, "LARGEST", 100)
    with pytest.raises(ValueError, match="row group 0 holds .* bytes of image.*row_group_size=100"):
        jsonl.load(tmp_path, split="train")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_cell_that_is_not_there(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    table = pa.table({"image": pa.array([{"bytes": b"x", "path": "p"}, None], PICTURE), "id": ["a", "b"]})
    pq.write_table(table, path) if suffix == ".parquet" else stream(path, table, 1)
    for member in ("2/image", "-1/image", "1/image", "0.0/image", "0/id", "0/nothing", "x/image", ""):
        with pytest.raises(ValueError, match=rf"a\{suffix} (has no|is no)"):
            cells.read(path, member)
    with pytest.raises(ValueError, match="image .*nowhere.* does not exist"):
        media.decode(Media("image", path=tmp_path / f"nowhere{suffix}", member="0/image"))
    with pytest.raises(ValueError, match=r"nowhere.* is no "):
        cells.read(tmp_path / f"nowhere{suffix}", "0/image")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"a\{suffix} is no "):
        cells.read(path, "0/image")


def test_a_file_that_changes_is_read_anew(tmp_path):
    path = tmp_path / "a.parquet"
    for content in (b"first", b"second, longer"):
        pq.write_table(pa.table({"image": [content]}), path)
        assert cells.read(path, "0/image") == content


def test_check_and_prepare_know_cells(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    for split, first in (("train", 0), ("test", 3)):
        rows = [
            {"prompt": "?", "answer": "a", "image": {"bytes": png(i), "path": None}} for i in range(first, first + 3)
        ]
        pq.write_table(pa.Table.from_pylist(rows), root / f"{split}-00000-of-00001.parquet")
    report = check("jsonl", root)
    assert report.wrong == [] and "6 media files, 0 missing" in report.lines
    prepare("jsonl", root, tmp_path / "out")
    one, other = (jsonl.load(root, split="test"), check("jsonl", tmp_path / "out"))
    assert other.wrong == [] and media.decode(one[2].media[0]).shape == (8, 5, 3)


def test_a_wrong_offset_of_an_arrow_file_is_refused(tmp_path):
    """pyarrow itself would read memory that is not the file's."""
    path = stream(tmp_path / "train.arrow", pa.table({"prompt": ["abcd", "efgh"], "answer": ["x", "y"]}), 2)
    content, offsets = path.read_bytes(), np.array([0, 4, 8], np.int32).tobytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, np.array([0, 1 << 30, 8], np.int32).tobytes()))
    with pytest.raises(ValueError, match="train.arrow is no Arrow .*write it again"):
        jsonl.load(tmp_path, split="train")
