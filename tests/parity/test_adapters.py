"""The adapters in the registries of the real trainers, where these are installed."""

import numpy as np
import pytest

from fairgrpo_jax import fairness
from fairgrpo_jax.adapters import FairAdvantages


pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
REWARDS = np.array([[1, 0, 0, 1], [0, 0, 1, 0]], np.float32)


def test_verl_computes_our_advantages():
    torch = pytest.importorskip("torch")
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    core_algos.register_adv_est("fair_grpo")(FairAdvantages(num_rollouts=4).for_verl)
    mask = torch.ones(8, 3)
    mask[1, 2] = 0
    rewards = torch.zeros(8, 3)
    rewards[:, 1] = torch.from_numpy(REWARDS.ravel())
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # the rows of two prompts, mixed
    found, returns = core_algos.get_adv_estimator_fn("fair_grpo")(
        token_level_rewards=rewards[order],
        response_mask=mask[order],
        config=None,
        index=np.array(["a", "b"], object)[[0, 1] * 4],
    )
    wanted, _ = fairness.fair_grpo(REWARDS, [0, 0], [-1, -1], fairness.init(1, 0, 4))
    expected = np.asarray(wanted).ravel()[order][:, None] * mask[order].numpy()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert returns is found


def test_tunix_finds_our_estimator():
    registry = pytest.importorskip("tunix.rl.function_registry")
    fair = FairAdvantages(num_groups=2, num_rollouts=4)
    registry.register_advantage_estimator("fair_grpo")(fair.for_tunix)
    fair.note(np.zeros(8, int), np.repeat([0, 1], 4))
    found = registry.get_advantage_estimator("fair_grpo")(rewards=REWARDS.ravel(), num_generations=4)
    wanted, _ = fairness.fair_grpo(REWARDS, [0, 0], [0, 1], fairness.init(1, 2, 4))
    np.testing.assert_allclose(found.reshape(2, 4), wanted, rtol=1e-6)
