"""Many processes read a leaf once between them, and exchange what each of them holds of it.

Where a leaf lies on a mesh may have little to do with how it lies in its file: copies are on every
host, and columns of a matrix are holes in every row. Each process would then read most of the file.
Instead each reads some rows that no other does, and the devices exchange them over their links,
which are faster than any storage: first what is to be in several places is gathered, then one axis
of the mesh after the other goes to the dimension that it splits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peft_jax.tensor_files import StoredTensor, bounded

# Smaller leaves are read where they are needed: a program that moves them has to be compiled.
_LEAST_BYTES = 2**24
# A host's own devices share what is read, and have no links that are faster than its memory.
_WITHOUT_LINKS = ("cpu",)
# How much more than its share of the bytes a process reads by itself before an exchange pays.
_EXCESS = 1.5


def reading_specs(leaf: StoredTensor, lies: NamedSharding) -> list[PartitionSpec]:
    """Where a leaf lies as it is read, and where then, until it is where it is to be.

    Args:
      leaf: not yet read.
      lies: where it is to be, on a mesh of one axis for a dimension at most.
    Returns:
      The specs on the way, the last being that of ``lies``; or that alone, where every process had
      better read what its devices hold.
    """
    mesh = lies.mesh
    assert isinstance(mesh, Mesh)  # an abstract one has no devices to read for
    final = tuple(lies.spec) + (None,) * (len(leaf.shape) - len(lies.spec))
    processes = len({device.process_index for device in mesh.devices.flat})
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    rows = next((axis for axis in leaf.order if leaf.shape[axis] % mesh.size == 0), None)
    if processes == 1 or mesh.devices.flat[0].platform in _WITHOUT_LINKS:
        return [lies.spec]
    if size < _LEAST_BYTES or leaf.part is None or rows is None:
        return [lies.spec]
    if share_alone(leaf, lies) <= _EXCESS / processes:
        return [lies.spec]
    return way(final, rows, mesh)


def share_alone(
    leaf: StoredTensor,
    lies: NamedSharding,
    process_of: Callable[[jax.Device], int] = lambda device: device.process_index,
) -> float:
    """The part of a leaf's bytes that the process reads which reads the most, if all read alone.

    Along the last axis of the file whole rows are counted: what lies between two short runs is
    read with them.
    """
    *outer, _ = leaf.order
    boxes: dict[int, set[tuple[tuple[int, int], ...]]] = {}
    for device, index in lies.devices_indices_map(leaf.shape).items():
        assert index is not None
        box = bounded(index, leaf.shape)
        rows = tuple((box[axis].start, box[axis].stop) for axis in outer)
        boxes.setdefault(process_of(device), set()).add(rows)
    whole = math.prod(leaf.shape[axis] for axis in outer)
    return max(
        sum(math.prod(stop - start for start, stop in rows) for rows in held) / whole
        for held in boxes.values()
    )


def way(final: tuple[str | None, ...], rows: int, mesh: Mesh) -> list[PartitionSpec]:
    """Specs from one that splits the dimension ``rows`` over all axes of a mesh to the final one.

    Every step is one collective of the compiler's: an all-gather over the axes that split nothing
    in the end, then an all-to-all for each axis that splits another dimension.
    """
    here = final[rows]
    moving = [axis for axis in final if axis is not None and axis != here]
    staying = [] if here is None else [here]
    idle = [axis for axis in mesh.axis_names if axis not in (*staying, *moving)]
    split: list[Any] = [None] * len(final)
    specs = []
    for over in ([*staying, *moving, *idle], *(staying + moving[:n] for n in _down(len(moving)))):
        for axis in moving:
            if axis not in over:
                split[final.index(axis)] = axis
        split[rows] = tuple(over) if len(over) > 1 else over[0] if over else None
        specs.append(PartitionSpec(*split))
    return specs


def _down(count: int) -> range:
    return range(count, -1, -1)


def move(array: jax.Array, specs: list[PartitionSpec]) -> jax.Array:
    """An array, brought over the specs of :func:`way` to the last of them.

    All processes of its mesh call it, in the same order.
    """
    sharding = array.sharding
    assert isinstance(sharding, NamedSharding)
    return _mover(sharding.mesh, tuple(specs[1:]))(array)


@functools.lru_cache
def _mover(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Callable[[jax.Array], jax.Array]:
    def moved(array):
        for spec in specs:
            array = jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))
        return array

    return jax.jit(moved, out_shardings=NamedSharding(mesh, specs[-1]))
