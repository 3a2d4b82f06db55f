"""Few-shot draws, example for example those of T-Few.

T-Few seeds numpy's global generator, shuffles the whole training list and keeps the first n rows,
not balanced by class (`_sample_few_shot_data` in src/data/dataset_readers.py of
github.com/r-three/t-few). SST-2's published files were drawn class by class, with the generator
seeded again for each class, the classes one after the other (found from the files: T-Few's code for
it was not published). The draws are those of the paper only if the rows stand in the dataset's
official order.
"""

from collections.abc import Sequence

import numpy as np

from peft_jax.errors import InputError


def draw_few_shot(labels: Sequence[int], shots: int, seed: int, *, per_class: bool) -> list[int]:
    """Positions of the drawn rows, in the order in which they were drawn.

    Args:
        labels: the label of every row of the training split, in official order.
        shots: how many rows, in all or per class.
        seed: T-Few's ``few_shot_random_seed`` (the paper: 42, 1024, 0, 1, 32).
        per_class: draw ``shots`` rows of each label.

    Raises InputError if there are not so many rows, or for a seed that numpy does not take.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"few-shot seed {seed}: numpy takes 0 to 4294967295")
    if not per_class:
        return _draw(list(range(len(labels))), shots, seed, "the training split")
    return [
        position
        for label in sorted(set(labels))
        for position in _draw(
            [i for i, other in enumerate(labels) if other == label], shots, seed, f"label {label}"
        )
    ]


def _draw(positions: list[int], shots: int, seed: int, of_what: str) -> list[int]:
    if not 1 <= shots <= len(positions):
        raise InputError(f"{shots} shots cannot be drawn: {of_what} has {len(positions)} examples")
    # The generator that np.random.seed(seed) sets, without touching the global one.
    np.random.RandomState(seed).shuffle(positions)
    return positions[:shots]


def folds(labels: Sequence[int], k: int, seed: int, *, stratified: bool = True) -> list[np.ndarray]:
    """The rows in k parts, each to be held out once while the others train (cross-validation).

    The rows are shuffled and dealt out one by one, class after class if stratified, so that both
    the parts' sizes and a class's share of every part differ by one row at most.

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


def _generator(seed: int) -> np.random.RandomState:
    """The generator that np.random.seed(seed) sets, without touching the global one."""
    if not 0 <= seed < 2**32:
        raise InputError(f"few-shot seed {seed}: numpy takes 0 to 4294967295")
    return np.random.RandomState(seed)
