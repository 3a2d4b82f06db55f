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

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import layers, tree
from peft_jax.backbones.base import Backbone, Slot, check_slots
from peft_jax.errors import InputError
from peft_jax.transformer import PerTask
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


# --------------------------------------------------------------------------------------------
# Leaves for a few of the layers
# --------------------------------------------------------------------------------------------
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AtLayers:
    """A bound leaf [K, ...] for K of the L layers; the others get ``fill``, which changes nothing.

    Layers run under one scan and must look alike, while only K of them are stored, counted and
    optimised. :func:`merge` knows L and expands.
    """

    values: jax.Array
    layers: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    fill: float = dataclasses.field(metadata={"static": True})

    def expand(self, own: jax.Array | None, depth: int) -> jax.Array:
        del own  # replaced, as by a leaf for all layers
        if max(self.layers) >= depth:  # indexing would drop it without a word
            raise InputError(f"layers {list(self.layers)} do not fit a stack of {depth} layers")
        full = jnp.full((depth, *self.values.shape[1:]), self.fill, self.values.dtype)
        return full.at[jnp.asarray(self.layers)].set(self.values)


def at_layers(values: jax.Array, chosen: Sequence[int] | None, fill: float) -> Any:
    """``values`` itself if it covers all layers, else :class:`AtLayers`."""
    return values if chosen is None else AtLayers(values, tuple(chosen), fill)


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


# --------------------------------------------------------------------------------------------
# Leaves that differ between tasks
# --------------------------------------------------------------------------------------------
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfTasks:
    """One place's leaves of all the adapters of a bank, None where an adapter has none.

    :func:`merge` knows the backbone's own leaf and the layers, and stacks them.

    Attributes:
      leaves: one for each adapter: an array, :class:`AtLayers`, or None.
      neutral: the value that changes nothing where the backbone has no leaf of its own.
      grown: the axis along which shorter leaves are filled with zeros (a rank, a prompt's rows), as
        an index from behind, and 0 for none. A prompt is filled in front.
      stacked: whether the place lies in a stack of layers.
    """

    leaves: tuple[Any, ...]
    neutral: float = dataclasses.field(metadata={"static": True})
    grown: int = dataclasses.field(metadata={"static": True})
    stacked: bool = dataclasses.field(metadata={"static": True})
    in_front: bool = dataclasses.field(default=False, metadata={"static": True})

    def expand(self, own: jax.Array | None, depth: int) -> PerTask:
        given = [x.expand(own, depth) if isinstance(x, AtLayers) else x for x in self.leaves]
        arrays = [x for x in given if x is not None]
        size = max(x.shape[self.grown] for x in arrays) if self.grown else 0
        shape = list(arrays[0].shape)
        if self.grown:
            shape[self.grown] = size
        neutral = jnp.full(shape, self.neutral, arrays[0].dtype) if own is None else own
        stack = [neutral if x is None else self._fill(x, size).astype(neutral.dtype) for x in given]
        return PerTask(jnp.stack([*stack, neutral], axis=int(self.stacked)), self.stacked)

    def _fill(self, leaf: jax.Array, size: int) -> jax.Array:
        if not self.grown:
            return leaf
        missing = size - leaf.shape[self.grown]
        widths = [(0, 0)] * leaf.ndim
        widths[self.grown] = (missing, 0) if self.in_front else (0, missing)
        return jnp.pad(leaf, widths)


# --------------------------------------------------------------------------------------------
# Merge and fold
# --------------------------------------------------------------------------------------------
# Modules that an adapter may bring where the backbone has none.
BROUGHT = ("classifier",)


def merge(frozen: Params, bound: Params) -> Params:
    """The union of a backbone's parameters and a method's bound leaves.

    A leaf at a new path is added beside the backbone's own; a leaf at an existing path (a trained
    kernel, bias or norm) takes its place, in its dtype. No array is copied.

    Raises:
      InputError: a leaf hangs where the backbone has no module, or replaces one of another shape.
    """
    merged = dict(frozen)
    for name, leaf in bound.items():
        own = frozen.get(name)
        if isinstance(leaf, dict):
            if own is None and name in BROUGHT:
                merged[name] = leaf
                continue
            if not isinstance(own, dict):
                raise InputError(f"no module {name!r} to merge into; {tree.nearest(name, frozen)}")
            merged[name] = merge(own, leaf)
            continue
        if isinstance(leaf, AtLayers | OfTasks):
            leaf = leaf.expand(own, jax.tree.leaves(frozen)[0].shape[0])
            if isinstance(leaf, PerTask):
                merged[name] = leaf
                continue
        if own is not None:
            if isinstance(own, dict) or own.shape != leaf.shape:
                raise InputError(
                    f"leaf {name!r} of shape {leaf.shape} does not fit what it replaces"
                )
            leaf = leaf.astype(own.dtype)
        merged[name] = leaf
    return merged


def fold_leaves(merged: Params) -> Params:
    """A merged tree with every foldable leaf folded into the kernels, in the layers' own order.

    Raises:
      InputError: a leaf that no plain kernel can express, such as a soft prompt.
    """
    if any(isinstance(leaf, PerTask) for leaf in merged.values()):
        raise InputError("a bank cannot be folded: no kernel holds several adapters")
    if "kernel" in merged:
        rest = set(merged) - {"kernel", "bias", "lora_a", "lora_b", "lora_dropout", "ia3"}
        if rest:
            raise InputError(f"leaf {sorted(rest)[0]!r} cannot be folded into a kernel")
        return layers.fold_linear(merged)
    if "wo" in merged and "ia3" in merged:
        # The vector scales what wo reads: it goes into wo's rows.
        folded = fold_leaves({name: leaf for name, leaf in merged.items() if name != "ia3"})
        kernel = folded["wo"]["kernel"]
        scaled = kernel.astype(jnp.float32) * merged["ia3"][..., :, None]
        folded["wo"] = {**folded["wo"], "kernel": scaled.astype(kernel.dtype)}
        return folded
    if "prompt" in merged:
        raise InputError("a soft prompt cannot be folded into kernels: keep it beside the backbone")
    return {k: fold_leaves(v) if isinstance(v, dict) else v for k, v in merged.items()}


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
        bound = jax.eval_shape(lambda s: _expanded(bind(s), backbone.params), stored)
        check_slots(bound, backbone.config)
        return stored

    def fold(frozen: Params, stored: Params) -> Params:
        return fold_leaves(merge(frozen, bind(stored)))

    return Method(checked_init, bind, fold if foldable else None, spec)


def _expanded(bound: Params, frozen: Params) -> Params:
    """The bound leaves over all layers and without constants: what the slots describe."""
    merged = tree.flatten(merge(frozen, bound))
    return tree.unflatten(
        {p: merged[p] for p in tree.flatten(bound) if not p.endswith("/lora_dropout")}
    )


# --------------------------------------------------------------------------------------------
# Composition
# --------------------------------------------------------------------------------------------
def compose(*methods: Method) -> Method:
    """Several methods at once: the union of their bound leaves.

    Their stored trees lie side by side under the methods' names (``{"ia3": ..., "lora": ...}``; a
    second one of a name gets a number, ``lora_2``). Two methods on one leaf combine where that is
    exact: LoRA ranks and prompts concatenate, (IA)³ vectors multiply; anything else raises.
    compose is associative; its order matters only for the order of ranks and prompt rows.
    """
    flat = _flatten_methods(methods)
    if len(flat) == 1:
        return methods[0]
    if not flat:
        raise InputError("compose needs at least one method")
    labels = _labels([m.spec["name"] for m in flat])

    def init(key: jax.Array, backbone: Backbone) -> Params:
        keys = jax.random.split(key, len(flat))
        stored = {n: m.init(k, backbone) for n, m, k in zip(labels, flat, keys, strict=True)}
        # Two methods on one place must fit together, and that is known before training.
        check_slots(
            jax.eval_shape(lambda s: _expanded(bind(s), backbone.params), stored), backbone.config
        )
        return stored

    def bind(stored: Params) -> Params:
        bound: dict[str, Any] = {}
        for label, method in zip(labels, flat, strict=True):
            _unite(bound, tree.flatten(method.bind(stored[label])))
        return tree.unflatten(bound)

    spec = {"name": "compose", "methods": [m.spec for m in flat]}

    def fold(frozen: Params, stored: Params) -> Params:
        return fold_leaves(merge(frozen, bind(stored)))

    return Method(init, bind, fold if all(m.fold for m in flat) else None, spec)


def _flatten_methods(methods: Sequence[Method]) -> list[Method]:
    from peft_jax.methods import from_spec

    flat: list[Method] = []
    for method in methods:
        if method.spec["name"] == "compose":
            flat += [from_spec(spec) for spec in method.spec["methods"]]
        else:
            flat.append(method)
    return flat


def _labels(names: Sequence[str]) -> list[str]:
    labels: list[str] = []
    for i, name in enumerate(names):
        earlier = names[:i].count(name)
        labels.append(f"{name}_{earlier + 1}" if earlier else name)
    return labels


def _unite(bound: dict[str, Any], more: dict[str, Any]) -> None:
    """Adds leaves to a flat tree, combining those at one path where that is exact."""
    together = {path for path in more if path in bound}
    for path in together:
        # The rate belongs to one method, but a layer would apply it to the ranks of both.
        rate = f"{path.rpartition('/')[0]}/lora_dropout"
        if path.endswith("/lora_a") and (rate in bound or rate in more):
            raise InputError(
                f"two methods meet at {path!r} and one has dropout: set both to 0, or give them "
                "different targets"
            )
    for path, leaf in more.items():
        if path not in together:
            bound[path] = leaf
            continue
        kind = path.rpartition("/")[2]
        own = bound[path]
        if isinstance(leaf, AtLayers) or isinstance(own, AtLayers):
            raise InputError(
                f"two methods that choose layers meet at {path!r}; give both all layers, or "
                "different targets"
            )
        if kind == "lora_a":
            bound[path] = jnp.concatenate([own, leaf], axis=-1)
        elif kind == "lora_b":
            bound[path] = jnp.concatenate([own, leaf], axis=-2)
        elif kind == "prompt":
            bound[path] = jnp.concatenate([own, leaf], axis=0)
        elif kind == "ia3":
            bound[path] = own * leaf
        else:
            raise InputError(
                f"two methods meet at {path!r} and cannot be combined exactly; give them different "
                "targets"
            )


# --------------------------------------------------------------------------------------------
# What an adapter holds
# --------------------------------------------------------------------------------------------
def count(adapter: Params) -> int:
    """Number of trainable parameters; works on abstract trees too.

    >>> backbone = abstract_backbone(backbone_config("t0_3b"))  # doctest: +SKIP
    >>> count(jax.eval_shape(ia3().init, jax.random.key(0), backbone))  # doctest: +SKIP
    540672
    """
    return tree.count(adapter)


def describe(adapter: Params, backbone: Backbone | None = None) -> str:
    """A table of an adapter: place, shape, count, and the share of the backbone if it is given."""
    total = tree.count(backbone.params) if backbone is not None else 0
    rows: list[tuple[str, ...]] = [("place", "shape", "count", "share")]
    for path, leaf in tree.flatten(adapter).items():
        rows.append(_row(path, "x".join(map(str, leaf.shape)), tree.count(leaf), total))
    rows.append(_row("total", "", tree.count(adapter), total))
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
