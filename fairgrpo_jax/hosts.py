"""Several processes, one program: a laptop, the GPUs of a node, the hosts of a SLURM job or of a TPU pod.

Every process runs the same command on the same records in the same order (``jax.distributed``). A batch is split among
them as it is among their devices: each reads, decodes and scores its own rows, and what the others need to know of them
(tokens, texts, scores, never images) is exchanged here and nowhere else. From there on all compute the same, and the
first process alone writes and prints.

With one process, every function returns its argument, or what is true of one.
"""

import collections
import contextlib
import ipaddress
import os
import pickle
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils


START = 300  # seconds in which all processes must have started
HEARTBEAT = 60  # seconds after which a silent process counts as lost


class Place(NamedTuple):
    """Where a process stands among those of a run."""

    coordinator: str  # HOST:PORT of the first one
    processes: int
    index: int


def parse(spec: str) -> Place | None:
    """Parses ``"HOST:PORT,N,I"``; ``auto`` and ``off`` are None.

    Raises:
        ValueError: for anything else.

    >>> parse("10.0.0.1:9731,4,0")
    Place(coordinator='10.0.0.1:9731', processes=4, index=0)
    """
    if spec in ("auto", "off"):
        return None
    match = re.fullmatch(r"(\S+:\d+),([1-9]\d*),(\d+)", spec)
    if not match or int(match[3]) >= int(match[2]):
        raise ValueError(
            f"got distributed={spec}; wanted auto, off, or HOST:PORT,N,I: the address of the first process, the number "
            "of processes, and which of them this one is, from 0, e.g. 10.0.0.1:9731,4,0"
        )
    return Place(match[1], int(match[2]), int(match[3]))


def start(spec: str = "auto") -> int:
    """Joins the other processes of the run; to be called before anything uses the devices.

    Args:
        spec: as the option ``--distributed``. With ``auto`` there are others where JAX detects SLURM, Open MPI,
            Kubernetes (JobSet, indexed Job) or a Cloud TPU with several hosts, or where ``JAX_COORDINATOR_ADDRESS`` and
            the like are set.

    Returns:
        The number of processes.

    Raises:
        ValueError: if the coordinator cannot be reached from other hosts, or not all processes start.
    """
    place = parse(spec)
    found = None if spec == "off" or place is not None else _detected()
    if place is not None:
        _require_reachable(place.coordinator, literal=True)
        count = place.processes
        how: Any = dict(
            coordinator_address=place.coordinator,
            num_processes=count,
            process_id=place.index,
            cluster_detection_method="deactivate",
        )
    elif found is not None:
        count, how = found, {}
    else:
        return 1
    if count == 1:
        return 1
    try:
        jax.distributed.initialize(**how, initialization_timeout=START, heartbeat_timeout_seconds=HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f"got {count} processes of which not all have met within {START} s ({reason}); wanted one command on each "
            "of them, and a coordinator that every host can reach (no proxy, an open port)"
        ) from error
    state = _state()
    if place is None:
        _require_reachable(state.coordinator_address, literal=False)
    if state.process_id:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    return count


def _detected() -> int | None:
    """The number of processes of the cluster that JAX detects, None without one."""
    from jax._src.clusters import cluster  # JAX has no public name for what ``initialize`` does first

    for kind in cluster.ClusterEnv._cluster_types:  # noqa: SLF001
        if not kind.opt_in_only_method and kind.is_env_present():
            return kind.get_process_count()
    return None


def _state() -> Any:
    from jax._src import distributed  # its number of processes, without starting a backend

    return distributed.global_state


def _require_reachable(coordinator: str, *, literal: bool) -> None:
    """Refuses a coordinator that other hosts would look for on themselves, where it would be waited for in silence.

    Addresses of this machine that are written as such (``127.0.0.1``, ``localhost``) are meant: all processes run here.
    """
    host = coordinator.rsplit(":", 1)[0].strip("[]")
    if literal and (host == "localhost" or _loopback(host)):
        return
    with contextlib.suppress(OSError):
        address = socket.gethostbyname(host)
        if _loopback(address) and (literal or int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1):
            raise ValueError(
                f"got a coordinator {coordinator} that this host resolves to {address}; wanted an address that other "
                "hosts reach: --distributed IP:PORT,N,I, or mend the line of this host in /etc/hosts"
            )


def _loopback(address: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


# ---- which rows are whose --------------------------------------------------------------------------------------------


def count() -> int:
    """Number of processes."""
    return jax.process_count()


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def rows(size: int) -> slice:
    """Those of ``size`` rows that are this process's, whose devices hold them."""
    share = size // count()
    return slice(share * jax.process_index(), share * (jax.process_index() + 1))


def by_process(size: int) -> np.ndarray:
    """The indices of ``size`` rows (processes, size / processes)."""
    return np.arange(size).reshape(count(), -1)


# ---- what is exchanged -----------------------------------------------------------------------------------------------


def gathered(tree: Any) -> Any:
    """The rows of all processes, in their order, of arrays of which each has its own; every array has rows."""
    if count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def everyone(value: Any) -> list[Any]:
    """A Python value of each process, in their order."""
    if count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(len(data)))
    room = 1 << int(np.max(sizes) - 1).bit_length()  # few shapes, few programs
    padded = np.zeros(room, np.uint8)
    padded[: len(data)] = data
    parts = np.asarray(multihost_utils.process_allgather(padded))
    return [pickle.loads(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]


def total(number: float) -> float:
    """The sum over all processes."""
    return number if count() == 1 else float(sum(everyone(number)))


def summed(counts: Mapping[str, float]) -> dict[str, float]:
    """Counts by name, summed over all processes."""
    if count() == 1:
        return dict(counts)
    found: collections.Counter[str] = collections.Counter()
    for its in everyone(dict(counts)):
        found.update(its)
    return dict(found)


def any_of(flag: bool) -> bool:
    """Whether it is true of any process."""
    return flag if count() == 1 else any(everyone(flag))


def on_first(do: Callable[[], Any]) -> Any:
    """What the first process alone does; the others wait for its value, or raise what it raised.

    Raises:
        ValueError: as ``do`` does, in all processes.
    """
    if count() == 1:
        return do()
    value, fault = None, None
    if first():
        try:
            value = do()
        except ValueError as error:
            fault = error
    value, fault = everyone((value, fault))[0]
    if fault is not None:
        raise fault
    return value


def require_equal(name: str, value: str) -> None:
    """Refuses processes that differ, since they would wait for each other for ever.

    Raises:
        ValueError: naming the process that differs from the first, and both values.
    """
    found = everyone(value)
    other = next((i for i, its in enumerate(found) if its != found[0]), None)
    if other is not None:
        raise ValueError(
            f"got process {other} of {len(found)} with {name} {found[other]}, and process 0 with {found[0]}; wanted "
            "the same command, options and version on all of them"
        )


# ---- how it ends -----------------------------------------------------------------------------------------------------


class Ending(SystemExit):
    """Raised by all processes at the same place: each may end in order."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Ends this process at once when the block raises, so that the others, who wait for it, learn of it.

    An orderly end would wait for them in turn. The status is that of ``SystemExit``, 1 for anything else.
    """
    try:
        yield
    except BaseException as error:
        if _state().num_processes == 1 or isinstance(error, Ending):
            raise
        status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def lost(error: BaseException) -> str | None:
    """What is to be said of an error that comes from the loss of another process, None for any other."""
    if _state().num_processes == 1 or not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    if not _LOST.search(str(error)):
        return None
    reason = " ".join(str(error).split())[:200]
    return (
        f"process {_state().process_id} of {_state().num_processes} has lost another one, whose output says why, or "
        f"which was killed ({reason}); the same command goes on from the last checkpoint"
    )


_LOST = re.compile(r"(?i)gloo|nccl|connection (closed|reset|refused)|timed out|heartbeat|unavailable|deadline")


def told() -> str:
    """One line: which process of how many this is, and what it sees."""
    where = socket.gethostname()
    return (
        f"process {jax.process_index()} of {count()} on {where}: {jax.local_device_count()} of {jax.device_count()} "
        f"{jax.devices()[0].device_kind} devices, coordinator {_state().coordinator_address}"
    )


def require_devices_in_use() -> None:
    """Refuses processes that leave GPUs of their host to nobody, as one process a node with one GPU does.

    Raises:
        ValueError: naming the host, how many GPUs it has and how many are used.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len([d for d in visible.split(",") if d]) if visible else _gpus()
    if jax.default_backend() != "gpu":
        return
    seen = everyone((socket.gethostname(), there, [d.id for d in jax.local_devices()]))
    for host in {name for name, _, _ in seen}:
        own = [(gpus, devices) for name, gpus, devices in seen if name == host]
        used, most = sum(len(devices) for _, devices in own), max(gpus for gpus, _ in own)
        if len(own) == 1 and used < most:
            raise ValueError(
                f"got one process on {host} that uses {used} of its {most} GPUs; wanted all: one task for each GPU "
                f"(srun --ntasks-per-node={most}), or JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(most)))}"
            )


def _gpus() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    return 0
