"""Meshes on the torus of a TPU slice: blocks with the most links for what exchanges most."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from peft_jax import torus


class Chip(NamedTuple):
    coords: tuple[int, ...]


def slice_of(*shape, low=0):
    return [Chip(tuple(i + low for i in place)) for place in np.ndindex(*shape)]


def spans(group):
    """How far a group reaches along each dimension."""
    places = np.array([chip.coords for chip in group.ravel()])
    return tuple((places.max(0) - places.min(0) + 1).tolist())


@pytest.mark.parametrize(
    ("shape", "sizes", "last"),
    [
        ((16, 16, 1), (64, 1, 4), (2, 2, 1)),
        ((4, 4, 1), (4, 1, 4), (2, 2, 1)),
        ((4, 4, 4), (8, 1, 8), (2, 2, 2)),
        ((2, 4, 4), (16, 1, 2), (1, 1, 2)),
        ((16, 16, 1), (256, 1, 1), (1, 1, 1)),
    ],
)
def test_the_last_axis_takes_blocks_with_many_links(shape, sizes, last):
    devices = slice_of(*shape)
    mesh = torus.arrange(devices, sizes)
    assert mesh.shape == sizes
    assert {chip.coords for chip in mesh.ravel()} == {chip.coords for chip in devices}
    reached = {tuple(sorted(spans(group))) for group in mesh.reshape(-1, sizes[-1])}
    assert reached == {tuple(sorted(last))}


def test_the_axis_before_the_last_takes_blocks_of_what_is_left():
    mesh = torus.arrange(slice_of(8, 8, 1), (4, 4, 4))
    assert {spans(group) for group in mesh.reshape(-1, 4)} == {(2, 2, 1)}
    # Each fourth chip in two dimensions: a square of squares.
    assert {spans(mesh[i, :, k]) for i in range(4) for k in range(4)} == {(3, 3, 1)}
    assert {spans(mesh[i]) for i in range(4)} == {(4, 4, 1)}


def test_a_part_of_a_slice_is_arranged_where_it_is_a_block():
    mesh = torus.arrange(slice_of(2, 2, 1, low=3), (2, 1, 2))
    assert mesh.shape == (2, 1, 2)


@pytest.mark.parametrize(
    "devices",
    [
        [Chip((0, 0, 0)), Chip((0, 0, 0))],  # two cores of a chip, or two slices
        [Chip((0, 0, 0)), Chip((1, 1, 0))],  # no block
        [Chip(()), Chip(())],
        [object(), object()],
        slice_of(3, 1, 1),  # of another size
    ],
)
def test_what_is_no_block_of_a_torus_is_left_to_jax(devices):
    assert torus.arrange(devices, (1, 1, 2)) is None


def test_an_axis_that_fits_no_block_is_left_to_jax():
    assert torus.arrange(slice_of(2, 3, 1), (1, 3, 2)) is not None
    assert torus.arrange(slice_of(4, 4, 1), (16, 1, 1)) is not None
    assert torus.arrange(slice_of(6, 1, 1), (1, 4, 1)) is None
