"""Evaluation: answers are ranked or written; figures per template, and their median, as papers
report."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peft_jax import constraints, scoring, sharding
from peft_jax.answers import Score
from peft_jax.backbones.base import Backbone
from peft_jax.decoding import Decoding, decode_texts, generate
from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples, evaluation_batches
from peft_jax.methods.base import Method
from peft_jax.methods.merging import merge
from peft_jax.metrics import Answers, Figures, compute, find
from peft_jax.metrics.base import Sums
from peft_jax.metrics.intervals import bootstrap_median
from peft_jax.text_examples import TextExamples, text_batches
from peft_jax.tokenizer import load_tokenizer
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


_DRAWS = 1000


class _Measured:
    """What every evaluation gives: its task's metrics under each template, and their spread.

    Figures are in percent where ``peft_jax.metrics`` says so.
    """

    examples: Any

    @functools.cached_property
    def answers(self) -> Answers:
        """What the metrics read."""
        raise NotImplementedError

    @functools.cached_property
    def figures_per_template(self) -> dict[str, Figures]:
        """The figures under every template that applies to any row."""
        names = tuple(self.examples.details.get("metrics") or ("accuracy",))
        answers, found = self.answers, {}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            for index, name in enumerate(self.examples.template_names):
                rows = np.flatnonzero(self.examples.template == index)
                if rows.size:
                    found[name] = compute(names, answers.select(rows))
        lines = (str(one.message) for one in told if issubclass(one.category, UserWarning))
        self.__dict__["_told"] = tuple(dict.fromkeys(lines))
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What a metric has to say beside its figures: one that could not be had, and why."""
        return self.__dict__["_told"] if self.figures_per_template else ()

    @property
    def figures(self) -> dict[str, Spread]:
        """Median and interquartile range over templates of every figure."""
        each = list(self.figures_per_template.values())
        return {name: spread([figures[name] for figures in each]) for name in each[0]}

    @property
    def reported(self) -> tuple[str, Spread]:
        """The figure that papers report of the task, and its name."""
        return next(iter(self.figures.items()))

    def interval(self, draws: int | None = None) -> list[float] | None:
        """The 95 % bootstrap interval of the median that :attr:`reported` has, [low, high].

        What is drawn are examples, under all of their templates at once.

        Args:
          draws: of the examples; None: 1,000 where the metric sums over rows, which takes
            milliseconds, and none where it would be computed anew of each. 0: none.

        Returns None without draws.
        """
        metric = find((self.examples.details.get("metrics") or ("accuracy",))[0])
        if draws is None:
            draws = _DRAWS if isinstance(metric.function, Sums) else 0
        if not draws:
            return None
        keys = np.asarray(self.examples.example).tolist()
        if "keep.group" in metric.reads:
            keys = [str(group) for group in self.answers.kept("group")]
        template, answers = np.asarray(self.examples.template), self.answers
        parts = [np.flatnonzero(template == index) for index in np.unique(template)]
        clusters = [[keys[row] for row in rows] for rows in parts]
        return list(
            bootstrap_median(metric, [answers.select(r) for r in parts], clusters, draws=draws)
        )

    def summary(self, draws: int | None = None) -> dict[str, Any]:
        """The figures as JSON values; ``draws`` as for :meth:`interval`."""
        name, score = self.reported
        per_template = self.figures_per_template
        return {
            "task": self.examples.task,
            "split": self.examples.split,
            "examples": self.examples.num_examples,
            "rows": len(self.examples),
            "metric": name,
            "score": score.median,
            "score_iqr": score.iqr,
            "score_of": "median over templates",
            "interval_95": self.interval(draws),
            "score_per_template": {t: figures[name] for t, figures in per_template.items()},
            "figures": {n: dataclasses.asdict(value) for n, value in self.figures.items()},
            "figures_per_template": per_template,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation(_Measured):
    """Scores of all R rows (examples times templates) of a task, and the figures they give.

    Attributes:
      examples: what was scored.
      scores: [R, C] float32 log-probabilities, -inf where a row has no such choice.
    """

    examples: ChoiceExamples
    scores: np.ndarray

    @functools.cached_property
    def answers(self) -> Answers:
        """The chosen classes; a choice's text is the sequence of its tokens."""
        texts = _texts_of(self.examples)
        right = self.examples.label
        return Answers(
            predictions=[row[place] for row, place in zip(texts, self.predictions, strict=True)],
            references=[(row[place],) for row, place in zip(texts, right, strict=True)],
            predicted=self.predictions,
            labels=right,
            scores=self.scores,
            keep=self.examples.keep,
        )

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

    def summary(self, draws: int | None = None) -> dict[str, Any]:
        """The figures as JSON values; accuracies are shares of 1."""
        return super().summary(draws) | {
            "accuracy_median": self.accuracy.median,
            "accuracy_iqr": self.accuracy.iqr,
            "accuracy_mean": float(self.correct.mean()),
            "accuracy_per_template": self.accuracy_per_template,
        }

    def write(self, path: Path) -> None:
        """One JSON line per row: example, template, label, prediction and every choice's score."""
        examples, predictions = self.examples, self.predictions
        with open(path, "w", encoding="utf-8") as file:
            for row in range(len(examples)):
                exists = examples.choice_mask[row]
                line = {
                    "example": int(examples.example[row]),
                    "template": examples.template_names[examples.template[row]],
                    "label": int(examples.label[row]),
                    "prediction": int(predictions[row]),
                    "scores": [round(float(s), 6) for s in self.scores[row][exists]],
                }
                file.write(json.dumps(line) + "\n")


def _texts_of(examples: ChoiceExamples) -> list[list[str]]:
    """The choices of every row, told apart as texts are."""
    return [[" ".join(map(str, ids)) for ids in row] for row in examples.choices.tolist()]


@dataclasses.dataclass(frozen=True, eq=False)
class TextEvaluation(_Measured):
    """Texts that were written for all R rows of a task, and the figures they give.

    Attributes:
      examples: what was read.
      texts: R texts.
    """

    examples: TextExamples
    texts: Sequence[str]

    @functools.cached_property
    def answers(self) -> Answers:
        """The texts; of a task with classes also which of them a text is, -1 for none."""
        keep = [dict(kept) for kept in self.examples.keep]
        classes: dict[str, Any] = {}
        if keep and all("choices" in kept for kept in keep):
            classes["predicted"] = np.asarray(
                [
                    kept["choices"].index(text.strip()) if text.strip() in kept["choices"] else -1
                    for text, kept in zip(self.texts, keep, strict=True)
                ]
            )
            classes["labels"] = np.asarray([kept["label"] for kept in keep])
            classes["num_classes"] = max(len(kept["choices"]) for kept in keep)
        return Answers(list(self.texts), list(self.examples.references), keep=keep, **classes)

    def write(self, path: Path) -> None:
        """One JSON line per row: example, template, the text, and what would have been right."""
        examples = self.examples
        with open(path, "w", encoding="utf-8") as file:
            for row, text in enumerate(self.texts):
                line = {
                    "example": int(examples.example[row]),
                    "template": examples.template_names[examples.template[row]],
                    "prediction": text,
                    "references": list(examples.references[row]),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_texts(
    backbone: Backbone,
    method: Method | None,
    adapter: Params,
    frozen: Params,
    examples: TextExamples,
    *,
    decoding: Decoding | None = None,
    batch_size: int = 32,
    mesh: jax.sharding.Mesh | None = None,
    advance: Callable[[int], None] | None = None,
) -> TextEvaluation:
    """Writes a text for every row; rows of one input share a text.

    Args:
      backbone: its configuration and vocabulary; ``frozen`` are its parameters.
      method, adapter: the method and its stored tree; None and ``{}`` for the backbone alone.
      decoding: how; by default greedily, up to as many tokens as the longest target has.
      batch_size: inputs read at a time, rounded up to what the mesh divides; the last batch is
        filled up.
      advance: called with the number of rows after each batch (a progress bar).

    Raises:
      InputError: the options do not fit the backbone, or it has no vocabulary.
    """
    if backbone.vocabulary is None:
        raise InputError(f"backbone {backbone.name!r} has no vocabulary to write text with")
    tokenizer = load_tokenizer(backbone.vocabulary)
    decoding = decoding or Decoding(max_length=examples.lengths[1])
    params = frozen if method is None else merge(frozen, method.bind(adapter))
    distinct, place = _distinct_inputs(examples)
    rows_of = np.bincount(place)
    texts = [""] * len(distinct)
    size, mine = _shape_of_batches(batch_size, mesh)
    for number, batch in enumerate(text_batches(distinct, size, rows=mine)):
        row, weight = batch.pop("row"), batch.pop("weight")
        placed = batch if mesh is None else sharding.put_batch(mesh, batch)
        key = jax.random.fold_in(jax.random.key(0), number) if decoding.samples else None
        written = generate(backbone, params, placed, decoding, key, tokenizer=tokenizer)
        if mesh is not None:
            written = sharding.fetch(mesh, written)
        first = decode_texts(written, backbone.config, decoding, tokenizer)
        real = row[weight > 0]
        for index, (text, *_) in zip(real, first, strict=False):
            texts[index] = text
        if advance is not None:
            advance(int(rows_of[real].sum()))
    return TextEvaluation(examples, [texts[index] for index in place])


def _shape_of_batches(
    batch_size: int, mesh: jax.sharding.Mesh | None
) -> tuple[int, np.ndarray | None]:
    """The batch that a mesh divides, of at least this size, and this process's rows of it."""
    if mesh is None:
        return batch_size, None
    ways = sharding.batch_ways(mesh)
    size = -(-batch_size // ways) * ways
    return size, sharding.local_rows(mesh, size)


def _distinct_inputs(examples: TextExamples) -> tuple[TextExamples, np.ndarray]:
    """The rows with an input that none before has, and [R] which of them a row's input is."""
    known: dict[bytes, int] = {}
    place = np.asarray(
        [known.setdefault(examples.inputs[r].tobytes(), len(known)) for r in range(len(examples))]
    )
    _, rows = np.unique(place, return_index=True)
    taken: dict[str, Any] = {
        key: getattr(examples, key).take(rows)
        for key in ("inputs", "targets", "references", "keep")
    }
    taken |= {key: getattr(examples, key)[rows] for key in ("example", "template", "label")}
    return dataclasses.replace(examples, **taken), place


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
        with constraints.on_mesh(mesh):
            params = frozen if method is None else merge(frozen, method.bind(adapter))
            scores = score(backbone, params, batch)
        if mesh is None:
            return scores
        return jax.lax.with_sharding_constraint(scores, sharding.replicated(mesh))

    # Only the configuration is wanted: the closure must not hold the weights as constants.
    backbone = dataclasses.replace(backbone, params={})
    return jax.jit(run)


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
      batch_size: rows scored at a time, rounded up to what the mesh divides; the last batch is
        filled up.
      advance: called with the number of rows after each batch (a progress bar).
    """
    scores = np.full(examples.choices.shape[:2], -np.inf, np.float32)
    size, mine = _shape_of_batches(batch_size, mesh)
    for batch in evaluation_batches(examples, size, mine):
        row, weight = batch.pop("row"), batch.pop("weight")
        placed = batch if mesh is None else sharding.put_batch(mesh, batch)
        batch_scores = np.asarray(scorer(adapter, frozen, placed))
        real = weight > 0
        scores[row[real]] = batch_scores[real]
        if advance is not None:
            advance(int(real.sum()))
    return Evaluation(examples, scores)
