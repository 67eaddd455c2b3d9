"""The command line as a user meets it: help, list, and one line for everything that is wrong."""

import contextlib
import importlib
import io
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from fairgrpo_jax import commandline, configs, folder, processes, runs, sft, study, train
from tests import covid_fixture


ROOT = Path(__file__).parent.parent
FEW = ["--data.options", "scale=0.02"]  # of the clinic's records


def call(monkeypatch, capsys, *arguments, command=train.train):
    """Exit status and what stood on standard error, in this process."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        commandline.run(command, prog="python -m fairgrpo_jax.train", description=train.__doc__)
    return stopped.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--algorithm", "ppo"], "'ppo'.*Expected one of"),
        (["chest"], "'chest'; wanted one of clinic, clinic_small, covid_blues"),
        (["--optim.lrr", "1"], "Perhaps you meant: --optim.lr"),
        (["--optim.lr", "0"], "optim.lr=0.0; wanted a positive"),
        (["--mesh", "4by1"], "wanted FSDPxTENSOR"),
        (["--mesh", "99999x9"], "got mesh=99999x9, 899991 devices, with [0-9]+ of cpu at hand"),
        (["--data.attributes", "sexx"], r"data.attributes 'sexx', which no record has; wanted .*did you mean 'sex'"),
        (["--data.age-edges"], r"data.age_edges=\(\); wanted at least one age above 0"),
        (["--freeze", "("], "Perhaps you meant: --model.freeze"),
        (["--model.freeze", "("], "model.freeze='\\(' .*; wanted a regular expression"),
        (["--mesh", "3x1"], "=64 on a mesh with 3 devices along fsdp; wanted a multiple of 3, e.g. 66"),
        (["covid_blues", "--data.root", "nowhere"], "COVID-BLUES in nowhere: missing clinical_variables.csv.*github"),
        (["--data.name", "mimic"], "no dataset 'mimic'; known are chexpert, covid_blues, "),
        (["--warmup.run", "nowhere"], "warmup.run=nowhere without a config.json; wanted a run folder"),
        (
            ["--data.prompt-length", "20"],
            "do not fit: derm/.*: 33 tokens .*data.prompt_length=20.*--data.prompt-length 35",
        ),
    ],
)
def test_one_line_says_what_is_wrong_and_what_to_do(monkeypatch, capsys, tmp_path, arguments, named):
    workdir = [] if "nowhere" in arguments[-1:] and "covid_blues" in arguments else ["--workdir", tmp_path / "run"]
    few = FEW if arguments[0].startswith("--") and "--data.name" not in arguments else []
    code, output = call(monkeypatch, capsys, *arguments, *few, *workdir)
    lines = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in output.err
    pytest.raises(ValueError, raise_it, lines[0]).match(named)


def raise_it(text):
    raise ValueError(text)


def test_run_folder_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, output = call(monkeypatch, capsys, *FEW, "--workdir", tmp_path / "file" / "run")
    assert code == 2 and "cannot be written (Not a directory); wanted a writable one: --workdir DIR" in output.err


def test_broken_video_names_dataset_record_and_file(monkeypatch, capsys, tmp_path):
    root = covid_fixture.write(tmp_path / "data")
    for video in (root / "lus_videos").glob("*.mp4"):
        video.write_bytes(video.read_bytes()[:40])
    small = ["--prompts", 2, "--warmup.batch", 2, "--evaluation.batch", 2, "--warmup.steps", 1, "--steps", 1]
    code, output = call(monkeypatch, capsys, "covid_blues", "--data.root", root, "--workdir", tmp_path / "run", *small)
    assert code == 2 and "covid" in output.err.lower() and ".mp4" in output.err and "download it again" in output.err


def test_empty_split_is_refused(monkeypatch, capsys, tmp_path):
    root = covid_fixture.write(tmp_path / "data", patients=1)
    code, output = call(monkeypatch, capsys, "covid_blues", "--data.root", root, "--workdir", tmp_path / "run")
    assert code == 2 and "split of covid_blues has no record" in output.err


def test_interrupted_run_says_that_it_saved(monkeypatch, capsys, tmp_path):
    def command(config, workdir):
        with runs.open_run(config, workdir) as run:
            raise runs.Interrupted(run, 7)

    code, output = call(monkeypatch, capsys, *FEW, "--workdir", tmp_path, command=command)
    assert code == 130 and "stopped after saving update 7" in output.err and "the same command resumes" in output.err


def test_help_teaches(monkeypatch, capsys):
    code, output = call(monkeypatch, capsys, "covid_blues", "--help")
    assert code == 0
    for wanted in (
        "One step, as data",
        "Examples",
        "Options of config 'covid_blues'",
        "--algorithm",
        "--mesh",
        "--data.root",
    ):
        assert wanted in output.out


def test_list_names_every_config_with_a_line(monkeypatch, capsys):
    code, output = call(monkeypatch, capsys, "--list")
    lines = output.out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == configs.names()
    assert all(len(line.split()) > 4 for line in lines)


# That of the others is printed in this process below.
@pytest.mark.parametrize("module", [sft, *(pytest.param(other, marks=pytest.mark.slow) for other in (train, study))])
def test_every_command_has_help_without_starting_anything(module):
    command = [sys.executable, "-m", module.__name__, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (module.__doc__ or "").split("\n")[0].split(":")[0] in result.stdout


def test_default_workdir_tells_configs_apart():
    config = configs.get("clinic")
    first, again = folder.default(config), folder.default(configs.get("clinic"))
    assert first == again and first.parent.name == "outputs" and first.name.startswith("clinic-fair_grpo-1x1-")
    assert folder.default(configs.get("covid_blues")) != first


def fails_with(error):
    def command(config, workdir):
        raise error

    return command


@pytest.mark.parametrize(
    "error, line",
    [
        (FileNotFoundError(2, "No such file or directory", "x.csv"), r"\[Errno 2\] No such file or directory: 'x.csv'"),
        (OSError(36, "File name too long", "a" * 300), "File name too long"),
        (OSError(28, "No space left on device", "evals"), "No space left on device: .*; make room, and the same"),
        (RuntimeError("RESOURCE_EXHAUSTED: [a\nb] No space left on device [source]"), "No space left on device: RES"),
        (FloatingPointError("loss is nan"), "loss is nan"),
        (ImportError("x.dcm needs a decoder: pip install python-gdcm"), "x.dcm needs a decoder"),
    ],
)
def test_errors_of_the_machine_are_one_line(monkeypatch, capsys, error, line):
    code, output = call(monkeypatch, capsys, command=fails_with(error))
    assert code == 2 and len(output.err.splitlines()) == 1 and "Traceback" not in output.err
    pytest.raises(ValueError, raise_it, output.err).match(f"error: .*{line}")


def shapes(config, workdir):
    return jnp.ones(3) @ jnp.ones(4)


@pytest.mark.parametrize("command", [fails_with(KeyError("step")), shapes], ids=["KeyError", "inside JAX"])
def test_a_defect_keeps_its_traceback_and_says_so(monkeypatch, capsys, command):
    code, output = call(monkeypatch, capsys, command=command)
    assert code == 2 and "Traceback" in output.err
    assert output.err.splitlines()[-1].startswith("error: this is a defect of fairgrpo_jax")


def test_ctrl_c_at_any_time_is_one_line(monkeypatch, capsys):
    code, output = call(monkeypatch, capsys, command=fails_with(KeyboardInterrupt()))
    assert code == 130 and output.err.startswith("interrupted; what was saved stays") and "Traceback" not in output.err


# In this process too, quicker: test_every_command_may_lose_its_reader.
ALIKE = (
    "fairgrpo_jax.train --list",
    "fairgrpo_jax.sft --help",
    "fairgrpo_jax.study --help",
    "fairgrpo_jax.export --help",
    "fairgrpo_jax.plan --list",
    "fairgrpo_jax.report --help",
)


@pytest.mark.parametrize(
    "command",
    [
        "fairgrpo_jax.data check --all",
        "-u -m fairgrpo_jax.train --list",
        *(pytest.param(command, marks=pytest.mark.slow) for command in ("fairgrpo_jax.train --help", *ALIKE)),
    ],
)
def test_a_reader_that_leaves_ends_a_command_quietly(command):
    """The pipe is closed before the command has written anything, as `| true` does."""
    arguments = command.split() if command.startswith("-u") else ["-m", *command.split()]
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() in (0, 141) and not said


@pytest.mark.parametrize("command", ALIKE)
def test_every_command_may_lose_its_reader(monkeypatch, command):
    """What ends them quietly is around all that they print."""
    entered = []

    @contextlib.contextmanager
    def until_nobody_reads():
        entered.append(command)
        yield

    name, *arguments = command.split()
    module = importlib.import_module(name)
    module = importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module
    monkeypatch.setattr(processes, "until_nobody_reads", until_nobody_reads)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(sys, "stdout", Printed(lambda: bool(entered)))
    with contextlib.suppress(SystemExit):
        module.main()
    assert entered == [command] and isinstance(sys.stdout, Printed) and sys.stdout.getvalue()


class Printed(io.StringIO):
    """Output that must not come before it may."""

    def __init__(self, may):
        super().__init__()
        self.may = may

    def write(self, text):
        assert self.may()
        return super().write(text)


def test_a_pipe_that_is_not_the_output_is_no_quiet_end(monkeypatch, capsys):
    code, output = call(monkeypatch, capsys, command=fails_with(BrokenPipeError(32, "Broken pipe")))
    assert code == 2 and output.err == "error: [Errno 32] Broken pipe\n"
