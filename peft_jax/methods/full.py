"""Full fine-tuning, as a method like the others: the baseline that the sources compare with."""

from __future__ import annotations

import jax

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.partial import copied
from peft_jax.tree import Params


def full() -> Method:
    """Trains a float32 copy of every parameter; bound leaves take the frozen ones' places."""

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # starts at the backbone
        return tree.map_with_path(lambda _, leaf: copied(leaf, None), backbone.params)

    def bind(stored: Params) -> Params:
        return tree.map_with_path(lambda _, leaf: leaf, stored)

    return make_method(init, bind, {"name": "full"}, foldable=True)
