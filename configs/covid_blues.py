"""COVID-BLUES: 362 real lung-ultrasound videos of 63 patients with age and sex (you provide the folder).

Method: FairGRPO (arXiv 2510.19893), patient split 266/96, four frames of each video.
Command: ``python -m fairgrpo_jax.train covid_blues --data.root DIR --mesh 2x1``
Hardware: two CPU cores, a few minutes.
Expected: nothing about accuracy. The policy starts from random weights and 16 patients are held out: the run shows
that the program trains on real clinical data, not that the model learns medicine.
"""

from fairgrpo_jax.config import Config, Data, Evaluation, Sampling, Warmup


def get_config() -> Config:
    """Small enough for a CPU: frames of at most 64 x 64 pixels."""
    return Config(
        name="covid_blues",
        steps=30,
        prompts=16,
        checkpoint_every=10,
        data=Data(name="covid_blues", prompt_length=160, num_patches=512, min_pixels=56 * 56, max_pixels=64 * 64),
        warmup=Warmup(steps=30, split="train", batch=16),
        sampling=Sampling(max_new_tokens=12),
        evaluation=Evaluation(every=10, batch=32),
    )
