"""Prompt tuning as T-Few's baseline runs it: 100 rows before the encoder and the decoder."""

import dataclasses

from peft_jax.config import Experiment, PromptTuningConfig
from peft_jax.configs import tfew


def config() -> Experiment:
    base = tfew.config()
    return dataclasses.replace(
        base,
        method=("prompt_tuning",),
        prompt_tuning=PromptTuningConfig(length=100, where="both", vocabulary_range=(3, 5003)),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=0.3, scale_parameter=False),
    )
