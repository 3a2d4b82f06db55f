"""Full fine-tuning as T-Few's baseline runs it: every parameter, 300 steps at 3e-4."""

import dataclasses

from peft_jax.config import Experiment
from peft_jax.configs import tfew


def config() -> Experiment:
    base = tfew.config()
    return dataclasses.replace(
        base,
        method=("full",),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=3e-4),
        training=dataclasses.replace(base.training, steps=300, checkpoint_every=100),
    )
