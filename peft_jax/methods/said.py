"""Intrinsic dimension: all parameters moved by one small vector (Aghajanyan et al. 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import fastfood, tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.fastfood import Stream
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.lazy import Lazy
from peft_jax.methods.partial import in_layers
from peft_jax.tree import Params

Update = Literal["full", "rank_one"]


def said(
    dimension: int = 20_000,
    structure_aware: bool = True,
    update: Update = "full",
    targets: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Method:
    """theta = theta_0 + lambda P v: a trained vector v, zero at the start, projected at random.

    Aghajanyan et al. 2020, "Intrinsic Dimensionality Explains the Effectiveness of Language Model
    Fine-Tuning", section 3.1: P is a Fastfood transform (``peft_jax.fastfood``), another one for
    each tensor of each layer, made from the seed and never stored. The function is unchanged at the
    start. The count is ``dimension``, whatever the backbone: v has as many entries less the number
    of tensors, each of which has a trained factor lambda that starts at 1 (structure-aware
    intrinsic dimension; T0-3B has 558 tensors).

    The public code (github.com/r-three/t-few, src/models/intrinsic.py) trains one parameter less,
    and cuts v off where a tensor has fewer rows and columns: of 500,000 dimensions an attention's
    kernel in T0-3B sees 4,096 and no tensor more than 65,536. Here all of v moves every tensor.

    Args:
      dimension: trained parameters in all.
      structure_aware: with the factors; without them it is the paper's direct method, and all
        parameters are v's.
      update: "full" projects to every entry, as the paper does: time and memory are those of full
        fine-tuning without the optimiser's. "rank_one", T-Few's baseline, projects to the rows and
        columns of a matrix and adds their outer product; beside a kernel it is computed as a LoRA
        of rank 1, and no matrix has a gradient. At the start only vectors such as norms' scales
        have one, which sets v in motion.
      targets: regular expressions on the ends of parameter paths; None means all parameters.
      seed: of the projections. It is part of what an adapter means, unlike the key of ``init``.

    Raises:
      InputError: by ``init``, where there are more tensors than dimensions, or "rank_one" has no
        vector to start from.
    """
    if not isinstance(dimension, int) or isinstance(dimension, bool) or dimension < 1:
        raise InputError(f"dimension {dimension!r} must be a whole number of at least 1")
    if update not in get_args(Update):
        raise InputError(f"update {update!r} is unknown; one of {', '.join(get_args(Update))}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seed {seed!r} must be a whole number of at least 0")
    targets = (targets,) if isinstance(targets, str) else targets and tuple(targets)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # zeros and ones; the projections are the seed's
        own = tree.flatten(backbone.params)
        paths = list(own) if targets is None else tree.match(targets, own, "parameter")
        if update == "rank_one" and all(_of_one(p, own[p]) > 1 for p in paths):
            raise InputError(
                "update 'rank_one' needs a target that is a vector, such as 'norm/scale': the "
                "outer product of two zeros has no gradient, and nothing would ever move"
            )
        scales = {p: jnp.ones(own[p].shape[: in_layers(p)], jnp.float32) for p in paths}
        entries = dimension - structure_aware * tree.count(scales)
        if entries < 1:
            raise InputError(
                f"dimension {dimension} must be more than the {tree.count(scales)} tensors, each "
                "of which has a factor of its own"
            )
        # Without structure the factors are constants, which say what is moved.
        name = "scale" if structure_aware else "fixed/scale"
        stored = {f"{path}/{name}": scale for path, scale in scales.items()}
        return tree.unflatten({"vector": jnp.zeros(entries, jnp.float32), **stored})

    def bind(stored: Params) -> Params:
        bound: dict[str, Any] = {}
        for place, scale in tree.flatten(stored).items():
            if place == "vector":
                continue
            path = place.removesuffix("/scale").removesuffix("/fixed")
            parts = (stored["vector"], scale, fastfood.stream(seed, path))
            module, _, kind = path.rpartition("/")
            if update == "rank_one" and kind == "kernel":
                bound[f"{module}/lora_a"] = Factor(*parts, side="input")
                bound[f"{module}/lora_b"] = Factor(*parts, side="output")
            else:
                bound[path] = Moved(*parts, rank_one=update == "rank_one")
        return tree.unflatten(bound)

    spec = {
        "name": "said",
        "dimension": dimension,
        "structure_aware": structure_aware,
        "update": update,
        "targets": targets and list(targets),
        "seed": seed,
    }
    return make_method(init, bind, spec, foldable=True)


def _of_one(path: str, leaf: jax.Array) -> int:
    """Axes of a parameter of one layer."""
    return leaf.ndim - in_layers(path)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moved(Lazy):
    """The backbone's own leaf, moved along a projection of the vector.

    Attributes:
      vector: [d] float32.
      scale: factor on the projection, [L] in a stack and [] outside.
      source: of the projection's random parts.
      rank_one: whether a matrix is moved by an outer product.
    """

    vector: jax.Array
    scale: jax.Array
    source: Stream = dataclasses.field(metadata={"static": True})
    rank_one: bool = dataclasses.field(metadata={"static": True})

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> jax.Array:
        if own is None:
            raise InputError("said moves a parameter that this backbone does not have")
        if not self.scale.ndim:
            return self._moved(own, self.scale, jnp.uint32(0))
        layers = jnp.arange(len(own), dtype=jnp.uint32)

        # One layer after the other, and again in the backward pass: a float32 projection of the
        # whole stack would be larger than the stack.
        @jax.checkpoint
        def layer(inputs):
            return self._moved(*inputs)

        return jax.lax.map(layer, (own, self.scale, layers))

    def _moved(self, own: jax.Array, scale: jax.Array, unit: jax.Array) -> jax.Array:
        outer = self.rank_one and own.ndim == 2
        size = sum(own.shape) if outer else int(np.prod(own.shape))
        (change,) = fastfood.project(self.vector, self.source, unit[None], size)
        if outer:
            rows, columns = jnp.split(change, [own.shape[0]])
            change = rows[:, None] * columns
        change = scale * change.reshape(own.shape)
        return (own.astype(jnp.float32) + change).astype(own.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factor(Lazy):
    """One side of the outer product that moves the kernel beside it, as a LoRA leaf of rank 1.

    Attributes:
      vector, scale, source: as in :class:`Moved`; the scale is applied on the output's side.
      side: "input" for ``lora_a`` [L, in, 1], "output" for ``lora_b`` [L, 1, out].
    """

    vector: jax.Array
    scale: jax.Array
    source: Stream = dataclasses.field(metadata={"static": True})
    side: Literal["input", "output"] = dataclasses.field(metadata={"static": True})

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> jax.Array:
        *stack, inputs, outputs = module["kernel"].shape
        units = jnp.arange(stack[0] if stack else 1, dtype=jnp.uint32)
        change = fastfood.project(self.vector, self.source, units, inputs + outputs)
        # The public code's order, in which a kernel is [out, in].
        output_side, input_side = jnp.split(change, [outputs], axis=1)
        if self.side == "input":
            leaf = input_side[:, :, None]
        else:
            leaf = output_side[:, None, :] * self.scale.reshape(-1, 1, 1)
        return leaf if stack else leaf[0]
