"""The final table of a run, for the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from fairgrpo_jax.audit.runs import person
from fairgrpo_jax.demographics import DEFAULT, JOINT, Scheme, members


def held_out_table(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], *, scheme: Scheme = DEFAULT
) -> Table:
    """The final table of a run: share of exact answers by dataset and group, before and after.

    Args:
        before: rows of ``evals/000000.jsonl`` ("dataset", "sex", "age" in years, further "attributes", "reward"), after
            the warm-up.
        after: rows of the last evaluation, of the same records.
        scheme: the groups that the run distinguishes.

    Returns:
        A rich table; print it with ``rich.print``. A star marks the worst group of a dataset after training, the first
        one if several tie.
    """
    table = Table(title="Held-out answers, exact", title_justify="left", caption="* worst group of its dataset after")
    for name in ("dataset", "group"):
        table.add_column(name, no_wrap=True)
    for name in ("n", "before", "after", "change"):
        table.add_column(name, justify="right")
    old, new = _exact_shares(before, scheme), _exact_shares(after, scheme)
    for dataset, groups in new.items():
        worst = min((group for group in groups if group[0] != "all"), key=lambda group: groups[group][1], default=None)
        for group, (count, share) in groups.items():
            first = old.get(dataset, {}).get(group, (0, math.nan))[1]
            star = " *" if group == worst else ""
            lead = dataset if group[0] == "all" else ""
            start, change = (f"{first:.3f}", f"{share - first:+.3f}") if math.isfinite(first) else ("–", "–")
            table.add_row(lead, group[1] + star, str(count), start, f"{share:.3f}", change)
        table.add_section()
    return table


def _exact_shares(
    rows: Sequence[Mapping[str, Any]], scheme: Scheme
) -> dict[str, dict[tuple[str, str], tuple[int, float]]]:
    """Maps dataset -> (attribute, group) -> (records, share of exact answers), in the order of tables."""
    shares: dict[str, dict[tuple[str, str], tuple[int, float]]] = {}
    for head, its in members([person(row) for row in rows], [row["dataset"] for row in rows], scheme):
        if head["attribute"] != JOINT:
            share = float(np.mean([rows[i].get("exact", rows[i]["reward"]) for i in its]))
            shares.setdefault(head["dataset"], {})[head["attribute"], head["name"]] = (len(its), share)
    return shares
