"""T-Few's baseline "Intrinsic SAID": 500,000 parameters, whatever the backbone."""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline(
        "said", steps=3000, learning_rate=3e-2, said={"dimension": 500_000, "update": "rank_one"}
    )
