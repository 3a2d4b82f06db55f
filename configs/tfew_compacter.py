"""T-Few's baseline "Compacter": 870,400 parameters on T0-3B, norms included.

As its code has it: ReLU, and rules of their own for every projection, drawn with deviation 0.02
(the configuration's 1e-4 is read for factorised rules only). The paper prints 807K.
"""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline(
        "compacter",
        steps=500,
        learning_rate=3e-3,
        compacter={"activation": "relu", "share_rules": False, "rule_std": 0.02},
    )
