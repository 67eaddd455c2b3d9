"""The runs of MedGRPO: presets differ as the paper's rows do, plan at true size, and run both stages at toy size."""

import contextlib
import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest

from fairgrpo_jax import (
    config as options,
    configs,
    evaluate,
    leaderboard,
    normalization,
    rewards,
    runs,
    scales,
    sft,
    train,
)
from fairgrpo_jax.config import Warmup
from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import medvid_toy
from fairgrpo_jax.models import vision
from fairgrpo_jax.models.tiny import judge as tiny_judge
from fairgrpo_jax.plan import plan
from fairgrpo_jax.rewards.medvid import board
from fairgrpo_jax.rewards.medvid.samples import Sample
from tests import real_sizes
from tests.dataset_fixtures import medvidbench as fixture
from tests.test_train import rows


FILES = ("medgrpo_qwen2_5_vl_7b", "medgrpo_qwen3_vl_4b")
REPOSITORIES = ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-4B-Instruct")
ROWS = ("full", "no_normalisation", "grounding", "captions", "captions_without_judge")


def test_the_rows_of_the_ablation():
    for file in FILES:
        config = configs.get(file)
        assert (config.algorithm, config.rollouts, config.steps, config.update.beta) == ("grpo", 8, 5000, 0)
        assert (config.update.clip_low, config.update.clip_high, config.optim.lr) == (0.2, 0.3, 5e-7)
        assert (config.warmup.epochs, config.warmup.optim.lr, config.reward.steepness) == (3, 5e-7, 3.0)
        for name in ROWS:
            row = configs.get(f"{file}/{name}")
            changed = {x.split(":")[0] for x in options.difference(*map(options.to_dict, (config, row)))}
            assert changed <= {"name", "data.tasks", "reward.components", "reward.scale"}
            parts = {part.name: part for part in row.reward.parts}
            assert row.data.tasks == {"grounding": ("tal", "stg")}.get(
                name,
                ("video_summary", "region_caption") if "captions" in name else ("tal", "stg", *config.data.tasks[2:]),
            )
            assert ("judge" in parts) == (name not in ("grounding", "captions_without_judge"))
            assert any(part.normalised for part in parts.values()) == (name != "no_normalisation")


@pytest.mark.plan
@pytest.mark.parametrize("file, repository", [*zip(FILES, REPOSITORIES, strict=True)])
def test_the_presets_are_planned_at_their_true_size(file, repository, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(real_sizes.CONFIGS[repository]))
    config = configs.get(file)
    planned = plan.plan(dataclasses.replace(config, model=dataclasses.replace(config.model, path=tmp_path)), "h100")
    assert planned.fits and len(planned.phases) == 3


def test_epochs_are_passes_over_the_records():
    assert Warmup(epochs=3, batch=8).counted(20).steps == 8 and Warmup(steps=5).counted(20).steps == 5
    with pytest.raises(ValueError, match="got warmup.epochs=0; wanted a positive number of passes"):
        Warmup(epochs=0)
    with pytest.raises(ValueError, match="warmup.epochs=3 with warmup.steps=0; wanted one of them"):
        Warmup(epochs=3, steps=0)
    with pytest.raises(ValueError, match="got reward.scale=supervised with reward.percentiles=x; wanted one of them"):
        options.Reward(("exact,normalised",), percentiles="x", scale="supervised")  # type: ignore[arg-type]


def test_every_answer_of_the_operating_room_is_right():
    records = medvid_toy.load("train", clips=20).records
    right = board.columns([Sample.of(record, record.answer) for record in records])
    for name in board.COLUMNS[:7]:
        assert right[name] == 1
    components = configs.get("medgrpo_toy/words").reward.components
    plain = options.Reward(tuple(part.replace(",normalised", "") for part in components))
    given = rewards.Answers([[r.answer, "x"] for r in records], records, *np.ones((2, len(records), 2), int))
    found = rewards.build(plain, options.Sampling(), records)(given).rewards
    np.testing.assert_allclose(found[:, 0], 1)
    assert found[:, 1].max() == 0


def test_held_out_scores_by_task():
    records = medvid_toy.load("test", clips=1, tasks=("tal", "stg")).records
    parts = [{"tag": 0.5, "tag_form": 1.0}, {"stg": float("nan")}]
    answered: Any = [{"components": own} for own in parts]
    assert evaluate.by_task(answered, records) == {"task/tal/tag": 0.5, "task/tal/tag_form": 1.0}
    assert evaluate.by_task(answered[:1], records[:1]) == {}  # one task: the reward says it


def test_clips_are_films_that_are_written_once(tmp_path):
    first, *_, last = medvid_toy.load("test", clips=2, folder=tmp_path).records
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 2 and {path.suffix for path in files} == {".mp4"}
    again = medvid_toy.load("test", clips=2, folder=tmp_path).records
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert again[0].media[0].path == first.media[0].path != last.media[0].path
    (film,) = media.decode_record(first).videos
    assert film.frames.shape == (8, 128, 128, 3) and film.times.tolist() == [*range(8)]
    drawn = medvid_toy._clip("test-0", np.random.default_rng(1)).frames
    assert np.abs(film.frames.astype(int) - drawn).mean() < 3
    boxed = next(record for record in again if record.extra["task"] == "region_caption")
    (marked,) = media.decode_record(boxed).videos
    changed = (np.abs(marked.frames.astype(int) - film.frames) > 8).any(axis=(1, 2, 3))
    assert changed.tolist() == [True] + [False] * 7


def tiny(config, **data):
    return dataclasses.replace(
        config,
        mesh="1x1",
        steps=2,
        prompts=4,
        rollouts=2,
        model=options.Model(hidden_size=32),
        data=dataclasses.replace(
            config.data, prompt_length=160, num_patches=256, min_pixels=1024, max_pixels=1024, buckets=1, **data
        ),
        warmup=dataclasses.replace(config.warmup, epochs=0.25, batch=8, accumulation=1),
        sampling=dataclasses.replace(config.sampling, max_new_tokens=64, dtype=None),
        reward=dataclasses.replace(config.reward, window=2),
        evaluation=dataclasses.replace(config.evaluation, every=100, batch=8, records=8, samples=0),
    )


def go(config, folder, command):
    with contextlib.redirect_stdout(io.StringIO()), runs.open_run(config, folder) as run:
        state, start, prompts = sft.begin(run)
        if command == "sft":
            scales.anchor(run, state.params)
            return run
        train.reinforce(run, state, start, prompts)
        return run


def check(run, folder, normalised=True):
    steps = rows(folder, "train")
    assert len(steps) == 2 and np.isfinite([step["loss"] for step in steps]).all()
    assert {row["dataset"] for row in evaluate.read(folder, 2)} == {run.config.data.name}
    if normalised:
        table = normalization.PercentileTable.from_json((folder / scales.NAME).read_text())
        assert set(table.stats) == set(run.scorer.scaled) and run.scorer.table == table
        assert run.scorer.begin() is None


def test_films_of_a_run_go_through_the_tower_part_by_part(tmp_path, monkeypatch):
    """Pairs of frames of 64 patches, as the run measures them; a prompt has 256."""
    monkeypatch.setattr(vision, "LEAST_PART", 64)
    monkeypatch.setattr(vision, "FRAMES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny(configs.get("medgrpo_toy/words"), options=("clips=4",))
    with contextlib.redirect_stdout(io.StringIO()), runs.open_run(config, tmp_path / "run") as run:
        assert run.encoder.architecture.vision.parts(256) == (4, 64, 64)
        assert run.pool.encoder is run.encoder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medgrpo_toy/judge", "medgrpo_toy/no_normalisation"])
def test_both_stages_on_embedded_clips(name, tmp_path):
    config = tiny(configs.get(name), options=("clips=8",))
    run = go(config, tmp_path / "run", "train")
    check(run, tmp_path / "run", "judge" in name)
    tasks = {name.split("/")[1] for row in rows(tmp_path / "run", "eval") for name in row if name.startswith("task/")}
    assert tasks == {*medvid_toy.TASKS}
    evaluate.main([str(tmp_path / "run"), "--submission", str(tmp_path / "s.json"), "--workdir", str(tmp_path / "w")])
    asked = medvid_toy.load("test", clips=8).records
    assert len(leaderboard.answers(asked, leaderboard.read(tmp_path / "s.json"))) == len(asked)
    assert len(rows(tmp_path / "run", "warmup")) == run.config.warmup.steps == 2  # a quarter of 64 records


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{file}/{row}" for file in FILES for row in ROWS if row != "full"])
def test_both_stages_on_files_in_the_owners_form(name, tmp_path):
    there = fixture.ROWS[0]["video"]  # of the other sources the fixture has no frames
    own = [{**row, "video": row["video"] if "AVOS" in row["video"][0] else there} for row in fixture.ROWS]
    more = [
        {**fixture.row("video_summary_gpt", f"Sum up {n}.", "A cut.", video=f"s{n}"), "video": there} for n in range(8)
    ]
    extra = [
        {**row, "metadata": {**row["metadata"], "video_id": f"{row['metadata']['video_id']}-{n}"}}
        for n in range(6)
        for row in own
    ]
    (tmp_path / "data").mkdir()
    root = fixture.write(tmp_path / "data", [*own, *more, *extra])
    judge = options.Judge()
    if "judge" in str(configs.get(name).reward.components):
        judge = options.Judge(path=tiny_judge.write(tmp_path / "judge"), mode="typed", dtype="float32")
    config = dataclasses.replace(tiny(configs.get(name), root=root), judge=judge)
    first = go(dataclasses.replace(config), tmp_path / "sft", "sft")
    again = dataclasses.replace(config, warmup=dataclasses.replace(config.warmup, run=tmp_path / "sft"))
    run = go(again, tmp_path / "run", "train")
    scaled = "no_normalisation" not in name
    check(run, tmp_path / "run", scaled)
    if scaled:
        assert first.scorer.table == run.scorer.table  # that of the supervised run
