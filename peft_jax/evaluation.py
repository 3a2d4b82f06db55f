"""Evaluation by rank classification: accuracy per template, and its median, as papers report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peft_jax import scoring, sharding
from peft_jax.answers import Score
from peft_jax.backbones.base import Backbone
from peft_jax.examples import ChoiceExamples, evaluation_batches
from peft_jax.methods.base import Method
from peft_jax.methods.merging import merge
from peft_jax.transformer import Batch
from peft_jax.tree import Params

Scorer = Callable[[Params, Params, Batch], jax.Array]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median with the interquartile range around it."""

    median: float
    iqr: float

    def __str__(self) -> str:
        return f"{100 * self.median:.1f} ({100 * self.iqr:.1f})"


def spread(values: Sequence[float]) -> Spread:
    """Median and interquartile range (linear interpolation, NumPy's and the T-Few code's)."""
    low, middle, high = np.percentile(np.asarray(values, np.float64), [25, 50, 75])
    return Spread(float(middle), float(high - low))


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of all R rows (examples times templates) of a task, and the accuracies they give.

    Attributes:
      examples: what was scored.
      scores: [R, C] float32 log-probabilities, -inf where a row has no such choice.
    """

    examples: ChoiceExamples
    scores: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """[R] index of the best choice."""
        return np.argmax(self.scores, axis=-1)

    @property
    def correct(self) -> np.ndarray:
        """[R] bool."""
        return self.predictions == self.examples.label

    @property
    def accuracy_per_template(self) -> dict[str, float]:
        """Accuracy under every template that applies to any row."""
        per_template = {}
        for index, name in enumerate(self.examples.template_names):
            rows = self.examples.template == index
            if rows.any():
                per_template[name] = float(self.correct[rows].mean())
        return per_template

    @property
    def accuracy(self) -> Spread:
        """Median over templates, with the interquartile range."""
        return spread(list(self.accuracy_per_template.values()))

    def summary(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "task": self.examples.task,
            "split": self.examples.split,
            "examples": self.examples.num_examples,
            "rows": len(self.examples),
            "accuracy_median": self.accuracy.median,
            "accuracy_iqr": self.accuracy.iqr,
            "accuracy_mean": float(self.correct.mean()),
            "accuracy_per_template": self.accuracy_per_template,
        }

    def write(self, path: Path) -> None:
        """One JSON line per row: example, template, label, prediction and every choice's score."""
        examples = self.examples
        with open(path, "w", encoding="utf-8") as file:
            for row in range(len(examples)):
                exists = examples.choice_mask[row]
                line = {
                    "example": int(examples.example[row]),
                    "template": examples.template_names[examples.template[row]],
                    "label": int(examples.label[row]),
                    "prediction": int(self.predictions[row]),
                    "scores": [round(float(s), 6) for s in self.scores[row][exists]],
                }
                file.write(json.dumps(line) + "\n")


def make_scorer(
    backbone: Backbone,
    method: Method | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    score: Score = scoring.score_choices,
) -> Scorer:
    """A compiled ``score(adapter, frozen, batch) -> [B, C]``; without a method pass ``{}``.

    The adapter and the frozen tree are arguments: other weights of the same shapes compile nothing.

    Args:
      score: how the backbone answers, see ``answers.make_score``; by default by rank
        classification, as T-Few does.
    """

    def run(adapter: Params, frozen: Params, batch: Batch) -> jax.Array:
        params = frozen if method is None else merge(frozen, method.bind(adapter))
        return score(backbone, params, batch)

    # Only the configuration is wanted: the closure must not hold the weights as constants.
    backbone = dataclasses.replace(backbone, params={})
    if mesh is None:
        return jax.jit(run)
    replicated, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(run, in_shardings=(replicated, replicated, split), out_shardings=replicated)


def evaluate(
    scorer: Scorer,
    adapter: Params,
    frozen: Params,
    examples: ChoiceExamples,
    *,
    batch_size: int = 32,
    mesh: jax.sharding.Mesh | None = None,
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Scores every row.

    Args:
      scorer: from :func:`make_scorer`, with the same mesh.
      adapter: the method's stored tree, ``{}`` for the frozen backbone alone.
      frozen: the backbone's parameters.
      batch_size: rows scored at a time; the last batch is filled up.
      advance: called with the number of rows after each batch (a progress bar).
    """
    scores = np.full(examples.choices.shape[:2], -np.inf, np.float32)
    for batch in evaluation_batches(examples, batch_size):
        row, weight = batch.pop("row"), batch.pop("weight")
        placed = batch if mesh is None else sharding.put_batch(mesh, batch)
        batch_scores = np.asarray(scorer(adapter, frozen, placed))
        real = weight > 0
        scores[row[real]] = batch_scores[real]
        if advance is not None:
            advance(int(real.sum()))
    return Evaluation(examples, scores)
