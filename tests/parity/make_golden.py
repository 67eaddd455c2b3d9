"""Makes tests/golden/qwen2_5_vl_*.npz with transformers' Qwen2.5-VL in torch: tiny random models and what they compute.

    python tests/parity/make_golden.py          (needs torch)

Every file holds the config, the weights under their published names, and for every case its inputs, rotary positions,
logits, and for some the greedy continuation with the margin between its best two logits.
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np


FOLDER = pathlib.Path(__file__).parents[1] / "golden"
IMAGE, VIDEO, START, END, PAD = 5, 6, 3, 4, 0
VOCABULARY = 96

# What differs between the two models: tied head, GQA ratio, window, layers with full attention, eps, rope.
VARIANTS: dict[int, dict[str, Any]] = {
    0: dict(
        text=dict(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, rms_norm_eps=1e-6),
        vision=dict(num_heads=2, depth=3, window_size=16, fullatt_block_indexes=[1], tokens_per_second=2),
        section=[1, 1, 2],
        theta=10_000.0,
        tied=True,
    ),
    1: dict(
        text=dict(num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=3, rms_norm_eps=1e-5),
        vision=dict(num_heads=4, depth=2, window_size=24, fullatt_block_indexes=[0], tokens_per_second=3),
        section=[2, 3, 3],
        theta=1_000_000.0,
        tied=False,
    ),
}


def build(seed: int):
    """A random model in float32; the weights are drawn so that no norm, bias or block is near the identity."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    variant = VARIANTS[seed % 2]
    text = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        max_position_embeddings=512,
        eos_token_id=2,
        pad_token_id=PAD,
        rope_parameters={"rope_type": "default", "rope_theta": variant["theta"], "mrope_section": variant["section"]},
        **variant["text"],
    )
    vision = dict(
        hidden_size=32,
        intermediate_size=40,
        out_hidden_size=32,
        patch_size=4,
        temporal_patch_size=2,
        spatial_merge_size=2,
        **variant["vision"],
    )
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=variant["tied"],
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
            else:
                parameter.copy_(noise * 1.5 / parameter[0].numel() ** 0.5)
    return model


def image_tokens(*grids):
    """Placeholders of images, each between its start and end tokens."""
    return [token for t, h, w in grids for token in [START, *[IMAGE] * (t * h * w // 4), END]]


def video_tokens(t, h, w):
    return [START, *[VIDEO] * (t * h * w // 4), END]


def batch(rows, side, rng, images=(), videos=(), seconds=None):
    """Inputs as a processor would return them, padded on one side."""
    size = max(map(len, rows))
    ids = np.full((len(rows), size), PAD)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        own = slice(size - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, own], mask[row, own] = tokens, 1
    inputs = {"input_ids": ids.astype(np.int64), "attention_mask": mask}
    inputs["mm_token_type_ids"] = np.where(ids == IMAGE, 1, np.where(ids == VIDEO, 2, 0))
    for name, grids, pixels in (("image", images, "pixel_values"), ("video", videos, "pixel_values_videos")):
        if grids:
            inputs[f"{name}_grid_thw"] = np.array(grids, np.int64)
            inputs[pixels] = rng.normal(size=(int(np.prod(grids, axis=1).sum()), 96)).astype(np.float32)
    if seconds is not None:
        inputs["second_per_grid_ts"] = np.array(seconds, np.float32)
    return inputs


def cases(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Text; images of different, ragged sizes, left-padded; images and videos together; a video with odd seconds."""
    rng = np.random.default_rng(seed)
    words = lambda n: rng.integers(7, VOCABULARY, n).tolist()
    a, b, c = (1, 8, 12), (1, 6, 10), (1, 4, 2)
    film, short = (3, 4, 8), (2, 6, 4)
    return {
        "text": batch([words(9), words(5)], "left", rng),
        "images": batch(
            [words(2) + image_tokens(a, b) + words(4), words(3) + image_tokens(c) + words(2), words(6)],
            "left",
            rng,
            images=[a, b, c],
        ),
        "video": batch(
            [words(1) + video_tokens(*film) + words(2) + image_tokens(c) + words(3), words(4) + video_tokens(*short)],
            "right",
            rng,
            images=[c],
            videos=[film, short],
            seconds=[1.0, 0.5],
        ),
        "video_only": batch([words(3) + video_tokens(*film) + words(3)], "left", rng, videos=[film], seconds=[0.7]),
    }


def expected(model, inputs: dict[str, np.ndarray], steps: int = 6) -> dict[str, np.ndarray]:
    """Logits, rotary positions, the next position, and a greedy continuation where no row is padded on the right."""
    import torch  # pyright: ignore[reportMissingImports]

    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    with torch.no_grad():
        logits = model(**tensors, use_cache=False).logits
        positions, deltas = model.model.get_rope_index(
            **{name: value for name, value in tensors.items() if not name.startswith("pixel")}
        )
    arrays = {
        "logits": logits.numpy(),
        "rope": positions.permute(1, 2, 0).numpy(),
        "next": deltas[:, 0].numpy() + inputs["attention_mask"].sum(1),
    }
    if not inputs["attention_mask"][:, -1].all():
        return arrays
    with torch.no_grad():
        generated = model.generate(
            **tensors,
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PAD,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.stack(generated.logits, dim=1).topk(2, dim=-1).values
    arrays["greedy"] = generated.sequences[:, inputs["input_ids"].shape[1] :].numpy()
    arrays["margin"] = (best[..., 0] - best[..., 1]).numpy()
    return arrays


def published_weights(model) -> dict[str, np.ndarray]:
    """The weights under the names in which checkpoints are published; a tied head once."""
    weights = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        if name != "lm_head.weight" or not model.config.tie_word_embeddings:
            weights[name] = tensor.numpy()
    return weights


def main(folder: pathlib.Path) -> None:
    for seed in VARIANTS:
        model = build(seed)
        arrays: dict[str, Any] = {"config": np.array(json.dumps(model.config.to_dict()))}
        arrays |= {f"weights/{name}": value for name, value in published_weights(model).items()}
        for case, inputs in cases(seed).items():
            arrays |= {f"{case}/inputs/{name}": value for name, value in inputs.items()}
            arrays |= {f"{case}/expected/{name}": value for name, value in expected(model, inputs).items()}
        path = folder / f"qwen2_5_vl_{seed}.npz"
        np.savez_compressed(path, **arrays)
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
