"""Meshes and remat policies, ranked by what they compile to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

from peft_jax.backbones import Backbone
from peft_jax.config import Experiment
from peft_jax.errors import InputError
from peft_jax.plan.compiled import Planned
from peft_jax.plan.topology import Topology, parse_topology
from peft_jax.plan.worker import compile_apart
from peft_jax.programs import BatchShape, outline
from peft_jax.sharding import Axes
from peft_jax.tree import size_in_bytes

REMATS = ("none", "dots", "attention", "full")
"""From the most that is kept to the least: the first that fits is the fastest of a mesh."""


def search(
    config: Experiment,
    topology: str,
    shape: BatchShape,
    *,
    candidates: int = 4,
    remats: Sequence[str] = REMATS,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Planned]:
    """Compiles the train step on the meshes that promise most, and ranks them.

    Meshes are put in an order by a rough count (:func:`rough_seconds`); the first of it are
    compiled with the remat policies from the one that keeps most to the one that keeps least, up to
    the first that fits.

    Args:
      candidates: meshes to compile.
      remats: policies to try, in this order.

    Returns the plans: those that fit first, the fastest of them in front.
    """
    found = parse_topology(topology)
    backbone = outline(config)
    planned: list[Planned] = []
    for axes in meshes(config, backbone, found, shape)[:candidates]:
        for remat in remats:
            model = dataclasses.replace(config.model, remat=cast(Any, remat))
            tried = dataclasses.replace(config, model=model)
            tell(f"train: {shape.batch} rows on {found.name}, {tuple(axes)}, remat {remat}")
            one = compile_apart("train", tried, found.name, axes, shape)
            planned.append(one)
            if one.fits:
                break
    return sorted(planned, key=_rank)


def _rank(one: Planned) -> tuple[bool, float]:
    if one.estimate is None:
        return True, one.needed or 0.0
    return False, one.estimate.seconds


def meshes(
    config: Experiment, backbone: Backbone, topology: Topology, shape: BatchShape
) -> list[Axes]:
    """Meshes of the whole slice that divide the batch, the heads and the width, best first.

    Sizes that the experiment gives are kept.

    Raises:
      InputError: there is none.
    """
    model_config, given = backbone.config, config.mesh
    rows = shape.batch // config.training.accumulate
    found = []
    for fsdp in _divisors(topology.chips):
        for model in _divisors(topology.chips // fsdp):
            axes = Axes(topology.chips // fsdp // model, fsdp, model)
            asked = (given.data, given.fsdp, given.model)
            if any(a is not None and a != b for a, b in zip(asked, axes, strict=True)):
                continue
            divides = not rows % (axes.data * fsdp) and not model_config.d_model % fsdp
            if divides and not model_config.num_heads % model and not model_config.d_ff % model:
                found.append(axes)
    if not found:
        raise InputError(f"no mesh of {topology.chips} chips divides a batch of {rows} rows")
    held = size_in_bytes(backbone.params)
    fitting = [a for a in found if held / (a.fsdp * a.model) < 0.9 * topology.chip.usable]
    if not fitting:
        raise InputError(
            f"the weights, {held / 2**30:.1f} GiB, fit on no mesh of {topology.chips} chips with "
            f"{topology.chip.usable / 2**30:.1f} GiB each"
        )
    return sorted(fitting, key=lambda axes: rough_seconds(axes, backbone, topology, shape))


def rough_seconds(axes: Axes, backbone: Backbone, topology: Topology, shape: BatchShape) -> float:
    """Seconds that a train step spends on links, counted by hand: the products are the same
    everywhere.

    Weights are gathered over "fsdp" twice, beside the products of a layer; activations are summed
    over "model" twice a layer forwards and twice backwards, with nothing beside them.
    """
    config, rate = backbone.config, topology.chip.link * 2
    gathered = 2 * size_in_bytes(backbone.params) / axes.model * (1 - 1 / axes.fsdp) / rate
    targets = shape.choices * shape.choice_length or shape.target_length
    width = 2 if config.activation_dtype == "bfloat16" else 4
    per_row = config.encoder_layers * shape.input_length + config.decoder_layers * targets
    tokens = per_row * shape.batch / (axes.data * axes.fsdp)
    summed = 4 * 2 * tokens * config.d_model * width * (1 - 1 / axes.model) / rate
    products = 4 * size_in_bytes(backbone.params) / 2 * shape.batch * shape.input_length / 2
    busy = products / topology.chips / topology.chip.flops
    return summed + max(0.0, gathered - busy)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if not number % n]
