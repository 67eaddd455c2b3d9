"""Processors and end tokens from checkpoint folders, against what transformers makes of the same folders."""

import dataclasses
import json
import shutil
import typing

import numpy as np
import pytest
from PIL import Image

from fairgrpo_jax import models
from fairgrpo_jax.models import processing
from fairgrpo_jax.models.checkpoints import processor as folders
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer
from tests import tiny_folder
from tests.test_models_processing import FILM, TALK, noise, without_videos


PAIR = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\n and "}, {"type": "image"}]},
    {"role": "assistant", "content": "No COVID"},
    {"role": "user", "content": [{"type": "text", "text": " Which digit is this?\n\n"}, {"type": "image"}]},
]
SHOWN = [
    {"role": "system", "content": [{"type": "text", "text": "Patients have COVID or no COVID. "}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "7"}]},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "image"}, {"type": "text", "text": "?"}]},
]
WORDS = [{"role": "user", "content": "Does the patient have COVID?"}]
CLASSES = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: tiny_folder.write(root / family, family) for family in tiny_folder.FAMILIES}


@pytest.fixture
def checkpoint(checkpoints, tmp_path):
    """Copies of the folders, to be broken."""
    return lambda family: shutil.copytree(checkpoints[family], tmp_path / family)


def theirs(folder, family):
    """transformers' processor of the folder; Qwen's without videos, which would need torchvision."""
    import transformers

    if family == "gemma3":
        return transformers.AutoProcessor.from_pretrained(folder)
    images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    return without_videos(getattr(transformers, CLASSES[family]))(images, tokenizer, None, chat_template=template)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", tiny_folder.FAMILIES)
def test_a_batch_equals_that_of_transformers(checkpoints, family, side):
    reference = theirs(checkpoints[family], family)
    ours = models.processor(checkpoints[family])
    ours.tokenizer.padding_side = reference.tokenizer.padding_side = side
    talks = [TALK, PAIR, SHOWN, WORDS]
    sizes = [[(60, 90)], [(31, 200), (64, 64), (31, 200)], [(90, 120), (28, 56)], []]
    images = [[Image.fromarray(noise(*size, 3)) for size in row] for row in sizes]
    flat = [[image for row in images for image in row], images][family == "gemma3"]
    template = reference.chat_template or reference.tokenizer.chat_template
    texts = reference.apply_chat_template(talks, chat_template=template, add_generation_prompt=True)
    begins = dict(add_special_tokens=False) if family == "gemma3" else {}
    expected = reference(text=texts, images=flat, padding=True, return_tensors="np", **begins)
    got = ours(talks, images)
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
        assert got[name].dtype == expected[name].dtype, name


def test_a_model_of_text_alone_gets_texts():
    """Its template knows no parts: it writes what it is given, or cannot."""
    template = "{% for message in messages %}{{ '[' + message.content + ']' }}{% endfor %}"
    ours = processing.TextProcessor(tiny_tokenizer(), chat_template=template)
    expected = tiny_tokenizer().encode("[COVID or no COVID.][Which digit?]", add_special_tokens=False)
    talk = [{"role": "system", "content": "COVID or no COVID."}, {"role": "user", "content": []}]
    talk[1]["content"] = [{"type": "text", "text": text} for text in ("Which ", "digit?")]
    np.testing.assert_array_equal(ours(talk)["input_ids"][0], expected)
    with pytest.raises(ValueError, match="row 0: the checkpoint's chat template refuses"):
        ours(TALK)


def test_gemma_begins_once_and_counts_every_feature(checkpoints):
    ours = models.processor(checkpoints["gemma3"])
    inputs = ours([PAIR, WORDS], [[noise(20, 30, 3)] * 3, []])
    begin, feature = ours.tokenizer.convert_tokens_to_ids(["<bos>", "<image_soft_token>"])
    assert ((inputs["input_ids"] == begin).sum(1) == 1).all()
    assert inputs["token_type_ids"].sum(1).tolist() == [768, 0]
    np.testing.assert_array_equal(inputs["token_type_ids"] == 1, inputs["input_ids"] == feature)
    plain = dataclasses.replace(ours, chat_template="{{ messages[0].content }}")
    assert plain([WORDS])["input_ids"][0, 0] == begin, "a template without a beginning gets one"
    with pytest.raises(ValueError, match="row 0 has <image_soft_token> in its text"):
        ours([[{"role": "user", "content": "a <image_soft_token>"}]])


def test_videos_have_bounds_of_their_own(checkpoints, checkpoint):
    qwen3 = models.processor(checkpoints["qwen3_vl"], max_pixels=200_000)
    assert isinstance(qwen3, processing.Qwen3Processor)
    assert (qwen3.min_pixels, qwen3.max_pixels) == (65_536, 200_000)
    assert (qwen3.video_min_pixels, qwen3.video_max_pixels) == (4096, 25_165_824)
    film = noise(4, 480, 640, 3)
    assert qwen3([FILM], None, [[film]])["video_grid_thw"].tolist() == [[2, 30, 40]]
    small = models.processor(checkpoints["qwen3_vl"], video_max_pixels=4 * 100 * 100)
    assert small([FILM], None, [[film]])["video_grid_thw"].tolist() == [[2, 4, 6]]
    qwen2 = typing.cast(processing.Processor, models.processor(checkpoints["qwen2_vl"], max_pixels=50_000))
    assert qwen2.max_pixels == qwen2.video_max_pixels == 50_000 and qwen2.video_min_pixels == 3136
    folder = checkpoint("qwen2_5_vl")
    own = tiny_folder.PREPROCESSOR["qwen2_5_vl"] | {"min_pixels": 784, "max_pixels": 7840}
    tiny_folder.dump(folder / "video_preprocessor_config.json", own)
    mixed = typing.cast(processing.Processor, models.processor(folder))
    assert (mixed.max_pixels, mixed.video_min_pixels, mixed.video_max_pixels) == (12_845_056, 784, 7840)


@pytest.mark.parametrize("family", CLASSES)
def test_seconds_are_told_as_the_family_reads_them(checkpoints, family):
    ours = models.processor(checkpoints[family])
    inputs = ours([FILM], None, [[noise(4, 64, 64, 3)]], seconds_per_frame=0.25)
    assert ("second_per_grid_ts" in inputs) == (family == "qwen2_5_vl")
    text = ours.tokenizer.decode(inputs["input_ids"][0])
    assert text.count("seconds>") == (2 if family == "qwen3_vl" else 0)


def test_the_combined_file_of_transformers_5_goes_first(checkpoint):
    folder = checkpoint("qwen3_vl")
    settings = tiny_folder.PREPROCESSOR["qwen3_vl"] | {"patch_size": 8}
    videos = settings | {"size": {"shortest_edge": 256, "longest_edge": 4096}}
    tiny_folder.dump(folder / "processor_config.json", {"image_processor": settings, "video_processor": videos})
    (folder / "video_preprocessor_config.json").unlink()
    ours = typing.cast(processing.Processor, models.processor(folder))
    assert (ours.patch_size, ours.max_pixels, ours.video_max_pixels) == (8, 16_777_216, 4096)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_folders_that_transformers_wrote_say_the_same(checkpoint, family):
    from transformers import AutoImageProcessor

    folder = checkpoint(family)
    before = models.processor(folder)
    AutoImageProcessor.from_pretrained(folder, backend="pil").save_pretrained(folder)
    assert "rescale_factor" in (folder / "preprocessor_config.json").read_text()
    after = models.processor(folder)
    fields = [field.name for field in dataclasses.fields(before) if field.name != "tokenizer"]
    assert [getattr(before, name) for name in fields] == [getattr(after, name) for name in fields]


def test_templates_of_all_three_places(checkpoint):
    folder = checkpoint("qwen2_vl")
    (folder / "chat_template.json").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        models.processor(folder)([WORDS])
    (folder / "chat_template.jinja").write_text("jinja {{ messages[0].content }}")
    decode = lambda: tiny_tokenizer().decode(models.processor(folder)([WORDS])["input_ids"][0])
    assert decode().startswith("jinja")
    tiny_folder.dump(folder / "chat_template.json", {"chat_template": "json {{ messages[0].content }}"})
    assert decode().startswith("json")


def test_a_text_decoder_needs_no_image_settings(checkpoint):
    folder = checkpoint("qwen2_vl")
    tiny_folder.dump(folder / "config.json", {"model_type": "qwen3", "eos_token_id": 2})
    (folder / "preprocessor_config.json").unlink()
    assert list(models.processor(folder)([WORDS])) == ["input_ids", "attention_mask"]


def test_end_tokens_are_the_union_and_vision_tokens_are_banned(checkpoints, checkpoint):
    @dataclasses.dataclass(frozen=True)
    class Config:
        vocab_size: int = 512
        eos_ids: tuple = (2,)
        banned_ids: tuple = (3,)
        num_tokens: int | None = None

    qwen, gemma = checkpoints["qwen3_vl"], checkpoints["gemma3"]
    tokenizer = models.processor(qwen).tokenizer
    assert folders.eos_ids(qwen) == folders.eos_ids(qwen, tokenizer) == (2, 0)
    nested = checkpoint("qwen3_vl")
    tiny_folder.change(nested / "config.json", text_config={"eos_token_id": [2, 30]})
    assert folders.eos_ids(nested, tokenizer) == (2, 0, 30)
    pad = tokenizer.convert_tokens_to_ids("<|vision_pad|>")
    assert folders.vision_ids(tokenizer) == (3, 4, 5, 6, pad)
    done = folders.with_token_ids(Config(vocab_size=pad), qwen, tokenizer)
    assert done.eos_ids == (2, 0) and done.banned_ids == (3, 4, 5, 6), "an id beyond the head needs no ban"
    assert done.num_tokens is None
    assert folders.with_token_ids(Config(vocab_size=len(tokenizer)), qwen, tokenizer).num_tokens is None
    assert folders.with_token_ids(Config(vocab_size=len(tokenizer) + 9), qwen, tokenizer).num_tokens == len(tokenizer)
    tokenizer = models.processor(gemma).tokenizer
    assert folders.eos_ids(gemma, tokenizer) == (1, 6) and folders.vision_ids(tokenizer) == (7, 8, 9)
    with pytest.raises(ValueError, match="below vocab_size=2"):
        folders.with_token_ids(Config(vocab_size=2), gemma, tokenizer)


def change(name, **changes):
    return lambda folder: tiny_folder.change(folder / name, **changes)


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    "family,spoil,message",
    [
        ("qwen2_vl", remove("config.json"), "config.json does not exist"),
        ("qwen2_vl", remove("preprocessor_config.json"), "preprocessor_config.json does not exist"),
        ("qwen2_vl", remove("tokenizer.json"), "no tokenizer.json"),
        ("qwen2_vl", lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be read"),
        ("qwen2_vl", lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        ("qwen2_vl", lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
        ("qwen2_vl", change("config.json", model_type="llava"), "got model_type 'llava'; wanted one of"),
        ("qwen2_vl", change("preprocessor_config.json", do_normalize=False), "got image settings {'do_normalize'"),
        ("qwen2_vl", change("preprocessor_config.json", resample=2), "got image settings {'resample': 2}"),
        ("qwen3_vl", change("video_preprocessor_config.json", patch_size=14), "got video settings {'patch_size': 14}"),
        ("qwen3_vl", change("preprocessor_config.json", size={"height": 3}), "wanted shortest_edge"),
        ("gemma3", change("preprocessor_config.json", do_pan_and_scan=True), "do_pan_and_scan"),
        ("gemma3", change("preprocessor_config.json", size={"height": 448, "width": 448}), "'height': 448"),
        ("gemma3", change("processor_config.json", image_seq_length=64), "image_seq_length': 64"),
    ],
)
def test_bad_folders_are_refused_with_their_file(checkpoint, family, spoil, message):
    folder = checkpoint(family)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        models.processor(folder)
    assert str(folder) in str(refusal.value) or "size=" in str(refusal.value)


def test_budgets_that_cannot_be_are_refused(checkpoints):
    with pytest.raises(ValueError, match="leave the pixel budget out"):
        models.processor(checkpoints["gemma3"], max_pixels=1000)
    with pytest.raises(ValueError, match="min_pixels=3136, max_pixels=1000"):
        models.processor(checkpoints["qwen2_vl"], max_pixels=1000)


@pytest.mark.parametrize("family, end", [("gemma3", "<end_of_turn>"), ("qwen2_5_vl", "<|im_end|>")])
def test_a_turn_ends_as_the_template_ends_it(checkpoints, family, end):
    """The first token behind an answer in what transformers renders, whichever end token is named first."""
    processor = models.processor(checkpoints[family])
    tokenizer = processor.tokenizer
    token = tokenizer.convert_tokens_to_ids(end)
    talk = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No"}]
    text = tokenizer.apply_chat_template(talk, tokenize=False, chat_template=processor.chat_template)
    assert text.rstrip().endswith("No" + end)
    other = next(known for known in range(len(tokenizer)) if known != token)
    assert processor.turn_end((other, token)) == token == processor.turn_end((token, other))
    assert processor.turn_end((other,)) == other  # a template that writes no end token of the config
