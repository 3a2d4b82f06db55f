"""The mesh of a run, and the frozen backbone on it.

A run has one mesh: what trains also evaluates, so that no device holds the backbone twice.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from peft_jax import distributed, programs, sharding, tree
from peft_jax.backbones import CONFIGS, Backbone, load_backbone
from peft_jax.backbones.base import identity
from peft_jax.config import Experiment, make_method
from peft_jax.errors import InputError

# Beside a trained float32 weight an optimiser keeps up to two moments of it.
_TRAINED_COPIES = 3
# Of a device's memory, what the weights may take where one input is answered at a time.
_FITS = 0.8


def open_mesh(config: Experiment, *, training: bool = True) -> jax.sharding.Mesh:
    """The devices of a run and their axes: as ``config.mesh`` says, or as the hardware wants.

    Of several processes all call it, and get the same.

    Where a device says how much memory it has, the weights are split no further than makes them fit
    (``sharding.choose_axes``); on a CPU only the batch is split.

    Args:
      training: the batch of training divides over the mesh. Otherwise nothing is trained: batches
        of an evaluation are filled up, so that all devices take part.

    Raises:
      InputError: there is no such mesh, or one of the processes has no device on it.
    """
    with distributed.agreed():
        mesh = _open_mesh(config, training)
    # Hosts may differ in what they say of their devices' memory.
    distributed.check_same("axes of the mesh (give --mesh.fsdp, --mesh.model)", dict(mesh.shape))
    return mesh


def _open_mesh(config: Experiment, training: bool) -> jax.sharding.Mesh:
    wanted, given = config.training.devices, dataclasses.asdict(config.mesh)
    for name, value in given.items():
        if value is not None and value < 1:
            raise InputError(f"mesh.{name} is {value}; it must be at least 1")
    here = wanted or jax.device_count()
    batch = config.training.batch_size // config.training.accumulate
    if not training:
        # Filled up to what any split of the devices divides.
        least = here * (given["data"] or 1)
        batch = -(-config.evaluation.batch_size // least) * least
    mesh = sharding.make_mesh(batch, wanted, **_sizes(config, given, here, batch, training))
    _check_processes(mesh, batch)
    return mesh


def _sizes(
    config: Experiment, given: dict[str, Any], here: int, batch: int, training: bool
) -> dict[str, Any]:
    """Ways of each axis; of "data" None, where it is what the others leave."""
    plain = {"data": given["data"], "fsdp": given["fsdp"] or 1, "model": given["model"] or 1}
    if config.training.parallel == "pmap":
        if jax.process_count() > 1:
            raise InputError(
                "parallel pmap is for the devices of one process, and there are "
                f"{jax.process_count()}: leave it out (jit)"
            )
        if plain["fsdp"] != 1 or plain["model"] != 1:
            raise InputError("parallel pmap splits the batch alone: no mesh.fsdp, no mesh.model")
        return plain
    memory = sharding.device_bytes()
    if memory is None:
        return plain
    outline = _outline(config)
    needed = held_bytes(outline, config) if training else tree.size_in_bytes(outline.params)
    return sharding.choose_axes(needed, memory, here, outline.config, batch, **given)._asdict()


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
    if config.backbone in CONFIGS and not Path(config.backbone).exists():
        load_backbone(config.backbone)  # says that it is a name without weights
    return programs.outline(config, accelerated=jax.default_backend() != "cpu")


def held_bytes(backbone: Backbone, config: Experiment) -> int:
    """The frozen weights, and what is trained with its optimiser's state."""
    stored = jax.eval_shape(make_method(config).init, jax.random.key(0), backbone)
    return tree.size_in_bytes(backbone.params) + 4 * _TRAINED_COPIES * tree.count(stored)


def open_backbone(config: Experiment, mesh: jax.sharding.Mesh | None = None) -> Backbone:
    """The frozen backbone that an experiment names, run as it says.

    Args:
      mesh: where its weights lie, split as ``sharding.RULES`` says; None: on the first device.
    """
    model = config.model
    dtype = None if model.dtype == "auto" else model.dtype
    backbone = load_backbone(
        config.backbone, dtype, mesh=mesh, quantize=model.quantize, **programs.run_fields(model)
    )
    if mesh is None or jax.process_count() == 1:
        return backbone
    # Taken by all processes together, so that one of them can write it down alone.
    return dataclasses.replace(backbone, fingerprint=identity(backbone)["fingerprint"])


def load_where_it_fits(source: str) -> Backbone:
    """A backbone to answer single inputs with: on one device, or split over this process's.

    Args:
      source: as for ``load_backbone``.
    """
    memory, devices = sharding.device_bytes(), jax.local_devices()
    if memory is None or len(devices) == 1:
        return load_backbone(source)
    outline = _outline(Experiment(backbone=source))
    needed = tree.size_in_bytes(outline.params)
    if needed < _FITS * memory:
        return load_backbone(source)
    # One row cannot be split: only "model" is left.
    axes = sharding.choose_axes(needed, memory, len(devices), outline.config, 1)
    return load_backbone(source, mesh=sharding.make_mesh(1, devices, **axes._asdict()))


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
