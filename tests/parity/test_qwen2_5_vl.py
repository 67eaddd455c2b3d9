"""Qwen2.5-VL against transformers in torch, on models of other seeds than the golden files."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest


torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def load_maker():
    spec = importlib.util.spec_from_file_location("make_golden", pathlib.Path(__file__).with_name("make_golden.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load_maker()


@pytest.fixture(scope="module", params=[2, 3, 4, 5])
def pair(request):
    from fairgrpo_jax.models import VLM, qwen2_5_vl, weights

    model = maker.build(request.param)
    config = qwen2_5_vl.Config.from_hugging_face(model.config)
    in_memory = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = jax.tree.map(jnp.asarray, weights.from_hugging_face(in_memory, config))
    return request.param, model, VLM(config, params)


@pytest.mark.parametrize("case", ["text", "images", "video", "video_only"])
def test_logits_and_rotary_positions_equal_transformers(pair, case):
    from fairgrpo_jax.models.inputs import pack

    seed, model, vlm = pair
    inputs = maker.cases(seed)[case]
    expected = maker.expected(model, inputs, steps=1)
    mask = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(vlm.logits(inputs)[mask], expected["logits"][mask], atol=2e-4)
    rope = pack(inputs, vlm.config).rope
    rows = np.concatenate([row[: own.sum()] for row, own in zip(rope, mask, strict=True)])
    np.testing.assert_array_equal(rows, expected["rope"][mask])


def test_our_weights_run_in_transformers(pair):
    """The way out: our tensors, written under the published names, give torch the same logits."""
    from fairgrpo_jax.models import weights

    seed, model, vlm = pair
    tensors = weights.to_hugging_face(vlm.params, vlm.config)
    expected = maker.published_weights(model)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
