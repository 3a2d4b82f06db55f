"""The empirical Fisher information of a backbone's parameters on some examples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from peft_jax import quantization, tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.merging import merge
from peft_jax.objectives import Objective
from peft_jax.transformer import Batch, Config
from peft_jax.tree import Params


def fisher_information(
    backbone: Backbone,
    objective: Objective,
    batches: Iterable[Batch],
    *,
    targets: str | Sequence[str] | None = None,
    beside: Params | None = None,
    key: jax.Array | None = None,
    advance: Callable[[int], None] | None = None,
) -> Params:
    """The mean over ``batches`` of the squared gradient of the loss: the Fisher's diagonal.

    Sung et al. 2021, "Training Neural Networks with Fixed Sparse Masks", equation 5 (the empirical
    Fisher, with the examples' own labels). It is defined with one example a batch; a larger batch
    gives the square of a mean, which is something else. Like T-Few's, the loss is what the examples
    are trained on, under a template of each one's own.

    Besides the backbone, memory holds a float32 array and a gradient for each parameter.

    Args:
      objective: whose loss is differentiated.
      batches: what the objective reads, of [1, ...] each.
      targets: regular expressions on the ends of parameter paths; None means all parameters.
      beside: bound leaves that the objective needs and that are left out of the result: those of a
        new classification head.
      key: of dropout; None means none, the deterministic choice. T-Few leaves it on.
      advance: called with 1 after each batch (``progress.step_bar`` yields such a function).

    Returns:
      A tree like the backbone's parameters, of those that were chosen, float32.

    Raises:
      InputError: there is no batch, a target matches nothing, or a gradient is not finite.
    """
    flat = tree.flatten(backbone.params)
    paths = list(flat) if targets is None else tree.match(targets, flat, "parameter")
    chosen = {path: flat[path] for path in paths}
    frozen = [path for path in paths if quantization.is_quantized(flat[path])]
    if frozen:
        raise InputError(f"{frozen[0]!r} is quantised and has no gradient: choose other targets")
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    total = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in chosen.items()}
    number = 0
    for number, batch in enumerate(batches, 1):
        k = None if key is None else jax.random.fold_in(key, number)
        batch = jax.tree.map(jnp.asarray, batch)
        total = _add(backbone.config, objective, total, chosen, rest, beside or {}, batch, k)
        if advance is not None:
            advance(1)
    if not number:
        raise InputError("there is no example to measure the Fisher information on")
    mean = jax.tree.map(lambda x: x / number, total)
    for path, leaf in mean.items():
        if not bool(jnp.isfinite(jnp.sum(leaf))):
            raise InputError(f"the Fisher information of {path!r} is not finite: check the loss")
    return tree.unflatten(mean)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _add(
    config: Config,
    objective: Objective,
    total: Params,
    chosen: Params,
    rest: Params,
    beside: Params,
    batch: Batch,
    key: jax.Array | None,
) -> Params:
    """The sums so far with the squared gradient of one more batch; leaves by path."""
    counts = objective.counts(config, batch)

    def loss(chosen: Params) -> jax.Array:
        params = merge(tree.unflatten({**rest, **chosen}), beside)
        return objective.value(config, params, batch, key, counts)[0]

    gradients = jax.grad(loss)(chosen)
    # Squared in float32, which holds the square of a bfloat16 number exactly.
    return jax.tree.map(lambda t, g: t + jnp.square(g.astype(jnp.float32)), total, gradients)
