"""VeRA: one random pair of matrices for all projections, and trained vectors (Kopiczko 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, chosen_layers, make_method
from peft_jax.methods.lazy import Lazy, at_layers
from peft_jax.methods.lora import check_dropout, check_rank, leaves_named, projections
from peft_jax.tree import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedInputs(Lazy):
    """A's rows for as many inputs as the kernel beside it has, the same in every layer.

    Attributes:
      values: [inputs of the widest kernel, r].
    """

    values: jax.Array

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> jax.Array:
        del own, depth
        *stack, inputs, _ = module["kernel"].shape
        return jnp.broadcast_to(self.values[:inputs], (*stack, inputs, self.values.shape[1]))


def vera(
    rank: int = 256,
    targets: str | Sequence[str] = "attention/(query|value)",
    layers: Sequence[int] | None = None,
    dropout: float = 0.0,
    d_initial: float = 0.1,
) -> Method:
    """h = W x + b * (B (d * (A x))), with A and B drawn once for all and never trained.

    b starts at zero: the function is unchanged at the start. A [widest input, rank] and B [rank,
    widest output] are drawn uniformly within sqrt(6 / fan-in); a projection reads as much of them
    as its sizes need, as in Hugging Face PEFT. They lie under ``fixed/`` at the top of the stored
    tree: saved with the adapter, not counted.

    The stored tree has ``vera_lambda_d`` [layers, rank] and ``vera_lambda_b`` [layers, out] per
    target: layers * (rank + out) parameters.

    Source: Kopiczko et al. 2024, section 3.

    Args:
      rank: of the update.
      targets: regular expressions on the ends of module paths.
      layers: indices of the layers to train; None means all.
      dropout: rate on the input of the low-rank branch alone, while training.
      d_initial: what every entry of d starts at.

    Raises:
      InputError: a number out of its range; from ``init``, a target that matches nothing.
    """
    check_rank(rank)
    check_dropout(dropout)
    if not d_initial:
        raise InputError("d_initial 0 would keep the update, and all gradients, at zero")
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen = chosen_layers(layers)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        found = projections(backbone.config, targets, chosen)
        inputs = max(sides.inputs for sides in found.values())
        outputs = max(sides.outputs for sides in found.values())
        key_a, key_b = jax.random.split(key)
        stored = {
            "fixed/vera_a": _kaiming_uniform(key_a, (inputs, rank)),
            "fixed/vera_b": _kaiming_uniform(key_b, (rank, outputs)),
        }
        for module, sides in found.items():
            d, b = (*sides.depth, rank), (*sides.depth, sides.outputs)
            stored[f"{module}/vera_lambda_d"] = jnp.full(d, d_initial, jnp.float32)
            stored[f"{module}/vera_lambda_b"] = jnp.zeros(b, jnp.float32)
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        flat, bound = tree.flatten(stored), {}
        for module, b in leaves_named("vera_lambda_b", flat):
            d = flat[f"{module}/vera_lambda_d"]
            bound[f"{module}/lora_a"] = SharedInputs(flat["fixed/vera_a"])
            # Both vectors go to B's side: the backward pass then needs no gradient of A's shape.
            rows = flat["fixed/vera_b"][:, : b.shape[-1]] * d[..., :, None] * b[..., None, :]
            bound[f"{module}/lora_b"] = at_layers(rows, chosen, 0.0)
            if dropout:
                rate = jnp.full(b.shape[:-1], dropout, jnp.float32)
                bound[f"{module}/lora_dropout"] = at_layers(rate, chosen, 0.0)
        return tree.unflatten(bound)

    spec = {
        "name": "vera",
        "rank": rank,
        "targets": list(targets),
        "layers": chosen and list(chosen),
        "dropout": dropout,
        "d_initial": d_initial,
    }
    return make_method(init, bind, spec, foldable=True)


def _kaiming_uniform(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """He et al. 2015 for a matrix [in, out]."""
    bound = (6 / shape[0]) ** 0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
