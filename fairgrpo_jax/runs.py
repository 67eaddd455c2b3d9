"""Opens a run from its config: folder, mesh, data, model, state; resuming and signals.

A run is identified by its folder, which holds ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``evals/``,
``samples/``, ``report.html`` and ``lock``. Opening it with the same config resumes from the last whole checkpoint;
``fairgrpo_jax.folder`` says which options may change, and docs/runs.md what to do about each message.

A checkpoint's number counts from the start of the run: supervised updates first, then reinforcement learning steps.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairgrpo_jax import (
    batches,
    checkpoint,
    chunking,
    config as options,
    estimators,
    fairness,
    folder,
    grouping,
    hosts,
    learner,
    lengths,
    lock,
    mesh,
    policy,
    prompts,
    rewards,
    sources,
    tracking,
    workers,
)
from fairgrpo_jax.data.record import Source
from fairgrpo_jax.models import lora
from fairgrpo_jax.models.tiny import judge as tiny_judge
from fairgrpo_jax.rewards import judge_prompts, local_judge


@dataclasses.dataclass
class Run:
    """An open run: everything that the commands use; made by ``open_run``."""

    config: options.Config
    folder: Path
    mesh: jax.sharding.Mesh
    pool: workers.Workers  # with the encoder
    sources: dict[str, Source]  # "train", "warmup", "test"
    sizes: dict[str, batches.Size]  # of the held-out prompts, by uid
    log: tracking.MetricsLog
    checkpoints: Any
    stop: "Stop"
    phases: tracking.Phases
    scorer: rewards.Scorer
    measures: rewards.Scorer | None  # of evaluation.components

    @property
    def encoder(self) -> batches.Encoder:
        """What turns records into prompts for the model."""
        return self.pool.encoder

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the checkpoint, or of the tiny policy."""
        return self.encoder.processor.tokenizer

    @property
    def warmup_steps(self) -> int:
        """Number of supervised updates that this run does itself."""
        return self.config.warmup.own_steps

    def stream(self, split: str, size: int, start: int, length: int | None = None) -> workers.Stream:
        """Returns an endless, resumable iterator over the encoded batches of a split; see ``Workers.submit``."""
        balanced = split == "train" and self.config.data.sampling == "balanced"
        balance = self.encoder.vocabulary if balanced else None
        drawn = batches.mixed(
            self.sources[split].records,
            size=size,
            seed=self.config.seed,
            settings=self.config.data,
            start=start,
            balance=balance,
        )
        return self.pool.stream(drawn, start, length)

    def prompts(self, place: dict[str, Any] | None = None) -> prompts.Prompts:
        """Returns the prompts of reinforcement learning, from the beginning or from a place in a checkpoint."""
        config = self.config
        if config.data.sampling != "fair":
            start = 0 if place is None else place["next_index"]
            return prompts.InOrder(self.stream("train", config.prompts, start))
        return prompts.ByCell(
            self.sources["train"].records,
            self.pool,
            size=config.prompts,
            seed=config.seed,
            settings=config.draw,
            state=place,
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
        step, memory = jax.device_put(
            (np.int32(0), estimators.Memory(statistics, self.scorer.begin())), mesh.whole(self.mesh)
        )
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
        """Writes checkpoint ``done``: the state and the position in the data; the files are written in the background.

        Raises:
            FloatingPointError: if the parameters or the moments of the optimizer are not finite.
        """
        with self.phases("save"):
            self.log.sync()  # a checkpoint never knows more than the log
            host = {
                "data": iterator.get_state(),
                "domains": self.encoder.domains,
                "groups": self.encoder.vocabulary.cells,
                "records": self.records,
            }
            checkpoint.save(self.checkpoints, done, state.params, _training(state), json.loads(json.dumps(host)))

    def resume(self) -> tuple[int, learner.TrainState, dict] | None:
        """Restores the newest whole checkpoint; later rows of the log are removed.

        Returns:
            The number of updates done, the state and the position in the data; None if nothing has been saved.

        Raises:
            ValueError: if all checkpoints are damaged, or the data are not those of the run.
        """
        damaged: dict[int, checkpoint.Damaged] = {}
        for done in sorted(self.checkpoints.all_steps(), reverse=True):
            try:
                state, host = self._restore(done)
            except checkpoint.Damaged as fault:
                damaged[done] = fault
                continue
            for step, fault in damaged.items():
                print(f"warning: {fault}; kept as {checkpoint.set_aside(self.checkpoints, step)}", flush=True)
            if hosts.first():
                self._cut_log(done)
            return done, state, host["data"]
        if damaged:
            raise ValueError(
                f"got no whole checkpoint in {self.folder}: {'; '.join(map(str, damaged.values()))}; wanted one: put "
                "back a copy of the folder, or begin anew with another --workdir"
            )
        return None

    def _restore(self, done: int) -> tuple[learner.TrainState, dict]:
        """Reads checkpoint ``done``: the state, and what is kept of the host."""
        spec = self.config.warmup
        if done < self.warmup_steps:
            like = self.blank(spec.optim, spec.steps)
        else:
            like = self.blank(self.config.optim, self.config.steps * self.config.update.per_step)
        params, training, host = checkpoint.restore(self.checkpoints, done, like.params, _training(like))
        domains, cells = self.encoder.domains, self.encoder.vocabulary.cells
        if (host["domains"], host["groups"]) != ([*domains], [*cells]):
            raise ValueError(
                f"got data with domains {domains} and groups {cells} for a checkpoint of domains "
                f"{host['domains']} and groups {host['groups']}; wanted the dataset with which {self.folder} began"
            )
        for split, now in self.records.items():
            before = host.get("records", {}).get(split, now)
            if before != now:
                line = f"records of {split!r}: {before} -> {now}; batches are drawn from the new ones from here on"
                print(f"warning: {line}", flush=True)
                self.log.note(done, [line])
        kept = [name for name in estimators.Memory._fields if name in training]
        memory = estimators.Memory(**{name: training.pop(name) for name in kept})
        return dataclasses.replace(like, params=params, memory=memory, **training), host

    @functools.cached_property
    def records(self) -> dict[str, str]:
        """Number and digest of the records of each split, in their order."""
        found = {}
        for split, source in self.sources.items():
            names = "\n".join(f"{record.dataset}/{record.uid}" for record in source.records)
            found[split] = f"{len(source.records)} ({hashlib.sha256(names.encode()).hexdigest()[:8]})"
        return found

    def _cut_log(self, done: int) -> None:
        """Removes the rows after a checkpoint, and tells of those that should be there and are not."""
        trained = done - self.warmup_steps
        self.log.truncate_after(warmup=min(done, self.warmup_steps), train=trained, eval=trained - 1)
        for kind, last in (("warmup", min(done, self.warmup_steps)), ("train", trained)):
            missing = max(last, 0) - self.log.count(kind)
            if missing:
                line = f"{missing} of the {kind} rows before update {done} are not in metrics.jsonl"
                print(f"warning: {line}", flush=True)
                self.log.note(done, [line])


def _training(state: learner.TrainState) -> dict:
    memory = {name: part for name, part in state.memory._asdict().items() if part is not None}
    return {"moments": state.moments, "step": state.step, **memory}


def load(config: options.Config) -> tuple[dict[str, Source], batches.Encoder]:
    """Loads the records of a run by use, and what encodes them for its model.

    Raises:
        ValueError: from loading the datasets or the checkpoint's configuration.
    """
    records = sources.load(config)
    architecture, processor = policy.describe(config.model, config.data)
    known = [record for source in records.values() for record in source.records]
    return records, batches.Encoder(
        settings=config.data,
        architecture=architecture,
        processor=dataclasses.replace(processor, dtype=config.media_dtype),
        domains=tuple(sorted({record.dataset for record in known})),
        vocabulary=grouping.vocabulary(batches.groups_of(record, config.data) for record in known),
        dtype=config.media_dtype,
    )


@contextlib.contextmanager
def open_run(config: options.Config, workdir: Path | None) -> Iterator[Run]:
    """Checks everything that can be checked, then opens or resumes the run; closes log and checkpoints at the end.

    Raises:
        ValueError: if the mesh does not fit the devices or divide the batches, if the folder belongs to another config,
            cannot be written or is in use, from loading the datasets, or if the judge does not answer.
    """
    path = workdir or folder.default(config)
    with contextlib.ExitStack() as open_while_running:
        judge = None
        if config.judge.model or config.judge.path:
            components = (*config.reward.components, *config.evaluation.components)
            if not rewards.asks_judge(components):
                raise ValueError(
                    f"got judge.{'path' if config.judge.path else 'model'} and no component that asks it; wanted judge "
                    f"or semantic among reward.components and evaluation.components: {' '.join(components)}"
                )
            judge = open_while_running.enter_context(_judge(config, path))
        yield open_while_running.enter_context(_opened(config, path, judge))


def _judge(config: options.Config, path: Path) -> Any:
    """The judge of a run, on its devices or behind an endpoint; its answers are kept in the run folder."""
    if config.judge.path is not None and hosts.count() > 1:
        raise ValueError(
            f"got judge.path={config.judge.path} with {hosts.count()} processes; wanted one process, or judge.url: an "
            "endpoint that all of them reach"
        )
    folder.create(path)
    settings = dataclasses.replace(config.judge, cache=config.judge.cache or path / "judge.sqlite")
    if settings.path == Path("tiny"):
        settings = dataclasses.replace(settings, path=_tiny_judge(path / "tiny-judge"))
    if settings.path is not None:
        return local_judge.LocalJudge(settings, mesh=config.mesh)
    return rewards.Judge(settings)


def _tiny_judge(folder_: Path) -> Path:
    """The judge of random weights in the run folder, written once: its files say who it is."""
    if not folder_.is_dir():
        print(f"judge: random weights, {folder_}; its scores mean nothing", flush=True)
        draft = folder_.with_name(f".{folder_.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        words = sorted({*tiny_judge.WORDS, *judge_prompts.words()})  # short questions: a quick judge
        tiny_judge.write(draft, words=words, num_layers=1).rename(folder_)
    return folder_


@contextlib.contextmanager
def _opened(config: options.Config, path: Path, judge: Any) -> Iterator[Run]:
    devices = mesh.make(config.mesh)
    if hosts.count() > 1:
        folder.require_alike(config, path)
    mesh.require_divisible(config.split_sizes, *mesh.parse(config.mesh))
    begun = folder.recall(path, config)
    config = begun or policy.settled(config)
    records, encoder = load(config)
    for use in ("train", "warmup"):
        sources.check_leakage(records[use], records["test"], config.data)
    sources.require_attributes([*records["train"].records, *records["test"].records], config.data.attributes)
    known = [record for source in records.values() for record in source.records]
    scorer = rewards.build(
        config.reward, config.sampling, known, count=encoder.tokens, lettered=config.data.letters, judge=judge
    )
    measures = None
    if config.evaluation.components:
        measured = dataclasses.replace(config.reward, components=config.evaluation.components, percentiles=None)
        measures = rewards.build(
            measured,
            config.sampling,
            records["test"].records,
            count=encoder.tokens,
            lettered=config.data.letters,
            judge=judge,
        )
    if judge is not None:
        judge.check()
    tree = policy.shapes(config.model, encoder.architecture)
    folder.create(path)
    fitting = lengths.fit(records, encoder, config)
    if begun is None:
        config = dataclasses.replace(config, warmup=config.warmup.counted(len(fitting.sources["warmup"])))
    used = {use: own for use, own in fitting.sizes.items() if own and (use != "warmup" or config.warmup.own_steps)}
    every = [size for sizes in used.values() for size in sizes]
    settings = lengths.settle(config.data, every, encoder)
    if settings != config.data:
        print(f"from the data: {lengths.flags(settings)}", flush=True)
    config = dataclasses.replace(config, data=settings)
    encoder = lengths.on_ladder(dataclasses.replace(encoder, settings=settings), every)
    architecture = policy.in_parts(encoder.architecture, encoder.sizes[-1].patches, fitting.frame)
    encoder = dataclasses.replace(encoder, architecture=architecture)
    for use, sizes in used.items():
        print(f"{use}: {len(sizes)} records; {'; '.join(lengths.told(sizes, encoder.sizes))}", flush=True)
        if long := lengths.unsayable(fitting.sources[use].records, encoder.tokens, config.sampling.max_new_tokens):
            print(f"warning: {use}: {long}", flush=True)
    with contextlib.ExitStack() as open_while_running:
        enter = open_while_running.enter_context
        hosts.on_first(lambda: enter(lock.held(path)))
        manager = checkpoint.manager(path / "checkpoints", always=[config.warmup.own_steps])
        checkpoints = enter(contextlib.closing(manager))
        done = checkpoints.latest_step()
        _require_ahead(config, done)
        changes = hosts.on_first(lambda: folder.claim(path, config))
        stop = enter(Stop())
        log = enter(tracking.MetricsLog(path / "metrics.jsonl", write=hosts.first()))
        enter(jax.set_mesh(devices))
        print(f"run folder {path}: {'new' if done is None else f'going on after update {done}'}", flush=True)
        if hosts.first():
            lengths.write(path / "unfit.jsonl", fitting.unfit)
        if fitting.unfit:
            line = f"{len(fitting.unfit)} records do not fit and are left out or shortened: see unfit.jsonl"
            print(f"warning: {line}", flush=True)
            log.note(done or 0, [line])
        if changes:
            print(f"changed options: {'; '.join(changes)}", flush=True)
            log.note(done or 0, changes)
        fitted = chunking.fit(config, architecture, tree, chunking.memory(), jax.default_backend())
        if parts := chunking.told(fitted):
            print(f"computed in parts: {parts}", flush=True)
        run = Run(
            config=fitted,
            folder=path,
            mesh=devices,
            pool=enter(workers.Workers(encoder)),
            sources=fitting.sources,
            sizes=fitting.held_out,
            log=log,
            checkpoints=checkpoints,
            stop=stop,
            phases=tracking.Phases(),
            scorer=scorer,
            measures=measures,
        )
        hosts.require_equal("records", json.dumps(run.records))
        yield run
        checkpoints.wait_until_finished()


def _require_ahead(config: options.Config, done: int | None) -> None:
    """Refuses a number of steps that the run has passed already."""
    if done is not None and done > config.warmup.own_steps + config.steps:
        raise ValueError(
            f"got steps={config.steps} for a run that has done {done - config.warmup.own_steps}; wanted at least as "
            "many, or another --workdir"
        )


class Stop:
    """Records Ctrl-C, SIGTERM and SIGHUP so that the loop can save before it ends; a second one ends it at once.

    A SIGHUP that is ignored (``nohup``) stays ignored.
    """

    def __init__(self):
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
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


class Interrupted(hosts.Ending):
    """Raised when a run has saved after a signal; exits with the status that shells expect (130 for Ctrl-C)."""

    def __init__(self, run: Run, done: int):
        run.checkpoints.wait_until_finished()
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
