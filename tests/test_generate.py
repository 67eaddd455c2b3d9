"""Generation for every family, from checkpoint folders: what is sampled, with what probability, and where it ends."""

import dataclasses

import jax
import numpy as np
import pytest

from fairgrpo_jax import models, rollout
from fairgrpo_jax.models.checkpoints import processor as folders
from tests import tiny_folder, tiny_models
from tests.test_models_processing import FILM, TALK, noise


WORDS = [{"role": "user", "content": "Does the patient have COVID?"}]
LENGTH = 6


def read(root, family):
    """A model with large random weights that likes vision tokens best; its end and vision tokens come from a folder."""
    folder = tiny_folder.shrink(tiny_folder.write(root / family, family), family)
    processor = models.processor(folder)
    config = models.FAMILIES[family].tiny(eos_ids=())
    if family == "gemma3":
        begin, end, image = processor.tokenizer.convert_tokens_to_ids(tiny_folder.GEMMA_TOKENS[-3:])
        config = dataclasses.replace(config, vision_start_id=begin, vision_end_id=end, image_id=image, banned_ids=())
    config = folders.with_token_ids(config, folder, processor.tokenizer)
    params = jax.device_get(tiny_models.noisy(config, 0.1))
    params["embedding"] = params["embedding"].copy()
    params["embedding"][np.array(config.banned_ids, int)] *= 20.0
    return models.VLM(config, jax.device_put(params), processor)


def prompts(vlm, family):
    """Two images of different size, words alone, and a video where the family takes one; padded on the left."""
    pair = [{"role": "user", "content": [{"type": "image"}, *TALK[0]["content"]]}]
    talks, images, films = [pair, WORDS], [[noise(16, 24, 3), noise(32, 32, 3, seed=1)], []], [[], []]
    if family != "gemma3":
        talks, images, films = [*talks, FILM], [*images, []], [*films, [noise(5, 16, 16, 3)]]
    return vlm.processor(talks, images, films, seconds_per_frame=0.7)


def continued(inputs, tokens, mask):
    """The prompts with a completion behind each, as a processor would give them."""
    longer = dict(inputs)
    for name, new in (("input_ids", tokens), ("attention_mask", mask.astype(int))):
        longer[name] = np.concatenate([inputs[name], new], axis=1)
    return longer


# test_models_golden.py continues prompts of all families with what transformers finds.
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("qwen")) for name in tiny_folder.FAMILIES],
)
def test_every_sampled_token_has_the_probability_that_one_pass_over_the_text_gives_it(tmp_path, family):
    vlm = read(tmp_path, family)
    inputs = prompts(vlm, family)
    temperature = 0.7
    got = rollout.generate(
        vlm, inputs, num_rollouts=2, max_new_tokens=LENGTH, temperature=temperature, key=jax.random.key(2)
    )
    tokens, mask, logprobs = jax.device_get((got.tokens, got.mask, got.logprobs))
    banned = [*vlm.config.banned_ids, *range(vlm.config.num_tokens or vlm.config.vocab_size, vlm.config.vocab_size)]
    assert mask.sum() > 2 * len(mask) and not np.isin(tokens[mask], banned).any()
    for g in range(2):
        logits = vlm.logits(continued(inputs, tokens[:, g], mask[:, g]))[:, -LENGTH - 1 : -1] / temperature
        assert logits[..., banned].max() > logits.mean() + 3 * logits.std(), "nothing to ban"
        logits[..., banned] = -np.inf
        wanted = logits - np.asarray(jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        wanted = np.take_along_axis(wanted, tokens[:, g, :, None], axis=-1)[..., 0]
        np.testing.assert_allclose(logprobs[:, g][mask[:, g]], wanted[mask[:, g]], atol=2e-4)


def test_any_of_the_end_tokens_ends_an_answer(tmp_path):
    vlm = read(tmp_path, "qwen3_vl")
    assert vlm.config.eos_ids == (2, 0), "config.json has the first, generation_config.json both"
    inputs = vlm.processor([WORDS, [{"role": "user", "content": "Which digit is this?"}]])
    endless = dataclasses.replace(vlm, config=dataclasses.replace(vlm.config, eos_ids=(511,)))
    free = np.asarray(rollout.generate(endless, inputs, max_new_tokens=LENGTH, temperature=0).tokens)[:, 0]
    ends = [next(int(token) for token in free[row] if token not in free[1 - row]) for row in (0, 1)]
    ending = dataclasses.replace(vlm, config=dataclasses.replace(vlm.config, eos_ids=tuple(ends)))
    got = rollout.generate(ending, inputs, max_new_tokens=LENGTH, temperature=0)
    lengths = [free[row].tolist().index(end) + 1 for row, end in enumerate(ends)]
    assert np.asarray(got.mask)[:, 0].sum(1).tolist() == lengths and min(lengths) < LENGTH
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(got.tokens[row, 0, :length], free[row, :length])
