"""The table of devices: slices that exist, and what is said of those that do not."""

import pytest

from fairgrpo_jax.plan import devices


# cloud.google.com/tpu/docs: v5e and v6e topologies; v5p by its rule for boxes.
EXIST = {
    **{f"v5e:{shape}": count for shape, count in (("1x1", 1), ("2x2", 4), ("2x4", 8), ("4x4", 16), ("16x16", 256))},
    **{f"v6e:{shape}": count for shape, count in (("1x1", 1), ("4x8", 32), ("8x8", 64), ("8x16", 128))},
    **{f"v5p:{shape}": count for shape, count in (("2x2x1", 4), ("2x2x4", 16), ("2x4x4", 32), ("4x4x4", 64))},
    **{f"v5p:{shape}": count for shape, count in (("4x4x8", 128), ("4x8x8", 256), ("4x4x12", 192), ("16x16x24", 6144))},
    **{"h200:1": 1, "h200:8": 8, "h100:16": 16, "a100:4": 4},
}
# The compiler of TPUs takes the first four without a word.
DO_NOT_EXIST = {
    **{"v5e:2x8": 16, "v5e:16x32": 512, "v6e:16x32": 512, "v5p:4x4x2": 32},
    **{"v5p:1x1x1": 1, "v5p:4x4": 16, "v5e:2x2x1": 4, "v5p:4x4x28": 448, "v5p:4x4x6": 96, "v5p:2x2x8": 32},
    **{"h200:3": 3, "h200:12": 12, "h200:2x8": 16},
}


@pytest.mark.parametrize("name,count", EXIST.items())
def test_slices_that_exist(name, count):
    target = devices.parse(name, count)
    assert (target.name, target.count) == (name, count)
    assert target.hosts == max(1, count // (4 if target.kind.platform == "tpu" else 8))


@pytest.mark.parametrize("name,count", DO_NOT_EXIST.items())
def test_slices_that_do_not(name, count):
    with pytest.raises(ValueError, match="got device=.*wanted"):
        devices.parse(name, count)


def test_what_is_said():
    for name, count, words in (
        ("v5litepod-16", 16, "v5litepod-16 is a name for renting, here a slice is named by its sides"),
        ("b300", 8, "wanted v5e:SLICE, v5p:SLICE, v6e:SLICE, a100, h100, h200"),
        ("v5e", 16, "wanted its slice, v5e:4x4"),
        ("v5e", 12, "none has 12 devices"),
        ("v5e:2x8", 16, "a slice that does not exist; wanted v5e:4x4"),
        ("v5e:4x4", 8, "of 16 devices for a mesh of 8; wanted all devices in the mesh: another --mesh, or v5e:2x4"),
        ("h200:8", 4, "of 8 devices for a mesh of 4"),
    ):
        with pytest.raises(ValueError, match=words):
            devices.parse(name, count)


def test_hosts_of_gpus_are_joined_by_their_network():
    one, two = devices.parse("h200", 8), devices.parse("h200", 16)
    assert (one.shape, two.shape) == ((1, 8), (2, 8))
    assert one.link == 9 * two.link  # 450 GB/s of NVLink, 50 GB/s of a 400 Gbit/s adapter
    assert devices.parse("v5p:4x8x8", 256).link == devices.KINDS["v5p"].link


def test_rates_agree_with_each_other():
    """FLOPs of a GPU: 1024 (A100) or 4096 / 2 (H100, dense) products a clock and processor, at the boost clock."""
    for name, products in (("a100", 1024), ("h100", 2048), ("h200", 2048)):
        kind = devices.KINDS[name]
        assert 2 * products * kind.cores * kind.clock * 1e9 == pytest.approx(kind.flops, rel=0.03)
    for kind in devices.KINDS.values():
        assert 100 < kind.flops / kind.bandwidth < 600 and kind.usable <= kind.memory


def test_devices_are_known_by_the_names_that_jax_gives_them():
    found = {name: devices.known(name) for name in ("NVIDIA H200", "NVIDIA A100-SXM4-80GB", "TPU v6 lite", "cpu")}
    assert {name: kind and kind.name for name, kind in found.items()} == {
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "TPU v6 lite": "v6e",
        "cpu": None,
    }
