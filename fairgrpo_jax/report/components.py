"""The components of the reward in held-out evaluations, by dataset and group."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairgrpo_jax import demographics
from fairgrpo_jax.audit.runs import person
from fairgrpo_jax.demographics import Scheme
from fairgrpo_jax.report import groups, results


class Mean(NamedTuple):
    """A component in one series: its raw mean over the records of a group that it scored."""

    value: float  # NaN if it scored none
    applies: int  # records to which it applies
    unscored: int  # of these, records that it did not score


class Row(NamedTuple):
    """A group of a dataset."""

    attribute: str
    name: str
    records: int
    means: dict[str, list[Mean]]  # by component, one per series


def tables(columns: Sequence[results.Series], scheme: Scheme) -> dict[str, list[Row]]:
    """The groups of each dataset whose rewards have several components, on the records that all series have.

    Args:
        columns: evaluations to compare.
        scheme: the groups to distinguish.
    """
    uids = groups.common(columns)
    first = [columns[0].rows[uid] for uid in uids]
    found: dict[str, list[Row]] = {}
    for head, members in demographics.members(
        [person(row) for row in first], [row["dataset"] for row in first], scheme
    ):
        own = [[column.rows[uids[i]] for i in members] for column in columns]
        names = dict.fromkeys(name for rows in own for row in rows for name in row.get("components", {}))
        if names:
            means = {name: [_mean(rows, name) for rows in own] for name in names}
            found.setdefault(head["dataset"], []).append(Row(head["attribute"], head["name"], len(members), means))
    return found


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> Mean:
    told = [row["components"][name] for row in rows if name in row.get("components", {})]
    values = np.array([np.nan if value is None else value for value in told], float)
    scored = values[~np.isnan(values)]
    return Mean(float(scored.mean()) if len(scored) else np.nan, len(values), len(values) - len(scored))
