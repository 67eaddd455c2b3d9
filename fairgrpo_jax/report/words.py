"""The summary of the report in words, computed from the numbers, and its cautions."""

from collections.abc import Iterable, Sequence

import numpy as np

from fairgrpo_jax.report import results


def summary(columns: Sequence[results.Series], tables: Sequence[results.Dataset]) -> list[tuple[str, str]]:
    """Changes by group as (lead, text): each run against its start, then each run against the first one."""
    if not tables:
        return [("Nothing to compare.", "No held-out record has been evaluated in all runs.")]
    afters = [index for index, column in enumerate(columns) if not column.before]
    paragraphs = []
    for after in afters:
        start = [i for i, c in enumerate(columns) if c.before and c.run in (None, columns[after].run)]
        if start:
            lead = f"{columns[after].label} since its start." if len(afters) > 1 else "Since the start."
            paragraphs.append((lead, _change(tables, start[0], after)))
    for after in afters[1:]:
        lead = f"{columns[after].label} against {columns[afters[0]].label}."
        paragraphs.append((lead, _change(tables, afters[0], after)))
    return paragraphs or [("One evaluation.", "There is no change to speak of yet; the tables show the state.")]


def cautions(runs: Sequence[results.Run], tables: Sequence[results.Dataset]) -> list[str]:
    """Conclusions that the results do not support."""
    seeds = len({(run.config.get("algorithm"), run.config.get("seed")) for run in runs})
    found = [
        f"{'One run is' if seeds == 1 else 'Each run is'} one seed. The intervals know which patients were tested, but "
        "not how another seed would have trained. A claim about a method needs several seeds, paired."
    ]
    if sizes := [group.records for table in tables for group in table.groups if group.attribute != "all"]:
        found.append(
            f"The {len(sizes)} groups hold {min(sizes)} to {max(sizes)} records. Among so many comparisons about one "
            "in twenty looks clear by chance alone; no correction is applied. Nothing is claimed beyond these records."
        )
    if few := [
        f"{table.name} ({table.patients} patients)" for table in tables if table.patients < results.FEW_PATIENTS
    ]:
        found.append(
            f"{_listed(few)}: too few patients for any claim about accuracy. The numbers show that the program ran, "
            "not how well it diagnoses."
        )
    found.append(
        "What to expect of the methods: in a registered study of this program's synthetic clinic (12 seeds, 64 prompts "
        "a step), fair sampling raised the worst groups above those of balanced resampling, and resampling above those "
        "of GRPO, without lowering the best; published FairGRPO raised neither the worst groups nor narrowed the "
        "spread (docs/evidence.md). A narrower spread alone is no success: read the worst and the best group with it."
    )
    return found


def _change(tables: Sequence[results.Dataset], old: int, new: int) -> str:
    pooled = results.pooled_accuracy(tables)
    accuracy = results.estimate(pooled[new] - pooled[old])
    records, patients = sum(table.records for table in tables), sum(table.patients for table in tables)
    points = results.Estimate(*(100 * number for number in accuracy))
    sentences = [
        f"Exact answers {_signed(points, '.1f', ' points', '95 % interval ')} on {records:,} records of {patients:,} "
        f"patients: {_verdict(accuracy)}.",
        _by_group(tables, old, new),
    ]
    joint = results.joint(tables)
    if joint is not None:
        spread, worst, best = (results.estimate(values[new] - values[old]) for values in joint)
        sentences.append(
            f"Spread of F1 between joint groups {_signed(spread)}, worst group {_signed(worst)}, "
            f"best group {_signed(best)}: {_levelling(spread, worst, best)}."
        )
    return " ".join(sentences)


def _by_group(tables: Sequence[results.Dataset], old: int, new: int) -> str:
    groups = [(table.name, group) for table in tables for group in table.of(*table.attributes)]
    if not groups:
        return "No record tells a group of its patient, so nothing can be said about groups."
    differences = [(f"{data} {group.name}", group.difference("f1", new, old)) for data, group in groups]
    higher = [label for label, difference in differences if difference.low > 0]
    lower = [label for label, difference in differences if difference.high < 0]
    parts = [f"clearly higher in {len(higher)} ({_listed(higher)})"] if higher else []
    parts += [f"clearly lower in {len(lower)} ({_listed(lower)})"] if lower else []
    parts.append(f"within the interval in {len(differences) - len(higher) - len(lower)}")
    attributes = dict.fromkeys(f"by {group.attribute}" for _, group in groups)
    return f"F1 of the {len(differences)} groups {_listed(attributes)}: {', '.join(parts)}."


def _levelling(spread: results.Estimate, worst: results.Estimate, best: results.Estimate) -> str:
    if spread.high < 0 and worst.low > 0:
        return "clearly narrower, as the worst groups gained"
    if spread.high < 0 and best.high < 0:
        return "clearly narrower, but because the best groups lost (levelling down)"
    if spread.high < 0:
        return "clearly narrower, though the worst groups did not clearly gain"
    return "clearly wider" if spread.low > 0 else "the difference in spread lies within its interval"


def _verdict(difference: results.Estimate) -> str:
    if not difference.clear:
        return "within the interval, no claim"
    return "clearly higher" if difference.value > 0 else "clearly lower"


def _signed(difference: results.Estimate, form: str = ".3f", unit: str = "", lead: str = "") -> str:
    value, low, high = (format(number, "+" + form).replace("-", "−") for number in difference)
    return f"{value}{unit}" + (f" ({lead}{low} to {high})" if np.isfinite(difference.low) else "")


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
