"""The options of each part of a run: default, unit and help of each."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from fairgrpo_jax.config.checks import require, require_finite, require_pattern
from fairgrpo_jax.demographics import Scheme


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
    """Frames sampled uniformly from each video; an even number, because the vision tower merges frames in pairs. 0: all
    frames, or as many as the dataset's loader gives."""
    tasks: tuple[str, ...] = ()
    """Tasks that reinforcement learning trains on, of a dataset that has several; default: all. The supervised stage
    and evaluations have all."""
    instruction: str = ""
    """Text added to every question, e.g. how to think and where to put the answer."""
    plain_answers: bool = False
    """Answers are plain text, as MedVidBench's: supervised completions are the reference and nothing else, and what an
    evaluation records as the answer is all that follows the thought. Without it, <think>...</think>\\boxed{...}."""
    list_choices: bool = False
    """List the possible answers below the question."""
    letters: bool = False
    """List them as A: ..., B: ...; a letter is then an answer, in reward and evaluation alike."""
    prompt_length: int = 48
    """Largest length of a prompt in tokens, those of its media included; see over_length. 0: that of the longest prompt
    of the data, measured before the run."""
    num_patches: int = 64
    """Largest number of vision patches of a prompt; see over_length. 0: that of the data, measured before the run."""
    over_length: Literal["refuse", "skip", "truncate_media"] = "refuse"
    """What to do with records whose prompt is larger, before the run starts: stop and name them; leave them out; or
    halve the frames of their videos, then leave out images, until they fit. unfit.jsonl in the run folder names
    them."""
    buckets: int = 1
    """Number of sizes to which prompts are padded, chosen from the data. More compute less padding where prompts differ
    much in length, and each is a program to compile."""
    min_pixels: int | None = None
    """Smaller images are enlarged to this many pixels; default: the checkpoint's value, or 32 x 32 without one."""
    max_pixels: int | None = None
    """Larger images are reduced to this many pixels; default: the checkpoint's value, but at most 524,288 where
    prompt_length or num_patches is measured, or 32 x 32 without a checkpoint."""
    attributes: tuple[str, ...] = ("sex", "age")
    """Attributes that define the demographic groups: sex, age, or others of the dataset (race, skin_type, ...)."""
    age_edges: tuple[int, ...] = (25, 50, 75)
    """Upper edges of the age groups in years, inclusive."""
    leakage: Literal["refuse", "report"] = "refuse"
    """What to do if a patient has both training and held-out records, as in some official splits (VQA-RAD's)."""
    sampling: Literal["natural", "balanced", "fair"] = "natural"
    """How the prompts of reinforcement learning are drawn: as they are mixed in the data; with records repeated until
    all demographic groups of a dataset are as large as the largest one (GRPO+RS); or by demographic group, in
    proportion to what is still wrong there (see draw)."""
    columns: tuple[str, ...] = ()
    """Columns of your own data under other names, as NAME=COLUMN: answer=label patient=mrn."""
    codes: tuple[str, ...] = ()
    """What values of your own data mean, as COLUMN.CODE=VALUE: sex.1=M sex.2=F age.999= (nothing: unknown)."""
    workers: int = 2
    """Number of workers that decode and prepare prompts while the devices compute."""
    processes: bool = False
    """Let the workers be processes instead of threads, for large images on many cores."""

    @property
    def measured(self) -> bool:
        """Whether a size of the prompts is left to the data."""
        return 0 in (self.prompt_length, self.num_patches)

    @property
    def scheme(self) -> Scheme:
        """The demographic groups that training, metrics and report distinguish."""
        return Scheme(self.attributes, self.age_edges)

    def __post_init__(self):
        require_finite("data.", self)
        require(self.workers > 0, f"data.workers={self.workers}", "at least one worker")
        require(all(self.name.split(",")), f"data.name={self.name!r}", "names of datasets, joined by commas")
        require(self.num_patches >= 0, f"data.num_patches={self.num_patches}", "a number >= 0")
        require(self.buckets > 0, f"data.buckets={self.buckets}", "at least one size")
        require(all(self.attributes), f"data.attributes={self.attributes}", "names that are not empty")
        pairs = [column.split("=") for column in self.columns]
        named = all(len(pair) == 2 and all(pair) for pair in pairs)
        require(named, f"data.columns={self.columns}", "NAME=COLUMN, with spaces between them")
        told = all("=" in code and "." in code.split("=")[0] for code in self.codes)
        require(told, f"data.codes={self.codes}", "COLUMN.CODE=VALUE, with spaces between them")
        require(
            self.num_frames >= 0 and self.num_frames % 2 == 0,
            f"data.num_frames={self.num_frames}",
            "an even number of frames, at least 2, or 0 for all",
        )
        require(0 <= self.temperature <= 1, f"data.temperature={self.temperature}", "0 to 1")
        require(self.prompt_length >= 0, f"data.prompt_length={self.prompt_length}", "a number >= 0")
        least, most = self.min_pixels, self.max_pixels
        require(
            (least is None or least > 0) and (most is None or most >= (least or 1)),
            f"data.min_pixels={least}, data.max_pixels={most}",
            "0 < min_pixels <= max_pixels",
        )
        require(
            len(self.attributes) == len(set(self.attributes)) > 0,
            f"data.attributes={self.attributes}",
            "at least one attribute, none twice",
        )
        require(
            0 < len(self.age_edges) and list(self.age_edges) == sorted({edge for edge in self.age_edges if edge > 0}),
            f"data.age_edges={self.age_edges}",
            "at least one age above 0, in rising order",
        )


@dataclasses.dataclass(frozen=True)
class Draw:
    """How prompts are drawn with data.sampling fair; see fairgrpo_jax.sampler and grouping.sampling_probabilities."""

    size_exponent: float = 1.0
    """1 gives all groups of a dataset the same share before their hardness counts, 0 a share by their size."""
    hardness_exponent: float = 1.0
    """Power of a group's hardness in its share; 0 ignores the hardness."""
    domain_exponent: float = 0.5
    """Power of a dataset's size in its share: 1 mixes datasets by size, 0 evenly. It replaces data.temperature."""
    max_ratio: float = 10.0
    """No group is drawn more than this many times as often as in the natural mixture."""
    floor: float = 0.05
    """Share of the prompts that is drawn naturally, whatever the hardness."""
    measure: Literal["error", "flip"] = "error"
    """Hardness of a prompt: 1 - its mean reward, or whether it is answered rightly sometimes but at most half of the
    time."""
    decay: float = 0.95
    """Decay per step of the observed hardness."""
    prior: float = 4.0
    """Number of prompts by which a group's hardness is drawn towards that of its dataset."""
    window: int = 8
    """Number of steps for which the probabilities stay as they are; up to 2 batches are prepared ahead of them."""

    def __post_init__(self):
        require_finite("draw.", self)
        require(self.max_ratio >= 1, f"draw.max_ratio={self.max_ratio}", "a ratio >= 1")
        require(0 <= self.floor <= 1, f"draw.floor={self.floor}", "a share, 0 to 1")
        require(0 <= self.decay < 1, f"draw.decay={self.decay}", "0 <= decay < 1")
        require(self.prior > 0, f"draw.prior={self.prior}", "a number of prompts > 0")
        require(self.window >= 1, f"draw.window={self.window}", "at least one step")
        require(self.hardness_exponent >= 0, f"draw.hardness_exponent={self.hardness_exponent}", "a power >= 0")

    @property
    def rule(self) -> dict[str, Any]:
        """The keyword arguments for ``sampler.FairSampler``."""
        return dataclasses.asdict(self)


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
    adapter: Path | None = None
    """Folder of low-rank adapters in PEFT's form, made for the checkpoint: the run trains them on. Their rank, alpha
    and targets are those of the folder."""
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
        require_finite("model.", self)
        require(
            self.adapter is None or self.path is not None,
            f"model.adapter={self.adapter} without model.path",
            "the checkpoint folder that it was made for: --model.path FOLDER",
        )
        require(self.hidden_size > 0, f"model.hidden_size={self.hidden_size}", "a positive multiple of 16")
        require(self.num_layers > 0, f"model.num_layers={self.num_layers}", "at least one layer")
        require(self.vision_depth > 0, f"model.vision_depth={self.vision_depth}", "at least one block")
        require_pattern("model.lora_targets", self.lora_targets)
        for pattern in self.freeze:
            require_pattern("model.freeze", pattern)
        require(self.hidden_size % 16 == 0, f"model.hidden_size={self.hidden_size}", "a multiple of 16")
        require(
            self.lora_rank >= 0 and self.lora_alpha > 0,
            f"model.lora_rank={self.lora_rank}, model.lora_alpha={self.lora_alpha}",
            "lora_rank >= 0 and a positive lora_alpha",
        )


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
    cache: Literal["float32", "bfloat16"] | None = None
    """Dtype of the keys and values while sampling; default: bfloat16 for a model from a folder (model.path), whatever
    its weights are, otherwise that of the weights. They are most of what decoding reads where completions are long."""
    waves: int = 0
    """Number of parts, a divisor of prompts, in which the prompts of a step are sampled one after the other. Saves
    memory, changes no sample. 0: as many as the device memory requires."""
    tries: int = 1
    """Maximum number of prompt batches drawn per step to replace prompts whose completions all have the same reward
    (DAPO's dynamic sampling, bounded); 1 uses the first batch as it is."""
    truncated: Literal["keep", "mask", "penalise"] = "keep"
    """Treatment of completions truncated at max_new_tokens: keep them as they are, exclude them from the loss and all
    baselines ("mask"), or reduce the reward as the length nears the limit ("penalise", see overlong_buffer)."""
    overlong_buffer: int = 4
    """With truncated "penalise": number of tokens before the limit over which the reward falls by up to 1."""

    def __post_init__(self):
        require_finite("sampling.", self)
        require(self.waves >= 0, f"sampling.waves={self.waves}", "at least 1, or 0 for as many as the memory asks for")
        require(0 < self.tries <= 100, f"sampling.tries={self.tries}", "1 to 100")
        require(
            self.truncated != "penalise" or 1 <= self.overlong_buffer <= self.max_new_tokens,
            f"sampling.overlong_buffer={self.overlong_buffer}",
            f"1 to sampling.max_new_tokens={self.max_new_tokens}",
        )
        require(self.max_new_tokens > 0, f"sampling.max_new_tokens={self.max_new_tokens}", "at least one token")
        require(
            1e-3 <= self.temperature <= 1e3,
            f"sampling.temperature={self.temperature}",
            "a positive temperature, from 0.001 to 1000 (evaluation is greedy by itself)",
        )
        require(0 < self.top_p <= 1, f"sampling.top_p={self.top_p}", "0 < top_p <= 1")


@dataclasses.dataclass(frozen=True)
class Update:
    """How a rollout batch becomes policy updates."""

    mini_batches: int = 1
    """Number of equal parts of the rollout batch, one update each."""
    passes: int = 1
    """Number of passes over the rollout batch."""
    accumulation: int = 0
    """Number of parts into which a mini-batch is split, their gradients summed; saves memory, changes nothing else. 0:
    as many as the device memory requires."""
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
    kl_ratio: bool = False
    """Multiply the KL term by the probability ratio to the sampling policy, gradient included, which makes the term
    unbiased (use_bias_correction_kl of TRL, its default since 1.16)."""
    importance: Literal["none", "token", "sequence"] = "none"
    """Importance weights, per token or per completion, that correct for differences between the sampler and the learner
    (e.g. sampling.dtype)."""
    importance_cap: float = 2.0
    """Upper bound of the importance weights."""
    remat: bool | Literal["selective"] = True
    """Recompute activations in the backward pass: less memory, more compute (on a CPU no more time). "selective" keeps
    the outputs of matrix products, which are nearly all of the compute, and recomputes what lies between them. The plan
    says whether that fits."""

    def __post_init__(self):
        require_finite("update.", self)
        require(0 <= self.clip_low <= 1, f"update.clip_low={self.clip_low}", "0 <= clip_low <= 1")
        require(self.clip_high > 0, f"update.clip_high={self.clip_high}", "a positive number")
        require(self.dual_clip is None or self.dual_clip > 1, f"update.dual_clip={self.dual_clip}", "a bound > 1")
        for name in ("mini_batches", "passes"):
            require(getattr(self, name) > 0, f"update.{name}={getattr(self, name)}", "at least 1")
        for name in ("accumulation", "chunks"):
            value = getattr(self, name)
            require(value >= 0, f"update.{name}={value}", "at least 1, or 0 for as many as the memory asks for")
        require(self.importance_cap >= 1, f"update.importance_cap={self.importance_cap}", "a cap >= 1")
        require(self.beta >= 0, f"update.beta={self.beta}", "a weight >= 0")
        require(self.remat in (True, False, "selective"), f"update.remat={self.remat!r}", "True, False or selective")
        require(
            self.kind != "cispo" or self.dual_clip is None,
            f"update.kind='cispo' with update.dual_clip={self.dual_clip}",
            "no dual clip, which bounds what cispo does not have",
        )
        require(
            self.kind != "gspo" or max(self.clip_low, self.clip_high) < 0.1,
            f"update.kind='gspo' with update.clip_low={self.clip_low}, update.clip_high={self.clip_high}",
            "bounds of a mean over tokens, which never reaches these, e.g. clip_low=3e-4, clip_high=4e-4",
        )

    @property
    def parts(self) -> int:
        """Number of micro-batches into which the prompts of a step are split, as far as that is decided."""
        return self.mini_batches * max(self.accumulation, 1)

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
        require_finite("fairness.", self)
        require(0 <= self.decay < 1, f"fairness.decay={self.decay}", "0 <= decay < 1")
        require(
            self.max_weight is None or self.max_weight >= 1, f"fairness.max_weight={self.max_weight}", "a bound >= 1"
        )
        require(self.k_max is None or self.k_max > 0, f"fairness.k_max={self.k_max}", "at least one group")
        require(
            self.size_exponent >= 0 and self.mean_exponent >= 0,
            f"fairness.size_exponent={self.size_exponent}, fairness.mean_exponent={self.mean_exponent}",
            "powers >= 0",
        )
        require(self.capacity > 0, f"fairness.capacity={self.capacity}", "room for at least one vector")
        require(self.step_size > 0, f"fairness.step_size={self.step_size}", "a positive step size")
        require(self.shift >= 0, f"fairness.shift={self.shift}", "a shift >= 0")

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
    records: int | None = None
    """Held-out records that are answered during training, drawn once by the seed from every dataset in its proportion;
    default: all. Before and after training all are answered."""
    datasets: tuple[str, ...] = ()
    """Further datasets that are only evaluated, on their last split; data.root then has one subfolder per name."""
    split: str | None = None
    """Split to answer where nothing is trained, with or without right answers, such as test; no other is read. Default:
    the held-out one."""
    components: tuple[str, ...] = ()
    """Components, in the form of reward.components, that held-out answers are scored by beside the reward, for the log
    and evals/<step>.jsonl alone."""
    perplexity: bool = False
    """Log the perplexity of held-out answers under the policy at the start of reinforcement learning."""
    samples: int = 8
    """Number of prompts whose completions, images and rewards are kept for the report at every evaluation."""
    completions: int = 0
    """Steps between tables of all completions with their scores, without images (completions/*.parquet); 0: none."""

    def __post_init__(self):
        require_finite("evaluation.", self)
        require(self.samples >= 0, f"evaluation.samples={self.samples}", "a number >= 0")
        require(self.completions >= 0, f"evaluation.completions={self.completions}", "a number of steps, or 0")
        require(
            self.records is None or self.records > 0,
            f"evaluation.records={self.records}",
            "at least one record, or none of this option for all",
        )
        require(
            self.every > 0 and self.batch > 0,
            f"evaluation.every={self.every}, evaluation.batch={self.batch}",
            "positive numbers",
        )
