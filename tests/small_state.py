"""A state with leaves of every kind that a run has, and a data position, to be saved."""

import jax
import jax.numpy as jnp
import numpy as np


def make_state(step: int) -> dict:
    """Small and not, of several dtypes, a random key."""
    rng = np.random.default_rng(step)
    return {
        "step": jnp.int32(step),
        "trainable": {"lora_a": jnp.asarray(rng.normal(size=(64, 65)), jnp.float32)},
        "opt_state": (jnp.asarray(rng.normal(size=7), jnp.bfloat16), jnp.zeros(2000)),
        "key": jax.random.key(step),
    }


def make_progress(step: int) -> dict:
    return {"data": {"epoch": 3, "offset": 10 * step}, "seconds": 0.1 * step}
