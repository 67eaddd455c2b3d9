"""Checkpoint folders without weights, laid out as their publishers do: tokenizer, template, processor and configs."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from fairgrpo_jax.models.tiny import tokenizer as tiny


CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

# preprocessor_config.json of the published checkpoints, all their keys and values.
PREPROCESSOR = {
    "qwen2_vl": {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **CLIP,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    },
    "qwen3_vl": {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **HALF,
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    },
    "gemma3": {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        **HALF,
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 256,
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 896, "width": 896},
    },
}
PREPROCESSOR["qwen2_5_vl"] = {**PREPROCESSOR["qwen2_vl"], "processor_class": "Qwen2_5_VLProcessor"}
QWEN3_VIDEOS = {
    **PREPROCESSOR["qwen3_vl"],
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "video_processor_type": "Qwen3VLVideoProcessor",
}
CONFIG = {
    "qwen2_vl": {"eos_token_id": 2},
    "qwen2_5_vl": {"eos_token_id": 2},
    "qwen3_vl": {"text_config": {"eos_token_id": 2}},
    "gemma3": {"eos_token_id": 1, "mm_tokens_per_image": 256, "vision_config": {"image_size": 896}},
}
FAMILIES = tuple(CONFIG)

GEMMA_TOKENS = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
)
GEMMA_TEMPLATE = """\
{{ bos_token }}
{%- set system = messages[0] if messages[0].role == 'system' else none -%}
{%- for message in (messages[1:] if system else messages) -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    <start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}{{ '\\n' }}
    {%- if system and loop.first -%}
        {{ (system.content if system.content is string else system.content[0].text) + '\\n\\n' }}
    {%- endif -%}
    {%- for part in ([{'type': 'text', 'text': message.content}] if message.content is string else message.content) -%}
        {{ '<start_of_image>' if part.type == 'image' else part.text | trim }}
    {%- endfor -%}
    <end_of_turn>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}<start_of_turn>model{{ '\\n' }}{%- endif -%}
"""


def write(folder, family):
    """A folder of ``family``; its images have the sizes of the published checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    dump(folder / "config.json", {"model_type": family, **CONFIG[family]})
    dump(folder / "preprocessor_config.json", PREPROCESSOR[family])
    if family == "gemma3":
        dump(folder / "processor_config.json", {"image_seq_length": 256, "processor_class": "Gemma3Processor"})
        dump(folder / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [1, 6], "pad_token_id": 0})
        _gemma_tokenizer(folder)
        return folder
    if family == "qwen3_vl":
        dump(folder / "video_preprocessor_config.json", QWEN3_VIDEOS)
    dump(folder / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0})
    _qwen_tokenizer(folder)
    return folder


def shrink(folder, family):
    """The same folder for the tiny models: patches of 4 pixels, images of up to 32 x 32 or of just that size."""
    small = {"patch_size": 4, "min_pixels": 64, "max_pixels": 1024}
    if family == "gemma3":
        small = {"size": {"height": 32, "width": 32}, "image_seq_length": 16}
        change(folder / "processor_config.json", image_seq_length=16)
        change(folder / "config.json", mm_tokens_per_image=16, vision_config={"image_size": 32})
    change(folder / "preprocessor_config.json", **small)
    if family == "qwen3_vl":
        change(
            folder / "video_preprocessor_config.json", patch_size=4, size={"shortest_edge": 64, "longest_edge": 4096}
        )
    return folder


def change(path, **changes):
    dump(path, json.loads(path.read_text()) | changes)


def dump(path, content):
    path.write_text(json.dumps(content))


def _qwen_tokenizer(folder):
    """The tiny tokenizer, its template in chat_template.json as Qwen publishes it, and one more vision token."""
    tokens = Tokenizer.from_file(str(tiny.FOLDER / "tokenizer.json"))
    tokens.add_special_tokens([AddedToken("<|vision_pad|>", special=True, normalized=False)])
    tokens.save(str(folder / "tokenizer.json"))
    settings = json.loads((tiny.FOLDER / "tokenizer_config.json").read_text())
    dump(folder / "tokenizer_config.json", settings | {"tokenizer_class": "Qwen2Tokenizer"})
    template = (tiny.FOLDER / "chat_template.jinja").read_text()
    dump(folder / "chat_template.json", {"chat_template": template})


def _gemma_tokenizer(folder):
    """BPE over printable characters with Gemma's special tokens; newlines merge with neighbours as in Gemma."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: index for index, token in enumerate([*GEMMA_TOKENS, "\n", "\n\n", "\n\n\n", "▁", *letters])}
    tokens = Tokenizer(models.BPE(vocabulary, [("\n", "\n"), ("\n\n", "\n")], unk_token="<unk>", fuse_unk=True))
    tokens.normalizer = normalizers.Replace(" ", "▁")
    tokens.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokens.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokens.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokens.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in GEMMA_TOKENS])
    tokens.save(str(folder / "tokenizer.json"))
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": GEMMA_TEMPLATE,
        "extra_special_tokens": named,
        **named,
    }
    dump(folder / "tokenizer_config.json", settings)
