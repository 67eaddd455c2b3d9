"""FairMedGemma-4B: MedGemma-4B on the paper's seven datasets, FairGRPO and every baseline of its table.

Paper: FairGRPO (arXiv 2510.19893).
Command: ``python -m fairgrpo_jax.train fairmedgemma_4b --model.path DIR --data.root DIR``; a baseline:
``fairmedgemma_4b/grpo`` (``train --list`` shows all). DIR of the data has one folder for each dataset, by its name.
Hardware: the authors used 4 H200; ``python -m fairgrpo_jax.plan fairmedgemma_4b`` says what fits.
Expected: the paper reports higher F1 of the worst group and smaller gaps than GRPO. Not run by us.
"""

from pathlib import Path

from fairgrpo_jax.config import Config, Data, Model
from fairgrpo_jax.configs._clinical import paper
from fairgrpo_jax.configs._methods import METHODS as METHODS


def get_config(method: str = "fair_grpo") -> Config:
    """One of ``METHODS`` with the learning rate and the rollouts of the authors' FairGRPO script."""
    model = Model(path=Path("medgemma-4b-it"), compute="bfloat16")
    # Four frames of 896 x 896 pixels are the most that a prompt shows: 4 x 256 tokens, 4 x 4096 patches.
    data = Data(buckets=4, prompt_length=1536, num_patches=16384)
    return paper("fairmedgemma_4b", method, model=model, data=data, lr=5e-7, rollouts=10)
