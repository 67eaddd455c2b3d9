"""Ahead-of-time compilation of a run's programs for accelerators this machine does not have.

The compilers for TPUs (libtpu) and NVIDIA GPUs (JAX's CUDA plugin) run on any machine and report the memory that a
program needs. Each program is compiled in a separate process, because a compiler may crash or take long, and must not
touch an accelerator of this machine. Nothing is executed: results are compiled for a device, not measured on it.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from fairgrpo_jax import (
    chunking,
    config as options,
    estimators,
    fairness,
    files,
    learner,
    mesh as meshes,
    models,
    policy,
    processes,
    rollout,
    staged,
)
from fairgrpo_jax.models import lora
from fairgrpo_jax.models.checkpoints import store
from fairgrpo_jax.plan import devices, gathers


PROGRAMS = ("copy", "prompt", "decode", "update", "optimizer", "supervised")
STATUSES = ("fits", "out of memory", "compile error", "compiler crashed", "timeout", "not installed")
# Packages needed beside JAX, by extra; their versions determine the result.
WHEELS = {
    "tpu": ("plan-tpu", ("jax", "jaxlib", "libtpu")),
    "gpu": ("plan-gpu", ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt")),
}
# With these, libtpu asks no metadata server, prints nothing, and ignores another process that holds its lock.
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
OVERFLOW = re.compile(r"RESOURCE_EXHAUSTED.*?\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of compiling one program.

    Attributes:
        program: one of ``PROGRAMS``.
        status: one of ``STATUSES``.
        needed: peak memory of the program in bytes per device; None if the compiler does not report it.
        available: bytes per device that the program may use, if compared.
        arguments: bytes of its arguments, including the state.
        temporary: bytes that it allocates while it runs.
        findings: descriptions of gathers in the compiled text that should not be there.
        message: error message of a compiler that failed.
        seconds: time of lowering and compiling.
        cached: whether the result comes from an earlier compilation of the same program.
        versions: versions of the compilers.
    """

    program: str
    status: str
    needed: int | None = None
    available: int | None = None
    arguments: int | None = None
    temporary: int | None = None
    findings: tuple[str, ...] = ()
    message: str = ""
    seconds: float = 0.0
    cached: bool = False
    versions: str = ""

    @property
    def words(self) -> str:
        """The outcome as one sentence for the user."""
        gib = lambda count: f"{(count or 0) / devices.GIB:.2f} GiB"
        match self.status:
            case "fits":
                return f"{self.program}: fits, {gib(self.needed)} of {gib(self.available)}"
            case "out of memory" if self.arguments is None:
                return (
                    f"{self.program}: does not fit; the compiler stops at {gib(self.needed)} of {gib(self.available)}"
                )
            case "out of memory":
                return f"{self.program}: does not fit, {gib(self.needed)} of {gib(self.available)}"
            case "compiler crashed":
                return (
                    f"{self.program}: the compiler itself crashed ({self.message}); a program a little smaller may do"
                )
            case "timeout":
                return f"{self.program}: not compiled within {self.seconds:.0f} s; allow more with --timeout"
            case _:
                return f"{self.program}: {self.status}: {self.message}"


# ---- the programs ----------------------------------------------------------------------------------------------------


def describe(model: options.Model, settings: options.Data | None = None) -> Any:
    """The architecture of a run; of a checkpoint folder only ``config.json`` is needed.

    Args:
        model: options of the run.
        settings: options of its data, by which the tower of long prompts runs in parts, as far as the pixel budget
            says how large a frame may be; a run knows from the files.

    Raises:
        ValueError: from ``models.store.describe``.
    """
    architecture = policy.small(model) if model.path is None else store.describe(model.path)[0]
    if settings is not None:
        frame = policy.largest_frame(architecture, settings)
        architecture = policy.in_parts(architecture, settings.num_patches, frame)
    return lora.scaled(architecture, model.lora_alpha / model.lora_rank) if model.lora_rank else architecture


def programs(config: options.Config, architecture: Any, mesh: Mesh) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """The device programs of a run, each as a function that lowers it from shapes.

    Args:
        config: options of the run.
        architecture: from :func:`describe`.
        mesh: mesh of any devices, including those this machine does not have.

    Returns:
        One function for each of ``PROGRAMS``.
    """
    prompts, G, T = config.prompts, config.rollouts, config.sampling.max_new_tokens
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("fsdp"))
    placed = lambda tree, where: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    array: Any = lambda rows, *shape, dtype: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=split)
    sizes: Any = dict(length=config.data.prompt_length, num_patches=config.data.num_patches)
    blank = functools.partial(models.prompt_shapes, architecture, dtype=jnp.dtype(config.media_dtype), **sizes)
    prompt = lambda rows: placed(blank(prompts=rows), split)
    updates = config.update.per_step
    tree = policy.shapes(config.model, architecture)
    struct = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    params = jax.tree.map(struct, tree, meshes.shardings(tree, mesh))

    trained = lora.trainable(tree, config.model.freeze)[0]
    sums = jax.eval_shape(staged.zeros, trained)
    sums = jax.tree.map(struct, sums, meshes.shardings(sums, mesh))
    scalar = lambda dtype: placed(jax.ShapeDtypeStruct((), dtype), whole)

    def state() -> learner.TrainState:
        fresh = functools.partial(
            learner.fresh_moments, optim=config.optim, steps=config.steps * updates, freeze=config.model.freeze
        )
        moments = jax.eval_shape(fresh, params)
        moments = jax.tree.map(struct, moments, meshes.shardings(moments, mesh))
        history, capacity = config.fairness.history, config.fairness.capacity
        statistics = jax.eval_shape(lambda: fairness.init(1, 1, G, history=history, capacity=capacity))
        return learner.TrainState(params, moments, scalar(jnp.int32), placed(estimators.Memory(statistics), whole))

    def piece() -> learner.PolicyBatch:
        count = prompts // config.update.parts
        wide = lambda dtype: array(count, G, T, dtype=dtype)
        old = wide(jnp.float32) if updates > 1 else None
        first = wide(jnp.float32) if config.update.beta else None
        mean = array(count, G, dtype=jnp.float32)
        return learner.PolicyBatch(prompt(count), wide(jnp.int32), wide(jnp.bool_), wide(jnp.float32), mean, old, first)

    how: Any = dict(dtype=config.sampling.dtype, tensor=config.sampling.weights == "tensor")
    sampling: Any = dict(
        architecture=architecture,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        tensor=how["tensor"],
    )

    def copy() -> jax.stages.Lowered:
        return rollout.sampler_params.lower(params, **how)

    def weights() -> Any:
        found = jax.eval_shape(functools.partial(rollout.sampler_params, **how), tree)
        return jax.tree.map(struct, found, meshes.gathered(found, mesh, tensor=how["tensor"]))

    wave = prompts // max(config.sampling.waves, 1)
    pass_: Any = dict(
        places=config.data.prompt_length, architecture=architecture, tensor=how["tensor"], cache=config.cache_dtype
    )

    def first() -> jax.stages.Lowered:
        return rollout.prefill.lower(weights(), prompt(wave // chunking.groups(wave, config)), **pass_)

    def decode() -> jax.stages.Lowered:
        given = weights()
        kept, hidden, kv = jax.eval_shape(functools.partial(rollout.prefill, **pass_), given, prompt(wave))
        keys, place = jax.eval_shape(lambda: (rollout.row_keys(jax.random.key(0), wave, G), jnp.arange(wave)))
        begin = functools.partial(rollout.begin, length=T, size=max(T - 1, 1), cache=kv[0][0].dtype.name, **sampling)
        rows, now, caches = jax.eval_shape(begin, given, rollout.Rows(kept, keys, place), hidden)
        heads = lambda x: struct(x, NamedSharding(mesh, meshes.by_head(x, mesh.shape, tensor=how["tensor"])))
        kv, caches = jax.tree.map(heads, (kv, caches))
        rows, now = jax.tree.map(lambda x: struct(x, split if x.ndim else whole), (rows, now))
        return rollout.decode.lower(given, rows, kv, now, caches, scalar(jnp.int32), **sampling)

    passes: Any = dict(freeze=config.model.freeze, compute=config.model.compute)
    policy_plan = staged.Plan(
        architecture, max(config.update.chunks, 1), config.sampling.temperature, config.update.remat
    )

    def gradient() -> tuple[Any, dict]:
        """Arguments of ``learner.policy_gradient``."""
        earlier = sums if config.update.accumulation > 1 else None
        given = params, earlier, piece(), scalar(jnp.float32)
        return given, dict(plan=policy_plan, update=config.update, **passes)

    def update() -> jax.stages.Lowered:
        given, options_ = gradient()
        return learner.policy_gradient.lower(*given, **options_)

    def descend() -> jax.stages.Lowered:
        given, options_ = gradient()
        _, metrics = jax.eval_shape(functools.partial(learner.policy_gradient, **options_), *given)
        found = [placed(metrics, whole)] * max(config.update.accumulation, 1)
        return learner.descend.lower(state(), (sums, found), config.optim, config.steps * updates, config.model.freeze)

    def supervised() -> jax.stages.Lowered:
        spec = config.warmup
        count = spec.batch // spec.accumulation
        target = lambda dtype: array(count, 1, T, dtype=dtype)
        batch = learner.SupervisedBatch(prompt(count), target(jnp.int32), target(jnp.bool_))
        earlier = sums if spec.accumulation > 1 else None
        plan = staged.Plan(architecture, remat=config.update.remat)
        return learner.supervised_gradient.lower(params, earlier, batch, scalar(jnp.float32), plan=plan, **passes)

    return {
        "copy": copy,
        "prompt": first,
        "decode": decode,
        "update": update,
        "optimizer": descend,
        "supervised": supervised,
    }


def stages(config: options.Config) -> tuple[str, ...]:
    """The programs that a run uses: the supervised step only if it has that stage."""
    return PROGRAMS if config.warmup.own_steps else PROGRAMS[:-1]


# ---- compiling -------------------------------------------------------------------------------------------------------


def mesh_of(target: devices.Target, spec: str) -> Mesh:
    """A mesh of devices that exist only for their compiler."""
    kind = target.kind
    if kind.platform == "tpu":
        alone = {"chips_per_host_bounds": (1, 1, 1)} if target.count == 1 else {}
        found = topologies.get_topology_desc(platform="tpu", topology_name=target.name, **alone)
    else:
        hosts, each = target.shape
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=target_config(kind), topology=f"1x{hosts}x{each}"
        )
    return jax.make_mesh(meshes.parse(spec), meshes.AXES, axis_types=(AxisType.Auto,) * 2, devices=found.devices)


def target_config(kind: devices.Kind) -> str:
    """Describes a GPU as XLA's ``GpuTargetConfigProto`` in text form.

    Limits of blocks and registers come from NVIDIA's table of compute capabilities.
    """
    major, minor = kind.capability
    shared = {8: 164, 9: 228}[major] << 10
    limits = dict(
        threads_per_block_limit=1024,
        threads_per_warp=32,
        shared_memory_per_block=48 << 10,
        shared_memory_per_core=shared,
        shared_memory_per_block_optin=shared - (1 << 10),
        threads_per_core_limit=2048,
        registers_per_core_limit=1 << 16,
        registers_per_block_limit=1 << 16,
        block_dim_limit_x=(1 << 31) - 1,
        block_dim_limit_y=(1 << 16) - 1,
        block_dim_limit_z=(1 << 16) - 1,
        fpus_per_core={8: 64, 9: 128}[major],
        core_count=kind.cores,
        clock_rate_ghz=kind.clock,
        memory_bandwidth=int(kind.bandwidth),
        l2_cache_size=kind.cache,
        device_memory_size=kind.memory,
    )
    body = "".join(f"  {name}: {value}\n" for name, value in limits.items())
    capability = f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n"
    return f'gpu_device_info {{\n{body}{capability}}}\nplatform_name: "CUDA"\ndevice_description_str: "{kind.title}"\n'


def examine(
    program: str, lowered: jax.stages.Lowered, depths: Sequence[int], available: int, dump: Path | None = None
) -> Outcome:
    """Compiles one program and reads its memory use and collectives.

    Args:
        program: its name.
        lowered: from :func:`programs`.
        depths: numbers of layers, which identify stacked parameters.
        available: bytes per device that may be used.
        dump: folder to which the compiler writes its programs; None: not written.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        figures = OVERFLOW.search(str(error))
        if figures:
            needed, had = (int(float(figure) * devices.GIB) for figure in figures.groups())
            return Outcome(program=program, status="out of memory", needed=needed, available=had)
        return Outcome(program=program, status="compile error", message=" ".join(str(error).split())[:500])
    memory: Any = compiled.memory_analysis()
    needed = max(memory.peak_memory_in_bytes, memory.argument_size_in_bytes)
    return Outcome(
        program=program,
        status="fits" if needed <= available else "out of memory",
        needed=needed,
        available=available,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        findings=tuple(gathers.findings(program, _text(compiled, dump), depths)),
    )


def _text(compiled: jax.stages.Compiled, dump: Path | None) -> str:
    """The text of a compiled program; libtpu's own text if it has instructions that jaxlib's XLA cannot read."""
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError:
        written = sorted(dump.glob("*.after_codegen.txt"), key=lambda path: path.stat().st_mtime) if dump else []
        if not written:
            raise
        return written[-1].read_text()


def versions(platform: str) -> str:
    """The versions of the packages that determine the result.

    Raises:
        ValueError: if a package is missing, naming the extra that provides it.
    """
    extra, wheels = WHEELS[platform]
    try:
        return ", ".join(f"{wheel} {importlib.metadata.version(wheel)}" for wheel in wheels)
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"compiling for {platform.upper()} wants the package {error.name}: pip install 'fairgrpo_jax[{extra}]'"
        ) from error


def compile_one(
    config: options.Config, target: devices.Target, program: str, *, cache: Path | None, dump: Path | None = None
) -> Outcome:
    """Lowers and compiles one program in this process, or reads an earlier result of the same program from the cache.

    Args:
        config: options of the run; its mesh must have the target's number of devices.
        target: what to compile for.
        program: one of ``PROGRAMS``.
        cache: folder of earlier results; None: always compile.
        dump: folder for the compiler's text dumps, if the compiler is not loaded yet; None: no dumps.
    """
    flags = os.environ.get("XLA_FLAGS", "") + os.environ.get("LIBTPU_INIT_ARGS", "")
    if dump is not None:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump} --xla_dump_hlo_as_text"
    began, installed = time.monotonic(), versions(target.kind.platform)
    architecture = describe(config.model, config.data)
    tree, mesh = policy.shapes(config.model, architecture), mesh_of(target, config.mesh)
    config = chunking.fit(config, architecture, tree, target.kind.usable)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = programs(config, architecture, mesh)[program]()
        identity = (program, lowered.as_text(), target.name, str(target.kind), config.mesh, installed, flags)
        name = f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}.json"
        path = cache / name if cache is not None else None
        if path is not None and path.is_file():
            return dataclasses.replace(_read(path.read_text()), cached=True)
        depths = [architecture.num_layers] + ([architecture.vision.depth] if architecture.vision is not None else [])
        outcome = examine(program, lowered, depths, target.kind.usable, dump)
    outcome = dataclasses.replace(outcome, seconds=round(time.monotonic() - began, 1), versions=installed)
    if path is not None and outcome.status != "compile error":
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(dataclasses.asdict(outcome)))
    return outcome


def _read(text: str) -> Outcome:
    values = json.loads(text)
    return Outcome(**values | {"findings": tuple(values["findings"])})


# ---- in a process of its own -----------------------------------------------------------------------------------------


def compile_apart(
    config: options.Config, target: devices.Target, program: str, *, timeout: float, cache: Path | None
) -> Outcome:
    """Runs :func:`compile_one` in a separate process and reports its outcome however it ends.

    Args:
        config: options of the run.
        target: what to compile for.
        program: one of ``PROGRAMS``.
        timeout: seconds after which the process is terminated.
        cache: folder of earlier results.
    """
    request = dict(config=options.to_dict(config), device=target.name, program=program, cache=cache and str(cache))
    with tempfile.TemporaryDirectory() as dump:
        request["dump"] = dump if target.kind.platform == "tpu" else None
        return finish(program, [sys.executable, "-m", "fairgrpo_jax.plan.ahead"], json.dumps(request), timeout=timeout)


def finish(program: str, command: Sequence[str], request: str, *, timeout: float) -> Outcome:
    """Runs a command that reads a request and prints an outcome as its last line; turns failures into outcomes."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | QUIET,
        start_new_session=True,
    )
    try:
        told, complaint = child.communicate(request, timeout=timeout)
    except BaseException as error:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return Outcome(program=program, status="timeout", seconds=timeout)
    if child.returncode < 0:
        return Outcome(program=program, status="compiler crashed", message=signal.Signals(-child.returncode).name)
    lines = told.strip().splitlines()
    if child.returncode == 0 and lines and lines[-1].startswith("{"):
        return _read(lines[-1])
    reasons = [line for line in complaint.strip().splitlines() if line.strip()] or ["it said nothing"]
    return Outcome(program=program, status="compile error", message=f"exit status {child.returncode}: {reasons[-1]}")


def main() -> None:
    """Main function of the process: reads a request from standard input, writes an outcome to standard output."""
    processes.end_with_parent()
    request = json.load(sys.stdin)
    config, program = options.from_dict(request["config"]), request["program"]
    fsdp, tensor = meshes.parse(config.mesh)
    cache, dump = (Path(request[name]) if request[name] else None for name in ("cache", "dump"))
    try:
        outcome = compile_one(config, devices.parse(request["device"], fsdp * tensor), program, cache=cache, dump=dump)
    except ValueError as error:
        status = "not installed" if "pip install" in str(error) else "compile error"
        outcome = Outcome(program=program, status=status, message=str(error))
    print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
