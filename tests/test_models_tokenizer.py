"""The tiny tokenizer: rebuilt byte for byte, lossless, and short where completions are long."""

import itertools

from fairgrpo_jax.models import qwen2_5_vl
from fairgrpo_jax.models.tiny import build_tokenizer
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer


def test_the_committed_files_are_what_the_script_writes(tmp_path):
    build_tokenizer.write(tmp_path)
    files = sorted(path.name for path in build_tokenizer.FOLDER.iterdir())
    assert files == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (tmp_path / name).read_bytes() == (build_tokenizer.FOLDER / name).read_bytes(), name


def test_its_ids_are_those_of_the_tiny_config():
    tokenizer, config = tiny_tokenizer(), qwen2_5_vl.tiny()
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>")
    ids = (config.image_id, config.video_id, config.vision_start_id, config.vision_end_id, config.pad_id)
    assert tuple(tokenizer.convert_tokens_to_ids(list(names))) == ids
    assert tokenizer.eos_token_id == config.eos_ids[0] and tokenizer.pad_token_id == config.pad_id
    assert len(tokenizer) == config.vocab_size and set(config.banned_ids) == set(ids[:4])


def test_every_completion_is_seven_tokens_and_comes_back():
    tokenizer = tiny_tokenizer()
    for finding, answer in itertools.product(build_tokenizer.FINDINGS, build_tokenizer.ANSWERS):
        text = f"<think>{finding}</think>\\boxed{{{answer}}}<|im_end|>"
        ids = tokenizer.encode(text)
        assert len(ids) == 7, tokenizer.convert_ids_to_tokens(ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<|im_end|>")


def test_any_text_comes_back():
    for text in (
        *build_tokenizer.QUESTIONS,
        build_tokenizer.INSTRUCTION,
        "Grüße, 東京! {a\\b} \\boxed{x y}\n\n\t 12.5 mm",
    ):
        assert tiny_tokenizer().decode(tiny_tokenizer().encode(text)) == text


def test_the_chat_format_is_that_of_qwen():
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Ho"},
    ]
    text = tiny_tokenizer().apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    image, video = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    turns = f"<|im_start|>user\n{image}{video}Hi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    assert text == turns + "<|im_start|>assistant\n"
