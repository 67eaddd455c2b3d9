"""The plan: figures by hand, what is said of runs that do not fit, and the command as a user meets it."""

import dataclasses
import io
import json
import shlex
import sys

import pytest
from rich.console import Console

from fairgrpo_jax import chunking, commandline, config as options, configs
from fairgrpo_jax.plan import ahead, cost, devices, plan, tables
from tests import real_sizes


GIB = 1 << 30
SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the published checkpoints with nothing in them but config.json."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, values in real_sizes.CONFIGS.items():
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(values))
    return root


def options_of(folders, name=SEVEN, mesh="16x1", patches=1024, **other):
    """A run with images on a published model: 64 prompts, 8 rollouts of up to 256 tokens."""
    return options.Config(
        mesh=mesh,
        data=options.Data(prompt_length=640, num_patches=4096 if "gemma" in name else patches),
        model=options.Model(path=folders / name, dtype=other.pop("dtype", "bfloat16")),
        warmup=options.Warmup(steps=0),
        sampling=options.Sampling(max_new_tokens=256),
        **other,
    )


@pytest.mark.parametrize("name", real_sizes.CONFIGS)
def test_the_weights_of_published_models(folders, name):
    made = plan.plan(options_of(folders, name), "v5p:2x2x4")
    count = real_sizes.PARAMETERS[name]
    assert made.phases[0].held["weights that sample"] == 2 * count
    assert 1 <= made.state["weights"] / (2 * count / 16) < 1.05  # what does not divide stays whole
    assert made.state["optimizer moments"] == 2 * 2 * made.state["weights"]  # two, in float32
    assert made.peak == max(sum(made.state.values()) + sum(phase.held.values()) for phase in made.phases)
    assert made.fits and not made.changes


def test_least_times_by_hand(folders):
    """Qwen2.5-VL-7B decoding on 16 v5p: 4 prompts a device, each token reads weights and caches at 2765 GB/s."""
    made = plan.plan(options_of(folders), "v5p:2x2x4")
    prompt, decode, update = made.phases
    place = 2 * 28 * 4 * 128 * 2
    layers = 28 * (3584 * (2 * 3584 + 2 * 512) + 3584 + 2 * 512 + 3 * 3584 * 18944 + 2 * 3584)
    read = 2 * (layers + 3584 * 152064) + place * 4 * (640 + 8 * 255)
    assert decode.read == 255 * read and decode.seconds["memory"] == pytest.approx(255 * read / 2765e9)
    assert decode.bound == "memory" and decode.least == decode.seconds["memory"] and decode.sent == 0
    # every device receives the other fifteen's share of the weights
    assert prompt.sent == pytest.approx(2 * real_sizes.PARAMETERS[SEVEN] * 15 / 16, rel=1e-3)  # but of norms and biases
    assert prompt.seconds["link"] == pytest.approx(prompt.sent / 600e9)
    sizes = cost.Sizes(prompts=64, rollouts=8, prompt=640, completion=256, patches=1024)
    flops = cost.update_flops(ahead.describe(options_of(folders).model), sizes).total / 16
    assert update.seconds["compute"] == pytest.approx(flops / 459e12) and update.bound == "compute"
    # gathered by the prompt pass and by the completions, forward and backward; float32 gradients go back twice
    state = made.state["weights"]
    assert update.sent == pytest.approx(15 / 16 * (4 * 2 * real_sizes.PARAMETERS[SEVEN] + 2 * 16 * 2 * state), rel=0.01)
    assert plan.to_json(made)["tokens_per_second"] == pytest.approx(64 * 8 * 256 / made.seconds)


def test_updates_add_up(folders):
    once = plan.plan(options_of(folders), "v5p:2x2x4").phases[2]
    twice = plan.plan(options_of(folders, update=options.Update(passes=2)), "v5p:2x2x4").phases[2]
    sizes = cost.Sizes(prompts=64, rollouts=8, prompt=640, completion=256, patches=1024)
    score = cost.score_flops(ahead.describe(options_of(folders).model), sizes).total / 16
    assert twice.flops.total == pytest.approx(2 * once.flops.total + score) and twice.sent == 2 * once.sent
    assert once.flops.total == pytest.approx(4 * score, rel=0.1)  # forward, again, and two products backward
    wide = plan.plan(options_of(folders, dtype="float32"), "h200:16")
    narrow = plan.plan(options_of(folders), "h200:16")
    assert wide.phases[2].seconds["compute"] == 2 * narrow.phases[2].seconds["compute"]
    both = options_of(folders, dtype="float32")
    both = dataclasses.replace(both, model=dataclasses.replace(both.model, compute="bfloat16"))
    mixed = plan.plan(both, "h200:16")
    assert mixed.state == wide.state and mixed.phases[:2] == wide.phases[:2]
    assert mixed.phases[2].seconds["compute"] == narrow.phases[2].seconds["compute"]
    assert mixed.phases[2].held["weights in the compute dtype"] == wide.state["weights"] // 2


FIXED = options.Update(remat=False, accumulation=1, chunks=1)


@pytest.mark.parametrize(
    "device,mesh,dtype",
    [("h100:8", "8x1", "float32"), ("a100:8", "8x1", "float32"), ("v5p:2x2x1", "4x1", "float32")],
)
def test_changes_that_are_proposed_do_make_it_fit(folders, device, mesh, dtype):
    """The options are taken as they are printed, through the command line."""
    config = options_of(folders, mesh=mesh, dtype=dtype, rollouts=16, update=FIXED)
    made = plan.plan(config, device)
    assert not made.fits and made.changes and made.changes[-1].endswith(": fits")
    words = [part for line in made.changes for part in shlex.split(line.split(":")[0])]
    schema = plan.Arguments
    given = "data.prompt-length 640", "data.num-patches 1024", "sampling.max-new-tokens 256", "rollouts 16"
    for name in (*given, "update.accumulation 1", "update.chunks 1"):
        words = [*shlex.split(f"--{name}"), *words]
    words = ["--mesh", mesh, "--model.path", str(folders / SEVEN), "--warmup.steps", "0", *words]
    if "--model.dtype" not in words:
        words += ["--model.dtype", dtype]
    parsed = commandline.parse([*words, "--device", device], prog="plan", description=None, schema=schema)
    assert plan.plan(parsed.config, parsed.device).fits


def test_many_changes(folders):
    """Weights of 30.9 GiB on chips of 15.75, split along the mesh's second axis in the end."""
    made = plan.plan(options_of(folders, dtype="float32"), "v5e:4x4")
    assert not made.fits and made.changes[-1].endswith(": fits")
    assert [line.split(":")[0] for line in made.changes] == [
        "--sampling.dtype bfloat16",
        "--sampling.weights tensor --mesh 8x2",
    ]
    assert any("a rollout copies 30.9 GiB of weights onto every device" in words for words in made.warnings)


def test_what_no_option_can_mend(folders):
    """15.4 GiB of weights, and the copy that samples, are too many for a single chip."""
    made = plan.plan(options_of(folders, mesh="1x1"), "v5e:1x1")
    assert not made.fits and made.phases[0].held["weights that sample"] == made.state["weights"]
    assert not any(line.endswith("fits") or "tensor --mesh" in line for line in made.changes)
    assert "no option is enough: take devices with more memory than TPU v5e" in made.changes[-1]


def test_more_of_a_gpus_memory(folders):
    """Between three quarters of the memory, JAX's default, and what it can be given."""
    config = options_of(
        folders, mesh="1x1", name="Qwen/Qwen2-VL-2B-Instruct", update=options.Update(accumulation=1, chunks=1)
    )
    kind = devices.KINDS["h200"]
    for grown in range(32, 256, 8):
        made = plan.plan(dataclasses.replace(config, prompts=grown), "h200")
        if not made.fits:
            break
    assert kind.usable < made.peak < plan.MOST * kind.memory
    assert made.changes == (
        "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 in the environment: JAX takes 0.92 instead of 0.75 of the memory: fits",
    )
    assert plan.plan(dataclasses.replace(config, prompts=grown), "h200", memory=128).fits


def test_selective_recomputation_is_proposed_where_it_fits(folders):
    made = plan.plan(options_of(folders), "v5p:2x2x4")
    chosen = plan.plan(options_of(folders, update=options.Update(remat="selective")), "v5p:2x2x4")
    (old, new), gib = (each.phases[2] for each in (made, chosen)), lambda phase: f"{phase.peak / GIB:.1f}"
    assert made.faster.startswith("--update.remat selective: at least") and not chosen.faster
    assert f"{gib(new)} instead of {gib(old)} GiB" in made.faster and old.peak < new.peak < made.limit
    assert 0.8 < new.flops.total / old.flops.total < 0.83  # one of four products, but in the head and in attention
    whole = options_of(folders, update=options.Update(accumulation=1, chunks=1))
    assert not plan.plan(whole, "v5p:2x2x4", memory=new.peak / GIB).faster  # it would fit with nothing to spare


def test_warnings(folders):
    said = lambda config, device: " ".join(plan.plan(config, device).warnings)
    halved = options_of(folders, mesh="8x2")
    assert "tensor=2 splits the update only" in said(halved, "v5p:2x2x4")
    halved = dataclasses.replace(halved, sampling=dataclasses.replace(halved.sampling, weights="tensor"))
    assert not plan.plan(halved, "v5p:2x2x4").warnings
    thin = options.Config(mesh="128x1", prompts=128, model=options.Model(hidden_size=16), warmup=halved.warmup)
    assert "no weight is split over fsdp" in said(thin, "h200:128")
    assert "2 hosts: weights are gathered over their network at 50 GB/s" in said(options_of(folders), "h200:16")
    assert not plan.plan(options_of(folders), "v5p:2x2x4").warnings
    many = options_of(folders, prompts=16, rollouts=2)
    assert "the update waits for weights" in said(many, "h100:16")
    exact = plan.plan(options_of(folders), "v5p:2x2x4").peak / GIB
    assert "--compile before you rent" in " ".join(
        plan.plan(options_of(folders), "v5p:2x2x4", memory=1.05 * exact).warnings
    )


@pytest.mark.parametrize(
    "arguments,named",
    [
        (["--device", "v5e:2x8", "--mesh", "16x1"], "a slice that does not exist; wanted v5e:4x4"),
        (["--device", "h200:8"], "of 8 devices for a mesh of 1"),
        (["--device", "b200"], "wanted v5e:SLICE"),
        (["--mesh", "8x1", "--prompts", "12"], "=12 on a mesh with 8 devices along fsdp; wanted a multiple"),
        (["--data.num-patches", "62"], "num_patches=62 must be a multiple of 4.*option data.num_patches"),
        (["--model.path", "nowhere"], "got nowhere, which is not a folder; .*hf download"),
        (["--memory", "0"], "memory=0.0; wanted"),
        (["--timeout", "-1"], "timeout=-1.0; wanted"),
    ],
)
def test_one_line_says_what_is_wrong(monkeypatch, capsys, arguments, named):
    code, output = call(monkeypatch, capsys, *arguments)
    lines = output.err.strip().splitlines()
    assert code == 2 and len(lines) == 1
    with pytest.raises(ValueError, match=named):
        raise ValueError(lines[0])


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["plan", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        plan.main()
    return stopped.value.code, capsys.readouterr()


def test_the_command(monkeypatch, capsys, folders):
    given = ["--model.path", folders / SEVEN, "--model.dtype", "bfloat16", "--mesh", "8x1", "--device", "h200"]
    given += ["--data.prompt-length", "640", "--data.num-patches", "1024", "--sampling.max-new-tokens", "256"]
    code, output = call(monkeypatch, capsys, *given)
    assert code == 0 and "verdict: it fits" in output.out and "8 x NVIDIA H200 SXM 141 GB (h200:8)" in output.out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.out.splitlines() if "│" in line]
    table = {row[0]: row[1:] for row in rows}
    assert table["weights"] == ["1.93", "1.93", "1.93"] and table["weights that sample"][0] == "15.45"
    code, output = call(monkeypatch, capsys, *given, "--json", "--memory", "20")
    told = json.loads(output.out)
    assert code == 1 and not told["fits"] and told["limit"] == 20 * GIB and told["device"] == "h200:8"
    assert set(told["phases"]) == {"prompt pass", "decoding", "update"}
    assert told["peak"] == max(phase["peak"] for phase in told["phases"].values())
    assert told["step_seconds"] == pytest.approx(sum(phase["least_seconds"] for phase in told["phases"].values()))


def test_presets_are_planned(monkeypatch, capsys):
    for name in ("clinic", "covid_blues"):
        code, output = call(monkeypatch, capsys, name, "--device", "a100")
        assert code == 0 and "verdict: it fits" in output.out


def test_what_a_compiler_says_is_part_of_the_plan(monkeypatch, folders):
    """A rollout must leave room for the state that stays beside it; a compiler that fails decides nothing."""
    config = options_of(folders)
    made = plan.plan(config, "v5p:2x2x4")
    moments, room = made.limit - made.state["optimizer moments"], made.limit - sum(made.state.values())
    fits = lambda name: ahead.Outcome(program=name, status="fits", needed=1, available=made.limit, arguments=1)
    answers = {
        "prompt": fits("prompt"),
        "copy": ahead.Outcome(program="copy", status="fits", needed=moments, available=made.limit, arguments=1),
        "decode": ahead.Outcome(program="decode", status="fits", needed=room + 1, available=made.limit, arguments=1),
        "update": ahead.Outcome(program="update", status="compiler crashed", message="SIGSEGV", findings=("a gather",)),
        "optimizer": fits("optimizer"),
    }
    asked = []

    def compile_apart(config, target, program, *, timeout, cache):
        asked.append((program, target.name, timeout, chunking.told(config)))
        return answers[program]

    monkeypatch.setattr(ahead, "compile_apart", compile_apart)
    after = plan.compiled(config, made, timeout=7, cache=None)
    assert asked == [(name, "v5p:2x2x4", 7, made.parts) for name in ("copy", "prompt", "decode", "update", "optimizer")]
    assert after.outcomes[0].status == "fits" and after.outcomes[0].available == moments
    assert made.fits and not after.fits and after.warnings[-1] == "a gather"
    text = io.StringIO()
    tables.show(after, Console(file=text, width=160))
    assert f"compiled for v5p:2x2x4, not run on it: decode: does not fit, {room / GIB:.2f} GiB of" in text.getvalue()
    assert "verdict: it does not fit (decode as compiled)" in text.getvalue()
    answers["decode"] = dataclasses.replace(answers["decode"], needed=room)
    assert plan.compiled(config, made, timeout=7, cache=None).fits
    answers["update"] = ahead.Outcome(program="update", status="out of memory", needed=3, available=2)
    assert not plan.compiled(config, made, timeout=7, cache=None).fits


@pytest.mark.parametrize("name,model", [("fair_qwen2_5_vl_7b", SEVEN), ("fairmedgemma_4b", "google/gemma-3-4b-it")])
def test_the_papers_runs_fit_with_the_step_whole(folders, name, model):
    """512 prompts and completions of 4,096 tokens, on the papers' devices; MedGemma's shapes are those of Gemma 3."""
    config = configs.get(name)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=folders / model))
    for device, mesh in (("h100:8", "8x1"), ("a100:4", "4x1"), ("h200:4", "4x1")):
        made = plan.plan(dataclasses.replace(config, mesh=mesh), device)
        assert made.fits, device
    assert made.peak <= 0.91 * made.limit and "sampling.waves" in made.parts
    assert made.tokens == 512 * config.rollouts * 4096 and made.steps == 90
    assert made.likely > 2 * made.seconds and made.shapes[1] == 5
    pixels = {"fair_qwen2_5_vl_7b": 10752 * 14**2, "fairmedgemma_4b": 16384 * 14**2}[name]
    assert made.preparing == pytest.approx(512 * pixels * 0.06e-6) and made.preparing < made.likely
    text = io.StringIO()
    tables.show(made, Console(file=text, width=160))
    assert "for each of at most 4 sizes of prompts" in text.getvalue() and "s; 1 keep up with a step" in text.getvalue()
    hours = 90 * made.seconds / 3600
    assert f"90 steps take at least {hours:,.2f} hours" in text.getvalue() and "verdict: it fits" in text.getvalue()
