"""Rank-one scaling: every entry of a kernel multiplied by a factor of its row and its column."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.methods.base import Method, chosen_layers, make_method
from peft_jax.methods.lazy import at_layers
from peft_jax.methods.lora import projections
from peft_jax.tree import Params

EVERY_PROJECTION = ("attention/(query|key|value|out)", "mlp/w.*")


def rank_one_scaling(
    targets: str | Sequence[str] = EVERY_PROJECTION, layers: Sequence[int] | None = None
) -> Method:
    """h = b * (W (a * x) + bias): a factor a for every input and b for every output of a kernel.

    W becomes W * (b a^T), as in the code of Liu et al. 2022 (``lora_scaling``: src/models/lora.py,
    scaling rank 1), which trains (IA)³ as a part of it. All factors start at one: the function is
    unchanged at the start.

    The stored tree has ``input_scale`` [layers, in] and ``ia3`` [layers, out] per target:
    layers * (in + out) parameters.

    Args:
      targets: regular expressions on the ends of module paths; by default every projection of the
        attentions and feed-forwards, as in T-Few's configuration.
      layers: indices of the layers to train; None means all.

    Raises:
      InputError: from ``init``, a target that matches nothing.
    """
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen = chosen_layers(layers)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # ones
        stored = {}
        for module, sides in projections(backbone.config, targets, chosen).items():
            stored[f"{module}/input_scale"] = jnp.ones((*sides.depth, sides.inputs), jnp.float32)
            stored[f"{module}/ia3"] = jnp.ones((*sides.depth, sides.outputs), jnp.float32)
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        return tree.map_with_path(lambda _, leaf: at_layers(leaf, chosen, 1.0), stored)

    spec = {"name": "rank_one_scaling", "targets": list(targets)}
    return make_method(init, bind, spec | {"layers": chosen and list(chosen)}, foldable=True)
