"""The data layer at true size: ``python benchmarks/data.py``; each figure is printed as soon as it is there.

First the index: tables of the size of the real ones (CheXpert's 223,414 rows; the 227,000 questions of PMC-VQA with an
archive of 149,000 figures; one's own million rows as Parquet, JSON lines and CSV; 100,000 JPEG images inside Parquet)
are written with invented content and loaded, each in a process of its own; the memory is that of the records, the
process with its imports taken off. Then the headers of 100,000 images, as files and inside Parquet: the sizes that a
run asks for, and once more as it finds them remembered. Last the media: records a second from each kind of source,
decoded by one thread and by two, on noise of the usual sizes (noise compresses badly: real images decode faster).
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.csv as comma_separated
import pyarrow.parquet as pq
import pydicom.uid
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset

from fairgrpo_jax.data import media, prepare, prepared
from fairgrpo_jax.data.datasets.chexpert import FINDINGS
from fairgrpo_jax.data.record import Media, Record


CHEXPERT, PMC_VQA, FIGURES = 223_414, 227_000, 149_000
OWN, PICTURES = 1_000_000, 100_000
RNG = np.random.default_rng(0)


# ---- index -----------------------------------------------------------------------------------------------------------


def chexpert(root: Path, rows: int) -> None:
    """A table of the form and the blanks of CheXpert's; every row has a positive label."""
    for name, count in (("train", rows), ("valid", 200)):
        labels = np.array(["", "0.0", "1.0", "-1.0"], object)[
            np.searchsorted([0.7, 0.8, 0.96], RNG.random((count, len(FINDINGS))))
        ]
        labels[np.arange(count), RNG.integers(0, len(FINDINGS), count)] = "1.0"
        paths = [
            f"CheXpert-v1.0-small/{name}/patient{i // 3:05d}/study{i % 3 + 1}/view1_frontal.jpg" for i in range(count)
        ]
        columns = {
            "Path": paths,
            "Sex": [("Female", "Male")[i % 2] for i in range(count)],
            "Age": 18 + np.arange(count) % 73,
            "Frontal/Lateral": ["Frontal"] * count,
            "AP/PA": ["AP"] * count,
        }
        comma_separated.write_csv(pa.table(columns | dict(zip(FINDINGS, labels.T, strict=True))), root / f"{name}.csv")


def pmc_vqa(root: Path, rows: int) -> None:
    """Tables and an archive of the form of PMC-VQA's first version; the figures are empty."""
    figures = [f"PMC{1_000_000 + i // 2}_Fig{i % 2 + 1}_{i}.jpg" for i in range(FIGURES)]
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for name in figures:
            archive.writestr(f"images/{name}", b"")
    choices = [f" {letter}: The {letter.lower()} finding of the figure, as told by its caption " for letter in "ABCD"]
    for name, count in (("train", rows), ("test", 1), ("test_clean", 1)):
        columns = {
            "Figure_path": [figures[i % FIGURES] for i in range(count)],
            "Question": [
                f"What does the arrow number {i} in the left panel of the figure point at?" for i in range(count)
            ],
            "Answer": [choices[i % 4].partition(":")[2].strip() for i in range(count)],
            **{f"Choice {letter}": [choice] * count for letter, choice in zip("ABCD", choices, strict=True)},
            "Answer_label": ["ABCD"[i % 4] for i in range(count)],
        }
        comma_separated.write_csv(pa.table(columns), root / f"{name}.csv")


def own_rows(rows: range) -> dict[str, Any]:
    """Columns of one's own data, with files of images."""
    return {
        "id": [f"study-{i}" for i in rows],
        "prompt": [f"<image>What does the arrow number {i} in the left panel of the figure point at?" for i in rows],
        "answer": [("Nodule", "Normal", "Edema", "Effusion")[i % 4] for i in rows],
        "choices": [["Nodule", "Normal", "Edema", "Effusion"]] * len(rows),
        "image": [f"images/{i}.jpg" for i in rows],
        "patient_id": [f"P{i // 3}" for i in rows],
        "sex": [("F", "M")[i % 2] for i in rows],
        "age": [18 + i % 73 for i in rows],
        "race": [("Asian", "Black", "White")[i % 3] for i in rows],
    }


def parquet(root: Path, rows: int) -> None:
    """One Parquet file."""
    with pq.ParquetWriter(root / "train.parquet", pa.table(own_rows(range(1))).schema) as file:
        for start in range(0, rows, 100_000):
            file.write_table(pa.table(own_rows(range(start, min(rows, start + 100_000)))))


def comma(root: Path, rows: int) -> None:
    """The same as CSV."""
    columns = own_rows(range(rows))
    columns["choices"] = [*map(json.dumps, columns["choices"])]
    comma_separated.write_csv(pa.table(columns), root / "train.csv")


def lines(root: Path, rows: int) -> None:
    """The same as JSON lines."""
    columns = own_rows(range(rows))
    numbers = [name for name in columns if name == "age"]
    told = ", ".join(f'"{name}": ' + ("%s" if name in (*numbers, "choices") else '"%s"') for name in columns)
    columns["choices"] = [*map(json.dumps, columns["choices"])]
    with (root / "train.jsonl").open("w") as file:
        file.writelines(f"{{{told % row}}}\n" for row in zip(*columns.values(), strict=True))


def files(root: Path, rows: int) -> None:
    """The same as JSON lines, with the images."""
    jpegs = [encoded(image(320, 392), "jpeg") for _ in range(100)]
    (root / "images").mkdir()
    for i in range(rows):
        (root / "images" / f"{i}.jpg").write_bytes(jpegs[i % 100])
    lines(root, rows)


def pictures(root: Path, rows: int) -> None:
    """JPEG images inside Parquet, as on the Hugging Face Hub: parts of 10,000 rows, row groups of 100."""
    jpegs = [encoded(image(320, 392), "jpeg") for _ in range(100)]
    parts = -(-rows // 10_000)
    for part in range(parts):
        table = pa.table(own_rows(range(part * 10_000, min(rows, (part + 1) * 10_000))))
        held = [{"bytes": jpegs[i % 100], "path": f"{i}.jpg"} for i in range(len(table))]
        table = table.set_column(table.schema.get_field_index("image"), "image", pa.array(held))
        pq.write_table(table, root / f"train-{part:05d}-of-{parts:05d}.parquet", row_group_size=100)


LOAD = """
import gc, json, resource, sys, time
from fairgrpo_jax import data
module = data.module(sys.argv[1])
import csv, pyarrow.compute, pyarrow.parquet, fairgrpo_jax.data.tables, fairgrpo_jax.data.archives
pyarrow.array([1])  # imports pandas
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
before = resident()
start, used = time.perf_counter(), time.process_time()
source = data.load(sys.argv[1], sys.argv[2], split="train")
seconds, used = time.perf_counter() - start, time.process_time() - used
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e3
print(json.dumps([len(source), seconds, used, resident() - before, peak - before]))
"""
HEADERS = (
    LOAD
    + """
from pathlib import Path
from fairgrpo_jax.data import headers
rates = []
for _ in range(2):
    start = time.perf_counter()
    with headers.Known(Path(sys.argv[2]) / "known.sqlite") as known:
        for record in source.records:
            headers.sizes(record, known)
    rates.append(len(source) / (time.perf_counter() - start))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e3
print(json.dumps([len(source), *rates, peak - before]))
"""
)


def measured(program: str, name: str, root: Path) -> list[float]:
    """The figures that a program prints last, in a new process."""
    result = subprocess.run([sys.executable, "-c", program, name, root], capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


# ---- media -----------------------------------------------------------------------------------------------------------


def image(height: int, width: int) -> Image.Image:
    """Soft noise, grey."""
    small = Image.fromarray(RNG.integers(0, 255, (height // 8, width // 8), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str) -> bytes:
    """The bytes of a file of this kind."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def dicom(path: Path, compressed: bool) -> None:
    """A mammogram of 12 bits."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3.4")
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    pixels = np.asarray(image(2288, 1912)).astype(np.uint16) * 16
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.WindowCenter, file.WindowWidth, file.PixelData = 2048, 3000, pixels.tobytes()
    if compressed:
        file.compress(pydicom.uid.JPEG2000Lossless, generate_instance_uid=False)
    file.save_as(path)


def video(path: Path) -> None:
    """Four seconds, as a lung ultrasound."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 350, 350, "yuv420p"
        frame = np.asarray(image(352, 352).convert("RGB"))[:350, :350]
        for i in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(frame, i, axis=0).copy())))
        container.mux(stream.encode())


def sources(root: Path, count: int) -> dict[str, list[Record]]:
    """Records of every kind of source, ``count`` each, fewer of the large ones."""
    root.mkdir()
    jpegs, frames = [encoded(image(320, 392), "jpeg") for _ in range(count)], []
    with zipfile.ZipFile(root / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, content in enumerate(jpegs):
            (root / f"{i}.jpg").write_bytes(content)
            archive.writestr(f"images/{i}.jpg", content)
    for i in range(8):
        frames.append(root / f"frame{i}.jpg")
        frames[-1].write_bytes(encoded(image(480, 848), "jpeg"))
    for i in range(max(2, count // 20)):
        dicom(root / f"{i}.dicom", compressed=False)
        dicom(root / f"{i}.j2k.dicom", compressed=True)
    (root / "large.jpg").write_bytes(encoded(image(3000, 4000), "jpeg"))
    video(root / "v.mp4")
    few = range(max(2, count // 20))
    held = pa.table({"image": [{"bytes": content, "path": f"{i}.jpg"} for i, content in enumerate(jpegs)]})
    for name, size in (("small", 10), ("large", 1000)):
        pq.write_table(held, root / f"{name}.parquet", row_group_size=size)
    random = RNG.permutation(count).tolist()
    kinds = {
        "JPEG 392 x 320, loose": [Media("image", path=root / f"{i}.jpg") for i in range(count)],
        "the same in a zip": [Media("image", path=root / "all.zip", member=f"images/{i}.jpg") for i in range(count)],
        "the same in Parquet, row groups of 10, in any order": [cell(root / "small.parquet", i) for i in random],
        "one row group of all, in any order": [cell(root / "large.parquet", i) for i in random],
        "JPEG 4000 x 3000": [Media("image", path=root / "large.jpg")] * len(few),
        "DICOM 1912 x 2288": [Media("image", path=root / f"{i}.dicom") for i in few],
        "the same, JPEG 2000": [Media("image", path=root / f"{i}.j2k.dicom") for i in few],
        "H.264, 100 frames of 350 x 350, 4 shown": [Media("video", path=root / "v.mp4", num_frames=4)] * len(few),
        "8 JPEG frames 848 x 480": [Media("video", frames=tuple(frames), fps=1.0)] * len(few),
    }
    records = {kind: [of(medium, i) for i, medium in enumerate(items)] for kind, items in kinds.items()}
    return records | {"the first, prepared (ArrayRecord)": written(root / "prepared", records["JPEG 392 x 320, loose"])}


def cell(path: Path, row: int) -> Media:
    """An image inside Parquet."""
    return Media("image", path=path, member=f"{row}/image")


def of(medium: Media, i: int) -> Record:
    """A record that shows one medium."""
    return Record(f"bench/{i}", "bench", "", (medium,), "?", "x", (), f"{i}", None, None, {}, "train")


def written(out: Path, records: list[Record]) -> list[Record]:
    """The records after ``data.prepare`` wrote them."""
    lines = [prepared.line(record, prepared.stored_media(record.media)) for record in records]
    out.mkdir()
    prepare.write_parts(out, "train", records, lines, rows_per_part=500, threads=2)
    side = dict.fromkeys(("schema", "name", "options", "splits", "sources", "complete")) | {"rows_per_part": 500}
    (out / prepared.MARK).write_text(json.dumps(side))
    return [of(Media("image", path=out, member=f"train/{i}/0"), i) for i in range(len(records))]


def rate(records: list[Record], threads: int) -> float:
    """Records a second, best of three rounds."""
    decode: Callable[[Record], object] = media.decode_record
    decode(records[0])
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(decode, records))
            times.append(time.perf_counter() - start)
    return len(records) / min(times)


SETS = (  # title, dataset, what writes it, rows, most rows
    ("chexpert", "chexpert", chexpert, CHEXPERT, None),
    ("pmc_vqa", "pmc_vqa", pmc_vqa, PMC_VQA, None),
    ("one's own, Parquet", "jsonl", parquet, OWN, None),
    ("one's own, JSON lines", "jsonl", lines, OWN, None),
    ("one's own, CSV", "jsonl", comma, OWN, None),
    ("one's own, images in Parquet", "jsonl", pictures, PICTURES, PICTURES),
)


def main() -> None:
    """Writes what is measured to a folder that goes away, and prints three tables, a line at a time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, help="of each table, instead of the true sizes; images at most 100,000")
    parser.add_argument("--media", type=int, default=100, help="small images; of large media a twentieth")
    told = parser.parse_args()
    began = time.perf_counter()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        begin("index of")
        end("records", "seconds", "of the processor", "MB kept", "MB at the peak")
        for title, name, write, rows, most in SETS:
            begin(title)
            with tempfile.TemporaryDirectory(dir=folder) as root:
                write(Path(root), min(told.rows or rows, most or sys.maxsize))
                records, *figures = measured(LOAD, name, Path(root))
                end(f"{records:,}", *(f"{value:.1f}" for value in figures))
        begin("headers of")
        end("records", "records/s", "the second time", "MB at the peak")
        for title, write in (("JPEG 392 x 320, loose", files), ("the same in Parquet", pictures)):
            begin(title)
            with tempfile.TemporaryDirectory(dir=folder) as root:
                write(Path(root), min(told.rows or PICTURES, PICTURES))
                end(*(f"{value:,.0f}" for value in measured(HEADERS, "jsonl", Path(root))))
        begin("media")
        end("records/s, 1 thread", "2 threads")
        for kind, items in sources(Path(folder) / "media", told.media).items():
            begin(kind)
            end(*(f"{rate(items, threads):.0f}" for threads in (1, 2)))
    print(f"{time.perf_counter() - began:.0f} s in all")


def begin(title: str) -> None:
    """Begins a line of a table, before its figures are there."""
    print(f"{title:54}", end="", flush=True)


def end(*cells: str) -> None:
    """Prints the figures of the line that was begun."""
    print("".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
