"""What a plan prints: tables of memory and work, and the verdict."""

import dataclasses
import math
from typing import Any

from rich.console import Console
from rich.table import Table

from fairgrpo_jax.plan import cost, devices


def show(made: Any, console: Console) -> None:
    """Prints tables of memory and time of a ``plan.Plan``, then the verdict."""
    kind, gib = made.target.kind, devices.GIB
    console.print(f"{made.target.count} x {kind.title} ({made.target.name}); figures of one device", highlight=False)
    table = Table("GiB", *(phase.name for phase in made.phases), title="memory", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, size in made.state.items():
        if size:
            table.add_row(name, *[figure(size / gib)] * len(made.phases))
    for name in dict.fromkeys(name for phase in made.phases for name in phase.held):
        sizes = [phase.held.get(name) for phase in made.phases]
        if any(sizes):
            table.add_row(name, *("" if size is None else figure(size / gib) for size in sizes))
    table.add_section()
    table.add_row(f"peak, of {made.limit / gib:.1f}", *(figure(phase.peak / gib) for phase in made.phases))
    console.print(table)
    work = Table(title="work of a step, and its least time", title_justify="left")
    for name in ("", *(phase.name for phase in made.phases)):
        work.add_column(name, justify="right" if name else "left")
    for field in dataclasses.fields(cost.Flops):
        work.add_row(
            f"{field.name}, TFLOP", *(figure(getattr(phase.flops, field.name) / 1e12) for phase in made.phases)
        )
    work.add_row("memory traffic, GB", *(figure(phase.read / 1e9) for phase in made.phases))
    work.add_row("received, GB", *(figure(phase.sent / 1e9) for phase in made.phases))
    work.add_section()
    for name in ("compute", "memory", "link"):
        work.add_row(f"{name}, s", *(figure(phase.seconds[name]) for phase in made.phases))
    work.add_row("least time, s", *(f"{figure(phase.least)} ({phase.bound})" for phase in made.phases))
    console.print(work)
    rate = made.tokens / made.seconds
    console.print(
        f"a step takes at least {figure(made.seconds)} s at the makers' peak rates, so at most {rate:,.0f} completion "
        "tokens/s over the mesh",
        highlight=False,
    )
    hours = [made.steps * seconds / 3600 for seconds in (made.seconds, made.likely)]
    told = [f"{figure(each)} hours, {figure(each * made.target.count)} device-hours" for each in hours]
    shares = ", ".join(f"{phase.name} {share:.0%}" for phase, share in zip(made.phases, made.reached, strict=True))
    console.print(
        f"{made.steps} steps take at least {told[0]}; {told[1]} at the shares of the least times that one H200 reached "
        f"({shares}); without evaluation, supervised steps and saving",
        highlight=False,
    )
    for name, size in made.host.items():
        console.print(f"host: {name} {figure(size / gib)} GiB", highlight=False)
    if made.preparing:
        console.print(
            f"host: preparing the prompts of a step takes one core at most {figure(made.preparing)} s; "
            f"{math.ceil(made.preparing / made.likely)} keep up with a step of {figure(made.likely)} s (data.workers)",
            highlight=False,
        )
    prompts, caches = made.shapes
    each = f" for each of at most {made.buckets} sizes of prompts" if made.buckets > 1 else ""
    console.print(
        f"programs: copy, prompt pass and update{each}, optimizer, and decoding with {caches} lengths of caches and at "
        f"most {prompts} numbers of prompts a device; evaluation has its own",
        highlight=False,
    )
    if made.parts:
        console.print(f"a step is computed in parts: {made.parts}", highlight=False)
    if made.faster:
        console.print(f"faster, and fits: {made.faster}", highlight=False, markup=False)
    for outcome in made.outcomes:
        earlier = ", compiled before" if outcome.cached else ""
        console.print(f"compiled for {made.target.name}, not run on it: {outcome.words}{earlier}", highlight=False)
    for warning in made.warnings:
        console.print(f"note: {warning}", highlight=False, markup=False)
    over = [phase.name for phase in made.phases if phase.peak > made.limit]
    over += [f"{outcome.program} as compiled" for outcome in made.outcomes if outcome.status == "out of memory"]
    console.print("verdict: it fits" if made.fits else f"verdict: it does not fit ({', '.join(over)})", highlight=False)
    for number, change in enumerate(made.changes, 1):
        console.print(f"  {number}. {change}", highlight=False, markup=False)


def figure(value: float) -> str:
    """Formats with two decimals, or three significant digits for small values."""
    return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"
