"""LoRA: low-rank updates beside frozen projections (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax import tree
from peft_jax.backbones.base import Backbone, find_modules
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, at_layers, check_depth, chosen_layers, make_method, sizes
from peft_jax.tree import Params


def lora(
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] = "attention/(query|value)",
    layers: Sequence[int] | None = None,
    dropout: float = 0.0,
    rslora: bool = False,
) -> Method:
    """h = W x + (alpha / rank) B A x, with A drawn and B zero: unchanged at the start.

    The stored tree has ``lora_a`` [layers, in, rank] and ``lora_b`` [layers, rank, out] per target;
    A is drawn uniformly within 1/sqrt(in), as loralib and Hugging Face PEFT do.

    Args:
      rank: of the update.
      alpha: the update is scaled by alpha / rank; None means alpha = rank, a scale of 1.
      targets: regular expressions on the ends of module paths.
      layers: indices of the layers to train; None means all.
      dropout: rate on the input of the low-rank branch alone, while training.
      rslora: scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).
    """
    if not isinstance(rank, int) or rank < 1:
        raise InputError(f"rank {rank!r} must be a whole number of at least 1")
    if alpha is not None and not alpha > 0:
        raise InputError(f"alpha {alpha!r} must be above 0: at 0 nothing is trained")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout {dropout} must be at least 0 and below 1")
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen = chosen_layers(layers)
    alpha = float(rank if alpha is None else alpha)
    scale = alpha / (rank**0.5 if rslora else rank)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        modules = find_modules(backbone.config, "lora_a", targets)
        outputs = find_modules(backbone.config, "lora_b", targets)
        stored = {}
        for k, (module, slot) in zip(
            jax.random.split(key, len(modules)), modules.items(), strict=True
        ):
            *depth, inputs = sizes(slot)
            depth = check_depth(chosen, depth, module)
            bound = inputs**-0.5
            stored[f"{module}/lora_a"] = jax.random.uniform(
                k, (*depth, inputs, rank), jnp.float32, -bound, bound
            )
            width = sizes(outputs[module])[-1]
            stored[f"{module}/lora_b"] = jnp.zeros((*depth, rank, width), jnp.float32)
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        bound = {}
        for path, leaf in tree.flatten(stored).items():
            module, _, kind = path.rpartition("/")
            if kind == "lora_b" and scale != 1:
                leaf = leaf * scale
            bound[path] = at_layers(leaf, chosen, 0.0)
            if kind == "lora_a" and dropout:
                # A constant that travels with the factors; layers know no configuration.
                rate = jnp.full(leaf.shape[:-2], dropout, jnp.float32)
                bound[f"{module}/lora_dropout"] = at_layers(rate, chosen, 0.0)
        return tree.unflatten(bound)

    spec = {
        "name": "lora",
        "rank": rank,
        "alpha": alpha,
        "targets": list(targets),
        "layers": chosen and list(chosen),
        "dropout": dropout,
        "rslora": rslora,
    }
    return make_method(init, bind, spec, foldable=True)
