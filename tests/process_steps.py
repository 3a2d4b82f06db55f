"""A short training and an evaluation, as one of several processes: ``-m tests.process_steps``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from peft_jax import distributed
from peft_jax.config import Experiment, from_json
from peft_jax.distributed import DistributedConfig
from peft_jax.examples import ChoiceExamples, vocabulary_identity
from peft_jax.experiment import open_measure, set_up, train_steps
from peft_jax.mixed_examples import digest
from peft_jax.placement import open_backbone, open_mesh


def examples(rows: int, vocabulary: Path, seed: int) -> ChoiceExamples:
    """Inputs of 5 tokens, and 2 or 3 choices of up to 3."""
    random = np.random.default_rng(seed)
    choices = random.integers(3, 90, (rows, 3, 3), dtype=np.int32)
    mask = np.ones((rows, 3), bool)
    mask[::2, 2] = False
    choices[~mask] = 0
    return ChoiceExamples(
        task="made",
        split="train",
        template_names=("one",),
        encoder_input_tokens=random.integers(3, 90, (rows, 5), dtype=np.int32),
        choices=choices,
        choice_mask=mask,
        label=(np.arange(rows) % 2).astype(np.int32),
        example=np.arange(rows, dtype=np.int32),
        template=np.zeros(rows, np.int32),
        vocabulary=vocabulary_identity(vocabulary),
        pad_id=0,
    )


def train_and_evaluate(config: Experiment) -> dict:
    """Losses of every step, scores of 7 rows in batches of 4, and what each process drew."""
    mesh = open_mesh(config)
    backbone = open_backbone(config, mesh)
    train, test = (examples(n, backbone.vocabulary, n) for n in (8, 7))
    run = set_up(config, backbone, train, mesh)
    losses = [float(metrics["loss"]) for _, metrics in train_steps(run, config.training.steps)]
    measured = open_measure(config, backbone, run.method, test, mesh)(
        run.state.stored, run.frozen, test
    )
    distributed.check_same("rows", digest(train))
    return {
        "losses": losses,
        "scores": measured.scores[measured.examples.choice_mask].tolist(),
        "rows": distributed.gather(run.sampler.batch(0)["row"].tolist()),
    }


def main(arguments: Sequence[str]) -> None:
    folder, *flags = arguments

    def connect(distributed: DistributedConfig) -> DistributedConfig:
        return distributed

    distributed.connect(tyro.cli(connect, args=flags))
    with distributed.stopping_together():
        found = train_and_evaluate(from_json(Path(folder) / "config.json"))
        if distributed.is_main():
            (Path(folder) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
