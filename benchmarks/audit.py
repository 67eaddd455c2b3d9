"""Whether the intervals and tests of ``fairgrpo_jax.audit`` keep their promises, where the truth is known.

    python benchmarks/audit.py                       # ten minutes on one core; the tables of docs/evaluation.md
    python benchmarks/audit.py --repeats 200         # rougher
    python benchmarks/audit.py --rows 1000000        # only how long so many records take

Answers are right more or less often for each patient, so that records of one patient resemble each other; they are of
three classes, one of them rare. The truth is the figure of two million records.
"""

import argparse
import resource
import time
from collections.abc import Sequence

import numpy as np

from fairgrpo_jax import audit
from fairgrpo_jax.audit import coding, figures, parts


CLASSES = np.array(["healthy", "nevus", "melanoma"])
SHARES = (0.55, 0.3, 0.15)
SKILL = (0.9, 0.75, 0.6)  # of each class
SHOWN = ("top1", "f1", "tpr", "fpr", "precision")


def drawn(rng: np.random.Generator, patients: int, per: int, *, groups: int = 1, shift: float = 0.0, models: int = 1):
    """Labels, answers of each model, groups and patients; ``shift`` is what the last group loses."""
    who = np.repeat(np.arange(patients), per)
    group = rng.integers(groups, size=patients)[who]
    truth = rng.choice(3, len(who), p=SHARES)
    own = rng.normal(0, 0.15 if per > 1 else 0, patients)[who]  # clustering
    skill = np.clip(np.array(SKILL)[truth] + own - shift * (group == groups - 1) * (groups > 1), 0.02, 0.98)
    said = [
        np.where(rng.random(len(who)) < skill, truth, (truth + rng.integers(1, 3, len(who))) % 3) for _ in range(models)
    ]
    return CLASSES[truth].tolist(), [CLASSES[x].tolist() for x in said], group.astype(str).tolist(), who.tolist()


def coverage(records: int, per: int, repeats: int, seed: int) -> list[float]:
    """The share of 95 % intervals of a group that hold the truth, for each figure."""
    rng, settings = np.random.default_rng(seed), audit.Settings(num_resamples=400)
    labels, (said,), _, _ = drawn(rng, 2_000_000 // per, per)
    sums = np.bincount((answers := coding.answers(said, labels)).pair) @ answers.features
    truth = figures.values(sums, answers.classes)
    held = np.zeros(len(SHOWN))
    for _ in range(repeats):
        labels, (said,), _, who = drawn(rng, records // per, per)
        answers = coding.answers(said, labels)
        part = parts.Part("simulated", coding.people({}, who), answers, np.arange(len(labels)))
        found = parts.groups(part, parts.draw(part, settings), {}, settings)[0]["figures"]
        held += [found[name]["low"] <= truth[name] <= found[name]["high"] for name in SHOWN]
    return (held / repeats).tolist()


def level(patients: int, per: int, repeats: int, seed: int, *, shift: float = 0.0) -> list[float]:
    """How often tests at 5 % find a gap: of top1, of f1, of anything after Holm; and top1 of two models."""
    rng, found = np.random.default_rng(seed), np.zeros(4)
    settings = audit.Settings(num_resamples=100, num_permutations=200, least=10)
    for _ in range(repeats):
        labels, (one, two), group, who = drawn(rng, patients, per, groups=3, shift=shift, models=2)
        attributes = {"centre": group, "sex": ["F" if x % 2 else "M" for x in who]}
        gaps = audit.examine(one, labels, attributes, patients=who, settings=settings)["gaps"]
        p = {row["figure"]: row["p"] for row in gaps if row["attribute"] == "centre"}
        rows = audit.compare({"one": one, "two": two}, labels, {}, patients=who, settings=settings)
        paired = next(row["p"] for row in rows if (row["figure"], row["group"]) == ("top1", "all"))
        adjusted = [row["p_adjusted"] for row in gaps if row["p_adjusted"] is not None]
        found += [p["top1"] <= 0.05, p["f1"] <= 0.05, min(adjusted) <= 0.05, paired <= 0.05]
    return (found / repeats).tolist()


def speed(rows: int, per: int, seed: int) -> str:
    """Seconds and memory of a whole audit with intersections of three attributes."""
    rng = np.random.default_rng(seed)
    labels, (said,), _, who = drawn(rng, rows // per, per)
    values = {"sex": ["F", "M"], "age": list(range(18, 95)), "race": list("ABCDE")}
    attributes = {name: rng.choice(own, rows // per)[who].tolist() for name, own in values.items()}
    began, processor = time.perf_counter(), time.process_time()
    found = audit.examine(said, labels, attributes, patients=who)
    took, used = time.perf_counter() - began, time.process_time() - processor
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    groups = len(found["groups"])
    return (
        f"{rows:,} records of {rows // per:,} patients in {groups} groups, 1,000 resamples: "
        f"{took:.0f} s, {used:.0f} s of processor time, {memory:.1f} GiB"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000, help="samples behind each number")
    parser.add_argument("--rows", type=int, help="time an audit of so many records instead")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.rows:
        for per in (1, 4, 20):
            print(speed(given.rows, per, given.seed), flush=True)
        return
    rows = []
    for patients, per in ((30, 1), (100, 1), (1000, 1), (30, 5), (100, 5), (200, 5)):
        shares = coverage(patients * per, per, given.repeats, given.seed)
        rows.append([f"{patients:,}", f"{per}", *(f"{100 * share:.1f}" for share in shares)])
        print(rows[-1], flush=True)
    print(table(["patients", "records each", *SHOWN], rows), end="\n\n")
    rows = []
    for patients, per, shift in ((100, 1, 0.0), (100, 5, 0.0), (400, 1, 0.0), (400, 1, 0.2)):
        shares = level(patients, per, given.repeats // 2, given.seed, shift=shift)
        rows.append([f"{patients}", f"{per}", f"{shift:g}", *(f"{100 * share:.1f}" for share in shares)])
        print(rows[-1], flush=True)
    head = ["patients", "records each", "true gap", "gap of top1", "gap of f1", "any, after Holm", "two models"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
