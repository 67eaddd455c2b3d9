"""Videos against transformers' video processor of Qwen3-VL, as far as it runs without torchvision."""

import importlib

import numpy as np
import pytest

from fairgrpo_jax.models import pixels


torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def reference():
    return importlib.import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")


def test_sizes_of_films_equal_transformers():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        frames, height, width = (int(n) for n in (rng.integers(2, 40), *rng.integers(1, 900, 2)))
        if max(height, width) > 150 * min(height, width):
            continue
        least, most = int(rng.integers(1, 200_000)), int(rng.integers(200_000, 3_000_000))
        sizes = dict(factor=int(rng.choice([8, 28, 32])), min_pixels=least, max_pixels=most)
        expected = reference().smart_resize(frames, height, width, temporal_factor=2, **sizes)
        assert pixels.smart_resize_film(frames, height, width, temporal=2, **sizes) == expected


@pytest.mark.parametrize("frames", [2, 3, 6])
def test_patches_of_films_equal_transformers(frames):
    film = np.random.default_rng(frames).integers(0, 256, (frames, 24, 40, 3), dtype=np.uint8)
    table = pixels.value_table(pixels.CLIP_MEAN, pixels.CLIP_STD)
    values = np.stack([table[c][film[..., c]] for c in range(3)], axis=1)  # (F, C, H, W)
    cut = reference().Qwen3VLVideoProcessor.patchify
    expected, *grid = cut(None, torch.from_numpy(values)[None], 4, 2, 2)
    got, ours = pixels.patchify(film, table, 4, 2, 2)
    assert list(ours) == grid
    np.testing.assert_array_equal(got, expected[0].numpy())
