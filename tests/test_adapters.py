"""FairGRPO behind the signatures that Tunix and verl call; registered in the real ones by tests/parity."""

import numpy as np
import pytest

from fairgrpo_jax import fairness
from fairgrpo_jax.adapters import FairAdvantages


REWARDS = np.array([[1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]], np.float32)


def test_tunix_gets_the_published_functions_numbers():
    fair = FairAdvantages(num_domains=2, num_groups=2, num_rollouts=4, max_weight=4.0, epsilon=0.3)
    state = fairness.init(2, 2, 4)
    domains, groups = np.array([0, 1, 0]), np.array([0, -1, 1])
    for _ in range(2):  # the state goes on
        fair.note(np.repeat(domains, 4), np.repeat(groups, 4))
        found = fair.for_tunix(REWARDS.ravel(), 4)
        wanted, state = fairness.fair_grpo(REWARDS, domains, groups, state, max_weight=4.0, epsilon=0.3)
        np.testing.assert_allclose(found.reshape(3, 4), wanted, rtol=1e-6)


def test_without_groups_nothing_needs_to_be_noted():
    found = FairAdvantages(num_rollouts=4, algorithm="fair_grpo_nd").for_tunix(REWARDS.ravel(), 4)
    wanted, _ = fairness.fair_grpo_nd(REWARDS, [0, 0, 0], fairness.init(1, 0, 4))
    np.testing.assert_allclose(found.reshape(3, 4), wanted, rtol=1e-6)


def test_a_batch_that_was_not_noted_is_refused():
    fair = FairAdvantages(num_groups=2, num_rollouts=2)
    fair.note([0, 0], [0, 0])
    fair.for_tunix([1.0, 0.0], 2)
    with pytest.raises(ValueError, match="wanted note"):
        fair.for_tunix([1.0, 0.0], 2)
    fair.note([0], [0])
    with pytest.raises(ValueError, match="one a completion"):
        fair.for_tunix([1.0, 0.0], 2)
    with pytest.raises(ValueError, match="algorithm='grpo'"):
        FairAdvantages(num_rollouts=2, algorithm="grpo")
