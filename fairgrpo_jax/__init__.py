"""Fairness-aware reinforcement learning (the GRPO family) for medical vision-language models, in JAX.

The pure library, arrays in and arrays out, is

* ``fairgrpo_jax.advantages``: rewards (P, G) to advantages (P, G), one estimator a function;
* ``fairgrpo_jax.fairness``: FairGRPO, its implicit-group variants, and their explicit state;
* ``fairgrpo_jax.grouping``: age bins, joint demographic cells, clusters of reward vectors;
* ``fairgrpo_jax.losses``: clipped policy losses and KL estimators;
* ``fairgrpo_jax.metrics``: for whom a model works, and by how much less for others.

The training program built on it starts at ``fairgrpo_jax/train.py``. Importing this package imports nothing else.
"""

__version__ = "0.2.0"
