"""The union of a backbone's parameters and a method's leaves; kernels with them folded in."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from peft_jax import layers, quantization, tree
from peft_jax.errors import InputError
from peft_jax.methods.lazy import Lazy
from peft_jax.stacks import PerTask, Tail
from peft_jax.tree import Params

# Modules that an adapter may bring where the backbone has none; bottleneck adapters stand beside
# the sub-layers that they are named after.
BROUGHT = ("classifier", "verbalizer")


def _is_brought(name: str) -> bool:
    return name in BROUGHT or name.endswith("_adapter")


def merge(frozen: Params, bound: Params) -> Params:
    """The union of a backbone's parameters and a method's bound leaves.

    A leaf at a new path is added beside the backbone's own; a leaf at an existing path (a trained
    kernel, bias or norm) takes its place, in its dtype. No array is copied.

    Raises:
      InputError: a leaf hangs where the backbone has no module, replaces one of another shape, or
        one that is quantised.
    """
    return _merge(frozen, bound, 0)


def _merge(frozen: Params, bound: Params, depth: int) -> Params:
    merged = dict(frozen)
    for name, leaf in bound.items():
        own = frozen.get(name)
        if isinstance(leaf, dict):
            if own is None and (_is_brought(name) or not frozen):
                own = {}
            if not isinstance(own, dict):
                raise InputError(f"no module {name!r} to merge into; {tree.nearest(name, frozen)}")
            within = jax.tree.leaves(own)[0].shape[0] if name == "layers" else depth
            merged[name] = _merge(own, leaf, within)
            continue
        if quantization.is_quantized(own):
            raise InputError(
                f"{name!r} is quantised and cannot be trained: choose other targets, or load the "
                "backbone without quantising it"
            )
        if isinstance(leaf, Lazy):
            leaf = leaf.expand(own, frozen, depth)
            if isinstance(leaf, PerTask | Tail):
                merged[name] = leaf
                continue
        if own is not None:
            if isinstance(own, dict) or own.shape != leaf.shape:
                raise InputError(
                    f"leaf {name!r} of shape {leaf.shape} does not fit what it replaces"
                )
            leaf = leaf.astype(own.dtype)
        merged[name] = leaf
    return merged


_NOT_FOLDABLE = {
    "prompt": "a soft prompt",
    "soft_tokens": "a soft prompt",
    "prefix_key": "a prefix",
}


def fold_leaves(merged: Params) -> Params:
    """A merged tree with every foldable leaf folded into the kernels, in the layers' own order.

    Raises:
      InputError: a leaf that no plain kernel can express, such as a soft prompt.
    """
    if any(isinstance(leaf, PerTask) for leaf in merged.values()):
        raise InputError("a bank cannot be folded: no kernel holds several adapters")
    merged = {n: leaf.whole() if isinstance(leaf, Tail) else leaf for n, leaf in merged.items()}
    if set(merged) <= {"kernel", "bias"}:
        return merged  # not touched by an adapter: no copy
    if "kernel" in merged:
        rest = set(merged) - layers.FOLDABLE
        if rest:
            raise InputError(f"leaf {sorted(rest)[0]!r} cannot be folded into a kernel")
        return layers.fold_linear(merged)
    if "wo" in merged and "ia3" in merged:
        # The vector scales what wo reads: it goes into wo's rows.
        folded = fold_leaves({name: leaf for name, leaf in merged.items() if name != "ia3"})
        kernel = folded["wo"]["kernel"]
        scaled = kernel.astype(jnp.float32) * merged["ia3"][..., :, None]
        folded["wo"] = {**folded["wo"], "kernel": scaled.astype(kernel.dtype)}
        return folded
    for name in merged:
        if name in _NOT_FOLDABLE or name.endswith("_adapter"):
            what = _NOT_FOLDABLE.get(name, "a bottleneck adapter")
            raise InputError(f"{what} cannot be folded into kernels: keep it beside the backbone")
    return {k: fold_leaves(v) if isinstance(v, dict) else v for k, v in merged.items()}
