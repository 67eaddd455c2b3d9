"""Qwen2.5-VL-7B on MedVidBench by MedGRPO: three supervised epochs, then GRPO on one scale for all datasets and tasks.

Paper: MedGRPO (arXiv 2512.06581).
Command: ``python -m fairgrpo_jax.train medgrpo_qwen2_5_vl_7b --model.path DIR --data.root DIR --judge.url URL
--judge.model NAME --reward.similarity MINILM``; the rows of its ablation by their names, ``/no_normalisation``,
``/grounding``, ``/captions``, ``/captions_without_judge``; docs/medgrpo.md leads there.
Hardware: the authors used 8 H100; ``python -m fairgrpo_jax.plan medgrpo_qwen2_5_vl_7b`` says what fits.
Expected: the paper reports 0.202 STG, 0.216 TAG at 0.3, 4.18 of 5 for summaries, 3.44 for regions, on 51,505 training
pairs that are not public; those that are on request are an eighth. Not run by us.
"""

from fairgrpo_jax.config import Config
from fairgrpo_jax.configs._medgrpo import METHODS as METHODS, checkpoint, paper


def get_config(method: str = "full") -> Config:
    """One of ``METHODS``."""
    # 768 frames are 384 pairs of at most 48 tokens, 192 patches; the rest of the prompt is the question.
    model = checkpoint("Qwen2.5-VL-7B-Instruct")
    return paper("medgrpo_qwen2_5_vl_7b", method, model=model, prompt_length=19456, num_patches=73728)
