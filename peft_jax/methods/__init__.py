"""Methods: factories of small trainable trees, named as the field names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.methods.bank import bank
from peft_jax.methods.base import (
    AtLayers,
    Method,
    compose,
    count,
    describe,
    fold_leaves,
    merge,
)
from peft_jax.methods.bitfit import bitfit
from peft_jax.methods.classification_head import classification_head
from peft_jax.methods.full import full
from peft_jax.methods.ia3 import ia3
from peft_jax.methods.lora import lora
from peft_jax.methods.prompt_tuning import prompt_tuning

__all__ = [
    "METHODS",
    "AtLayers",
    "Method",
    "bank",
    "bitfit",
    "classification_head",
    "compose",
    "count",
    "describe",
    "fold_leaves",
    "from_spec",
    "full",
    "ia3",
    "lora",
    "merge",
    "prompt_tuning",
]

METHODS: dict[str, Callable[..., Method]] = {
    "bitfit": bitfit,
    "classification_head": classification_head,
    "full": full,
    "ia3": ia3,
    "lora": lora,
    "prompt_tuning": prompt_tuning,
}
"""Factories by name."""


def from_spec(spec: dict[str, Any]) -> Method:
    """The method that a saved adapter's metadata describes: the inverse of ``method.spec``."""
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if name == "compose":
        return compose(*(from_spec(part) for part in arguments["methods"]))
    if name not in METHODS:
        raise InputError(f"no method is named {name!r}; {tree.nearest(str(name), METHODS)}")
    try:
        return METHODS[name](**arguments)
    except TypeError as error:
        raise InputError(f"method {name!r} cannot be made from {arguments}: {error}") from None
