"""Writes config and processor as the JSON files of a checkpoint folder, for models not loaded from one."""

from collections.abc import Callable
from typing import Any

from fairgrpo_jax.models import processing


CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "llama": "LlamaForCausalLM",
}


def config_json(config: Any) -> dict[str, Any]:
    """The ``config.json`` with which transformers builds the model; ``Config.from_hugging_face`` reads it back.

    Raises:
        ValueError: if transformers has no such model.

    Example:
        >>> from fairgrpo_jax.models import qwen2_5_vl
        >>> config_json(qwen2_5_vl.tiny())["text_config"]["num_hidden_layers"]
        2
    """
    kind = config.model_type
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen2") and config.head_dim * config.num_heads != config.hidden_size:
        raise ValueError(
            f"got head_dim={config.head_dim} with num_heads={config.num_heads} and hidden_size={config.hidden_size}; "
            f"wanted heads that share the width, as {kind} has in transformers"
        )
    whole = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": [*config.eos_ids],
        "pad_token_id": config.pad_id,
    }
    if config.vision is None:
        return _text(config) | whole
    parts = {"text_config": _text(config), "vision_config": TOWERS[kind](config.vision)}
    return whole | parts | (_gemma(config) if kind == "gemma3" else _qwen_media(config))


def _text(config: Any) -> dict[str, Any]:
    text = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": [*config.eos_ids],
        "pad_token_id": config.pad_id,
        "hidden_activation" if config.model_type == "gemma3" else "hidden_act": config.activation,
    }
    if config.vision is not None:
        text["model_type"] = f"{config.model_type}_text"
    if config.mrope_section:
        text["rope_scaling"] = {"type": "mrope", "rope_type": "default", "mrope_section": [*config.mrope_section]}
        if config.mrope_interleaved:
            text["rope_scaling"] = {**text["rope_scaling"], "type": "default", "mrope_interleaved": True}
    elif config.rope_factor != 1.0:
        text["rope_scaling"] = {"rope_type": "linear", "factor": config.rope_factor}
    if config.model_type == "mistral":
        return text | {"sliding_window": config.window or None}
    if config.local:
        text |= {"sliding_window": config.window, "use_sliding_window": True}
        text["layer_types"] = ["sliding_attention" if local else "full_attention" for local in config.local]
    if config.model_type == "gemma3":
        text["rope_local_base_freq"] = config.local_rope_theta
        text["query_pre_attn_scalar"] = round(config.attention_scale**-2)
    return text


def _gemma(config: Any) -> dict[str, Any]:
    tower = config.vision
    return {
        "image_token_index": config.image_id,
        "boi_token_index": config.vision_start_id,
        "eoi_token_index": config.vision_end_id,
        "mm_tokens_per_image": (tower.image_size // tower.patch_size // tower.spatial_merge_size) ** 2,
    }


def _qwen_media(config: Any) -> dict[str, Any]:
    return {
        "image_token_id": config.image_id,
        "video_token_id": config.video_id,
        "vision_start_token_id": config.vision_start_id,
        "vision_end_token_id": config.vision_end_id,
    }


def _qwen_tower(tower: Any) -> dict[str, Any]:
    return {
        "depth": tower.depth,
        "num_heads": tower.num_heads,
        "patch_size": tower.patch_size,
        "temporal_patch_size": tower.temporal_patch_size,
        "spatial_merge_size": tower.spatial_merge_size,
        "in_channels": tower.in_channels,
        "hidden_act": tower.activation,
        "initializer_range": tower.initializer_range,
    }


def _qwen2_tower(tower: Any) -> dict[str, Any]:
    return _qwen_tower(tower) | {
        "model_type": "qwen2_vl",
        "embed_dim": tower.hidden_size,
        "mlp_ratio": tower.intermediate_size // tower.hidden_size,
        "hidden_size": tower.out_hidden_size,
    }


def _qwen2_5_tower(tower: Any) -> dict[str, Any]:
    return _qwen_tower(tower) | {
        "model_type": "qwen2_5_vl",
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "out_hidden_size": tower.out_hidden_size,
        "window_size": tower.window_size,
        "fullatt_block_indexes": [*tower.full_blocks],
        "tokens_per_second": tower.tokens_per_second,
    }


def _qwen3_tower(tower: Any) -> dict[str, Any]:
    return _qwen_tower(tower) | {
        "model_type": "qwen3_vl",
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "out_hidden_size": tower.out_hidden_size,
        "num_position_embeddings": tower.num_positions,
        "deepstack_visual_indexes": [*tower.deepstack],
    }


def _siglip_tower(tower: Any) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "num_hidden_layers": tower.depth,
        "hidden_size": tower.hidden_size,
        "num_attention_heads": tower.num_heads,
        "intermediate_size": tower.intermediate_size,
        "patch_size": tower.patch_size,
        "image_size": tower.image_size,
        "num_channels": tower.in_channels,
        "layer_norm_eps": tower.eps,
        "hidden_act": tower.activation,
        "vision_use_head": False,
    }


TOWERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "qwen2_vl": _qwen2_tower,
    "qwen2_5_vl": _qwen2_5_tower,
    "qwen3_vl": _qwen3_tower,
    "gemma3": _siglip_tower,
}


def processor_json(processor: Any) -> dict[str, dict[str, Any]]:
    """The files, by name, from which ``models.processor`` rebuilds the processor; a tokenizer writes its own files."""
    if isinstance(processor, processing.Gemma3Processor):
        side = {"height": processor.image_size, "width": processor.image_size}
        images = {"size": side, "image_seq_length": processor.tokens_per_image, "resample": 2}
        images |= {"image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor"}
        return {"preprocessor_config.json": images | _normalisation(processor)}
    if not isinstance(processor, processing.Processor):
        return {}
    names = {processing.Qwen2Processor: "Qwen2VLProcessor", processing.Qwen3Processor: "Qwen3VLProcessor"}
    geometry = {
        "patch_size": processor.patch_size,
        "temporal_patch_size": processor.temporal_patch_size,
        "merge_size": processor.merge_size,
        "processor_class": names.get(type(processor), "Qwen2_5_VLProcessor"),
        **_normalisation(processor),
    }
    least, most = processor.video_min_pixels, processor.video_max_pixels
    videos = {
        "shortest_edge": processor.min_pixels if least is None else least,
        "longest_edge": processor.max_pixels if most is None else most,
    }
    images = {"shortest_edge": processor.min_pixels, "longest_edge": processor.max_pixels}
    kind = "Qwen3VLVideoProcessor" if isinstance(processor, processing.Qwen3Processor) else "Qwen2VLVideoProcessor"
    return {
        "preprocessor_config.json": geometry | {"size": images, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": geometry | {"size": videos, "video_processor_type": kind},
    }


def _normalisation(processor: Any) -> dict[str, Any]:
    return {"image_mean": [*processor.mean], "image_std": [*processor.std]}
