"""The mesh of a run, and the frozen backbone on it.

A run has one mesh: what trains also evaluates, so that no device holds the backbone twice.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from peft_jax import sharding
from peft_jax.backbones import CONFIGS, TINY, Backbone, abstract_backbone, load_backbone
from peft_jax.backbones.base import identity
from peft_jax.config import Experiment, make_method
from peft_jax.errors import InputError

# Beside a trained float32 weight an optimiser keeps up to two moments of it.
_TRAINED_COPIES = 3


def open_mesh(config: Experiment, *, training: bool = True) -> jax.sharding.Mesh:
    """The devices of a run and their axes: as ``config.mesh`` says, or as the hardware wants.

    Where a device says how much memory it has, the weights are split no further than makes them fit
    (``sharding.choose_axes``); on a CPU only the batch is split.

    Args:
      training: the batch of training divides over the mesh. Otherwise nothing is trained: batches
        of an evaluation are filled up, so that all devices take part.

    Raises:
      InputError: there is no such mesh, or one of the processes has no device on it.
    """
    fields, wanted = config.mesh, config.training.devices
    here = wanted or jax.device_count()
    batch = config.training.batch_size // config.training.accumulate
    if not training:
        batch = -(-config.evaluation.batch_size // here) * here
    given = dataclasses.asdict(fields)
    memory = sharding.device_bytes()
    if memory is None:
        sizes = given | {"fsdp": fields.fsdp or 1, "model": fields.model or 1}
    else:
        outline = _outline(config)
        needed = _bytes(outline, config) if training else _frozen_bytes(outline)
        chosen = sharding.choose_axes(needed, memory, here, outline.config, batch, **given)
        sizes = chosen._asdict()
    if config.training.parallel == "pmap":
        if (fields.fsdp or 1, fields.model or 1) != (1, 1):
            raise InputError("parallel pmap splits the batch alone: no mesh.fsdp, no mesh.model")
        sizes = {"data": fields.data, "fsdp": 1, "model": 1}
    divided = batch if training or fields.data is None else None
    mesh = sharding.make_mesh(divided, wanted, **sizes)
    _check_processes(mesh, batch)
    return mesh


def _check_processes(mesh: jax.sharding.Mesh, batch: int) -> None:
    """Raises InputError where a process would stand beside the others with nothing to do."""
    taking_part = {device.process_index for device in mesh.devices.flat}
    idle = sorted(set(range(jax.process_count())) - taking_part)
    if idle:
        raise InputError(
            f"a batch of {batch} on a mesh of {mesh.size} devices leaves {len(idle)} of "
            f"{jax.process_count()} processes without work: give a batch that more devices divide, "
            "or split the weights too (mesh.fsdp, mesh.model)"
        )


def _outline(config: Experiment) -> Backbone:
    """The backbone without its weights, in the dtype that it will have."""
    from peft_jax.backbones import formats

    folder = TINY if config.backbone == "tiny" else Path(config.backbone)
    if config.backbone in CONFIGS and not folder.exists():
        load_backbone(config.backbone)  # says that it is a name without weights
    return abstract_backbone(formats.read_config(folder), _dtype(config))


def _dtype(config: Experiment) -> Any:
    name = config.model.dtype
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def _frozen_bytes(backbone: Backbone) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backbone.params))


def _bytes(backbone: Backbone, config: Experiment) -> int:
    """The frozen weights, and what is trained with its optimiser's state."""
    stored = jax.eval_shape(make_method(config).init, jax.random.key(0), backbone)
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(stored))
    return _frozen_bytes(backbone) + 4 * _TRAINED_COPIES * trained


def open_backbone(config: Experiment, mesh: jax.sharding.Mesh | None = None) -> Backbone:
    """The frozen backbone that an experiment names, run as it says.

    Args:
      mesh: where its weights lie, split as ``sharding.RULES`` says; None: on the first device.
    """
    model = config.model
    run: dict[str, Any] = {"remat": model.remat}
    if model.activation_dtype != "auto":
        run["activation_dtype"] = model.activation_dtype
    if model.dropout is not None:
        run["dropout"] = model.dropout
    dtype = None if model.dtype == "auto" else model.dtype
    backbone = load_backbone(config.backbone, dtype, mesh=mesh, quantize=model.quantize, **run)
    if mesh is None or jax.process_count() == 1:
        return backbone
    # Taken by all processes together, so that one of them can write it down alone.
    return dataclasses.replace(backbone, fingerprint=identity(backbone)["fingerprint"])


def placed(backbone: Backbone, mesh: jax.sharding.Mesh) -> Backbone:
    """The same backbone with its weights on a mesh."""
    return dataclasses.replace(
        backbone, params=sharding.place(mesh, backbone.params, backbone.config)
    )


def notes_of_mesh(backbone: Backbone, mesh: jax.sharding.Mesh) -> list[str]:
    """What somebody who waits for a run should know of its devices; nothing of a single one."""
    if mesh.size == 1:
        return []
    axes = " x ".join(f"{name} {ways}" for name, ways in mesh.shape.items())
    return [
        f"{mesh.size} devices: {axes}",
        *sharding.undivided(backbone.params, backbone.config, mesh),
    ]
