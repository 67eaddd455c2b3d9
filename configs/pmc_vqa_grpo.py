"""Qwen2-VL-2B on PMC-VQA by GRPO, with the rewards that the paper compares.

Paper: Toward effective reinforcement learning fine-tuning for medical VQA (arXiv 2505.13973).
Command: ``python -m fairgrpo_jax.train pmc_vqa_grpo --model.path DIR --data.root DIR``; with medical coherence of the
reasoning as a reward ``pmc_vqa_grpo/semantic --judge.url URL --judge.model NAME``; evaluated on VQA-RAD and SLAKE too
with ``--evaluation.datasets vqa_rad slake``, where DIR has one folder for each of the three.
Hardware: the authors used 4 A100 of 80 GB.
Expected: the paper reports 58.0 % accuracy, 59.9 % with ``semantic``, 50.2 % with ``ecr``. Not run by us.
"""

from fairgrpo_jax.config import Config, Update
from fairgrpo_jax.configs._medical_vqa import METHODS as METHODS, paper


def get_config(method: str = "format_accuracy") -> Config:
    """One of ``METHODS``; the loss is the mean of the sequences' means, with the KL term."""
    return paper("pmc_vqa_grpo", method, algorithm="grpo", update=Update(aggregation="sequence", beta=0.04))
