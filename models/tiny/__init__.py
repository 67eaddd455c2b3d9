"""Sizes of the tiny models of all families, which have all mechanisms of the large ones, for the tiny tokenizer."""

from typing import Any


TEXT: dict[str, Any] = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    tie_word_embeddings=True,
    eos_ids=(2, 0),
    pad_id=0,
    initializer_range=0.08,
)
MEDIA: dict[str, Any] = dict(
    image_id=5, video_id=6, vision_start_id=3, vision_end_id=4, banned_ids=(3, 4, 5, 6), mrope_section=(2, 3, 3)
)
TOWER: dict[str, Any] = dict(
    depth=2,
    hidden_size=64,
    num_heads=4,
    intermediate_size=64,
    out_hidden_size=64,
    patch_size=4,
    temporal_patch_size=2,
    spatial_merge_size=2,
    initializer_range=0.08,
)
