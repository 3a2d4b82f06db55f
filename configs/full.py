"""Full fine-tuning as T-Few's baseline runs it: every parameter, 300 steps at 3e-4."""

import dataclasses

from peft_jax.config import Experiment
from peft_jax.configs import tfew_full


def config() -> Experiment:
    base = tfew_full.config()
    return dataclasses.replace(
        base, training=dataclasses.replace(base.training, checkpoint_every=100)
    )
