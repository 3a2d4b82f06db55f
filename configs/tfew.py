"""T-Few: (IA)³ with the three losses, the recipe that was not tuned per task.

Liu et al. 2022, section 3; figures that the paper does not give are those of its released code:
Adafactor with parameter scaling, 60 warm-up steps from zero, linear decay to zero, the gradient's
global norm clipped at 1, dropout on.
"""

import dataclasses
from typing import Any

from peft_jax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    LossConfig,
    TrainingConfig,
)
from peft_jax.method_config import arguments
from peft_jax.optimizers import OptimizerConfig

# What r-three/t-few's configurations call "q|k|v|o|w.*".
EVERY_PROJECTION = ("attention/(query|key|value|out)", "mlp/w.*")


def config() -> Experiment:
    return Experiment(
        method=("ia3",),
        data=DataConfig(max_input_length=256),
        loss=LossConfig(unlikelihood=1.0, length_normalized=1.0, length_normalization=1.0),
        optimizer=OptimizerConfig(
            name="adafactor",
            learning_rate=3e-3,
            schedule="linear",
            warmup_ratio=0.06,
            clip_norm=1.0,
            scale_parameter=True,
            weight_decay=0.0,
        ),
        training=TrainingConfig(steps=1000, batch_size=8),
        evaluation=EvaluationConfig(length_normalization=1.0),
    )


def baseline(
    *methods: str,
    steps: int,
    learning_rate: float,
    scale_parameter: bool = True,
    **given: dict[str, Any],
) -> Experiment:
    """T-Few with another method: its steps, its learning rate, and the arguments of its parts."""
    base = config()
    return dataclasses.replace(
        base,
        method=methods,
        optimizer=dataclasses.replace(
            base.optimizer, learning_rate=learning_rate, scale_parameter=scale_parameter
        ),
        training=dataclasses.replace(base.training, steps=steps),
        **{name: arguments(name, **fields) for name, fields in given.items()},
    )
