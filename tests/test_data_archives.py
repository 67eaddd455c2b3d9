"""Members of archives against the standard library's own reading of them."""

import io
import resource
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from fairgrpo_jax.data import archives, media
from fairgrpo_jax.data.record import Media


CONTENT = {
    f"figures/{i:02d}.bin": np.random.default_rng(i).integers(0, 99, 5000, np.uint8).tobytes() for i in range(20)
}


def packed(files, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.mkdir("figures")
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("inner", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("outer", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_at_every_depth(tmp_path, outer, inner):
    deepest = packed(CONTENT, inner)
    middle = packed({"more/parts.zip": deepest, "note.txt": b"n"}, outer)
    path = tmp_path / "all.zip"
    path.write_bytes(packed({"readme.txt": b"hello", "images/part.zip": middle}, outer))
    assert archives.read(path, "readme.txt") == b"hello"
    assert archives.members(path) == ("readme.txt", "images/part.zip")
    way = "images/part.zip!more/parts.zip"
    assert archives.read(path, "images/part.zip!note.txt") == b"n"
    assert archives.members(path, inside=way) == tuple(f"{way}!{name}" for name in CONTENT)
    for member, content in zip(archives.members(path, inside=way), CONTENT.values(), strict=True):
        assert archives.read(path, member) == content


def test_many_threads_read_one_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(packed({"inner.zip": packed(CONTENT)}))
    wrong = []

    def work(seed):
        for i in np.random.default_rng(seed).integers(0, 20, 60):
            name = f"figures/{i:02d}.bin"
            if archives.read(tmp_path / "a.zip", f"inner.zip!{name}") != CONTENT[name]:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_archive_that_was_replaced_is_read_anew(tmp_path):
    (tmp_path / "a.zip").write_bytes(packed({"x": b"old"}))
    assert archives.read(tmp_path / "a.zip", "x") == b"old"
    (tmp_path / "a.zip").write_bytes(packed({"y": b"", "x": b"newer"}))
    assert archives.read(tmp_path / "a.zip", "x") == b"newer"


def test_broken_archives(tmp_path):
    whole = packed(CONTENT)
    path = tmp_path / "a.zip"
    with pytest.raises(ValueError, match="a.zip does not exist"):
        archives.read(path, "x")
    for content in (b"", b"no archive at all" * 50, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.zip is broken"):
            archives.read(path, "figures/00.bin")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="a.zip has no member figures/99.bin"):
        archives.read(path, "figures/99.bin")
    damaged = bytearray(whole)
    damaged[100:110] = bytes(10)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="a.zip is broken .*figures/00.bin"):
        archives.read(path, "figures/00.bin")
    assert archives.read(path, "figures/19.bin") == CONTENT["figures/19.bin"]
    path.write_bytes(packed({"x": b"text" * 100}, zipfile.ZIP_LZMA))
    with pytest.raises(ValueError, match="packed by method 14; unpack"):
        archives.read(path, "x")
    stored = bytearray(packed({"x": b"text" * 100}, zipfile.ZIP_STORED))
    stored[stored.index(b"text")] = ord("n")
    path.write_bytes(stored)
    with pytest.raises(ValueError, match="x does not have its checksum"):
        archives.read(path, "x")


def test_images_and_errors_of_images_inside(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    inner = packed({"imgs_part_1/PAT_1.png": buffer.getvalue(), "imgs_part_1/PAT_2.png": buffer.getvalue()[:90]})
    (tmp_path / "z.zip").write_bytes(packed({"images/imgs_part_1.zip": inner}))

    def inside(name):
        return Media("image", path=tmp_path / "z.zip", member=f"images/imgs_part_1.zip!imgs_part_1/{name}")

    np.testing.assert_array_equal(media.decode(inside("PAT_1.png")), pixels)
    with pytest.raises(ValueError, match=r"z.zip!images/imgs_part_1.zip!imgs_part_1/PAT_2.png is broken"):
        media.decode(inside("PAT_2.png"))


def bomb(path, size, says):
    """A zip of zeros, whose directory and local header say another size."""
    path.write_bytes(packed({"zeros": bytes(size)}))
    data = path.read_bytes()
    path.write_bytes(data.replace(size.to_bytes(4, "little"), says.to_bytes(4, "little")))


def test_no_more_is_unpacked_than_the_directory_says(tmp_path):
    bomb(tmp_path / "a.zip", 300 << 20, says=100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="zeros does not have its checksum"):
        archives.read(tmp_path / "a.zip", "zeros")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_a_member_larger_than_memory_should_hold_is_refused(tmp_path):
    bomb(tmp_path / "a.zip", 1 << 20, says=3 << 30)
    with pytest.raises(ValueError, match=f"zeros has {3 << 30} bytes; wanted at most {2 << 30}"):
        archives.read(tmp_path / "a.zip", "zeros")
