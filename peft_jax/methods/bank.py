"""Many adapters in one batch: every input is read with the leaves of its own task.

::

    params = merge(backbone.params, bank([(method, adapter), (other_method, other_adapter)]))
    logits = backbone.logits(params, batch | {"task_ids": task_ids})  # [B] int32; -1: no adapter

Liu et al. 2022, section 2.1, ask for it of any method that is to be served: inputs of different
tasks in one batch, through one model. A bank stacks the bound leaves of T adapters behind the layer
axis, [L, T + 1, ...], and a batch picks one for each of its inputs before the layers run. The last
one changes nothing, and serves the inputs without an adapter. Methods may differ: where one has no
leaf, its tasks get what changes nothing; ranks and bottlenecks are filled with zeros, and shorter
prompts and prefixes are filled in front and masked.

What replaces or changes the backbone's own leaves (``full``, ``partial``, ``fish_mask``, ``said``,
norms, embeddings) is in the bank as a copy of the whole leaf for every task: right for norms and a
few tasks, and as large as it says for kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from peft_jax import layers, tree
from peft_jax.errors import InputError
from peft_jax.methods.base import Method
from peft_jax.methods.lazy import OfTasks
from peft_jax.tree import Params


class _Kind(NamedTuple):
    """How leaves of a name stand together.

    Attributes:
      neutral: what changes nothing where the backbone has no leaf of its own.
      grown: the axis, from behind, whose size a method chooses; 0: none.
      in_front: whether a shorter leaf is filled in front.
      masked: whether filled places are told by a leaf of the name with ``_mask`` behind it.
    """

    neutral: float = 0.0
    grown: int = 0
    in_front: bool = False
    masked: str = ""


_KINDS = {
    "lora_a": _Kind(grown=-1),
    "lora_b": _Kind(grown=-2),
    "lora_dropout": _Kind(),
    "magnitude": _Kind(1.0),
    "input_scale": _Kind(1.0),
    "ia3": _Kind(1.0),
    "bias": _Kind(),
    "scale": _Kind(1.0),
    "down": _Kind(grown=-1),
    "down_bias": _Kind(grown=-1),
    "up": _Kind(grown=-2),
    "up_bias": _Kind(),
    "prompt": _Kind(grown=-2, in_front=True, masked="prompt_mask"),
    "prefix_key": _Kind(grown=-2, in_front=True, masked="prefix_mask"),
    "prefix_value": _Kind(grown=-2, in_front=True),
    "prefix_places": _Kind(grown=-1, in_front=True),
    "soft_tokens": _Kind(grown=-2),
    "soft_places": _Kind(grown=-1),
}
# Heads whose number of classes is the task's own.
_CLASSES = ("classifier/out", "verbalizer")


def bank(adapters: Sequence[tuple[Method, Params]], tasks: int | None = None) -> Params:
    """Bound leaves of several adapters of one backbone, for ``merge``.

    Args:
      adapters: (method, stored tree) of each task; task_ids are their positions.
      tasks: how many adapters the bank has room for; those behind the given ones change nothing
        until ``replace_in_bank`` fills them. None: no more than are given.

    Raises:
      InputError: there is none, or there are more than ``tasks``.
    """
    if not adapters:
        raise InputError("a bank needs at least one adapter")
    reserved = 0 if tasks is None else tasks - len(adapters)
    if reserved < 0:
        raise InputError(f"{len(adapters)} adapters do not fit a bank of {tasks} tasks")
    flat = [tree.flatten(method.bind(stored)) for method, stored in adapters]
    bound: dict[str, Any] = {}
    for path in dict.fromkeys(path for leaves in flat for path in leaves):
        held = tuple(leaves.get(path) for leaves in flat)
        module, _, kind = path.rpartition("/")
        if module in _CLASSES:
            bound |= _class_leaves(module, flat)
            continue
        stacked = "/layers/" in path
        found = _KINDS.get(kind, _Kind())
        neutral, grown, in_front, masked = found
        least = _longest_prompt(flat, module) if kind == "prompt" else 0
        bound[path] = OfTasks(held, neutral, grown, stacked, in_front, least=least)
        if masked:
            masks = tuple(None if x is None else jnp.ones(x.shape[:-1], bool) for x in held)
            bound[f"{module}/{masked}"] = OfTasks(masks, 0.0, -1, stacked, in_front, least=least)
    if reserved:
        bound = {p: dataclasses.replace(leaf, reserved=reserved) for p, leaf in bound.items()}
    return tree.unflatten(bound)


def _longest_prompt(flat: Sequence[Params], module: str) -> int:
    """Rows of a stack's longest prompt, in whose places the layers' own ones stand."""
    path = f"{module.removesuffix('/layers')}/prompt"
    return max(leaves[path].shape[-2] for leaves in flat if path in leaves)


def _class_leaves(module: str, flat: Sequence[Params]) -> dict[str, Any]:
    """Kernel and bias of heads of different numbers of classes.

    A class that a task does not have gets logits that no softmax sees; a bias stands in for them
    where the head has none.
    """
    kernels = tuple(leaves.get(f"{module}/kernel") for leaves in flat)
    biases = []
    for leaves, kernel in zip(flat, kernels, strict=True):
        bias = leaves.get(f"{module}/bias")
        if bias is None and kernel is not None:
            bias = jnp.zeros(kernel.shape[-1:], kernel.dtype)
        biases.append(bias)
    return {
        f"{module}/kernel": OfTasks(kernels, 0.0, -1, stacked=False),
        f"{module}/bias": OfTasks(tuple(biases), 0.0, -1, stacked=False, filling=layers.MASKED),
    }
