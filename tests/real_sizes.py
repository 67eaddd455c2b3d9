"""What the published ``config.json`` of five checkpoints say, as far as it decides the model, and their sizes.

The values are those that copies of these files in public code agree on; keys that decide nothing are left out. The
parameter counts are the hub's, written down from memory: that the models here have them to the last one is the check.
"""

from typing import Any


QWEN_IDS: dict[str, Any] = dict(
    image_token_id=151655, video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653
)
QWEN_2: dict[str, Any] = QWEN_IDS | dict(
    vision_token_id=151654,
    bos_token_id=151643,
    eos_token_id=151645,
    hidden_act="silu",
    initializer_range=0.02,
    rms_norm_eps=1e-06,
    rope_theta=1000000.0,
    rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
    sliding_window=32768,
    use_sliding_window=False,
)
TOWER_2_5: dict[str, Any] = dict(
    depth=32,
    hidden_act="silu",
    hidden_size=1280,
    intermediate_size=3420,
    num_heads=16,
    in_chans=3,
    patch_size=14,
    spatial_merge_size=2,
    spatial_patch_size=14,
    window_size=112,
    fullatt_block_indexes=[7, 15, 23, 31],
    tokens_per_second=2,
    temporal_patch_size=2,
)

CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-2B-Instruct": QWEN_2
    | dict(
        model_type="qwen2_vl",
        hidden_size=1536,
        intermediate_size=8960,
        max_window_layers=28,
        num_attention_heads=12,
        num_hidden_layers=28,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        vision_config=dict(
            depth=32,
            embed_dim=1280,
            mlp_ratio=4,
            num_heads=16,
            in_chans=3,
            hidden_size=1536,
            patch_size=14,
            spatial_merge_size=2,
            spatial_patch_size=14,
            temporal_patch_size=2,
        ),
        vocab_size=151936,
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": QWEN_2
    | dict(
        model_type="qwen2_5_vl",
        hidden_size=2048,
        intermediate_size=11008,
        max_window_layers=70,
        num_attention_heads=16,
        num_hidden_layers=36,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        vision_config=TOWER_2_5 | dict(out_hidden_size=2048),
        vocab_size=151936,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN_2
    | dict(
        model_type="qwen2_5_vl",
        hidden_size=3584,
        intermediate_size=18944,
        max_window_layers=28,
        num_attention_heads=28,
        num_hidden_layers=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        vision_config=TOWER_2_5 | dict(out_hidden_size=3584),
        vocab_size=152064,
    ),
    "Qwen/Qwen3-VL-4B-Instruct": QWEN_IDS
    | dict(
        model_type="qwen3_vl",
        tie_word_embeddings=True,
        text_config=dict(
            attention_bias=False,
            bos_token_id=151643,
            eos_token_id=151645,
            head_dim=128,
            hidden_act="silu",
            hidden_size=2560,
            initializer_range=0.02,
            intermediate_size=9728,
            model_type="qwen3_vl_text",
            num_attention_heads=32,
            num_hidden_layers=36,
            num_key_value_heads=8,
            rms_norm_eps=1e-06,
            rope_scaling={"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            rope_theta=5000000,
            tie_word_embeddings=True,
            vocab_size=151936,
        ),
        vision_config=dict(
            deepstack_visual_indexes=[5, 11, 17],
            depth=24,
            hidden_act="gelu_pytorch_tanh",
            hidden_size=1024,
            in_channels=3,
            initializer_range=0.02,
            intermediate_size=4096,
            model_type="qwen3_vl",
            num_heads=16,
            num_position_embeddings=2304,
            out_hidden_size=2560,
            patch_size=16,
            spatial_merge_size=2,
            temporal_patch_size=2,
        ),
    ),
    "google/gemma-3-4b-it": dict(
        model_type="gemma3",
        boi_token_index=255999,
        eoi_token_index=256000,
        eos_token_id=[1, 106],
        image_token_index=262144,
        initializer_range=0.02,
        mm_tokens_per_image=256,
        text_config=dict(
            hidden_size=2560,
            intermediate_size=10240,
            model_type="gemma3_text",
            num_hidden_layers=34,
            rope_scaling={"factor": 8.0, "rope_type": "linear"},
            sliding_window=1024,
        ),
        vision_config=dict(
            hidden_size=1152,
            image_size=896,
            intermediate_size=4304,
            model_type="siglip_vision_model",
            num_attention_heads=16,
            num_hidden_layers=27,
            patch_size=14,
            vision_use_head=False,
        ),
    ),
}
PARAMETERS = {
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "google/gemma-3-4b-it": 4_300_079_472,
}
