"""What reporting guidelines ask about groups of patients, which part of an audit answers it, and what is missing.

What each item asks is told in our words; read the guideline before you claim to meet it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fairgrpo_jax.demographics import JOINT


TRIPOD = "TRIPOD+AI (BMJ 2024;385:e078378)"
STANDING = "STANDING Together (Lancet Digital Health 2025)"
ACT = "EU AI Act, Annex IV"


class Item(NamedTuple):
    """One item of a guideline."""

    source: str
    item: str
    asks: str
    answered: str  # by which part of the report; empty = by none
    missing: str  # what its reader has to add


def tripod(found: Mapping[str, Any], *, patients: bool, several: bool) -> list[Item]:
    """The items that concern groups, for one audit.

    Args:
        found: of ``audit.examine``.
        patients: whether the file told the patients.
        several: whether several models are compared.
    """
    groups = found["groups"]
    known = [name for name in dict.fromkeys(row["attribute"] for row in groups) if name not in ("all", JOINT)]
    absent = [name for name in ("sex", "age", "race") if name not in known]
    no_patients = (
        "" if patients else "The file does not tell patients, so that intervals may be too narrow (--patient). "
    )
    small = sorted(
        {f"{row['attribute']} {row['name']}" for row in groups if row["small"] and row["attribute"] != JOINT}
    )
    unknown = sum(row["n"] for row in groups if not row["known"] and row["attribute"] != JOINT)
    few = f"Too few patients: {', '.join(small)}. " if small else ""
    scored = bool(found["calibration"])
    one = len(found["datasets"]) < 2
    return [
        Item(
            TRIPOD,
            "3c",
            "known inequalities in health between groups",
            "",
            "Yours to write: which, and why they matter.",
        ),
        Item(
            TRIPOD, "14", "what was done about fairness, and why", "Method", "Why these groups and figures were chosen."
        ),
        Item(
            TRIPOD,
            "20b",
            "who the patients are, by key groups, and what is missing",
            "Who is in the data" if known else "",
            (f"No column for {', '.join(absent)}. " if absent else "") + "Where, when and how patients were found.",
        ),
        Item(
            TRIPOD,
            "23a",
            "performance with intervals, also by key groups, and plots",
            "Groups; calibration by group" if scored else "Groups",
            no_patients + few + ("" if scored else "No scores, so no calibration (--score)."),
        ),
        Item(
            TRIPOD,
            "23b",
            "how performance differs between groups, sites or times",
            "Gaps and tests" + ("; two models" if several else ""),
            "One dataset: differences between sites and times are not seen (--dataset)." if one else "",
        ),
        Item(TRIPOD, "25, 26", "fairness in interpretation and limitations", "In short; Method", "Your reading of it."),
        Item(
            STANDING,
            "data",
            "who is in the data, who is missing, and how groups were defined",
            "Who is in the data" if known else "",
            f"Values not known: {unknown:,}. " * bool(unknown) + "Who told the attributes: the patients, or others.",
        ),
        Item(
            STANDING,
            "use",
            "performance for groups of interest, named beforehand, with uncertainty, and limits of use",
            "Groups; Gaps and tests",
            few + "Which groups were named before the results were seen; for whom the model must not be used.",
        ),
        Item(ACT, "2(b)", "choices of design with regard to persons or groups", "", "Yours to write."),
        Item(
            ACT,
            "3",
            "accuracy for the persons or groups on which the system is to be used",
            "Groups" if known else "",
            "Whether these patients are those; foreseeable risks.",
        ),
    ]


def markdown(items: Sequence[Item]) -> str:
    """The items as a table in Markdown."""
    rows = [
        "| source | item | asks | answered by | missing |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {item.source} | {item.item} | {item.asks} | {item.answered or '–'} | {item.missing or '–'} |"
            for item in items
        ),
    ]
    return "# What guidelines ask about groups of patients\n\n" + "\n".join(rows) + "\n"
