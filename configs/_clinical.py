"""Shared parts of the FairGRPO paper's runs: seven datasets, their hyper-parameters, the methods they compare.

Figures are those of the authors' scripts (arXiv 2510.19893). Where scripts of one model differ between methods
(MedGemma: learning rate 5e-7 and 10 rollouts with FairGRPO, 1e-6 and 5 with GRPO), all get those of FairGRPO, so
that only the method differs. Where paper and script differ, the script is taken, as its figures are those of the
reported runs: token mean over a mini-batch (the paper's formula: mean of sequence means), statistics over the whole run
(the paper: of the batch), the F1 of label sets as reward (the paper: right or wrong; equal for single labels).
"""

import dataclasses

from fairgrpo_jax.config import Config, Data, Evaluation, Fairness, Model, Optim, Reward, Sampling, Update, Warmup
from fairgrpo_jax.configs import _methods


DATASETS = ("chexpert", "hemorrhage", "vindr_mammo", "isic2020", "ham10000", "pad_ufes_20", "covid_blues")


INSTRUCTION = r"Reason first, between <think> and </think>; then give the final answer in \boxed{}."


def paper(name: str, method: str, *, model: Model, data: Data, lr: float, rollouts: int) -> Config:
    """A run of the paper with one of the methods of ``_methods``."""
    data = dataclasses.replace(
        data,
        name=",".join(DATASETS),
        num_frames=4,
        list_choices=True,
        instruction=INSTRUCTION,
    )
    config = Config(
        name=name,
        mesh="4x1",
        steps=90,  # what the authors' curves show of 15 epochs
        prompts=512,
        rollouts=rollouts,
        checkpoint_every=10,
        data=data,
        model=model,
        warmup=Warmup(steps=0),
        sampling=Sampling(max_new_tokens=4096, dtype="bfloat16"),
        reward=Reward(components=("set_f1",)),
        update=Update(mini_batches=4, dual_clip=3.0),
        optim=Optim(lr=lr, warmup_steps=0, schedule="constant"),
        fairness=Fairness(history="ring"),
        evaluation=Evaluation(every=5, batch=64, records=2048),
    )
    return _methods.method(config, method)
