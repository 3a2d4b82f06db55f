"""T-Few's baseline "Prompt Tuning (10)": before encoder and decoder; 40,960 on T0-3B."""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline(
        "prompt_tuning",
        steps=1000,
        learning_rate=0.3,
        scale_parameter=False,
        prompt_tuning={"length": 10, "where": "both", "vocabulary_range": (3, 5003)},
    )
