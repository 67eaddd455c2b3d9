"""Shared parts of the runs of RL fine-tuning for medical VQA (arXiv 2505.13973).

Known of the paper, second-hand: rewards for format and correctness, to which the methods add or from which they take;
KL weight 0.04, 8 completions, learning rate 1e-6, temperature 1, 1,500 steps on 10,000 questions of PMC-VQA, and
Qwen2-VL-2B on 4 A100 of 80 GB. Its code base is in all likelihood R1-V, whose launch files have the same figures:
batches of 8 prompts (4 devices x 1 x 2 accumulated), images of 3,136 to 401,408 pixels, prompts of 1,024 tokens, the
sum of equally weighted rewards, updates that are strictly on-policy. Ours, since no source is known: 1,024 new
tokens (R1-V's default of 256 does not fit the paper's longer answers), the formulas and weights of the length rewards,
the wording of the instruction and of the judge's question.
"""

from pathlib import Path

from fairgrpo_jax.config import Config, Data, Evaluation, Fairness, Model, Optim, Reward, Sampling, Update, Warmup


# By method, the components of the reward: format and correctness, and what the paper adds and takes away.
METHODS: dict[str, tuple[str, ...]] = {
    "format_accuracy": ("answered", "think_answer"),
    "semantic": ("answered", "think_answer", "semantic"),
    "ecr": ("answered", "think_answer", "ecr"),
    "cwr": ("answered", "think_answer", "cwr"),
    "format_only": ("think_answer",),
    "accuracy_only": ("answered",),
}


def paper(name: str, method: str, *, algorithm: str, update: Update) -> Config:
    """A run of the paper with one of ``METHODS``."""
    return Config(
        name=name,
        algorithm=algorithm,  # type: ignore[arg-type]
        mesh="4x1",
        steps=1500,
        prompts=8,
        rollouts=8,
        checkpoint_every=100,
        data=Data(
            name="pmc_vqa",
            letters=True,
            leakage="report",  # the owners' split shares articles
            instruction="Put your reasoning between <think> and </think>, then nothing but the letter of your choice, "
            "or for a question without choices a short answer, between <answer> and </answer>.",
            prompt_length=1024,
            num_patches=2304,
            min_pixels=3136,
            max_pixels=401408,
            buckets=2,
        ),
        model=Model(path=Path("Qwen2-VL-2B-Instruct"), compute="bfloat16"),
        warmup=Warmup(steps=0),
        sampling=Sampling(max_new_tokens=1024, dtype="bfloat16"),
        reward=Reward(METHODS[method]),
        update=update,
        optim=Optim(lr=1e-6, warmup_steps=0, schedule="constant", weight_decay=0.0),
        fairness=Fairness(history="ring"),
        evaluation=Evaluation(every=250, batch=64, records=2048, perplexity=True),
    )
