"""VeRA: shared random matrices, trained vectors, against the formula written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.errors import InputError
from tests import oracle
from tests.random_adapters import (
    abstract_init,
    adapted,
    assert_same_trees,
    backbone_of,
    compiled_logits,
    run,
)
from tests.test_transformer import random_batch

EVERY_PROJECTION = ("attention/.*", "mlp/w.*")
METHODS = {
    "all": pj.vera(5, targets=EVERY_PROJECTION),
    "layers": pj.vera(5, layers=(1,)),
}
over_methods = pytest.mark.parametrize("name", METHODS)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        # query and value of 72 attentions: rank + out.
        (pj.vera(256), 144 * (256 + 2048)),
        (pj.vera(64, targets="mlp/w.*", layers=(3,)), 2 * (3 * 64 + 2 * 5120 + 2048)),
    ],
)
def test_counts(method, wanted):
    backbone = pj.abstract_backbone(pj.backbone_config("t0_3b"), jnp.bfloat16)
    assert pj.count(abstract_init(method, backbone)) == wanted


def test_the_pair_is_as_large_as_the_widest_kernel_and_drawn_once():
    backbone = backbone_of()
    stored = METHODS["all"].init(jax.random.key(0), backbone)
    # d_model 24, d_ff 40, heads 18 wide.
    a, b = (np.asarray(stored["fixed"][f"vera_{x}"]) for x in "ab")
    assert a.shape == (40, 5)
    assert b.shape == (5, 40)
    for matrix in (a, b):
        bound = (6 / matrix.shape[0]) ** 0.5
        assert 0.95 * bound < np.abs(matrix).max() <= bound
    assert_same_trees(METHODS["all"].init(jax.random.key(0), backbone), stored)
    trained = tree.flatten(tree.split_fixed(stored)[0])
    assert all((x == 0.1).all() for path, x in trained.items() if path.endswith("lambda_d"))
    assert all((x == 0).all() for path, x in trained.items() if path.endswith("lambda_b"))


@over_methods
def test_folded_is_the_formula(name):
    backbone = backbone_of()
    method, stored = adapted(backbone, METHODS[name], noise=0.5)
    flat = {path: np.asarray(x, np.float64) for path, x in tree.flatten(stored).items()}
    folded = method.fold(backbone.params, stored)
    for path, kernel in tree.flatten(folded).items():
        module = path.removesuffix("/kernel")
        own = np.asarray(tree.get(backbone.params, path), np.float64)
        wanted = own.copy()
        if f"{module}/vera_lambda_d" in flat:
            d, b = (flat[f"{module}/vera_lambda_{x}"][:, None] for x in "db")
            low = (flat["fixed/vera_a"][: own.shape[1]] * d) @ flat["fixed/vera_b"]
            wanted[method.spec["layers"] or slice(None)] += low[..., : own.shape[2]] * b
            assert np.abs(wanted - own).max() > 0.01
        oracle.assert_close(kernel, wanted, 1e-6, path)


@pytest.mark.slow
def test_dropout_acts_while_training_alone():
    backbone = backbone_of()
    method, stored = adapted(backbone, pj.vera(5, dropout=0.5), noise=0.5)
    _, same = adapted(backbone, pj.vera(5), noise=0.5)
    assert_same_trees(stored, same)
    dropping, plain = (pj.merge(backbone.params, m.bind(stored)) for m in (method, pj.vera(5)))
    np.testing.assert_array_equal(run(backbone, dropping), run(backbone, plain))
    logits, batch = compiled_logits(backbone.config), random_batch()
    key = jax.random.key(0)
    assert np.abs(logits(dropping, batch, key) - logits(plain, batch, key)).max() > 1e-3


def test_the_pair_is_saved_with_the_adapter(tmp_path):
    backbone, method = backbone_of(), METHODS["layers"]
    stored = method.init(jax.random.key(0), backbone)
    pj.save_adapter(tmp_path / "a.safetensors", stored, method, backbone)
    again, loaded = pj.load_adapter(tmp_path / "a.safetensors", backbone)
    assert loaded.spec == method.spec
    assert_same_trees(again, stored)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pj.vera(0), "rank 0 must be a whole number"),
        (lambda: pj.vera(dropout=1.0), "dropout 1.0 must be"),
        (lambda: pj.vera(d_initial=0.0), "d_initial 0 would keep the update"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
