"""Leaves that are more than one array: of many tasks, or of the last layers of a stack alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.errors import InputError
from peft_jax.tree import Params

Batch = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerTask:
    """A leaf of a bank: [tasks + 1, ...], or [L, tasks + 1, ...] in a stack of layers.

    The last one changes nothing: it serves the inputs without an adapter.
    """

    values: jax.Array
    stacked: bool = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tail:
    """A leaf [L, ...] of a stack whose last K layers are trained and the others frozen.

    Kept as two arrays, so that the layers below are run without a backward pass and no array of
    the stack's size is copied or has a gradient.
    """

    own: jax.Array
    values: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.own.shape

    @property
    def dtype(self) -> Any:
        return self.own.dtype

    @property
    def first(self) -> int:
        """Index of the first trained layer."""
        return len(self.own) - len(self.values)

    def whole(self) -> jax.Array:
        """[L, ...], a copy."""
        return jnp.concatenate([self.own[: self.first], self.values])


def for_tasks(params: Params, batch: Batch) -> Params:
    """Parameters in which each input of a batch has the leaves of its own task.

    Args:
      params: merged with a bank (``methods.bank``); without one they are returned as they are.
      batch: ``task_ids`` [B] int32, the index of each input's adapter in the bank; -1: none.
    Raises:
      InputError: the batch does not say the tasks, or (where it can be seen) one doesn't exist.
    """
    found = [x for x in jax.tree.leaves(params, is_leaf=_is_per_task) if _is_per_task(x)]
    if not found:
        return params
    if "task_ids" not in batch:
        raise InputError("the parameters hold a bank of adapters: the batch needs task_ids [B]")
    ids = batch["task_ids"]
    tasks = found[0].values.shape[1 if found[0].stacked else 0] - 1
    traced = isinstance(ids, jax.core.Tracer)
    if not traced and not (isinstance(ids, jax.Array) and not ids.is_fully_addressable):
        wrong = [int(i) for i in np.asarray(ids) if not -1 <= i < tasks]
        if wrong:
            raise InputError(
                f"task_ids: {wrong[0]} is not in a bank of {tasks} adapters (-1: none)"
            )
    ids = jnp.asarray(ids)

    def own(leaf):
        if not _is_per_task(leaf):
            return leaf
        return leaf.values[:, ids] if leaf.stacked else leaf.values[ids]

    return jax.tree.map(own, params, is_leaf=_is_per_task)


def _is_per_task(leaf: Any) -> bool:
    return isinstance(leaf, PerTask)


def scan_layers(body, carry, xs):
    """``lax.scan`` over layers, in two parts where only the last layers have trained leaves."""
    firsts = {x.first for x in jax.tree.leaves(xs, is_leaf=_is_tail) if _is_tail(x)}
    if not firsts:
        return jax.lax.scan(body, carry, xs)
    first = min(firsts)
    frozen = jax.tree.map(lambda x: x.own if _is_tail(x) else x, xs, is_leaf=_is_tail)

    # Indexed in place: slices of the frozen layers would be a copy of them.
    def below(carry, i):
        return body(carry, jax.tree.map(lambda x: x[i], frozen))

    def above(x):
        if not _is_tail(x):
            return x[first:]
        return jnp.concatenate([x.own[first : x.first], x.values]) if x.first > first else x.values

    carry, lower = jax.lax.scan(below, carry, jnp.arange(first))
    carry, upper = jax.lax.scan(body, carry, jax.tree.map(above, xs, is_leaf=_is_tail))
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), lower, upper)


def _is_tail(leaf: Any) -> bool:
    return isinstance(leaf, Tail)


def without_tails(params: Params) -> Params:
    """Parameters in which every leaf is one array (see :class:`Tail`)."""
    return jax.tree.map(lambda x: x.whole() if _is_tail(x) else x, params, is_leaf=_is_tail)
