"""T-Few's "lora_scaling": factors of every projection's rows and columns; 2,211,840 on T0-3B."""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import EVERY_PROJECTION, baseline


def config() -> Experiment:
    return baseline(
        "rank_one_scaling",
        steps=1000,
        learning_rate=3e-3,
        rank_one_scaling={"targets": EVERY_PROJECTION},
    )
