"""T-Few's baseline "FISH Mask (0.2%)": the entries that matter most; 5,699,514 on T0-3B."""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline("fish_mask", steps=1500, learning_rate=3e-4, fish_mask={"share": 0.002})
