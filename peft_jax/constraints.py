"""Where activations lie on the mesh, said inside the model.

The compiler places what follows from the weights and the batch by itself; a constraint stands where
it would have a choice, and could take the wrong one.
"""

from __future__ import annotations

import contextlib

import jax
from jax.sharding import Mesh, PartitionSpec

BATCH = ("data", "fsdp")
"""The axes of the mesh over which the rows of a batch are split."""


def on_mesh(mesh: Mesh | None):
    """A context in which what is traced may be constrained; None: constraints say nothing."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """``x`` with its dimensions split over axes of the mesh, where there is one.

    Args:
      axes: for each dimension the name of an axis (or several), or None: not split. What does not
        divide a dimension is left to the compiler, and so are the dimensions behind the last.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(BATCH) <= set(mesh.axis_names):
        return x
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    free = PartitionSpec.UNCONSTRAINED
    spec: list = [free] * x.ndim
    for i, axis in enumerate(axes):
        names = (axis,) if isinstance(axis, str) else axis or ()
        ways = 1
        for name in names:
            ways *= sizes[name]
        if not x.shape[i] % ways:
            spec[i] = axis
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
