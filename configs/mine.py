"""Your own questions with a published checkpoint: FairGRPO, sizes measured from the data; other methods by their names.

Method: FairGRPO (arXiv 2510.19893) or another, ``mine/fair_sampling`` for example, without a supervised stage.
Command: ``python -m fairgrpo_jax.train mine --model.path MODEL --data.root DATA``; docs/own-data.md leads there.
Hardware: as the checkpoint asks for; ``python -m fairgrpo_jax.plan mine`` with the sizes of your data says what fits.
Expected: nothing is promised. No run of ours has used it with a checkpoint of true size.
"""

from pathlib import Path

from fairgrpo_jax.config import Config, Data, Evaluation, Fairness, Model, Optim, Reward, Sampling, Update, Warmup
from fairgrpo_jax.configs import _methods
from fairgrpo_jax.configs._clinical import INSTRUCTION
from fairgrpo_jax.configs._methods import METHODS as METHODS


def get_config(method: str = "fair_grpo") -> Config:
    """The FairGRPO paper's hyper-parameters where they do not depend on the number of records; others are ours."""
    config = Config(
        name="mine",
        steps=100,  # ours: 6,400 prompts
        prompts=64,  # ours; the paper's 512 are more than many a hospital's training records
        rollouts=8,  # ours; the authors' scripts have 5 and 10
        checkpoint_every=10,
        data=Data(
            name="jsonl",
            prompt_length=0,
            num_patches=0,
            buckets=4,
            list_choices=True,
            instruction=INSTRUCTION,
        ),
        model=Model(path=Path("MODEL"), compute="bfloat16"),
        warmup=Warmup(steps=0),
        sampling=Sampling(max_new_tokens=1024, dtype="bfloat16"),  # ours; the paper's 4,096 are for long thoughts
        reward=Reward(components=("set_f1",)),
        update=Update(dual_clip=3.0),  # one update a step: 64 prompts are half of one of the paper's four
        optim=Optim(lr=1e-6, warmup_steps=0, schedule="constant"),
        fairness=Fairness(history="ring"),
        evaluation=Evaluation(every=20, batch=64, records=512),
    )
    return _methods.method(config, method)
