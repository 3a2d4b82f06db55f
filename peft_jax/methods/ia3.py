"""(IA)³: learned vectors that rescale keys, values and feed-forward activations.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning", section 3.3: K' = l_k * K, V' = l_v * V, and (l_ff * act(W1 x)) W2, in every
self-attention, cross-attention and feed-forward. A vector spans all heads together.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax import tree
from peft_jax.backbones.base import Backbone, find_modules
from peft_jax.methods.base import Method, at_layers, check_depth, chosen_layers, make_method, sizes
from peft_jax.tree import Params

TARGETS = ("attention/(key|value)", "mlp")


def ia3(targets: str | Sequence[str] = TARGETS, layers: Sequence[int] | None = None) -> Method:
    """(IA)³ vectors, initialised to ones: the function is unchanged at the start.

    The stored tree has one leaf [layers, width] per target, so the count is
    L_enc (2 inner + d_ff) + L_dec (4 inner + d_ff) for a T5.

    Args:
      targets: regular expressions on the ends of module paths. A projection gets a vector on its
        output (and bias); ``mlp`` gets one on the hidden activations before ``wo``.
      layers: indices of the layers to train; None means all. The others are left as they are.
    """
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen = chosen_layers(layers)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # ones
        stored = {}
        for module, slot in find_modules(backbone.config, "ia3", targets).items():
            *depth, width = sizes(slot)
            depth = check_depth(chosen, depth, module)
            stored[f"{module}/ia3"] = jnp.ones((*depth, width), jnp.float32)
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        return tree.map_with_path(lambda _, leaf: at_layers(leaf, chosen, 1.0), stored)

    spec = {"name": "ia3", "targets": list(targets), "layers": chosen and list(chosen)}
    return make_method(init, bind, spec, foldable=True)
