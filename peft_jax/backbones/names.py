"""Declarative name tables: our stacked paths against the per-layer tensors of another format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


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
