"""Where arrays lie on a mesh: the table, the choice of a mesh, and that it changes no result."""

import dataclasses

import pytest

import peft_jax as pj
from peft_jax import sharding
from peft_jax.backbones.families import CONFIGS

GIB = 1 << 30
T0_11B = dataclasses.replace(CONFIGS["t0_11b"], activation_dtype="bfloat16")


# ------------------------------------------------------------------------------ choosing a mesh
@pytest.mark.parametrize(
    ("memory", "devices", "batch", "wanted"),
    [
        # It fits: only the batch is split.
        (95 * GIB, 128, 256, (128, 1, 1)),
        # On a CPU, whose memory all share, as well.
        (None, 8, 32, (8, 1, 1)),
        (None, 8, 6, (6, 1, 1)),
        # Few rows: a layer's activations are smaller than its weights.
        (16 * GIB, 16, 8, (4, 1, 4)),
        # Many: the weights are.
        (16 * GIB, 16, 2048, (4, 4, 1)),
        # It fits nowhere: split as far as can be.
        (1 * GIB, 4, 4, (1, 1, 4)),
        (16 * GIB, 1, 8, (1, 1, 1)),
    ],
)
def test_a_mesh_is_chosen_for_the_hardware(memory, devices, batch, wanted):
    assert sharding.choose_axes(22 * GIB, memory, devices, T0_11B, batch) == wanted


def test_what_is_given_of_a_mesh_is_kept():
    def choose(**given):
        return sharding.choose_axes(GIB, 16 * GIB, 8, T0_11B, 8, **given)

    assert choose() == (8, 1, 1)
    assert choose(model=4) == (2, 1, 4)
    assert choose(fsdp=2, model=2) == (2, 2, 2)
    assert choose(data=1, model=1) == (1, 8, 1)
    with pytest.raises(pj.InputError, match=r"8 devices has mesh.data 3.*a batch of 8"):
        choose(data=3)
    with pytest.raises(pj.InputError, match="no mesh of 8 devices"):
        choose(model=16)


@pytest.mark.parametrize("memory", [None, 4 * GIB])
@pytest.mark.parametrize("batch", [1, 3, 8, 24])
def test_every_choice_is_a_mesh_that_can_be_made(memory, batch):
    axes = sharding.choose_axes(4 * GIB, memory, 8, CONFIGS["t0_3b"], batch)
    mesh = sharding.make_mesh(batch, **axes._asdict())
    assert tuple(mesh.shape.values()) == axes
