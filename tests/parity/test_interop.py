"""Torch tensors in and out."""

import numpy as np
import pytest

from fairgrpo_jax import advantages, fairness, interop


torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def test_tensors_in_tensors_out():
    rewards = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]])
    got = interop.on_torch(advantages.grpo)(rewards, epsilon=0.0)
    wanted = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)
    assert got.dtype == torch.float32 and not got.requires_grad
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_any_type_of_reward(dtype):
    got = interop.on_torch(advantages.dr_grpo)(torch.tensor([[1, 0]], dtype=dtype))
    assert got.tolist() == [[0.5, -0.5]]


def test_a_reward_with_gradient_is_a_constant():
    got = interop.on_torch(advantages.dr_grpo)(torch.tensor([[1.0, 0.0]], requires_grad=True))
    assert got.tolist() == [[0.5, -0.5]] and not got.requires_grad


def test_state_through_torch_save(tmp_path):
    """The running statistics travel in a torch checkpoint, and the next step is the same."""
    import jax

    fair = interop.on_torch(fairness.fair_grpo)
    batch = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 0, 1]), torch.tensor([0, 1, -1])
    _, state = fair(*batch, fairness.init(2, 2, 2, history="binary"))
    torch.save(jax.tree.map(np.asarray, state), tmp_path / "fairness.pt")
    loaded = torch.load(tmp_path / "fairness.pt", weights_only=False)
    wanted, _ = fair(*batch, state)
    got, _ = fair(*batch, loaded)
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
