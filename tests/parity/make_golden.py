"""Makes tests/golden/<family>_*.npz with transformers' models in torch: tiny random models and what they compute.

    python tests/parity/make_golden.py          (needs torch)

Every file holds the config, the weights under their published names, and for every case its inputs, logits, for the
Qwen-VLs rotary positions, and for most cases the greedy continuation with the margin between its best two logits.
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np


FOLDER = pathlib.Path(__file__).parents[1] / "golden"
IMAGE, VIDEO, START, END, PAD = 5, 6, 3, 4, 0
VOCABULARY = 96
MEDIA = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=PAD,
)
TOWER = dict(patch_size=4, temporal_patch_size=2, spatial_merge_size=2)


def heads(query: int, key_value: int, layers: int, eps: float) -> dict[str, Any]:
    return dict(num_attention_heads=query, num_key_value_heads=key_value, num_hidden_layers=layers, rms_norm_eps=eps)


def rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


def qwen2_vl(odd: bool) -> tuple[str, dict[str, Any]]:
    """Two models each: tied and untied heads, other ratios of heads, depths, sizes, eps and rope."""
    if odd:
        text = heads(2, 1, 3, 1e-5) | dict(rope_parameters=rope(1e6, mrope_section=[2, 3, 3]))
        tower = dict(num_heads=4, depth=2, embed_dim=32, mlp_ratio=2)
    else:
        text = heads(4, 2, 2, 1e-6) | dict(rope_parameters=rope(1e4, mrope_section=[1, 1, 2]))
        tower = dict(num_heads=2, depth=3, embed_dim=24, mlp_ratio=3)
    tower |= TOWER | dict(hidden_size=32)
    return "Qwen2VL", dict(text_config=TEXT | text, vision_config=tower, tie_word_embeddings=not odd, **MEDIA)


def qwen2_5_vl(odd: bool) -> tuple[str, dict[str, Any]]:
    if odd:
        text = heads(2, 1, 3, 1e-5) | dict(rope_parameters=rope(1e6, mrope_section=[2, 3, 3]))
        tower = dict(num_heads=4, depth=2, window_size=24, fullatt_block_indexes=[0], tokens_per_second=9)
    else:
        text = heads(4, 2, 2, 1e-6) | dict(rope_parameters=rope(1e4, mrope_section=[1, 1, 2]))
        tower = dict(num_heads=2, depth=3, window_size=16, fullatt_block_indexes=[1], tokens_per_second=2)
    tower |= TOWER | dict(hidden_size=32, intermediate_size=40, out_hidden_size=32)
    return "Qwen2_5_VL", dict(text_config=TEXT | text, vision_config=tower, tie_word_embeddings=not odd, **MEDIA)


def qwen3_vl(odd: bool) -> tuple[str, dict[str, Any]]:
    interleaved = dict(mrope_interleaved=True)
    if odd:
        text = heads(2, 1, 3, 1e-5) | dict(
            head_dim=12, rope_parameters=rope(1e6, mrope_section=[3, 2, 1], **interleaved)
        )
        tower = dict(num_heads=4, depth=2, hidden_size=32, num_position_embeddings=25, deepstack_visual_indexes=[1])
    else:
        text = heads(4, 2, 2, 1e-6) | dict(
            head_dim=16, rope_parameters=rope(1e4, mrope_section=[4, 2, 2], **interleaved)
        )
        tower = dict(num_heads=2, depth=3, hidden_size=24, num_position_embeddings=36, deepstack_visual_indexes=[0, 2])
    tower |= TOWER | dict(intermediate_size=40, out_hidden_size=32)
    return "Qwen3VL", dict(text_config=TEXT | text, vision_config=tower, tie_word_embeddings=not odd, **MEDIA)


def gemma3(odd: bool) -> tuple[str, dict[str, Any]]:
    def turns(local, theta, factor):
        linear = dict(rope_type="linear", rope_theta=theta, factor=factor)
        return dict(rope_parameters={"sliding_attention": rope(local), "full_attention": linear})

    if odd:
        text = heads(2, 1, 4, 1e-5) | turns(50.0, 1e4, 4.0)
        text |= dict(head_dim=12, sliding_window=11, sliding_window_pattern=3, query_pre_attn_scalar=20)
        tower = dict(num_attention_heads=4, num_hidden_layers=2, hidden_size=32, image_size=24, layer_norm_eps=1e-5)
        tokens = 4
    else:
        text = heads(4, 2, 3, 1e-6) | turns(100.0, 1e5, 8.0)
        text |= dict(head_dim=16, sliding_window=6, sliding_window_pattern=2, query_pre_attn_scalar=24)
        tower = dict(num_attention_heads=2, num_hidden_layers=3, hidden_size=24, image_size=32, layer_norm_eps=1e-6)
        tokens = 16
    tower |= dict(model_type="siglip_vision_model", patch_size=4, intermediate_size=40, vision_use_head=False)
    media = dict(image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END, mm_tokens_per_image=tokens)
    return "Gemma3", dict(text_config=TEXT | text, vision_config=tower, eos_token_id=[2, 1], **media)


def qwen2(odd: bool) -> tuple[str, dict[str, Any]]:
    window = dict(use_sliding_window=True, sliding_window=4, max_window_layers=1) if odd else {}
    text = heads(4, 2, 2, 1e-6) | dict(rope_parameters=rope(1e4)) | window
    return "Qwen2", TEXT | text | dict(tie_word_embeddings=not odd)


def qwen3(odd: bool) -> tuple[str, dict[str, Any]]:
    text = heads(4, 2, 2, 1e-6) | dict(head_dim=12, rope_parameters=rope(1e5))
    return "Qwen3", TEXT | text | dict(tie_word_embeddings=not odd)


def mistral(odd: bool) -> tuple[str, dict[str, Any]]:
    text = heads(4, 2, 2, 1e-5) | dict(head_dim=12 if odd else None, sliding_window=5, rope_parameters=rope(1e4))
    return "Mistral", TEXT | text | dict(tie_word_embeddings=False)


def llama(odd: bool) -> tuple[str, dict[str, Any]]:
    linear = dict(rope_type="linear", rope_theta=1e4, factor=2.0)
    text = heads(4, 2, 2, 1e-5) | dict(head_dim=12 if odd else None, rope_parameters=linear if odd else rope(1e4))
    return "Llama", TEXT | text | dict(tie_word_embeddings=odd)


FAMILIES = dict(
    qwen2_vl=qwen2_vl,
    qwen2_5_vl=qwen2_5_vl,
    qwen3_vl=qwen3_vl,
    gemma3=gemma3,
    qwen2=qwen2,
    qwen3=qwen3,
    mistral=mistral,
    llama=llama,
)
PUBLISHED = [(name, seed) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3") for seed in (0, 1)]
PUBLISHED += [("mistral", 0)]


def build(family: str, seed: int):
    """A random model in float32; the weights are drawn so that no norm, bias or block is near the identity."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    name, values = FAMILIES[family](seed % 2 == 1)
    config = getattr(transformers, f"{name}Config")(**values)
    kind = "ForConditionalGeneration" if hasattr(config, "vision_config") else "ForCausalLM"
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}{kind}")._from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                zero = name.endswith("bias") or (family == "gemma3" and "vision_tower" not in name)
                parameter.copy_(0.3 * noise + (0.0 if zero else 1.0))
            else:
                parameter.copy_(noise * 1.5 / parameter[0].numel() ** 0.5)
    return model


def image_tokens(*grids):
    """Placeholders of images, each between its start and end tokens."""
    return [token for t, h, w in grids for token in [START, *[IMAGE] * (t * h * w // 4), END]]


def video_tokens(t, h, w):
    return [START, *[VIDEO] * (t * h * w // 4), END]


def stamped_video_tokens(t, h, w):
    """A video as Qwen3-VL reads it: every frame between start and end tokens, after two tokens of its time."""
    return [token for frame in range(t) for token in [20 + frame, 40 + frame, *video_tokens(1, h, w)]]


def padded(rows, side):
    """Token ids and attention mask of rows padded on one side."""
    size = max(map(len, rows))
    ids = np.full((len(rows), size), PAD)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        own = slice(size - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, own], mask[row, own] = tokens, 1
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask}


def batch(rows, side, rng, images=(), videos=(), seconds=None):
    """Inputs as the processor of a Qwen-VL would return them, padded on one side."""
    inputs = padded(rows, side)
    ids = inputs["input_ids"]
    inputs["mm_token_type_ids"] = np.where(ids == IMAGE, 1, np.where(ids == VIDEO, 2, 0))
    for name, grids, pixels in (("image", images, "pixel_values"), ("video", videos, "pixel_values_videos")):
        if grids:
            inputs[f"{name}_grid_thw"] = np.array(grids, np.int64)
            inputs[pixels] = rng.normal(size=(int(np.prod(grids, axis=1).sum()), 96)).astype(np.float32)
    if seconds is not None:
        inputs["second_per_grid_ts"] = np.array(seconds, np.float32)
    return inputs


def cases(family: str, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Text; images of different, ragged sizes, left-padded; images and videos together; a video with odd seconds."""
    rng = np.random.default_rng(seed)
    words = lambda n: rng.integers(7, VOCABULARY, n).tolist()
    if family in ("qwen2", "qwen3", "mistral", "llama"):
        return {"text": padded([words(13), words(8)], "left"), "right": padded([words(3), words(9)], "right")}
    if family == "gemma3":
        return gemma3_cases(seed, rng, words)
    a, b, c = (1, 8, 12), (1, 6, 10), (1, 4, 2)
    film, short = (3, 4, 8), (2, 6, 4)
    video = stamped_video_tokens if family == "qwen3_vl" else video_tokens
    seconds = ([1.0, 0.5], [0.7]) if family == "qwen2_5_vl" else (None, None)
    return {
        "text": batch([words(9), words(5)], "left", rng),
        "images": batch(
            [words(2) + image_tokens(a, b) + words(4), words(3) + image_tokens(c) + words(2), words(6)],
            "left",
            rng,
            images=[a, b, c],
        ),
        "video": batch(
            [words(1) + video(*film) + words(2) + image_tokens(c) + words(3), words(4) + video(*short)],
            "right",
            rng,
            images=[c],
            videos=[film, short],
            seconds=seconds[0],
        ),
        "video_only": batch([words(3) + video(*film) + words(3)], "left", rng, videos=[film], seconds=seconds[1]),
    }


def gemma3_cases(seed, rng, words) -> dict[str, dict[str, np.ndarray]]:
    """Text longer than the window; images: two in a row, one, none; two side by side, and one at the end."""
    size, tokens = (24, 4) if seed % 2 else (32, 16)
    image = [START, *[IMAGE] * tokens, END]

    def batch(rows, side):
        inputs = padded(rows, side)
        inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).astype(np.int64)
        count = sum(row.count(START) for row in rows)
        if count:
            inputs["pixel_values"] = rng.normal(size=(count, 3, size, size)).astype(np.float32)
        return inputs

    return {
        "text": batch([words(15), words(6)], "left"),
        "images": batch(
            [words(2) + image + words(3) + image + words(4), words(3) + image + words(2), words(7)], "left"
        ),
        "adjacent": batch([words(1) + image + image + words(2), words(5) + image], "left"),
        "right": batch([words(4), words(2) + image + words(9)], "right"),
    }


def expected(model, inputs: dict[str, np.ndarray], steps: int = 6) -> dict[str, np.ndarray]:
    """Logits, rotary positions, the next position, and a greedy continuation where no row is padded on the right."""
    import torch  # pyright: ignore[reportMissingImports]

    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    with torch.no_grad():
        arrays = {"logits": model(**tensors, use_cache=False).logits.numpy()}
    if "mm_token_type_ids" in inputs:
        positions, _ = model.model.get_rope_index(
            **{name: value for name, value in tensors.items() if not name.startswith("pixel")}
        )
        arrays["rope"] = positions.permute(1, 2, 0).numpy()
        last = inputs["attention_mask"].shape[1] - 1 - inputs["attention_mask"][:, ::-1].argmax(1)
        arrays["next"] = arrays["rope"][np.arange(len(last)), last].max(1) + 1  # as generate counts on after text
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
    kind = model.config.model_type
    weights = {}
    for name, tensor in model.state_dict().items():
        if kind in ("qwen2_vl", "qwen2_5_vl"):
            name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        if kind == "gemma3":
            name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
            name = name.replace("vision_tower.", "vision_tower.vision_model.").replace(
                "vision_model." * 2, "vision_model."
            )
        if name != "lm_head.weight" or not model.config.tie_word_embeddings:
            weights[name] = tensor.numpy()
    return weights


def main(folder: pathlib.Path) -> None:
    for family, seed in PUBLISHED:
        model = build(family, seed)
        arrays: dict[str, Any] = {"config": np.array(json.dumps(model.config.to_dict()))}
        arrays |= {f"weights/{name}": value for name, value in published_weights(model).items()}
        for case, inputs in cases(family, seed).items():
            arrays |= {f"{case}/inputs/{name}": value for name, value in inputs.items()}
            arrays |= {f"{case}/expected/{name}": value for name, value in expected(model, inputs).items()}
        path = folder / f"{family}_{seed}.npz"
        np.savez_compressed(path, **arrays)
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
