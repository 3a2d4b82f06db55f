"""Few-shot draws and folds: which rows of a split train, develop or are held out.

Draws by name (`STYLES`) are taken by `draw`. All are nested: of one seed, the smaller draw is part
of the larger one, so that {50, 100, 200, 500} rows by 5 seeds are the low-data sets of Li & Liang
2021 (section 6.3). With `train_and_dev` every draw has a disjoint development set from the same
split beside it, as FewGLUE with 32 + 32 rows (P-tuning's, Liu et al. 2021; PPT, Gu et al. 2022).

"tfew" is example for example that of T-Few, which seeds numpy's global generator, shuffles the
whole training list and keeps the first n rows, not balanced by class (`_sample_few_shot_data` in
src/data/dataset_readers.py of github.com/r-three/t-few). "per_class" is that of SST-2's published
files, drawn class by class with the generator seeded again for each class, the classes one after
the other (found from the files: T-Few's code for it was not published). The draws are those of the
paper only if the rows stand in the dataset's official order.
"""

from collections.abc import Sequence

import numpy as np

from peft_jax import tree
from peft_jax.errors import InputError

STYLES = {
    "tfew": "the first rows of a shuffle, classes as they come (T-Few's for most datasets)",
    "per_class": "so many rows of each class, one class after the other (T-Few's for SST-2)",
    "balanced": "so many rows in all, as many of each class, shuffled",
}
"""Names of draws, with what they are in one line."""


def draw(labels: Sequence[int], style: str, shots: int, seed: int) -> list[int]:
    """Positions of the drawn rows, in the order in which they were drawn.

    Where "balanced" shots are not a multiple of the number of classes, the first classes in the
    order of their labels have one row more.

    Args:
        labels: the label of every row of the split, in official order; all 0 where there are none.
        style: a name of `STYLES`.
        shots: how many rows, in all or (per_class) of each class.
        seed: T-Few's ``few_shot_random_seed`` (the paper: 42, 1024, 0, 1, 32).

    Raises InputError for another style, for a seed that numpy does not take, and if there are not
    so many rows, in all or of a class.
    """
    if style not in STYLES:
        raise InputError(f"few-shot style {style!r} is not known; {tree.nearest(style, STYLES)}")
    generator = _generator(seed)
    if style == "tfew":
        return _first(range(len(labels)), shots, seed, "the split")
    classes = sorted(set(labels))
    extra = shots % len(classes) if style == "balanced" and classes else 0
    each = shots // len(classes) if style == "balanced" and classes else shots
    if each < 1:
        raise InputError(
            f"{shots} {style} shots cannot be drawn of {len(classes)} classes: give one per class "
            "at least"
        )
    drawn = []
    for index, label in enumerate(classes):
        rows = [i for i, other in enumerate(labels) if other == label]
        drawn += _first(rows, each + (index < extra), seed, f"label {label}")
    if style == "balanced":
        generator.shuffle(drawn)
    return drawn


def train_and_dev(
    labels: Sequence[int], style: str, shots: int, seed: int, dev_shots: int | None = None
) -> tuple[list[int], list[int]]:
    """A draw to train on, and one of the same style from the rest to develop on.

    Args:
        labels, style, shots, seed: as for `draw`, which makes the first of the two.
        dev_shots: of the second; None: as many as of the first (FewGLUE, PPT). Li & Liang take
            three for every ten that train.

    Returns positions, disjoint. Raises InputError as `draw` does.
    """
    train = draw(labels, style, shots, seed)
    taken = set(train)
    rest = [i for i in range(len(labels)) if i not in taken]
    dev = draw([labels[i] for i in rest], style, shots if dev_shots is None else dev_shots, seed)
    return train, [rest[i] for i in dev]


def folds(labels: Sequence[int], k: int, seed: int, *, stratified: bool = True) -> list[np.ndarray]:
    """The rows in k parts, each to be held out once while the others train (cross-validation).

    The rows are shuffled and dealt out one by one, class after class if stratified, so that both
    the parts' sizes and a class's share of every part differ by one row at most. (scikit-learn's
    StratifiedKFold refuses classes smaller than k, as most of RAFT's banking_77 are.)

    Args:
        labels: the label of every row.
        k: how many parts; as many as there are rows is leave-one-out.
        seed: of the shuffle.
        stratified: deal out class by class; a class may have fewer rows than there are parts.

    Returns:
        k int arrays of positions in ascending order, which together are all rows, each once.

    Raises InputError unless 2 <= k <= number of rows, or for a seed that numpy does not take.
    """
    if not 2 <= k <= len(labels):
        raise InputError(
            f"{k} folds of {len(labels)} examples cannot be made: give 2 to {len(labels)}"
        )
    dealt = _generator(seed).permutation(len(labels))
    if stratified:
        dealt = dealt[np.argsort(np.asarray(labels)[dealt], kind="stable")]
    return [np.sort(dealt[part::k]) for part in range(k)]


def fold_positions(
    labels: Sequence[int], k: int, fold: int, seed: int, *, stratified: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that train and those that are held out in one of k folds (see `folds`).

    Args:
        fold: which, 0 to k - 1.

    Returns positions in ascending order, disjoint, together all rows. Raises InputError for a fold
    that is not there, and as `folds` does.
    """
    parts = folds(labels, k, seed, stratified=stratified)
    if not 0 <= fold < k:
        raise InputError(f"fold {fold} of {k} is not there: give 0 to {k - 1}")
    train = np.sort(np.concatenate([part for i, part in enumerate(parts) if i != fold]))
    return train, parts[fold]


def _first(rows: Sequence[int], count: int, seed: int, of_what: str) -> list[int]:
    """The first ``count`` of some rows after a shuffle, the generator seeded anew."""
    if not 1 <= count <= len(rows):
        raise InputError(f"{count} shots cannot be drawn: {of_what} has {len(rows)} examples")
    shuffled = list(rows)
    _generator(seed).shuffle(shuffled)
    return shuffled[:count]


def _generator(seed: int) -> np.random.RandomState:
    """The generator that np.random.seed(seed) sets, without touching the global one."""
    if not 0 <= seed < 2**32:
        raise InputError(f"few-shot seed {seed}: numpy takes 0 to 4294967295")
    return np.random.RandomState(seed)
