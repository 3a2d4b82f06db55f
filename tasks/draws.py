"""Which rows of a split a task has: all, a few-shot draw, a fold, or what these leave out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from peft_jax.errors import InputError
from peft_jax.example_rows import some_of
from peft_jax.tasks.few_shot import draw, fold_positions, train_and_dev


class DrawOptions(TypedDict, total=False):
    """What every way of preparing a task can be asked for; see `Draw`."""

    shots: int | None
    seed: int | None
    few_shot_style: str
    folds: int | None
    fold: int
    dev_shots: int | None
    held_out: bool
    limit: int | None


@dataclass(frozen=True)
class Draw:
    """Rows of a split that stand for it.

    Attributes:
        shots: draw so many; None: no draw.
        seed: of the draw or of the folds, which need one.
        few_shot_style: "tfew" as T-Few drew each dataset, or a name of `few_shot.STYLES`.
        folds: deal the rows into so many parts, of which one is held out; None: no folds.
        fold: which of them, 0 to folds - 1.
        dev_shots: with ``held_out`` of a draw, how many development rows; None: as many as train.
        held_out: the rows that are not trained on: the fold, or development rows beside the draw
            (FewGLUE's, PPT's) instead of the rows that are.
        limit: at most so many of those rows, evenly spaced over them, since a file may be sorted by
            class; the first ones where rows belong to groups (MultiRC's answers to a question),
            which would be torn apart. None: all.
        split: the split that is drawn from.

    Raises InputError for options that cannot be meant together.
    """

    shots: int | None = None
    seed: int | None = None
    few_shot_style: str = "tfew"
    folds: int | None = None
    fold: int = 0
    dev_shots: int | None = None
    held_out: bool = False
    limit: int | None = None
    split: str = "train"

    def __post_init__(self):
        if (self.shots is not None or self.folds is not None) and self.seed is None:
            what = f"{self.shots} shots were" if self.folds is None else f"{self.folds} folds were"
            raise InputError(f"{what} asked for without a few-shot seed: give one")
        if self.held_out and self.shots is None and self.folds is None:
            raise InputError("held-out rows were asked for, and neither shots nor folds are drawn")

    @property
    def draws(self) -> bool:
        """Whether anything but the whole split is asked for."""
        return any(value is not None for value in (self.shots, self.folds, self.limit))

    def positions(
        self, labels: Sequence[int], *, per_class: bool, grouped: bool = False
    ) -> Sequence[int]:
        """Positions of the rows, in the order in which they were drawn.

        Args:
            labels: of the split's rows; all 0 where they have none.
            per_class: whether T-Few drew this dataset class by class.
            grouped: whether rows belong to groups.

        Raises InputError where there are not so many rows.
        """
        drawn = self._drawn(labels, per_class)
        if self.limit is None:
            return drawn
        return [drawn[i] for i in some_of(len(drawn), self.limit, grouped=grouped)]

    def _drawn(self, labels: Sequence[int], per_class: bool) -> Sequence[int]:
        if self.shots is None and self.folds is None:
            return range(len(labels))
        style, seed = self.few_shot_style, self.seed or 0
        if style == "tfew" and per_class:
            style = "per_class"
        rows = range(len(labels))
        if self.folds is not None:
            train, fold = fold_positions(labels, self.folds, self.fold, seed)
            rows = (fold if self.held_out else train).tolist()
            if self.held_out or self.shots is None:
                return rows
        own = [labels[row] for row in rows]
        if self.held_out:
            return train_and_dev(own, style, self.shots or 0, seed, self.dev_shots)[1]
        return [rows[i] for i in draw(own, style, self.shots or 0, seed)]
