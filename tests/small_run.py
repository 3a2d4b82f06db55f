"""A small random backbone and a short run on the small task, for the tests of jobs."""

import dataclasses
from pathlib import Path

import jax

import peft_jax as pj
from peft_jax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    TrainingConfig,
)
from peft_jax.optimizers import OptimizerConfig
from tests.small_task import write_task, write_vocabulary

CONFIG = pj.Config("t5", 97, 16, 32, 2, 8, 2, 2)


def write_small_backbone(folder: Path, seed: int = 0) -> Path:
    """A Hugging Face folder with random weights and the small task's vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone = pj.init_backbone(CONFIG, jax.random.key(seed))
    backbone = dataclasses.replace(backbone, vocabulary=write_vocabulary(folder))
    return pj.save_backbone(folder, backbone)


def small_experiment(folder: Path, **training) -> Experiment:
    """Twelve updates on the small task, written into ``folder``."""
    steps = {"steps": 12, "batch_size": 4, "log_every": 2, "checkpoint_every": 5, "devices": 1}
    return Experiment(
        task="mine",
        backbone=str(write_small_backbone(folder / "backbone")),
        data=DataConfig(directory=write_task(folder / "data" / "mine"), shots=8),
        optimizer=OptimizerConfig(warmup_ratio=0.06),
        training=TrainingConfig(**steps | training),
        evaluation=EvaluationConfig(batch_size=8),
    )
