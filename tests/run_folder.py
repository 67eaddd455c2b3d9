"""Writes a run folder as a training run would leave it, from a small simulation instead of a policy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fairgrpo_jax import tracking


ANSWERS = {"cxr": ("Normal", "Nodule", "Pneumonia"), "derm": ("Nevus", "Melanoma"), "digits": ("0", "1", "2")}
CONFIG = {
    "name": "clinic",
    "algorithm": "grpo",
    "seed": 0,
    "steps": 200,
    "prompts": 64,
    "rollouts": 8,
    "mesh": "1x1",
    "data": {"name": "synthetic", "age_edges": [25, 50, 75]},
    "optim": {"lr": 1e-4, "b1": 0.9},
    "warmup": {"steps": 50},
}


def write(
    folder: Path,
    *,
    algorithm: str = "grpo",
    seed: int = 0,
    gain: float = 0.1,
    patients: int = 120,
    steps: int = 200,
    evaluations: int = 4,
    datasets: tuple[str, ...] = tuple(ANSWERS),
) -> Path:
    """A whole run folder: config, metrics, evaluations before and during training, completions with images."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"algorithm": algorithm, "seed": seed, "steps": steps}))
    write_metrics(folder, rng, gain, steps, fair=algorithm != "grpo")
    for step in range(0, steps + 1, steps // evaluations):
        write_evaluation(
            folder, step, people(patients, datasets), share=0.6 + gain * step / steps, rng_seed=1 if step == 0 else seed
        )
    write_samples(folder, rng, steps)
    return folder


def people(patients: int, datasets: tuple[str, ...] = tuple(ANSWERS)) -> list[dict]:
    """The held-out records, the same in every run; every third patient has two."""
    rng = np.random.default_rng(7)
    rows = []
    for dataset in datasets:
        answers = ANSWERS[dataset]
        for patient in range(patients):
            known = dataset != "digits"
            sex, age = "FM"[rng.integers(2)], float(rng.uniform(26, 90))
            for record in range(1 + (patient % 3 == 0)):
                rows.append(
                    {
                        "uid": f"{dataset}/{patient}-{record}",
                        "dataset": dataset,
                        "patient": f"{patient}",
                        "sex": sex if known else None,
                        "age": age if known else None,
                        "answer": answers[rng.integers(len(answers))],
                    }
                )
    return rows


def write_evaluation(folder: Path, step: int, rows: list[dict], *, share: float, rng_seed: int) -> None:
    """Answers that are right with a chance of ``share``, less for patients above 75."""
    rng = np.random.default_rng([rng_seed, step])
    lines = []
    for row in rows:
        right = rng.random() < share - 0.3 * (row["age"] is not None and row["age"] > 75)
        prediction = row["answer"] if right else ANSWERS[row["dataset"]][rng.integers(len(ANSWERS[row["dataset"]]))]
        prediction = "" if rng.random() < 0.02 else prediction
        said = {"prediction": prediction, "completion": f"<think>seen</think>\\boxed{{{prediction}}}"}
        lines.append(json.dumps(row | said | {"reward": float(prediction == row["answer"])}))
    (folder / "evals").mkdir(exist_ok=True)
    (folder / "evals" / f"{step:06d}.jsonl").write_text("\n".join(lines) + "\n")


def write_metrics(folder: Path, rng: np.random.Generator, gain: float, steps: int, *, fair: bool) -> None:
    """Rows of the warm-up, the training and the evaluations."""
    with tracking.MetricsLog(folder / "metrics.jsonl") as log:
        for step in range(1, 51):
            log.append(
                "warmup", step, {"loss": 3 * np.exp(-step / 15) + 0.3, "optim/grad_norm": 1.0, "time/step": 0.04}
            )
        for step in range(1, steps + 1):
            log.append("train", step, train_row(rng, gain * step / steps, step, fair=fair))
            if step % max(1, steps // 4) == 0:
                log.append("eval", step, {"reward": 0.6 + gain * step / steps, "f1": 0.5})


def train_row(rng: np.random.Generator, rise: float, step: int, *, fair: bool) -> dict:
    """One row of training metrics with plausible values."""
    cells = [
        f"{domain}/{sex}, {age}" for domain in ("cxr", "derm") for sex in "FM" for age in ("26–50", "51–75", ">75")
    ]
    cells.append("digits/unlabelled")
    shares = rng.dirichlet(np.linspace(3, 1, len(cells)))
    row = {
        "reward/mean": 0.65 + rise + 0.05 * rng.normal(),
        "reward/zero_variance_share": 0.5 + rise + 0.05 * rng.normal(),
        "advantage/max_abs": rng.uniform(8, 20) if fair else rng.choice([1.62, 2.47]),
        "advantage/top_prompt_share": rng.uniform(0.2, 0.5) if fair else rng.uniform(0.02, 0.05),
        "fairness/effective_sample_size": rng.uniform(3, 9) if fair else rng.uniform(20, 30),
        "loss": 0.01 * rng.normal(),
        "rollout/truncated_share": float("nan") if step == 1 else 0.0,
    }
    times = {"data": 0.003, "rollout": 0.045, "reward": 0.002, "advantage": 0.001, "update": 0.06}
    row |= {f"time/{phase}": seconds * rng.uniform(0.9, 1.2) for phase, seconds in times.items()}
    row |= {"time/step": sum(row[f"time/{phase}"] for phase in times) + 0.004}
    if step == 1:
        row |= {"time/compile": 9.0, "time/step": row["time/step"] + 9.0}
    return row | {f"advantage/share/{cell}": share for cell, share in zip(cells, shares, strict=True)}


def write_samples(folder: Path, rng: np.random.Generator, step: int) -> None:
    """Two prompts with eight completions; one of them tries to be markup."""
    (folder / "samples").mkdir(exist_ok=True)
    rows = []
    for index, dataset in enumerate(("cxr", "derm")):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        name = f"samples/{step:06d}-{index}-0.png"
        Image.fromarray(pixels).save(folder / name)
        for place, right in enumerate([1, 1, 0, 1, 0, 0, 1, 0]):
            said = ANSWERS[dataset][right]
            rows.append(
                {
                    "step": step,
                    "prompt": index,
                    "rollout": place,
                    "uid": f"{dataset}/0-0",
                    "dataset": dataset,
                    "task": "",
                    "sex": "F" if index else None,
                    "age": 61.4 if index else None,
                    "attribute/sex": "F" if index else None,
                    "attribute/age": "51–75" if index else None,
                    "cell": "F, 51–75" if index else "unlabelled",
                    "question": "What does this image show?",
                    "answer": ANSWERS[dataset][1],
                    "completion": "<script>alert('x')</script>"
                    if place == 2
                    else f"<think>focal</think>\\boxed{{{said}}}",
                    "prediction": None if place == 2 else said,
                    "exact": float(right),
                    "length": 12,
                    "finished": True,
                    "reward": float(right),
                    "advantage": 2.0 * right - 1,
                    "component/exact": float(right),
                    "images": [name],
                }
            )
    pd.DataFrame(rows).to_parquet(folder / "samples" / f"{step:06d}.parquet")


def write_old_samples(folder: Path, step: int) -> None:
    """The prompts of ``write_samples`` as JSON, as versions before the tables kept them."""
    table: Any = pd.read_parquet(folder / "samples" / f"{step:06d}.parquet")
    rows = []
    for _, own in table.groupby("prompt"):
        first = own.iloc[0]
        known = {name: first[name] for name in ("uid", "dataset", "sex", "question", "answer")}
        known |= {"age": None if np.isnan(first["age"]) else first["age"], "images": [*first["images"]]}
        said = own[["completion", "reward", "advantage"]].rename(columns={"completion": "text"})
        rows.append(known | {"completions": said.to_dict("records")})
    (folder / "samples" / f"{step:06d}.parquet").unlink()
    (folder / "samples" / f"{step:06d}.json").write_text(json.dumps(rows))
