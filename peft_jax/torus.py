"""Which chip of a TPU slice takes which place of a mesh.

The chips of a slice are a torus. What a mesh's axis exchanges runs through the links along the
dimensions of the torus that its groups span: a group of four in a square of 2 x 2 has two links a
chip to exchange through, a group of four in a row one. So the axis that exchanges most, the last,
takes blocks with the most links, the one before it blocks of what is left, and so on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def arrange(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray | None:
    """The devices as an array of these sizes, the axis that exchanges most last.

    Args:
      devices: of one slice, with ``coords``.

    Returns None where the devices are no whole block of a torus with one device a chip, or where an
    axis fits in no block of it.
    """
    grid = _grid(devices)
    if grid is None or math.prod(sizes) != grid.size:
        return None
    factors: list[tuple[int, ...]] = []
    free = grid.shape
    for size in reversed(sizes):
        found = [(-_links(block, grid.shape), max(block), block) for block in _blocks(size, free)]
        if not found:
            return None
        block = min(found)[-1]
        factors.insert(0, block)
        free = tuple(n // f for n, f in zip(free, block, strict=True))
    # Along each dimension of the torus the last axis is the innermost.
    dimensions, axes = grid.ndim, len(sizes)
    split = grid.reshape([factors[a][d] for d in range(dimensions) for a in range(axes)])
    order = [d * axes + a for a in range(axes) for d in range(dimensions)]
    return split.transpose(order).reshape(tuple(sizes))


def _grid(devices: Sequence[Any]) -> np.ndarray | None:
    """The devices by their coordinates, or None where one is missing or two share a chip."""
    places = [tuple(getattr(device, "coords", None) or ()) for device in devices]
    if not places or not places[0] or len(set(places)) != len(places):
        return None
    low = np.min(places, axis=0)
    shape = np.max(places, axis=0) - low + 1
    if math.prod(shape.tolist()) != len(places):
        return None
    grid = np.empty(shape, dtype=object)
    for device, place in zip(devices, places, strict=True):
        grid[tuple(np.subtract(place, low))] = device
    return grid


def _blocks(size: int, free: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Ways to make ``size`` of a factor of each dimension."""
    divisors = ([n for n in range(1, length + 1) if not length % n] for length in free)
    return (block for block in itertools.product(*divisors) if math.prod(block) == size)


def _links(block: Sequence[int], torus: Sequence[int]) -> int:
    """Links of a chip inside its block, two along a dimension that is taken whole as a ring.

    Dimensions of three-dimensional slices are rings from four chips on, of flat ones from sixteen.
    """
    solid = sum(n > 1 for n in torus) > 2
    ring = 4 if solid else 16
    return sum(
        2 if length == whole and whole >= ring else 1
        for length, whole in zip(block, torus, strict=True)
        if length > 1
    )
