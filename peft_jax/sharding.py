"""The mesh, and where batches and replicated trees lie on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peft_jax.errors import InputError


def make_mesh(batch_size: int | None = None, devices: int | None = None) -> Mesh:
    """A mesh with the one axis "data" over this process's devices.

    Args:
      batch_size: if given, and ``devices`` is not, as many devices are used as divide it evenly.
      devices: how many to use.

    Raises:
      InputError: more devices than there are, or a number that does not divide the batch.
    """
    local = jax.local_devices()
    if devices is None:
        fitting = [n for n in range(1, len(local) + 1) if not (batch_size or n) % n]
        devices = fitting[-1]
    if not 1 <= devices <= len(local):
        raise InputError(f"devices {devices}: there are {len(local)} here")
    if batch_size is not None and batch_size % devices:
        raise InputError(f"a batch of {batch_size} does not divide over {devices} devices")
    return Mesh(np.asarray(local[:devices]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over "data"."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """A host's batch as global arrays, split over "data"."""
    placed = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(placed, np.asarray(array))
        for name, array in batch.items()
    }


def replicate(mesh: Mesh, tree: Any) -> Any:
    """A tree copied to every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))
