"""T-Few's baseline "LoRA": rank 4 on every projection, and norms; 9,097,216 on T0-3B."""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import EVERY_PROJECTION, baseline


def config() -> Experiment:
    return baseline(
        "lora",
        "norm_tuning",
        steps=1000,
        learning_rate=3e-3,
        # Its update is scaled by 1 / rank.
        lora={"rank": 4, "alpha": 1.0, "init": "tfew", "targets": EVERY_PROJECTION},
    )
