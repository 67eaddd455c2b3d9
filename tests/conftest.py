"""Eight simulated devices, no silent rank promotion: set once, before any backend starts."""

import jax


jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
