"""Training the last layers alone: the baseline FT-Top2 of Li & Liang 2021."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.lazy import AtLayers, Lazy
from peft_jax.methods.partial import copied, in_layers
from peft_jax.tree import Params

Stack = Literal["output", "encoder", "decoder", "both"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LastLayers(Lazy):
    """A bound leaf [K, ...] of the last K layers; the others keep the backbone's own."""

    values: jax.Array

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> Any:
        last = tuple(range(depth - len(self.values), depth))
        return AtLayers(self.values, last, None).expand(own, module, depth)


def top_layers(count: int = 2, stack: Stack = "output", final_norm: bool = True) -> Method:
    """Float32 copies of everything in the last ``count`` layers of a stack.

    Li & Liang 2021, "Prefix-Tuning", section 6, compare with the last two layers ("FT-Top2"). The
    function is unchanged at the start. Layers below the lowest trained one are run forward only: no
    gradient passes through them, and none of their activations are kept.

    The count is that of a layer, times ``count``, and of the norm behind the stack.

    Args:
      count: layers to train, from the last one down.
      stack: "output" is the stack that the answer is read from: the decoder, or the encoder of a
        model without one; or by name "encoder", "decoder" or "both". The gradient of an encoder's
        layers passes through the whole decoder.
      final_norm: train the norm behind the stack too, where the family has one.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"count {count!r} must be a whole number of at least 1")
    if stack not in get_args(Stack):
        raise InputError(f"stack {stack!r} is unknown; one of {', '.join(get_args(Stack))}")

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # starts at the backbone
        stored = {}
        for name, depth in _stacks(stack, backbone):
            if count > depth:
                raise InputError(f"count {count} is more than the {depth} layers of the {name}")
            for path, leaf in tree.flatten(backbone.params[name], name).items():
                if in_layers(path):
                    stored[path] = copied(leaf, range(depth - count, depth))
                elif final_norm and path.startswith(f"{name}/final_norm/"):
                    stored[path] = copied(leaf, None)
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        def leaf(path, values):
            return LastLayers(values) if in_layers(path) else values

        return tree.map_with_path(leaf, stored)

    spec = {"name": "top_layers", "count": count, "stack": stack, "final_norm": final_norm}
    return make_method(init, bind, spec, foldable=True)


def _stacks(stack: Stack, backbone: Backbone) -> list[tuple[str, int]]:
    """Names and depths of the stacks that are meant."""
    config = backbone.config
    depths = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    if stack == "output":
        names = ["decoder" if config.decoder_layers else "encoder"]
    else:
        names = ["encoder", "decoder"] if stack == "both" else [stack]
    for name in names:
        if not depths[name]:
            raise InputError(f"stack {stack!r}: this {config.family} has no {name}")
    return [(name, depths[name]) for name in names]
