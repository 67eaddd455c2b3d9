"""Every family against transformers in torch, on models of other seeds than the golden files."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest


torch = pytest.importorskip("torch")

from fairgrpo_jax import models  # noqa: E402
from fairgrpo_jax.models import decoder, vision  # noqa: E402
from fairgrpo_jax.models.checkpoints import names  # noqa: E402
from fairgrpo_jax.models.inputs import pack  # noqa: E402
from tests import real_sizes, tiny_models  # noqa: E402
from tests.parity import make_golden as maker  # noqa: E402


pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

encode = jax.jit(vision.encode, static_argnums=1)


class Pair:
    """A torch model, ours with its weights, and all cases as one batch."""

    def __init__(self, family, seed):
        self.torch, self.cases = maker.build(family, seed), maker.cases(family, seed)
        self.config = models.read_config(self.torch.config)
        in_memory = {name: tensor.numpy() for name, tensor in self.torch.state_dict().items()}
        self.params = jax.tree.map(jnp.asarray, names.from_hugging_face(in_memory, self.config))
        self.masks = {name: inputs["attention_mask"].astype(bool) for name, inputs in self.cases.items()}
        self.prompt, self.rows = tiny_models.one_batch(self.config, self.cases)

    def tensors(self, case):
        return {name: torch.from_numpy(np.asarray(value)) for name, value in self.cases[case].items()}

    def assert_equal(self, ours, theirs, atol):
        """Arrays (P, T, ...) of the whole batch against those of every case, where there are tokens."""
        for case, mask in self.masks.items():
            got = tiny_models.in_layout(np.asarray(ours)[self.rows[case]], mask)
            np.testing.assert_allclose(got, theirs[case][mask], atol=atol, err_msg=case)


@pytest.fixture(scope="module", params=[(family, seed) for family in maker.FAMILIES for seed in (2, 3, 4, 5)], ids=str)
def pair(request):
    return Pair(*request.param)


def test_logits_positions_and_greedy_ids_equal_transformers(pair):
    expected = {case: maker.expected(pair.torch, inputs) for case, inputs in pair.cases.items()}
    hidden, kv = tiny_models.prompt_pass(pair.params, pair.config, pair.prompt)
    logits = decoder.head(pair.params, pair.config, hidden)
    pair.assert_equal(logits, {case: arrays["logits"] for case, arrays in expected.items()}, 2e-4)
    tokens = tiny_models.greedy(pair.params, pair.config, pair.prompt, hidden, kv, 6)
    for case, arrays in expected.items():
        if "rope" in arrays:
            prompt = pack(pair.cases[case], pair.config)
            rope = tiny_models.in_layout(prompt.rope, pair.masks[case])
            np.testing.assert_array_equal(rope, arrays["rope"][pair.masks[case]])
            np.testing.assert_array_equal(prompt.following, arrays["next"])
        if "greedy" in arrays:
            tiny_models.assert_greedy(tokens[pair.rows[case]], arrays, 1e-3)


def hidden_after_layers(model, tensors):
    """The normed stream after every layer, DeepStack's features added."""
    text = getattr(model.model, "language_model", model.model)
    streams = []
    keep = lambda module, arguments: streams.append(arguments[0])
    hooks = [module.register_forward_pre_hook(keep) for module in (*text.layers[1:], text.norm)]
    with torch.no_grad():
        model(**tensors, use_cache=False)
        for hook in hooks:
            hook.remove()
        return [text.norm(stream).numpy() for stream in streams]


def test_the_stream_after_every_layer_equals_transformers(pair):
    expected = {case: hidden_after_layers(pair.torch, pair.tensors(case)) for case in pair.cases}
    for depth in range(1, pair.config.num_layers + 1):
        config = dataclasses.replace(pair.config, num_layers=depth, local=pair.config.local[:depth])
        params = pair.params | {"layers": jax.tree.map(lambda leaf, d=depth: leaf[:d], pair.params["layers"])}
        hidden, _ = tiny_models.prompt_pass(params, config, pair.prompt)
        pair.assert_equal(hidden, {case: streams[depth - 1] for case, streams in expected.items()}, 1e-4)


def features_of(model, kind, tensors):
    """What the torch model's tower makes of all media of one kind, and what of that DeepStack adds."""
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    given = {name: tensors[name] for name in (pixels, f"{kind}_grid_thw") if name in tensors}
    with torch.no_grad():
        output = getattr(model.model, f"get_{kind}_features")(**given)
    flat = lambda parts: np.concatenate([part.numpy() for part in parts])
    return [flat(output.pooler_output), *map(flat, getattr(output, "deepstack_features", None) or ())]


def test_vision_features_equal_transformers(pair):
    for case, kind in (("images", "image"), ("adjacent", "image"), ("video_only", "video")):
        if case not in pair.cases or pair.config.vision is None:
            continue
        expected = features_of(pair.torch, kind, pair.tensors(case))
        prompt = pack(pair.cases[case], pair.config)
        features, deep = encode(pair.params, pair.config.vision, prompt.vision)
        assert len(expected) == 1 + len(deep)
        for got, wanted in zip((features, *deep), expected, strict=True):
            rows = [part[row[row >= 0]] for part, row in zip(np.asarray(got), prompt.feature, strict=True)]
            np.testing.assert_allclose(np.concatenate(rows), wanted, atol=1e-4)


def test_our_weights_run_in_transformers(pair):
    """The way out: our tensors, written under the published names, are those that torch gave."""
    tensors, expected = names.to_hugging_face(pair.params, pair.config), maker.published_weights(pair.torch)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


@pytest.mark.parametrize("name", real_sizes.CONFIGS)
def test_real_sizes_have_the_names_and_shapes_of_transformers(name):
    import transformers

    published = copy.deepcopy(real_sizes.CONFIGS[name])
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.for_model(**published))
    config = models.read_config(model.config)
    tied = lambda head, embedding: config.tie_word_embeddings and head.shape == embedding.shape
    found = names.match(model.state_dict(), config, tied)  # refuses what is missing, unexpected or misshapen
    kept = set(model.state_dict()) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    assert set(found.values()) == kept
    assert sum(parameter.numel() for parameter in model.parameters()) == real_sizes.PARAMETERS[name]
