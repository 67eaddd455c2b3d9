"""The processors against transformers' own (bit for bit, id for id) and against hand calculation."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from fairgrpo_jax import models
from fairgrpo_jax.models import pixels, qwen2_5_vl
from fairgrpo_jax.models.inputs import pack
from fairgrpo_jax.models.pixels import CLIP_MEAN, CLIP_STD, HALF, smart_resize, smart_resize_film
from fairgrpo_jax.models.processing import (
    Gemma3Processor,
    Processor,
    Qwen2Processor,
    Qwen3Processor,
    TextProcessor,
    tiny_processor,
)
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer
from tests import tiny_folder


TALK = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]}]
FILM = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which digit is this?"}]}]
SIZES = [(56, 56), (100, 200), (30, 41), (300, 17), (421, 1300), (1200, 1301), (1, 1), (1, 190), (3, 600), (600, 3)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def colours(mode, height=70, width=90):
    """A picture of a mode, with every degree of transparency where it has one."""
    if mode == "P with transparency":
        picture = Image.fromarray(noise(height, width)).convert("P")
        picture.info["transparency"] = bytes(range(256))
        return picture
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), noise(height, width, bands).tobytes())


MODES = ["RGB", "L", "RGBA", "LA", "P", "PA", "P with transparency", "CMYK", "YCbCr", "HSV"]


def qwen_reference(**settings):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(**settings)


def gemma_reference(side):
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return Gemma3ImageProcessorPil(size={"height": side, "width": side})


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_images_of_qwen_equal_transformers_bit_for_bit(family):
    ours, reference = Processor(tiny_tokenizer()), qwen_reference()
    if family == "qwen3_vl":
        size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
        ours = Qwen3Processor(tiny_tokenizer())
        reference = qwen_reference(patch_size=16, image_mean=list(HALF), image_std=list(HALF), size=size)
    pictures = [Image.fromarray(noise(*size, 3)) for size in SIZES]
    pictures += [colours(mode) for mode in MODES]
    pictures += [noise(56, 112, 3), noise(57, 60, 4), noise(61, 59, 1)]
    for picture in pictures:
        expected = reference(picture, return_tensors="np")
        got = ours([TALK], [[picture]])
        np.testing.assert_array_equal(got["image_grid_thw"], expected["image_grid_thw"])
        assert got["pixel_values"].dtype == np.float32
        np.testing.assert_array_equal(got["pixel_values"], expected["pixel_values"])
        merged = int(expected["image_grid_thw"].prod()) // 4
        assert (got["input_ids"] == 5).sum() == merged == (got["mm_token_type_ids"] == 1).sum()


def test_squares_of_gemma_equal_transformers_bit_for_bit():
    ours = Gemma3Processor(tiny_tokenizer(), image_size=112)
    reference = gemma_reference(112)
    pictures = [Image.fromarray(noise(*size, 3)) for size in [*SIZES, (112, 112), (1, 500)]]
    for picture in [*pictures, *(colours(mode) for mode in MODES), noise(40, 112, 4)]:
        got = ours._square(picture)[None]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, reference(picture, return_tensors="np")["pixel_values"])


def test_the_pixel_budget_is_that_of_transformers():
    picture = Image.fromarray(noise(250, 333, 3))
    for least, most in [(28 * 28, 28 * 28 * 4), (400_000, 500_000), (83_250, 83_250)]:
        ours = Processor(tiny_tokenizer(), min_pixels=least, max_pixels=most)
        expected = qwen_reference(min_pixels=least, max_pixels=most)(picture, return_tensors="np")
        np.testing.assert_array_equal(ours([TALK], [[picture]])["pixel_values"], expected["pixel_values"])
    small = dataclasses.replace(tiny_processor(), max_pixels=16 * 16)
    assert small([TALK], [[noise(64, 64, 3)]])["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert small([FILM], videos=[[noise(2, 64, 64, 3)]])["video_grid_thw"].tolist() == [[1, 4, 4]]
    frames = dataclasses.replace(small, video_max_pixels=32 * 32)
    assert frames([FILM], videos=[[noise(2, 64, 64, 3)]])["video_grid_thw"].tolist() == [[1, 8, 8]]


@pytest.mark.parametrize(
    "talk, images, videos", [(TALK, [[noise(50, 70, 3)]], None), (FILM, None, [[noise(5, 50, 70, 3)]])]
)
def test_patches_in_bfloat16_are_those_in_float32_rounded(talk, images, videos):
    fine = tiny_processor()
    name = "pixel_values" if images else "pixel_values_videos"
    exact, got = (call([talk], images, videos)[name] for call in (fine, dataclasses.replace(fine, dtype="bfloat16")))
    assert got.dtype.name == "bfloat16" and exact.dtype == np.float32
    np.testing.assert_array_equal(got, exact.astype(got.dtype))


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
    assert (inputs["input_ids"] == 6).sum() == 12 == (inputs["mm_token_type_ids"] == 2).sum()
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
    ours = Qwen2Processor(tiny_tokenizer(), patch_size=4, min_pixels=64, max_pixels=64)
    assert "second_per_grid_ts" not in ours([FILM], videos=[[film]])


def qwen3():
    return Qwen3Processor(
        tiny_tokenizer(), patch_size=4, min_pixels=64, max_pixels=4096, video_min_pixels=64, video_max_pixels=1024
    )


def test_a_video_of_qwen3_tells_the_time_of_every_patch():
    inputs = qwen3()([FILM], videos=[[noise(5, 16, 16, 3)]], seconds_per_frame=0.5)
    t, h, w = inputs["video_grid_thw"][0]
    assert t == 3 and (inputs["mm_token_type_ids"] == 2).sum() == t * h * w // 4
    text = tiny_tokenizer().decode(inputs["input_ids"][0])
    pads = "<|vision_start|>" + "<|video_pad|>" * (h * w // 4) + "<|vision_end|>"
    told = "".join(f"<{second} seconds>{pads}" for second in ("0.2", "1.2", "2.0"))  # 0.25 and 1.25 round to even
    assert f"user\n<|vision_start|>{told}<|vision_end|>Which" in text
    uneven = qwen3()([FILM], videos=[[noise(5, 16, 16, 3)]], times=[[[0, 0.1, 3, 3.5, 9]]])
    assert "<3.2 seconds>" in tiny_tokenizer().decode(uneven["input_ids"][0])
    with pytest.raises(ValueError, match="every frame"):
        qwen3()([FILM], videos=[[noise(5, 16, 16, 3)]], times=[[[0, 0.1]]])


def test_the_prompt_of_a_qwen3_video_is_that_of_transformers():
    """``replace_video_token`` and the replacement of placeholders run without the video processor."""
    from transformers import Qwen3VLProcessor
    from transformers.video_utils import VideoMetadata

    class Frames:
        merge_size, temporal_patch_size = 2, 2

    theirs = without_videos(Qwen3VLProcessor)(qwen_reference(), tiny_tokenizer(), None)
    theirs.video_processor = Frames
    for frames, rate in ((2, 1.0), (5, 3.0), (8, 0.7)):
        inputs = qwen3()([FILM], videos=[[noise(frames, 16, 24, 3)]], seconds_per_frame=1 / rate)
        metadata = VideoMetadata(total_num_frames=frames, fps=rate, frames_indices=list(range(frames)))
        told = theirs.replace_video_token(
            {"video_grid_thw": inputs["video_grid_thw"], "video_metadata": [metadata]}, video_idx=0
        )
        text = tiny_tokenizer().apply_chat_template(FILM, tokenize=False, add_generation_prompt=True)
        text, _ = theirs.get_text_with_replacements([text], videos_replacements=[told])
        np.testing.assert_array_equal(inputs["input_ids"], tiny_tokenizer()(text)["input_ids"])


def without_videos(kind):
    """A processor class of transformers that takes None for the video processor, which needs torchvision."""
    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda self, name, value: type(value)})


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


def test_a_prompt_too_long_is_refused_by_row_and_never_cut_through_its_image():
    inputs = tiny_processor()([TALK, TALK], [[noise(8, 8, 3)], [noise(64, 64, 3)]])
    with pytest.raises(ValueError, match="prompt 1 has 79 tokens but length=40"):
        pack(inputs, qwen2_5_vl.tiny(), length=40)
    alone = tiny_processor()([TALK], [[noise(64, 64, 3)]])
    cut = alone | {name: alone[name][:, :40] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with pytest.raises(ValueError, match="prompt 0: .*truncated"):
        pack(cut, qwen2_5_vl.tiny())


def test_one_conversation_is_a_batch_of_one():
    film = noise(2, 8, 8, 3)
    alone = tiny_processor()(FILM, None, [film], seconds_per_frame=[0.5])
    batch = tiny_processor()([FILM], None, [[film]], seconds_per_frame=0.5)
    assert alone.keys() == batch.keys()
    for name, array in batch.items():
        np.testing.assert_array_equal(alone[name], array)


def test_a_finished_conversation_has_no_opening_for_the_assistant():
    talk = [*TALK, {"role": "assistant", "content": r"\boxed{7}"}]
    inputs = tiny_processor()([talk], [[noise(8, 8, 3)]], add_generation_prompt=False)
    assert tiny_tokenizer().decode(inputs["input_ids"][0]).endswith("<|im_start|>assistant\n\\boxed{7}<|im_end|>\n")


def test_images_and_videos_stand_in_the_order_of_their_places():
    part = {"image": {"type": "image"}, "video": {"type": "video"}}
    talk = [{"role": "user", "content": [part[kind] for kind in ("video", "image", "image", "video")]}]
    images, videos = [noise(8, 8, 3), noise(16, 24, 3)], [noise(4, 8, 8, 3), noise(2, 16, 16, 3)]
    inputs = tiny_processor()([talk, TALK], [images, [noise(8, 16, 3)]], [videos, []])
    kinds, lengths = [], []
    for kind in inputs["mm_token_type_ids"][0]:
        if kinds and kinds[-1] == kind:
            lengths[-1] += 1
        else:
            kinds, lengths = [*kinds, int(kind)], [*lengths, 1]
    assert [(k, n) for k, n in zip(kinds, lengths, strict=True) if k] == [(2, 2), (1, 1), (1, 6), (2, 4)]
    assert (inputs["mm_token_type_ids"][1] == 1).sum() == 2


@pytest.mark.parametrize(
    "images, message",
    [
        ([[]], "row 0 has 1 places for images, but 0"),
        ([[noise(8, 8, 3)] * 2], "row 0 has 1 places for images, but 2"),
        ([[np.zeros((8, 8, 3))]], "row 0, image 0: .*uint8"),
        ([[noise(8, 8, 2)]], "uint8"),
        ([[noise(0, 8, 3)]], "row 0, image 0: got an image of 0 x 8 pixels"),
        ([[Image.new("I;16", (8, 8))]], "window it first"),
        ([[noise(1, 201, 3)]], "200 to 1"),
        ([], "0 rows of images"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(images, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor()([TALK], images)


def test_more_that_does_not_fit():
    with pytest.raises(ValueError, match="row 1, video 0: got frames"):
        tiny_processor()([FILM, FILM], None, [[noise(2, 8, 8, 3)], [[noise(8, 8, 3), noise(8, 16, 3)]]])
    with pytest.raises(ValueError, match="at least one frame"):
        tiny_processor()([FILM], None, [[noise(0, 8, 8, 3)]])
    with pytest.raises(ValueError, match="takes no images"):
        TextProcessor(tiny_tokenizer())([[{"role": "user", "content": "?"}]], [[noise(8, 8, 3)]])
    with pytest.raises(ValueError, match="takes no videos"):
        Gemma3Processor(tiny_tokenizer())([[{"role": "user", "content": "?"}]], None, [[noise(2, 8, 8, 3)]])
    with pytest.raises(ValueError, match="min_pixels=3136, max_pixels=1000.*set both"):
        Processor(tiny_tokenizer(), max_pixels=1000)
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="row 0: .*roles must alternate"):
        dataclasses.replace(tiny_processor(), chat_template=strict)([TALK], [[noise(8, 8, 3)]])
    mute = tiny_tokenizer()
    mute.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        TextProcessor(mute)([[{"role": "user", "content": "?"}]])


def test_text_that_spells_an_image_token_is_refused():
    spoken = [{"role": "user", "content": "a <|image_pad|> in a report"}]
    with pytest.raises(ValueError, match="row 0 has 1 places for images, but 0"):
        tiny_processor()([spoken])


def test_sizes_by_hand():
    bounds = dict(factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    assert smart_resize(56, 56, **bounds) == (56, 56)
    assert smart_resize(70, 126, **bounds) == (56, 112)  # 2.5 and 4.5 round to even
    assert smart_resize(10, 10, **bounds) == (56, 56)
    tall, wide = smart_resize(4000, 6000, **bounds)
    assert tall % 28 == wide % 28 == 0 and 0.9 * bounds["max_pixels"] < tall * wide <= bounds["max_pixels"]


def test_sizes_equal_transformers():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference

    rng = np.random.default_rng(0)
    for height, width in [*rng.integers(1, 2000, (500, 2)).tolist(), (10, 1900), (1900, 10), (14, 42), (70, 98)]:
        if max(height, width) <= 200 * min(height, width):
            for bounds in ((28, 3136, 28 * 28 * 10), (28, 3136, 12_845_056), (32, 65_536, 16_777_216)):
                assert smart_resize(height, width, *bounds) == reference(height, width, *bounds)


def test_sizes_of_films_equal_transformers():
    """Made by ``smart_resize`` of transformers 5.23's video processor of Qwen3-VL, which needs torch."""
    bounds = dict(temporal=2, factor=32, min_pixels=40_000, max_pixels=150_000)
    made = {
        (4, 79, 322): (64, 320),
        (10, 236, 23): (320, 32),
        (2, 138, 177): (128, 192),
        (3, 288, 304): (192, 224),
        (5, 359, 226): (192, 128),
        (5, 155, 273): (128, 224),
        (3, 17, 25): (96, 160),
        (2, 9, 300): (32, 1056),
        (7, 64, 64): (96, 96),
    }
    assert {film: smart_resize_film(*film, **bounds) for film in made} == made
    assert smart_resize_film(1, 138, 177, **bounds) == (128, 192), "one frame is repeated: it counts as two"


def test_bytes_become_the_numbers_of_transformers():
    table = pixels.value_table(HALF, HALF)
    assert table.shape == (3, 256) and table[0, 0] == -1 and table[1, 255] == 1


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "text"])
def test_measured_from_shapes_as_processed(name, tmp_path):
    """Tokens, and units of the tower, of rows of several media of odd sizes, without looking at a pixel."""
    processor = {
        "qwen2_vl": Qwen2Processor(tiny_tokenizer()),
        "qwen2_5_vl": Processor(tiny_tokenizer(), max_pixels=300 * 300),
        "qwen3_vl": Qwen3Processor(tiny_tokenizer()),
        "text": TextProcessor(tiny_tokenizer()),
    }.get(name) or models.processor(tiny_folder.write(tmp_path, "gemma3"))
    both = {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Both?"}]}
    said = [{"role": "user", "content": "Which digit?"}]
    rows: list = [(said, [], [])]
    if name != "text":
        rows += [(TALK, [size], []) for size in ((100, 200), (30, 41), (421, 1300))]
    if name not in ("text", "gemma3"):
        rows += [(FILM, [], [(5, 60, 90)]), ([both], [(90, 64)], [(8, 120, 70)])]
    shown: dict = {"messages": [], "images": [], "videos": [], "times": [], "seconds_per_frame": []}
    blank: dict = {name: [] for name in ("images", "videos")}
    for messages, images, videos in rows:
        shown["messages"].append(messages)
        for kind, sizes in (("images", images), ("videos", videos)):
            shown[kind].append([noise(*size, 3) for size in sizes])
            blank[kind].append([np.broadcast_to(np.uint8(0), (*size, 3)) for size in sizes])
        shown["times"].append([np.arange(size[0]) * 0.7 for size in videos])
        shown["seconds_per_frame"].append([0.7] * len(videos))
    inputs, bare = processor(**shown), shown | blank
    measured = processor.measure(**bare)
    assert [one.tokens for one in measured] == inputs["attention_mask"].sum(1).tolist()
    merged = 4 if name != "gemma3" else 1
    grids = [np.prod(inputs[key], axis=1) // merged for key in ("image_grid_thw", "video_grid_thw") if key in inputs]
    total = sum(int(grid.sum()) for grid in grids) if name != "gemma3" else len(inputs["pixel_values"])
    assert sum(one.units for one in measured) == (0 if name == "text" else total) and measured[0].units == 0
    frames = [
        np.prod(grid[1:]) // merged for key in ("image_grid_thw", "video_grid_thw") for grid in inputs.get(key, ())
    ]
    largest = {"text": 0, "gemma3": 1}.get(name) or max(frames, default=0)
    assert max(one.frame for one in measured) == largest and measured[0].frame == 0


def test_what_is_refused_is_refused_when_measured():
    flat = np.broadcast_to(np.uint8(0), (1, 400, 3))
    for call in (Processor(tiny_tokenizer()), Processor(tiny_tokenizer()).measure):
        with pytest.raises(ValueError, match="row 0"):
            call([TALK], [[flat]])
        with pytest.raises(ValueError, match="row 0"):
            call([TALK], [[]])
