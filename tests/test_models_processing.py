"""The processor against transformers' image processor (bit for bit) and against hand calculation."""

import numpy as np
import pytest
from PIL import Image

from fairgrpo_jax.models import qwen2_5_vl
from fairgrpo_jax.models.inputs import pack
from fairgrpo_jax.models.processing import CLIP_MEAN, CLIP_STD, Processor, smart_resize, tiny_processor
from fairgrpo_jax.models.tokenizer import tiny_tokenizer


TALK = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]}]
FILM = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which digit is this?"}]}]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def reference():
    module = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    return pytest.importorskip(module).Qwen2VLImageProcessorPil


def test_images_equal_transformers_bit_for_bit(reference):
    ours = Processor(tiny_tokenizer())
    rgba = Image.fromarray(noise(40, 60, 4))
    palette = Image.fromarray(noise(64, 64)).convert("P")
    for picture in (
        *(noise(*shape, 3) for shape in [(56, 56), (100, 200), (30, 41), (300, 17), (421, 1300), (1200, 1301)]),
        *(Image.fromarray(noise(70, 90)), Image.fromarray(noise(70, 90, 3)), rgba, palette),
    ):
        expected = reference()(picture, return_tensors="np")
        got = ours([TALK], [[picture]])
        np.testing.assert_array_equal(got["image_grid_thw"], expected["image_grid_thw"])
        assert got["pixel_values"].dtype == np.float32
        np.testing.assert_array_equal(got["pixel_values"], expected["pixel_values"])
        merged = int(expected["image_grid_thw"].prod()) // 4
        assert (got["input_ids"] == 5).sum() == merged == (got["mm_token_type_ids"] == 1).sum()


def test_grey_arrays_equal_grey_images():
    grey = noise(32, 32)
    a, b, c = (
        tiny_processor()([TALK], [[one]])["pixel_values"] for one in (grey, grey[..., None], Image.fromarray(grey))
    )
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


def test_a_video_is_cut_in_pairs_of_frames_and_its_last_frame_repeated():
    film = noise(3, 16, 24, 3)
    inputs = tiny_processor()([FILM], videos=[[film]], seconds_per_frame=0.25)
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 6]] and inputs["second_per_grid_ts"].tolist() == [0.5]
    patches = inputs["pixel_values_videos"].reshape(
        2, 2, 3, 2, 2, 3, 2, 4, 4
    )  # t, block row, column, 2 x 2, c, tp, p, p
    normal = ((film / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(patches[0, 1, 2, 0, 1, :, 1], normal[1][:, 8:12, 20:24], atol=1e-5)
    np.testing.assert_array_equal(patches[1][..., 0, :, :], patches[1][..., 1, :, :])
    np.testing.assert_allclose(patches[1, 0, 0, 1, 0, :, 0], normal[2][:, 4:8, 0:4], atol=1e-5)


def test_seconds_belong_to_their_videos():
    film = noise(2, 8, 8, 3)
    inputs = tiny_processor()([FILM, FILM], videos=[[film], [film]], seconds_per_frame=[[0.1], [2.0]])
    np.testing.assert_allclose(inputs["second_per_grid_ts"], [0.2, 4.0])
    with pytest.raises(ValueError, match="one for every video"):
        tiny_processor()([FILM], videos=[[film]], seconds_per_frame=[[0.1, 0.2]])


def test_rows_are_padded_on_the_left_and_pack_moves_them():
    talks = [TALK, [{"role": "user", "content": "Which digit is this?"}]]
    inputs = tiny_processor()(talks, [[noise(32, 32, 3)], []])
    assert inputs["attention_mask"][1, 0] == 0 and inputs["attention_mask"][:, -1].all()
    config = qwen2_5_vl.tiny()
    prompt = pack(inputs, config)
    assert prompt.valid[:, 0].all() and (prompt.feature[0] >= 0).sum() == 16
    text = tiny_tokenizer().decode(prompt.tokens[0][prompt.valid[0]])
    assert text.startswith("<|im_start|>user\n<|vision_start|><|image_pad|>") and text.endswith(
        "<|im_start|>assistant\n"
    )
    assert text.count("<|image_pad|>") == 16


def test_a_finished_conversation_has_no_opening_for_the_assistant():
    talk = [*TALK, {"role": "assistant", "content": r"\boxed{7}"}]
    inputs = tiny_processor()([talk], [[noise(8, 8, 3)]], add_generation_prompt=False)
    assert tiny_tokenizer().decode(inputs["input_ids"][0]).endswith("<|im_start|>assistant\n\\boxed{7}<|im_end|>\n")


@pytest.mark.parametrize(
    "images, message",
    [
        ([[]], "row 0 has 1 places for images, but 0"),
        ([[noise(8, 8, 3)] * 2], "row 0 has 1 places for images, but 2"),
        ([[np.zeros((8, 8, 3))]], "uint8"),
        ([[noise(1, 201, 3)]], "200 to 1"),
        ([], "0 rows of images"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(images, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor()([TALK], images)


def test_sizes_by_hand():
    bounds = dict(factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    assert smart_resize(56, 56, **bounds) == (56, 56)
    assert smart_resize(70, 126, **bounds) == (56, 112)  # 2.5 and 4.5 round to even
    assert smart_resize(10, 10, **bounds) == (56, 56)
    tall, wide = smart_resize(4000, 6000, **bounds)
    assert tall % 28 == wide % 28 == 0 and 0.9 * bounds["max_pixels"] < tall * wide <= bounds["max_pixels"]
