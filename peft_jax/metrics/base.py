"""What a metric reads, what a metric is, and how both are checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from peft_jax.errors import InputError

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """A system's answers to R rows, and what would have been right.

    Attributes:
      predictions: R texts: generated, or the text of the choice that was chosen.
      references: R sequences of texts, each of which is right.
      predicted: [R] int, the chosen class; -1: a text that is no choice. None: there are no
        classes, or ``scores`` tell them.
      labels: [R] int, the class that is right.
      scores: [R, C] float log-probabilities of the choices, -inf where a row has no such choice.
      keep: R mappings with what single metrics need besides, or ().
      num_classes: how many classes the task has; None: as many as ``scores`` has columns or, with
        no scores, one more than the largest class that occurs.

    Raises:
      InputError: a field has another number of rows.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    predicted: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    keep: Sequence[Mapping[str, Any]] = ()
    num_classes: int | None = None

    def __post_init__(self):
        for name in ("references", "predicted", "labels", "scores", "keep"):
            value = getattr(self, name)
            if value is None or (name == "keep" and not len(value)):
                continue
            if len(value) != len(self):
                raise InputError(f"{len(self)} predictions, but {name} has {len(value)} rows")

    def __len__(self) -> int:
        return len(self.predictions)

    def chosen(self) -> np.ndarray:
        """[R] int, the chosen classes; with ``scores`` alone, the class of the highest score.

        Raises:
          InputError: the rows have no classes.
        """
        if self.predicted is not None:
            return np.asarray(self.predicted)
        if self.scores is not None:
            return np.argmax(np.asarray(self.scores), axis=-1)
        raise InputError("the answers have no classes: neither predicted nor scores is given")

    def classes(self) -> int:
        """How many classes there are, see ``num_classes``."""
        if self.num_classes is not None:
            return self.num_classes
        if self.scores is not None:
            return int(np.asarray(self.scores).shape[1])
        chosen = self.chosen()
        seen = chosen if self.labels is None else np.concatenate([chosen, np.asarray(self.labels)])
        return int(seen.max(initial=-1)) + 1

    def kept(self, key: str) -> list[Any]:
        """``keep[key]`` of every row.

        Raises:
          InputError: a row has none; the message names the first such row.
        """
        if not len(self.keep):
            raise InputError(f'the rows keep no "{key}": keep is empty')
        for row, kept in enumerate(self.keep):
            if key not in kept:
                held = ", ".join(sorted(kept)) or "nothing"
                raise InputError(f'row {row} keeps no "{key}" (it keeps {held})')
        return [kept[key] for kept in self.keep]

    def select(self, rows: np.ndarray | Sequence[int]) -> Answers:
        """The answers of these rows, in this order; a row may occur several times."""
        rows = np.asarray(rows, np.int64)

        def listed(values):
            return [values[row] for row in rows]

        def picked(values):
            return None if values is None else np.asarray(values)[rows]

        return dataclasses.replace(
            self,
            predictions=listed(self.predictions),
            references=listed(self.references),
            predicted=picked(self.predicted),
            labels=picked(self.labels),
            scores=picked(self.scores),
            keep=listed(self.keep) if len(self.keep) else (),
            # A resample in which a class does not occur is still of the task with that class.
            num_classes=None if self.predicted is None and self.scores is None else self.classes(),
        )


class Sums(NamedTuple):
    """A metric that depends on the rows only through the sum of K numbers of each row.

    Attributes:
      rows: the numbers of some answers, [R, K] float64.
      figures: from such sums, [..., K], the figures, each [...].
    """

    rows: Callable[[Answers], np.ndarray]
    figures: Callable[[np.ndarray], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A function of :class:`Answers`, with what it reads and where it comes from.

    Attributes:
      name: in ``METRICS``.
      function: the figures of some answers; or :class:`Sums`, which many resamples of the rows
        are quick to compute from. Figures are in percent as papers print them, except where
        ``about`` says otherwise.
      figures: their names; the first is the one that is reported.
      reads: fields of :class:`Answers`, ``keep.<key>`` for what the rows must keep. ``predicted``
        is had from ``scores`` too.
      about: one line, with the source.
    """

    name: str
    function: Callable[[Answers], Figures] | Sums
    figures: tuple[str, ...]
    reads: tuple[str, ...]
    about: str

    def __call__(self, answers: Answers) -> Figures:
        """The figures.

        Raises:
          InputError: the answers lack what the metric reads, or there are no rows.
        """
        self.check(answers)
        if isinstance(self.function, Sums):
            figures = self.function.figures(self.function.rows(answers).sum(axis=0))
        else:
            figures = self.function(answers)
        return {name: float(value) for name, value in figures.items()}

    def check(self, answers: Answers) -> None:
        """Raises InputError that names what the answers lack."""
        if not len(answers):
            raise InputError(f"metric {self.name!r}: there are no rows")
        for field in self.reads:
            try:
                _need(answers, field)
            except InputError as error:
                raise InputError(f"metric {self.name!r} cannot be had: {error}") from None


def _need(answers: Answers, field: str) -> None:
    if field.startswith("keep."):
        answers.kept(field.removeprefix("keep."))
    elif field == "predicted":
        answers.chosen()
    elif field == "references":
        for row, references in enumerate(answers.references):
            if isinstance(references, str):
                raise InputError(f"the references of row {row} are one text, not a list of texts")
            if not len(references):
                raise InputError(f"row {row} has no references")
    elif getattr(answers, field) is None:
        raise InputError(f"the answers have no {field}")


def mean_of_rows(*names: str, values: Callable[[Answers], Any]) -> Sums:
    """Figures that are 100 times the mean of what each row has.

    Args:
      names: of the figures, J of them.
      values: [R, J] or, with one name, [R]; bool or float.
    """

    def rows(answers: Answers) -> np.ndarray:
        per_row = np.asarray(values(answers), np.float64).reshape(len(answers), len(names))
        return np.column_stack([np.ones(len(answers)), per_row])

    def figures(sums: np.ndarray) -> dict[str, Any]:
        return {name: 100 * sums[..., j] / sums[..., 0] for j, name in enumerate(names, 1)}

    return Sums(rows, figures)


def groups_of(keys: Sequence[Hashable]) -> list[list[int]]:
    """The rows of every distinct key, in the order in which the keys first occur."""
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(tuple(key) if isinstance(key, list) else key, []).append(row)
    return list(rows.values())
