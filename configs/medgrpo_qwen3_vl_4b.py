"""Qwen3-VL-4B on MedVidBench by MedGRPO; as ``medgrpo_qwen2_5_vl_7b``.

Paper: MedGRPO (arXiv 2512.06581), its second policy.
Command: ``python -m fairgrpo_jax.train medgrpo_qwen3_vl_4b --model.path DIR --data.root DIR --judge.url URL
--judge.model NAME --reward.similarity MINILM``
Hardware: the authors used 8 H100; ``python -m fairgrpo_jax.plan medgrpo_qwen3_vl_4b`` says what fits.
Expected: the paper reports 0.176 STG, 0.504 TAG at 0.3, 4.23 of 5 for summaries, 3.86 for regions, on data that are not
public. Not run by us.
"""

from fairgrpo_jax.config import Config
from fairgrpo_jax.configs._medgrpo import METHODS as METHODS, checkpoint, paper


def get_config(method: str = "full") -> Config:
    """One of ``METHODS``."""
    # The checkpoint's own budget of a whole film: 12,288 tokens, 49,152 patches; and the time of every pair as text.
    model = checkpoint("Qwen3-VL-4B-Instruct")
    return paper("medgrpo_qwen3_vl_4b", method, model=model, prompt_length=18432, num_patches=49152)
