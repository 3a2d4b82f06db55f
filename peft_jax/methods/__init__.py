"""Methods: factories of small trainable trees, named as the field names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.methods import arithmetic
from peft_jax.methods.adalora import adalora
from peft_jax.methods.adapters import (
    houlsby_adapter,
    low_rank_adapter,
    parallel_adapter,
    pfeiffer_adapter,
    tfew_adapter,
)
from peft_jax.methods.bank import bank
from peft_jax.methods.bank_slots import clear_in_bank, replace_in_bank
from peft_jax.methods.base import Method, count, describe
from peft_jax.methods.bitfit import bitfit
from peft_jax.methods.classification_head import classification_head
from peft_jax.methods.compacter import compacter, compacter_plus_plus
from peft_jax.methods.composition import compose
from peft_jax.methods.dora import dora
from peft_jax.methods.eject import eject
from peft_jax.methods.fish_mask import fish_mask, with_information
from peft_jax.methods.folding import fold_in, unfold
from peft_jax.methods.full import full
from peft_jax.methods.ia3 import ia3
from peft_jax.methods.lazy import AtLayers
from peft_jax.methods.lora import lora
from peft_jax.methods.merging import fold_leaves, merge
from peft_jax.methods.multitask import multitask, split_tasks
from peft_jax.methods.norm_tuning import norm_tuning
from peft_jax.methods.p_tuning import p_tuning
from peft_jax.methods.partial import partial
from peft_jax.methods.prefix_tuning import fit_prefix, prefix_tuning
from peft_jax.methods.prompt_tuning import prompt_tuning
from peft_jax.methods.rank_one_scaling import rank_one_scaling
from peft_jax.methods.said import said
from peft_jax.methods.top_layers import top_layers
from peft_jax.methods.vera import vera
from peft_jax.methods.vocabulary_rows import vocabulary_rows
from peft_jax.methods.warp import warp

__all__ = [
    "METHODS",
    "AtLayers",
    "Method",
    "adalora",
    "arithmetic",
    "bank",
    "bitfit",
    "classification_head",
    "clear_in_bank",
    "compacter",
    "compacter_plus_plus",
    "compose",
    "count",
    "describe",
    "dora",
    "eject",
    "fish_mask",
    "fit_prefix",
    "fold_in",
    "fold_leaves",
    "from_spec",
    "full",
    "houlsby_adapter",
    "ia3",
    "lora",
    "low_rank_adapter",
    "merge",
    "multitask",
    "norm_tuning",
    "p_tuning",
    "parallel_adapter",
    "partial",
    "pfeiffer_adapter",
    "prefix_tuning",
    "prompt_tuning",
    "rank_one_scaling",
    "replace_in_bank",
    "said",
    "split_tasks",
    "tfew_adapter",
    "top_layers",
    "unfold",
    "vera",
    "vocabulary_rows",
    "warp",
    "with_information",
]

METHODS: dict[str, Callable[..., Method]] = {
    "adalora": adalora,
    "bitfit": bitfit,
    "classification_head": classification_head,
    "compacter": compacter,
    "compacter_plus_plus": compacter_plus_plus,
    "dora": dora,
    "fish_mask": fish_mask,
    "full": full,
    "houlsby_adapter": houlsby_adapter,
    "ia3": ia3,
    "lora": lora,
    "low_rank_adapter": low_rank_adapter,
    "norm_tuning": norm_tuning,
    "p_tuning": p_tuning,
    "parallel_adapter": parallel_adapter,
    "partial": partial,
    "pfeiffer_adapter": pfeiffer_adapter,
    "prefix_tuning": prefix_tuning,
    "prompt_tuning": prompt_tuning,
    "rank_one_scaling": rank_one_scaling,
    "said": said,
    "tfew_adapter": tfew_adapter,
    "top_layers": top_layers,
    "vera": vera,
    "vocabulary_rows": vocabulary_rows,
    "warp": warp,
}
"""Factories by name."""


def from_spec(spec: dict[str, Any]) -> Method:
    """The method that a saved adapter's metadata describes: the inverse of ``method.spec``."""
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if name == "compose":
        return compose(*(from_spec(part) for part in arguments["methods"]))
    if name == "multitask":
        return multitask({task["task"]: from_spec(task["method"]) for task in arguments["tasks"]})
    if name not in METHODS:
        raise InputError(f"no method is named {name!r}; {tree.nearest(str(name), METHODS)}")
    try:
        return METHODS[name](**arguments)
    except TypeError as error:
        raise InputError(f"method {name!r} cannot be made from {arguments}: {error}") from None
