"""Packing: positions, feature rows and segments by hand, and what is refused."""

import numpy as np
import pytest

from fairgrpo_jax.models import gemma3, qwen2_5_vl, qwen2_vl, qwen3_vl, text
from fairgrpo_jax.models.inputs import pack


CONFIG = qwen2_5_vl.tiny()  # patch 4, merge 2, windows of 2 x 2 merged tokens, 2 time steps a second
IMAGE, VIDEO = CONFIG.image_id, CONFIG.video_id


def vision_of(prompt):
    assert prompt.vision is not None
    return prompt.vision


def image(*grid):
    return {"image_grid_thw": np.array([grid]), "pixel_values": np.zeros((int(np.prod(grid)), 96), np.float32)}


def test_text_is_moved_to_the_left_and_counted():
    prompt = pack(
        {"input_ids": np.array([[0, 0, 7, 8], [9, 7, 8, 9]]), "attention_mask": [[0, 0, 1, 1], [1] * 4]}, CONFIG
    )
    np.testing.assert_array_equal(prompt.tokens, [[7, 8, 0, 0], [9, 7, 8, 9]])
    np.testing.assert_array_equal(prompt.valid, [[1, 1, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(prompt.order, [[0, 1, 1, 1], [0, 1, 2, 3]])
    np.testing.assert_array_equal(prompt.rope[..., 0], [[0, 1, 0, 0], [0, 1, 2, 3]])
    np.testing.assert_array_equal(prompt.following, [2, 4])
    assert (prompt.feature == -1).all() and prompt.vision is None


def test_an_image_of_two_by_three_merged_tokens():
    ids = [[7, *[IMAGE] * 6, 8]]
    prompt = pack({"input_ids": np.array(ids), **image(1, 4, 6)}, CONFIG)
    rope = [[0] * 3, [1, 1, 1], [1, 1, 2], [1, 1, 3], [1, 2, 1], [1, 2, 2], [1, 2, 3], [4] * 3]
    np.testing.assert_array_equal(prompt.rope[0], rope)
    # Merge blocks of 2 x 2 patches; windows of 2 x 2 merged tokens: the third block column stands alone, at the end.
    np.testing.assert_array_equal(prompt.feature[0], [-1, 0, 1, 4, 2, 3, 5, -1])
    np.testing.assert_array_equal(
        vision_of(prompt).position[0, :8], [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    )
    np.testing.assert_array_equal(vision_of(prompt).position[0, ::4, 1], [0, 2, 0, 2, 4, 4])
    np.testing.assert_array_equal(vision_of(prompt).window[0], np.repeat([0, 0, 0, 0, 1, 1], 4))
    np.testing.assert_array_equal(vision_of(prompt).frame[0], np.zeros(24))


def test_a_video_keeps_its_seconds_and_segments_count_on_from_medium_to_medium():
    ids = [[IMAGE, 7, VIDEO, VIDEO, VIDEO, 8]]
    videos = {"video_grid_thw": np.array([[3, 2, 2]]), "pixel_values_videos": np.ones((12, 96), np.float32)}
    inputs = {"input_ids": np.array(ids), **image(1, 2, 2), **videos, "second_per_grid_ts": [0.75]}
    prompt = pack(inputs, CONFIG, num_patches=20)
    # 1.5 time steps a frame, rounded down; the text goes on one above the start of the video (transformers 5).
    np.testing.assert_array_equal(prompt.rope[0], [[0] * 3, [1] * 3, [2, 2, 2], [3, 2, 2], [5, 2, 2], [3] * 3])
    np.testing.assert_array_equal(prompt.following, [4])
    np.testing.assert_array_equal(prompt.feature[0], [0, -1, 1, 2, 3, -1])
    segments = [*np.repeat([0, 1, 2, 3], 4), *[-1] * 4]
    np.testing.assert_array_equal(vision_of(prompt).frame[0], segments)
    np.testing.assert_array_equal(vision_of(prompt).window[0], segments)
    np.testing.assert_array_equal(vision_of(prompt).patches[0, :, 0], [*[0] * 4, *[1] * 12, *[0] * 4])


def test_without_a_rate_a_video_takes_one_step_a_frame():
    videos = {"video_grid_thw": np.array([[3, 2, 2]]), "pixel_values_videos": np.ones((12, 96), np.float32)}
    ids = {"input_ids": np.array([[7, VIDEO, VIDEO, VIDEO, 8]]), "second_per_grid_ts": [0.75]}
    prompt = pack(ids | videos, qwen2_vl.tiny())
    np.testing.assert_array_equal(prompt.rope[0], [[0] * 3, [1] * 3, [2, 1, 1], [3, 1, 1], [2] * 3])
    assert vision_of(prompt).window is None and vision_of(prompt).taps is None and prompt.block is None


def test_frames_between_time_stamps_are_media_of_their_own():
    videos = {
        "video_grid_thw": np.array([[2, 2, 4]]),
        "pixel_values_videos": np.arange(16)[:, None] * np.ones((16, 96)),
    }
    ids = np.array([[20, VIDEO, VIDEO, 21, VIDEO, VIDEO, 8]])
    prompt = pack({"input_ids": ids, **videos}, qwen3_vl.tiny())
    rope = [[0] * 3, [1, 1, 1], [1, 1, 2], [3] * 3, [4, 4, 4], [4, 4, 5], [6] * 3]
    np.testing.assert_array_equal(prompt.rope[0], rope)
    np.testing.assert_array_equal(prompt.feature[0], [-1, 0, 1, -1, 2, 3, -1])
    np.testing.assert_array_equal(vision_of(prompt).frame[0], np.repeat([0, 1], 8))
    np.testing.assert_array_equal(vision_of(prompt).patches[0, :, 0], np.arange(16))


def test_learned_positions_lie_between_the_corners_of_their_table():
    config = qwen3_vl.tiny()  # a table of 6 x 6
    vision = vision_of(pack({"input_ids": np.array([[IMAGE] * 2]), **image(1, 2, 4)}, config))
    # Merge-block order. Two rows lie on the first and the last of the table, four columns at 0, 5/3, 10/3 and 5.
    wanted = {
        (0, 0): {0: 1},
        (0, 1): {1: 1 / 3, 2: 2 / 3},
        (1, 0): {30: 1},
        (1, 3): {35: 1},
        (1, 2): {33: 2 / 3, 34: 1 / 3},
    }
    for place, shares in wanted.items():
        row = vision.position[0].tolist().index(list(place))
        dense = np.bincount(vision.taps[0, row], vision.weights[0, row], 36)
        np.testing.assert_allclose(dense, [shares.get(i, 0) for i in range(36)], atol=1e-6)


def test_images_of_one_size_are_cut_into_merged_blocks_and_numbered():
    config = gemma3.tiny()  # 32 pixels, patches of 4, 2 x 2 of them merged
    pixels = np.arange(2 * 3 * 32 * 32, dtype=np.float32).reshape(2, 3, 32, 32)
    ids = np.array([[7, 3, *[IMAGE] * 16, 4, 8, *[IMAGE] * 16]])
    prompt = pack({"input_ids": ids, "pixel_values": pixels, "token_type_ids": ids == IMAGE}, config)
    np.testing.assert_array_equal(prompt.rope[0], np.repeat(np.arange(36)[:, None], 3, axis=1))
    np.testing.assert_array_equal(prompt.block[0], [0, 0, *[1] * 16, 0, 0, *[2] * 16])
    np.testing.assert_array_equal(prompt.feature[0], [-1, -1, *range(16), -1, -1, *range(16, 32)])
    vision = vision_of(prompt)
    assert vision.patches.shape == (1, 128, 48)
    for patch in (0, 1, 2, 7, 63, 64, 127):
        row, column = vision.position[0, patch] * 4
        wanted = pixels[patch // 64, :, row : row + 4, column : column + 4]
        np.testing.assert_array_equal(vision.patches[0, patch], wanted.ravel())
    np.testing.assert_array_equal(vision.position[0, :5], [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]])
    np.testing.assert_array_equal(vision.frame[0], np.repeat([0, 1], 64))
    own = vision.position[0, :64, 0] * 8 + vision.position[0, :64, 1]  # every patch has a learned position of its own
    np.testing.assert_array_equal(vision.taps[0, :64][vision.weights[0, :64] == 1], own)
    assert (vision.weights.sum(-1) == 1).all()


def test_images_side_by_side_are_one_block():
    ids = np.array([[*[IMAGE] * 32, 8], [7, *[8] * 32]])
    prompt = pack({"input_ids": ids, "pixel_values": np.zeros((2, 3, 32, 32))}, gemma3.tiny())
    np.testing.assert_array_equal(prompt.block, [[*[1] * 32, 0], [0] * 33])


def test_images_go_to_the_rows_that_ask_for_them():
    ids = np.array([[7, 7], [7, IMAGE], [IMAGE, 7]])
    pixels = np.repeat(np.array([1.0, 2.0], np.float32), 4)[:, None] * np.ones(96, np.float32)
    prompt = pack({"input_ids": ids, "image_grid_thw": [[1, 2, 2]] * 2, "pixel_values": pixels}, CONFIG)
    np.testing.assert_array_equal(vision_of(prompt).patches[:, 0, 0], [0, 1, 2])
    np.testing.assert_array_equal(vision_of(prompt).frame, [[-1] * 4, [0] * 4, [0] * 4])


def test_static_sizes_hold_in_a_batch_of_text():
    prompt = pack({"input_ids": np.array([[7]])}, CONFIG, length=6, num_patches=8)
    assert prompt.tokens.shape == (1, 6) and vision_of(prompt).patches.shape == (1, 8, 96)
    assert prompt.tokens[0, 1] == CONFIG.pad_id


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        (
            {"input_ids": np.array([[7, 8], [7, 8]]), "attention_mask": [[1, 0], [1, 1]]},
            {"length": 1},
            "prompt 1 has 2 tok",
        ),
        ({"input_ids": np.array([[7], [7]]), "attention_mask": [[1], [0]]}, {}, "prompt 1 has no valid token"),
        ({"input_ids": np.array([7, 8])}, {}, r"must be \(P, T\)"),
        ({"input_ids": np.array([[7], [IMAGE]]), **image(1, 2, 2)}, {"num_patches": 0}, "prompt 1 has 4 patches"),
        ({"input_ids": np.array([[7, 8]])}, {"num_patches": 6}, "multiple of 4"),
        ({"input_ids": np.array([[7, IMAGE]])}, {}, "prompt 0 has a placeholder for image 0"),
        ({"input_ids": np.array([[7, 7]]), **image(1, 2, 2)}, {}, "1 images were given"),
        ({"input_ids": np.array([[IMAGE, 7]]), **image(1, 4, 2)}, {}, "truncated"),
        ({"input_ids": np.array([[7, IMAGE]]), **image(1, 4, 2)}, {}, "truncated"),
        (
            {"input_ids": np.array([[IMAGE]]), **image(1, 2, 2), "image_grid_thw": [[1, 4, 2]]},
            {},
            r"describe \(8, 96\)",
        ),
        ({"input_ids": np.array([[IMAGE]]), **image(1, 2, 2), "pixel_values": np.zeros((4, 9))}, {}, r"is \(4, 9\)"),
        ({"input_ids": np.array([[IMAGE]]), **image(1, 1, 4)}, {}, "multiple of 2"),
        ({"input_ids": np.array([[IMAGE]]), **image(1, 2, 2), "second_per_grid_ts": [1]}, {}, "1 values for 0 videos"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        pack(inputs, CONFIG, **options)


@pytest.mark.parametrize(
    "config, inputs, options, message",
    [
        (
            gemma3.tiny(),
            {"input_ids": [[IMAGE] * 15], "pixel_values": np.zeros((1, 3, 32, 32))},
            {},
            "prompt 0.*truncated",
        ),
        (
            gemma3.tiny(),
            {"input_ids": [[IMAGE] * 16], "pixel_values": np.zeros((1, 3, 32, 28))},
            {},
            r"\(images, 3, 32, 32\)",
        ),
        (gemma3.tiny(), {"input_ids": [[IMAGE] * 16], "pixel_values": np.zeros((64, 48))}, {}, "images, 3"),
        (gemma3.tiny(), {"input_ids": [[7]], "pixel_values_videos": np.zeros((4, 96))}, {}, "reads no videos"),
        (gemma3.tiny(), {"input_ids": [[7]]}, {"num_patches": 32}, "multiple of 64, the patches of one image"),
        (text.tiny(), {"input_ids": [[7]], "pixel_values": np.zeros((4, 96))}, {}, "reads no images"),
    ],
)
def test_every_family_refuses_what_it_cannot_read(config, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        pack(inputs, config, **options)
