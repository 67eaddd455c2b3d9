"""The accelerators that a run can be planned for: memory, peak rates, and existing slices.

All figures are the manufacturers'. A TPU is named by its slice, as in ``v5e:4x4``; a GPU by its kind and, optionally,
the number of devices, as in ``h200:16``. The compiler of TPUs accepts slices that are not offered; the slices here are
those of the manufacturer's documentation.
"""

import dataclasses
import math
import re


GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One accelerator.

    Attributes:
        name: name on the command line.
        platform: ``tpu`` or ``gpu``.
        title: full name.
        memory: bytes that a program may use: for a TPU, as its compiler allows; for a GPU, as its driver reports.
        share: share of ``memory`` that JAX allocates by default (``XLA_PYTHON_CLIENT_MEM_FRACTION``).
        flops: dense bfloat16 FLOP/s.
        flops32: FLOP/s of float32 products at JAX's default precision.
        bandwidth: memory bandwidth in bytes/s.
        link: bytes/s that a device sends to its neighbours in the same host or slice.
        network: bytes/s that a device sends to other hosts, if these are not reached by its links.
        host: number of devices per host.
        capability: compute capability of a GPU; (0, 0) for a TPU.
        cores: streaming multiprocessors of a GPU; 0 for a TPU.
        clock: clock of a GPU's cores under load in GHz; 0 for a TPU.
        cache: bytes of a GPU's second-level cache; 0 for a TPU.
    """

    name: str
    platform: str
    title: str
    memory: int
    share: float = 1.0
    flops: float
    flops32: float
    bandwidth: float
    link: float
    network: float = 0.0
    host: int
    capability: tuple[int, int] = (0, 0)
    cores: int = 0
    clock: float = 0.0
    cache: int = 0

    @property
    def usable(self) -> int:
        """Bytes that JAX allocates by default."""
        return int(self.memory * self.share)


def _tpu(name: str, title: str, memory: float, flops: float, bandwidth: float, gigabits: int) -> Kind:
    # The matrix units of a TPU round float32 operands to bfloat16 at JAX's default precision.
    return Kind(
        name=name,
        platform="tpu",
        title=title,
        memory=int(memory * GIB),
        flops=flops,
        flops32=flops,
        bandwidth=bandwidth,
        link=gigabits * 1e9 / 8,
        host=4,
    )


# TPUs: cloud.google.com/tpu/docs/{v5e,v5p,v6e}; memory less the compiler's reserve. GPUs: NVIDIA's data sheets of the
# SXM modules (without sparsity; float32 runs as TF32), memory as their drivers show it; hosts joined at 400 Gbit/s.
KINDS = {
    kind.name: kind
    for kind in (
        _tpu("v5e", "TPU v5e", 15.75, 197e12, 819e9, 1600),
        _tpu("v5p", "TPU v5p", 95.74, 459e12, 2765e9, 4800),
        _tpu("v6e", "TPU v6e (Trillium)", 31.25, 918e12, 1640e9, 3584),
        *(
            Kind(
                name=name,
                platform="gpu",
                title=title,
                memory=int(memory * GIB),
                share=0.75,
                flops=flops,
                flops32=flops / 2,
                bandwidth=bandwidth,
                link=link,
                network=50e9,
                host=8,
                capability=capability,
                cores=cores,
                clock=clock,
                cache=cache << 20,
            )
            for name, title, memory, flops, bandwidth, link, capability, cores, clock, cache in (
                ("a100", "NVIDIA A100 SXM 80 GB", 79.15, 312e12, 2039e9, 300e9, (8, 0), 108, 1.41, 40),
                ("h100", "NVIDIA H100 SXM 80 GB", 79.1, 989e12, 3350e9, 450e9, (9, 0), 132, 1.83, 50),
                ("h200", "NVIDIA H200 SXM 141 GB", 139.8, 989e12, 4800e9, 450e9, (9, 0), 132, 1.83, 50),
            )
        ),
    )
}
# v5e and v6e are offered as these rectangles; v5p as boxes: these small ones, and large ones in multiples of four.
RECTANGLES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL_BOXES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
LARGEST_BOX = (16, 16, 24)


def known(name: str) -> Kind | None:
    """The accelerator that JAX calls ``name`` (``jax.Device.device_kind``); None for one that is not in the table.

    Example:
        >>> known("NVIDIA H200").name, known("TPU v5 lite").name, known("cpu")
        ('h200', 'v5e', None)
    """
    tpus = {"TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
    gpus = [kind.name for kind in KINDS.values() if kind.platform == "gpu" and kind.name in name.lower()]
    found = tpus.get(name) or next(iter(gpus), None)
    return KINDS[found] if found else None


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of connected devices of one kind.

    Attributes:
        kind: kind of the devices.
        shape: for TPUs, the shape of the slice in chips; for GPUs, (hosts, devices per host).
    """

    kind: Kind
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """The name, as :func:`parse` reads it."""
        size = "x".join(map(str, self.shape)) if self.kind.platform == "tpu" else self.count
        return f"{self.kind.name}:{size}"

    @property
    def hosts(self) -> int:
        """Number of machines, with one process each."""
        return max(1, self.count // self.kind.host)

    @property
    def link(self) -> float:
        """Bytes/s that a device sends and receives in a collective over all devices."""
        return self.kind.network if self.kind.network and self.hosts > 1 else self.kind.link


def parse(name: str, count: int) -> Target:
    """Parses the name of a target for a mesh of ``count`` devices.

    Args:
        name: ``v5e:4x4``, ``v5p:2x2x4``, ``h200``, ``h200:16``.
        count: number of devices in the mesh; the target must have exactly as many.

    Raises:
        ValueError: if the kind is unknown, or the slice does not exist or has another number of devices.

    Example:
        >>> target = parse("v5e:4x4", 16)
        >>> target.count, target.hosts, target.name
        (16, 4, 'v5e:4x4')
        >>> parse("h100", 4).name
        'h100:4'
    """
    match = re.fullmatch(r"([a-z]\w*)(?::([1-9]\d*(?:x[1-9]\d*)*))?", name)
    if not match or match[1] not in KINDS:
        cloud = re.fullmatch(r"(v5litepod|v5p|v6e|v5e)-\d+", name)
        hint = f"; {name} is a name for renting, here a slice is named by its sides" if cloud else ""
        raise ValueError(f"got device={name!r}; wanted {_known()}{hint}")
    kind = KINDS[match[1]]
    if kind.platform == "gpu":
        target = Target(kind, _hosts(kind, name, match[2] or str(count)))
    elif match[2] is None:
        fitting = [Target(kind, shape).name for shape in slices(kind.name, count)]
        wanted = f"its slice, {' or '.join(fitting)}" if fitting else f"a slice; none has {count} devices"
        raise ValueError(f"got device={name!r} for {count} devices; wanted {wanted}")
    else:
        target = Target(kind, _slice(kind, match[2]))
    if target.count != count:
        others = [Target(kind, shape).name for shape in slices(kind.name, count)]
        raise ValueError(
            f"got device={name} of {target.count} devices for a mesh of {count}; wanted all devices in the mesh: "
            f"another --mesh{', or ' + ' or '.join(others) if others else ''}"
        )
    return target


def slices(kind: str, count: int) -> list[tuple[int, ...]]:
    """The shapes in which ``count`` devices of a kind are offered, the most cubic one first.

    Example:
        >>> slices("v5p", 256), slices("v6e", 32), slices("v5e", 12), slices("h200", 16)
        ([(4, 8, 8), (4, 4, 16)], [(4, 8)], [], [(2, 8)])
    """
    if KINDS[kind].platform == "gpu":
        return [(1, count)] if count in (1, 2, 4, 8) else [(count // 8, 8)] if count and count % 8 == 0 else []
    if kind != "v5p":
        return [shape for shape in RECTANGLES if math.prod(shape) == count]
    boxes = [
        (a, b, count // a // b)
        for a in range(4, LARGEST_BOX[0] + 1, 4)
        for b in range(a, LARGEST_BOX[1] + 1, 4)
        if count % (4 * a * b) == 0 and b <= count // a // b <= LARGEST_BOX[2]
    ]
    return sorted([shape for shape in SMALL_BOXES if math.prod(shape) == count] + boxes, key=max)


def _slice(kind: Kind, text: str) -> tuple[int, ...]:
    shape = tuple(map(int, text.split("x")))
    legal = slices(kind.name, math.prod(shape))
    if shape not in legal:
        known = RECTANGLES if kind.name != "v5p" else (*SMALL_BOXES, (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8))
        same = " or ".join(Target(kind, other).name for other in legal)
        raise ValueError(
            f"got device={kind.name}:{text}, a slice that does not exist; wanted "
            f"{same or ', '.join(Target(kind, other).name for other in known)}"
        )
    return shape


def _hosts(kind: Kind, name: str, count: str) -> tuple[int, ...]:
    legal = slices(kind.name, int(count)) if "x" not in count else []
    if not legal:
        raise ValueError(f"got device={name} with {count} devices; wanted 1, 2, 4, 8 or a multiple of {kind.host}")
    return legal[0]


def _known() -> str:
    tpus = [f"{kind.name}:SLICE" for kind in KINDS.values() if kind.platform == "tpu"]
    return ", ".join([*tpus, *(kind.name for kind in KINDS.values() if kind.platform == "gpu")])
