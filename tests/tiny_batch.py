"""A real batch of the embedded clinic, prepared as the loop prepares it: ragged prompts, one image each."""

import dataclasses

import jax
import numpy as np

from fairgrpo_jax import config as options, models, policy
from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import synthetic
from fairgrpo_jax.data.record import conversation, target
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer
from tests import tiny_models


MODEL = policy.small(options.Model(hidden_size=32))
# Without a tower, which takes as long to compile as the decoder; placeholders of images are tokens like others.
TEXT = dataclasses.replace(MODEL, model_type="qwen2", vision=None, image_id=None, video_id=None)
PROCESSOR = models.Processor(tiny_tokenizer(), patch_size=4, min_pixels=32 * 32, max_pixels=32 * 32)


def records(count, domains=("us", "ct", "digits")):
    """Records of several domains, so that their questions differ in length."""
    sources = [synthetic.load("train", domains=(name,), scale=0.2).records for name in domains]
    return [sources[i % len(sources)][i // len(sources)] for i in range(count)]


def inputs(rows, side="left"):
    """What the processor gives for records."""
    PROCESSOR.tokenizer.padding_side = side
    images = [media.decode_record(row).images for row in rows]
    return PROCESSOR([conversation(row, list_choices=False) for row in rows], images)


def prompt(rows, length=48, num_patches=64):
    """Records as a packed prompt on the device."""
    return jax.device_put(models.pack(inputs(rows), MODEL, length=length, num_patches=num_patches))


def text_prompt(rows, length=48):
    """The tokens of records alone, for ``TEXT``."""
    tokens = {name: inputs(rows)[name] for name in ("input_ids", "attention_mask")}
    return jax.device_put(models.pack(tokens, TEXT, length=length))


def mixed(count, length=100, num_patches=256):
    """Prompts with one image of 64, 128 or 256 patches, or none, on the host."""
    sizes = [(32, 32), (64, 64), (32, 64), None]
    rng, talks, images = np.random.default_rng(0), [], []
    for i in range(count):
        size = sizes[i % 4]
        pictures = [] if size is None else [rng.integers(0, 256, (*size, 3), dtype=np.uint8)]
        words = {"type": "text", "text": "Which digit is this?" * (1 + i % 3)}
        talks.append([{"role": "user", "content": [{"type": "image"} for _ in pictures] + [words]}])
        images.append(pictures)
    processor = dataclasses.replace(PROCESSOR, max_pixels=64 * 64)
    return models.pack(processor(talks, images), MODEL, length=length, num_patches=num_patches)


def params(seed=0, architecture=MODEL):
    """Parameters large enough that no layer is near the identity."""
    return tiny_models.noisy(architecture, 0.05, seed)


def completions(rows, rollouts=1, length=10):
    """The records' reference completions, each ``rollouts`` times: tokens and mask (P, G, T)."""
    tokens = np.full((len(rows), rollouts, length), MODEL.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        ids = [*PROCESSOR.tokenizer.encode(target(row), add_special_tokens=False), MODEL.eos_ids[0]]
        tokens[i, :, : len(ids)], mask[i, :, : len(ids)] = ids, True
    return jax.device_put((tokens, mask))
