"""T-Few's baseline: full fine-tuning, every parameter."""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline("full", steps=300, learning_rate=3e-4)
