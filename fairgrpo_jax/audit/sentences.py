"""What an audit found, in words that a reader without statistics can use."""

from collections.abc import Mapping, Sequence
from typing import Any

from fairgrpo_jax.audit.figures import FIGURES, GAPS
from fairgrpo_jax.demographics import JOINT


def number(value: float | None, digits: int = 3) -> str:
    """A number for tables; a dash for none.

    >>> number(0.12345), number(None)
    ('0.123', '–')
    """
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def interval(told: Mapping[str, Any]) -> str:
    """A figure with its interval.

    >>> interval({"value": 0.5, "low": 0.25, "high": 0.75})
    '0.500 [0.250, 0.750]'
    """
    if told["value"] is None:
        return "–"
    if told["low"] is None:
        return number(told["value"])
    return f"{number(told['value'])} [{number(told['low'])}, {number(told['high'])}]"


def probability(value: float | None) -> str:
    """A p value.

    >>> probability(0.0004), probability(0.25)
    ('< 0.001', '0.250')
    """
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def words(figure: str) -> str:
    """A figure's or gap's name in words."""
    return FIGURES[figure].words if figure in FIGURES else GAPS[figure]


def called(attribute: str, attributes: Sequence[str]) -> str:
    """An attribute in words; joint cells by the attributes that make them."""
    return " and ".join(attributes) if attribute == JOINT else attribute


def of_gap(row: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], level: float = 0.95) -> str:
    """A sentence or two about a gap: who fares worst, and whether that could be chance.

    Args:
        row: of ``gaps``.
        groups: the rows of ``groups``.
        level: of the intervals.
    """
    left = [name for name in row["left_out"] if name != "unknown"]
    small = f" {_listed(left)} {'has' if len(left) == 1 else 'have'} too few patients to be compared." if left else ""
    if row["gap"] is None:
        return f"No two groups have enough patients to be compared.{small}"
    if row["gap"] == 0:
        return f"No difference between {_listed(row['compared'])}.{small}"
    text = f"The gap is {number(row['gap'])}; without any difference it would be {number(row['expected'])} on average."
    if row["worst"] is not None:
        its = {g["name"]: g["figures"][row["figure"]] for g in groups if _same(g, row)}
        ends = ("Worst", "best") if FIGURES[row["figure"]].better else ("Lowest", "highest")
        told = [
            f"{end}: {row[key]}, {interval(its[row[key]])}" for end, key in zip(ends, ("worst", "best"), strict=True)
        ]
        text = f"{'; '.join(told)}. {text}"
    if row["p_adjusted"] is None:
        return text + small
    if row["p_adjusted"] <= 1 - level:
        text += f" More than chance explains (adjusted p {probability(row['p_adjusted'])})."
    else:
        text += f" That may be chance (adjusted p {probability(row['p_adjusted'])})"
        missed = f"; a true gap below {number(row['detectable'])} would often be missed with these patients."
        text += "." if row["detectable"] is None else missed
    return text + small


def short(found: Mapping[str, Any], figure: str, level: float = 0.95) -> list[str]:
    """The main findings, one sentence each.

    Args:
        found: of ``audit.examine``.
        figure: the main one.
        level: of the intervals.
    """
    lines = []
    for dataset in found["datasets"]:
        name, groups = dataset["dataset"], [row for row in found["groups"] if row["dataset"] == dataset["dataset"]]
        whole = groups[0]["figures"]
        lines.append(
            f"{name}: {words(figure)} {interval(whole[figure])}, of {dataset['n']:,} records of "
            f"{dataset['patients']:,} patients"
            + (f"; {whole['failures']['value']:.1%} without an answer." if whole["failures"]["value"] else ".")
        )
        gaps = [row for row in found["gaps"] if row["dataset"] == name]
        clear = [row for row in gaps if row["p_adjusted"] is not None and row["p_adjusted"] <= 1 - level]
        for row in clear:
            head = f"{name}, {words(row['figure'])}, by {called(row['attribute'], _attributes(gaps))}"
            lines.append(f"{head}: {of_gap(row, groups, level)}")
        tested = [row["attribute"] for row in gaps if row["p_adjusted"] is not None]
        rest = [key for key in dict.fromkeys(tested) if key not in {row["attribute"] for row in clear}]
        if rest:
            named = "; ".join(called(key, _attributes(gaps)) for key in rest)
            lines.append(f"{name}: no difference that chance could not explain, by {named}.")
        unknown = [row for row in groups if not row["known"] and row["attribute"] != JOINT]
        for row in unknown:
            lines.append(
                f"{name}: {row['attribute']} is unknown for {row['n']:,} records ({row['n'] / dataset['n']:.0%}); "
                f"{number(row['figures']['top1']['value'])} of them are exactly right."
            )
    return lines


def of_seeds(rows: Sequence[Mapping[str, Any]], figure: str) -> list[str]:
    """The main findings over several seeds, one sentence for each dataset.

    Args:
        rows: of ``pooled.pool``.
        figure: the main one.
    """
    lines = []
    for name in dict.fromkeys(row["dataset"] for row in rows):
        its = [row for row in rows if row["dataset"] == name and row["figure"] == figure]
        everybody = next(row for row in its if row["attribute"] == "all")
        attributes = [key for key in dict.fromkeys(row["attribute"] for row in its) if key not in ("all", JOINT)]
        lines.append(
            f"{name}: {words(figure)} {between(everybody)}, mean and interval between {everybody['seeds']} seeds."
        )
        for row in its:
            if row["group"] == "gap" and row["mean"] is not None:
                head = f"{name}, gap by {called(row['attribute'], attributes)}"
                lines.append(f"{head}: {between(row)}; without any difference it would be {number(row['expected'])}.")
    return lines


def between(row: Mapping[str, Any]) -> str:
    """A mean over seeds with its interval."""
    return interval({"value": row["mean"], "low": row["low"], "high": row["high"]})


def card_of_seeds(name: str, rows: Sequence[Mapping[str, Any]], figure: str, settings: Any) -> str:
    """A section of a model card, in Markdown, for several seeds of one method."""
    lines = [f"## Performance by patient group, over seeds: {_plain(name)}", ""]
    lines += [f"- {_plain(line)}" for line in of_seeds(rows, figure)]
    lines += ["", f"| dataset | attribute | group | seeds | {words(figure)} |", f"|{' --- |' * 5}"]
    for row in rows:
        if row["figure"] == figure:
            cells = [row["dataset"], row["attribute"], row["name"] + (" (small)" if row["small"] else "")]
            cells += [str(row["seeds"]), between(row)]
            lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    lines += [
        "",
        f"Means over seeds, with {settings.level:.0%} intervals between seeds by Student's t. Groups marked small have "
        f"fewer than {settings.least} patients in some seed. Research software; not for clinical use.",
        "",
    ]
    return "\n".join(lines)


def _attributes(gaps: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in dict.fromkeys(row["attribute"] for row in gaps) if name != JOINT]


def _same(group: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return group["dataset"] == row["dataset"] and group["attribute"] == row["attribute"]


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def card(name: str, found: Mapping[str, Any], figure: str, settings: Any) -> str:
    """A section of a model card, in Markdown: performance by group, and what limits it."""
    lines = [f"## Performance by patient group: {_plain(name)}", ""]
    lines += [f"- {_plain(line)}" for line in short(found, figure, settings.level)]
    shown = [
        key for key in dict.fromkeys((figure, "f1", "tpr", "fpr", "failures")) if key in found["groups"][0]["figures"]
    ]
    lines += ["", f"Figures with {settings.level:.0%} intervals:", ""]
    head = ["dataset", "attribute", "group", "patients", "records", *(words(key) for key in shown)]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in found["groups"]:
        cells = [row["dataset"], row["attribute"], row["name"] + (" (small)" if row["small"] else "")]
        cells += [f"{row['patients']:,}", f"{row['n']:,}", *(interval(row["figures"][key]) for key in shown)]
        lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    lines += [
        "",
        f"Groups marked small have fewer than {settings.least} patients and take no part in comparisons. Intervals "
        "come from a bootstrap over patients, in Wilson's form; tests deal patients to groups at random; p values are "
        f"adjusted ({settings.adjust}) over all tests. An absent difference is not a proof of equality. Research "
        "software; not for clinical use.",
        "",
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that is no markup in a Markdown table."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in " ".join(text.split()))
