"""The grammar of methods: a small trainable tree and three pure functions.

::

    stored  = method.init(key, backbone)           what is optimised, saved and counted (float32)
    bound   = method.bind(stored)                  the leaves that layers read
    params  = merge(backbone.params, bound)        a union of two dicts, at no cost
    plain   = method.fold(backbone.params, stored) the method folded into ordinary kernels

Gradients are taken with respect to the stored tree only, so nothing of the backbone is ever
masked, optimised or saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from peft_jax import tree
from peft_jax.backbones.base import Backbone, Slot, check_slots
from peft_jax.errors import InputError
from peft_jax.methods.merging import fold_leaves, merge
from peft_jax.tree import Params


class Method(NamedTuple):
    """A value made by a factory such as ``lora(rank=8)``.

    Attributes:
      init: (key, backbone) -> stored tree, float32. Raises InputError for a target that matches
        nothing or does not fit.
      bind: stored -> leaves for the layers; differentiable, cheap, outside the scan.
      fold: (frozen, stored) -> plain backbone parameters, or None where no kernel can express it.
      spec: the factory's name and arguments; ``from_spec(spec)`` makes the same method again.
    """

    init: Callable[[jax.Array, Backbone], Params]
    bind: Callable[[Params], Params]
    fold: Callable[[Params, Params], Params] | None
    spec: dict[str, Any]


# Leaves that merge completes, because only it knows the backbone's own


def sizes(slot: Slot) -> list[int]:
    """The sizes that a slot fixes, without those that a method chooses, such as a rank."""
    return [size for size in slot.shape if isinstance(size, int)]


def chosen_layers(given: Sequence[int] | None) -> tuple[int, ...] | None:
    """The argument ``layers`` of a factory; InputError unless it is None or whole numbers."""
    if given is None:
        return None
    if isinstance(given, int | str) or not all(isinstance(i, int | np.integer) for i in given):
        raise InputError(f"layers {given!r} must be a list of layer numbers, such as [0, 1]")
    return tuple(int(i) for i in given)


def check_depth(chosen: Sequence[int] | None, depth: Sequence[int], path: str) -> list[int]:
    """The leading axis of a leaf that is stored for the chosen layers of a module.

    Args:
      chosen: indices of layers; None means all.
      depth: [L] for a module in a stack of L layers, [] for one outside, such as the head.

    Raises:
      InputError: a layer does not exist or is named twice.
    """
    if chosen is None:
        return list(depth)
    if not depth:
        raise InputError(f"layers {list(chosen)} do not fit {path!r}: it has no layers")
    wrong = [i for i in chosen if not 0 <= i < depth[0]]
    if wrong or not chosen or len(set(chosen)) != len(chosen):
        raise InputError(
            f"layers {list(chosen)} do not fit {path!r}: give different numbers from 0 to "
            f"{depth[0] - 1}"
        )
    return [len(chosen)]


def make_method(
    init: Callable[[jax.Array, Backbone], Params],
    bind: Callable[[Params], Params],
    spec: dict[str, Any],
    *,
    foldable: bool,
) -> Method:
    """A method whose result is checked against the backbone's slots, with its fold derived."""

    def checked_init(key: jax.Array, backbone: Backbone) -> Params:
        stored = init(key, backbone)
        # Merging shapes only is enough to check every leaf, and allocates nothing.
        bound = jax.eval_shape(lambda s: expanded(bind(s), backbone.params), stored)
        check_slots(bound, backbone.config)
        return stored

    def fold(frozen: Params, stored: Params) -> Params:
        return fold_leaves(merge(frozen, bind(stored)))

    return Method(checked_init, bind, fold if foldable else None, spec)


def expanded(bound: Params, frozen: Params) -> Params:
    """The bound leaves over all layers and without constants: what the slots describe."""
    merged = tree.flatten(merge(frozen, bound))
    return tree.unflatten(
        {p: merged[p] for p in tree.flatten(bound) if not p.endswith("/lora_dropout")}
    )


# --------------------------------------------------------------------------------------------
# What an adapter holds
# --------------------------------------------------------------------------------------------
def count(adapter: Params) -> int:
    """Number of trainable parameters, constants not counted; works on abstract trees too.

    >>> backbone = abstract_backbone(backbone_config("t0_3b"))  # doctest: +SKIP
    >>> count(jax.eval_shape(ia3().init, jax.random.key(0), backbone))  # doctest: +SKIP
    540672
    """
    return tree.count(tree.split_fixed(adapter)[0])


def describe(adapter: Params, backbone: Backbone | None = None) -> str:
    """A table of an adapter: place, shape, count, and the share of the backbone if it is given."""
    total = tree.count(backbone.params) if backbone is not None else 0
    rows: list[tuple[str, ...]] = [("place", "shape", "count", "share")]
    for path, leaf in tree.flatten(adapter).items():
        shape = "x".join(map(str, leaf.shape))
        fixed = tree.FIXED in path.split("/")
        rows.append((path, shape, "constant", "") if fixed else _row(path, shape, leaf.size, total))
    rows.append(_row("total", "", count(adapter), total))
    if not total:
        rows = [row[:3] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i >= 2 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _row(place: str, shape: str, number: int, total: int) -> tuple[str, str, str, str]:
    return place, shape, f"{number:,}", f"{number / total:.4%}" if total else ""
