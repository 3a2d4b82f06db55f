"""Where activations lie on the mesh, said inside the model.

The compiler places what follows from the weights and the batch by itself; a constraint stands where
it would have a choice, and could take the wrong one.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH = ("data", "fsdp")
"""The axes of the mesh over which the rows of a batch are split."""


def on_mesh(mesh: Mesh | None):
    """A context in which what is traced may be constrained; None: constraints say nothing."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that a tree's arrays lie on; None where they lie on one device, or are traced."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            at = leaf.sharding
            if isinstance(at, NamedSharding) and set(BATCH) <= set(at.mesh.axis_names):
                return at.mesh if isinstance(at.mesh, Mesh) else None
    return None


def ways(*axes: str) -> int:
    """Parts that these axes of the mesh split a dimension into; 1 without a mesh."""
    sizes = _sizes()
    return math.prod(sizes.get(axis, 1) for axis in axes)


def _sizes() -> dict[str, int]:
    """The axes of the mesh that is traced for; none where there is no mesh of ours."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(BATCH) <= set(mesh.axis_names):
        return {}
    return dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """``x`` with its dimensions split over axes of the mesh, where there is one.

    Args:
      axes: for each dimension the name of an axis (or several), or None: not split. What does not
        divide a dimension is left to the compiler, and so are the dimensions behind the last.
    """
    sizes = _sizes()
    if not sizes:
        return x
    free = PartitionSpec.UNCONSTRAINED
    spec: list = [free] * x.ndim
    for i, axis in enumerate(axes):
        names = (axis,) if isinstance(axis, str) else axis or ()
        if not x.shape[i] % ways(*names):
            spec[i] = axis
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def share(size: int, *axes: str) -> int:
    """What each device holds of a dimension that is split over axes of the mesh, where there is
    one and they divide it; else the whole."""
    parts = ways(*axes)
    return size if size % parts else size // parts
