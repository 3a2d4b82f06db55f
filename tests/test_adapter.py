"""The adapter file: exact round trips, and refusals that say why."""

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from tests.families import quickly

CONFIG = pj.Config("t5", 53, 16, 24, 2, 8, 2, 2)
METHODS = {
    "ia3": lambda: pj.ia3(),
    "ia3, one layer": lambda: pj.ia3(layers=[1]),
    "lora": lambda: pj.lora(2, alpha=3.0, dropout=0.1, rslora=True, targets=("mlp/wo", "query")),
    "prompt": lambda: pj.prompt_tuning(3, where="both"),
    "full": lambda: pj.full(),
    "composed": lambda: pj.compose(pj.ia3(), pj.lora(2), pj.lora(3), pj.prompt_tuning(3)),
}


@pytest.fixture(scope="module")
def backbone():
    return pj.init_backbone(CONFIG, jax.random.key(0))


def perturbed(adapter):
    keys = iter(jax.random.split(jax.random.key(5), 100))
    return jax.tree.map(lambda x: x + jax.random.normal(next(keys), x.shape), adapter)


@pytest.mark.parametrize("name", quickly(METHODS, ("ia3, one layer", "lora", "composed")))
def test_round_trip_is_exact(tmp_path, backbone, name):
    method = METHODS[name]()
    adapter = perturbed(method.init(jax.random.key(1), backbone))
    pj.save_adapter(tmp_path, adapter, method, backbone)
    loaded, same = pj.load_adapter(tmp_path, backbone)
    assert same.spec == method.spec
    assert tree.flatten(loaded).keys() == tree.flatten(adapter).keys()
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)
    jax.tree.map(np.testing.assert_array_equal, same.bind(loaded), method.bind(adapter))


def test_precision_of_the_backbone_does_not_matter(tmp_path, backbone):
    method = pj.ia3()
    pj.save_adapter(tmp_path, method.init(jax.random.key(1), backbone), method, backbone)
    low = pj.Backbone(tree.cast(backbone.params, "bfloat16"), CONFIG)
    pj.load_adapter(tmp_path, low.replace(dropout=0.0, activation_dtype="bfloat16"))


def test_another_backbone_is_refused(tmp_path, backbone):
    method = pj.ia3()
    pj.save_adapter(tmp_path, method.init(jax.random.key(1), backbone), method, backbone)
    wider = pj.init_backbone(pj.Config("t5", 53, 16, 32, 2, 8, 2, 2), jax.random.key(0))
    with pytest.raises(pj.InputError, match="d_ff"):
        pj.load_adapter(tmp_path, wider)
    other = pj.init_backbone(CONFIG, jax.random.key(1), name="other")
    with pytest.raises(pj.InputError, match="other weights"):
        pj.load_adapter(tmp_path, other)
    pj.load_adapter(tmp_path, other, any_weights=True)


def test_missing_and_damaged_files(tmp_path, backbone):
    with pytest.raises(pj.InputError, match="no adapter at"):
        pj.load_adapter(tmp_path, backbone)
    method = pj.ia3()
    path = pj.save_adapter(tmp_path, method.init(jax.random.key(1), backbone), method, backbone)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(pj.InputError, match="not a readable"):
        pj.load_adapter(tmp_path, backbone)
    assert not list(tmp_path.glob("*.partial"))


def test_a_foreign_safetensors_file_is_refused(tmp_path, backbone):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3)}, tmp_path / "adapter.safetensors")
    with pytest.raises(pj.InputError, match="not an adapter"):
        pj.load_adapter(tmp_path, backbone)


def test_a_leaf_that_the_method_lacks_is_refused(tmp_path, backbone):
    method = pj.ia3()
    adapter = method.init(jax.random.key(1), backbone)
    del adapter["encoder"]["layers"]["mlp"]
    pj.save_adapter(tmp_path, adapter, method, backbone)
    with pytest.raises(pj.InputError, match="encoder/layers/mlp/ia3"):
        pj.load_adapter(tmp_path, backbone)
