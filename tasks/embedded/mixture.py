"""The stream of pretraining batches: all training tasks, all their templates, some with examples.

Batches come in blocks.  Block k is a pure function of (mixture, seed, k), so that a resumed run
sees what an uninterrupted one would have seen.  Within a block, sequences of similar length share
a batch: every batch holds the same number of input tokens and has one of a few static shapes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from peft_jax.errors import InputError
from peft_jax.tasks.embedded import TASKS, TEMPLATES, rows
from peft_jax.tasks.prompts import Rendered, load_templates

INPUT_LENGTHS = (32, 48, 96, 256)
TARGET_LENGTHS = (4, 16)


@dataclass(frozen=True)
class Example:
    """Token ids of an input and of its target, both with EOS."""

    input: list[int]
    target: list[int]


class Mixture:
    """Draws examples and makes batches of them.

    Args:
      vocabulary: the SentencePiece model's file.
      tasks: names of embedded tasks.
      rows_per_task: rows of each task's train split that are used.
      batch_tokens: input tokens of a batch, padding included.
      few_shot_share: the share of examples that stand behind solved ones.
      max_shots: the most solved examples in front of one; the least is 2.
      seed: of all draws.
    """

    def __init__(
        self,
        vocabulary: Path,
        tasks: tuple[str, ...],
        rows_per_task: int,
        batch_tokens: int,
        few_shot_share: float,
        max_shots: int,
        seed: int,
    ):
        import sentencepiece

        for name in tasks:
            if name in TASKS and TASKS[name].held_out:
                raise InputError(f"{name} is a held-out task: a backbone trained on it proves less")
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
        self._rows = {name: rows(name, "train", rows_per_task) for name in tasks}
        self._templates = {
            name: list(load_templates(TEMPLATES / f"{name}.yaml").values()) for name in tasks
        }
        self.batch_tokens = batch_tokens
        self.few_shot_share = few_shot_share
        self.max_shots = max_shots
        self.seed = seed

    def block(self, index: int, examples: int = 4096) -> list[dict[str, np.ndarray]]:
        """The batches of block `index`, in random order.

        Returns:
          Dicts of ``encoder_input_tokens`` [B, S] and ``decoder_target_tokens`` [B, T], int32,
          with S of `INPUT_LENGTHS`, T of `TARGET_LENGTHS` and B * S about ``batch_tokens``.
        """
        rng = Random(f"{self.seed} {index}")
        buckets: dict[tuple[int, int], list[Example]] = defaultdict(list)
        for _ in range(examples):
            example = self._draw(rng)
            buckets[_shape(example)].append(example)
        batches = []
        for (input_length, target_length), bucket in sorted(buckets.items()):
            size = max(1, self.batch_tokens // input_length)
            for start in range(0, len(bucket), size):
                # The last batch of a bucket is filled up with others of the bucket.
                batch = bucket[start : start + size]
                batch += rng.choices(bucket, k=size - len(batch))
                batches.append(_stack(batch, input_length, target_length))
        rng.shuffle(batches)
        return batches

    def _draw(self, rng: Random) -> Example:
        name = rng.choice(list(self._rows))
        template = rng.choice(self._templates[name])
        # A few-shot prompt that is too long loses its first examples one by one.
        shots = rng.randint(2, self.max_shots) if rng.random() < self.few_shot_share else 0
        rendered = [template.render(row) for row in rng.sample(self._rows[name], shots + 1)]
        while True:
            example = self._encode(rendered)
            if len(rendered) == 1 or len(example.input) <= INPUT_LENGTHS[-1]:
                return example
            rendered = rendered[1:]

    def _encode(self, rendered: list[Rendered]) -> Example:
        solved = [f"{shot.input} {shot.target}" for shot in rendered[:-1]]
        text = "\n\n".join([*solved, rendered[-1].input])
        end = [self._processor.eos_id()]
        limit = INPUT_LENGTHS[-1] - 1
        return Example(
            self._processor.encode(text)[-limit:] + end,
            self._processor.encode(rendered[-1].target)[: TARGET_LENGTHS[-1] - 1] + end,
        )


def _shape(example: Example) -> tuple[int, int]:
    return (
        next(length for length in INPUT_LENGTHS if len(example.input) <= length),
        next(length for length in TARGET_LENGTHS if len(example.target) <= length),
    )


def _stack(batch: list[Example], input_length: int, target_length: int) -> dict[str, np.ndarray]:
    inputs = np.zeros((len(batch), input_length), np.int32)
    targets = np.zeros((len(batch), target_length), np.int32)
    for row, example in enumerate(batch):
        inputs[row, : len(example.input)] = example.input
        targets[row, : len(example.target)] = example.target
    return {"encoder_input_tokens": inputs, "decoder_target_tokens": targets}
