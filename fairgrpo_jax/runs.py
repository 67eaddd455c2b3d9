"""From a config to a live run: folder, mesh, data, model, state; resume and signals.

A run folder is the identity of a run.  It holds ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``evals/``,
``samples/`` and ``report.html``.  Opening it with the same config continues where its last checkpoint stands; opening
it with another one is refused with the difference.  The mesh may change between two sittings.

Checkpoints are numbered by all updates since the start: the supervised ones first, then the steps of reinforcement
learning.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairgrpo_jax import (
    checkpoint,
    config as options,
    data,
    fairness,
    grouping,
    learner,
    mesh,
    models,
    policy,
    tracking,
)
from fairgrpo_jax.data import demographics, media, mixture, splits
from fairgrpo_jax.data.record import Record, RecordList, Source, conversation, target
from fairgrpo_jax.models import lora


@dataclasses.dataclass
class PromptBatch:
    """P prompts of one step: what the device needs, and the records that the rewards and the log need."""

    prompt: models.Prompt  # NumPy leaves with leading axis P
    records: list[Record]
    domains: np.ndarray  # (P,) int32
    groups: np.ndarray  # (P,) int32, -1 unlabelled


@dataclasses.dataclass
class Run:
    """Everything a command needs of one run; made by ``open_run``."""

    config: options.Config
    folder: Path
    mesh: jax.sharding.Mesh
    model: Any  # the family's static config
    processor: Any  # of the checkpoint, e.g. models.Processor
    sources: dict[str, Source]  # "train", "warmup", "test"
    domains: tuple[str, ...]  # names of the datasets; a domain's id is its place
    vocabulary: grouping.Vocabulary  # the joint demographic cells; a group's id is its place
    log: tracking.MetricsLog
    checkpoints: Any
    stop: "Stop"
    phases: tracking.Phases

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the checkpoint, or of the tiny policy."""
        return self.processor.tokenizer

    @property
    def warmup_steps(self) -> int:
        """Supervised updates that this run does itself."""
        return 0 if self.config.warmup.run else self.config.warmup.steps

    def encode(self, records: Sequence[Record]) -> PromptBatch:
        """Decodes the media of records and packs their prompts; pure, so that threads may do it ahead of time."""
        return encode(self, records)

    def encode_targets(self, records: Sequence[Record]) -> tuple[PromptBatch, np.ndarray, np.ndarray]:
        """``encode`` and the reference completions: tokens and mask (P, 1, T), end token included."""
        length = self.config.sampling.max_new_tokens
        tokens = np.full((len(records), 1, length), self.model.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, record in enumerate(records):
            ids = [*self.tokenizer.encode(target(record), add_special_tokens=False), self.model.eos_ids[0]]
            if len(ids) > length:
                raise ValueError(
                    f"got a reference completion of {len(ids)} tokens for record {record.uid}; "
                    f"wanted at most sampling.max_new_tokens={length}"
                )
            tokens[row, 0, : len(ids)], mask[row, 0, : len(ids)] = ids, True
        return self.encode(records), tokens, mask

    def batches(self, split: str, size: int, encode: Any, start: int) -> Any:
        """An endless, resumable iterator over encoded batches of a split."""
        by_domain = [[r for r in self.sources[split].records if r.dataset == name] for name in self.domains]
        if split == "train" and self.config.data.resample:
            by_domain = [self._balanced(records) for records in by_domain]
        dataset = mixture.mixture(
            [RecordList(tuple(records)) for records in by_domain if records],
            batch_size=size,
            seed=self.config.seed,
            temperature=self.config.data.temperature,
        )
        return mixture.iterate(dataset, start=start, encode=encode, threads=self.config.data.workers)

    def _balanced(self, records: list[Record]) -> list[Record]:
        """The records of a domain, each demographic group repeated to the size of the largest."""
        attributes = [groups_of(r, self.config.data) for r in records]
        groups = grouping.explicit_groups(attributes, self.vocabulary)
        return [records[row] for row in grouping.balanced_rows(groups, seed=self.config.seed)]

    def put(self, batch: Any) -> Any:
        """A host batch to the devices, prompts split along ``fsdp``."""
        return mesh.put(batch, self.mesh)

    def key(self, name: str, step: int) -> jax.Array:
        """The random key of a purpose at a step; two steps, and two purposes, never share one."""
        word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), word), step)

    def with_moments(self, params: Any, optim: options.Optim, steps: int) -> learner.TrainState:
        """A state at the beginning of a stage: the parameters given, everything else fresh."""
        moments = learner.fresh_moments(params, optim=optim, steps=steps, freeze=self.config.model.freeze)
        whole = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        history = self.config.fairness.history
        statistics = fairness.init(
            len(self.domains),
            len(self.vocabulary.cells),
            self.config.rollouts,
            history=history,
            capacity=self.config.fairness.capacity,
        )
        step, statistics = jax.device_put((np.int32(0), statistics), whole)
        return learner.TrainState(params=params, moments=moments, step=step, fairness=statistics)

    def initial_params(self) -> Any:
        """The checkpoint's weights, random ones from the seed, or the supervised ones of ``warmup.run``."""
        model, key, earlier = self.config.model, self.key("init", 0), self.config.warmup.run
        if earlier is not None:
            return policy.supervised(earlier, model, self.model, key, mesh=self.mesh)
        return policy.initial(model, self.model, key, mesh=self.mesh)

    def blank(self, optim: options.Optim, steps: int) -> learner.TrainState:
        """What ``with_moments`` returns, as shapes with their places on the mesh, for ``restore`` to fill."""
        params = policy.shapes(self.config.model, self.model)
        state = jax.eval_shape(functools.partial(self.with_moments, optim=optim, steps=steps), params)
        whole = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        places = jax.tree.map(lambda _: whole, state)
        sharded = {name: mesh.shardings(getattr(state, name), self.mesh) for name in ("params", "moments")}
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            state,
            dataclasses.replace(places, **sharded),
        )

    def reference(self, params: Any) -> Any:
        """The policy that ``update.beta`` holds ``params`` to: that of the checkpoint with which reinforcement learning
        begins, read once; with adapters, ``params`` without them.  See ``learner.reference``.
        """
        return learner.reference(params) if lora.has(params) else self._first_policy

    @functools.cached_property
    def _first_policy(self) -> Any:
        like = jax.eval_shape(learner.reference, policy.shapes(self.config.model, self.model))
        places = mesh.shardings(like, self.mesh)
        like = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like, places)
        return checkpoint.restore_params(self.checkpoints, self.warmup_steps, like)

    def save(self, done: int, state: learner.TrainState, iterator: Any) -> None:
        """Writes checkpoint ``done``: the state and the place in the data."""
        host = {"data": iterator.get_state(), "domains": self.domains, "groups": self.vocabulary.cells}
        checkpoint.save(self.checkpoints, done, state.params, _training(state), json.loads(json.dumps(host)))

    def restore(self, done: int, like: learner.TrainState) -> tuple[learner.TrainState, dict]:
        """Checkpoint ``done`` as a state, and the place in the data; later rows of the log are removed."""
        params, training, host = checkpoint.restore(self.checkpoints, done, like.params, _training(like))
        if (host["domains"], host["groups"]) != ([*self.domains], [*self.vocabulary.cells]):
            raise ValueError(
                f"got data with domains {self.domains} and groups {self.vocabulary.cells} for a checkpoint of domains "
                f"{host['domains']} and groups {host['groups']}; wanted the dataset with which {self.folder} began"
            )
        trained = done - self.warmup_steps
        self.log.truncate_after(warmup=min(done, self.warmup_steps), train=trained, eval=trained - 1)
        return dataclasses.replace(like, params=params, **training), host["data"]


def _training(state: learner.TrainState) -> dict:
    return {"moments": state.moments, "step": state.step, "fairness": state.fairness}


def encode(run: Run, records: Sequence[Record]) -> PromptBatch:
    """Records to a packed prompt batch."""
    settings = run.config.data
    messages = [conversation(r, instruction=settings.instruction, list_choices=settings.list_choices) for r in records]
    decoded = [media.decode_record(r) for r in records]
    if run.model.video_id is None:
        messages, decoded = zip(*map(_as_images, messages, records, decoded), strict=True)
    inputs = run.processor(
        list(messages),
        [d.images for d in decoded],
        [[clip.frames for clip in d.videos] for d in decoded],
        seconds_per_frame=[[clip.seconds_per_frame for clip in d.videos] for d in decoded],
        times=[[clip.times for clip in d.videos] for d in decoded],
    )
    try:
        prompt = models.pack(inputs, run.model, length=settings.prompt_length, num_patches=settings.num_patches)
    except ValueError as error:
        row = re.match(r"prompt (\d+)", str(error))
        name = records[int(row[1])].uid if row else f"one of {', '.join(r.uid for r in records)}"
        raise ValueError(f"record {name}: {error} (options data.prompt_length and data.num_patches)") from error
    attributes = [groups_of(r, settings) for r in records]
    return PromptBatch(
        prompt=prompt,
        records=list(records),
        domains=np.array([run.domains.index(r.dataset) for r in records], np.int32),
        groups=np.asarray(grouping.explicit_groups(attributes, run.vocabulary), np.int32),
    )


def _as_images(messages: list[dict], record: Record, decoded: media.Decoded) -> tuple[list[dict], media.Decoded]:
    """Every video as its frames, one image each, for families that know no video; MedGemma was trained so."""
    clips, images = iter(decoded.videos), iter(decoded.images)
    shown = [next(clips).frames if part.kind == "video" else [next(images)] for part in record.media]
    pictures = [picture for part in shown for picture in part]
    text = [part for part in messages[0]["content"] if part["type"] == "text"]
    content = [*({"type": "image"} for _ in pictures), *text]
    return [{**messages[0], "content": content}], media.Decoded(tuple(pictures), ())


@contextlib.contextmanager
def open_run(config: options.Config, workdir: Path | None) -> Iterator[Run]:
    """Checks everything that can be checked, then opens or resumes the run; closes log and checkpoints at the end.

    Raises:
      ValueError: for a mesh that does not fit or divide, a folder of another config or that cannot be written, and
        whatever the dataset finds wrong.
    """
    devices = mesh.make(config.mesh)
    part = config.prompts // (config.update.mini_batches * config.update.accumulation)
    mesh.require_divisible("prompts / (update.mini_batches x update.accumulation)", part, devices)
    mesh.require_divisible("warmup.batch", config.warmup.batch, devices)
    mesh.require_divisible("evaluation.batch", config.evaluation.batch, devices)
    sources = load_sources(config)
    for use in ("train", "warmup"):
        _check_leakage(sources[use], sources["test"], config.data)
    architecture, processor = policy.describe(config.model, config.data)
    policy.shapes(config.model, architecture)
    folder = open_folder(config, workdir)
    known = [record for source in sources.values() for record in source.records]
    supervised = 0 if config.warmup.run else config.warmup.steps
    with (
        Stop() as stop,
        tracking.MetricsLog(folder / "metrics.jsonl") as log,
        contextlib.closing(checkpoint.manager(folder / "checkpoints", always=[supervised])) as checkpoints,
        jax.set_mesh(devices),
    ):
        done = checkpoints.latest_step()
        print(f"run folder {folder}: {'new' if done is None else f'going on after update {done}'}", flush=True)
        yield Run(
            config=config,
            folder=folder,
            mesh=devices,
            model=architecture,
            processor=processor,
            sources=sources,
            domains=tuple(sorted({record.dataset for record in known})),
            vocabulary=grouping.vocabulary(groups_of(r, config.data) for r in known),
            log=log,
            checkpoints=checkpoints,
            stop=stop,
            phases=tracking.Phases(),
        )


def load_sources(config: options.Config) -> dict[str, Source]:
    """The records by use: "train", "warmup" and "test", of all datasets; what their loaders left out is printed.

    Training takes the first of a dataset's splits, evaluation the last, the supervised stage ``warmup.split`` where
    the dataset has it.

    Raises:
      ValueError: from ``data.load``; several datasets without the folder that holds them.
    """
    settings = config.data
    names, root = settings.name.split(","), settings.root
    if len(names) > 1 and root is None:
        raise ValueError(f"got data.name={settings.name} without data.root; wanted the folder that holds them all")
    told = _loader_options(settings, names)
    records: dict[str, list[Record]] = {"train": [], "warmup": [], "test": []}
    for name in names:
        dataset = data.module(name)
        known = inspect.signature(dataset.load).parameters
        extra = {"num_frames": settings.num_frames} | told[name] if "num_frames" in known else told[name]
        if unknown := extra.keys() - known.keys():
            wanted = ", ".join(known.keys() - {"root", "split"}) or "none"
            raise ValueError(f"got data.options {', '.join(unknown)} for {name}; wanted some of: {wanted}")
        own = config.warmup.split if config.warmup.split in dataset.SPLITS else dataset.SPLITS[0]
        splits = {"train": dataset.SPLITS[0], "warmup": own, "test": dataset.SPLITS[-1]}
        folder = root / name if root and len(names) > 1 else root
        for split in dict.fromkeys(splits.values()):
            source = data.load(name, folder, split=split, on_broken=settings.on_broken, **extra)
            answered = [record for record in source.records if record.answer]
            left_out = dict(getattr(source, "left_out", {})) | {"no answer": len(source) - len(answered)}
            for reason, count in left_out.items():
                if count:
                    print(f"{name}, {split}: {count} rows left out: {reason}")
            for use in [use for use, its in splits.items() if its == split]:
                records[use] += answered
    return {use: RecordList(tuple(found)) for use, found in records.items()}


def _loader_options(settings: options.Data, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``data.options`` by dataset."""
    told: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in settings.options:
        name, dot, rest = text.partition(".")
        name, rest = (name, rest) if dot and name in told else (names[0], text)
        if len(names) > 1 and rest == text:
            raise ValueError(f"got data.options {text} with {len(names)} datasets; wanted NAME.KEY=VALUE")
        key, value = data.option(rest)
        told[name][key] = value
    return told


def _check_leakage(one: Source, other: Source, settings: options.Data) -> None:
    try:
        splits.check_leakage(one.records, other.records)
    except ValueError as error:
        if settings.leakage == "refuse":
            raise ValueError(f"{error} (or --data.leakage report, to train on an official split as it is)") from error
        print(f"warning: {error}")


def groups_of(record: Record, settings: options.Data) -> dict[str, str | None]:
    """The demographic attributes that a record's group is made of."""
    return demographics.attributes(record, edges=settings.age_edges, names=settings.attributes)


def default_workdir(config: options.Config) -> Path:
    """``outputs/<name>-<algorithm>-<mesh>-<digest>``: one folder for each config, so that equal commands resume."""
    digest = hashlib.sha256(json.dumps(options.to_dict(config), sort_keys=True).encode()).hexdigest()[:8]
    return Path("outputs") / f"{config.name.replace('/', '-')}-{config.algorithm}-{config.mesh}-{digest}"


def open_folder(config: options.Config, workdir: Path | None) -> Path:
    """The run folder, made or recognised.

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
        lines = options.difference(json.loads(path.read_text()), wanted, ignore=("mesh",))
        if lines:
            raise ValueError(
                f"got a run folder {folder} of another config ({'; '.join(lines)}); wanted the same options, "
                "or another --workdir"
            )
    path.write_text(json.dumps(wanted, indent=2) + "\n")
    return folder


class Stop:
    """Notes Ctrl-C and SIGTERM, so that the loop saves before it ends; a second Ctrl-C ends at once."""

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
    """A run that was stopped by a signal and has saved; exits as the shell expects (130 for Ctrl-C)."""

    def __init__(self, run: Run, done: int):
        self.message = f"stopped after saving update {done} in {run.folder}; the same command resumes"
        super().__init__(128 + (run.stop.signal or signal.SIGINT))


def require_finite(step: int, stage: str, metrics: dict[str, float]) -> None:
    """Stops a run whose loss or gradient is no longer a number.

    Raises:
      FloatingPointError: naming the metric and the step.
    """
    for name in ("loss", "optim/grad_norm"):
        if not np.isfinite(metrics[name]):
            raise FloatingPointError(
                f"{name} is {metrics[name]} at {stage} step {step}; the last checkpoint is sound: lower the learning "
                "rate, or look at that step's rewards in metrics.jsonl"
            )
