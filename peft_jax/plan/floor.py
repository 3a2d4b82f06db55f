"""The least that a job needs, whatever it is compiled to: the roofline's floor.

FLOPs are those of the matrix products in the traced program with nothing recomputed and choices in
one part, which is forward and the gradient of activations for a frozen backbone. Bytes are the
weights, read once by a forward pass and once more by a backward pass, or once for every token that
is written. The floor is the longer of the two at the peaks of all chips together.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax

from peft_jax import programs, sharding
from peft_jax.backbones import Backbone
from peft_jax.config import Experiment
from peft_jax.plan.topology import Topology
from peft_jax.program_flops import jaxpr_flops
from peft_jax.tree import size_in_bytes

_WHOLE = 1 << 40
"""Megabytes: no choices are split for want of memory."""


class Floor(NamedTuple):
    """What a program needs, of all chips together.

    Attributes:
      flops: of matrix products.
      bytes: of weights.
      seconds: on the slice.
    """

    flops: float
    bytes: float
    seconds: float


def floor_of(
    name: str,
    config: Experiment,
    backbone: Backbone,
    shape: programs.BatchShape,
    topology: Topology,
) -> Floor:
    """The floor of a program of ``programs.PROGRAMS``."""
    flops = needed_flops(name, config, backbone, shape)
    passes = {"train": 2, "score": 1, "decode": shape.target_length}[name]
    read = passes * size_in_bytes(backbone.params)
    chip = topology.chip
    compute = flops / (chip.flops * topology.chips)
    # Were the weights split over all chips.
    memory = read / (chip.bandwidth * topology.chips)
    return Floor(flops, read, max(compute, memory))


def needed_flops(
    name: str, config: Experiment, backbone: Backbone, shape: programs.BatchShape
) -> float:
    """FLOPs of the matrix products of a program with nothing recomputed."""
    evaluation = dataclasses.replace(config.evaluation, memory_budget_mb=_WHOLE)
    training = dataclasses.replace(config.training, accumulate=1)
    config = dataclasses.replace(config, evaluation=evaluation, training=training)
    backbone = backbone.replace(remat="none")
    mesh = sharding.make_mesh(devices=jax.devices("cpu")[:1])
    program = programs.PROGRAMS[name](config, backbone, mesh, shape)
    traced = program.function.trace(*program.arguments)
    return jaxpr_flops(traced.jaxpr.jaxpr, shape.target_length)
