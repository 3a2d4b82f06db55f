"""AdaLoRA: low-rank updates whose ranks are allotted where they matter (Zhang et al. 2023).

The update is written like a singular value decomposition, P Lambda Q. While training, the least
important singular values of all targets together are set to zero, until a budget is reached:
:mod:`peft_jax.rank_allocation` does that, as a part of the optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, chosen_layers, make_method
from peft_jax.methods.lazy import at_layers
from peft_jax.methods.lora import (
    check_alpha,
    check_dropout,
    check_rank,
    leaves_named,
    projections,
)
from peft_jax.tree import Params

_STD = 0.02  # of the initial singular vectors, as in the published code and in Hugging Face PEFT


def adalora(
    rank: int = 12,
    target_rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] = "attention/(query|value)",
    layers: Sequence[int] | None = None,
    dropout: float = 0.0,
    initial_steps: int = 0,
    final_steps: int = 0,
    interval: int = 1,
    beta1: float = 0.85,
    beta2: float = 0.85,
    orthogonality: float = 0.5,
) -> Method:
    """h = W x + (alpha / rank) P (lambda * (Q x)).

    lambda starts at zero: the function is unchanged at the start. The stored tree has ``lora_a``
    (Q) [layers, in, rank], ``lora_e`` (lambda) [layers, rank] and ``lora_b`` (P) [layers, rank,
    out]: layers * rank * (in + out + 1) parameters per target, of which target_rank / rank remain
    in use. What stands behind ``dropout`` is about training: the optimiser reads it
    (``make_optimizer(config, method)``); without it all ranks stay.

    Scale, initial values and allocation agree with Hugging Face PEFT (``lora_A``, ``lora_E``,
    ``lora_B``; alpha / (rank + 1e-5)).

    Source: Zhang et al. 2023, equations 3 (form), 8 to 12 (importance) and 13 (budget).

    Args:
      rank: of each update at the start.
      target_rank: ranks per target and layer that remain on average.
      alpha: the update is scaled by alpha / rank; None means alpha = rank.
      targets: regular expressions on the ends of module paths.
      layers: indices of the layers to train; None means all.
      dropout: rate on the input of the low-rank branch alone, while training.
      initial_steps: updates before the first rank is taken away.
      final_steps: updates at the end, after the last.
      interval: updates from one allocation to the next.
      beta1: decay of the average of the importance.
      beta2: decay of the average of its uncertainty.
      orthogonality: weight of the regulariser that keeps P and Q orthogonal.

    Raises:
      InputError: a number out of its range; from ``init``, a target that matches nothing.
    """
    check_rank(rank)
    check_rank(target_rank, "target_rank")
    check_alpha(alpha)
    check_dropout(dropout)
    if target_rank > rank:
        raise InputError(f"target_rank {target_rank} is above the rank at the start, {rank}")
    for name, steps, least in (
        ("initial_steps", initial_steps, 0),
        ("final_steps", final_steps, 0),
        ("interval", interval, 1),
    ):
        if not isinstance(steps, int) or steps < least:
            raise InputError(f"{name} {steps!r} must be a whole number of at least {least}")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 < beta < 1:
            raise InputError(f"{name} {beta} must lie between 0 and 1")
    if not orthogonality >= 0:
        raise InputError(f"orthogonality {orthogonality} must be at least 0")
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen = chosen_layers(layers)
    scale = (rank if alpha is None else alpha) / (rank + 1e-5)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        found = projections(backbone.config, targets, chosen)
        stored = {}
        keys = jax.random.split(key, 2 * len(found)).reshape(len(found), 2)
        for (key_a, key_b), (module, sides) in zip(keys, found.items(), strict=True):
            a, b = (*sides.depth, sides.inputs, rank), (*sides.depth, rank, sides.outputs)
            stored[f"{module}/lora_a"] = _STD * jax.random.normal(key_a, a, jnp.float32)
            stored[f"{module}/lora_e"] = jnp.zeros((*sides.depth, rank), jnp.float32)
            stored[f"{module}/lora_b"] = _STD * jax.random.normal(key_b, b, jnp.float32)
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        flat, bound = tree.flatten(stored), {}
        for module, e in leaves_named("lora_e", flat):
            a = flat[f"{module}/lora_a"] * (scale * e)[..., None, :]
            bound[f"{module}/lora_a"] = at_layers(a, chosen, 0.0)
            bound[f"{module}/lora_b"] = at_layers(flat[f"{module}/lora_b"], chosen, 0.0)
            if dropout:
                rate = jnp.full(e.shape[:-1], dropout, jnp.float32)
                bound[f"{module}/lora_dropout"] = at_layers(rate, chosen, 0.0)
        return tree.unflatten(bound)

    spec = {
        "name": "adalora",
        "rank": rank,
        "target_rank": target_rank,
        "alpha": alpha,
        "targets": list(targets),
        "layers": chosen and list(chosen),
        "dropout": dropout,
        "initial_steps": initial_steps,
        "final_steps": final_steps,
        "interval": interval,
        "beta1": beta1,
        "beta2": beta2,
        "orthogonality": orthogonality,
    }
    return make_method(init, bind, spec, foldable=True)
