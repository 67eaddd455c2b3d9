"""Compiling for devices that are not there: every way in which it can end, and what is read from compiled programs."""

import dataclasses
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fairgrpo_jax import chunking, config as options, mesh, mesh as meshes, policy, processes, rollout
from fairgrpo_jax.models import text
from fairgrpo_jax.plan import ahead, devices, gathers


CONFIG = options.Config(
    mesh="4x1",
    prompts=8,
    rollouts=2,
    data=options.Data(prompt_length=24, num_patches=32),
    sampling=options.Sampling(max_new_tokens=6),
)
FITS = ahead.Outcome(program="update", status="fits", needed=2 << 30, available=4 << 30, arguments=1, findings=("a",))


def child(code, timeout=60.0):
    """How a process that runs ``code`` ends."""
    return ahead.finish("update", [sys.executable, "-c", code], '{"a": 1}', timeout=timeout)


def test_a_child_that_succeeds():
    report = json.dumps(dataclasses.asdict(FITS))
    code = f"import json, sys; assert json.load(sys.stdin) == {{'a': 1}}; print('chatter'); print({report!r})"
    assert child(code) == FITS
    assert FITS.words == "update: fits, 2.00 GiB of 4.00 GiB"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_compiler_that_crashes(number):
    outcome = child(f"import os; print('half', flush=True); os.kill(os.getpid(), {int(number)})")
    assert (outcome.status, outcome.message) == ("compiler crashed", number.name)
    assert f"the compiler itself crashed ({number.name})" in outcome.words


def ends(pid, within=20.0):
    """Whether a process, which may be nobody's child by now, ends soon."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_compiler_that_takes_too_long(tmp_path):
    own = tmp_path / "grandchild"
    code = "import pathlib, subprocess, time; child = subprocess.Popen(['sleep', '60']); "
    code += f"pathlib.Path({str(own)!r}).write_text(str(child.pid)); time.sleep(60)"
    began = time.monotonic()
    outcome = child(code, timeout=2.0)
    assert outcome.status == "timeout" and time.monotonic() - began < 30
    assert outcome.words == "update: not compiled within 2 s; allow more with --timeout"
    assert ends(own.read_text())  # its own children end with it


def test_a_compiler_that_fails():
    outcome = child("raise KeyError('no such lowering')")
    assert outcome.status == "compile error" and outcome.message == "exit status 1: KeyError: 'no such lowering'"
    assert child("pass").words == "update: compile error: exit status 0: it said nothing"


def test_a_compiler_ends_with_its_parent(tmp_path):
    """Also where the parent was killed and could not end it."""
    own = tmp_path / "own"
    code = "import os, pathlib, time; from fairgrpo_jax import processes; processes.end_with_parent(); "
    code += f"own = pathlib.Path({str(own)!r}); new = own.with_suffix('.new'); new.write_text(str(os.getpid())); "
    code += "new.rename(own); time.sleep(60)"
    run = f"ahead.finish('', [sys.executable, '-c', {code!r}], '', timeout=60)"
    parent = f"import sys; from fairgrpo_jax.plan import ahead; {run}"
    process = subprocess.Popen([sys.executable, "-c", parent])
    while not own.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert ends(own.read_text())


def test_the_process(monkeypatch, capsys):
    """A request in, an outcome out, and an eye on who asked."""
    called = []
    monkeypatch.setattr(processes, "end_with_parent", lambda: called.append("watched"))
    monkeypatch.setattr(ahead, "compile_one", lambda *given, **folders: called.append((*given, folders)) or FITS)
    request = dict(config=options.to_dict(CONFIG), device="v5e:2x2", program="update", cache="somewhere", dump=None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    ahead.main()
    folders = dict(cache=pathlib.Path("somewhere"), dump=None)
    assert called == ["watched", (CONFIG, devices.parse("v5e:2x2", 4), "update", folders)]
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(dataclasses.asdict(FITS)))


def test_programs_of_a_missing_package():
    """A real child, which finds no compiler: it looks for a package that nowhere is."""
    code = "from fairgrpo_jax.plan import ahead; ahead.WHEELS['tpu'] = ('plan-tpu', ('no-libtpu',)); ahead.main()"
    request = dict(config=options.to_dict(CONFIG), device="v5e:2x2", program="decode", cache=None, dump=None)
    outcome = ahead.finish("decode", [sys.executable, "-c", code], json.dumps(request), timeout=120)
    assert outcome.status == "not installed"
    assert "wants the package no-libtpu: pip install 'fairgrpo_jax[plan-tpu]'" in outcome.words


def test_a_device_without_room():
    lowered = jax.jit(lambda x: jnp.sort(x) + 1).lower(jax.ShapeDtypeStruct((1000,), jnp.float32))
    fits = ahead.examine("update", lowered, [2], 1 << 20)
    over = ahead.examine("update", lowered, [2], 3999)
    assert fits.status == "fits" and fits.arguments == 4000 and fits.needed and fits.needed >= 4000
    assert over.status == "out of memory" and over.available == 3999
    assert over.words == "update: does not fit, 0.00 GiB of 0.00 GiB"


class Failing:
    """A program that the compiler refuses."""

    def __init__(self, words):
        self.words = words

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.words)


def test_a_compiler_that_refuses():
    """The words are those of libtpu 0.0.42.1."""
    words = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (41.89G) exceeds "
        "available HBM (15.75G)."
    )
    lowered: jax.stages.Lowered = Failing(words)  # type: ignore[assignment]
    outcome = ahead.examine("update", lowered, [2], 1 << 40)
    assert (outcome.status, outcome.arguments) == ("out of memory", None)
    assert outcome.words == "update: does not fit; the compiler stops at 41.89 GiB of 15.75 GiB"
    lowered = Failing("INTERNAL: Mosaic failed\n to compile")  # type: ignore[assignment]
    outcome = ahead.examine("update", lowered, [2], 1 << 40)
    assert outcome.words == "update: compile error: INTERNAL: Mosaic failed to compile"


def test_a_text_that_cannot_be_read_is_taken_from_the_compiler(tmp_path):
    """As of libtpu 0.0.52 and jaxlib 0.10.2, whose words these are."""

    class Unread:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: async-update instruction should have 1 operands but sees 3")

    compiled: Any = Unread()
    for number, name in enumerate(("0.copy.after_codegen", "1.jit.after_codegen", "2.jit.before_optimizations")):
        (tmp_path / f"{name}.txt").write_text(name)
        os.utime(tmp_path / f"{name}.txt", (number, number))
    assert ahead._text(compiled, tmp_path) == "1.jit.after_codegen"
    for nowhere in (None, tmp_path / "empty"):
        with pytest.raises(jax.errors.JaxRuntimeError, match="async-update"):
            ahead._text(compiled, nowhere)


def compiled_text(program, config=CONFIG, architecture=None):
    simulated = mesh.make(config.mesh)
    with jax.set_mesh(simulated):
        return (
            ahead.programs(config, architecture or text.tiny("qwen2"), simulated)[program]().compile().as_text() or ""
        )


def test_gathers_of_the_programs(monkeypatch):
    """No program gathers what it should not; without the copy that a rollout is given, it would."""
    copy = compiled_text("copy")
    assert gathers.findings("copy", copy, [2]) == []
    assert "all-gather" in copy
    for program in ("prompt", "decode"):
        given = compiled_text(program)
        assert gathers.findings(program, given, [2]) == gathers.findings("update", given, [2]) == []
    monkeypatch.setattr(ahead.meshes, "gathered", lambda tree, mesh, tensor: meshes.shardings(tree, mesh))
    monkeypatch.setattr(rollout.mesh, "gather", lambda tree, tensor: tree)
    config = dataclasses.replace(CONFIG, sampling=options.Sampling(max_new_tokens=7))
    assert "all-gather" in compiled_text("decode", config) and "all-gather" not in given


def test_the_update_gathers_layer_by_layer():
    assert gathers.findings("update", compiled_text("update"), [2]) == []


def test_weights_split_along_tensor_are_not_gathered():
    config = dataclasses.replace(CONFIG, mesh="2x2", sampling=options.Sampling(max_new_tokens=6, weights="tensor"))
    text = compiled_text("decode", config)
    assert gathers.findings("decode", text, [2]) == [] and "all-reduce" in text
    assert "f32[64,48]" in text and "f32[64,96]" not in text  # a device's half of a layer's gate


def test_a_gather_that_overlaps_a_loop_is_not_inside_it():
    """A gather may begin before a loop, run beside its work and end behind it: three times in the text."""
    gather = "bf16[3,1536,256] all-gather(%p), channel_id=9, dimensions={1}"
    program = f"""
%start (p: bf16[3,96,256]) -> bf16[3,1536,256] {{
  ROOT %a.1 = {gather}
}}
%beside (p: bf16[3,96,256]) -> bf16[3,1536,256] {{
  ROOT %a.2 = {gather}
}}
%body (x: f32[8]) -> f32[8] {{
  %f.1 = bf16[3,1536,256] fusion(%x), kind=kCustom, calls=%beside
}}
ENTRY %main (p: bf16[3,96,256]) -> f32[8] {{
  %f.0 = bf16[3,1536,256] fusion(%p), kind=kCustom, calls=%start
  ROOT %w = f32[8] while(%x), condition=%until, body=%body
}}
"""
    assert gathers.findings("decode", program, [3]) == []
    assert gathers.findings("update", program, [3]) == [
        "update gathers [3, 1536, 256] whole, outside the loop over layers (1 times)"
    ]
    inside = program.replace("%f.0 = bf16[3,1536,256] fusion(%p), kind=kCustom, calls=%start", "")
    inside = inside.replace(f"ROOT %a.1 = {gather}", "")
    assert len(gathers.findings("decode", inside, [3])) == 1 and gathers.findings("update", inside, [3]) == []


def test_results_are_kept_by_program_topology_and_versions(monkeypatch, tmp_path):
    target = devices.parse("h100", 4)
    config = dataclasses.replace(CONFIG, rollouts=3)
    monkeypatch.setattr(ahead, "mesh_of", lambda target, spec: mesh.make(spec))
    monkeypatch.setattr(ahead, "versions", lambda platform: "compiler 1")
    seen = []
    monkeypatch.setattr(ahead, "examine", lambda program, *rest: seen.append(program) or FITS)
    run = lambda now, target=target, cache=tmp_path: ahead.compile_one(now, target, "update", cache=cache)
    first, again = run(config), run(config)
    assert not first.cached and again == dataclasses.replace(first, cached=True) and seen == ["update"]
    assert again.versions == "compiler 1" and again.findings == ("a",)
    run(dataclasses.replace(config, seed=5, name="other"))  # says nothing to the compiler
    assert len(seen) == 1
    run(dataclasses.replace(config, update=options.Update(clip_low=0.1)))
    run(config, target=devices.parse("h200", 4))
    monkeypatch.setattr(ahead, "versions", lambda platform: "compiler 2")
    run(config)
    run(config, cache=None)
    assert len(seen) == 5 and len(list(tmp_path.iterdir())) == 4


def test_programs_are_those_of_the_run():
    """Shapes of what the loop hands over: several updates of a batch need the old policy's log-probabilities."""
    several = dataclasses.replace(CONFIG, update=options.Update(mini_batches=2), model=options.Model(lora_rank=4))
    simulated, architecture = mesh.make("4x1"), ahead.describe(several.model)
    with jax.set_mesh(simulated):
        made = ahead.programs(several, architecture, simulated)
        update, optimizer = made["update"](), made["optimizer"]()
    _, sums, piece, _ = update.args_info[0]
    assert piece.old_logprobs.shape == (4, 2, 6) and piece.prompt.vision.patches.shape == (4, 32, 96)
    assert piece.reference_logprobs is None and sums is None
    state, (gradient, _), *_ = optimizer.args_info[0]
    assert {leaf.donated for leaf in jax.tree.leaves(state)} == {True}
    assert jax.tree.map(lambda x: x.shape, gradient) == jax.tree.map(lambda x: x.shape, update.out_info[0])
    assert architecture.lora_scale == 8.0 and ahead.stages(several) == ahead.PROGRAMS
    short = dataclasses.replace(several, warmup=options.Warmup(steps=0))
    assert ahead.stages(short) == ("copy", "prompt", "decode", "update", "optimizer")


def test_programs_have_the_dtypes_of_the_run():
    """Weights of float32, passes in bfloat16, a sampler in bfloat16 and a reference."""
    config = dataclasses.replace(
        CONFIG,
        model=options.Model(compute="bfloat16"),
        sampling=options.Sampling(max_new_tokens=6, dtype="bfloat16"),
        update=options.Update(beta=0.1),
    )
    simulated, architecture = mesh.make("4x1"), ahead.describe(config.model)
    with jax.set_mesh(simulated):
        made = ahead.programs(config, architecture, simulated)
        copy, prompt, decode, update, optimizer, supervised = (made[name]() for name in ahead.PROGRAMS)
    dtypes = lambda tree: {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
    assert dtypes(copy.args_info[0][0]) == {"float32"} == dtypes(update.args_info[0][0])
    assert dtypes(copy.out_info) == {"bfloat16"} == dtypes(decode.args_info[0][0]) == dtypes(prompt.args_info[0][0])
    assert prompt.args_info[0][1].vision.patches.dtype == jnp.bfloat16
    assert dtypes(decode.args_info[0][2]) == dtypes(decode.args_info[0][4]) == {"bfloat16"}
    assert update.args_info[0][2].reference_logprobs.shape == (8, 2, 6)
    assert dtypes(optimizer.args_info[0][0].params) == dtypes(optimizer.args_info[0][1][0]) == {"float32"}
    for lowered in (update, supervised):  # a product of hidden states and the MLP's gate
        assert "tensor<64x96xbf16>" in lowered.as_text() and "tensor<64x96xf32>) ->" not in lowered.as_text()


def test_a_step_is_cut_as_on_the_device(monkeypatch, tmp_path):
    """A process that compiles has no such device: it is given the parts that a run would choose there."""
    seen = []
    monkeypatch.setattr(ahead, "mesh_of", lambda target, spec: mesh.make(spec))
    monkeypatch.setattr(ahead, "versions", lambda platform: "compiler 1")
    monkeypatch.setattr(ahead, "examine", lambda *given: FITS)
    programs = ahead.programs
    monkeypatch.setattr(ahead, "programs", lambda config, *rest: seen.append(config) or programs(config, *rest))
    small = dataclasses.replace(devices.parse("h100", 4).kind, memory=1 << 20)
    target = dataclasses.replace(devices.parse("h100", 4), kind=small)
    ahead.compile_one(CONFIG, target, "copy", cache=None)
    architecture = ahead.describe(CONFIG.model)
    tree = policy.shapes(CONFIG.model, architecture)
    assert seen == [chunking.fit(CONFIG, architecture, tree, small.usable)]
    assert chunking.told(seen[0]) == "sampling.waves=2, update.accumulation=2, update.chunks=2"


def test_a_gpu_in_the_compilers_words():
    words = ahead.target_config(devices.KINDS["h200"])
    assert "core_count: 132" in words and "memory_bandwidth: 4800000000000" in words
    assert "cuda_compute_capability { major: 9 minor: 0 }" in words and words.count("{") == words.count("}")
    assert "shared_memory_per_core: 167936" in ahead.target_config(devices.KINDS["a100"])  # 164 KiB
