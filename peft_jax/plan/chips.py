"""TPU chips: what is published of them, and what the compiler lets a program use.

Peaks, memory and bandwidths are those of Google Cloud's pages on each TPU version; the rate of one
link is that of Austin et al. 2025, "How to Scale Your Model", chapter 2. ``usable`` is what the
compiler itself names as available when a program does not fit.
"""

from __future__ import annotations

from typing import NamedTuple

from peft_jax import tree
from peft_jax.errors import InputError


class Chip(NamedTuple):
    """One chip.

    Attributes:
      name: as in a topology's name.
      flops: peak of bfloat16 matrix products, FLOP/s.
      memory: HBM, bytes.
      usable: bytes of it that a program may use.
      bandwidth: of the HBM, bytes/s.
      link: bytes/s of one link in one direction.
      dimensions: of the torus that the links make.
      wraps: a dimension is a ring, and not a line, where its length is a multiple of this.
      clock: cycles/s, which the peak and the number of matrix units give.
      cores: TensorCores; Cloud names v2 to v5p slices by them.
    """

    name: str
    flops: float
    memory: float
    usable: float
    bandwidth: float
    link: float
    dimensions: int
    wraps: int
    clock: float
    cores: int


_GIB = 2**30

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * _GIB, 30.75 * _GIB, 1228e9, 45e9, 3, 4, 1.05e9, 2),
        Chip("v5e", 197e12, 16 * _GIB, 15.75 * _GIB, 819e9, 45e9, 2, 16, 1.5e9, 1),
        Chip("v5p", 459e12, 96 * _GIB, 95.74 * _GIB, 2765e9, 90e9, 3, 4, 1.75e9, 2),
        Chip("v6e", 918e12, 32 * _GIB, 31.25 * _GIB, 1640e9, 90e9, 2, 16, 1.75e9, 1),
    )
}

HOP = 1e-6
"""Seconds that a message takes over one link, however short (the same book, chapter 3)."""


def find_chip(name: str) -> Chip:
    """The chip of a name such as "v5e".

    Raises:
      InputError: there is none.
    """
    name = {"v5litepod": "v5e", "v5lite": "v5e"}.get(name, name)
    if name not in CHIPS:
        raise InputError(f"no chip is named {name!r}; {tree.nearest(name, CHIPS)}")
    return CHIPS[name]
