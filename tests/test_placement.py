"""The mesh that a run gets, and the backbone on it."""

import dataclasses

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import placement, sharding
from peft_jax.config import EvaluationConfig, Experiment, MeshConfig, ModelConfig, TrainingConfig
from peft_jax.errors import InputError
from peft_jax.inference import predict_text
from tests.small_run import CONFIG, write_small_backbone

TINY = Experiment(training=TrainingConfig(batch_size=8), evaluation=EvaluationConfig(batch_size=6))


def shape(config=TINY, *, training=True, **fields):
    """The axes of a run's mesh over the tests' 8 devices."""
    config = dataclasses.replace(config, mesh=MeshConfig(**fields))
    return tuple(placement.open_mesh(config, training=training).shape.values())


def with_training(**fields):
    return dataclasses.replace(TINY, training=dataclasses.replace(TINY.training, **fields))


@pytest.mark.parametrize(
    ("config", "fields", "expected"),
    [
        (TINY, {}, (8, 1, 1)),
        (TINY, {"fsdp": 2, "model": 2}, (2, 2, 2)),
        (TINY, {"data": 1, "model": 4}, (1, 1, 4)),
        (with_training(batch_size=12), {}, (6, 1, 1)),
        (with_training(accumulate=4), {}, (2, 1, 1)),
        (with_training(devices=4), {"model": 2}, (2, 1, 2)),
    ],
)
def test_on_a_cpu_only_the_batch_is_split_unless_asked_for(config, fields, expected):
    assert shape(config, **fields) == expected


def test_an_evaluation_uses_all_devices_whatever_its_batch():
    assert shape(training=False) == (8, 1, 1)
    assert shape(training=False, data=3) == (3, 1, 1)
    assert shape(training=False, fsdp=4, model=2) == (1, 4, 2)


def test_weights_are_split_where_a_device_is_too_small(monkeypatch):
    weights = sum(x.nbytes for x in jax.tree.leaves(pj.load_backbone("tiny").params))
    monkeypatch.setattr(sharding, "device_bytes", lambda *_: 100 * weights)
    assert shape() == (8, 1, 1)
    monkeypatch.setattr(sharding, "device_bytes", lambda *_: weights)
    data, fsdp, model = shape()
    assert data * fsdp * model == 8
    assert fsdp * model >= 2
    assert shape(model=4) == (2, 1, 4)
    # Quantised weights fit where plain ones do not.
    monkeypatch.setattr(sharding, "device_bytes", lambda *_: weights)
    small = dataclasses.replace(TINY, model=ModelConfig(quantize="int8"))
    assert np.prod(shape(small)[1:]) < fsdp * model
    # What is trained in full is there three times more, in float32.
    full = dataclasses.replace(TINY, method=("full",))
    assert np.prod(shape(full)[1:]) > fsdp * model


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (TINY, {"model": 3, "data": 3}, "data 3 x fsdp 1 x model 3 is not 8 devices"),
        (TINY, {"fsdp": 0}, "mesh.fsdp is 0"),
        (with_training(batch_size=9), {"fsdp": 2}, "batch of 9 does not divide"),
        (with_training(devices=9), {}, "devices 9: there are 8"),
        (with_training(parallel="pmap"), {"model": 2}, "pmap splits the batch alone"),
    ],
)
def test_meshes_that_cannot_be(config, fields, message):
    with pytest.raises(InputError, match=message):
        shape(config, **fields)


def test_the_backbone_lies_in_parts_and_says_what_it_could_not_split():
    config = dataclasses.replace(TINY, mesh=MeshConfig(fsdp=2, model=4))
    mesh = placement.open_mesh(config)
    backbone = placement.open_backbone(config, mesh)
    whole = pj.load_backbone("tiny").params
    jax.tree.map(np.testing.assert_array_equal, backbone.params, whole)
    kernel = backbone.params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    notes = placement.notes_of_mesh(backbone, mesh)
    assert notes[0] == "8 devices: data 1 x fsdp 2 x model 4"
    assert placement.notes_of_mesh(backbone, sharding.make_mesh(devices=1)) == []


@pytest.mark.slow
def test_a_backbone_that_fits_no_device_answers_all_the_same(tmp_path, monkeypatch):
    folder = write_small_backbone(tmp_path / "backbone")
    backbone = pj.load_backbone(folder)
    method = pj.lora(2)
    adapter = jax.tree.map(lambda x: x + 0.1, method.init(jax.random.key(1), backbone))
    file = pj.save_adapter(tmp_path / "adapter.safetensors", adapter, method, backbone)
    asked = (file, str(folder), "There is snow", ("No", "Yes", "cold weather"))
    plain = predict_text(*asked)
    weights = sum(x.nbytes for x in jax.tree.leaves(backbone.params))
    monkeypatch.setattr(sharding, "device_bytes", lambda *_: weights)
    loaded = placement.load_where_it_fits(str(folder))
    kernel = loaded.params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert kernel.addressable_shards[0].data.size < kernel.size
    assert CONFIG.num_heads == 2  # what "model" divides
    split = predict_text(*asked)
    assert [answer for answer, _ in split] == [answer for answer, _ in plain]
    for (_, ours), (_, theirs) in zip(split, plain, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
