"""Several TPU slices: only "data" crosses the network between them."""

from types import SimpleNamespace

import numpy as np
import pytest

from peft_jax import sharding
from peft_jax.errors import InputError


def chips(slices: int, rows: int, columns: int):
    """Devices of flat slices, in jax's order."""
    return [
        SimpleNamespace(id=100 * s + y * columns + x, slice_index=s, coords=[x, y, 0])
        for s in range(slices)
        for y in range(rows)
        for x in range(columns)
    ]


@pytest.mark.parametrize("shape", [(2, 1, 8), (2, 2, 4), (8, 1, 2), (16, 1, 1), (4, 4, 1)])
def test_every_row_of_the_weights_axes_lies_in_one_slice(shape):
    devices = chips(2, 2, 4)
    mesh = sharding._on_links(devices, shape)
    assert mesh.shape == shape
    assert sorted(d.id for d in mesh.flat) == sorted(d.id for d in devices)
    within = np.vectorize(lambda d: d.slice_index)(mesh).reshape(shape[0], -1)
    assert (within == within[:, :1]).all()
    assert len(set(within[: shape[0] // 2, 0])) == 1  # a half of "data" is a slice


@pytest.mark.parametrize("shape", [(1, 16, 1), (1, 2, 8)])
def test_weights_that_would_be_split_over_slices_are_refused(shape):
    with pytest.raises(InputError, match=r"mesh.data is 1 on 2 slices"):
        sharding._on_links(chips(2, 2, 4), shape)
