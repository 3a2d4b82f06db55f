"""DoRA: low-rank updates of a kernel's directions, beside its trained magnitudes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.methods.base import Method, chosen_layers, make_method
from peft_jax.methods.lazy import Magnitude
from peft_jax.methods.lora import Init, chosen_kernel, leaves_named, lora
from peft_jax.tree import Params


def dora(
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] = "attention/(query|value)",
    layers: Sequence[int] | None = None,
    dropout: float = 0.0,
    rslora: bool = False,
    init: Init = "uniform",
    rank_pattern: Sequence[tuple[str, int]] = (),
    alpha_pattern: Sequence[tuple[str, float]] = (),
    svd_iterations: int | None = None,
) -> Method:
    """h = m (W + s B A) x / ||W + s B A||, the norm of every output's column (Liu et al. 2024).

    m starts at ||W|| and B at zero, so that the function is unchanged at the start. The norm is a
    constant for the gradient (section 4.3), as in Hugging Face PEFT, with which gradients agree.
    Merged weights cost one norm per kernel; fold the method away for serving.

    The stored tree has ``magnitude`` [layers, out] beside :func:`lora`'s factors:
    layers * (rank * (in + out) + out) parameters per target. A bias is not scaled.

    Under ``dropout`` only the low-rank branch reads dropped inputs; PEFT's also do where it
    rescales the frozen kernel's output.

    Args:
      rank: of the update.
      alpha: s is alpha / rank; None means alpha = rank, a scale of 1.
      targets: regular expressions on the ends of module paths.
      layers: indices of the layers to train; None means all.
      dropout: rate on the input of the low-rank branch alone, while training.
      rslora: s is alpha / sqrt(rank) instead (Kalajdzievski 2023).
      init: of A, with B zero: "uniform", "gaussian" or "tfew"; "pissa" for both. See :func:`lora`.
      rank_pattern: other ranks for some targets: pairs of a regular expression on the end of a
        module path and a rank. The first pair that matches counts.
      alpha_pattern: the same for alpha.
      svd_iterations: find PiSSA's singular vectors by so many power iterations; None means exactly.

    Raises:
      InputError: as :func:`lora`.
    """
    factors = lora(
        rank,
        alpha,
        targets,
        layers,
        dropout,
        rslora,
        init,
        rank_pattern,
        alpha_pattern,
        svd_iterations=svd_iterations,
    )
    chosen = chosen_layers(layers)

    def init_tree(key: jax.Array, backbone: Backbone) -> Params:
        stored = tree.flatten(factors.init(key, backbone))
        for module, _ in list(leaves_named("lora_b", stored)):
            kernel = chosen_kernel(backbone.params, module, chosen)
            stored[f"{module}/magnitude"] = jnp.sqrt(jnp.sum(kernel * kernel, axis=-2))
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        flat = tree.flatten(stored)
        magnitudes = dict(leaves_named("magnitude", flat))
        bound = tree.flatten(
            factors.bind(tree.unflatten({p: x for p, x in flat.items() if "/magnitude" not in p}))
        )
        for module, magnitude in magnitudes.items():
            a, b = (bound[f"{module}/{name}"] for name in ("lora_a", "lora_b"))
            if chosen is not None:
                a, b = a.values, b.values
            bound[f"{module}/magnitude"] = Magnitude(magnitude, a, b, chosen)
        return tree.unflatten(bound)

    spec = {name: value for name, value in factors.spec.items() if name != "freeze_a"}
    return make_method(init_tree, bind, spec | {"name": "dora"}, foldable=True)
