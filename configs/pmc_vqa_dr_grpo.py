"""Qwen2-VL-2B on PMC-VQA by Dr.GRPO, with the rewards that the paper compares.

Paper: Toward effective reinforcement learning fine-tuning for medical VQA (arXiv 2505.13973); Dr.GRPO (arXiv
2503.20783).
Command: ``python -m fairgrpo_jax.train pmc_vqa_dr_grpo --model.path DIR --data.root DIR``; see ``pmc_vqa_grpo``.
Hardware: the authors used 4 A100 of 80 GB.
Expected: the paper reports 61.1 % accuracy, 3.1 points above GRPO. Not run by us.
"""

from fairgrpo_jax.config import Config, Update
from fairgrpo_jax.configs._medical_vqa import METHODS as METHODS, paper


def get_config(method: str = "format_accuracy") -> Config:
    """One of ``METHODS``; no division by deviation or length: the sum of a completion's tokens over a constant."""
    return paper("pmc_vqa_dr_grpo", method, algorithm="dr_grpo", update=Update(aggregation="constant", beta=0.04))
