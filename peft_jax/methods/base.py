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
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import layers, tree
from peft_jax.backbones.base import Backbone, Slot, check_slots
from peft_jax.errors import InputError
from peft_jax.stacks import PerTask, Tail
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
# --------------------------------------------------------------------------------------------
class Lazy:
    """A bound leaf that :func:`merge` turns into an array (or what the layers take for one)."""

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> Any:
        """The leaf.

        Args:
          own: the backbone's leaf of that name, or None.
          module: the backbone's leaves beside it.
          depth: layers of the stack, where it lies in one.
        """
        raise NotImplementedError


def _lazy(cls: Any) -> Any:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_lazy
class AtLayers(Lazy):
    """A bound leaf [K, ...] for K of the L layers; the others get ``fill``, which changes nothing.

    Layers run under one scan and must look alike, while only K of them are stored, counted and
    optimised. Without a fill the others keep the backbone's own; where the K are the last ones,
    nothing is copied and no gradient is computed for what lies below (see ``transformer.Tail``).
    """

    values: jax.Array
    layers: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    fill: float | None = dataclasses.field(metadata={"static": True})

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> Any:
        del module
        if max(self.layers) >= depth:  # indexing would drop it without a word
            raise InputError(f"layers {list(self.layers)} do not fit a stack of {depth} layers")
        if self.fill is not None:
            full = jnp.full((depth, *self.values.shape[1:]), self.fill, self.values.dtype)
            return full.at[jnp.asarray(self.layers)].set(self.values)
        if own is None:
            raise InputError("a leaf for some layers needs a fill where the backbone has none")
        values = self.values.astype(own.dtype)
        if self.layers == tuple(range(depth - len(self.layers), depth)):
            return Tail(own, values)
        return own.at[jnp.asarray(self.layers)].set(values)


@_lazy
class Delta(Lazy):
    """What is added to the backbone's own leaf, in float32 and rounded once."""

    values: jax.Array

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> jax.Array:
        del module, depth
        own = _needed(own, self.values.shape)
        return (own.astype(jnp.float32) + self.values).astype(own.dtype)


@_lazy
class Sparse(Lazy):
    """What is added to some entries of the backbone's own leaf.

    Attributes:
      indices: [n] int32 into the flattened leaf, none twice.
      values: [n] float32.
    """

    indices: jax.Array
    values: jax.Array

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> jax.Array:
        del module, depth
        own = _needed(own, None)
        flat = own.reshape(-1)
        entries = flat[self.indices].astype(jnp.float32) + self.values
        return flat.at[self.indices].set(entries.astype(own.dtype)).reshape(own.shape)


@_lazy
class Rows(Lazy):
    """Rows of an embedding in the place of the backbone's own.

    Attributes:
      ids: [n] int32, none twice.
      values: [n, D].
    """

    ids: jax.Array
    values: jax.Array

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> jax.Array:
        del module, depth
        own = _needed(own, None)
        return own.at[self.ids].set(self.values.astype(own.dtype))


@_lazy
class Magnitude(Lazy):
    """DoRA's factor on a projection's output: magnitude / column norm of the updated kernel.

    Liu et al. 2024, section 4.3: the norm is a constant for the gradient. The update's part of it
    is computed from the factors; no matrix of the kernel's shape is made.

    Attributes:
      magnitude: [K, out]; lora_a: [K, in, r]; lora_b: [K, r, out], scaled as the layers read it.
      layers: which K layers they are of; None: all.
    """

    magnitude: jax.Array
    lora_a: jax.Array
    lora_b: jax.Array
    layers: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> jax.Array:
        a, b = jax.lax.stop_gradient((self.lora_a, self.lora_b))
        kernel = module["kernel"]
        kernel = kernel if self.layers is None else kernel[jnp.asarray(self.layers)]
        factor = self.magnitude / updated_column_norms(kernel, a, b)
        if self.layers is None:
            return factor
        return AtLayers(factor, self.layers, 1.0).expand(own, module, depth)


def updated_column_norms(kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array) -> jax.Array:
    """[..., out] float32: the Euclidean norms of the columns of kernel + lora_a lora_b."""
    w = kernel.astype(jnp.float32)
    # In full precision: an accelerator would round the factors to bfloat16.
    product = functools.partial(jnp.einsum, precision="highest")
    crossed = product("...io,...ir->...ro", w, lora_a)
    gram = product("...ir,...is->...rs", lora_a, lora_a)
    squares = jnp.sum(w * w, axis=-2) + jnp.sum(lora_b * (2 * crossed), axis=-2)
    squares = squares + jnp.sum(lora_b * product("...rs,...so->...ro", gram, lora_b), axis=-2)
    return jnp.sqrt(jnp.maximum(squares, 0.0))


def _needed(own: jax.Array | None, shape: tuple[int, ...] | None) -> jax.Array:
    if own is None or (shape is not None and own.shape != shape):
        have = "none" if own is None else f"one of shape {own.shape}"
        raise InputError(f"a change {shape or ''} of the backbone's leaf finds {have}")
    return own


def at_layers(values: jax.Array, chosen: Sequence[int] | None, fill: float | None) -> Any:
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
@_lazy
class OfTasks(Lazy):
    """One place's leaves of all the adapters of a bank, None where an adapter has none.

    :func:`merge` knows the backbone's own leaf and the layers, and stacks them.

    Attributes:
      leaves: one for each adapter: an array, :class:`AtLayers`, or None.
      neutral: the value that changes nothing where the backbone has no leaf of its own.
      grown: the axis along which shorter leaves are filled up (a rank, a prompt's rows), as an
        index from behind, and 0 for none.
      stacked: whether the place lies in a stack of layers.
      in_front: whether they are filled in front; filling: with what.
      least: the smallest size of that axis.
      reserved: places for further adapters, which change nothing until they are taken.
    """

    leaves: tuple[Any, ...]
    neutral: float = dataclasses.field(metadata={"static": True})
    grown: int = dataclasses.field(metadata={"static": True})
    stacked: bool = dataclasses.field(metadata={"static": True})
    in_front: bool = dataclasses.field(default=False, metadata={"static": True})
    filling: float = dataclasses.field(default=0.0, metadata={"static": True})
    least: int = dataclasses.field(default=0, metadata={"static": True})
    reserved: int = dataclasses.field(default=0, metadata={"static": True})

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> PerTask:
        given = [x.expand(own, module, depth) if isinstance(x, Lazy) else x for x in self.leaves]
        given = [x.whole() if isinstance(x, Tail) else x for x in given]
        arrays = [x for x in (*given, own) if x is not None]
        size = max(self.least, *(x.shape[self.grown] for x in arrays)) if self.grown else 0
        shape = list(arrays[0].shape)
        if self.grown:
            shape[self.grown] = size
        neutral = jnp.full(shape, self.neutral, arrays[0].dtype)
        neutral = neutral if own is None else self._fill(own, size)
        stack = [neutral if x is None else self._fill(x, size).astype(neutral.dtype) for x in given]
        axis = int(self.stacked)
        values = jnp.stack([*stack, neutral], axis=axis)
        if self.reserved:
            empty = jnp.repeat(jnp.expand_dims(neutral, axis), self.reserved, axis=axis)
            values = jnp.concatenate([values, empty], axis=axis)
        return PerTask(values, self.stacked)

    def _fill(self, leaf: jax.Array, size: int) -> jax.Array:
        if not self.grown:
            return leaf
        missing = size - leaf.shape[self.grown]
        widths = [(0, 0)] * leaf.ndim
        widths[self.grown] = (missing, 0) if self.in_front else (0, missing)
        return jnp.pad(leaf, widths, constant_values=self.filling)


# --------------------------------------------------------------------------------------------
# Merge and fold
# --------------------------------------------------------------------------------------------
# Modules that an adapter may bring where the backbone has none; bottleneck adapters stand beside
# the sub-layers that they are named after.
BROUGHT = ("classifier", "verbalizer")


def _is_brought(name: str) -> bool:
    return name in BROUGHT or name.endswith("_adapter")


def merge(frozen: Params, bound: Params) -> Params:
    """The union of a backbone's parameters and a method's bound leaves.

    A leaf at a new path is added beside the backbone's own; a leaf at an existing path (a trained
    kernel, bias or norm) takes its place, in its dtype. No array is copied.

    Raises:
      InputError: a leaf hangs where the backbone has no module, or replaces one of another shape.
    """
    return _merge(frozen, bound, 0)


def _merge(frozen: Params, bound: Params, depth: int) -> Params:
    merged = dict(frozen)
    for name, leaf in bound.items():
        own = frozen.get(name)
        if isinstance(leaf, dict):
            if own is None and (_is_brought(name) or not frozen):
                own = {}
            if not isinstance(own, dict):
                raise InputError(f"no module {name!r} to merge into; {tree.nearest(name, frozen)}")
            within = jax.tree.leaves(own)[0].shape[0] if name == "layers" else depth
            merged[name] = _merge(own, leaf, within)
            continue
        if isinstance(leaf, Lazy):
            leaf = leaf.expand(own, frozen, depth)
            if isinstance(leaf, PerTask | Tail):
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


_NOT_FOLDABLE = {
    "prompt": "a soft prompt",
    "soft_tokens": "a soft prompt",
    "prefix_key": "a prefix",
}


def fold_leaves(merged: Params) -> Params:
    """A merged tree with every foldable leaf folded into the kernels, in the layers' own order.

    Raises:
      InputError: a leaf that no plain kernel can express, such as a soft prompt.
    """
    if any(isinstance(leaf, PerTask) for leaf in merged.values()):
        raise InputError("a bank cannot be folded: no kernel holds several adapters")
    merged = {n: leaf.whole() if isinstance(leaf, Tail) else leaf for n, leaf in merged.items()}
    if set(merged) <= {"kernel", "bias"}:
        return merged  # not touched by an adapter: no copy
    if "kernel" in merged:
        rest = set(merged) - layers.FOLDABLE
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
    for name in merged:
        if name in _NOT_FOLDABLE or name.endswith("_adapter"):
            what = _NOT_FOLDABLE.get(name, "a bottleneck adapter")
            raise InputError(f"{what} cannot be folded into kernels: keep it beside the backbone")
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


# How the leaves of two methods at one path become one, where that is exact.
_TOGETHER: dict[str, Callable[[Any, Any], jax.Array]] = {
    "lora_a": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "lora_b": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "ia3": lambda a, b: a * b,
    "prompt": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "prefix_key": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "prefix_value": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "prefix_places": lambda a, b: jnp.concatenate([a, b], axis=-1),
    # Adapters at one place are summed.
    "down": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "down_bias": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "up": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "up_bias": lambda a, b: a + b,
}


def _unite(bound: dict[str, Any], more: dict[str, Any]) -> None:
    """Adds leaves to a flat tree, combining those at one path where that is exact."""
    together = [path for path in more if path in bound]
    for path in together:
        _check_together(path, bound, more)
    for path, leaf in more.items():
        kind = path.rpartition("/")[2]
        bound[path] = _TOGETHER[kind](bound[path], leaf) if path in together else leaf


def _check_together(path: str, bound: dict[str, Any], more: dict[str, Any]) -> None:
    """Raises InputError where two methods' leaves at one path cannot be combined exactly."""
    module, _, kind = path.rpartition("/")
    # The rate belongs to one method, but a layer would apply it to the ranks of both.
    rate = f"{module}/lora_dropout"
    if kind == "lora_a" and (rate in bound or rate in more):
        raise InputError(
            f"two methods meet at {path!r} and one has dropout: set both to 0, or give them "
            "different targets"
        )
    # A magnitude is divided by the norms of one method's update.
    if kind == "lora_a" and (f"{module}/magnitude" in bound or f"{module}/magnitude" in more):
        raise InputError(f"DoRA and another method meet at {path!r}; give them different targets")
    # What one alone has would not be as long as what both have.
    beside = {
        "down": f"{module}/down_bias",
        "prefix_key": f"{path.partition('/')[0]}/prefix_places",
        "prompt": f"{path.partition('/')[0]}/layers/prompt",
    }.get(kind)
    if beside is not None and (beside in bound) != (beside in more):
        raise InputError(f"two methods meet at {path!r}, but only one has {beside!r}")
    if isinstance(more[path], Lazy) or isinstance(bound[path], Lazy):
        raise InputError(
            f"two methods meet at {path!r} and one chooses layers, or changes the backbone's "
            "own leaf; give both all layers, or different targets"
        )
    if kind not in _TOGETHER:
        raise InputError(
            f"two methods meet at {path!r} and cannot be combined exactly; give them different "
            "targets"
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
