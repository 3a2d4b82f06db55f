"""T-Few on T0-11B, with a batch for a slice of a TPU pod.

The recipe of `tfew` (Liu et al. 2022) with many tasks' worth of rows in a step. The weights are
not part of this package: `peft-jax plan` needs none, a run needs `--backbone FOLDER`.
"""

import dataclasses

from peft_jax.config import Experiment
from peft_jax.configs import t0_3b


def config() -> Experiment:
    base = t0_3b.config()
    return dataclasses.replace(
        base,
        backbone="t0_11b",
        training=dataclasses.replace(base.training, batch_size=1024),
        evaluation=dataclasses.replace(base.evaluation, batch_size=1024),
    )
