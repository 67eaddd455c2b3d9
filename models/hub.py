"""Reads published configs of all families through ``transformers``, which knows all their spellings; needs no torch."""

from collections.abc import Mapping
from typing import Any

from fairgrpo_jax.models.tiny.tokenizer import quiet_transformers


def read(config: Any, *model_types: str) -> Any:
    """Returns a ``transformers`` config, given itself or the dict of a ``config.json``, flat or nested.

    Raises:
        ValueError: if its ``model_type`` is not one of ``model_types``.
    """
    quiet_transformers()
    from transformers import AutoConfig

    mapping = isinstance(config, Mapping)
    got = config.get("model_type") if mapping else config.model_type
    if got not in model_types:
        raise ValueError(f"got model_type={got!r}; wanted {' or '.join(model_types)}")
    if not mapping:
        return config
    return AutoConfig.for_model(got, **{name: value for name, value in config.items() if name != "model_type"})


def require(what: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that a checkpoint uses only options that the model implements.

    Raises:
        ValueError: naming all differences.
    """
    wrong = {name: got[name] for name in wanted if got[name] != wanted[name]}
    if wrong:
        only = {name: wanted[name] for name in wrong}
        raise ValueError(f"this {what} computes {only}; the checkpoint's config has {wrong}")


def text_fields(config: Any, rope: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a ``TextConfig`` that all published configs spell in the same way.

    Args:
        config: config of the whole model.
        rope: rotary parameters of the global layers, if the config has others for local ones.
    """
    text = config.get_text_config()
    rope = rope or dict(text.rope_parameters)
    kind, eos_ids = rope.get("rope_type", "default"), _ids(config, "eos_token_id") + _ids(text, "eos_token_id")
    if kind not in ("default", "linear"):
        raise ValueError(f"this {config.model_type} computes rope_type default or linear; the checkpoint wants {kind}")
    pads = (*_ids(text, "pad_token_id"), *_ids(config, "pad_token_id"), *eos_ids, 0)
    return dict(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        tie_word_embeddings=config.tie_word_embeddings,
        eos_ids=tuple(dict.fromkeys(eos_ids)),
        pad_id=pads[0],
        rope_theta=float(rope["rope_theta"]),
        rope_factor=float(rope["factor"]) if kind == "linear" else 1.0,
        rms_eps=text.rms_norm_eps,
        initializer_range=text.initializer_range,
        **_window_fields(text),
    )


def _window_fields(text: Any) -> dict[str, Any]:
    """The fields ``window`` and ``local``; empty if no layer attends in a window."""
    window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    kinds = kinds or ["sliding_attention" if window else "full_attention"] * text.num_hidden_layers
    local = tuple(kind == "sliding_attention" for kind in kinds)
    return dict(window=window, local=local) if any(local) else {}


def media_fields(config: Any, mrope_section: tuple[int, ...]) -> dict[str, Any]:
    """The placeholder ids of a Qwen-VL, the ids that are never sampled, and its M-RoPE.

    Args:
        config: config of the whole model.
        mrope_section: default for configs without it.
    """
    markers = (config.vision_start_token_id, config.vision_end_token_id, getattr(config, "vision_token_id", None))
    banned = {config.image_token_id, config.video_token_id, *markers} - {None}
    return dict(
        image_id=config.image_token_id,
        video_id=config.video_token_id,
        vision_start_id=config.vision_start_token_id,
        vision_end_id=config.vision_end_token_id,
        banned_ids=tuple(sorted(banned)),
        mrope_section=tuple(config.text_config.rope_parameters.get("mrope_section", mrope_section)),
    )


def tower_fields(tower: Any) -> dict[str, Any]:
    """The fields of a ``VisionConfig`` that all Qwen families spell in the same way."""
    return dict(
        depth=tower.depth,
        num_heads=tower.num_heads,
        patch_size=tower.patch_size,
        temporal_patch_size=tower.temporal_patch_size,
        spatial_merge_size=tower.spatial_merge_size,
        rope_theta=float((tower.rope_parameters or {}).get("rope_theta", 10_000.0)),
        in_channels=tower.in_channels,
        initializer_range=tower.initializer_range,
    )


def _ids(config: Any, name: str) -> tuple[int, ...]:
    """The token ids in a config's entry, which holds one, several or none."""
    value = getattr(config, name, None)
    return () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
