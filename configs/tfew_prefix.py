"""T-Few's baseline "Prefix Tuning": 589,824 parameters on T0-3B once its MLP is dropped.

Two rows, as "Question:" and "Answer:" have tokens, made by an MLP that is first fitted to their
keys and values. The learning rate is the configuration's; the paper prints 3e-3.
"""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline(
        "prefix_tuning",
        steps=1000,
        learning_rate=1e-2,
        prefix_tuning={
            "length": 2,
            "init": "text",
            "text": "Question:",
            "target_text": "Answer:",
            "reparameterization": "mlp",
            "places": True,
        },
    )
