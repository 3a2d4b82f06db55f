"""Training batches drawn from several tasks at once.

::

    sampler = MixtureSampler([rte, cb, boolq], batch_size=8, seed=0, rates="examples", cap=500_000)
    batch = next(sampler)  # the tasks' own keys, padded to one shape, and task_ids [8]
    sampler.state  # where it stands: enough to go on exactly

Which task a row comes from is drawn at random by the tasks' rates, as seqio's mixtures draw; what
is drawn within a task follows T-Few: each epoch of the task is a shuffle of all its examples, each
under a template drawn at random. Batch k is a pure function of (seed, k), so that every process
makes its own part of it, and a run that goes on at batch k needs nothing but k.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from peft_jax.errors import InputError
from peft_jax.example_rows import checked_places
from peft_jax.examples import ChoiceExamples
from peft_jax.packing import PackedExamples
from peft_jax.text_examples import TextExamples

Batch = dict[str, np.ndarray]
Examples = ChoiceExamples | TextExamples | PackedExamples

# The streams of random numbers that a seed has.
_COUNTS, _SPLITS, _ORDER, _EPOCH = range(4)
_LEAF = 2**10
_ROOT = 2**28


def mixing_rates(
    sizes: Sequence[int],
    *,
    cap: int | None = None,
    caps: Sequence[int | None] | None = None,
    temperature: float = 1.0,
) -> np.ndarray:
    """[N] float64 probabilities of tasks by their sizes, ``min(size, cap) ** (1 / temperature)``.

    Raffel et al. 2020, section 3.5.2; seqio's ``mixing_rate_num_examples``.

    Args:
        cap: the largest size that counts; None: no limit (T5's K).
        caps: of single tasks, in place of ``cap`` where they are not None.
        temperature: 1 is proportional to size; the larger, the more alike.

    Raises InputError where nothing could be drawn, and for a temperature that is not positive.
    """
    limits = [cap] * len(sizes) if caps is None else [cap if c is None else c for c in caps]
    counted = [n if c is None else min(n, c) for n, c in zip(sizes, limits, strict=True)]
    return _probabilities(counted, temperature)


def _probabilities(rates: Sequence[float], temperature: float) -> np.ndarray:
    if not temperature > 0:
        raise InputError(f"temperature {temperature} of a mixture: more than 0 is needed")
    values = np.asarray(rates, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not values.sum():
        raise InputError(f"rates {list(rates)} of a mixture: numbers of 0 or more, not all 0")
    weights = np.where(values > 0, values ** (1.0 / temperature), 0.0)
    return weights / weights.sum()


class MixtureSampler:
    """Infinite training batches from several tasks; see the head of this file.

    Batches have what `ChoiceExamples.rows` or `TextExamples.rows` give, padded to what the largest
    of the tasks needs (S and T tokens, C choices, ``choice_mask`` saying which exist), and

        row       [b] int32, the row in its own task
        task_ids  [b] int32, the task, as an index of ``tasks``: whose adapter of a bank it trains

    Differs from `FewShotSampler`, whose epochs drop their last, partial batch: here the examples
    that one batch has no room for come in the next.

    Args:
        tasks: all of them `ChoiceExamples`, `TextExamples` or `PackedExamples`, made with one
            vocabulary for one backbone. A packed row counts as an example.
        batch_size: B, over all processes.
        seed: of all draws. The order of the tasks matters to them.
        rates: "examples": by the number of examples; "rows": by that of examples times templates,
            as seqio counts a task; "equal"; or a number for each task.
        cap, caps: limits of the first two, for all tasks, and by a task's name.
        temperature: see `mixing_rates`.
        templates: "random": an epoch of a task has each example once, under a template drawn at
            random; "all": it has each example under each of its templates.
        one_task: every batch is drawn from a single task (and the task by the rates): no padding to
            what other tasks need, one compiled shape for each task's.
        buckets: lengths that a batch may have along each of S, T and C: the longest of all tasks,
            half of that, ... halved ``buckets`` - 1 times; the smallest that holds the batch is
            taken, and each combination that occurs compiles once.
        rows: the places of a batch that this process makes (`sharding.local_rows`); None: all. What
            is drawn, and the width of a batch, do not depend on them.

    Raises InputError for tasks that do not belong together, rates that are none, rows that a batch
    does not have.
    """

    def __init__(
        self,
        tasks: Sequence[Examples],
        batch_size: int,
        seed: int,
        *,
        rates: Literal["examples", "rows", "equal"] | Sequence[float] = "examples",
        cap: int | None = None,
        caps: Mapping[str, int] | None = None,
        temperature: float = 1.0,
        templates: Literal["random", "all"] = "random",
        one_task: bool = False,
        buckets: int = 1,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        _check_together(tasks)
        _check_numbers(batch_size, seed, buckets, templates)
        self.tasks = tuple(tasks)
        self.batch_size = batch_size
        self.seed = seed
        self.templates = templates
        self.one_task = one_task
        self.places = checked_places(rows, batch_size)
        self.rates = _rates_of(self.tasks, rates, cap, caps or {}, temperature)
        self._draws = _TaskDraws(seed, self.rates)
        self._own = [_OwnDraws(task, (seed, t), templates) for t, task in enumerate(self.tasks)]
        self._shapes = _Shapes(self.tasks, buckets, one_task)
        self._next = 0

    @property
    def num_examples(self) -> int:
        """The number of distinct examples of all tasks."""
        return sum(task.num_examples for task in self.tasks)

    @property
    def sizes(self) -> tuple[int, ...]:
        """For each task what one of its epochs has: examples, or pairs with a template."""
        return tuple(own.size for own in self._own)

    def drawn(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(task [B] int32, row in its task [B] int32) of batch k, of all processes."""
        if self.one_task:
            (task,), (before,) = self._draws.between(k, k + 1)
            tasks = np.full(self.batch_size, task)
            ordinals = before * self.batch_size + np.arange(self.batch_size)
        else:
            tasks, ordinals = self._draws.between(k * self.batch_size, (k + 1) * self.batch_size)
        rows = np.empty(self.batch_size, np.int32)
        for task in np.unique(tasks):
            places = tasks == task
            rows[places] = self._own[task].rows(ordinals[places])
        return tasks.astype(np.int32), rows

    def batch(self, k: int) -> Batch:
        """This process's part of batch k, counted from 0; see the class for its keys."""
        tasks, rows = self.drawn(k)
        width = self._shapes.of(tasks, rows)
        return _gather(self.tasks, tasks[self.places], rows[self.places], width)

    @property
    def state(self) -> dict[str, Any]:
        """Where the next batch stands: its number, and what it is drawn from."""
        return {"batch": self._next, "sizes": list(self.sizes)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`. Raises InputError if it cannot be one of this sampler."""
        batch, sizes = state.get("batch", -1), state.get("sizes")
        if batch < 0 or sizes != list(self.sizes):
            raise InputError(
                f"the data position {dict(state)} does not fit a mixture of {list(self.sizes)} "
                "examples: was the run started with other data?"
            )
        self._next = batch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.batch(self._next)
        self._next += 1
        return batch


# --------------------------------------------------------------------------------------------
# Which task
# --------------------------------------------------------------------------------------------
class _TaskDraws:
    """Independent draws of a task by the rates, any of them found without making those before.

    How often each task comes up in a stretch of draws is multinomial; how often in its first half,
    given that, multivariate hypergeometric; and the order within a stretch is a shuffle. So a tree
    over the draws, cut in half from 2**28 down to 2**10, gives the same distribution as drawing one
    by one, and the counts in front of any place in 18 steps.
    """

    def __init__(self, seed: int, rates: np.ndarray):
        self._seed, self._rates = seed, rates
        self._root_counts = functools.lru_cache(maxsize=None)(self._count_root)
        self._leaf = functools.lru_cache(maxsize=4)(self._draw_leaf)

    def between(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(task, number of earlier draws of that task), both [stop - start] int64."""
        leaves = [self._leaf(i) for i in range(start // _LEAF, -(-stop // _LEAF))]
        tasks, ordinals = (np.concatenate(parts) for parts in zip(*leaves, strict=True))
        first = start // _LEAF * _LEAF
        return tasks[start - first : stop - first], ordinals[start - first : stop - first]

    def _count_root(self, root: int) -> np.ndarray:
        return np.random.default_rng([self._seed, _COUNTS, root]).multinomial(_ROOT, self._rates)

    def _draw_leaf(self, leaf: int) -> tuple[np.ndarray, np.ndarray]:
        place = leaf * _LEAF
        root = place // _ROOT
        before = sum((self._root_counts(r) for r in range(root)), np.zeros_like(self._rates, int))
        counts, start, size = self._root_counts(root), root * _ROOT, _ROOT
        while size > _LEAF:
            size //= 2
            random = np.random.default_rng([self._seed, _SPLITS, size, start // size])
            first = random.multivariate_hypergeometric(counts, size, method="marginals")
            if place < start + size:
                counts = first
            else:
                before, counts, start = before + first, counts - first, start + size
        tasks = np.repeat(np.arange(len(counts)), counts)
        np.random.default_rng([self._seed, _ORDER, leaf]).shuffle(tasks)
        by_task = np.argsort(tasks, kind="stable")
        ends = np.cumsum(counts)
        ordinals = np.empty(_LEAF, np.int64)
        ordinals[by_task] = np.arange(_LEAF) - np.repeat(ends - counts - before, counts)
        return tasks, ordinals


class _OwnDraws:
    """What is drawn within one task: epochs without repetition, a template at random or all."""

    def __init__(self, examples: Examples, key: tuple[int, int], templates: str):
        self._key = key
        self._starts = None
        if templates == "random":
            # Rows of one example behind each other, and where each example's begin.
            ids = np.asarray(examples.example)
            self._rows = np.argsort(ids, kind="stable").astype(np.int32)
            changes = np.flatnonzero(np.diff(ids[self._rows])) + 1
            self._starts = np.concatenate([[0], changes, [len(ids)]]).astype(np.int64)
            self.size = len(self._starts) - 1
        else:
            self.size = len(examples)
        # A batch may lie on the border of two epochs.
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def rows(self, ordinals: np.ndarray) -> np.ndarray:
        """The rows of some draws, counted from the task's first."""
        epochs, places = np.divmod(ordinals, self.size)
        rows = np.empty(len(ordinals), np.int32)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            rows[of_epoch] = self._epoch(int(epoch))[places[of_epoch]]
        return rows

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        seed, task = self._key
        random = np.random.default_rng([seed, _EPOCH, task, epoch])
        order = np.arange(self.size, dtype=np.int32)
        random.shuffle(order)
        if self._starts is None:
            return order
        starts = self._starts[order]
        templates = self._starts[order + 1] - starts
        return self._rows[starts + random.integers(0, templates)]


# --------------------------------------------------------------------------------------------
# Batches of one shape
# --------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Width:
    """Places of a batch: input tokens S, answer tokens T, choices C (0 of texts)."""

    inputs: int
    answers: int
    choices: int = 0

    def joined(self, other: _Width) -> _Width:
        return _Width(*map(max, dataclasses.astuple(self), dataclasses.astuple(other)))


class _Shapes:
    """The width of each batch: all tasks', its own task's, or the smallest bucket that fits."""

    def __init__(self, tasks: Sequence[Examples], buckets: int, one_task: bool):
        self._of_task = [_width(task) for task in tasks]
        self._all = functools.reduce(_Width.joined, self._of_task)
        self._buckets, self._one_task = buckets, one_task
        self._used = [_places_used(task) for task in tasks] if buckets > 1 else []

    def of(self, tasks: np.ndarray, rows: np.ndarray) -> _Width:
        whole = self._of_task[tasks[0]] if self._one_task else self._all
        if self._buckets == 1:
            return whole
        used = np.stack([self._used[t][r] for t, r in zip(tasks, rows, strict=True)]).max(axis=0)
        sizes = dataclasses.astuple(whole)
        return _Width(*(self._bucket(n, size) for n, size in zip(used, sizes, strict=True)))

    def _bucket(self, used: int, size: int) -> int:
        halves = [-(-size // 2**i) for i in range(self._buckets)]
        return min(half for half in halves if half >= used)


def _width(examples: Examples) -> _Width:
    if not isinstance(examples, ChoiceExamples):
        return _Width(*examples.lengths)
    _, choices, length = examples.choices.shape
    return _Width(examples.encoder_input_tokens.shape[1], length, choices)


def _places_used(examples: Examples) -> np.ndarray:
    """[R, 3] int32: the places that each row needs, in the order of `_Width`."""
    if isinstance(examples, TextExamples):
        inputs, answers = examples.inputs.lengths, examples.targets.lengths
        choices = np.zeros(len(examples))
    elif isinstance(examples, PackedExamples):
        return np.tile(np.array([*examples.lengths, 0], np.int32), (len(examples), 1))
    else:
        inputs = _last_used(examples.encoder_input_tokens != examples.pad_id)
        answers = _last_used((examples.choices != examples.pad_id).any(axis=1))
        choices = _last_used(examples.choice_mask)
    return np.stack([inputs, answers, choices], axis=1).astype(np.int32)


def _last_used(used: np.ndarray) -> np.ndarray:
    """[R] one past the last True of each row [R, n]."""
    return np.where(used.any(axis=1), used.shape[1] - np.argmax(used[:, ::-1], axis=1), 0)


def _gather(
    tasks: Sequence[Examples], chosen: np.ndarray, rows: np.ndarray, width: _Width
) -> Batch:
    """The batch of some rows [b] of some tasks [b]."""
    made: Batch = {}
    for task in np.unique(chosen):
        places = np.flatnonzero(chosen == task)
        examples = tasks[task]
        if isinstance(examples, ChoiceExamples):
            part = _fitted(examples.rows(rows[places]), width, examples.pad_id)
        else:
            part = examples.rows(rows[places], lengths=(width.inputs, width.answers))
        for key, array in part.items():
            if key not in made:
                made[key] = np.empty((len(chosen), *array.shape[1:]), array.dtype)
            made[key][places] = array
    return made | {"task_ids": chosen}


def _fitted(batch: Batch, width: _Width, pad_id: int) -> Batch:
    """Rows of choices cut or filled up to a width; what is cut is padding."""
    shapes: dict[str, tuple[tuple[int, ...], int | bool]] = {
        "encoder_input_tokens": ((width.inputs,), pad_id),
        "encoder_token_types": ((width.inputs,), 0),
        "choices": ((width.choices, width.answers), pad_id),
        "choice_mask": ((width.choices,), False),
    }
    return {
        key: _fit(array, *shapes[key]) if key in shapes else array for key, array in batch.items()
    }


def _fit(array: np.ndarray, shape: tuple[int, ...], fill: int | bool) -> np.ndarray:
    if array.shape[1:] == shape:
        return array
    made = np.full((len(array), *shape), fill, array.dtype)
    kept = tuple(slice(0, min(n, m)) for n, m in zip(array.shape[1:], shape, strict=True))
    made[:, *kept] = array[:, *kept]
    return made


# --------------------------------------------------------------------------------------------
# Checks
# --------------------------------------------------------------------------------------------
def _rates_of(tasks, rates, cap, caps, temperature) -> np.ndarray:
    names = [task.task for task in tasks]
    unknown = sorted(set(caps) - set(names))
    if unknown:
        raise InputError(f"a cap for {unknown[0]!r}, which is not in the mixture of {names}")
    limits = [caps.get(name) for name in names]
    if isinstance(rates, str):
        if rates == "equal":
            return _probabilities([1.0] * len(tasks), temperature)
        if rates not in ("examples", "rows"):
            raise InputError(
                f"rates {rates!r} of a mixture: 'examples', 'rows', 'equal' or numbers"
            )
        sizes = [task.num_examples if rates == "examples" else len(task) for task in tasks]
        return mixing_rates(sizes, cap=cap, caps=limits, temperature=temperature)
    if len(rates) != len(tasks):
        raise InputError(f"{len(rates)} rates for a mixture of {len(tasks)} tasks")
    return _probabilities(rates, temperature)


def _check_numbers(batch_size, seed, buckets, templates) -> None:
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: at least 1 is needed")
    if seed < 0:
        raise InputError(f"sampler seed {seed}: a seed is 0 or more")
    if buckets < 1:
        raise InputError(f"buckets {buckets}: at least 1 is needed")
    if templates not in ("random", "all"):
        raise InputError(f"templates {templates!r}: 'random' or 'all'")


def _check_together(tasks: Sequence[Examples]) -> None:
    """Raises InputError unless the rows of all tasks can stand in one batch."""
    if not tasks:
        raise InputError("a mixture of no tasks")
    first = tasks[0]
    shared = ["vocabulary", "pad_id"]
    if not isinstance(first, ChoiceExamples):
        shared += ["kind", "start_id"]
    if isinstance(first, PackedExamples):
        shared += ["lengths"]
    for task in tasks[1:]:
        pair = f"{first.task} and {task.task} cannot be mixed"
        if type(task) is not type(first):
            kinds = [type(each).__name__ for each in (first, task)]
            raise InputError(f"{pair}: the rows of one are {kinds[0]}, of the other {kinds[1]}")
        for name in shared:
            ours, theirs = getattr(first, name), getattr(task, name)
            if ours != theirs:
                raise InputError(f"{pair}: they were made with {name} {ours!r} and {theirs!r}")
        if _has_types(first) != _has_types(task):
            raise InputError(f"{pair}: one has encoder_token_types, the other none")


def _has_types(examples) -> bool:
    return getattr(examples, "encoder_token_types", None) is not None
