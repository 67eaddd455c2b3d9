import io
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from fairgrpo_jax import tracking
from fairgrpo_jax.tracking import progress as shown


def plain(every=20, total=100, **options):
    out = io.StringIO()
    console = Console(file=out, width=40)  # narrow: plain lines must not be wrapped
    return tracking.Progress(total, "training", every=every, console=console, **options), out


# ---- MetricsLog


def test_rows_come_back_as_they_were_logged(tmp_path):
    with tracking.MetricsLog(tmp_path / "new" / "metrics.jsonl") as log:
        log.append("train", 3, {"a": 1, "b": np.float32(0.1), "c": jnp.float32(2.5), "d": jnp.bfloat16(0.5)})
        log.append("eval", 3, {"nan": float("nan"), "inf": np.float64("-inf"), "flag": True, "count": np.int32(7)})
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"kind": "train", "step": 3, "a": 1, "b": 0.1, "c": 2.5, "d": 0.5}'
    assert json.loads(lines[1]) == {"kind": "eval", "step": 3, "nan": None, "inf": None, "flag": 1, "count": 7}
    rows = tracking.read_metrics(tmp_path / "new" / "metrics.jsonl")
    assert rows[0] == {"kind": "train", "step": 3, "a": 1, "b": 0.1, "c": 2.5, "d": 0.5}
    assert math.isnan(rows[1]["nan"]) and math.isnan(rows[1]["inf"])
    assert tracking.read_rows(tmp_path / "new" / "metrics.jsonl")[1]["nan"] is None


def test_float32_keeps_every_bit(tmp_path):
    values = np.array([1 / 3, 1e-30, 16777217.0, -2.7182817], np.float32)
    with tracking.MetricsLog(tmp_path / "m.jsonl") as log:
        log.append("train", 1, {str(i): value for i, value in enumerate(values)})
    row = tracking.read_metrics(tmp_path / "m.jsonl")[0]
    np.testing.assert_array_equal(np.array([row[str(i)] for i in range(4)], np.float32), values)


@pytest.mark.parametrize("value", ["0.5", None, np.ones(1), np.ones((2, 2)), [1.0], 1j, object()])
def test_what_is_no_number_is_refused_by_name(tmp_path, value):
    with tracking.MetricsLog(tmp_path / "m.jsonl") as log, pytest.raises(ValueError, match="reward/mean.*one number"):
        log.append("train", 1, {"reward/mean": value})
    assert tracking.read_metrics(tmp_path / "m.jsonl") == []


@pytest.mark.parametrize("name", ["kind", "step"])
def test_the_rows_own_fields_cannot_be_overwritten(tmp_path, name):
    with tracking.MetricsLog(tmp_path / "m.jsonl") as log, pytest.raises(ValueError, match=name):
        log.append("train", 1, {name: 1})


def write(path, steps=(1, 2, 3)):
    with tracking.MetricsLog(path) as log:
        for kind in ("warmup", "train", "eval"):
            for step in steps:
                log.append(kind, step, {"x": step})


def test_truncation_forgets_what_a_checkpoint_has_not_seen(tmp_path):
    write(tmp_path / "m.jsonl")
    with tracking.MetricsLog(tmp_path / "m.jsonl") as log:
        assert log.truncate_after(train=1, eval=-1) == 5
        log.append("train", 2, {"x": 20})
    rows = [(row["kind"], row["step"], row["x"]) for row in tracking.read_metrics(tmp_path / "m.jsonl")]
    assert rows == [("warmup", 1, 1), ("warmup", 2, 2), ("warmup", 3, 3), ("train", 1, 1), ("train", 2, 20)]


def test_truncation_leaves_the_kept_lines_byte_for_byte(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"kind":"train",  "step":1,"x":1e-3}\n{"kind":"train","step":2}\n')
    with tracking.MetricsLog(path) as log:
        log.truncate_after(train=1)
    assert path.read_text() == '{"kind":"train",  "step":1,"x":1e-3}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.mark.parametrize(
    "tail", ['{"kind": "tr', '{"kind": "train", "step": 4}', '{"kind": "≤'.encode()[:-1], b"\x00\xff"]
)
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
    path = tmp_path / "m.jsonl"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole + (tail if isinstance(tail, bytes) else tail.encode()))
    assert len(tracking.read_metrics(path)) == 9
    with tracking.MetricsLog(path) as log:
        assert path.read_bytes() == whole
        log.append("train", 4, {"x": 4})
    assert len(tracking.read_metrics(path)) == 10


def test_a_damaged_line_inside_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    for broken in ('{"kind": "tr', "[1]"):
        path.write_text('{"kind": "train", "step": 1}\n' + broken + '\n{"kind": "train", "step": 3}\n')
        for use in (tracking.read_metrics, tracking.MetricsLog):
            with pytest.raises(ValueError, match="line 2.*wanted a JSON object"):
                use(path)


def test_rows_survive_kill_9(tmp_path):
    code = (
        "import os, signal, sys\nfrom fairgrpo_jax import tracking\n"
        "log = tracking.MetricsLog(sys.argv[1])\n"
        "for step in range(5): log.append('train', step, {'x': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.jsonl")], cwd=root)
    assert done.returncode == -9
    assert [row["step"] for row in tracking.read_metrics(tmp_path / "m.jsonl")] == list(range(5))


# ---- Progress


def test_without_a_terminal_a_line_every_so_often(tmp_path):
    progress, out = plain(every=250, total=1000)
    with progress:
        for step in range(1, 1001):
            progress.phase("rollout")
            progress.update(step, {"reward/mean": step / 1000, "advantage/max_abs": np.float32(14.26), "secret": 1})
    lines = out.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == [f"training {n}/1000" for n in (250, 500, 750, 1000)]
    assert lines[1].endswith("reward 0.500 · max |A| 14.3")
    assert "rollout" not in out.getvalue() and "secret" not in out.getvalue()


def test_the_last_step_is_always_told(tmp_path):
    progress, out = plain(every=20, total=7)
    with progress:
        for step in range(1, 8):
            progress.update(step, {})
    assert [line.split(" · ")[0] for line in out.getvalue().splitlines()] == ["training 7/7"]


def test_notes_are_printed_once_and_literally():
    progress, out = plain()
    with progress:
        progress.note("compiling [bold]step[/bold] {P} [8, 2]")
    assert out.getvalue() == "training: compiling [bold]step[/bold] {P} [8, 2]\n"


def test_time_left_is_not_frightened_by_a_compilation(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: clock[0])
    progress, out = plain(every=5, total=100)
    with progress:
        for step, seconds in enumerate([60, 2, 2, 2, 2], start=1):
            clock[0] += seconds
            progress.update(step, {})
    # 68 s so far; the median step takes 2 s and 95 are to come: 190 s.
    assert out.getvalue() == "training 5/100 · 1:08, 3:10 left\n"


def test_a_resumed_run_counts_only_its_own_steps(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: clock[0])
    progress, out = plain(every=1, total=100, start=90)
    with progress:
        clock[0] += 3700
        progress.update(91, {})
    assert out.getvalue() == "training 91/100 · 1:01:40, 9:15:00 left\n"


def test_on_a_terminal_one_display_is_redrawn():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=110, legacy_windows=False)
    with tracking.Progress(3, "training", every=1, console=console) as progress:
        for step in (1, 2, 3):
            progress.phase("update")
            progress.update(step, {"reward/mean": 0.25 * step})
        progress.note("written")
    text = out.getvalue()
    assert "3/3" in text and "reward 0.750" in text and "training: written" in text and "✓" in text
    assert "training 1/3" not in text  # no plain lines beside the display


@pytest.mark.parametrize("total,start,every", [(0, 0, 1), (5, 6, 1), (5, -1, 1), (5, 0, 0)])
def test_progress_refuses_nonsense(total, start, every):
    with pytest.raises(ValueError, match=f"total={total}, start={start}, every={every}"):
        tracking.Progress(total, "x", start=start, every=every)


def test_the_line_shows_where_a_step_goes():
    values = {"time/step": 2.0, "time/rollout": 0.8, "time/update": 1.1, "time/data": 0.02, "time/compile": 9.6}
    assert shown._shares(values) == ["rollout 40%", "update 55%", "compiled 10 s"]
    assert shown._shares({"loss": 1.0}) == []


def test_programs_are_counted_as_they_are_compiled():
    phases = tracking.Phases()
    jax.block_until_ready(jax.jit(lambda x: x * 3 + 17)(np.arange(5)))
    assert phases.collect()["speed/programs"] >= 1
    assert phases.collect()["speed/programs"] == 0
