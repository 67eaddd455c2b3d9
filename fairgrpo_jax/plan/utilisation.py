"""How much of a device's arithmetic an update used: model FLOPs utilisation."""

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
    """Model FLOPs utilisation of the updates of a step, in [0, 1]; None where the peak of the device is not known.

    It counts the prompts' and completions' own tokens, not their padding, and nothing that is computed twice.

    Args:
        architecture: of the model.
        config: of the run.
        prompt: tokens of a prompt, the mean.
        completion: tokens of a completion, the mean.
        patches: of the media of a prompt, the mean, before they are merged.
        seconds: that the updates took, over all passes.
        device_kind: as JAX names the device.
        count: of devices.
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
