"""The schema of all options: default, unit and help of each.

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
    """The data to train and evaluate on."""

    name: str = "synthetic"
    """Name of the dataset in fairgrpo_jax.data, or several joined by commas ("synthetic" is the embedded clinic)."""
    root: Path | None = None
    """Folder of the dataset as its owner publishes it; for several datasets, a folder with one subfolder per name."""
    options: tuple[str, ...] = ()
    """Options of the dataset's loader as KEY=VALUE, e.g. split_by=article; with several datasets, NAME.KEY=VALUE."""
    temperature: float = 1.0
    """Mixing exponent: a dataset of n records is drawn with weight n ** temperature. 1 mixes all records evenly, 0
    mixes datasets evenly."""
    on_broken: Literal["raise", "skip"] = "raise"
    """What to do with records whose media cannot be decoded; "skip" decodes everything once before the run."""
    num_frames: int = 4
    """Frames sampled uniformly from each video; an even number, because the vision tower merges frames in pairs."""
    instruction: str = ""
    """Text added to every question, e.g. how to think and where to put the answer."""
    list_choices: bool = False
    """List the possible answers below the question."""
    prompt_length: int = 48
    """Length in tokens to which prompts are padded; a longer prompt is an error that names its record."""
    num_patches: int = 64
    """Number of vision patches to which the media of each prompt are padded; more is an error that names the record."""
    min_pixels: int | None = None
    """Smaller images are enlarged to this many pixels; default: the checkpoint's value, or 32 x 32 without one."""
    max_pixels: int | None = None
    """Larger images are reduced to this many pixels; default: the checkpoint's value, or 32 x 32 without a
    checkpoint."""
    attributes: tuple[str, ...] = ("sex", "age")
    """Attributes that define the demographic groups: sex, age, or others of the dataset (race, skin_type, ...)."""
    age_edges: tuple[int, ...] = (25, 50, 75)
    """Upper edges of the age groups in years, inclusive."""
    leakage: Literal["refuse", "report"] = "refuse"
    """What to do if a patient has both training and held-out records, as in some official splits (VQA-RAD's)."""
    resample: bool = False
    """Repeat training records until all demographic groups of a dataset are as large as the largest one (GRPO+RS)."""
    workers: int = 2
    """Threads that decode and prepare prompts while the device computes."""

    @property
    def scheme(self) -> Scheme:
        """The demographic groups that training, metrics and report distinguish."""
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
    """The policy: a checkpoint folder, or the Qwen2.5-VL architecture at a chosen size with random weights."""

    path: Path | None = None
    """Checkpoint folder as Hugging Face publishes it (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3, MedGemma)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the trained weights; bfloat16 halves the memory but loses updates smaller than 1/256 of a weight."""
    compute: Literal["float32", "bfloat16"] | None = None
    """Dtype of the forward and backward passes, cast once per pass; default: the dtype of the weights. With dtype
    float32 and compute bfloat16, gradients are summed and updates applied in float32."""
    lora_rank: int = 0
    """Rank of the low-rank adapters; only the adapters are then trained. 0 trains the weights themselves."""
    lora_alpha: float = 32.0
    """The adapters' output is multiplied by lora_alpha / lora_rank."""
    lora_targets: str = r"^layers/.*/(q|k|v|o|gate|up|down)$"
    """Regular expression searched for in the paths of linear maps, to choose those that get adapters; default: all
    linear maps of the text decoder."""
    freeze: tuple[str, ...] = ()
    """Regular expressions searched for in parameter paths; parameters that match are not trained, e.g. ^vision/."""
    hidden_size: int = 64
    """Without a path: width of the text decoder and of the vision tower; a multiple of 16."""
    num_layers: int = 2
    """Without a path: number of layers of the text decoder."""
    vision_depth: int = 2
    """Without a path: number of blocks of the vision tower; the last one attends globally, the others within
    windows."""
    tie_word_embeddings: bool = True
    """Without a path: whether the output head shares the embedding table."""

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
    """AdamW with a linear warm-up, then a constant learning rate or a cosine decay to zero."""

    lr: float = 3e-4
    """Peak learning rate."""
    warmup_steps: int = 30
    """Updates over which the learning rate rises from zero; the first update has rate zero, as in transformers."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate schedule after the warm-up."""
    b1: float = 0.9
    """Decay rate of the first moment."""
    b2: float = 0.999
    """Decay rate of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay, applied to matrices only."""
    max_grad_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to this norm."""

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
    """Split of the dataset that this stage trains on."""
    run: Path | None = None
    """Run folder of an earlier `sft` (or `train`) whose supervised weights are used instead."""
    batch: int = 96
    """Records per update."""
    accumulation: int = 1
    """Number of parts into which the batch is split, their gradients summed; saves memory, changes nothing else."""
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
        """Number of supervised updates that this run does itself."""
        return 0 if self.run else self.steps


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are sampled from the policy."""

    max_new_tokens: int = 12
    """Maximum length of a completion, including its end token; longer ones are truncated and counted."""
    temperature: float = 1.0
    """Divisor of the logits in both sampling and the update; evaluation is greedy."""
    top_p: float = 1.0
    """Nucleus sampling: sample only from the likeliest tokens whose probabilities add up to this value."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the weights while sampling; default: the training dtype. bfloat16 halves the memory read per token."""
    weights: Literal["replicated", "tensor"] = "replicated"
    """Layout of the weights while sampling: replicated on every device, or split along the second axis of the mesh."""
    tries: int = 1
    """Maximum number of prompt batches drawn per step to replace prompts whose completions all have the same reward
    (DAPO's dynamic sampling, bounded); 1 uses the first batch as it is."""
    truncated: Literal["keep", "mask", "penalise"] = "keep"
    """Treatment of completions truncated at max_new_tokens: keep them as they are, exclude them from the loss and all
    baselines ("mask"), or reduce the reward as the length nears the limit ("penalise", see overlong_buffer)."""
    overlong_buffer: int = 4
    """With truncated "penalise": number of tokens before the limit over which the reward falls by up to 1."""

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
    """The reward of a completion."""

    kind: Literal["exact", "set_f1"] = "exact"
    """Reward function: "exact" is 1 if the boxed labels equal the reference labels, else 0; "set_f1" is the F1 of the
    two sets."""
    max_unscored: float = 0.5
    """Largest share of a step's completions without a score (NaN), e.g. because a judge did not answer; above it the
    run saves and stops. A step without any score stops it at once."""

    def __post_init__(self):
        _require_finite("reward.", self)
        _require(0 <= self.max_unscored <= 1, f"reward.max_unscored={self.max_unscored}", "a share, 0 to 1")


@dataclasses.dataclass(frozen=True)
class Update:
    """How a rollout batch becomes policy updates."""

    mini_batches: int = 1
    """Number of equal parts of the rollout batch, one update each."""
    passes: int = 1
    """Number of passes over the rollout batch."""
    accumulation: int = 1
    """Number of parts into which a mini-batch is split, their gradients summed; saves memory, changes nothing else."""
    chunks: int = 0
    """Number of chunks, a divisor of rollouts, into which the rollouts of each prompt are split, one backward pass
    each. Saves memory, and computes less padding because rollouts of similar length share a chunk. 0: as many as the
    device memory requires."""
    kind: Literal["clip", "gspo", "cispo"] = "clip"
    """Probability ratio: clipped per token (PPO, GRPO), clipped per completion (GSPO, with clips of about 3e-4), or
    clipped without stopping the gradient (CISPO)."""
    clip_low: float = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The probability ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = None
    """Upper bound of the ratio in the loss of negative advantages (3.0 in verl); default: none."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over tokens (DAPO, verl), over sequences (GRPO), or sum over a constant length (Dr.GRPO)."""
    beta: float = 0.0
    """Weight of the KL divergence to the policy at the start of reinforcement learning (with adapters: to the model
    without them), e.g. 0.04; 0 needs no reference policy."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence from the sampled tokens; see fairgrpo_jax.losses.kl."""
    importance: Literal["none", "token", "sequence"] = "none"
    """Importance weights, per token or per completion, that correct for differences between the sampler and the learner
    (e.g. sampling.dtype)."""
    importance_cap: float = 2.0
    """Upper bound of the importance weights."""
    remat: bool = True
    """Recompute activations in the backward pass: less memory, more compute (on a CPU no more time)."""

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
        """Number of micro-batches into which the prompts of a step are split."""
        return self.mini_batches * self.accumulation

    @property
    def per_step(self) -> int:
        """Number of updates per step."""
        return self.passes * self.mini_batches


@dataclasses.dataclass(frozen=True)
class Fairness:
    """The temperatures of FairGRPO; see fairgrpo_jax.fairness for the formula and the sources."""

    statistics: Literal["cumulative", "batch", "ema"] = "cumulative"
    """Group sizes and mean rewards: accumulated since the start (authors' code), of the batch (paper), or decayed."""
    decay: float = 0.99
    """Decay per step with statistics "ema"."""
    clamp: Literal["code", "product", "factor"] = "code"
    """Which part of the temperature is kept above zero: as in the authors' code, the product, or each factor
    (fair_grpo_nd always uses "factor")."""
    levels: Literal["both", "group", "domain"] = "both"
    """Temperatures to use: of the domain and of the group within it, or only one of them."""
    size_exponent: float = 0.5
    """Exponent of the group size in the temperature."""
    mean_exponent: float = 1.0
    """Exponent of the group's mean reward in the temperature."""
    max_weight: float | None = None
    """Limits each prompt's weight to [1/max_weight, max_weight] times the median weight; no limit in the paper."""
    k_max: int | None = None
    """Maximum number of implicit groups per domain; default: 10 for drpo, 3 for the other algorithms."""
    sort_vectors: bool = False
    """Sort each prompt's rewards before clustering, so that only the number of successes counts, not their order."""
    history: Literal["ring", "binary"] | None = "binary"
    """Reward vectors of unlabelled prompts kept for clustering: the latest ones ("ring"), an exact table of binary
    ones, or none (the unlabelled prompts of a domain are then one group)."""
    capacity: int = 8192
    """Number of reward vectors kept per domain with history "ring"."""
    shift: float = 0.0
    """Constant added to all rewards before means and clusters are computed, for rewards that may be negative."""
    step_size: float = 0.01
    """Step size of group_dro's weights; with a larger step, a single group that never improves takes all the weight."""

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
        """The keyword arguments for ``fairness.temperatures``."""
        apart = ("history", "capacity", "step_size", *(("k_max",) if self.k_max is None else ()))
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in apart}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Greedy evaluation on held-out patients: before, during and after training."""

    every: int = 100
    """Steps between evaluations."""
    batch: int = 256
    """Records per greedy batch."""
    samples: int = 8
    """Number of prompts whose completions, images and rewards are kept for the report at every evaluation."""

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
    """One experiment. A run folder belongs to one config: the same config resumes it, a changed one is an error."""

    name: str = "clinic"
    """Name of the preset that this config was made from."""
    algorithm: Algorithm = "fair_grpo"
    """Advantage estimator; fair_grpo and group_dro use explicit groups, fair_grpo_nd and drpo groups found by
    clustering. See docs/advantages.md for when to use which."""
    mesh: str = "1x1"
    """Shape of the device mesh as FSDPxTENSOR, e.g. 4x1; on a CPU the devices are simulated."""
    seed: int = 0
    """Random seed of weights, data order and sampling."""
    steps: int = 300
    """Number of reinforcement learning steps."""
    prompts: int = 64
    """Number of prompts per step; a multiple of the mesh's first axis."""
    rollouts: int = 8
    """Number of completions sampled per prompt."""
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
        """Sizes of the batches that are split over the first axis of the mesh, by their names in error messages."""
        sizes = {"prompts / (update.mini_batches x update.accumulation)": self.prompts // self.update.parts}
        if self.warmup.own_steps:
            sizes["warmup.batch / warmup.accumulation"] = self.warmup.batch // self.warmup.accumulation
        return sizes | {"evaluation.batch": self.evaluation.batch}


def to_dict(config: Any) -> dict:
    """Converts a config to a nested dict for JSON: paths become strings, tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(values: dict, schema: type = Config) -> Any:
    """Rebuilds a config from the result of ``to_dict``; unknown keys are an error."""
    hints = typing.get_type_hints(schema)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(
            f"got unknown options {sorted(unknown)} for {schema.__name__}; wanted a config.json of this version"
        )
    return schema(**{key: _cast(hints[key], value) for key, value in values.items()})


def read(path: Path) -> tuple[Config, list[str]]:
    """Reads a ``config.json``, also of another version of this library.

    Returns:
        The config, and a line for every option that this version does not know, which is left out, or that the file
        lacks, which gets its default.

    Raises:
        ValueError: naming the file, if it is missing, cut short, or has a value that this version refuses.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kept, lines = _known(values, Config)
        return from_dict(kept), lines
    except OSError as error:
        raise ValueError(f"got {path} ({error.strerror}); wanted the config.json of a run folder") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"got {path} with {error}; wanted a config.json as a run writes it") from error


def _known(values: dict, schema: Any, prefix: str = "") -> tuple[dict, list[str]]:
    """The values that the schema has, and what is told of the others."""
    hints, kept, lines = typing.get_type_hints(schema), {}, []
    lines += [f"{prefix}{name} is not an option of this version: left out" for name in sorted(values.keys() - hints)]
    for name, hint in hints.items():
        if name not in values:
            lines.append(f"{prefix}{name} is new in this version: {getattr(schema(), name)}")
        elif dataclasses.is_dataclass(hint):
            kept[name], more = _known(values[name], hint, f"{prefix}{name}.")
            lines += more
        else:
            kept[name] = values[name]
    return kept, lines


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
    """Flattens a nested dict to ``{"optim.lr": 1e-4, ...}``."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def difference(old: dict, new: dict, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Returns a line such as ``optim.lr: 0.0001 -> 0.001`` for every option that differs between two configs."""
    a, b = flatten(old), flatten(new)
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key) and key not in ignore]
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys]
