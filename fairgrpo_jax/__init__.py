"""Fairness-aware reinforcement learning (the GRPO family) for medical vision-language models, in JAX.

The pure library, arrays in and arrays out, is

* ``fairgrpo_jax.advantages``: rewards (P, G) to advantages (P, G), one function per estimator;
* ``fairgrpo_jax.fairness``: FairGRPO, its variants with implicit groups, and their explicit state;
* ``fairgrpo_jax.grouping``: age bins, joint demographic cells, clusters of reward vectors;
* ``fairgrpo_jax.losses``: clipped policy losses and KL estimators;
* ``fairgrpo_jax.metrics``: figures by patient group, gaps between groups, and intervals.

The training program built on it starts at ``fairgrpo_jax/train.py``. Importing this package alone imports no other
module.
"""

__version__ = "0.2.0"
