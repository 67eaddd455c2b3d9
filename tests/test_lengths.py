"""Sizes of prompts before a run: the ladder against every other, groups, and records that do not fit."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from fairgrpo_jax import batches, config as options, grouping, lengths, policy
from fairgrpo_jax.batches import Size
from fairgrpo_jax.data.record import Media, Record, RecordList, Turn, spoken
from fairgrpo_jax.models import qwen2_5_vl
from fairgrpo_jax.plan import cost
from tests.test_data_media import write_video


MODEL = qwen2_5_vl.tiny()


def work(size):
    sizes = cost.Sizes(prompts=1, rollouts=1, prompt=size.tokens, completion=1, patches=size.patches)
    return cost.rollout_flops(MODEL, sizes)[0].total


def padded(sizes, ladder):
    """FLOPs of prompts at the first size of the ladder that holds them."""
    return sum(work(next(rung for rung in ladder if np.all(np.array(size) <= rung))) for size in sizes)


@settings(deadline=None)
@given(
    found=st.lists(st.tuples(st.integers(1, 900), st.integers(0, 40).map(lambda n: 16 * n)), min_size=1, max_size=8),
    count=st.integers(1, 3),
)
def test_no_other_ladder_of_as_many_sizes_costs_less(found, count):
    """All nested ladders made of sizes of the prompts, in the order of their work, are tried."""
    sizes, limit = [Size(*one) for one in found], Size(1000, 640)
    got = lengths.ladder(sizes, count, architecture=MODEL, limit=limit)
    assert len(got) <= count and all(np.all(np.array(a) <= b) for a, b in itertools.pairwise(got))
    assert np.all(np.max(sizes, axis=0) <= got[-1]) and np.all(np.array(got[-1]) <= limit)
    up = lambda size: Size(min(-(-size.tokens // 64) * 64, 1000), min(-(-size.patches // 64) * 64, 640))
    rounded = sorted({up(size) for size in sizes}, key=work)
    holds = [Size(*np.max(rounded[: end + 1], axis=0).tolist()) for end in range(len(rounded))]
    others = [
        [*chosen, holds[-1]]
        for number in range(count)
        for chosen in itertools.combinations(holds[:-1], min(number, len(holds) - 1))
    ]
    # The ladder's own order puts a prompt on the first rung that comes after it, which may be larger than it needs.
    assert padded(sizes, got) <= min(cost_in_order(rounded, sizes, up, other) for other in others) * (1 + 1e-9)


def cost_in_order(rounded, sizes, up, ladder):
    """FLOPs if every prompt goes to the first rung at or after its own place in the order of work."""
    total = 0.0
    for size in sizes:
        place = rounded.index(up(size))
        holds = [Size(*np.max(rounded[: end + 1], axis=0).tolist()) for end in range(len(rounded))]
        reach = {rung: end for end, rung in enumerate(holds)}  # a size that holds no more than the next one reaches on
        total += work(next(rung for rung in ladder if reach[rung] >= place))
    return total


def test_one_size_is_the_largest_prompt_and_not_the_limit():
    sizes = [Size(100, 64), Size(70, 256)]
    assert lengths.ladder(sizes, 1, architecture=MODEL, limit=Size(4096, 4096)) == (Size(128, 256),)
    assert lengths.ladder(sizes, 1, architecture=MODEL, limit=Size(100, 256)) == (Size(100, 256),)


def test_groups_hold_their_prompts_and_are_of_one_number():
    rng, ladder = np.random.default_rng(0), (Size(64, 0), Size(128, 64), Size(256, 512))
    sizes = np.stack([rng.integers(1, 257, 24), rng.integers(0, 513, 24)], axis=1)
    found = lengths.groups(ladder, sizes, 6)
    assert sorted(np.concatenate([rows for rows, _ in found])) == [*range(24)]
    assert {len(rows) for rows, _ in found} == {4}
    assert all((sizes[rows] <= np.array(size)).all() for rows, size in found)
    assert [size for _, size in found] == sorted(size for _, size in found)


# ---- records that do not fit -----------------------------------------------------------------------------------------


def record(uid, *media, question="What is it?", split="train"):
    return Record(uid, "d", "none", media, question, "A", ("A", "B"), uid, None, None, {}, split)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 32 x 32 (64 patches), 128 x 128 (1,024 patches) and 1 x 400, a video of 20 frames, and no image."""
    path = tmp_path_factory.mktemp("media")
    for name, size in (("small", (32, 32)), ("large", (128, 128)), ("flat", (400, 1))):
        Image.new("RGB", size).save(path / f"{name}.png")
    write_video(path / "film.mp4")
    (path / "noise.png").write_bytes(b"nothing of the kind" * 9)
    return path


CONFIG = options.Config(
    data=options.Data(prompt_length=100, num_patches=256, max_pixels=128 * 128), warmup=options.Warmup(steps=0)
)


def encoder(config, records):
    architecture, processor = policy.describe(config.model, config.data)
    vocabulary = grouping.vocabulary(batches.groups_of(one, config.data) for one in records)
    return batches.Encoder(config.data, architecture, processor, ("d",), vocabulary)


def fit(config, *records, test=None):
    encode = encoder(config, records)
    test = records[:1] if test is None else test
    return lengths.fit({"train": RecordList(records), "test": RecordList(tuple(test))}, encode, config)


def but(**data):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **data))


def image(folder, name):
    return Media("image", path=folder / f"{name}.png")


def test_what_is_too_long_is_refused_by_name_with_what_would_help(folder):
    good, large = record("d/0", image(folder, "small")), record("d/1", image(folder, "large"))
    wordy = record("d/2", question="why " * 200)
    fitted = fit(CONFIG, good)
    assert fitted.sizes["train"] == [Size(32, 64)] == [*fitted.held_out.values()] and not fitted.unfit
    assert fitted.frame == 64 and fit(but(over_length="skip"), good, large).frame == 64  # of what is kept
    with pytest.raises(ValueError) as caught:
        fit(CONFIG, good, large, wordy)
    said = str(caught.value)
    assert said.startswith("got 2 records that do not fit: d/1: 272 tokens (data.prompt_length=100) and 1,024 patches")
    assert "d/2: " in said and "--data.num-patches 1024" in said and "--data.over-length skip or truncate_media" in said
    longest = int(said.split("--data.prompt-length ")[1].split(" ")[0])
    grown = fit(but(prompt_length=longest, num_patches=1024), good, large, wordy)
    assert [one.tokens for one in grown.sizes["train"]][1:] == [272, longest]
    with pytest.raises(ValueError, match="prompt_length"):
        fit(but(prompt_length=longest - 1, num_patches=1024), good, large, wordy)


def test_what_is_left_out_is_counted_and_written(folder, tmp_path):
    good, large = record("d/0", image(folder, "small")), record("d/1", image(folder, "large"))
    fitted = fit(but(over_length="skip"), good, large)
    assert [one.uid for one in fitted.sources["train"].records] == ["d/0"]
    lengths.write(tmp_path / "unfit.jsonl", fitted.unfit)
    (line,) = map(json.loads, (tmp_path / "unfit.jsonl").read_text().splitlines())
    assert (line["uid"], line["split"], line["outcome"]) == ("d/1", "train", "left out") and "1,024" in line["why"]
    lengths.write(tmp_path / "unfit.jsonl", [])
    assert not (tmp_path / "unfit.jsonl").exists()
    with pytest.raises(ValueError, match=r"no record that fits for 'train' \(d/1: 272 tokens"):
        fit(but(over_length="skip"), large, test=[good])


def test_media_are_taken_away_until_a_record_fits(folder):
    """Frames halved from 20 to 10 and 4, of 64 x 48 pixels; then one image of two."""
    film = record("d/film", Media("video", path=folder / "film.mp4"))
    pair = record("d/pair", *[image(folder, "small")] * 5)
    shorter = but(over_length="truncate_media")
    fitted = fit(shorter, film, pair)
    first, second = fitted.sources["train"].records
    assert [medium.num_frames for medium in first.media] == [2] and len(second.media) == 4
    assert [one.outcome for one in fitted.unfit] == ["shortened to 2 frames", "shortened to 4 of 5 media"]
    assert all(not lengths.over(size, shorter.data) for size in fitted.sizes["train"])
    assert fitted.frame == 12 * 16 == fitted.sizes["train"][0].patches  # of a film, one of its pairs of frames
    assert fitted.sources["test"].records == (first,)  # the same object: measured and told once
    large = fit(shorter, pair, record("d/large", image(folder, "large"))).unfit[1]
    assert (large.uid, large.outcome) == ("d/large", "left out")  # its only image cannot go


def test_places_leave_with_their_media_and_no_turn_loses_its_last(folder):
    def talk(uid, *turns):
        media = [image(folder, "small")] * sum(turn.content.count(None) for turn in turns)
        return dataclasses.replace(record(uid, *media, question=spoken(turns)), turns=turns)

    inside = talk("d/inside", Turn("user", ("A:", None, " B:", None, None, " C:", None, None)))
    shots = Turn("user", ("Old:", None)), Turn("assistant", ("A",)), Turn("user", (None,) * 4 + ("New?",))
    fitted = fit(but(over_length="truncate_media", prompt_length=120), inside, talk("d/shots", *shots))
    first, second = fitted.sources["train"].records
    assert first.turns == (Turn("user", ("A:", None, " B:", None, None, " C:", None)),) and len(first.media) == 4
    assert second.turns == (*shots[:2], Turn("user", (None,) * 3 + ("New?",)))
    bare = talk("d/bare", *[Turn("user", (None,)), Turn("assistant", ("A",))] * 4, Turn("user", ("Now?", None)))
    fitted = fit(but(over_length="truncate_media"), record("d/0", image(folder, "small")), bare)
    assert [(one.uid, one.outcome) for one in fitted.unfit] == [("d/bare", "left out")]


def test_media_that_cannot_be_used_are_found_before_the_start(folder):
    good = record("d/0", image(folder, "small"))
    for name, words in (("noise", "noise.png"), ("flat", "row 0|aspect"), ("absent", "absent.png does not exist")):
        bad = record(f"d/{name}", image(folder, name))
        with pytest.raises(ValueError, match=f"d/{name}.*({words}).*--data.on-broken skip"):
            fit(CONFIG, good, bad)
        fitted = fit(but(on_broken="skip"), good, bad)
        assert len(fitted.sources["train"]) == 1 and fitted.unfit[0].uid == f"d/{name}"


def test_reference_completions_count_where_they_are_taught(folder):
    good = record("d/0", image(folder, "small"))
    config = dataclasses.replace(CONFIG, warmup=options.Warmup(steps=3), sampling=options.Sampling(max_new_tokens=2))
    architecture, processor = policy.describe(config.model, config.data)
    vocabulary = grouping.vocabulary([batches.groups_of(good, config.data)])
    encode = batches.Encoder(config.data, architecture, processor, ("d",), vocabulary)
    sources = {use: RecordList((good,)) for use in ("train", "warmup", "test")}
    with pytest.raises(
        ValueError, match=r"completion has (\d+) tokens \(sampling.max_new_tokens=2\).*--sampling.max-new-tokens \1"
    ):
        lengths.fit(sources, encode, config)
    plain = dataclasses.replace(config, warmup=options.Warmup(steps=0))
    assert len(lengths.fit(sources, encode, plain).sources["warmup"]) == 1


def test_answers_that_no_completion_can_say_are_told():
    answers = [dataclasses.replace(record(f"{i}"), answer=answer) for i, answer in enumerate(["a", "b c d e", "b c d"])]
    assert lengths.unsayable(answers, lambda text: len(text.split()), 4) == ""
    wanted = "2 of 3 answers are longer than a completion may be (sampling.max_new_tokens=2; 1: 4 tokens), so no"
    assert lengths.unsayable(answers, lambda text: len(text.split()), 2).startswith(wanted)


def test_all_that_is_too_small_is_said_in_one_error(folder):
    """Prompt, patches, reference completion and a broken file; with what the error proposes, everything fits."""
    records = (record("d/0", image(folder, "large")), record("d/1", image(folder, "noise")))
    sources = {use: RecordList(records) for use in ("train", "warmup", "test")}
    config = dataclasses.replace(
        CONFIG, warmup=options.Warmup(steps=3, batch=2), sampling=options.Sampling(max_new_tokens=2)
    )
    with pytest.raises(ValueError) as caught:
        lengths.fit(sources, encoder(config, records), config)
    said = str(caught.value)
    found = re.search(
        r"wanted --data.prompt-length (\d+) --data.num-patches (\d+) --sampling.max-new-tokens (\d+), or a smaller "
        r"--data.max-pixels, or --data.over-length skip or truncate_media, or files that can .* --data.on-broken skip$",
        said,
    )
    assert found and said.startswith("got 4 records")  # two prompts, and the reference completions of both
    tokens, patches, answer = map(int, found.groups())
    roomy = dataclasses.replace(
        config,
        data=dataclasses.replace(CONFIG.data, prompt_length=tokens, num_patches=patches, on_broken="skip"),
        sampling=options.Sampling(max_new_tokens=answer),
    )
    assert len(lengths.fit(sources, encoder(roomy, records), roomy).sources["warmup"]) == 1


def test_sizes_left_to_the_data_hold_its_largest_prompt(folder):
    good, large = record("d/0", image(folder, "small")), record("d/1", image(folder, "large"))
    config = but(prompt_length=0, num_patches=0)
    fitted, encode = fit(config, good, large), encoder(config, (good, large))
    settled = lengths.settle(config.data, fitted.sizes["train"], encode)
    assert fitted.sizes["train"] == [Size(32, 64), Size(272, 1024)]
    assert settled == dataclasses.replace(config.data, prompt_length=320, num_patches=1024)
    half = lengths.settle(but(num_patches=0).data, fitted.sizes["train"][:1], encode)
    assert half == but(num_patches=64).data
    assert lengths.settle(half, fitted.sizes["train"], encode) is half
    packed = dataclasses.replace(encode, settings=settled)([large])
    assert packed.prompt.tokens.shape == (1, 320)
