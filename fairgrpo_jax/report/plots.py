"""The figures of the report, each as the text of an SVG.

Colours are Okabe and Ito's, which are distinguishable with all common forms of colour blindness; a run has the same
colour in all figures.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter

from fairgrpo_jax.audit.figures import FIGURES
from fairgrpo_jax.demographics import Scheme, rank
from fairgrpo_jax.report import groups, results


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NEUTRAL = "#7a7a7a"

_INK, _GRID = "#333333", "#e4e4e4"
_styled = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fairgrpo_jax", "font.size": 9})


def colour(run: int | None) -> str:
    """The colour of a run by its position; grey for a series that all runs share."""
    return NEUTRAL if run is None else COLOURS[run]


@_styled
def curves(runs: Sequence[results.Run], panels: Sequence[tuple[str, str, str]], *, columns: int = 2) -> str | None:
    """One panel per (title, kind of row, metric): raw values faint, their running mean strong.

    Held-out values, which are few, are drawn as points. Panels without values are omitted; None if all are.
    """
    panels = [panel for panel in panels if any(len(run.curve(*panel[1:])[0]) for run in runs)]
    if not panels:
        return None
    columns = min(columns, len(panels))
    figure, axes = _grid(len(panels), columns, width=10, height=2.3)
    for axis, (title, kind, metric) in zip(axes, panels, strict=False):
        for position, run in enumerate(runs):
            steps, values = run.curve(kind, metric)
            if kind == "eval":
                axis.plot(steps, values, "o-", color=colour(position), lw=1.4, ms=4)
            else:
                axis.plot(steps, values, color=colour(position), lw=0.6, alpha=0.3)
                axis.plot(steps, running_mean(values), color=colour(position), lw=1.8)
        axis.set_title(title, loc="left", fontsize=9.5)
    _legend(figure, runs)
    return _svg(figure)


@_styled
def ceilings(runs: Sequence[results.Run], limits: Mapping[str, float]) -> str | None:
    """The largest |A| of each step, with the maximum possible for this batch size as a dashed line."""
    if not any(len(run.curve("train", "advantage/max_abs")[0]) for run in runs):
        return None
    figure, (axis,) = _grid(1, 1, width=10, height=2.3)
    for position, run in enumerate(runs):
        steps, values = run.curve("train", "advantage/max_abs")
        axis.plot(steps, values, ".", color=colour(position), ms=3, alpha=0.5)
        axis.plot(steps, running_mean(values), color=colour(position), lw=1.8)
        if run.name in limits:
            axis.axhline(limits[run.name], color=colour(position), lw=1, ls="--")
    axis.set_title("Largest |A| of the step (dashed: its ceiling)", loc="left", fontsize=9.5)
    _legend(figure, runs)
    return _svg(figure)


@_styled
def groups_over_time(
    runs: Sequence[results.Run], tables: Sequence[tuple[int, list[int], Sequence[groups.Dataset]]], scheme: Scheme
) -> str | None:
    """Held-out F1 by dataset (rows) and group (columns) over the steps, with 95 % bands.

    ``tables`` holds (position of the run, its evaluation steps, its datasets with one series for each of these steps).
    """
    shown = [table for _, _, found in tables for table in found if table.attributes]
    rows = list(dict.fromkeys(table.name for table in shown))
    there = {(g.attribute, g.name) for table in shown for g in table.of(*table.attributes) if g.known}
    order = scheme.attributes or tuple(dict.fromkeys(name for table in shown for name in table.attributes))
    columns = sorted(there, key=lambda group: (order.index(group[0]), rank(*group, scheme)))
    if not rows or all(len(steps) < 2 for _, steps, _ in tables):
        return None
    figure = Figure(figsize=(max(4, 1.75 * len(columns)), 1.35 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    drawn = set()
    for position, steps, found in tables:
        for table in found:
            for group in (g for g in table.of(*table.attributes) if g.known and "f1" in g.values):
                place = (rows.index(table.name), columns.index((group.attribute, group.name)))
                _band(axes[place], steps, group, colour(position))
                drawn.add(place)
    for (row, column), axis in np.ndenumerate(axes):
        _tidy(axis)
        if (row, column) not in drawn:  # keep the labels at the edge, draw nothing
            axis.spines[:].set_visible(False)
            axis.grid(False)
        if row == 0:
            axis.set_title(columns[column][1], fontsize=9.5)
        if column == 0:
            axis.set_ylabel(rows[row], fontsize=9.5)
    axes[0, 0].set_ylim(-0.03, 1.03)  # room for points at 0 and 1
    _legend(figure, runs)
    return _svg(figure)


@_styled
def forest(table: groups.Dataset, columns: Sequence[results.Series]) -> str:
    """The figures of each group with 95 % intervals, one mark per series; small groups are pale."""
    heights, place = list[float](), 0.0
    for group, previous in zip(table.groups, [None, *table.groups[:-1]], strict=True):
        place += 1.7 if previous and previous.attribute != group.attribute else 1.0
        heights.append(place)
    figure = Figure(figsize=(10, 0.9 + 0.27 * place), layout="constrained")
    axes = list(figure.subplots(1, len(table.figures), sharey=True, squeeze=False).flat)
    for axis, field in zip(axes, table.figures, strict=True):
        for index, column in enumerate(columns):
            offset = (index - (len(columns) - 1) / 2) * 0.62 / len(columns)
            for height, group in zip(heights, table.groups, strict=True):
                _mark(axis, group.values[field][index], height + offset, column, 0.4 if group.small else 1.0)
        _tidy(axis, "x")
        axis.set(title=FIGURES[field].words, xlim=(-0.02, 1.02), ylim=(place + 0.8, 0.2))
    axes[0].set_yticks(heights, [f"{group.name}  (n {group.records})" for group in table.groups])
    handles = [_key(column.label, colour(column.run), hollow=column.before) for column in columns]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
    return _svg(figure)


@_styled
def shares(runs: Sequence[results.Run]) -> str | None:
    """Mean share of |A| of each group over the training, one dot per run; a group absent from a batch counts as 0."""
    prefix = "advantage/share/"
    names = list(dict.fromkeys(name for run in runs for name in run.names("train", prefix)))
    if not names:
        return None
    figure = Figure(figsize=(10, 0.8 + 0.22 * len(names)), layout="constrained")
    axis = figure.subplots()
    for position, run in enumerate(runs):
        steps = len(run.curve("train", "advantage/max_abs")[0])
        means = [np.nansum(run.curve("train", name)[1]) / max(steps, 1) for name in names]
        axis.plot(means, range(len(names)), "o", color=colour(position), ms=5.5)
    _tidy(axis, "both")
    axis.set(xlim=(0, None), ylim=(len(names) - 0.4, -0.6))
    axis.set_yticks(range(len(names)), [name.removeprefix(prefix).replace("/", " · ") for name in names])
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, runs)
    return _svg(figure)


@_styled
def drawn(run: results.Run) -> str | None:
    """How often each group was drawn, against its size (above), and how often it was right (below), by dataset.

    None unless the run drew its prompts by group.
    """
    prefix = "drawn/ratio/"
    cells = [name.removeprefix(prefix).split("/", 1) for name in run.names("train", prefix)]
    if not cells:
        return None
    datasets, groups = (list(dict.fromkeys(cell[part] for cell in cells)) for part in (0, 1))
    figure = Figure(figsize=(max(5.0, 1.9 * len(datasets) + 1.5), 4.4), layout="constrained")
    axes = figure.subplots(2, len(datasets), sharex=True, sharey="row", squeeze=False)
    style: dict[str, dict[str, Any]] = {
        group: {"color": COLOURS[i % len(COLOURS)], "ls": ("-", "--", ":")[i // len(COLOURS) % 3]}
        for i, group in enumerate(groups)
    }
    for dataset, group in cells:
        column = datasets.index(dataset)
        for axis, metric, smooth in zip(axes[:, column], (prefix, "reward/group/"), (False, True), strict=True):
            steps, values = run.curve("train", f"{metric}{dataset}/{group}")
            axis.plot(steps, running_mean(values) if smooth else values, lw=1.5, **style[group])
    for (row, column), axis in np.ndenumerate(axes):
        _tidy(axis)
        if row == 0:
            axis.set_title(datasets[column], fontsize=9.5)
            axis.set_yscale("log")
            axis.minorticks_off()
            axis.axhline(1, color="#999999", lw=0.8)
    axes[0, 0].set_ylabel("drawn, times its share of the data", fontsize=8.5)
    axes[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[1, 0].set_ylabel("mean reward", fontsize=8.5)
    axes[1, 0].set_ylim(-0.03, 1.03)
    handles = [Line2D([], [], lw=1.6, label=group, **style[group]) for group in groups]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5)
    return _svg(figure)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twentieth of the curve, narrower at its ends; NaN values are ignored."""
    half = max(1, len(values) // 40)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return np.asarray([np.nanmean(window) if np.isfinite(window).any() else math.nan for window in windows])


def _grid(number: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(width, height * rows + 0.3), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[number:]:
        axis.axis("off")
    for axis in axes[:number]:
        _tidy(axis)
        axis.set_xlabel("step", fontsize=8.5, color=_INK)
    return figure, axes


def _tidy(axis: Axes, grid: str = "y") -> None:
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color("#999999")
    axis.grid(axis=grid, color=_GRID, lw=0.8)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=8.5, colors=_INK)


def _band(axis: Axes, steps: Sequence[int], group: groups.Group, shade: str) -> None:
    middle, low, high = zip(*(one[:3] for one in group.values["f1"]), strict=True)
    axis.fill_between(steps, low, high, color=shade, alpha=0.16, lw=0)
    axis.plot(steps, middle, "o-", color=shade, lw=1.4, ms=2.5)


def _mark(axis: Axes, estimate: groups.Estimate, height: float, column: results.Series, alpha: float) -> None:
    shade = colour(column.run)
    if math.isfinite(estimate.low):
        axis.plot(
            [estimate.low, estimate.high], [height, height], color=shade, lw=1.3, alpha=alpha, solid_capstyle="round"
        )
    fill = "white" if column.before else shade
    axis.plot(estimate.value, height, "o", color=shade, mfc=fill, ms=4.5, mew=1.3, alpha=alpha)


def _key(label: str, shade: str, *, hollow: bool = False) -> Line2D:
    return Line2D([], [], color=shade, marker="o", lw=1.6, ms=5, mfc="white" if hollow else shade, label=label)


def _legend(figure: Figure, runs: Sequence[results.Run]) -> None:
    if len(runs) > 1:
        handles = [_key(run.name, colour(position)) for position, run in enumerate(runs)]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(runs), frameon=False)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return text.getvalue()
