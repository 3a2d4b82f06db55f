"""T-Few: (IA)³ with the three losses, the recipe that was not tuned per task.

Liu et al. 2022, section 3; figures that the paper does not give are those of its released code:
Adafactor with parameter scaling, 60 warm-up steps from zero, linear decay to zero, the gradient's
global norm clipped at 1, dropout on.
"""

from peft_jax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    LossConfig,
    TrainingConfig,
)
from peft_jax.optimizers import OptimizerConfig


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
