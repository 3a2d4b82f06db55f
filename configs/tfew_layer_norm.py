"""T-Few's baseline "LayerNorm": the norms alone, 249,856 parameters on T0-3B."""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline("norm_tuning", steps=1000, learning_rate=3e-4)
