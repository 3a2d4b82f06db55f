"""Adapters that ``t5x.train`` saved through the bridge (``peft_jax.t5x_bridge``), read without T5X.

The parameters of such a checkpoint are a method's trainable tree; constants of a method are saved
among T5X's ``flax_mutables``.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.backbones.t5x_files import open_checkpoint
from peft_jax.errors import InputError
from peft_jax.methods import Method
from peft_jax.tree import Params


def load_t5x(path: str | Path, backbone: Backbone, method: Method) -> Params:
    """The stored tree of a checkpoint of T5X, for ``method.bind`` and ``save_adapter``.

    Args:
      path: the folder ``checkpoint_<step>``, in T5X's own format or through orbax.
      backbone: that was trained on; T5X's files say nothing of it but the leaves' shapes.
      method: that was trained.

    Raises:
      InputError: no checkpoint, or its leaves are not those of the method on this backbone.
    """
    held = open_checkpoint(path)
    constants = f"flax_mutables/{tree.FIXED}"
    held |= open_checkpoint(path, constants, required=False)
    wanted = tree.flatten(jax.eval_shape(method.init, jax.random.key(0), backbone))
    for leaf in {**wanted, **held}:
        have = held[leaf].shape if leaf in held else None
        want = tuple(wanted[leaf].shape) if leaf in wanted else None
        if have != want:
            raise InputError(
                f"{path} is no adapter of this method and backbone: {leaf} has shape {have} in "
                f"the checkpoint and {want} in the method"
            )
    return tree.unflatten(
        {leaf: jnp.asarray(held[leaf].read(), spec.dtype) for leaf, spec in wanted.items()}
    )
