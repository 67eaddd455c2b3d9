"""Named comparisons."""

from typing import NamedTuple


class Comparison(NamedTuple):
    """The methods and the settings of a study."""

    methods: tuple[str, ...]
    settings: tuple[str, ...] = ("",)


_PAPER = ("grpo", "grpo_rs", "grpo_dro", "rloo", "reinforce_plus_plus", "fair_grpo", "fair_grpo_nd")
PRESETS = {
    "default": Comparison(("grpo", "fair_grpo", "fair_sampling")),
    "table": Comparison((*_PAPER, "fair_sampling")),
    "ablation": Comparison(
        (
            "grpo",
            "grpo focus=1",
            "grpo_rs",
            "grpo_rs focus=1",
            "fair_sampling",
            "fair_sampling focus=0",
            "fair_sampling focus=2",
            "fair_sampling draw.hardness_exponent=0",
            "fair_sampling draw.hardness_exponent=2",
            "fair_sampling draw.measure=flip",
            "fair_sampling draw.domain_exponent=0",
            "fair_sampling draw.domain_exponent=1",
            "fair_sampling draw.size_exponent=0",
            "fair_sampling draw.max_ratio=1e6",
            "fair_sampling draw.floor=0",
            "fair_sampling draw.decay=0.8",
            "fair_sampling draw.decay=0.99",
            "fair_sampling draw.window=1",
            "fair_sampling draw.window=32",
            "fair_grpo",
            "fair_grpo fairness.statistics=batch",
            "fair_grpo fairness.statistics=ema",
            "fair_grpo fairness.clamp=product",
            "fair_grpo fairness.max_weight=4",
            "fair_grpo fairness.levels=group",
            "fair_grpo fairness.levels=domain",
            "fair_grpo fairness.size_exponent=0",
            "fair_grpo fairness.mean_exponent=0",
            "fair_grpo_nd",
            "fair_grpo_nd fairness.k_max=10",
            "fair_grpo_nd fairness.sort_vectors=true",
            *(f"{method} prompts=512" for method in ("grpo", "fair_grpo", "fair_sampling")),
        )
    ),
    "clusters": Comparison(
        (
            "fair_grpo_nd",
            "fair_grpo_nd fairness.k_max=10",
            "fair_grpo_nd fairness.sort_vectors=true",
            "fair_grpo_nd algorithm=drpo",
        )
    ),
    "null": Comparison(("grpo", "grpo_rs", "fair_grpo", "fair_sampling"), ("data.options=control=true,test_cell=120",)),
    "lr": Comparison(  # beside that of the preset, 3e-4
        tuple(
            f"{method}{rate}"
            for method in ("grpo", "grpo_rs", "fair_grpo", "fair_sampling")
            for rate in ("", " optim.lr=1e-4", " optim.lr=1e-3")
        )
    ),
}
