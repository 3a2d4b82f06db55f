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
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, check_depth, chosen_layers, make_method, sizes
from peft_jax.methods.lazy import at_layers
from peft_jax.tree import Params

TARGETS = ("attention/(key|value)", "mlp")


def ia3(
    targets: str | Sequence[str] = TARGETS,
    layers: Sequence[int] | None = None,
    inputs: str | Sequence[str] = (),
) -> Method:
    """(IA)³ vectors, initialised to ones: the function is unchanged at the start.

    The stored tree has one leaf [layers, width] per target, so the count is
    L_enc (2 inner + d_ff) + L_dec (4 inner + d_ff) for a T5.

    Args:
      targets: regular expressions on the ends of module paths. A projection gets a vector on its
        output (and bias); ``mlp`` gets one on the hidden activations before ``wo``.
      layers: indices of the layers to train; None means all. The others are left as they are.
      inputs: projections that get a vector on what they read. (Hugging Face PEFT's default for a
        BERT has one in front of the attention's output projection.)

    Raises:
      InputError: from ``init``, a target that matches nothing.
    """
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    if not targets and not inputs:
        raise InputError("no target is given: nothing would be trained")
    chosen = chosen_layers(layers)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # ones
        stored = {}
        for leaf, patterns in (("ia3", targets), ("input_scale", inputs)):
            found = find_modules(backbone.config, leaf, patterns) if patterns else {}
            for module, slot in found.items():
                *depth, width = sizes(slot)
                depth = check_depth(chosen, depth, module)
                stored[f"{module}/{leaf}"] = jnp.ones((*depth, width), jnp.float32)
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        return tree.map_with_path(lambda _, leaf: at_layers(leaf, chosen, 1.0), stored)

    spec = {
        "name": "ia3",
        "targets": list(targets),
        "layers": chosen and list(chosen),
        "inputs": list(inputs),
    }
    return make_method(init, bind, spec, foldable=True)
