"""The one schema of every option, with its default, unit and help.

Presets live in ``configs/`` as Python; the command line overrides any field by its dotted name
(``--optim.lr 1e-6``). Every value is checked when the config is made, before any long work starts.
"""

import dataclasses
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

from fairgrpo_jax.demographics import Scheme


Algorithm = Literal[
    "grpo",
    "dr_grpo",
    "rloo",
    "gpg",
    "opo",
    "pass_at_k",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "fair_grpo",
    "fair_grpo_nd",
    "drpo",
    "group_dro",
]


def _require(condition: bool, got: str, wanted: str) -> None:
    if not condition:
        raise ValueError(f"got {got}; wanted {wanted}")


def _require_finite(section: str, options: Any) -> None:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            _require(
                not isinstance(number, float) or math.isfinite(number),
                f"{section}{field.name}={value}",
                "finite numbers",
            )


def _require_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"got {name}={pattern!r} ({error}); wanted a regular expression") from error


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train and evaluate on."""

    name: str = "synthetic"
    """Dataset by its name in fairgrpo_jax.data, or several joined by commas ("synthetic" is the embedded clinic)."""
    root: Path | None = None
    """Folder of the dataset as its owner publishes it; of several, the folder that has one of each name."""
    options: tuple[str, ...] = ()
    """Options of the datasets' loaders as KEY=VALUE, of several datasets as NAME.KEY=VALUE; e.g. split_by=article."""
    temperature: float = 1.0
    """Mixing exponent: a dataset of n records is drawn with weight n ** temperature. 1 mixes all records evenly, 0
    mixes datasets evenly."""
    on_broken: Literal["raise", "skip"] = "raise"
    """Treatment of records whose media cannot be decoded; "skip" decodes everything once before the run."""
    num_frames: int = 4
    """Frames taken uniformly from a video; even, as the vision tower joins two frames to one."""
    instruction: str = ""
    """Sentence added to every question, e.g. how to think and where to put the answer."""
    list_choices: bool = False
    """List the possible answers below the question."""
    prompt_length: int = 48
    """Tokens to which prompts are padded; a longer prompt is refused, by name."""
    num_patches: int = 64
    """Vision patches to which the media of one prompt are padded; more are refused, by name."""
    min_pixels: int | None = None
    """Smaller images are enlarged to this many pixels; by default as the checkpoint says (32 x 32 without one)."""
    max_pixels: int | None = None
    """Larger images are reduced to this many pixels; by default as the checkpoint says (32 x 32 without one)."""
    attributes: tuple[str, ...] = ("sex", "age")
    """Attributes that make the demographic groups: sex, age, and others of the dataset (race, skin_type, ...)."""
    age_edges: tuple[int, ...] = (25, 50, 75)
    """Upper edges, in years and inclusive, of the age groups."""
    leakage: Literal["refuse", "report"] = "refuse"
    """Treatment of patients with both training and held-out records, as in some official splits (VQA-RAD's)."""
    resample: bool = False
    """Repeat training records until every demographic group of a dataset is as large as its largest (GRPO+RS)."""
    workers: int = 2
    """Threads that decode and prepare prompts while the device computes."""

    @property
    def scheme(self) -> Scheme:
        """The demographic groups that training, figures and report tell apart."""
        return Scheme(self.attributes, self.age_edges)

    def __post_init__(self):
        _require_finite("data.", self)
        _require(self.workers > 0, f"data.workers={self.workers}", "at least one thread")
        _require(self.num_patches >= 0, f"data.num_patches={self.num_patches}", "a number >= 0")
        _require(all(self.attributes), f"data.attributes={self.attributes}", "names that are not empty")
        _require(
            self.num_frames >= 2 and self.num_frames % 2 == 0,
            f"data.num_frames={self.num_frames}",
            "an even number of frames, at least 2",
        )
        _require(0 <= self.temperature <= 1, f"data.temperature={self.temperature}", "0 to 1")
        _require(
            self.prompt_length > 0,
            f"data.prompt_length={self.prompt_length}",
            "a positive length",
        )
        least, most = self.min_pixels, self.max_pixels
        _require(
            (least is None or least > 0) and (most is None or most >= (least or 1)),
            f"data.min_pixels={least}, data.max_pixels={most}",
            "0 < min_pixels <= max_pixels",
        )
        _require(
            len(self.attributes) == len(set(self.attributes)) > 0,
            f"data.attributes={self.attributes}",
            "at least one attribute, none twice",
        )
        _require(
            list(self.age_edges) == sorted(set(self.age_edges)),
            f"data.age_edges={self.age_edges}",
            "ages in rising order",
        )


@dataclasses.dataclass(frozen=True)
class Model:
    """The policy: a checkpoint folder, or the Qwen2.5-VL architecture at a size of choice from random weights."""

    path: Path | None = None
    """Checkpoint folder as Hugging Face publishes it (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3, MedGemma)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the trained weights; bfloat16 halves the memory, and loses updates below a 256th of a weight."""
    compute: Literal["float32", "bfloat16"] | None = None
    """Dtype of the passes in training, cast once a pass; by default the dtype of the weights. With dtype
    float32 and compute bfloat16, gradients are summed and updates done in float32."""
    lora_rank: int = 0
    """Rank of low-rank adapters, which alone are then trained; 0 trains the weights themselves."""
    lora_alpha: float = 32.0
    """The adapters' output is multiplied by lora_alpha / lora_rank."""
    lora_targets: str = r"^layers/.*/(q|k|v|o|gate|up|down)$"
    """Regular expression searched for in the paths of linear maps; by default all of the text decoder."""
    freeze: tuple[str, ...] = ()
    """Regular expressions searched for in the paths of parameters that are not trained, e.g. ^vision/."""
    hidden_size: int = 64
    """Without a path: width of the text decoder and of its vision tower; a multiple of 16."""
    num_layers: int = 2
    """Without a path: layers of the text decoder."""
    vision_depth: int = 2
    """Without a path: blocks of the vision tower; the last one attends globally, the others within windows."""
    tie_word_embeddings: bool = True
    """Without a path: whether the output head is the embedding table."""

    def __post_init__(self):
        _require_finite("model.", self)
        _require(self.hidden_size > 0, f"model.hidden_size={self.hidden_size}", "a positive multiple of 16")
        _require(self.num_layers > 0, f"model.num_layers={self.num_layers}", "at least one layer")
        _require(self.vision_depth > 0, f"model.vision_depth={self.vision_depth}", "at least one block")
        _require_pattern("model.lora_targets", self.lora_targets)
        for pattern in self.freeze:
            _require_pattern("model.freeze", pattern)
        _require(self.hidden_size % 16 == 0, f"model.hidden_size={self.hidden_size}", "a multiple of 16")
        _require(
            self.lora_rank >= 0 and self.lora_alpha > 0,
            f"model.lora_rank={self.lora_rank}, model.lora_alpha={self.lora_alpha}",
            "lora_rank >= 0 and a positive lora_alpha",
        )


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW with a linear warm-up; constant afterwards, or a cosine down to zero."""

    lr: float = 3e-4
    """Peak learning rate."""
    warmup_steps: int = 30
    """Updates over which the learning rate rises from zero, which is that of the first one (as in transformers)."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Course of the learning rate after its warm-up."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self):
        _require_finite("optim.", self)
        _require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps}", "a number >= 0")
        for name in ("b1", "b2"):
            _require(0 <= getattr(self, name) < 1, f"optim.{name}={getattr(self, name)}", "0 <= decay < 1")
        _require(self.weight_decay >= 0, f"optim.weight_decay={self.weight_decay}", "a decay >= 0")
        _require(self.lr > 0, f"optim.lr={self.lr}", "a positive learning rate")
        _require(self.max_grad_norm > 0, f"optim.max_grad_norm={self.max_grad_norm}", "a positive norm")


@dataclasses.dataclass(frozen=True)
class Warmup:
    """The supervised stage before reinforcement learning."""

    steps: int = 200
    """Supervised updates; 0 starts from the initial weights."""
    split: str = "warmup"
    """Split of the dataset that this stage learns from."""
    run: Path | None = None
    """Run folder of an earlier `sft` (or `train`) whose supervised weights are taken instead."""
    batch: int = 96
    """Records in one update."""
    accumulation: int = 1
    """Parts of that batch whose gradients are summed before the update; saves memory, changes nothing else."""
    optim: Optim = Optim(lr=2e-3, warmup_steps=20, schedule="cosine")
    """Optimizer of this stage."""

    def __post_init__(self):
        _require_finite("warmup.", self)
        _require(
            self.steps >= 0 and self.batch > 0,
            f"warmup.steps={self.steps}, warmup.batch={self.batch}",
            "steps >= 0 and a positive batch",
        )
        _require(
            self.accumulation > 0 and self.batch % self.accumulation == 0,
            f"warmup.batch={self.batch} with warmup.accumulation={self.accumulation}",
            "accumulation as a divisor of the batch",
        )

    @property
    def own_steps(self) -> int:
        """Supervised updates that a run does itself."""
        return 0 if self.run else self.steps


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are drawn from the policy."""

    max_new_tokens: int = 12
    """Longest completion, its end token included; longer ones are cut and counted."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in the update alike; evaluation is greedy."""
    top_p: float = 1.0
    """Nucleus sampling: only the likeliest tokens that make up this probability."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the weights that sample; by default as they are trained. bfloat16 halves what every token reads."""
    weights: Literal["replicated", "tensor"] = "replicated"
    """Layout of the weights while sampling: whole on every device, or split along the mesh's second axis."""
    tries: int = 1
    """Batches of prompts drawn for a step until none is left whose completions all have the same reward (DAPO's
    dynamic sampling, bounded); 1 takes the first batch as it is."""
    truncated: Literal["keep", "mask", "penalise"] = "keep"
    """Completions cut at max_new_tokens: learned from like others, left out of the loss and of every baseline ("mask"),
    or, by overlong_buffer, long ones made worse before they are cut."""
    overlong_buffer: int = 4
    """With truncated "penalise": last tokens over which the reward falls by up to 1."""

    def __post_init__(self):
        _require_finite("sampling.", self)
        _require(self.tries > 0, f"sampling.tries={self.tries}", "at least 1")
        _require(
            self.truncated != "penalise" or 1 <= self.overlong_buffer <= self.max_new_tokens,
            f"sampling.overlong_buffer={self.overlong_buffer}",
            f"1 to sampling.max_new_tokens={self.max_new_tokens}",
        )
        _require(self.max_new_tokens > 0, f"sampling.max_new_tokens={self.max_new_tokens}", "at least one token")
        _require(
            self.temperature > 0,
            f"sampling.temperature={self.temperature}",
            "a positive temperature (evaluation is greedy by itself)",
        )
        _require(0 < self.top_p <= 1, f"sampling.top_p={self.top_p}", "0 < top_p <= 1")


@dataclasses.dataclass(frozen=True)
class Reward:
    """What a completion is worth."""

    kind: Literal["exact", "set_f1"] = "exact"
    """1 where the boxed labels are the reference labels, or the F1 of the two sets, for several right labels."""


@dataclasses.dataclass(frozen=True)
class Update:
    """How one rollout batch becomes updates of the policy."""

    mini_batches: int = 1
    """Equal parts of the rollout batch, one update each."""
    passes: int = 1
    """Times that the rollout batch is gone through."""
    accumulation: int = 1
    """Parts of a mini-batch whose gradients are summed before the update; saves memory, changes nothing else."""
    chunks: int = 0
    """Parts of the rollouts of each prompt, a divisor of them, one backward pass each; saves memory, and time on
    padding as the short ones go together. 0: as many as the memory of the device asks for."""
    kind: Literal["clip", "gspo", "cispo"] = "clip"
    """Ratio of single tokens, clipped (PPO, GRPO); of whole completions (GSPO, with clips of about 3e-4); or clipped
    without stopping the gradient (CISPO)."""
    clip_low: float = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The probability ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = None
    """Bounds the loss of negative advantages at this multiple (3.0 in verl); none by default."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over tokens (DAPO, verl), over sequences (GRPO), or sum over a constant length (Dr.GRPO)."""
    beta: float = 0.0
    """Weight of the KL divergence to the policy with which reinforcement learning begins (with adapters: to the model
    without them), e.g. 0.04; 0 needs no reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that divergence, from the sampled tokens; see fairgrpo_jax.losses.kl."""
    importance: Literal["none", "token", "sequence"] = "none"
    """Correction for completions sampled by another program (sampling.dtype, say) than the one that learns: weights
    of tokens, or of whole completions."""
    importance_cap: float = 2.0
    """Largest of those weights."""
    remat: bool = True
    """Recompute each layer's activations in the backward pass: less memory, more compute (on a CPU not more time)."""

    def __post_init__(self):
        _require_finite("update.", self)
        _require(0 <= self.clip_low <= 1, f"update.clip_low={self.clip_low}", "0 <= clip_low <= 1")
        _require(self.clip_high > 0, f"update.clip_high={self.clip_high}", "a positive number")
        _require(self.dual_clip is None or self.dual_clip > 1, f"update.dual_clip={self.dual_clip}", "a bound > 1")
        for name in ("mini_batches", "passes", "accumulation"):
            _require(getattr(self, name) > 0, f"update.{name}={getattr(self, name)}", "at least 1")
        _require(
            self.chunks >= 0, f"update.chunks={self.chunks}", "at least 1, or 0 for as many as the memory asks for"
        )
        _require(self.importance_cap >= 1, f"update.importance_cap={self.importance_cap}", "a cap >= 1")
        _require(self.beta >= 0, f"update.beta={self.beta}", "a weight >= 0")
        _require(
            self.kind != "cispo" or self.dual_clip is None,
            f"update.kind='cispo' with update.dual_clip={self.dual_clip}",
            "no dual clip, which bounds what cispo does not have",
        )
        _require(
            self.kind != "gspo" or max(self.clip_low, self.clip_high) < 0.1,
            f"update.kind='gspo' with update.clip_low={self.clip_low}, update.clip_high={self.clip_high}",
            "bounds of a mean over tokens, which never reaches these, e.g. clip_low=3e-4, clip_high=4e-4",
        )

    @property
    def parts(self) -> int:
        """Micro-batches into which the prompts of a step are cut."""
        return self.mini_batches * self.accumulation

    @property
    def per_step(self) -> int:
        """Updates of a step."""
        return self.passes * self.mini_batches


@dataclasses.dataclass(frozen=True)
class Fairness:
    """The temperatures of FairGRPO; see fairgrpo_jax.fairness for the formula and the sources."""

    statistics: Literal["cumulative", "batch", "ema"] = "cumulative"
    """Group sizes and mean rewards since the start (authors' code), of the batch (paper), or decayed."""
    decay: float = 0.99
    """Decay per step where statistics are "ema"."""
    clamp: Literal["code", "product", "factor"] = "code"
    """Part of the temperature that is kept from zero: as in the authors' code, the product, or each factor
    (fair_grpo_nd always keeps each factor)."""
    levels: Literal["both", "group", "domain"] = "both"
    """Temperatures in use: of the domain and of the group in it, or one of them alone."""
    size_exponent: float = 0.5
    """Power of a group's size in its temperature."""
    mean_exponent: float = 1.0
    """Power of a group's mean reward in its temperature."""
    max_weight: float | None = None
    """Bounds a prompt's weight to [1/max_weight, max_weight] times the median; none in the paper."""
    k_max: int | None = None
    """Largest number of implicit groups in a domain; by default the algorithm's own, 3, and 10 for drpo."""
    sort_vectors: bool = False
    """Sort a prompt's rewards before clustering, so that only how often it succeeds counts, not which rollout."""
    history: Literal["ring", "binary"] | None = "binary"
    """Memory of the unlabelled prompts' reward vectors, for clustering: the last ones, an exact table of
    binary ones, or not at all (then the unlabelled prompts of a domain are one group)."""
    capacity: int = 8192
    """Reward vectors kept for each domain where history is "ring"."""
    shift: float = 0.0
    """Added to all rewards before means and clusters are taken, for rewards that may be negative."""
    step_size: float = 0.01
    """Step size of group_dro's weights; with larger ones a single group that never improves takes all the weight."""

    def __post_init__(self):
        _require_finite("fairness.", self)
        _require(0 <= self.decay < 1, f"fairness.decay={self.decay}", "0 <= decay < 1")
        _require(
            self.max_weight is None or self.max_weight >= 1, f"fairness.max_weight={self.max_weight}", "a bound >= 1"
        )
        _require(self.k_max is None or self.k_max > 0, f"fairness.k_max={self.k_max}", "at least one group")
        _require(
            self.size_exponent >= 0 and self.mean_exponent >= 0,
            f"fairness.size_exponent={self.size_exponent}, fairness.mean_exponent={self.mean_exponent}",
            "powers >= 0",
        )
        _require(self.step_size > 0, f"fairness.step_size={self.step_size}", "a positive step size")
        _require(self.shift >= 0, f"fairness.shift={self.shift}", "a shift >= 0")

    @property
    def weighing(self) -> dict[str, Any]:
        """The options of ``fairness.temperatures`` that are set."""
        apart = ("history", "capacity", "step_size", *(("k_max",) if self.k_max is None else ()))
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in apart}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Greedy evaluation on held-out patients: before, during and after training."""

    every: int = 100
    """Steps between evaluations."""
    batch: int = 256
    """Records in one greedy batch."""
    samples: int = 8
    """Prompts whose completions, images and rewards are kept for the report at every evaluation."""

    def __post_init__(self):
        _require_finite("evaluation.", self)
        _require(self.samples >= 0, f"evaluation.samples={self.samples}", "a number >= 0")
        _require(
            self.every > 0 and self.batch > 0,
            f"evaluation.every={self.every}, evaluation.batch={self.batch}",
            "positive numbers",
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. A run folder belongs to one config: the same command resumes it, a changed one is refused."""

    name: str = "clinic"
    """Preset from which this config was made."""
    algorithm: Algorithm = "fair_grpo"
    """Advantage estimator; fair_grpo and group_dro use explicit groups, fair_grpo_nd and drpo groups found by
    clustering. docs/advantages.md says which one when."""
    mesh: str = "1x1"
    """Devices as FSDPxTENSOR, e.g. 4x1; on a CPU they are simulated."""
    seed: int = 0
    """Seed of weights, data order and sampling."""
    steps: int = 300
    """Steps of reinforcement learning."""
    prompts: int = 64
    """Prompts of a step; a multiple of the mesh's first axis."""
    rollouts: int = 8
    """Completions drawn for each prompt."""
    checkpoint_every: int = 50
    """Steps between checkpoints; one is also written on Ctrl-C, on SIGTERM and at the end."""
    data: Data = Data()
    model: Model = Model()
    warmup: Warmup = Warmup()
    sampling: Sampling = Sampling()
    reward: Reward = Reward()
    update: Update = Update()
    optim: Optim = Optim()
    fairness: Fairness = Fairness()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self):
        _require_finite("", self)
        _require(self.seed >= 0, f"seed={self.seed}", "a seed >= 0")
        _require(
            self.fairness.history != "ring" or self.fairness.capacity >= self.prompts * self.sampling.tries,
            f"fairness.capacity={self.fairness.capacity} with prompts x sampling.tries = "
            f"{self.prompts * self.sampling.tries}",
            "room for all prompts that a step may sample",
        )
        known = typing.get_args(Algorithm)
        _require(self.algorithm in known, f"algorithm={self.algorithm!r}", f"one of {', '.join(known)}")
        _require(
            self.steps >= 0 and self.prompts > 0,
            f"steps={self.steps}, prompts={self.prompts}",
            "steps >= 0 and at least one prompt",
        )
        _require(
            self.rollouts >= 2,
            f"rollouts={self.rollouts}",
            "at least 2, as a rollout is compared with the others of its prompt",
        )
        _require(self.checkpoint_every > 0, f"checkpoint_every={self.checkpoint_every}", "at least 1")
        parts = self.update.parts
        _require(
            self.prompts % parts == 0,
            f"prompts={self.prompts} with update.mini_batches x update.accumulation = {parts}",
            f"prompts as a multiple of {parts}",
        )
        _require(
            self.update.chunks == 0 or self.rollouts % self.update.chunks == 0,
            f"rollouts={self.rollouts} with update.chunks={self.update.chunks}",
            f"update.chunks as a divisor of {self.rollouts}, or 0",
        )
        binary, clustered = self.fairness.history == "binary", self.algorithm in ("fair_grpo", "fair_grpo_nd", "drpo")
        punished = self.sampling.truncated == "penalise" and clustered
        _require(
            not (binary and clustered and self.reward.kind == "set_f1"),
            "reward.kind=set_f1 with fairness.history=binary, which holds rewards of 0 and 1",
            "--fairness.history ring",
        )
        _require(
            not punished or (self.fairness.shift >= 1 and not binary),
            f"sampling.truncated=penalise with algorithm={self.algorithm}, fairness.shift={self.fairness.shift}, "
            f"fairness.history={self.fairness.history}",
            "rewards that are not negative in the statistics: --fairness.shift 1 --fairness.history ring",
        )
        _require(
            self.sampling.truncated != "penalise" or self.algorithm != "group_dro",
            "sampling.truncated=penalise with algorithm=group_dro",
            "rewards between 0 and 1: keep or mask truncated completions",
        )
        _require(
            not binary or self.rollouts <= 16,
            f"rollouts={self.rollouts} with fairness.history='binary' (2^rollouts counts)",
            "at most 16 rollouts, or --fairness.history ring",
        )

    @property
    def split_sizes(self) -> dict[str, int]:
        """Batches that are split over the first axis of the mesh, by what they are called in messages."""
        sizes = {"prompts / (update.mini_batches x update.accumulation)": self.prompts // self.update.parts}
        if self.warmup.own_steps:
            sizes["warmup.batch / warmup.accumulation"] = self.warmup.batch // self.warmup.accumulation
        return sizes | {"evaluation.batch": self.evaluation.batch}


def to_dict(config: Any) -> dict:
    """The config as JSON-able nested dict: paths become strings, tuples lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(values: dict, schema: type = Config) -> Any:
    """The config that ``to_dict`` gave; unknown keys are refused."""
    hints = typing.get_type_hints(schema)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(
            f"got unknown options {sorted(unknown)} for {schema.__name__}; wanted a config.json of this version"
        )
    return schema(**{key: _cast(hints[key], value) for key, value in values.items()})


def _cast(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in hint.__args__ if arg is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    return Path(value) if hint is Path else value


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dict to ``{"optim.lr": 1e-4, ...}``."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def difference(old: dict, new: dict, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Lines ``optim.lr: 0.0001 -> 0.001`` for every option in which two configs differ."""
    a, b = flatten(old), flatten(new)
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key) and key not in ignore]
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys]
