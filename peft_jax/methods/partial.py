"""Partial fine-tuning: any subset of the backbone's own parameters, chosen by path."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax import quantization, tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, check_depth, chosen_layers, make_method
from peft_jax.methods.lazy import at_layers
from peft_jax.tree import Params


def partial(targets: str | Sequence[str], layers: Sequence[int] | None = None) -> Method:
    """Float32 copies of the chosen parameters, which take the backbone's own places.

    The function is unchanged at the start. The count is that of the parameters themselves; the
    forward pass is the backbone's, and a gradient is computed for these leaves alone. Parameters of
    the last layers only (all of them below the same one) also shorten the backward pass: see
    ``top_layers``.

    Args:
      targets: regular expressions on the ends of parameter paths, leaf included:
        ``attention/query/kernel``, ``norm/scale``, ``token_embedder/embedding``. Layer norms alone
        are the baseline "LayerNorm" of Liu et al. 2022; biases alone are BitFit where the
        checkpoint has them.
      layers: indices of the layers to train, of every stack in which a target lies; None means all.

    Raises:
      InputError: there is no target; by ``init``, where a target matches no parameter, or layers
        do not fit.
    """
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    if not targets:
        raise InputError("partial needs targets, such as 'norm/scale': nothing would be trained")
    chosen = chosen_layers(layers)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # starts at the backbone
        own = tree.flatten(backbone.params)
        stored = {}
        for path in tree.match(targets, own, "parameter"):
            leaf = own[path]
            check_depth(chosen, leaf.shape[:1] if in_layers(path) else (), path)
            stored[path] = copied(leaf, chosen)
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        return tree.map_with_path(lambda _, leaf: at_layers(leaf, chosen, None), stored)

    spec = {"name": "partial", "targets": list(targets), "layers": chosen and list(chosen)}
    return make_method(init, bind, spec, foldable=True)


def in_layers(path: str) -> bool:
    """Whether a parameter lies in a stack of layers, and so has a layer axis in front."""
    return "/layers/" in path


def copied(leaf: jax.Array, layers: Sequence[int] | None) -> jax.Array:
    """A float32 copy [L or K, ...] of a leaf, of all layers or of K of them.

    A true copy: the step donates the stored tree and must not free the backbone with it.
    """
    if quantization.is_quantized(leaf):
        raise InputError(
            "quantised weights cannot be trained: choose other targets, or load the backbone "
            "without quantising it"
        )
    if layers is None:
        return jnp.array(leaf, jnp.float32, copy=True)
    return leaf[jnp.asarray(layers)].astype(jnp.float32)
