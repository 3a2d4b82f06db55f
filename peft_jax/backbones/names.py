"""Declarative name tables: our stacked paths against the per-layer tensors of another format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from peft_jax.tensor_files import Index


class Rule(NamedTuple):
    """One row of a family's table, read in both directions.

    Attributes:
      ours: path in our tree; stacked over layers [L, ...] if ``theirs`` names a layer.
      theirs: the other format's name, with ``{layer}`` where it counts layers.
      transpose: whether the other format keeps the matrix as [out, in].
      part, parts: where the other format fuses several of our leaves along the last axis (of the
        tensor as it is, after the transpose), which of how many equal parts this one is.
      row: whether the other format keeps the vector as a matrix of one row.
    """

    ours: str
    theirs: str
    transpose: bool = False
    part: int = 0
    parts: int = 1
    row: bool = False

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.theirs

    def names(self, depth: int) -> Iterator[tuple[int | None, str]]:
        """(layer, name) of every tensor of the row; the layer is None where it is not stacked."""
        if self.stacked:
            yield from ((i, self.theirs.format(layer=i)) for i in range(depth))
        else:
            yield None, self.theirs

    def their_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The other format's shape of one tensor, for our shape of one layer."""
        shape = (*ours[:-1], ours[-1] * self.parts)
        shape = shape[::-1] if self.transpose else shape
        return (1, *shape) if self.row else shape

    def our_shape(self, theirs: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of :meth:`their_shape`."""
        shape = theirs[1:] if self.row else theirs
        shape = shape[::-1] if self.transpose else shape
        return (*shape[:-1], shape[-1] // self.parts)

    def their_box(self, ours: Index, shape: tuple[int, ...]) -> Index:
        """Where a box of one layer of our leaf lies in the other format's tensor.

        Args:
          ours: with numbers for its bounds.
          shape: of one layer of our leaf.
        """
        if self.parts > 1:
            start = self.part * shape[-1]
            ours = (*ours[:-1], slice(start + ours[-1].start, start + ours[-1].stop))
        box = ours[::-1] if self.transpose else ours
        return (slice(0, 1), *box) if self.row else box

    def our_array(self, theirs: np.ndarray) -> np.ndarray:
        """A box of the other format's tensor, turned as our leaf has it (no copy)."""
        array = theirs[0] if self.row else theirs
        return array.T if self.transpose else array
