"""T-Few on T0-11B, with a batch for a slice of a TPU pod.

The recipe of `tfew` (Liu et al. 2022) with many tasks' worth of rows in a step. The weights are
not part of this package: `peft-jax plan` needs none, a run needs `--backbone FOLDER`.
"""

import dataclasses

from peft_jax.config import Experiment, ModelConfig
from peft_jax.configs import tfew


def config() -> Experiment:
    base = tfew.config()
    return dataclasses.replace(
        base,
        backbone="t0_11b",
        model=ModelConfig(dtype="bfloat16", activation_dtype="bfloat16"),
        training=dataclasses.replace(base.training, batch_size=1024),
        evaluation=dataclasses.replace(base.evaluation, batch_size=1024),
    )
