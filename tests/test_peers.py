"""Our functions against numbers that verl's and TRL's own functions gave (parity/make_peers_golden.py).

Left out, because we differ on purpose:
  * a prompt with a single rollout: ours is 0; verl returns its raw reward from all but rloo_vectorized;
  * TRL's losses count a rollout without tokens in the mean over rollouts; ours and verl's do not;
  * verl gives each token of GSPO a gradient of its own, which is the formula's unless weights vary within a rollout;
  * verl limits k3, and the log-ratio of GSPO, to 10; ours limits log-ratios to 20.
verl's numbers are those of its functions in float64: in float32 it gives equal rewards of 0.7 an advantage of 0.06.
"""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import advantages, losses


GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "peers.json").read_text())
VERL, TRL = GOLDEN["verl"], GOLDEN["trl"]
BATCHES, COMPONENTS, TOKENS = GOLDEN["batches"], GOLDEN["components"], GOLDEN["tokens"]

# Name in the file, and our function of (rewards, lengths, greedy).
VERL_ESTIMATORS = {
    "grpo": lambda r, lengths, greedy: advantages.grpo(r),
    "dr_grpo": lambda r, lengths, greedy: advantages.dr_grpo(r),
    "rloo": lambda r, lengths, greedy: advantages.rloo(r),
    "rloo_vectorized": lambda r, lengths, greedy: advantages.rloo(r),
    "grpo_passk": lambda r, lengths, greedy: advantages.pass_at_k(r),
    "gpg": lambda r, lengths, greedy: advantages.gpg(r),
    "opo": lambda r, lengths, greedy: advantages.opo(r, lengths),
    "reinforce_plus_plus": lambda r, lengths, greedy: advantages.reinforce_plus_plus(r, lengths),
    "reinforce_plus_plus_baseline": lambda r, lengths, greedy: advantages.reinforce_plus_plus_baseline(r, lengths),
    "remax": lambda r, lengths, greedy: advantages.remax(r, greedy),
}
VERL_MODES: dict[str, Any] = {
    "token-mean": ("token", 100),
    "seq-mean-token-mean": ("sequence", 20),
    "seq-mean-token-sum-norm": ("constant", 20),
}


def options_of(case):
    return "-".join(map(str, case["options"].values()))


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    """The type of the inputs, and how near the results have to be: relative, absolute."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param), (1e-5, 1e-6) if request.param == "float32" else (1e-9, 1e-9)


def test_the_file_holds_every_estimator():
    assert set(VERL["advantages"]) == set(VERL_ESTIMATORS)
    assert {np.array(batch["rewards"]).shape for batch in BATCHES.values()} == {(5, 8), (5, 2)}


@pytest.mark.parametrize("name", VERL_ESTIMATORS)
def test_advantages_of_verl(name, precision):
    dtype, (relative, absolute) = precision
    if name == "reinforce_plus_plus":
        absolute = 1e-6  # rewards of 1000 show that verl's token mean divides by the number + 1e-8
    estimator = jax.jit(VERL_ESTIMATORS[name])
    for batch, golden in VERL["advantages"][name].items():
        rewards, greedy = (single(BATCHES[batch][key]).astype(dtype) for key in ("rewards", "greedy"))
        got = estimator(rewards, np.array(BATCHES[batch]["lengths"]), greedy)
        assert got.dtype == dtype
        close(got, golden, relative, absolute)


def test_gdpo_of_verl():
    rewards, weights, lengths = (single(COMPONENTS[key]) for key in ("rewards", "weights", "lengths"))
    got = advantages.gdpo(rewards, weights, epsilon=1e-6, lengths=lengths.astype(int))
    close(got, VERL["gdpo"])


@pytest.mark.parametrize("case", TRL["advantages"], ids=options_of)
def test_advantages_of_trl(case):
    rewards = np.array(case["rewards"], np.float32)  # None becomes NaN
    match case["options"]:
        case {"multi_objective_aggregation": "normalize_then_sum"}:
            got = advantages.gdpo(rewards, single(case["weights"]))
        case {"scale_rewards": "group"}:
            got = advantages.grpo(rewards[..., 0], epsilon=1e-4)
        case {"scale_rewards": "batch"}:
            got = advantages.grpo(rewards[..., 0], epsilon=1e-4, scale="batch")
        case {"scale_rewards": "none"}:
            got = advantages.dr_grpo(rewards[..., 0])
        case _:
            assert case["trainer"] == "rloo"
            got = advantages.rloo(rewards[..., 0])
    close(got, case["advantages"])


@pytest.mark.parametrize("case", VERL["losses"], ids=options_of)
def test_losses_of_verl(case):
    options = case["options"] | ({"max_length": 6} if case["options"]["aggregation"] == "constant" else {})
    weights = {(c["options"]["level"], c["options"]["mode"]): c["weights"] for c in VERL["importance_weights"]}
    if case["weights"] is not None:
        options["weights"] = single(weights[case["weights"], "truncate"])
    loss, metrics, gradient = loss_and_gradient(TOKENS, options)
    close(loss, case["loss"])
    close(gradient, case["gradient"])
    close(metrics["clip_low"] + metrics["clip_high"], case["clipped"])
    close(metrics["dual_clip"], case["dual_clipped"])


@pytest.mark.parametrize("case", TRL["losses"], ids=options_of)
def test_losses_of_trl(case):
    theirs = case["options"]
    names = {"grpo": "sequence", "dapo": "token", "dr_grpo": "constant", "cispo": "token"}
    options: dict[str, Any] = {"aggregation": names[theirs["loss_type"]], "dual_clip": theirs.get("delta")}
    if theirs["loss_type"] == "cispo":
        options |= {"kind": "cispo", "clip_low": 1.0, "clip_high": theirs["epsilon_high"] - 1}
    else:
        kind = {"token": "clip", "sequence": "gspo"}[theirs.get("importance_sampling_level", "token")]
        options |= {"kind": kind, "clip_low": theirs["epsilon"], "clip_high": theirs["epsilon_high"]}
    if options["aggregation"] == "constant":
        options["max_length"] = 6
    first_two = {name: values[:2] for name, values in TOKENS.items()}
    loss, _, gradient = loss_and_gradient(first_two, options)
    close(loss, case["loss"])
    close(gradient, case["gradient"])


@pytest.mark.parametrize("case", VERL["aggregate"], ids=lambda case: f"{case['mode']}-{case['whole']}")
def test_aggregation_of_verl(case):
    """Alone, and as a part of 100 tokens in 20 rollouts; verl's sums are ours with a constant of 1."""
    aggregate = functools.partial(losses.aggregate, single(TOKENS["logprobs"]), np.array(TOKENS["mask"]))
    match case["mode"]:
        case "token-sum":
            got = aggregate(normalizer=1)
        case "seq-mean-token-sum":
            got = aggregate(aggregation="constant", max_length=1, normalizer=20 if case["whole"] else None)
        case mode:
            aggregation, number = VERL_MODES[mode]
            length: dict[str, Any] = {"max_length": 16 if case["whole"] else 6} if aggregation == "constant" else {}
            got = aggregate(aggregation=aggregation, normalizer=number if case["whole"] else None, **length)
    close(got, case["value"])


@pytest.mark.parametrize("theirs, ours", [("k1", "k1"), ("k2", "k2"), ("k3", "k3"), ("low_var_kl", "k3")])
def test_kl_of_verl(theirs, ours):
    new, old = single(TOKENS["logprobs"]), single(TOKENS["old_logprobs"])
    value, pull = jax.vjp(lambda x: losses.kl(x, old, estimator=ours), new)
    close(value, VERL["kl"][theirs]["value"])
    close(pull(jnp.ones_like(value))[0], VERL["kl"][theirs]["gradient"])


@pytest.mark.parametrize("case", VERL["importance_weights"], ids=options_of)
def test_importance_weights_of_verl(case):
    old, sampler = single(TOKENS["old_logprobs"]), single(TOKENS["sampler_logprobs"])
    weights, _ = losses.importance_weights(old, sampler, np.array(TOKENS["mask"]), **case["options"])
    close(weights, case["weights"])


def loss_and_gradient(tokens, options):
    """Loss, metrics, and the gradient by the log-probabilities."""
    new, old, advantage = (single(tokens[key]) for key in ("logprobs", "old_logprobs", "advantages"))
    loss = functools.partial(losses.policy_loss, **options)
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(new, old, advantage, np.array(tokens["mask"]))
    return value, metrics, gradient


def close(got, wanted, relative=1e-5, absolute=1e-6):
    np.testing.assert_allclose(got, wanted, rtol=relative, atol=absolute)


def single(values):
    return np.array(values, np.float32)
