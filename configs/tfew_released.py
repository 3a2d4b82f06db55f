"""T-Few with the unlikelihood loss as the released code computes it.

The code has 1e-2 inside the logarithm and sums over masked cells too; see ``losses``.
"""

import dataclasses

from peft_jax.config import Experiment
from peft_jax.configs import tfew


def config() -> Experiment:
    base = tfew.config()
    return dataclasses.replace(base, loss=dataclasses.replace(base.loss, variant="tfew"))
