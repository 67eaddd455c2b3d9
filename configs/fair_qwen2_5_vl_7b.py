"""Qwen2.5-VL-7B on the paper's seven datasets, FairGRPO and every baseline of its table.

Paper: FairGRPO (arXiv 2510.19893).
Command: ``python -m fairgrpo_jax.train fair_qwen2_5_vl_7b --model.path DIR --data.root DIR``; a baseline:
``fair_qwen2_5_vl_7b/grpo`` (``train --list`` shows all). DIR of the data has one folder for each dataset, by its name.
Hardware: the authors used 4 H200; ``python -m fairgrpo_jax.plan fair_qwen2_5_vl_7b`` says what fits.
Expected: the paper reports higher F1 of the worst group and smaller gaps than GRPO. Not run by us.
"""

from pathlib import Path

from fairgrpo_jax.config import Config, Data, Model
from fairgrpo_jax.configs._clinical import paper
from fairgrpo_jax.configs._methods import METHODS as METHODS


def get_config(method: str = "fair_grpo") -> Config:
    """One of ``METHODS`` with the learning rate and the rollouts of the authors' scripts, which agree here."""
    model = Model(path=Path("Qwen2.5-VL-7B-Instruct"), compute="bfloat16")
    # 524,288 pixels are 2,688 patches and 672 tokens; two images or four frames are the most that a prompt shows.
    data = Data(buckets=4, prompt_length=2048, num_patches=10752, min_pixels=65536, max_pixels=524288)
    return paper("fair_qwen2_5_vl_7b", method, model=model, data=data, lr=1e-6, rollouts=5)
