"""Every family against golden files made by transformers in torch."""

import functools

import numpy as np
import pytest

from fairgrpo_jax.models import decoder
from fairgrpo_jax.models.inputs import pack
from tests import tiny_models


files = pytest.mark.parametrize("family, seed", tiny_models.FILES)


@functools.cache
def run(family, seed):
    """All cases of a file as one batch, the rows of each case, and the batch's hidden states, keys and values."""
    vlm, cases = tiny_models.golden(family, seed)
    prompt, rows = tiny_models.one_batch(vlm.config, {name: inputs for name, (inputs, _) in cases.items()})
    return prompt, rows, *tiny_models.prompt_pass(vlm.params, vlm.config, prompt)


@files
def test_logits_equal_transformers(family, seed):
    vlm, cases = tiny_models.golden(family, seed)
    _, rows, hidden, _ = run(family, seed)
    logits = np.asarray(decoder.head(vlm.params, vlm.config, hidden))
    for name, (inputs, expected) in cases.items():
        mask = inputs["attention_mask"].astype(bool)
        got = tiny_models.in_layout(logits[rows[name]], mask)
        np.testing.assert_allclose(got, expected["logits"][mask], atol=2e-4, err_msg=name)


@files
def test_rotary_positions_equal_transformers(family, seed):
    vlm, cases = tiny_models.golden(family, seed)
    for name, (inputs, expected) in cases.items():
        mask = inputs["attention_mask"].astype(bool)
        prompt = pack(inputs, vlm.config)
        count = np.broadcast_to((np.cumsum(mask, axis=1) - 1)[..., None], (*mask.shape, 3))
        wanted = expected.get("rope", count)  # without M-RoPE, tokens are counted
        np.testing.assert_array_equal(tiny_models.in_layout(prompt.rope, mask), wanted[mask], err_msg=name)
        np.testing.assert_array_equal(prompt.following, expected.get("next", mask.sum(1)))


# What a second model of a family is configured with shows in its logits; test_models_decoder decodes all families.
@pytest.mark.parametrize(
    "family, seed",
    [pytest.param(*file, marks=pytest.mark.slow) if file[1] else file for file in tiny_models.FILES],
)
def test_greedy_decoding_equals_transformers_up_to_near_ties(family, seed):
    vlm, cases = tiny_models.golden(family, seed)
    prompt, rows, hidden, kv = run(family, seed)
    got = tiny_models.greedy(vlm.params, vlm.config, prompt, hidden, kv, 6)
    for name, (_, expected) in cases.items():
        if "greedy" in expected:
            assert (expected["margin"] > 5e-4).mean() > 0.9
            tiny_models.assert_greedy(got[rows[name]], expected, 5e-4)
