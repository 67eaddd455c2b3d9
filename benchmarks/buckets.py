"""What padding costs where prompts differ in size: ``python benchmarks/buckets.py``.

A tiny Qwen2.5-VL is trained for a few steps on records with one to eight images of 64² to 1,792² pixels, upright and on
their side, and on videos; on the processor, by the real program. Once with all prompts padded to the largest
(``data.buckets 1``), once to a few sizes. Printed are the sizes that the run chose, the padding of the sampled prompts,
the programs that were compiled, and the seconds of a step after the first two, which compile. The records are the same,
and so is the mean length of the first step's completions, or the benchmark stops.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import av
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table


SIDES = (64, 128, 224, 336, 512, 896, 1344, 1792)
RNG = np.random.default_rng(0)


def main() -> None:
    """Writes the records, runs both, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--buckets", type=int, nargs="+", default=[1, 4], help="numbers of sizes (default 1 4)")
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--max-pixels", type=int, default=96 * 96, help="larger images are reduced (default 96²)")
    parser.add_argument("--json", type=pathlib.Path, help="writes every figure here")
    chosen = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        write(root / "data", chosen.records)
        for buckets in chosen.buckets:
            found[buckets] = measure(root, buckets, chosen)
            if chosen.json:
                chosen.json.write_text(json.dumps(found, indent=1))
    if len({row["length"] for row in found.values()}) > 1:
        raise SystemExit(f"the first step's samples differ: {found}")
    table = Table(title="A step on prompts of many sizes")
    columns = (
        "sizes",
        "tokens x patches",
        "padding: tokens",
        "patches",
        "programs",
        "s/step",
        "rollout",
        "update",
        "loss",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for buckets, row in found.items():
        cells = [f"{row[name]:.0%}" for name in ("tokens", "patches")] + [str(row["programs"])]
        cells += [f"{row[name]:.2f}" for name in ("seconds", "rollout", "update")]
        table.add_row(str(buckets), row["sizes"], *cells)
    Console(width=150).print(table)


def write(root: pathlib.Path, count: int) -> None:
    """Records as JSON lines: most with one image, some with several, some with a video."""
    root.mkdir()
    rows = []
    for i in range(count):
        row = {"prompt": "What does this show? " * int(RNG.integers(1, 6)), "answer": "yes", "choices": ["yes", "no"]}
        row |= {"id": f"r{i}", "patient": f"p{i}", "sex": "FM"[i % 2], "age": 20 + i % 60}
        if i % 8 == 7:
            row |= {"prompt": f"<video>{row['prompt']}", "videos": [film(root / f"{i}.mp4")]}
        else:
            number = 1 if i % 3 else int(RNG.integers(2, 9))
            row["images"] = [picture(root / f"{i}-{j}.jpg") for j in range(number)]
            row["prompt"] = "<image>" * number + row["prompt"]
        rows.append(row)
    for split, part in (("train", rows), ("test", rows[:8])):
        named = [row | {name: f"{split}-{row[name]}" for name in ("id", "patient")} for row in part]
        lines = map(json.dumps, named)
        (root / f"{split}.jsonl").write_text("\n".join(lines))


def picture(path: pathlib.Path) -> str:
    """An image of one of the sizes, upright, square or on its side."""
    side, ratio = int(RNG.choice(SIDES)), float(RNG.choice([0.5, 0.75, 1.0, 4 / 3, 2.0]))
    height, width = int(side * min(1, ratio)), int(side * min(1, 1 / ratio))
    Image.fromarray(RNG.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)).resize((width, height)).save(
        path
    )
    return path.name


def film(path: pathlib.Path) -> str:
    """A video of 16 frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for level in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((240, 320, 3), 15 * level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.name


def measure(root: pathlib.Path, buckets: int, chosen: argparse.Namespace) -> dict:
    """A run of its own process; figures are medians over the steps after the second."""
    folder = root / f"run-{buckets}"
    options = {
        "data.name": "jsonl",
        "data.root": root / "data",
        "data.buckets": buckets,
        "data.max-pixels": chosen.max_pixels,
        "data.prompt-length": 4096,
        "data.num-patches": 16384,
        "steps": chosen.steps,
        "prompts": 8,
        "rollouts": 2,
        "warmup.steps": 0,
        "sampling.max-new-tokens": 8,
        "evaluation.every": 1000,
        "evaluation.batch": 8,
        "checkpoint-every": 1000,
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_LOG_COMPILES": "1", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "fairgrpo_jax.train", "clinic", "--data.options", *given, "--workdir", folder],
        env=environment,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(ended.stdout[-2000:] + ended.stderr[-2000:])
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in log if row["kind"] == "train"]
    middle = lambda name: statistics.median(row[name] for row in rows[2:])
    sizes = re.search(r"^train: .*padded to (.*)$", ended.stdout, re.MULTILINE)
    compiled = re.findall(r"Finished XLA compilation of jit\((prefill|policy_gradient|decode)\)", ended.stderr)
    return {
        "sizes": " ".join(re.findall(r"([\d,]+) tokens and", sizes[1] if sizes else "")),
        "programs": len(compiled),
        "tokens": middle("speed/padding/tokens"),
        "patches": middle("speed/padding/patches"),
        "seconds": middle("time/rollout") + middle("time/update"),
        "rollout": middle("time/rollout"),
        "update": middle("time/update"),
        "length": rows[0]["rollout/length"],
    }


if __name__ == "__main__":
    main()
