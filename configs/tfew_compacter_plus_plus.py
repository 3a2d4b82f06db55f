"""T-Few's baseline "Compacter++": behind the feed-forwards alone; 560,128 on T0-3B.

See ``tfew_compacter``; the paper prints 540K.
"""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline(
        "compacter_plus_plus",
        steps=500,
        learning_rate=3e-3,
        compacter_plus_plus={"activation": "relu", "share_rules": False, "rule_std": 0.02},
    )
