"""Estimates whether a run fits and how fast it can be, without loading weights, for devices that need not exist here.

Prints the memory of each device by phase, the work of a step and the least time that it can take, and what to change if
the run does not fit. Of a checkpoint folder only ``config.json`` is read. With ``--compile`` the programs of the run
are also compiled for the devices (extras ``plan-tpu`` and ``plan-gpu``), in separate processes.

Example::

    python -m fairgrpo_jax.plan --model.path Qwen2.5-VL-7B-Instruct --mesh 16x1 --device v5p:2x2x4 --compile
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from fairgrpo_jax import chunking, commandline, config as options, files, mesh as meshes, policy, rollout, workers
from fairgrpo_jax.plan import ahead, cost, devices, footprint, tables
from fairgrpo_jax.plan.tables import figure


MOST = 0.92  # share of a GPU's memory that JAX can be given; driver and libraries need the rest
# Shares of the least times of prompt pass, decoding and update that one H200 reached (docs/speed.md): of Gemma 3, and
# of the Qwen families.
REACHED = {"gemma3": (0.15, 0.39, 0.19)}
REACHED_BY_OTHERS = (0.31, 0.30, 0.36)
PREPARED = 0.06e-6  # seconds of one core to decode, resize and pack a pixel of an image (docs/speed.md)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the plan."""

    config: Annotated[options.Config, tyro.conf.arg(name="")]
    device: str = "h200"
    """Kind of the devices: a GPU (a100, h100, h200), or a slice of TPUs (v5e:4x4, v5p:2x2x4, v6e:2x4)."""
    memory: float | None = None
    """Memory per device that the run may use, in GiB; default: what JAX allocates (three quarters of a GPU's
    memory)."""
    compile: bool = False
    """Compile the programs of the run for the devices; takes seconds for a GPU, minutes for a TPU."""
    timeout: float = 1800.0
    """Time limit for the compilation of one program, in seconds."""
    cache: Path = files.cache_folder() / "plan"
    """Folder of earlier compilations."""
    json: bool = False
    """Print JSON instead of tables."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a step, as seen by one device.

    Attributes:
        name: name of the phase.
        held: bytes by purpose, in addition to the state.
        peak: total bytes of state and phase.
        flops: FLOPs by purpose.
        read: lower bound of the bytes read from and written to memory.
        sent: bytes of weights and gradients received from other devices; activations are not counted.
        seconds: least time by limiting resource: ``compute``, ``memory``, ``link``.
    """

    name: str
    held: dict[str, int]
    peak: int
    flops: cost.Flops
    read: float
    sent: float
    seconds: dict[str, float]

    @property
    def bound(self) -> str:
        """The resource that limits the phase."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def least(self) -> float:
        """Least time of the phase in seconds, if all its work overlapped."""
        return self.seconds[self.bound]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known about a step before it runs; all bytes and times are per device.

    Attributes:
        target: the devices.
        state: bytes held permanently, by purpose.
        phases: prompt pass, decoding and update.
        limit: bytes that the run may use.
        tokens: completion tokens per step on the whole mesh.
        parts: the options with which a step is computed in several parts.
        warnings: messages for the user.
        changes: options that would make it fit, applied one after the other, with the memory then needed.
        faster: an option that would shorten the update and fits, with the time and memory then needed; empty without.
        outcomes: outcomes of compilation, if requested.
        steps: steps of reinforcement learning.
        reached: share of each phase's least time that a run of the family has reached, on one H200.
        host: bytes of the host and of its disk, by purpose.
        shapes: numbers of prompts and lengths of caches, per device, that decoding may pass through.
        buckets: number of sizes to which prompts are padded.
        preparing: seconds of one core to prepare the prompts of a step, at most.
    """

    target: devices.Target
    state: dict[str, int]
    phases: tuple[Phase, ...]
    limit: int
    tokens: int
    parts: str
    warnings: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    faster: str = ""
    outcomes: tuple[ahead.Outcome, ...] = ()
    steps: int = 0
    reached: tuple[float, ...] = (1.0, 1.0, 1.0)
    host: dict[str, int] = dataclasses.field(default_factory=dict)
    shapes: tuple[int, int] = (1, 1)
    buckets: int = 1
    preparing: float = 0.0

    @property
    def peak(self) -> int:
        """Peak bytes of the largest phase."""
        return max(phase.peak for phase in self.phases)

    @property
    def fits(self) -> bool:
        """Whether the run fits by the formulas and no compiler contradicts them."""
        return self.peak <= self.limit and all(outcome.status != "out of memory" for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        """Least time of a step in seconds."""
        return sum(phase.least for phase in self.phases)

    @property
    def likely(self) -> float:
        """Seconds of a step at the shares of the least times that have been reached."""
        return sum(phase.least / share for phase, share in zip(self.phases, self.reached, strict=True))


def plan(config: options.Config, device: str, *, memory: float | None = None) -> Plan:
    """The plan of a run by formula; takes less than a second.

    Args:
        config: options of the run; of ``model.path`` only ``config.json`` is read.
        device: as ``devices.parse`` reads it.
        memory: GiB per device that may be used; default: what JAX allocates.

    Raises:
        ValueError: if devices or slices do not exist, the mesh does not divide the batch, the model cannot be read, or
            no batch can have the number of patches.
    """
    if config.data.prompt_length == 0:
        raise ValueError(
            "got data.prompt_length=0 for a plan, which reads no data; wanted numbers, as `python -m fairgrpo_jax.data "
            f"check {config.data.name} --root DIR --model.path MODEL` measures them"
        )
    config = dataclasses.replace(config, model=policy.with_adapter(config.model))
    target = devices.parse(device, _count(config))
    limit = target.kind.usable if memory is None else int(memory * devices.GIB)
    meshes.require_divisible(config.split_sizes, *meshes.parse(config.mesh))
    architecture = ahead.describe(config.model, config.data)
    try:
        chunking.layout(config, architecture)
    except ValueError as error:
        raise ValueError(f"{error} (option data.num_patches)") from error
    first = _estimate(config, architecture, target, limit)
    changes = () if first.fits else tuple(_changes(config, architecture, target, limit))
    faster = _faster(config, architecture, first) if first.fits else ""
    tree = policy.shapes(config.model, architecture)
    return dataclasses.replace(first, changes=changes, faster=faster, warnings=tuple(_warnings(config, first, tree)))


def _count(config: options.Config) -> int:
    fsdp, tensor = meshes.parse(config.mesh)
    return fsdp * tensor


def _estimate(config: options.Config, architecture: Any, target: devices.Target, limit: int) -> Plan:
    """Memory, work and time of the phases."""
    tree = policy.shapes(config.model, architecture)
    config = chunking.fit(config, architecture, tree, limit)
    shape = chunking.layout(config, architecture)
    state = footprint.state(tree, shape)
    held = (*footprint.rollout(architecture, tree, shape), footprint.update(architecture, tree, shape))
    base, count, kind = sum(state.values()), _count(config), target.kind
    prompt, decode = cost.rollout_flops(architecture, shape.sizes, shape.training)
    update = cost.update_flops(architecture, shape.sizes, shape.training, rows=shape.rows)
    score = cost.score_flops(architecture, shape.sizes, shape.training, rows=shape.rows)
    scores = (config.update.passes * config.update.mini_batches > 1) + shape.reference
    work = [prompt, decode, _times(update, config.update.passes) + _times(score, scores)]
    fsdp, tensor = shape.mesh
    weights, trips = footprint.sharded(tree, (1, tensor), cost.BYTES[shape.compute]), 2 + 2 * shape.chunks
    streamed = trips * weights + footprint.streamed_again(architecture, tree, shape)
    copy, own = footprint.copy(tree, shape), footprint.sharded(tree, shape.mesh, cost.BYTES[shape.sampler])
    gradients = held[2]["gradients"] / min(shape.accumulation, 2)
    rounds = shape.parts * config.update.passes
    away = (fsdp - 1) / fsdp
    read = (
        copy * shape.waves,
        cost.decode_bytes(architecture, shape.sizes, shape.sampler, shape.cache, fsdp, shape.waves) / shape.across,
        rounds * (streamed + 2 * held[2]["kept"]) + 3 * base,
    )
    sent = (float(copy - own), 0.0, rounds * away * (streamed + (1 + shape.chunks) * gradients * fsdp))
    phases = []
    for name, parts, flops, moved, received in zip(
        ("prompt pass", "decoding", "update"), held, work, read, sent, strict=True
    ):
        flops = _times(flops, 1 / (count if name == "update" else fsdp * shape.across))
        wide = (shape.compute if name == "update" else shape.sampler) == "float32"
        seconds = {
            "compute": flops.total / (kind.flops32 if wide else kind.flops),
            "memory": moved / kind.bandwidth,
            "link": received / target.link,
        }
        phases.append(Phase(name, parts, base + sum(parts.values()), flops, moved, received, seconds))
    tokens = config.prompts * config.rollouts * config.sampling.max_new_tokens
    host = {
        "batches of prompts ahead, in memory": (workers.AHEAD + 1) * config.prompts * shape.media,
        "checkpoints on disk": (options.KEEP + 1) * (state["weights"] + state["optimizer moments"]) * count,
    }
    return Plan(
        target,
        state,
        tuple(phases),
        limit,
        tokens,
        chunking.told(config),
        steps=config.steps,
        reached=REACHED.get(architecture.model_type, REACHED_BY_OTHERS),
        host=host,
        shapes=rollout.shapes(shape.sampled, config.sampling.max_new_tokens),
        buckets=config.data.buckets,
        preparing=config.prompts * shape.sizes.patches * _pixels(architecture) * PREPARED,
    )


def _pixels(architecture: Any) -> int:
    """Pixels of a patch."""
    return 0 if architecture.vision is None else architecture.vision.patch_size**2


def _times(flops: cost.Flops, factor: float) -> cost.Flops:
    return cost.Flops(*(factor * part for part in dataclasses.astuple(flops)))


def _changes(config: options.Config, architecture: Any, target: devices.Target, limit: int) -> Iterator[str]:
    """Options to change, cheapest first and cumulative, until the run fits; changes that do not help are omitted."""
    present, steps = _estimate(config, architecture, target, limit), {}
    if limit == target.kind.usable and present.peak <= MOST * target.kind.memory:
        share = f"{MOST} instead of {target.kind.share}"
        yield f"XLA_PYTHON_CLIENT_MEM_FRACTION={MOST} in the environment: JAX takes {share} of the memory: fits"
        return
    for words, change in candidates(config):
        try:
            other = change(config)
            meshes.require_divisible(other.split_sizes, *meshes.parse(other.mesh))
        except ValueError:  # the mesh does not divide the batch
            continue
        after = _estimate(other, ahead.describe(other.model, other.data), target, limit)
        pairs = zip(present.phases, after.phases, strict=True)
        if not any(old.peak > limit and new.peak < old.peak for old, new in pairs):
            continue
        config, present = other, after
        needed = ", ".join(f"{phase.name} {phase.peak / devices.GIB:.1f} GiB" for phase in after.phases)
        steps[words.split()[0]] = f"{words}: {needed}{': fits' if after.fits else ''}"  # 4 takes the place of 2
        if after.fits:
            break
    yield from steps.values()
    if not present.fits:
        yield (
            f"no option is enough: take devices with more memory than {target.kind.title}, a smaller model, or shorter "
            "prompts and completions; more devices split state and update, a rollout's weights only along tensor"
        )


def candidates(config: options.Config) -> Iterator[tuple[str, Callable[[options.Config], options.Config]]]:
    """Options that save memory, cheapest first: their text, and a function that applies them to a config."""
    replace = dataclasses.replace
    inner = lambda part, **values: lambda now: replace(now, **{part: replace(getattr(now, part), **values)})
    if config.update.remat is not True:
        yield "--update.remat True", inner("update", remat=True)
    for part, option in (("update", "chunks"), ("update", "accumulation"), ("sampling", "waves")):
        if getattr(getattr(config, part), option):
            yield f"--{part}.{option} 0", inner(part, **{option: 0})
    if (config.model.compute or config.model.dtype) == "float32":
        yield "--model.compute bfloat16", inner("model", compute="bfloat16")
    if (config.sampling.dtype or config.model.dtype) == "float32":
        yield "--sampling.dtype bfloat16", inner("sampling", dtype="bfloat16")
    fsdp, tensor = meshes.parse(config.mesh)
    for factor in (1, 2, 4, 8):
        mesh = f"{fsdp // factor}x{tensor * factor}"
        if fsdp % factor == 0 and tensor * factor > 1 and (factor > 1 or config.sampling.weights != "tensor"):
            split = inner("sampling", weights="tensor")
            words = "--sampling.weights tensor" + f" --mesh {mesh}" * (factor > 1)
            yield words, lambda now, mesh=mesh, split=split: replace(split(now), mesh=mesh)
    if config.model.dtype == "float32":
        yield "--model.dtype bfloat16", inner("model", dtype="bfloat16")
    if not config.model.lora_rank:
        yield "--model.lora-rank 16", inner("model", lora_rank=16)
    for divisor in (2, 4, 8):
        if config.prompts % divisor == 0:
            fewer = config.prompts // divisor
            yield f"--prompts {fewer}", lambda now, fewer=fewer: replace(now, prompts=fewer)


def _warnings(config: options.Config, made: Plan, tree: Any) -> Iterator[str]:
    kind = made.target.kind
    gathered = made.phases[0].held["weights that sample"]
    fsdp, tensor = meshes.parse(config.mesh)
    if tensor > 1 and config.sampling.weights != "tensor":
        yield (
            f"tensor={tensor} splits the update only: a rollout holds whole weights on every device "
            "(--sampling.weights tensor splits them)"
        )
    if gathered > made.limit / 2:
        yield (
            f"a rollout copies {gathered / devices.GIB:.1f} GiB of weights onto every device, more than half of what "
            "it may use, however many devices there are along fsdp"
        )
    if fsdp > 1 and made.state["weights"] == footprint.sharded(tree, (1, tensor)):
        yield "no weight is split over fsdp: its devices do not divide the sizes of the matrices"
    if made.target.kind.network and made.target.hosts > 1:
        yield f"{made.target.hosts} hosts: weights are gathered over their network at {kind.network / 1e9:.0f} GB/s"
    update = made.phases[2]
    if update.bound == "link":
        yield "the update waits for weights: fewer, larger micro-batches (--update.accumulation), or more prompts"
    if made.peak <= made.limit < 1.1 * made.peak:
        yield "less than a tenth of the memory is left, and formulas are not that exact: --compile before you rent"


def _faster(config: options.Config, architecture: Any, made: Plan) -> str:
    """What selective recomputation would save, if it fits with room to spare; empty if it does not."""
    if config.update.remat is not True:
        return ""
    other = dataclasses.replace(config, update=dataclasses.replace(config.update, remat="selective"))
    after = _estimate(other, architecture, made.target, made.limit)
    old, new = made.phases[2], after.phases[2]
    if after.peak > chunking.SHARE * made.limit or new.least >= old.least:
        return ""
    return (
        f"--update.remat selective: at least {figure(new.least)} instead of {figure(old.least)} s an update, in "
        f"{new.peak / devices.GIB:.1f} instead of {old.peak / devices.GIB:.1f} GiB"
        + f", computed in parts: {after.parts}"
        * bool(after.parts)
    )


def beside(config: options.Config, made: Plan) -> dict[str, int]:
    """Bytes of arrays that stay on a device while a program runs but are not its arguments, by program.

    They are the moments and the reference policy while weights are copied and gradients computed, the trained weights
    too while a copy samples, and the reference policy during the optimizer's step. Beside one group of prompts there
    are the keys and values of the other groups, beside one micro-batch the next.

    Args:
        config: options with the numbers of parts chosen, from ``chunking.fit``.
        made: the plan.
    """
    layout, held = chunking.layout(config, ahead.describe(config.model, config.data)), made.state
    everything, sampled, learned = sum(held.values()), made.phases[0].held, made.phases[2].held
    return {
        "copy": everything - held["weights"],
        "prompt": everything + sampled["prompt keys and values"] * (layout.groups - 1) // layout.groups,
        "decode": everything,
        "update": everything - held["weights"] + learned["prompts"] // 2 * (layout.parts > 1),
        "optimizer": held["reference policy"],
        "supervised": everything - held["weights"],
    }


def compiled(config: options.Config, made: Plan, *, timeout: float, cache: Path | None) -> Plan:
    """Adds the compiler's report on each program to the plan.

    The memory that a program may use excludes what is ``beside`` it.
    """
    console, outcomes = Console(stderr=True), []
    config = dataclasses.replace(config, model=policy.with_adapter(config.model))
    architecture = ahead.describe(config.model, config.data)
    config = chunking.fit(config, architecture, policy.shapes(config.model, architecture), made.limit)
    beside_each = beside(config, made)
    for name in ahead.stages(config):
        console.print(f"compiling {name} for {made.target.name} ...", highlight=False)
        outcome = ahead.compile_apart(config, made.target, name, timeout=timeout, cache=cache)
        taken = beside_each[name]
        if outcome.needed is not None and outcome.arguments is not None:
            status = "fits" if outcome.needed <= made.limit - taken else "out of memory"
            outcome = dataclasses.replace(outcome, available=made.limit - taken, status=status)
        outcomes.append(outcome)
    found = tuple(finding for outcome in outcomes for finding in outcome.findings)
    return dataclasses.replace(made, outcomes=tuple(outcomes), warnings=(*made.warnings, *found))


def to_json(made: Plan) -> dict[str, Any]:
    """The plan as a JSON-able dict, with figures in bytes, FLOPs and seconds."""
    phases = {
        phase.name: dataclasses.asdict(phase) | {"bound": phase.bound, "least_seconds": phase.least}
        for phase in made.phases
    }
    return {
        "device": made.target.name,
        "count": made.target.count,
        "limit": made.limit,
        "state": made.state,
        "phases": phases,
        "peak": made.peak,
        "fits": made.fits,
        "step_seconds": made.seconds,
        "parts": made.parts,
        "likely_step_seconds": made.likely,
        "steps": made.steps,
        "preparing_seconds": made.preparing,
        "host": made.host,
        "tokens_per_second": made.tokens / made.seconds,
        "warnings": made.warnings,
        "changes": made.changes,
        "faster": made.faster,
        "compiled": [dataclasses.asdict(outcome) for outcome in made.outcomes],
    }


def main() -> None:
    """Runs the command line; the exit status is 1 if the run does not fit."""
    jax.config.update("jax_platforms", "cpu")  # a plan occupies no accelerator
    with commandline.one_line_errors():
        prog = "python -m fairgrpo_jax.plan"
        arguments = commandline.parse(sys.argv[1:], prog=prog, description=__doc__, schema=Arguments)
        for name in ("memory", "timeout"):
            if (value := getattr(arguments, name)) is not None and value <= 0:
                raise ValueError(f"got {name}={value}; wanted more than 0")
        made = plan(arguments.config, arguments.device, memory=arguments.memory)
        if arguments.compile:
            made = compiled(arguments.config, made, timeout=arguments.timeout, cache=arguments.cache)
        if arguments.json:
            print(json.dumps(to_json(made), indent=2))
        else:
            tables.show(made, Console(width=None if sys.stdout.isatty() else 120))
        raise SystemExit(0 if made.fits else 1)
