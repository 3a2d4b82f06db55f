"""Rank-one scaling against T-Few's formula written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.errors import InputError
from tests import oracle
from tests.random_adapters import abstract_init, backbone_of, run


def random_adapter(method, backbone):
    rng = np.random.default_rng(0)
    return tree.map_with_path(
        lambda _, x: jnp.asarray(1 + 0.3 * rng.standard_normal(x.shape), jnp.float32),
        abstract_init(method, backbone),
    )


@pytest.mark.parametrize(
    ("method", "backbone", "wanted"),
    [
        # 72 attentions of four [2048, 2048], 48 feed-forwards of three [2048, 5120].
        (pj.rank_one_scaling(), "t0_3b", 72 * 4 * 4096 + 48 * 3 * 7168),
        (pj.rank_one_scaling("key", layers=(0,)), "t0_3b", 3 * 4096),
        # inner 384 is not d_model 512; a v1.0 has two matrices in a feed-forward.
        (pj.rank_one_scaling(), "t5_v1_1_small", 24 * 4 * 896 + 16 * 3 * 1536),
    ],
)
def test_counts(method, backbone, wanted):
    backbone = pj.abstract_backbone(pj.backbone_config(backbone), jnp.bfloat16)
    assert pj.count(abstract_init(method, backbone)) == wanted


def test_starts_at_ones():
    stored = pj.rank_one_scaling().init(jax.random.key(0), backbone_of())
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(stored))


@pytest.mark.parametrize("version", ["v1_1", "bert"])
@pytest.mark.parametrize("layers", [None, (1,)])
def test_kernels_are_scaled_by_their_rows_and_columns_and_biases_by_columns(version, layers):
    backbone, method = backbone_of(version), pj.rank_one_scaling(layers=layers)
    stored = random_adapter(method, backbone)
    flat = {path: np.asarray(x, np.float64) for path, x in tree.flatten(stored).items()}
    folded = method.fold(backbone.params, stored)
    at = list(layers) if layers else slice(None)
    for path, leaf in tree.flatten(folded).items():
        module, _, kind = path.rpartition("/")
        wanted = np.asarray(tree.get(backbone.params, path), np.float64).copy()
        if f"{module}/ia3" in flat:
            a, b = flat[f"{module}/input_scale"], flat[f"{module}/ia3"]
            wanted[at] *= a[:, :, None] * b[:, None] if kind == "kernel" else b
        oracle.assert_close(leaf, wanted, 1e-6, path)


def test_ia3_is_a_part_of_it():
    """Ones but at the outputs of key, value and wi_1: what T-Few's code trains as (IA)³."""
    backbone = backbone_of()
    vectors = random_adapter(pj.ia3(), backbone)
    method = pj.rank_one_scaling()
    stored = tree.flatten(method.init(jax.random.key(0), backbone))
    for path, vector in tree.flatten(vectors).items():
        stored[path.replace("mlp/ia3", "mlp/wi_1/ia3")] = vector
    one = run(backbone, pj.merge(backbone.params, pj.ia3().bind(vectors)))
    other = run(backbone, pj.merge(backbone.params, method.bind(tree.unflatten(stored))))
    oracle.assert_close(other, one, 1e-5)


def test_a_target_that_matches_nothing_is_named():
    with pytest.raises(InputError, match=r"target 'quarry' matches nothing; nearest: .*query"):
        abstract_init(pj.rank_one_scaling("quarry"), backbone_of())
