"""FairGRPO as a registered advantage estimator of verl and Tunix.

Both call an estimator with rewards and without the columns of the dataset. In Tunix the reward function runs just
before, in the same process, so it can tell the adapter whose prompts they are (``note``). In verl it runs elsewhere:
there FairGRPO works without demographics, in one domain, with groups found by clustering.

    >>> fair = FairAdvantages(num_domains=1, num_groups=2, num_rollouts=2)
    >>> fair.note(domains=[0, 0, 0, 0], groups=[0, 0, 1, 1])  # in the reward function, one entry a completion
    >>> [f"{x:.2f}" for x in fair.for_tunix(rewards=[1.0, 0.0, 1.0, 0.0], num_generations=2)]
    ['0.87', '-0.87', '0.87', '-0.87']
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fairgrpo_jax import fairness, interop


class FairAdvantages:
    """A member of the FairGRPO family with its state, for flat batches of N completions.

    Tunix::

        from tunix.rl import function_registry
        function_registry.register_advantage_estimator("fair_grpo")(fair.for_tunix)
        GRPOConfig(advantage_estimator="fair_grpo", num_generations=8)

    verl, in a module that the trainer imports::

        from verl.trainer.ppo.core_algos import register_adv_est
        register_adv_est("fair_grpo")(fair.for_verl)  # then algorithm.adv_estimator=fair_grpo

    Args:
        num_domains: D, number of datasets.
        num_groups: Gr, number of demographic groups.
        num_rollouts: G, completions of each prompt.
        algorithm: one of ``fairness.FAMILY``.
        **options: of ``fairness.temperatures``, such as ``max_weight=4.0``.

    The state is ``fair.state``: keep it in your checkpoint.
    """

    def __init__(
        self,
        *,
        num_domains: int = 1,
        num_groups: int = 0,
        num_rollouts: int,
        algorithm: str = "fair_grpo",
        **options: Any,
    ):
        if algorithm not in fairness.FAMILY:
            raise ValueError(f"got algorithm={algorithm!r}; wanted one of {', '.join(fairness.FAMILY)}")
        self.state = fairness.init(num_domains, num_groups, num_rollouts)
        self._algorithm, self._options = algorithm, options
        self._noted: tuple[np.ndarray, np.ndarray] | None = None

    def note(self, domains: ArrayLike, groups: ArrayLike) -> None:
        """Remembers whose completions the next rewards are: (N,) ids each, group -1 = unlabelled."""
        self._noted = np.asarray(domains), np.asarray(groups)

    def for_tunix(self, rewards: ArrayLike, num_generations: int) -> np.ndarray:
        """Advantages (N,) of rewards (N,), the completions of a prompt side by side."""
        return self._flat(rewards, np.arange(np.size(rewards)) // num_generations)

    def for_verl(self, token_level_rewards: Any, response_mask: Any, index: Any, **_: Any) -> tuple[Any, Any]:
        """Advantages and returns, both (N, T) tensors, of rewards (N, T) and ``index``, the prompt's id of each row."""
        import torch  # pyright: ignore[reportMissingImports]

        flat = self._flat(token_level_rewards.sum(-1).float().cpu().numpy(), index)
        spread = torch.from_numpy(flat).to(response_mask.device).unsqueeze(-1) * response_mask
        return spread, spread

    def _flat(self, rewards: ArrayLike, prompts: Any) -> np.ndarray:
        rows = interop.layout(prompts)
        noted, self._noted = self._noted, None
        if noted is None:
            noted = np.zeros(rows.size, np.int64), np.full(rows.size, -1)
            if self.state.group_count.size > 1:
                raise ValueError(
                    "got rewards whose domains and groups are not known; wanted note(domains, groups) before each "
                    "batch, or an estimator of one domain without groups"
                )
        if any(part.shape != np.shape(rewards) for part in noted):
            raise ValueError(f"got {noted[0].shape} domains for rewards {np.shape(rewards)}; wanted one a completion")
        domains, groups = (part[rows[:, 0]] for part in noted)
        table = interop.by_prompt(rewards, rows)
        weights, self.state = fairness.weigh(self._algorithm, table, domains, groups, self.state, **self._options)
        advantages = fairness.rescale(table, weights, epsilon=self._options.get("epsilon", 1e-6))
        return interop.by_sample(np.asarray(advantages), rows)
