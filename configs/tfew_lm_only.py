"""T-Few without L_UL and L_LN: the ablation of the paper's table 2."""

import dataclasses

from peft_jax.config import Experiment
from peft_jax.configs import tfew


def config() -> Experiment:
    base = tfew.config()
    loss = dataclasses.replace(base.loss, unlikelihood=0.0, length_normalized=0.0)
    return dataclasses.replace(base, loss=loss)
