"""Exchanging the adapters of a bank while it serves: nothing is compiled again.

::

    params = merge(backbone.params, bank(adapters, tasks=64))  # room for 64
    params = replace_in_bank(params, 5, method, adapter)  # task_ids 5 now reads this one
    params = clear_in_bank(params, 5)  # and now no adapter

A compiled function takes the parameters as an argument, and a replaced adapter has the shapes of
the old one: what is shorter (a rank, a prompt) is filled up exactly, as ``bank`` does it.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.methods.bank import bank
from peft_jax.methods.base import Method
from peft_jax.methods.merging import merge
from peft_jax.stacks import PerTask
from peft_jax.tree import Params


def replace_in_bank(
    params: Params, index: int, method: Method, adapter: Params, *, donate: bool = False
) -> Params:
    """Parameters in which one adapter of the bank is another one.

    Args:
      params: merged with a bank; leaves without a task axis are shared with the result.
      index: of the adapter, the ``task_ids`` that it is read by: 0 to tasks - 1.
      method, adapter: what takes its place. It may be of another method than the old one, as long
        as every leaf has a place in the bank and is no longer than the bank's: places that it lacks
        are left without effect. (A rate of dropout, which no served model reads, needs no place.)
      donate: give the bank's own arrays to the result instead of copying them; ``params`` cannot
        be used any more, nor can anything else that holds them.

    Raises:
      InputError: no bank, an index that it does not have, or an adapter that does not fit: a place
        that no adapter of the bank has, or a rank or length above the bank's.
    """
    held = _per_task(params)
    index = _check_index(index, held)
    # The entry without effect stands for the backbone: of its own leaves it is a copy, and beside
    # it a new leaf is filled up to the bank's size.
    single = _per_task(merge(_without_tasks(params), bank([(method, adapter)])))
    for path in [path for path in single if path not in held]:
        if not path.endswith("/lora_dropout"):
            raise InputError(
                f"the adapter does not fit the bank: none of its adapters has {path!r}; "
                f"{tree.nearest(path, held)}"
            )
        del single[path]
    for path, leaf in single.items():
        old, new = (_shape_of_one(x) for x in (held[path], leaf))
        if old != new:
            raise InputError(
                f"the adapter does not fit the bank: {path!r} has shape {new}, the bank has room "
                f"for {old}"
            )
    return _put(params, index, {p: _entry(leaf, 0) for p, leaf in single.items()}, donate)


def clear_in_bank(params: Params, index: int, *, donate: bool = False) -> Params:
    """Parameters in which one adapter of the bank changes nothing; see :func:`replace_in_bank`."""
    return _put(params, _check_index(index, _per_task(params)), {}, donate)


def _per_task(params: Params) -> dict[str, PerTask]:
    return {path: x for path, x in tree.flatten(params).items() if isinstance(x, PerTask)}


def _entry(leaf: PerTask, index: int) -> jax.Array:
    return leaf.values[:, index] if leaf.stacked else leaf.values[index]


def _shape_of_one(leaf: PerTask) -> tuple[int, ...]:
    return leaf.values.shape[:1] * leaf.stacked + leaf.values.shape[1 + leaf.stacked :]


def _without_tasks(params: Params) -> Params:
    def neutral(path: str, leaf: Any) -> Any:
        del path
        return _entry(leaf, -1) if isinstance(leaf, PerTask) else leaf

    return tree.map_with_path(neutral, params)


def _check_index(index: int, held: dict[str, PerTask]) -> int:
    if not held:
        raise InputError("the parameters hold no bank; merge(backbone.params, bank(...)) does")
    leaf = next(iter(held.values()))
    tasks = leaf.values.shape[int(leaf.stacked)] - 1
    try:
        number = operator.index(index)
    except TypeError:
        raise InputError(f"index {index!r} must be a whole number") from None
    if not 0 <= number < tasks:
        raise InputError(f"index {index} is not in a bank of {tasks} adapters: 0 to {tasks - 1}")
    return number


def _put(params: Params, index: int, leaves: dict[str, jax.Array], donate: bool) -> Params:
    """The bank with these leaves at an index, and no effect in every other place there."""
    write = _write_donated if donate else _write

    def exchange(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, PerTask):
            return leaf
        new = leaves.get(path)
        new = _entry(leaf, -1) if new is None else new
        return PerTask(write(leaf.values, new, index, axis=int(leaf.stacked)), leaf.stacked)

    return tree.map_with_path(exchange, params)


def _write_entry(values: jax.Array, new: jax.Array, index: int, *, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(values, new.astype(values.dtype), index, axis)


# The index is an argument: one program for a leaf of a bank, whichever adapter it is.
_write = functools.partial(jax.jit, static_argnames="axis")(_write_entry)
_write_donated = functools.partial(jax.jit, static_argnames="axis", donate_argnums=0)(_write_entry)
