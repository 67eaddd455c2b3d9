"""``python -m fairgrpo_jax.plan --devices``: what each process sees, and how fast its devices exchange data.

To be run before a long run, by its launcher: do all processes meet, is every device used, and is a sum over all devices
as fast as the links that were paid for?
"""

import dataclasses
import statistics
import time

import jax
import numpy as np
import tyro

from fairgrpo_jax import hosts, mesh as meshes


REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the look at the devices."""

    devices: bool = True
    """Look at the devices that are here, instead of planning for others."""
    distributed: str = "auto"
    """As for train: auto, off, or HOST:PORT,N,I."""
    mib: int = 256
    """Size of what is summed over the devices, in MiB a device."""


def main(argv: list[str]) -> None:
    """Runs the command line."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m fairgrpo_jax.plan", description=__doc__)
    hosts.start(arguments.distributed)
    for line in hosts.everyone(f"{hosts.told()}, {_memory()}"):
        print(line, flush=True)
    hosts.require_devices_in_use()
    count = jax.device_count()
    if count == 1:
        print("one device: nothing to exchange")
        return
    seconds = all_reduce(arguments.mib << 20)
    moved = 2 * (count - 1) / count * (arguments.mib << 20)  # sent by each device, in a ring
    rate = moved / seconds / 1e9
    print(f"all-reduce of {arguments.mib} MiB over {count} devices: {1e3 * seconds:.1f} ms, {rate:.1f} GB/s a device")


def all_reduce(size: int) -> float:
    """Median seconds of the sum over all devices of ``size`` bytes each."""
    mesh = meshes.make(f"{jax.device_count()}x1")
    rows = np.ones((jax.local_device_count(), size // 4), np.float32)
    x = meshes.put(rows, mesh)
    total = jax.jit(lambda x: x.sum(0), out_shardings=meshes.whole(mesh))
    jax.block_until_ready(total(x))
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(total(x))
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _memory() -> str:
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return "memory of the host" if limit is None else f"{limit / (1 << 30):.1f} GiB each for JAX"
