"""The summary of the report in words, computed from the numbers, and its cautions."""

import math
from collections.abc import Iterable, Sequence

from fairgrpo_jax.audit.sentences import called, interval, number
from fairgrpo_jax.report import groups, results
from fairgrpo_jax.report.groups import Estimate, Held, Pair


def since(columns: Sequence[results.Series]) -> list[Pair]:
    """Each run's last evaluation with its first one."""
    afters = [index for index, column in enumerate(columns) if not column.before]
    starts = {after: _start(columns, after) for after in afters}
    return [(after, start) for after, start in starts.items() if start is not None]


def _start(columns: Sequence[results.Series], after: int) -> int | None:
    return next((i for i, c in enumerate(columns) if c.before and c.run in (None, columns[after].run)), None)


def summary(columns: Sequence[results.Series], found: Held) -> list[tuple[str, str]]:
    """What the audit found, as (lead, text): each run against its start, later runs against the first, then gaps."""
    if not found.datasets:
        return [("Nothing to compare.", "No held-out record has been evaluated in all runs.")]
    afters = [index for index, column in enumerate(columns) if not column.before]
    paragraphs = []
    for pair in since(columns):
        lead = f"{columns[pair[0]].label} since its start." if len(afters) > 1 else "Since the start."
        paragraphs.append((lead, _change(found, pair)))
    for after in afters[1:]:
        lead = f"{columns[after].label} against {columns[afters[0]].label}."
        paragraphs.append((lead, _change(found, (after, afters[0]))))
    if not paragraphs:
        paragraphs = [("One evaluation.", "There is no change to speak of yet; the tables show the state.")]
    for place in afters or [0]:
        lead = f"Gaps of {columns[place].label}." if len(afters) > 1 else "Gaps between groups."
        paragraphs.append((lead, _gaps(found, place)))
    return paragraphs


def cautions(runs: Sequence[results.Run], held: Held) -> list[str]:
    """Conclusions that the results do not support."""
    seeds = len({(run.config.get("algorithm"), run.config.get("seed")) for run in runs})
    found = [
        f"{'One run is' if seeds == 1 else 'Each run is'} one seed. The intervals know which patients were tested, but "
        "not how another seed would have trained. A claim about a method needs several seeds, paired."
    ]
    if sizes := [group.records for table in held.datasets for group in table.groups if group.attribute != "all"]:
        found.append(
            f"The {len(sizes)} groups hold {min(sizes)} to {max(sizes)} records; those with fewer than "
            f"{groups.SETTINGS.least} patients are grey and not compared. p values are adjusted for the number of "
            "tests of an evaluation, or of a comparison. That no difference was found is no proof that there is none."
        )
    if few := [
        f"{table.name} ({table.patients} patients)" for table in held.datasets if table.patients < results.FEW_PATIENTS
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


def _change(found: Held, pair: Pair) -> str:
    whole = found.whole
    assert whole is not None
    exact = whole.groups[0].differences["top1"][found.at(pair)]
    points = Estimate(*(100 * cell for cell in exact[:3]))
    verdict = "that may be chance" if not exact.clear else f"clearly {_direction(exact)}"
    sentences = [
        f"Exactly right {_signed(points, '.1f', ' points', '95 % interval ')} of {whole.records:,} records of "
        f"{whole.patients:,} patients: {verdict}.",
        _by_group(found, pair),
    ]
    moved = groups.joint(found, pair)
    if moved is not None:
        gap, worst, best = moved
        sentences.append(
            f"Gap of F1 between joint groups {_signed(gap)}, worst group {_signed(worst)}, "
            f"best group {_signed(best)}: {_levelling(gap, worst, best)}."
        )
    return " ".join(sentences)


def _by_group(found: Held, pair: Pair) -> str:
    own = [(table.name, g) for table in found.datasets for g in table.of(*table.attributes) if "f1" in g.values]
    compared = [(f"{data} {g.name}", g.differences["f1"][found.at(pair)]) for data, g in own if not g.small]
    attributes = dict.fromkeys(f"by {group.attribute}" for _, group in own)
    small = len(own) - len(compared)
    few = f" {small} of the groups {_listed(attributes)} have too few patients." if small else ""
    if not compared:
        return few.strip() or "No record tells a group of its patient, so nothing can be said about groups."
    clear = [(label, difference) for label, difference in compared if difference.clear]
    parts = []
    for way in ("higher", "lower"):
        its = [label for label, difference in clear if _direction(difference) == way]
        parts += [f"clearly {way} in {len(its)} ({_listed(its)})"] if its else []
    parts.append(f"no more than chance explains in {len(compared) - len(clear)}")
    return f"F1 of the {len(compared)} groups {_listed(attributes)}: {', '.join(parts)}.{few}"


def _gaps(found: Held, place: int) -> str:
    """Which gaps of F1 between groups are larger than chance explains, in one series."""
    clear, tested = list[str](), 0
    for table in found.datasets:
        for attribute, gap in table.gaps.items():
            if "f1" not in gap.values or gap.values["f1"][place].p is None:
                continue
            tested += 1
            one, worst = gap.values["f1"][place], gap.ends["f1"][place][0]
            if one.clear:
                its = next((g.values["f1"][place] for g in table.of(attribute) if g.name == worst), None)
                told = f", worst {worst}, {interval(its._asdict())}" if its else ""
                by = called(attribute, table.attributes)
                clear.append(f"{table.name} by {by} ({number(one.value)}, by chance {number(one.expected)}{told})")
    if not tested:
        return "No two groups have enough patients to be compared."
    if not clear:
        return f"Of {tested} gaps of F1 between groups none is larger than chance explains."
    some = f"{len(clear)} {'is' if len(clear) == 1 else 'are'} larger than chance explains"
    return f"Of {tested} gaps of F1 between groups {some}: {'; '.join(clear)}."


def _levelling(gap: Estimate, worst: Estimate, best: Estimate) -> str:
    """Whether a gap closed, and because of whom, by intervals that exclude zero."""
    narrower, wider, gained, lost = (_below(gap), _above(gap), _above(worst), _below(best))
    if narrower and gained:
        return "clearly narrower, as the worst groups gained"
    if narrower and lost:
        return "clearly narrower, but because the best groups lost (levelling down)"
    if narrower:
        return "clearly narrower, though the worst groups did not clearly gain"
    return "clearly wider" if wider else "the difference of the gaps lies within its interval"


def _above(one: Estimate) -> bool:
    return one.low > 0


def _below(one: Estimate) -> bool:
    return one.high < 0


def _direction(difference: Estimate) -> str:
    return "higher" if difference.value > 0 else "lower"


def _signed(difference: Estimate, form: str = ".3f", unit: str = "", lead: str = "") -> str:
    value, low, high = (format(cell, "+" + form).replace("-", "−") for cell in difference[:3])
    return f"{value}{unit}" + (f" ({lead}{low} to {high})" if math.isfinite(difference.low) else "")


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
