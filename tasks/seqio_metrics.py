"""The metrics of `peft_jax.metrics` for seqio's Evaluator and T5X.

A seqio task is evaluated by its ``postprocess_fn`` and ``metric_fns`` (or ``metric_objs``). Here
they are for the rows that `peft_jax.tasks.registry` makes, and for any that hold

    references   [n] texts, all that are right; without them the target is
    keep         [] JSON, what metrics need beside the texts
    label        [] or [1] int, the right choice; without it, or if negative, there are no classes
    choices      [c] texts, or tokens [c, t] beside choices_pretokenized [c] texts

By predictions, a text that is one of the choices is that class and any other text is class -1,
which counts as t5's metrics count it. By scores, each row has those of its choices, [C]
log-probabilities with whatever stands behind the last choice left out. By choice scores, as T5X
scores, each choice is a row of its own (`row_per_choice`) with one log-probability of its target::

    seqio.Task(..., postprocess_fn=postprocess, metric_fns=metric_fns(["accuracy", "f1"]))

`evaluated` gives a task that is there already its metrics.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from peft_jax.errors import InputError
from peft_jax.metrics import Answers, Metric, find
from peft_jax.tasks.tensorflow_data import seqio, tf

By = Literal["predictions", "scores", "choice scores"]


@dataclass(frozen=True)
class Target:
    """What is right for one row, as `postprocess` makes it of the row.

    Attributes:
        references, choices, label, keep: see the head of this file.
        choice: which of the choices the row is, where each has its own row.
        length: tokens of its target, EOS included.
    """

    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    label: int = -1
    keep: Mapping[str, Any] = field(default_factory=dict)
    choice: int = -1
    length: int = 0


def postprocess(
    output: Any, example: Mapping[str, Any] | None = None, is_target: bool = False, **_: Any
) -> Any:
    """seqio's ``postprocess_fn``: a row becomes a `Target`, a predicted text is stripped.

    Raises InputError for choices without texts.
    """
    if not is_target:
        return _text(output).strip()
    example = example or {}
    choices, label = _choices(example), _number(example, "label")
    right = choices[label] if choices and label >= 0 else _text(output).strip()
    return Target(
        references=tuple(_text(text) for text in example.get("references", ())) or (right,),
        choices=choices,
        label=label,
        keep=json.loads(_text(example["keep"])) if "keep" in example else {},
        choice=_number(example, "choice"),
        length=len(example.get("targets", ())),
    )


def metric_fns(
    names: Sequence[str], by: By = "predictions", *, length_normalization: float = 0.0
) -> list[Callable]:
    """One function per named metric, for seqio's ``metric_fns``.

    Args:
        names: see `peft_jax.metrics.METRICS`.
        by: what the model gives: "predictions" makes functions of (targets, predictions), for
            ``predict_fn``; "scores" functions of (targets, scores), for a ``score_fn`` that gives
            each row [C] numbers; "choice scores" the same, for one that gives each choice's row
            one number.
        length_normalization: by choice scores, the power of a choice's length that its score is
            divided by: 0 as T0 ranks, 1 as T-Few does.

    Raises InputError for an unknown name, and for a metric of scores where there are none.
    """
    metrics = [find(name) for name in names]
    if by == "predictions":
        for metric in metrics:
            if "scores" in metric.reads:
                raise InputError(f"metric {metric.name!r} reads scores: give by='scores'")
        return [_of_predictions(metric) for metric in metrics]
    if by == "scores":
        return [_of_scores(metric, answers_of_scores) for metric in metrics]
    if by == "choice scores":
        read = functools.partial(
            answers_of_choice_scores, length_normalization=length_normalization
        )
        return [_of_scores(metric, read) for metric in metrics]
    raise InputError(f"by is {by!r}; it is 'predictions', 'scores' or 'choice scores'")


def metric_objs(
    names: Sequence[str], by: By = "predictions", *, length_normalization: float = 0.0
) -> list[type[seqio.metrics.Metric]]:
    """The same as seqio's metric objects, for ``metric_objs``; `postprocess` is part of them."""
    passthrough = seqio.metrics.PassthroughLegacyMetric
    return [
        passthrough.from_metric_fn(function, postprocess_fn=postprocess)
        for function in metric_fns(names, by, length_normalization=length_normalization)
    ]


def evaluated(
    task: seqio.Task,
    names: Sequence[str],
    by: By = "predictions",
    features: Sequence[str] = ("inputs", "targets"),
    *,
    length_normalization: float = 0.0,
) -> seqio.Task:
    """A copy of a task, not registered, that seqio's Evaluator computes the named metrics of.

    Args:
        task: such as `seqio.TaskRegistry.get` gives it; by choice scores, its rows are expanded.
        names, by, length_normalization: as for `metric_fns`.
        features: what the Evaluator's feature converter takes, which is not to be offered more;
            the rows still hold the task's other features, for the metrics.

    Raises InputError as `metric_fns` does, and for features that the task lacks.
    """
    if missing := [name for name in features if name not in task.output_features]:
        raise InputError(
            f"task {task.name} has no feature {missing[0]!r}; it has "
            f"{', '.join(task.output_features)}"
        )
    steps = [_bound(step, task.output_features) for step in task.preprocessors]
    return seqio.Task(
        task.name,
        source=task.source,
        output_features={name: task.output_features[name] for name in features},
        preprocessors=[*steps, row_per_choice] if by == "choice scores" else steps,
        postprocess_fn=postprocess,
        metric_fns=metric_fns(names, by, length_normalization=length_normalization),
    )


def row_per_choice(ds: tf.data.Dataset) -> tf.data.Dataset:
    """A seqio preprocessor: each choice a row of its own, whose target it is.

    From rows with ``choices`` [c, t], short ones filled up with negative numbers, and
    ``choices_pretokenized`` [c]. The rows of one row follow each other; ``choice`` [] tells them.
    """

    def expand(row):
        def one(index):
            tokens = row["choices"][index]
            own = {
                "targets": tokens[tokens >= 0],
                "targets_pretokenized": row["choices_pretokenized"][index],
                "choice": tf.cast(index, tf.int32),
            }
            return {key: value for key, value in row.items() if key != "choices"} | own

        return tf.data.Dataset.range(tf.shape(row["choices"], tf.int64)[0]).map(one)

    return ds.flat_map(expand)


def _bound(step: Callable, features: Mapping[str, seqio.Feature]) -> Callable:
    """A preprocessor that sees all of the task's features, whichever are declared."""
    if isinstance(step, seqio.CacheDatasetPlaceholder):
        return step
    takes = inspect.signature(step).parameters
    return functools.partial(step, output_features=features) if "output_features" in takes else step


def _of_predictions(metric: Metric) -> Callable:
    def function(targets, predictions):
        return metric(answers_of_predictions(targets, predictions))

    return _named(function, metric)


def _of_scores(metric: Metric, read: Callable[..., Answers]) -> Callable:
    def function(targets, scores):
        return metric(read(targets, scores))

    return _named(function, metric)


def _named(function: Callable, metric: Metric) -> Callable:
    function.__name__ = function.__qualname__ = metric.name
    function.__doc__ = metric.about
    return function


def answers_of_predictions(targets: Sequence[Target], predictions: Sequence[str]) -> Answers:
    """What `peft_jax.metrics` reads, of texts."""
    ranked = bool(targets) and all(target.choices for target in targets)
    pairs = list(zip(targets, predictions, strict=True))
    classes = [t.choices.index(text) if text in t.choices else -1 for t, text in pairs]
    return Answers(
        predictions=list(predictions),
        references=[target.references for target in targets],
        predicted=np.array(classes, np.int64) if ranked else None,
        keep=[target.keep for target in targets],
        **_labels(targets),
    )


def answers_of_scores(targets: Sequence[Target], scores: Sequence[Any]) -> Answers:
    """What `peft_jax.metrics` reads, of each row's scores of its choices.

    Raises InputError for a row with fewer scores than choices, or with no choices.
    """
    most = max((len(target.choices) for target in targets), default=0)
    table = np.full((len(targets), most), -np.inf)
    for row, (target, given) in enumerate(zip(targets, scores, strict=True)):
        given = np.atleast_1d(np.asarray(given, np.float64))
        number = len(target.choices)
        if not number or len(given) < number:
            raise InputError(f"row {row} has {number} choices and {len(given)} scores")
        table[row, :number] = given[:number]
    chosen = table.argmax(axis=1)
    return Answers(
        predictions=[t.choices[index] for t, index in zip(targets, chosen, strict=True)],
        references=[target.references for target in targets],
        scores=table,
        keep=[target.keep for target in targets],
        **_labels(targets),
    )


def answers_of_choice_scores(
    targets: Sequence[Target], scores: Sequence[float], *, length_normalization: float = 0.0
) -> Answers:
    """What `peft_jax.metrics` reads, of one score for each row of `row_per_choice`.

    Raises InputError for rows that are not all the choices of one row after the other.
    """
    firsts: list[Target] = []
    grouped: list[list[float]] = []
    for row, (target, score) in enumerate(zip(targets, scores, strict=True)):
        if target.choice == 0:
            firsts.append(target)
            grouped.append([])
        if not grouped or target.choice != len(grouped[-1]):
            raise InputError(
                f"row {row} is choice {target.choice} of its row, behind "
                f"{len(grouped[-1]) if grouped else 0} others: rows must be in order, each choice "
                "one (row_per_choice)"
            )
        grouped[-1].append(float(score) / max(target.length, 1) ** length_normalization)
    return answers_of_scores(firsts, grouped)


def _labels(targets: Sequence[Target]) -> dict[str, Any]:
    """Labels, where every row has one, and the number of classes."""
    labels = np.array([target.label for target in targets], np.int64)
    if not len(labels) or (labels < 0).any():
        return {}
    most = max(len(target.choices) for target in targets)
    return {"labels": labels, "num_classes": most or None}


def _choices(example: Mapping[str, Any]) -> tuple[str, ...]:
    texts = example.get("choices_pretokenized", example.get("choices", ()))
    texts = np.asarray(texts) if not isinstance(texts, tuple | list) else texts
    if len(texts) and not isinstance(texts[0], str | bytes):
        raise InputError(
            "the rows have tokens of their choices but no texts (choices_pretokenized): metrics "
            "need seqio.preprocessors.tokenize's copy_pretokenized=True"
        )
    return tuple(_text(text) for text in texts)


def _number(example: Mapping[str, Any], key: str) -> int:
    return int(np.ravel(example.get(key, -1))[0])


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
