"""The report of a run, or of several side by side: one HTML file that needs nothing else.

``build`` reads only run folders, so a report can be rebuilt at any time, even while a run is in progress::

    python -m fairgrpo_jax.report outputs/grpo outputs/fair_grpo --out report.html
"""

import base64
import hashlib
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from fairgrpo_jax import __version__, config as options, diagnostics, files
from fairgrpo_jax.audit.figures import FIGURES
from fairgrpo_jax.audit.runs import scheme_of
from fairgrpo_jax.audit.sentences import called, probability
from fairgrpo_jax.demographics import Scheme
from fairgrpo_jax.report import completions, components, groups, plots, results, words


_PANELS = (
    ("Training reward", "train", "reward/mean"),
    ("Held-out reward (greedy)", "eval", "reward"),
    ("Held-out reward (sampled)", "eval", "reward_sampled"),
    ("Loss of the warm-up (supervised)", "warmup", "loss"),
    ("Loss of the policy", "train", "loss"),
)
_HEALTH = (
    ("Effective sample size of the prompts' weights", "train", "fairness/effective_sample_size"),
    ("Share of |A| in the top prompt", "train", "advantage/top_prompt_share"),
    ("Share of prompts without reward variance", "train", "reward/zero_variance_share"),
    ("Truncated completions", "train", "rollout/truncated_share"),
)
_KEY_OPTIONS = (
    "algorithm",
    "focus",
    "data.sampling",
    "seed",
    "steps",
    "prompts",
    "rollouts",
    "optim.lr",
    "warmup.steps",
    "data.name",
    "mesh",
)
_LARGEST_IMAGE = 320  # pixels, of the longer side
_SAMPLES = 8  # prompts shown for each run
_BANDS = 9  # maximum number of evaluations drawn over time; more are thinned out evenly


MOST_RUNS = len(plots.COLOURS)  # side by side


def build(runs: Mapping[str, Path], out: Path, *, title: str) -> Path:
    """Writes the report of one or more run folders as a single HTML file; returns its path.

    Args:
        runs: displayed name -> run folder; the others are compared with the first one.
        out: the file to write; an existing file is replaced.
        title: heading of the report.

    Raises:
        ValueError: if there are no runs, more runs than colours, or a folder is not a run folder.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise ValueError(f"got {len(runs)} runs; wanted 1 to {MOST_RUNS} side by side, make several reports")
    loaded = [results.load(name, Path(path)) for name, path in runs.items()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "picture": _picture, "share": lambda value: f"{100 * value:.0f} %"}
    environment.filters |= {"digits": completions.digits, "label": completions.label, "p": probability}
    environment.globals["nan"] = math.nan
    page = environment.get_template("report.html.jinja").render(_content(loaded, title))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write(out, page)
    return out


def _content(runs: Sequence[results.Run], title: str) -> dict[str, Any]:
    """All values that the template uses."""
    scheme = scheme_of(runs[0].config)
    columns = results.series(runs)
    contrasts = _contrasts(columns)
    shown = [pair for _, pair in contrasts]
    found = groups.held(columns, scheme, [*shown, *words.since(columns)])
    samples = [_samples(run) for run in runs]
    script = (Path(__file__).parent / "filter.js").read_text(encoding="utf-8")
    return {
        "title": title,
        "script": script,
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "version": __version__,
        "settings": groups.SETTINGS,
        "few": results.FEW_PATIENTS,
        "runs": runs,
        "colour": plots.colour,
        "notes": _notes(runs, columns),
        "summary": words.summary(columns, found),
        "headline": groups.headline(found, shown),
        "cautions": words.cautions(runs, found),
        "options": _options(runs),
        "figures": _figures(runs, scheme),
        "drawn": _drawn(runs),
        "times": [_times(run) for run in runs],
        "columns": columns,
        "attributes": " and ".join(dict.fromkeys(name for table in found.datasets for name in table.attributes)),
        "contrasts": [(heading, found.at(pair)) for heading, pair in contrasts],
        "tables": found.datasets,
        "forests": [plots.forest(table, columns) for table in found.datasets],
        "called": called,
        "measured": {name: FIGURES[name].words for name in groups.FIGURES},
        "fairness": groups.measures(found),
        "components": components.tables(columns, scheme),
        "samples": samples,
        "choices": _choices(samples),
    }


def _notes(runs: Sequence[results.Run], columns: Sequence[results.Series]) -> list[str]:
    notes = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    sizes = {len(column.rows) for column in columns}
    common = groups.common(columns)
    if sizes - {len(common)}:
        notes.append(
            f"The evaluations do not hold the same records (they hold {_listed(sorted(sizes))}); "
            f"all tables and figures of groups use the {len(common)} that are common to all."
        )
    return notes


def _options(runs: Sequence[results.Run]) -> dict[str, list[tuple[str, list[str], bool]]]:
    """Rows (option, value in each run, whether they differ): the main options, and all options."""
    flat = [options.flatten(run.config) for run in runs]
    rows = []
    for name in dict.fromkeys(name for config in flat for name in config):
        values = [_plain(config[name]) if name in config else "–" for config in flat]
        rows.append((name, values, len(set(values)) > 1))
    return {"key": [row for row in rows if row[2] or row[0] in _KEY_OPTIONS], "all": rows}


def _figures(runs: Sequence[results.Run], scheme: Scheme) -> dict[str, str | None]:
    return {
        "curves": plots.curves(runs, _PANELS),
        "groups": plots.groups_over_time(
            runs, [_over_time(position, run, scheme) for position, run in enumerate(runs)], scheme
        ),
        "ceilings": plots.ceilings(runs, {run.name: limit for run in runs if (limit := _ceiling(run.config))}),
        "health": plots.curves(runs, _HEALTH),
        "tasks": plots.curves(runs, _tasks(runs)),
        "components": plots.curves(runs, _panels(runs, "reward/component/", "reward/normalised/")),
        "signal": plots.curves(runs, _panels(runs, "advantage/component/")),
        "shares": plots.shares(runs),
    }


def _panels(runs: Sequence[results.Run], *prefixes: str) -> list[tuple[str, str, str]]:
    """A panel for each component of the reward; nothing by dataset and group."""
    names = dict.fromkeys(name for prefix in prefixes for run in runs for name in run.names("train", prefix))
    told = {name: completions.label(name.partition("/")[2]) for name in names if name.count("/") == 2}
    return [(title, "train", name) for name, title in told.items()]


def _tasks(runs: Sequence[results.Run]) -> list[tuple[str, str, str]]:
    """A panel for each component of the reward in each task of held-out records."""
    names = sorted({name for run in runs for name in run.names("eval", "task/")})
    return [(" · ".join(name.split("/")[1:]), "eval", name) for name in names]


def _drawn(runs: Sequence[results.Run]) -> list[tuple[str, str]]:
    """Name and picture of each run that drew its prompts by group."""
    return [(run.name, picture) for run in runs if (picture := plots.drawn(run))]


def _over_time(position: int, run: results.Run, scheme: Scheme) -> tuple[int, list[int], list[groups.Dataset]]:
    """The datasets of a run with one series per evaluation; evaluations are thinned out evenly."""
    steps = results.thinned(list(run.evals), _BANDS)
    columns = [results.Series(str(step), position, False, results.by_uid(run.evals[step])) for step in steps]
    return position, steps, groups.held(columns, scheme, tests=False).datasets


def _ceiling(config: Mapping[str, Any]) -> float | None:
    """The largest |A| that the estimator can return for this batch size; None if unknown."""
    prompts, rollouts = config.get("prompts"), config.get("rollouts")
    if not prompts or not rollouts:
        return None
    if config.get("algorithm") in ("fair_grpo", "fair_grpo_nd", "drpo"):
        return diagnostics.ceiling(prompts, rollouts)
    plain = config.get("algorithm") == "grpo" and not config.get("focus")
    return (rollouts - 1) / math.sqrt(rollouts) if plain else None


def _contrasts(columns: Sequence[results.Series]) -> list[tuple[str, groups.Pair]]:
    """Headings and pairs of the differences that are shown: later runs minus the first, or after minus before."""
    afters = [index for index, column in enumerate(columns) if not column.before]
    if len(afters) > 1:
        first = afters[0]
        return [(f"{columns[after].label} − {columns[first].label}", (after, first)) for after in afters[1:]]
    return [("after − before", (afters[0], 0))] if afters and afters[0] > 0 else []


def _times(run: results.Run) -> dict[str, Any]:
    """Seconds of the training steps by phase."""
    total = float(np.nansum(run.curve("train", "time/step")[1]))
    phases = []
    for name in run.names("train", "time/"):
        seconds = run.curve("train", name)[1]
        seconds = seconds[np.isfinite(seconds)].tolist()
        if name != "time/step" and seconds:
            phase = {"name": name.removeprefix("time/"), "median": 1000 * statistics.median(seconds)}
            phases.append(phase | {"total": sum(seconds), "share": sum(seconds) / total if total else math.nan})
    return {
        "name": run.name,
        "phases": phases,
        "steps": len(run.curve("train", "time/step")[0]),
        "total": total,
        "warmup": float(np.nansum(run.curve("warmup", "time/step")[1])),
    }


def _samples(run: results.Run) -> dict[str, Any]:
    """The prompts that are shown of those that a run kept, the latest first, those of the latest step with pictures."""
    latest, shown = max(run.samples, default=None), []
    for prompt in (prompt for step in sorted(run.samples, reverse=True) for prompt in run.samples[step][:_SAMPLES]):
        images = [image for path in prompt.images if prompt.step == latest and (image := _png(path)) is not None]
        missing = len(prompt.images) - len(images)
        told = "image file(s) missing or damaged" if prompt.step == latest else "image file(s) in samples/"
        shown.append({"prompt": prompt, "images": images, "note": f"{missing} {told}" if missing else ""})
    prompts = [one["prompt"] for one in shown]
    left_out = sum(len(own) for own in run.samples.values()) - len(prompts)
    return {"shown": shown, "steps": sorted(run.samples), "left_out": left_out, "numbers": completions.numbers(prompts)}


def _choices(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What the completions that are shown can be chosen by; ``start``: the last step of all runs."""
    prompts = [one["prompt"] for sample in samples for one in sample["shown"]]
    outcomes = {name for prompt in prompts for said in prompt.completions for name in said.outcomes}
    steps = [set(sample["steps"]) for sample in samples if sample["shown"]]
    return {
        "start": sorted(set.intersection(*steps))[-1:] if steps else [],
        "step": sorted({prompt.step for prompt in prompts}),
        "dataset": sorted({prompt.dataset for prompt in prompts}),
        "group": sorted({group for prompt in prompts for group in prompt.groups}),
        "outcome": [name for name in completions.OUTCOMES if name in outcomes],
        "number": list(dict.fromkeys(name for sample in samples for name in sample["numbers"])),
    }


def _png(file: Path) -> str | None:
    """The image as a data URL, reduced if it is large; None if the file is missing or damaged."""
    data = io.BytesIO()
    try:
        with Image.open(file, formats=("PNG",)) as image:
            image.thumbnail((_LARGEST_IMAGE, _LARGEST_IMAGE))
            image.convert("RGB").save(data, "PNG", optimize=True)
    except (OSError, SyntaxError, ValueError):
        return None
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _picture(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _number(value: float | str, form: str = ".3f") -> str:
    """Formats a number with a true minus sign, or a dash if it is undefined; names are returned unchanged."""
    if isinstance(value, str):
        return value
    return format(value, form).replace("-", "−") if math.isfinite(value) else "–"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)
