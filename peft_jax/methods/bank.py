"""Many adapters in one batch: every input is read with the leaves of its own task.

::

    params = merge(backbone.params, bank([(method, adapter), (other_method, other_adapter)]))
    logits = backbone.logits(params, batch | {"task_ids": task_ids})  # [B] int32; -1: no adapter

Liu et al. 2022, section 2.1, ask for it of any method that is to be served: inputs of different
tasks in one batch, through one model. A bank stacks the bound leaves of T adapters behind the layer
axis, [L, T + 1, ...], and a batch picks one for each of its inputs before the layers run. The last
one changes nothing, and serves the inputs without an adapter. Methods may differ: where one has no
leaf, its tasks get what changes nothing; ranks are filled with zeros, and shorter prompts are
filled in front and masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, OfTasks
from peft_jax.tree import Params

# Leaf: the value that changes nothing, and the axis that a method chooses the size of.
_NEUTRAL = {
    "lora_a": (0.0, -1),
    "lora_b": (0.0, -2),
    "lora_dropout": (0.0, 0),
    "ia3": (1.0, 0),
    "bias": (0.0, 0),
    "scale": (1.0, 0),
}


def bank(adapters: Sequence[tuple[Method, Params]]) -> Params:
    """Bound leaves of several adapters of one backbone, for ``merge``.

    Args:
      adapters: (method, stored tree) of each task; task_ids are their positions.

    Raises:
      InputError: there is none, or one holds what a batch cannot pick by input: kernels and
        embeddings (full fine-tuning), or a classification head.
    """
    if not adapters:
        raise InputError("a bank needs at least one adapter")
    flat = [tree.flatten(method.bind(stored)) for method, stored in adapters]
    bound: dict[str, Any] = {}
    for path in dict.fromkeys(path for leaves in flat for path in leaves):
        held = tuple(leaves.get(path) for leaves in flat)
        kind = path.rpartition("/")[2]
        stacked = "/layers/" in path
        if kind == "prompt":
            bound[path] = OfTasks(held, 0.0, -2, stacked, in_front=True)
            masks = tuple(None if x is None else jnp.ones(x.shape[:1], bool) for x in held)
            bound[f"{path}_mask"] = OfTasks(masks, 0.0, -1, stacked, in_front=True)
        elif kind in _NEUTRAL and not path.startswith("classifier/"):
            bound[path] = OfTasks(held, *_NEUTRAL[kind], stacked)
        else:
            raise InputError(
                f"{path!r} cannot be in a bank: a batch picks small leaves by input, no kernel, "
                "embedding or head; serve that adapter by itself"
            )
    return tree.unflatten(bound)
