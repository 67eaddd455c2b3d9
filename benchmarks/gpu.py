"""What one GPU makes of sampling and of the update at published sizes: ``python benchmarks/gpu.py``.

Eight minutes at most, and a few more with TRL. Qwen2.5-VL-3B and Gemma3-4B in bfloat16 with random weights; prompts of
700 tokens, one image each. Every section is a process of its own with a limit in seconds, so that one that fails or
takes too long costs only its own lines:

* rates: bytes per second of a copy, and FLOP per second of a bfloat16 matrix product, as measured here;
* decode: one token of 64 and of 128 rows (8 to a prompt), against the time that the copy rate gives for reading the
  weights of the decoder, the prompts' keys and values, and the mean of the completions' own;
* update: one ``learner.policy_step``, its FLOPs against the measured product (6 per weight and token, and attention, of
  prompts once and of completions; what is computed twice to save memory counts once), and its peak memory against the
  plan before a run (``fairgrpo_jax.plan``);
* step: a whole step by the functions of the training loop: 64 prompts with images of two sizes, 5 completions each of
  up to 1,024 tokens, in two waves and two sizes of prompts. A few hundred tokens of the vocabulary count as end tokens,
  so that completions of a model with random weights have geometric lengths, prompts leave early and caches grow.
  Throughput is also given as EasyR1 counts it: tokens of all samples, prompts included, over the seconds of the step
  and the devices; its published figures (Geometry3k, 512 x 5 samples, 8 H100) are 1,600 to 2,000 for Qwen2.5-VL-7B and
  1,800 for 3B;
* attention: values and gradients of the kernel against plain JAX, as errors against plain JAX in float32;
* trl: a whole step of ``step.py`` against TRL, at the size of Qwen2.5-VL-3B, if ``--trl-python`` has torch and trl.

``--toy`` runs the same at tiny sizes on whatever device there is.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any


os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import gpu_attention  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import step as steps  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from fairgrpo_jax import (  # noqa: E402
    batches,
    config as options,
    estimators,
    fairness,
    grouping,
    learner,
    mesh,
    models,
    rollout,
    train,
)
from fairgrpo_jax.models import gemma3, qwen2_5_vl  # noqa: E402
from fairgrpo_jax.plan import cost, footprint  # noqa: E402


# Seconds after which a section is stopped; without the last, which is asked for, eight minutes. Most of a section is
# compiling: on an H200 the updates took 48 and 79 in all, and sampling more than 80.
SECTIONS = {
    "rates": 15,
    "decode qwen": 85,
    "decode gemma": 85,
    "update qwen": 60,
    "update gemma": 85,
    "step qwen": 95,
    "attention": 55,
    "trl": 200,
}
AIMS = {"decode": 0.60, "update": 0.45}
REPEATS = 5
OPTIM = options.Optim(lr=1e-6, warmup_steps=0, schedule="constant", weight_decay=0.0)

# What the published config.json files say, as far as it decides the shapes.
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
        "eos_token_id": 151645,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "hidden_act": "silu",
        },
    },
    "gemma": {
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of everything but the models."""

    rows: tuple[int, ...] = (64, 128)
    group: int = 8
    prompt: int = 700
    side: int = 448  # of the images of Qwen, in pixels
    tokens: int = 128
    copied: int = 2**31  # numbers of a copy
    matrix: int = 8192
    step: tuple[int, int, int] = (64, 5, 1024)  # prompts, rollouts and tokens of a whole step
    sides: tuple[int, int] = (504, 756)  # of its images, half of the prompts each
    mean: int = 400  # tokens of its completions


TOY = Scale(
    rows=(4,), group=2, prompt=84, side=32, tokens=8, copied=2**16, matrix=64, step=(8, 2, 24), sides=(32, 48), mean=8
)


def main() -> None:
    """Runs all sections and prints, or runs one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="an interpreter with torch and trl")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on any device")
    parser.add_argument("--only", default="", help="sections whose name contains this, beside the rates")
    parser.add_argument("--json", type=pathlib.Path, help="writes every figure here")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.section:
        scale = TOY if chosen.toy else Scale()
        kind, _, model = chosen.section.partition(" ")
        found = whole_step(chosen) if kind == "trl" else BODIES[kind](scale, *filter(None, [model]), toy=chosen.toy)
        chosen.json.write_text(json.dumps(found))
        return
    found = {}
    console = Console(width=132)
    with console.status("") as status, tempfile.TemporaryDirectory() as folder:
        for section, limit in SECTIONS.items():
            if section == "rates" or chosen.only in section:
                status.update(section)
                found[section] = run(section, limit, pathlib.Path(folder) / "found.json", chosen)
    console.print(table(found))
    for section, made in found.items():
        if "said" in made:
            console.print(f"{section}: {made['said']}", markup=False)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))
    sys.exit(any(made.get("failed", False) for made in found.values()))


def run(section: str, limit: int, path: pathlib.Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """What a section found, in a process of its own."""
    command = [sys.executable, __file__, "--section", section, "--json", str(path), *["--toy"] * chosen.toy]
    command += ["--trl-python", chosen.trl_python] if chosen.trl_python else []
    begun = time.perf_counter()
    try:
        ended = subprocess.run(command, timeout=limit * (10 if chosen.toy else 1), capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return {"said": f"stopped after {limit} s", "failed": True}
    if ended.returncode:
        return {"said": ended.stderr.strip()[-1500:], "failed": True}
    return json.loads(path.read_text()) | {"seconds": time.perf_counter() - begun}


def table(found: dict[str, dict]) -> Table:
    """The lines of all sections; shares are of the measured rates."""
    out = Table(title="One device, as measured")
    for column in ("section", "what", "measured", "share", "aim"):
        out.add_column(column, justify="left" if column in ("section", "what") else "right")
    rates = found["rates"]
    if "copy" in rates:
        out.add_row("rates", rates["device"], f"{rates['copy'] / 1e9:,.0f} GB/s", "", "")
        out.add_row("", "matrix product, bfloat16", f"{rates['matmul'] / 1e12:,.1f} TFLOP/s", "", "")
    for section, made in found.items():
        for name, figures in made.get("lines", {}).items():
            if "bytes" in figures and "copy" in rates:
                figures["share"] = figures["bytes"] / rates["copy"] / figures["seconds"]
            if "flops" in figures and "matmul" in rates:
                figures["share"] = figures["flops"] / rates["matmul"] / figures["seconds"]
            share = f"{figures['share']:.1%}" if "share" in figures else ""
            aimed = {"bytes", "flops"} & figures.keys() and section.split()[0] in AIMS
            out.add_row(section, name, figures["text"], share, f"{AIMS[section.split()[0]]:.0%}" if aimed else "")
    return out


# ---- sections --------------------------------------------------------------------------------------------------------


def rates(scale: Scale, *, toy: bool) -> dict[str, Any]:
    """Bytes and operations per second of a copy and of a product."""
    x = jnp.zeros(scale.copied, jnp.bfloat16)
    copy = seconds(jax.jit(lambda x: x + 1), x)
    a = jnp.ones((scale.matrix, scale.matrix), jnp.bfloat16)
    product = seconds(jax.jit(lambda a, b: a @ b), a, a)
    kind = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    return {"device": kind, "copy": 2 * x.nbytes / copy, "matmul": 2 * scale.matrix**3 / product}


def decode(scale: Scale, name: str, *, toy: bool) -> dict[str, Any]:
    """Seconds of one token of all rows: a rollout of T tokens less one of a single token."""
    config, params = model(name, toy)
    lines = {}
    for rows in scale.rows:
        prompt = prompts(config, rows // scale.group, scale)
        params = rollout.sampler_params(params)

        def roll(params: Any, prompt: models.Prompt, tokens: int) -> Any:
            key = jax.random.key(0)
            return rollout.sample(
                params, prompt, key, architecture=config, num_rollouts=scale.group, max_new_tokens=tokens
            ).tokens

        whole, first = (seconds(roll, params, prompt, tokens) for tokens in (scale.tokens, 1))
        each = (whole - first) / (scale.tokens - 1)
        kept = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
        held = prompt.valid.sum().item() + rows * scale.tokens / 2
        lines[f"{rows} rows"] = {
            "seconds": each,
            "bytes": weight_bytes(params) + kept * held,
            "text": f"{rows / each:,.0f} tokens/s, {each * 1e3:.2f} ms a step, prompts {first * 1e3:.0f} ms",
        }
    return {"lines": lines}


def update(scale: Scale, name: str, *, toy: bool) -> dict[str, Any]:
    """Seconds, operations and memory of one update."""
    config, params = model(name, toy)
    P, G, T = scale.rows[0] // scale.group, scale.group, scale.tokens
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(7, 500, (P, G, T)), jnp.int32)
    batch = learner.PolicyBatch(
        prompt=prompts(config, P, scale),
        tokens=tokens,
        mask=jnp.ones(tokens.shape, bool),
        sampler_logprobs=jnp.zeros(tokens.shape),
        advantages=jnp.asarray(rng.normal(size=(P, G)), jnp.float32),
    )
    moments = learner.fresh_moments(params, optim=OPTIM, steps=1)
    state = learner.TrainState(params, moments, jnp.int32(0), estimators.Memory(fairness.init(1, 1, G, history=None)))
    state, batch = jax.device_put((state, batch), jax.devices()[0])
    static = dict(architecture=config, update=options.Update(), optim=OPTIM, temperature=1.0, steps=1)
    spent = []
    for _ in range(1 + REPEATS):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(learner.policy_step(state, [batch], **static))
        spent.append(time.perf_counter() - begun)
    took = statistics.median(spent[1:])
    lines: dict[str, dict[str, Any]] = {
        f"{P} x {G} x {T}": {
            "seconds": took,
            "flops": flops(config, state.params, batch),
            "text": f"{P * G * T / took:,.0f} tokens/s, {took:.3f} s, first {spent[0]:.0f} s",
        }
    }
    peak, plan = peak_bytes(), planned(config, state, batch)
    text = "not reported by this device" if peak is None else f"{peak / 2**30:.1f} of {plan / 2**30:.1f} GiB planned"
    lines["peak memory"] = {"peak": peak, "plan": plan, "text": text}
    if peak is not None:
        lines["peak memory"]["share"] = peak / plan
    return {"lines": lines}


def attention(scale: Scale, *, toy: bool) -> dict[str, Any]:
    """The errors of the kernels."""
    configs = {name: tiny(name) if toy else models.read_config(PUBLISHED[name]) for name in PUBLISHED}
    return gpu_attention.errors_of(configs, group=scale.group, tokens=scale.tokens, prompt=scale.prompt)


def step(scale: Scale, name: str, *, toy: bool) -> dict[str, Any]:
    """Seconds of a whole step in waves, buckets and micro-batches, and tokens a second as EasyR1 counts them."""
    config, params = model(name, toy)
    ends = np.linspace(1, config.vocab_size - 1, config.vocab_size // scale.mean).astype(int)
    banned = np.setdiff1d(config.banned_ids, ends)
    config = dataclasses.replace(config, eos_ids=tuple(ends.tolist()), banned_ids=tuple(banned.tolist()))
    P, G, T = scale.step
    tower, merge = config.vision, config.vision.spatial_merge_size**2
    patches = [(side // tower.patch_size) ** 2 for side in scale.sides]
    lengths = [scale.prompt // 4 + count // merge for count in patches]
    largest = dict(length=lengths[1], num_patches=patches[1])
    parts = [packed(config, P // 2, length, side, **largest) for length, side in zip(lengths, scale.sides, strict=True)]
    prompt = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    settings = options.Config(
        prompts=P,
        rollouts=G,
        data=options.Data(buckets=2, prompt_length=lengths[1], num_patches=patches[1]),
        sampling=options.Sampling(max_new_tokens=T, waves=2),
        update=options.Update(accumulation=P // 4),
        optim=OPTIM,
    )
    ladder = tuple(batches.Size(*pair) for pair in zip(lengths, patches, strict=True))
    encoder = batches.Encoder(
        settings.data, config, None, ("d",), grouping.vocabulary([{}]), dtype="bfloat16", ladder=ladder
    )
    devices = mesh.make("1x1")
    lines: dict[str, dict[str, Any]] = {}
    with jax.set_mesh(devices):
        params = jax.device_put(params, mesh.shardings(params, devices))
        moments = learner.fresh_moments(params, optim=OPTIM, steps=1)
        memory = estimators.Memory(fairness.init(1, 1, G, history=None))
        placed = jax.device_put((np.int32(0), memory), mesh.whole(devices))  # or the second step compiles again
        state = learner.TrainState(params, moments, *placed)
        del params, moments
        for number in range(2):
            begun = time.perf_counter()
            copy, key = rollout.sampler_params(state.params), jax.random.key(number)
            drawn = train.sample(copy, prompt, key, settings, encoder, devices)
            del copy
            sampled = time.perf_counter()
            advantages = np.random.default_rng(number).normal(size=(P, G)).astype(np.float32)
            batch = learner.PolicyBatch(prompt, drawn.tokens, drawn.mask, drawn.logprobs, advantages)
            state, _ = train.update(state, batch, settings, encoder, devices, learner.reference)
            jax.block_until_ready(state.params)
            ended = time.perf_counter()
            own, whole = int(drawn.mask.sum()), int(drawn.mask.sum() + G * prompt.valid.sum())
            share = own / (G * int(drawn.steps.sum()))
            spent = {"seconds": ended - begun, "rollout": sampled - begun, "update": ended - sampled}
            rate = whole / spent["seconds"]
            lines["the first, which compiles" if number == 0 else f"{P} x {G} x {T}"] = spent | {
                "throughput": rate,
                "text": f"{spent['seconds']:.1f} s: rollout {spent['rollout']:.1f}, update {spent['update']:.1f}",
            }
    lines["as EasyR1 counts"] = {"text": f"{rate:,.0f} tokens/s, {P * G / spent['seconds']:.2f} samples/s"}
    lines["rows that were alive"] = {"text": f"{share:.0%} of {own / (P * G):.0f} tokens a completion"}
    return {"lines": lines}


BODIES: dict[str, Callable[..., dict]] = {
    "rates": rates,
    "decode": decode,
    "update": update,
    "step": step,
    "attention": attention,
}


def whole_step(chosen: argparse.Namespace) -> dict[str, Any]:
    """A step of each trainer alone on the device, on the weights of one folder."""
    if not chosen.trl_python:
        return {"said": "skipped: no --trl-python"}
    if subprocess.run([chosen.trl_python, "-c", "import torch, trl"], capture_output=True).returncode:
        return {"said": f"skipped: {chosen.trl_python} cannot import torch and trl"}
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    size = steps.SIZES[1] if chosen.toy else steps.Size("Qwen2.5-VL-3B", 2048, 36, 448)
    architecture = steps.architecture(size)
    if not chosen.toy:
        architecture = real_sized(architecture[0]), architecture[1]
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    lines, held = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        task = {"dtype": "bfloat16", "device": device, "rollouts": 2 if chosen.toy else 8, "remat": True}
        spec = steps.write(size, folder, architecture, tokens=4 if chosen.toy else 64, **task)
        for trainer, python in (("ours", sys.executable), ("TRL", chosen.trl_python)):
            worker = steps.Worker(trainer, python, spec, folder / f"{trainer}.log", {})
            try:
                held[trainer] = worker.read()
                for _ in range(2 if chosen.toy else 4):
                    worker.step()
            finally:
                worker.close()
            took = steps.middle(worker, "wall")
            memory = worker.steps[-1]["memory"]
            text = f"{took:.2f} s, first {worker.steps[0]['wall']:.0f} s"
            text += "" if memory is None else f", peak {memory / 2**30:.1f} GiB"
            lines[trainer] = {"seconds": took, "memory": memory, "text": text}
    steps.require_same(held, apart=0.1)
    lines["TRL, times ours"] = {"text": f"{lines['TRL']['seconds'] / lines['ours']['seconds']:.2f}"}
    return {"lines": lines}


# ---- models and batches ----------------------------------------------------------------------------------------------


def tiny(name: str) -> Any:
    """The tiny model of a family."""
    return qwen2_5_vl.tiny() if name == "qwen" else gemma3.tiny()


def model(name: str, toy: bool) -> tuple[Any, dict]:
    """Config and random bfloat16 parameters; no token ends a completion."""
    config = tiny(name) if toy else models.read_config(PUBLISHED[name])
    config = dataclasses.replace(config, banned_ids=(*config.banned_ids, *config.eos_ids))
    init = jax.jit(lambda key: models.family(config).init(config, key, jnp.bfloat16))
    return config, jax.block_until_ready(init(jax.random.key(0)))


def real_sized(config: Any) -> Any:
    """The shapes of the published model with the token ids of the tiny tokenizer."""
    real = models.read_config(PUBLISHED["qwen"])
    names = "eos_ids", "pad_id", "banned_ids", "image_id", "video_id", "vision_start_id", "vision_end_id"
    return dataclasses.replace(real, **{name: getattr(config, name) for name in names})


def prompts(config: Any, count: int, scale: Scale) -> models.Prompt:
    """Prompts of one image and text, on the device."""
    return jax.device_put(packed(config, count, scale.prompt, scale.side), jax.devices()[0])


def packed(config: Any, count: int, tokens: int, side: int, **sizes: int) -> models.Prompt:
    """Prompts of one image and text, on the host; ``sizes`` as in ``models.pack``."""
    rng = np.random.default_rng(0)
    tower = config.vision
    side = (tower.image_size or side) // tower.patch_size
    image = [config.vision_start_id, *[config.image_id] * (side // tower.spatial_merge_size) ** 2, config.vision_end_id]
    ids = rng.integers(7, 500, (count, tokens))
    ids[:, 4 : 4 + len(image)] = image
    inputs: dict[str, np.ndarray] = {"input_ids": ids}
    if tower.image_size:
        inputs["pixel_values"] = rng.normal(size=(count, 3, tower.image_size, tower.image_size)).astype(np.float32)
    else:
        inputs["pixel_values"] = rng.normal(size=(count * side**2, tower.patch_dim)).astype(np.float32)
        inputs["image_grid_thw"] = np.array([[1, side, side]] * count)
    return models.pack(inputs, config, **sizes, dtype=jnp.bfloat16)


# ---- figures ---------------------------------------------------------------------------------------------------------


def seconds(function: Callable, *arguments: Any) -> float:
    """The median of some calls, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    spent = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


def matrices(tree: Any) -> int:
    """Numbers in the kernels of a part of the parameters."""
    return sum(x.size for path, x in jax.tree.leaves_with_path(tree) if path[-1].key == "kernel")


def weight_bytes(params: dict) -> int:
    """Bytes that a token reads of the decoder and its head; the embedding is the head where both are one."""
    head = params.get("head", params["embedding"])
    return sum(x.nbytes for x in jax.tree.leaves((params["layers"], params["norm"], head)))


def flops(config: Any, params: dict, batch: learner.PolicyBatch) -> float:
    """Operations of an update that computes nothing twice: three times those of the forward pass."""
    P, G, T = batch.tokens.shape
    Tp, tower, vision = batch.prompt.tokens.shape[1], config.vision, batch.prompt.vision
    patches = 0 if vision is None else vision.patches.shape[1]
    layers = 2 * matrices(params["layers"]) * P * (Tp + G * T)
    scores = 4 * config.num_layers * config.num_heads * config.head_dim * P * (Tp**2 / 2 + G * T * (Tp + T / 2))
    head = 2 * config.vocab_size * config.hidden_size * P * G * T
    blocks = 2 * matrices(params["vision"]["blocks"]) * P * patches
    merged = patches // tower.spatial_merge_size**2
    side = {part: params["vision"].get(part, {}) for part in ("patch", "merger")}
    ends = (
        2 * P * (matrices(side["patch"]) * patches + matrices((side["merger"], params.get("projector", {}))) * merged)
    )
    window = min((tower.window_size // tower.patch_size) ** 2 or patches, patches)
    full = len(tower.full_blocks) if tower.window_size else tower.depth
    seen = full * patches + (tower.depth - full) * window
    return 3.0 * (layers + scores + head + blocks + ends + 4 * tower.hidden_size * P * patches * seen)


def planned(config: Any, state: learner.TrainState, batch: learner.PolicyBatch) -> int:
    """Bytes of one device that ``fairgrpo_jax.plan`` foretells for an update."""
    P, G, T = batch.tokens.shape
    vision, dtype = batch.prompt.vision, state.params["embedding"].dtype.name
    patches = 0 if vision is None else vision.patches.shape[1]
    layout = footprint.Layout(
        sizes=cost.Sizes(prompts=P, rollouts=G, prompt=batch.prompt.tokens.shape[1], completion=T, patches=patches),
        mesh=(1, 1),
        compute=dtype,
        sampler=dtype,
        cache=dtype,
    )
    held = footprint.state(state.params, layout), footprint.update(config, state.params, layout)
    return sum(sum(part.values()) for part in held)


def peak_bytes() -> int | None:
    """Most bytes that were ever in use on the device; None where it does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


if __name__ == "__main__":
    main()
