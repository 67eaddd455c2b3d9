"""Model FLOPs utilisation of an update: its share of the device's peak arithmetic."""

from typing import Any

from fairgrpo_jax import config as options
from fairgrpo_jax.plan import cost, devices


def update_mfu(
    architecture: Any,
    config: options.Config,
    *,
    prompt: int,
    completion: float,
    patches: int,
    seconds: float,
    device_kind: str,
    count: int,
) -> float | None:
    """Model FLOPs utilisation of the updates of a step, in [0, 1]; None if the peak of the device is unknown.

    It counts the tokens of prompts and completions without padding, and no recomputation.

    Args:
        architecture: the model's architecture.
        config: options of the run.
        prompt: mean tokens per prompt.
        completion: mean tokens per completion.
        patches: mean patches per prompt, before merging.
        seconds: time of the updates over all passes.
        device_kind: JAX's name of the device.
        count: number of devices.
    """
    device = devices.known(device_kind)
    if device is None:
        return None
    sizes = cost.Sizes(
        prompts=config.prompts, rollouts=config.rollouts, prompt=prompt, completion=completion, patches=patches
    )
    training = cost.Training(
        lora_rank=config.model.lora_rank, lora_targets=config.model.lora_targets, freeze=config.model.freeze
    )
    flops = config.update.passes * cost.update_flops(architecture, sizes, training, recomputed=False).total
    peak = device.flops if (config.model.compute or config.model.dtype) == "bfloat16" else device.flops32
    return flops / (seconds * peak * count)
