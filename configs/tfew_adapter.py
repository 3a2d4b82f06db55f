"""T-Few's baseline "Adapter": behind the feed-forwards, and norms; 12,934,144 on T0-3B."""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline("tfew_adapter", steps=500, learning_rate=3e-3)
