"""A whole GRPO step against TRL and Tunix: ``python benchmarks/step.py --trl-python P --tunix-python P``.

A step is: 8 prompts (a question of about 30 tokens, an image or none) through the processor, 8 completions of each of
exactly 64 tokens, their rewards, advantages, and one clipped AdamW update of all parameters, in float32. Every trainer
loads the same checkpoint folder, written here with random weights, in a process and an interpreter of its own; before
anything is timed the tokens of all prompts must be equal, and the logits after the first. Processes take turns step by
step on one core, so that what else the machine does falls on all of them. The first step of each is reported apart:
it compiles, or fills caches.

``--trl-python`` names an interpreter with torch and trl (1.16), ``--tunix-python`` one with google-tunix (0.1.7), which
is measured on text only: its learner passes no images.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from fairgrpo_jax import models
from fairgrpo_jax.models import processing, qwen2_5_vl, text
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer


HERE = pathlib.Path(__file__).parent
QUESTIONS = (
    "Which digit is this?",
    "What does the scan show? Answer with one word.",
    "Is there a lesion in this picture?",
    "Which organ is seen here, and is it normal?",
    "How old is the patient, more or less?",
    "Does the image show a fracture? Think first.",
    "Name the finding.",
    "Is the finding benign or malignant?",
)


class Size(NamedTuple):
    """A model and its images."""

    name: str
    hidden: int
    layers: int
    side: int | None = None  # of the square images, in pixels


SIZES = (
    Size("text, 2 layers of 64", 64, 2),
    Size("Qwen2.5-VL, 2 layers of 64, 56 x 56", 64, 2, 56),
    Size("Qwen2.5-VL, 2 layers of 64, 224 x 224", 64, 2, 224),
    Size("Qwen2.5-VL, 4 layers of 256, 112 x 112", 256, 4, 112),
    Size("text, 4 layers of 256", 256, 4),
)


class Worker:
    """A trainer in a process of its own that makes one step when told to."""

    def __init__(self, name: str, python: str, spec: pathlib.Path, errors: pathlib.Path, environment: dict[str, str]):
        self.name, self.errors = name, errors
        script = HERE / f"step_{name.lower()}.py"
        paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])] if name == "ours" else []
        environment = (
            os.environ
            | {"HF_HUB_OFFLINE": "1"}
            | environment
            | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
        )
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                [python, str(script), str(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment,
            )
        self.steps: list[dict] = []

    def read(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            RuntimeError: if the process ends without one; with the end of what it wrote to standard error.
        """
        line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            raise RuntimeError(f"{self.name} ended without an answer:\n{self.errors.read_text()[-3000:]}")
        return json.loads(line)

    def step(self) -> dict[str, Any]:
        """Makes one step and returns what it cost."""
        self.process.stdin.write("step\n")  # pyright: ignore[reportOptionalMemberAccess]
        self.process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
        self.steps.append(self.read())
        return self.steps[-1]

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()


def one_thread() -> dict[str, str]:
    """The environment of a process that computes in one thread."""
    names = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"
    return dict.fromkeys(names, "1") | {"TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="an interpreter with torch and trl")
    parser.add_argument("--tunix-python", help="an interpreter with google-tunix")
    parser.add_argument("--only", default="", help="measure the sizes whose name contains this")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each trainer (default 7)")
    parser.add_argument("--rollouts", type=int, default=8, help="completions of a prompt (default 8)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a completion (default 64)")
    parser.add_argument("--json", type=pathlib.Path, help="writes every step here")
    options = parser.parse_args()
    pythons = {"ours": sys.executable, "TRL": options.trl_python, "Tunix": options.tunix_python}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the workers inherit it

    console = Console(width=132)
    table = results_table(options)
    every = {}
    with console.status("") as status:
        for size in SIZES:
            if options.only not in size.name:
                continue
            status.update(size.name)
            peers = {name: python for name, python in pythons.items() if python and not (name == "Tunix" and size.side)}
            workers = measure(size, peers, options)
            every[size.name] = {worker.name: worker.steps for worker in workers}
            for worker in workers:
                table.add_row(*row(size, worker, workers[0]), end_section=worker is workers[-1])
            if options.json:
                options.json.write_text(json.dumps(every, indent=1))
    console.print(table)
    console.print(f"{platform.machine()}, one core; Python {platform.python_version()}, jax {jax.__version__}")


def results_table(options: argparse.Namespace) -> Table:
    """The empty table."""
    title = f"One step: {len(QUESTIONS)} prompts x {options.rollouts} completions x {options.tokens} tokens"
    table = Table(title=f"{title}; medians of {options.steps} (least and most)")
    table.add_column("model")
    table.add_column("trainer")
    for column in ("CPU s", "wall s", "first step, s", "CPU, times ours", "wall, times ours"):
        table.add_column(column, justify="right")
    return table


def row(size: Size, worker: Worker, ours: Worker) -> list[str]:
    """A line of the table."""
    figures = [f"{middle(worker, what):.3f} ({least:.3f}-{most:.3f})" for what, least, most in spans(worker)]
    first = f"{worker.steps[0]['wall']:.1f}"
    ratios = [f"{middle(worker, what) / middle(ours, what):.2f}" for what in ("cpu", "wall")]
    return [size.name, worker.name, *figures, first, *ratios]


def middle(worker: Worker, what: str) -> float:
    """The median of the timed steps."""
    return statistics.median(step[what] for step in worker.steps[1:])


def spans(worker: Worker) -> list[tuple[str, float, float]]:
    """Least and most processor and wall seconds."""
    values = {what: [step[what] for step in worker.steps[1:]] for what in ("cpu", "wall")}
    return [(what, min(seconds), max(seconds)) for what, seconds in values.items()]


def measure(size: Size, pythons: dict[str, str], options: argparse.Namespace) -> list[Worker]:
    """The workers after their steps, one warm-up and ``options.steps`` timed ones, in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        spec = write(size, folder, architecture(size), rollouts=options.rollouts, tokens=options.tokens)
        workers = []
        try:
            for trainer, python in pythons.items():
                workers.append(Worker(trainer, python, spec, folder / f"{trainer}.log", one_thread()))
            held = {worker.name: worker.read() for worker in workers}
            require_same(held)
            for _ in range(1 + options.steps):
                for worker in workers:
                    made = worker.step()
                    wanted = len(QUESTIONS) * options.rollouts * options.tokens
                    if made["tokens"] != wanted:
                        raise RuntimeError(f"{worker.name} trained on {made['tokens']} tokens; wanted {wanted}")
        finally:
            for worker in workers:
                worker.close()
    return workers


def require_same(held: dict[str, dict], *, apart: float = 1e-3) -> None:
    """Refuses trainers whose prompts differ from ours, or whose logits are more than ``apart`` from ours.

    Raises:
        RuntimeError: naming the trainer and what differs.
    """
    ours = held["ours"]
    for name, other in held.items():
        if other["prompts"] != ours["prompts"]:
            raise RuntimeError(f"{name} has other prompts: {other['prompts'][0]}; wanted {ours['prompts'][0]}")
        distance = np.abs(np.subtract(other["logits"], ours["logits"])).max()
        if distance > apart:
            raise RuntimeError(f"{name} has another model: its logits are up to {distance:.2g} from ours")


def write(
    size: Size,
    folder: pathlib.Path,
    model: tuple[Any, Any],
    *,
    rollouts: int,
    tokens: int,
    dtype: str = "float32",
    device: str = "cpu",
    remat: bool = False,
) -> pathlib.Path:
    """Model (a config and its processor), images and task of the workers; returns the path of the task."""
    config, processor = model
    init = jax.jit(lambda key: models.family(config).init(config, key, jnp.dtype(dtype)))
    models.VLM(config, init(jax.random.key(0)), processor).save(folder / "model")
    images = None
    if size.side is not None:
        images = str(folder / "images.npy")
        np.save(images, pictures(size.side))
    spec = {
        "folder": str(folder / "model"),
        "images": images,
        "questions": QUESTIONS,
        "rollouts": rollouts,
        "tokens": tokens,
        "banned": config.banned_ids,
        "dtype": dtype,
        "device": device,
        "remat": remat,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder / "spec.json"


def pictures(side: int) -> np.ndarray:
    """One image for every question (P, side, side, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (len(QUESTIONS), side, side, 3), dtype=np.uint8)


def architecture(size: Size) -> tuple[Any, Any]:
    """Config and processor: four heads, two of them for keys and values; a tower of two blocks as wide as the text."""
    width, half = size.hidden, size.hidden // 8
    changes = dict(
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=size.layers,
        head_dim=2 * half,
        initializer_range=0.02,
    )
    if size.side is None:
        return text.tiny("qwen2", **changes), processing.TextProcessor(tiny_tokenizer())
    tower = dataclasses.replace(
        qwen2_5_vl.tiny().vision,
        hidden_size=width,
        intermediate_size=2 * width,
        out_hidden_size=width,
        patch_size=14,
        window_size=112,
    )
    sections = (half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8)
    config = qwen2_5_vl.tiny(vision=tower, mrope_section=sections, **changes)
    area = size.side**2
    return config, models.Processor(tiny_tokenizer(), patch_size=14, min_pixels=area, max_pixels=area)


if __name__ == "__main__":
    main()
