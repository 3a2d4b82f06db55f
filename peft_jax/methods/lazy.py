"""Bound leaves that ``merge`` completes, because only it knows the backbone's own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import quantization
from peft_jax.errors import InputError
from peft_jax.stacks import PerTask, Tail
from peft_jax.tree import Params

T = TypeVar("T")


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


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def _lazy(cls: type[T]) -> type[T]:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_lazy
class AtLayers(Lazy):
    """A bound leaf [K, ...] for K of the L layers; the others get ``fill``, which changes nothing.

    Layers run under one scan and must look alike, while only K of them are stored, counted and
    optimised. Without a fill the others keep the backbone's own; where the K are the last ones,
    nothing is copied and no gradient is computed for what lies below (see ``stacks.Tail``).
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
        if own is None:
            raise InputError("rows of an embedding find none that they could replace")
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
        factor = self.magnitude / _norms_by_layer(kernel, a, b)
        if self.layers is None:
            return factor
        return AtLayers(factor, self.layers, 1.0).expand(own, module, depth)


def _norms_by_layer(kernel: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    if not quantization.is_quantized(kernel) or a.ndim == 2:
        return updated_column_norms(quantization.dequantize(kernel), a, b)

    def layer(leaves):
        return updated_column_norms(quantization.dequantize(leaves[0]), *leaves[1:])

    # All layers together would be the kernel in full precision.
    return jax.lax.map(layer, (kernel, a, b))


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


def at_layers(values: jax.Array, chosen: Sequence[int] | None, fill: float | None) -> Any:
    """``values`` itself if it covers all layers, else :class:`AtLayers`."""
    return values if chosen is None else AtLayers(values, tuple(chosen), fill)


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
        values = _stacked([*stack, neutral], axis)
        if self.reserved:
            empty = jnp.repeat(jnp.expand_dims(neutral, axis), self.reserved, axis=axis)
            values = jnp.concatenate([values, empty], axis=axis)
        return PerTask(values, self.stacked)

    def _fill(self, leaf: jax.Array, size: int) -> jax.Array:
        if not self.grown:
            return leaf
        missing = size - leaf.shape[self.grown]
        if not missing:
            return leaf
        widths = [(0, 0)] * leaf.ndim
        widths[self.grown] = (missing, 0) if self.in_front else (0, missing)
        return jnp.pad(leaf, widths, constant_values=self.filling)


def _stacked(arrays: Sequence[jax.Array], axis: int) -> jax.Array:
    """``jnp.stack``; by NumPy where the arrays are there, since a program for a thousand of them
    takes a minute to compile, and is another one for every number of them."""
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        return jnp.stack(arrays, axis=axis)
    return jnp.asarray(np.stack([np.asarray(x) for x in arrays], axis=axis))
