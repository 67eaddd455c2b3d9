"""Opens a run from its config: folder, mesh, data, model, state; resuming and signals.

A run is identified by its folder, which holds ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``evals/``,
``samples/`` and ``report.html``. Opening it with the same config resumes from the last checkpoint; opening it with a
different config is an error that lists the differences. The mesh may change when a run is resumed.

A checkpoint's number counts from the start of the run: supervised updates first, then reinforcement learning steps.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairgrpo_jax import (
    batches,
    checkpoint,
    config as options,
    estimators,
    fairness,
    grouping,
    learner,
    mesh,
    policy,
    sources,
    tracking,
)
from fairgrpo_jax.data.record import Source
from fairgrpo_jax.models import lora


@dataclasses.dataclass
class Run:
    """An open run: everything that the commands use; made by ``open_run``."""

    config: options.Config
    folder: Path
    mesh: jax.sharding.Mesh
    encoder: batches.Encoder
    sources: dict[str, Source]  # "train", "warmup", "test"
    log: tracking.MetricsLog
    checkpoints: Any
    stop: "Stop"
    phases: tracking.Phases

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the checkpoint, or of the tiny policy."""
        return self.encoder.processor.tokenizer

    @property
    def warmup_steps(self) -> int:
        """Number of supervised updates that this run does itself."""
        return self.config.warmup.own_steps

    def stream(self, split: str, size: int, encode: Any, start: int) -> Any:
        """Returns an endless, resumable iterator over the encoded batches of a split."""
        balance = self.encoder.vocabulary if split == "train" and self.config.data.resample else None
        return batches.stream(
            self.sources[split].records,
            encode,
            size=size,
            seed=self.config.seed,
            settings=self.config.data,
            start=start,
            balance=balance,
        )

    def key(self, name: str, step: int) -> jax.Array:
        """Returns the random key for a purpose at a step; no two steps and no two purposes share one."""
        word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), word), step)

    def with_moments(self, params: Any, optim: options.Optim, steps: int) -> learner.TrainState:
        """The state at the beginning of a stage: the given parameters, everything else freshly initialised."""
        moments = learner.fresh_moments(params, optim=optim, steps=steps, freeze=self.config.model.freeze)
        statistics = fairness.init(
            len(self.encoder.domains),
            len(self.encoder.vocabulary.cells),
            self.config.rollouts,
            history=self.config.fairness.history,
            capacity=self.config.fairness.capacity,
        )
        step, memory = jax.device_put((np.int32(0), estimators.Memory(statistics)), mesh.whole(self.mesh))
        return learner.TrainState(params=params, moments=moments, step=step, memory=memory)

    def initial_params(self) -> Any:
        """The checkpoint's weights, random weights from the seed, or the supervised weights of ``warmup.run``."""
        model, key, earlier = self.config.model, self.key("init", 0), self.config.warmup.run
        if earlier is not None:
            return policy.supervised(earlier, model, self.encoder.architecture, key, mesh=self.mesh)
        return policy.initial(model, self.encoder.architecture, key, mesh=self.mesh)

    def blank(self, optim: options.Optim, steps: int) -> learner.TrainState:
        """The result of ``with_moments`` as shapes with shardings, for ``restore`` to fill."""
        params = policy.shapes(self.config.model, self.encoder.architecture)
        state = jax.eval_shape(functools.partial(self.with_moments, optim=optim, steps=steps), params)
        places = jax.tree.map(lambda _: mesh.whole(self.mesh), state)
        sharded = {name: mesh.shardings(getattr(state, name), self.mesh) for name in ("params", "moments")}
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            state,
            dataclasses.replace(places, **sharded),
        )

    def reference(self, params: Any) -> Any:
        """The reference policy of the KL term (``update.beta``); see ``learner.reference``.

        It is the checkpoint at the start of reinforcement learning, read once; with adapters, ``params`` without them.
        """
        return learner.reference(params) if lora.has(params) else self._first_policy

    @functools.cached_property
    def _first_policy(self) -> Any:
        like = jax.eval_shape(learner.reference, policy.shapes(self.config.model, self.encoder.architecture))
        places = mesh.shardings(like, self.mesh)
        like = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like, places)
        return checkpoint.restore_params(self.checkpoints, self.warmup_steps, like)

    def save(self, done: int, state: learner.TrainState, iterator: Any) -> None:
        """Writes checkpoint ``done``: the state and the position in the data."""
        host = {"data": iterator.get_state(), "domains": self.encoder.domains, "groups": self.encoder.vocabulary.cells}
        checkpoint.save(self.checkpoints, done, state.params, _training(state), json.loads(json.dumps(host)))

    def restore(self, done: int, like: learner.TrainState) -> tuple[learner.TrainState, dict]:
        """Reads checkpoint ``done``: the state and the position in the data; later rows of the log are removed."""
        params, training, host = checkpoint.restore(self.checkpoints, done, like.params, _training(like))
        domains, cells = self.encoder.domains, self.encoder.vocabulary.cells
        if (host["domains"], host["groups"]) != ([*domains], [*cells]):
            raise ValueError(
                f"got data with domains {domains} and groups {cells} for a checkpoint of domains "
                f"{host['domains']} and groups {host['groups']}; wanted the dataset with which {self.folder} began"
            )
        trained = done - self.warmup_steps
        self.log.truncate_after(warmup=min(done, self.warmup_steps), train=trained, eval=trained - 1)
        memory = estimators.Memory(**{name: training.pop(name) for name in estimators.Memory._fields})
        return dataclasses.replace(like, params=params, memory=memory, **training), host["data"]


def _training(state: learner.TrainState) -> dict:
    return {"moments": state.moments, "step": state.step, **state.memory._asdict()}


@contextlib.contextmanager
def open_run(config: options.Config, workdir: Path | None) -> Iterator[Run]:
    """Checks everything that can be checked, then opens or resumes the run; closes log and checkpoints at the end.

    Raises:
        ValueError: if the mesh does not fit the devices or divide the batches, if the folder belongs to another config
            or cannot be written, or from loading the datasets.
    """
    devices = mesh.make(config.mesh)
    mesh.require_divisible(config.split_sizes, *mesh.parse(config.mesh))
    records = sources.load(config)
    for use in ("train", "warmup"):
        sources.check_leakage(records[use], records["test"], config.data)
    architecture, processor = policy.describe(config.model, config.data)
    policy.shapes(config.model, architecture)
    folder = open_folder(config, workdir)
    known = [record for source in records.values() for record in source.records]
    encoder = batches.Encoder(
        settings=config.data,
        architecture=architecture,
        processor=processor,
        domains=tuple(sorted({record.dataset for record in known})),
        vocabulary=grouping.vocabulary(batches.groups_of(record, config.data) for record in known),
    )
    with (
        Stop() as stop,
        tracking.MetricsLog(folder / "metrics.jsonl") as log,
        contextlib.closing(checkpoint.manager(folder / "checkpoints", always=[config.warmup.own_steps])) as checkpoints,
        jax.set_mesh(devices),
    ):
        done = checkpoints.latest_step()
        print(f"run folder {folder}: {'new' if done is None else f'going on after update {done}'}", flush=True)
        yield Run(
            config=config,
            folder=folder,
            mesh=devices,
            encoder=encoder,
            sources=records,
            log=log,
            checkpoints=checkpoints,
            stop=stop,
            phases=tracking.Phases(),
        )


def default_workdir(config: options.Config) -> Path:
    """``outputs/<name>-<algorithm>-<mesh>-<digest>``: one folder for each config, so that equal commands resume."""
    digest = hashlib.sha256(json.dumps(options.to_dict(config), sort_keys=True).encode()).hexdigest()[:8]
    return Path("outputs") / f"{config.name.replace('/', '-')}-{config.algorithm}-{config.mesh}-{digest}"


def open_folder(config: options.Config, workdir: Path | None) -> Path:
    """Creates the run folder, or opens an existing one.

    Raises:
        ValueError: if it cannot be written, or belongs to another config.
    """
    folder = workdir or default_workdir(config)
    wanted = options.to_dict(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"got a run folder {folder} that cannot be written ({error.strerror}); wanted a writable one: --workdir DIR"
        ) from error
    path = folder / "config.json"
    if path.exists():
        begun = options.to_dict(options.from_dict(json.loads(path.read_text())))  # newer options: defaults
        lines = options.difference(begun, wanted, ignore=("mesh",))
        if lines:
            raise ValueError(
                f"got a run folder {folder} of another config ({'; '.join(lines)}); wanted the same options, "
                "or another --workdir"
            )
    path.write_text(json.dumps(wanted, indent=2) + "\n")
    return folder


class Stop:
    """Records Ctrl-C and SIGTERM so that the loop can save before it ends; a second Ctrl-C ends the program at once."""

    def __init__(self):
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None


class Interrupted(SystemExit):
    """Raised when a run has saved after a signal; exits with the status that shells expect (130 for Ctrl-C)."""

    def __init__(self, run: Run, done: int):
        self.message = f"stopped after saving update {done} in {run.folder}; the same command resumes"
        super().__init__(128 + (run.stop.signal or signal.SIGINT))


def require_finite(step: int, stage: str, metrics: dict[str, float]) -> None:
    """Stops a run if its loss or gradient is not finite.

    Raises:
        FloatingPointError: with the name of the metric and the step.
    """
    for name in ("loss", "optim/grad_norm"):
        if not np.isfinite(metrics[name]):
            raise FloatingPointError(
                f"{name} is {metrics[name]} at {stage} step {step}; the last checkpoint is sound: lower the learning "
                "rate, or look at that step's rewards in metrics.jsonl"
            )
