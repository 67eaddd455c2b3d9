"""The benchmarks run, each in real processes at its smallest size, and count as one counts by hand."""

import argparse
import dataclasses
import importlib
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import config as options, learner, models, rewards
from fairgrpo_jax.models import gemma3, qwen2_5_vl
from fairgrpo_jax.rewards import judge_prompts


ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark as its folder sees it; what it sets for its own process is undone."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("NPROC", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    yield importlib.import_module
    for name in ("step", "prefix", "gpu", "gpu_attention", "worker", "normalisation", "medgrpo"):
        sys.modules.pop(name, None)


def run(path, name, *options):
    """Runs a benchmark; returns what it printed and the figures it wrote."""
    file = path / "figures.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    ended = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", *options, "--json", file],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr[-3000:] + ended.stdout[-3000:]
    return ended.stdout, json.loads(file.read_text())


# ---- step ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_step_trains_on_every_token(tmp_path):
    printed, figures = run(tmp_path, "step", "--only", "text, 2", "--rollouts", "2", "--tokens", "3", "--steps", "2")
    (steps,) = [trainers["ours"] for trainers in figures.values()]
    assert [step["tokens"] for step in steps] == [8 * 2 * 3] * 3
    assert all(0 < step["cpu"] for step in steps) and steps[0]["wall"] > 2 * steps[2]["wall"]
    assert "1.00" in printed and "text, 2 layers of 64" in printed


@pytest.mark.parity
@pytest.mark.parametrize(("peer", "size"), [("TRL", "56 x 56"), ("Tunix", "text, 2")])
def test_step_is_that_of_others(tmp_path, peer, size):
    """Tokens of all prompts and logits after the first are equal: the benchmark itself refuses anything else."""
    pytest.importorskip(peer.lower())
    sizes = "--rollouts", "2", "--tokens", "3", "--steps", "1"
    _, figures = run(tmp_path, "step", "--only", size, f"--{peer.lower()}-python", sys.executable, *sizes)
    (trainers,) = figures.values()
    assert list(trainers) == ["ours", peer]
    assert [[step["tokens"] for step in steps] for steps in trainers.values()] == [[48, 48]] * 2


def test_step_refuses_another_prompt_and_another_model(load):
    step = load("step")
    ours = {"prompts": [[1, 2], [3]], "logits": [0.5, -0.5]}
    step.require_same({"ours": ours, "TRL": ours | {"logits": [0.5004, -0.5]}})
    with pytest.raises(RuntimeError, match=r"TRL has other prompts: \[1, 9\]; wanted \[1, 2\]"):
        step.require_same({"ours": ours, "TRL": ours | {"prompts": [[1, 9], [3]]}})
    with pytest.raises(RuntimeError, match="Tunix has another model: its logits are up to 0.01 from ours"):
        step.require_same({"ours": ours, "Tunix": ours | {"logits": [0.5, -0.51]}})


def test_step_leaves_the_first_step_out_of_its_figures(load):
    step = load("step")
    steps = [{"cpu": 50.0, "wall": 90.0}, *({"cpu": cpu, "wall": 2 * cpu} for cpu in (1.0, 4.0, 2.0))]
    ours, other = (argparse.Namespace(name=name, steps=steps[: 5 - n]) for n, name in enumerate(("ours", "TRL"), 1))
    assert step.row(step.SIZES[0], ours, ours)[2:] == [
        "2.000 (1.000-4.000)",
        "4.000 (2.000-8.000)",
        "90.0",
        "1.00",
        "1.00",
    ]
    assert step.row(step.SIZES[0], other, ours)[2:] == [
        "2.500 (1.000-4.000)",
        "5.000 (2.000-8.000)",
        "90.0",
        "1.25",
        "1.25",
    ]


def test_step_says_why_a_trainer_ended(load, tmp_path):
    step = load("step")
    worker = step.Worker("TRL", sys.executable, tmp_path / "absent.json", tmp_path / "log", {"PYTHONPATH": ""})
    with pytest.raises(RuntimeError, match=r"(?s)TRL ended without an answer:.*(absent.json|No module named)"):
        worker.read()
    worker.close()


def test_a_worker_answers_once_a_request_and_prints_elsewhere(tmp_path):
    (tmp_path / "spec.json").write_text('{"times": 3}')
    script = (
        "import worker\nspec, say = worker.start()\nprint('noise')\n"
        "for _ in worker.requests():\n    with worker.Stopwatch() as watch:\n        sum(range(10**6))\n"
        "    say(**watch.spent, times=spec['times'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "spec.json"],
        input="step\nstep\n",
        env=os.environ | {"PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [answer["times"] for answer in answers] == [3, 3] and "noise" in ended.stderr
    assert all(0 < answer["cpu"] and 0 < answer["wall"] for answer in answers)


@pytest.mark.parametrize("index", range(5))
def test_step_sizes_are_models_that_fit_their_images(load, index):
    step = load("step")
    size = step.SIZES[index]
    config, processor = step.architecture(size)
    talks = [[{"role": "user", "content": [{"type": "image"}] * bool(size.side) + [{"type": "text", "text": "a?"}]}]]
    inputs = processor(talks, [[step.pictures(size.side)[0]]] if size.side else None)
    count = (inputs["input_ids"] == config.image_id).sum() if size.side else 0
    assert count == (size.side // 28) ** 2 if size.side else config.vision is None
    assert (config.hidden_size, config.num_layers) == (size.hidden, size.layers)


# ---- prefix ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_prefix_agrees_and_counts(tmp_path, load):
    """4 prompts of 24 tokens with 2 completions of at most 16; that the losses agree is checked before timing."""
    printed, (figures,) = run(tmp_path, "prefix", "--toy", "--steps", "1")
    prefix = load("prefix")
    lengths = prefix.draw(np.random.default_rng(0), prefix.TOYS[0]).ravel()
    forms = figures["forms"]
    assert forms["once"]["tokens"] == 4 * 24 + 8 * 16
    assert forms["repeated"]["tokens"] == 8 * (24 + 16)
    by_length = np.sort(lengths)[::-1]
    assert forms["packed"]["tokens"] == 8 * 24 + 4 * (by_length[0] + by_length[4])
    assert figures["ideal"] == pytest.approx((24 * 4 + lengths.sum()) / (24 * 8 + lengths.sum()))
    assert forms["once"]["flops"] < forms["packed"]["flops"] < forms["repeated"]["flops"]
    for form in forms.values():
        assert form["temp"] > 0 and form["cpu"] > 0
        assert form["loss"] == pytest.approx(forms["once"]["loss"], rel=1e-4)
    assert "log-normal" in printed


def test_prefix_counts_every_turn_of_a_loop(load):
    prefix = load("prefix")

    def step(state, x):
        for _ in range(1):
            x, _ = jax.lax.scan(lambda x, _: (x @ state, None), x, None, length=5)
        return jax.lax.map(lambda row: row @ state, x[:, None])

    case = prefix.Case(jax.jit(step), (jnp.ones((8, 16)),), {}, 0)
    assert prefix.flops(case, jnp.ones((16, 16))) == pytest.approx((5 + 1) * 2 * 8 * 16 * 16, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "mean"), [("full", 256), ("narrow", 128), ("log-normal", 256 / 3 * np.exp(0.5**2 / 2)), ("geometric", 64)]
)
def test_prefix_lengths_have_their_distribution(load, kind, mean):
    prefix = load("prefix")
    lengths = prefix.draw(np.random.default_rng(1), prefix.Shape(1, 256, 2000, kind))
    assert lengths.min() >= 1 and lengths.max() <= 256
    assert lengths.mean() == pytest.approx(mean, rel=0.04)


# ---- gpu -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the next but one starts the same section
def test_gpu_measures_rates_on_any_device(tmp_path):
    printed, figures = run(tmp_path, "gpu", "--toy", "--only", "trl")
    assert figures["rates"]["copy"] > 0 and figures["rates"]["matmul"] > 0
    assert figures["trl"]["said"] == "skipped: no --trl-python" and "trl: skipped: no --trl-python" in printed


@pytest.mark.slow
def test_gpu_runs_at_toy_size(tmp_path):
    printed, figures = run(tmp_path, "gpu", "--toy")
    for section in ("decode qwen", "decode gemma", "update qwen", "update gemma"):
        figures_of = next(iter(figures[section]["lines"].values()))
        # A token's time is a difference, which at this size the noise of the machine can turn.
        assert all(math.isfinite(figures_of[name]) for name in ("seconds", "share"))
        assert "decode" in section or (figures_of["seconds"] > 0 and figures_of["share"] > 0)
        assert figures[section]["seconds"] > 0
    assert "4 rows" in printed and "2 x 2 x 8" in printed


def test_gpu_sections_fit_ten_minutes_and_one_that_does_not_says_so(load, tmp_path):
    gpu = load("gpu")
    assert sum(limit for section, limit in gpu.SECTIONS.items() if section != "trl") <= 600
    chosen = argparse.Namespace(toy=False, trl_python=None)
    said = gpu.run("rates", 0.01, tmp_path / "figures.json", chosen)
    assert said == {"said": "stopped after 0.01 s", "failed": True}


def test_gpu_has_the_published_sizes(load):
    """The parameter counts of the hub."""
    gpu = load("gpu")
    for name, count in (("qwen", 3_754_622_976), ("gemma", 4_300_079_472)):
        config = models.read_config(gpu.PUBLISHED[name])
        tree = jax.eval_shape(lambda key: models.family(config).init(config, key), jax.random.key(0))  # noqa: B023
        assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == count


@pytest.mark.parametrize("family", [qwen2_5_vl, gemma3])
def test_gpu_prompts_have_one_image(load, family):
    gpu = load("gpu")
    config = family.tiny()
    prompt = gpu.prompts(config, 3, gpu.TOY)
    assert prompt.tokens.shape == (3, 84) and prompt.valid.all()
    assert (np.asarray(prompt.tokens) == config.image_id).sum(1).tolist() == [16] * 3
    ends = np.asarray(prompt.tokens)[:, [4, 4 + 17]].tolist()
    assert ends == [[config.vision_start_id, config.vision_end_id]] * 3
    assert prompt.vision.patches.shape[1] == 64


def test_gpu_counts_operations_as_by_hand(load):
    """Two prompts of 84 tokens, an image of 64 patches and 16 features in each, and 3 completions of 8 tokens."""
    gpu = load("gpu")
    tower = dataclasses.replace(qwen2_5_vl.tiny().vision, window_size=16, full_blocks=(1,))
    config = qwen2_5_vl.tiny(vision=tower)
    params = jax.eval_shape(lambda key: models.family(config).init(config, key, jnp.bfloat16), jax.random.key(0))
    batch = learner.PolicyBatch(
        gpu.prompts(config, 2, gpu.TOY), *[jnp.zeros((2, 3, 8))] * 3, advantages=jnp.zeros((2, 3))
    )
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    decoder = 2 * 2 * layer * 2 * (84 + 24)
    scores = 2 * 4 * 64 * 2 * (84 * 84 / 2 + 24 * 84 + 3 * 8 * 8 / 2)
    head = 2 * 512 * 64 * 2 * 24
    block = 64 * 192 + 64 * 64 + 3 * 64 * 64
    vision = 2 * 2 * block * 2 * 64 + 4 * 64 * 2 * 64 * (64 + 16)
    ends = 2 * 2 * (96 * 64 * 64 + (256 * 256 + 256 * 64) * 16)
    assert gpu.flops(config, params, batch) == pytest.approx(3 * (decoder + scores + head + vision + ends))
    read = 2 * (2 * layer + 2 * (64 + 32 + 32) + 5 * 64 + 512 * 64)
    assert gpu.weight_bytes(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)) == read


# ---- buckets ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_buckets_pad_less(tmp_path):
    """Real runs on records of one to eight images of many sizes, and videos."""
    printed, figures = run(tmp_path, "buckets", "--records", "16", "--steps", "3", "--max-pixels", "4096")
    whole, cut = figures["1"], figures["4"]
    assert whole["length"] == cut["length"] and cut["tokens"] < whole["tokens"] and cut["patches"] < whole["patches"]
    assert cut["programs"] > whole["programs"] and cut["sizes"].split()[-1] == whole["sizes"]
    assert "A step on prompts of many sizes" in printed


# ---- normalisation ---------------------------------------------------------------------------------------------------


def test_normalisation_pays_the_overlap(load):
    toy = load("normalisation")
    found = dict(zip(map(tuple, toy.ACTIONS.tolist()), np.asarray(toy.iou(jnp.array([[2, 6]])))[0], strict=True))
    assert [float(found[cells]) for cells in ((2, 6), (4, 8), (4, 6), (6, 10))] == pytest.approx([1, 2 / 6, 2 / 4, 0])
    batch = toy.draw(jax.random.key(0), 64)
    lengths = np.asarray(batch.truth[:, 1] - batch.truth[:, 0])
    assert set(lengths[0::2]) <= {*range(8, 15)} and set(lengths[1::2]) <= {2, 3, 4}
    assert batch.truth.min() >= 0 and batch.truth.max() <= toy.CELLS


def test_normalisation_compares_seed_by_seed(load):
    toy = load("normalisation")
    found = {("", "", seed): [0.5, 0.1, float("nan")] for seed in (1, 2)}
    for seed, hard in ((1, 0.2), (2, 0.4)):
        found["grpo", "as it is", seed] = [0.6, hard, 0.5]
        found["grpo", "running percentiles", seed] = [0.6, hard + 0.1, 0.25]
    lines = toy.table(found, [1, 2]).splitlines()
    assert lines[3] == "| grpo | as it is | 0.600 | 0.300 | 0.50 | – | – |"
    assert lines[4].startswith(
        "| grpo | running percentiles | 0.600 | 0.400 | 0.25 | +0.000 [+0.000, +0.000] | +0.100 ["
    )


@pytest.mark.slow
def test_normalisation_runs(tmp_path):
    command = [sys.executable, FOLDER / "normalisation.py", *"--seeds 1 2 --warmup 2 --steps 2".split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    out = tmp_path / "figures.csv"
    ended = subprocess.run([*command, "--csv", out], env=environment, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0 and len(ended.stdout.splitlines()) == 2 + 1 + 8, ended.stderr[-3000:]
    assert len(out.read_text().splitlines()) == 1 + 2 * 9


# ---- medgrpo ---------------------------------------------------------------------------------------------------------


def test_medgrpo_knows_all_answers_and_pays_the_right_one_most(load, tmp_path):
    toy = load("medgrpo")
    known, records = toy.films("test", 6, tmp_path)
    assert known.seen.shape == (6, 4 * 16 * 3) and [len(toy.ANSWERS[task]) for task in toy.TASKS] == [15, 14, 2, 3, 27]
    raw, judged = toy.tables(records)
    rows = [[raw[place, known.right[film, place]] for place in range(len(toy.TASKS))] for film in range(6)]
    best = np.argmax(rows, axis=-1)
    assert (np.take_along_axis(np.array(rows), best[..., None], -1) == 1).all() and not judged.any()
    orders = [toy.ANSWERS["video_summary"].index(text) for text in ("A cut, a tie.", "A tie, a cut.")]
    ties = np.array([row[1] for row in rows])[:, orders]
    assert (ties[:, 0] == ties[:, 1]).all()  # words alone do not know the order
    right = np.asarray(known.right)
    assert (best[:, [0, 2, 3, 4]] == right[:, [0, 2, 3, 4]]).all()


def test_medgrpo_asks_an_endpoint_that_knows_the_order(load):
    toy = load("medgrpo")
    told = [judge_prompts.clinical(text, "A cut, a tie.").text for text in ("A cut, a tie.", "A tie, a cut.")]
    assert [toy.answer(text).split()[1::2] for text in told] == [["5"] * 5, ["3"] * 5]
    with toy.served() as url, rewards.Judge(options.Judge(url=url, model="rule")) as judge:
        judge.check()
        asked = judge_prompts.clinical("A cut.", "A cut.")
        assert judge.submit([asked]).result().tolist() == [[1.0] * 5]


@pytest.mark.slow
def test_medgrpo_runs(tmp_path):
    command = [sys.executable, FOLDER / "medgrpo.py", *"--seeds 1 2 --films 8 --warmup 2 --steps 2".split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    out = tmp_path / "figures.csv"
    ended = subprocess.run([*command, "--csv", out], env=environment, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0 and "| captions: knowing > words |" in ended.stdout, ended.stderr[-3000:]
    assert len(out.read_text().splitlines()) == 1 + 2 * 5
