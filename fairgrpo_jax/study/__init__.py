r"""Compare methods: every method on the same data, warm-up, prompts and random keys, over seeds and settings.

For every setting and seed the supervised stage runs once; each method starts from its weights. A method is one of those
of the presets (``train --list``), with options after it in quotes: "fair_sampling draw.window=1". A list is joined by
commas; an element with a comma of its own stands in double quotes: 'grpo reward.components="exact,normalised"'.
Finished runs are kept: the same command goes on with what is missing. ``results.md`` and ``results.csv`` hold the
outcome, and ``report.html`` shows the runs of the first seed side by side, by group, with intervals.

With --primaries the study is registered: methods, seeds and tests are written down before the first run, and a later
change is refused.

Examples::

    python -m fairgrpo_jax.study clinic --methods grpo fair_sampling --seeds 0 1 2 --jobs 2
    python -m fairgrpo_jax.study clinic_small --preset ablation --seeds 0 1 2 --jobs 2
    python -m fairgrpo_jax.study clinic --methods grpo fair_sampling --seeds 20 21 22 23 24 25 26 27 \
        --primaries "worst_f1: fair_sampling > grpo" "f1: fair_sampling > grpo - 0.02" --vary-data
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import rich
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fairgrpo_jax import (
    commandline,
    config as options,
    files,
    folder as folders,
    mesh,
    processes,
    programs,
    report,
    runs,
    sft,
    tracking,
    train,
)
from fairgrpo_jax.study import outcomes, registration, tables
from fairgrpo_jax.study.presets import PRESETS
from fairgrpo_jax.study.registration import Primary, Variant


@dataclasses.dataclass(frozen=True)
class Arguments(commandline.Arguments):
    """Options of the study, in addition to those of a run."""

    preset: Literal["table", "ablation", "clusters", "null", "lr"] | None = None
    """A named comparison: the paper's seven methods and ours; the parts of ours and of FairGRPO; groups found
    by clustering against the patients' own; the clinic without any group effect; each method with three learning
    rates."""
    methods: tuple[str, ...] = ()
    """Methods to compare, each with its options; the first one is the reference. Default: grpo, fair_grpo and
    fair_sampling."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; every method runs once with each."""
    settings: tuple[str, ...] = ()
    """Settings, each a list of options in quotes; every method runs in each. Default: one, that of the preset."""
    primaries: tuple[str, ...] = ()
    """Comparisons on which the study is judged, as "worst_f1: fair_sampling > grpo_rs" or "f1: fair_sampling > grpo -
    0.02"; they register the study. Figures: worst_f1, best_f1 and spread_f1 of demographic cells, f1, top1, greedy,
    sampled, length."""
    alpha: float = 0.05
    """Level of the registered tests, adjusted over all of them by Holm."""
    vary_data: bool = False
    """The embedded clinic is also drawn anew for each seed (data.options seed=SEED)."""
    jobs: int = 1
    """Processes that run side by side, each with its share of the cores; for small policies on a CPU."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of a study."""

    setting: Variant
    method: Variant | None  # None: the warm-up
    seed: int
    config: options.Config
    folder: Path

    @property
    def key(self) -> tuple[str, str, int]:
        """Where its figures stand among the results."""
        return self.setting.label, tables.WARM_UP if self.method is None else self.method.label, self.seed

    @property
    def steps(self) -> int:
        """Number of the evaluation that ends it."""
        return 0 if self.method is None else self.config.steps

    def finished(self) -> bool:
        """Whether it has ended, with this config."""
        path, log = self.folder / "config.json", self.folder / "metrics.jsonl"
        if not path.exists() or not log.exists():
            return False
        if not any(row["kind"] == "eval" and row["step"] == self.steps for row in tracking.read_rows(log)):
            return False
        if self.method is None and not (self.folder / "checkpoints" / f"{self.config.warmup.steps}").exists():
            return False  # killed while it was being saved; the methods start from it
        before, _ = options.read(path)
        return not options.difference(
            options.to_dict(before),
            options.to_dict(folders.recall(self.folder, self.config) or self.config),
            ignore=tuple(o for o in folders.FREE if o != "steps"),
        )

    def run(self) -> None:
        """Runs it to its end, or the rest of it."""
        if self.method is None:
            sft.sft(self.config, self.folder)
        else:
            with runs.open_run(self.config, self.folder) as run:
                train.reinforce(run, *sft.begin(run))


def plan(arguments: Arguments, workdir: Path) -> list[Task]:
    """All runs of a study: for each setting and seed the warm-up, then the methods.

    Raises:
        ValueError: for methods or settings that do not exist, or options that do not fit.
    """
    methods = [registration.method(text) for text in arguments.methods]
    settings = [registration.setting(text) for text in arguments.settings]
    for kind, chosen, fixed in (("method", methods, ("seed", "warmup.")), ("setting", settings, ("seed",))):
        for one in chosen:
            if own := [name for name, _ in one.changes if name.startswith(fixed)]:
                raise ValueError(
                    f"got {', '.join(own)} in the {kind} {one.label!r}; wanted --seeds for seeds, and options of the "
                    "warm-up, which all methods of a seed share, in a setting"
                )
    tasks = []
    for setting in settings:
        for seed in arguments.seeds:
            base = dataclasses.replace(setting.apply(arguments.config), seed=seed)
            if arguments.vary_data:
                drawn = dataclasses.replace(base.data, options=(*base.data.options, f"seed={seed}"))
                base = dataclasses.replace(base, data=drawn)
            place = workdir / setting.folder / f"seed{seed}"
            warm = dataclasses.replace(base, algorithm="grpo")
            tasks.append(Task(setting, None, seed, warm, place / "warmup"))
            begun = dataclasses.replace(base.warmup, run=place / "warmup")
            for method in methods:
                chosen = method.apply(dataclasses.replace(base, warmup=begun))
                tasks.append(Task(setting, method, seed, chosen, place / method.folder))
    if len({task.folder for task in tasks}) < len(tasks):
        raise ValueError("got a method, setting or seed twice; wanted each once")
    return tasks


def study(arguments: Arguments, workdir: Path, *, command: str = "") -> dict[tuple[str, str, int], dict[str, float]]:
    """Runs what is missing of a study and writes its results; returns the figures by (setting, method, seed).

    Raises:
        ValueError: for methods, settings, seeds or comparisons that do not fit, or if the folder is registered for
            another study.
    """
    arguments = complete(arguments)
    tasks = plan(arguments, workdir)
    names = list(dict.fromkeys(task.method.label for task in tasks if task.method))
    primaries = [registration.primary(text, names, [*outcomes.FIGURES]) for text in arguments.primaries]
    registered = registration.register(workdir, _registered(arguments, names, primaries)) if primaries else None
    missing = [task for task in tasks if not task.finished()]
    print(f"{len(tasks)} runs in {workdir}, {len(tasks) - len(missing)} of them finished", flush=True)
    if arguments.jobs > 1:
        _side_by_side(missing, arguments.jobs)
    else:
        for task in missing:
            print(f"{' · '.join(str(part) for part in task.key if part != '')}", flush=True)
            task.run()
    results = {task.key: outcomes.outcomes(task.folder, task.config, task.steps) for task in tasks}
    text = tables.as_markdown(
        f"{arguments.config.name}: {', '.join(names)}",
        results,
        reference=names[0],
        primaries=primaries,
        registered=registered,
        alpha=arguments.alpha,
        command=command,
        best_of=arguments.preset == "lr",
    )
    files.write(workdir / "results.csv", tables.as_csv(results))
    files.write(workdir / "results.md", text)
    rich.print(Markdown(text))
    _report(tasks, workdir)
    print(f"results: {workdir / 'results.md'}, {workdir / 'results.csv'}")
    return results


def complete(arguments: Arguments) -> Arguments:
    """The arguments with methods and settings of the preset, or the defaults, where none are given."""
    given = PRESETS[arguments.preset] if arguments.preset else PRESETS["default"]
    return dataclasses.replace(
        arguments, methods=arguments.methods or given.methods, settings=arguments.settings or given.settings
    )


def _registered(arguments: Arguments, names: list[str], primaries: Sequence[Primary]) -> dict[str, Any]:
    """What the registration holds."""
    return {
        "methods": names,
        "settings": [*arguments.settings],
        "seeds": [*arguments.seeds],
        "vary_data": arguments.vary_data,
        "primaries": [primary.text for primary in primaries],
        "test": "paired over seeds, two-sided exact sign-flip, Holm over the primaries of a setting",
        "alpha": arguments.alpha,
        "smallest_cell": outcomes.SMALLEST_CELL,
        "config": options.to_dict(arguments.config),
    }


def _side_by_side(tasks: Sequence[Task], jobs: int) -> None:
    """Runs tasks in processes, a warm-up before the methods that start from it; their output goes to ``log.txt``."""
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []  # Linux has it
    shares = context.Queue()
    for job in range(jobs):
        shares.put(cores[job::jobs] or cores)
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with (
        concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (shares,)) as pool,
        Progress(*columns) as progress,
    ):
        bar = progress.add_task("", total=len(tasks))
        waiting = [task for task in tasks if task.method is not None]
        places = {(task.setting, task.seed) for task in tasks if task.method is None}
        pending = {pool.submit(_in_process, task): task for task in tasks if task.method is None}

        def start(ready: Sequence[Task]) -> None:
            for task in ready:
                waiting.remove(task)
                pending[pool.submit(_in_process, task)] = task

        start([task for task in waiting if (task.setting, task.seed) not in places])
        try:
            while pending:
                done, _ = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    ended = pending.pop(future)
                    future.result()
                    progress.update(bar, advance=1, description=" · ".join(map(str, ended.key)).strip(" ·"))
                    if ended.method is None:
                        start([t for t in waiting if (t.setting, t.seed) == (ended.setting, ended.seed)])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(shares: Any) -> None:
    """Gives a process its share of the cores, before JAX counts them, and ends it when the study is killed."""
    cores = shares.get()
    if cores:
        os.sched_setaffinity(0, cores)
    processes.end_with_parent()


def _in_process(task: Task) -> None:
    """Runs a task with its output in a file of its folder."""
    task.folder.mkdir(parents=True, exist_ok=True)
    mesh.simulate(task.config.mesh)
    programs.keep()
    with (task.folder / "log.txt").open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        task.run()


def _report(tasks: Sequence[Task], workdir: Path) -> None:
    """Shows the runs of the first seed side by side, as many methods as a report holds."""
    first = tasks[0]
    its = [t for t in tasks if t.method is not None and (t.setting, t.seed) == (first.setting, first.seed)]
    its = its[: report.MOST_RUNS]
    title = f"{first.config.name}, seed {first.seed}: {', '.join(t.key[1] for t in its)}"
    path = report.build({t.key[1]: t.folder for t in its}, workdir / "report.html", title=title)
    print(f"side by side: {path}")


def main() -> None:
    """Runs the command line."""
    with commandline.one_line_errors():
        prog = "python -m fairgrpo_jax.study"
        arguments = commandline.parse(sys.argv[1:], prog=prog, description=__doc__, schema=Arguments)
        if arguments.jobs == 1:
            mesh.simulate(arguments.config.mesh)
            programs.keep()
        workdir = arguments.workdir or Path("outputs") / f"study-{arguments.config.name}"
        study(arguments, workdir, command=shlex.join([*prog.split(), *sys.argv[1:]]))
