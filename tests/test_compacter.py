"""Compacter's Kronecker products and counts. Places and torch's modules are in test_adapters.py."""

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from tests.random_adapters import abstract_init, adapted, backbone_of
from tests.test_adapters import T0_3B

PLACE = "encoder/layers/mlp_adapter/inner/gelu_tanh"


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 3), (4, 1)])
def test_projections_are_sums_of_kronecker_products(n, rank, share):
    backbone = backbone_of()
    given = pj.compacter_plus_plus(6, n, rank, share_rules=share, train_norms=False)
    method, stored = adapted(backbone, given)
    bound = tree.get(method.bind(stored), PLACE)
    own = jax.tree.map(np.asarray, tree.get(stored, PLACE))
    for projection in ("down", "up"):
        assert bound[projection].shape == ((3, 24, 4) if projection == "down" else (3, 4, 24))
        for layer in range(3):
            rules = stored["rules"] if share else own[f"{projection}_rules"][layer]
            left, right = (own[f"{projection}_{side}"][layer] for side in ("left", "right"))
            assert left.shape[2] == right.shape[1] == rank
            wanted = sum(np.kron(rules[i], left[i] @ right[i]) for i in range(n))
            np.testing.assert_allclose(bound[projection][layer], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "count", "percent"),
    [
        (pj.compacter(), 161_728, "0.073"),
        (pj.compacter_plus_plus(), 104_704, "0.047"),
    ],
)
def test_counts_on_t5_base_are_the_papers_shares(method, count, percent):
    """Karimi Mahabadi et al. 2021, table 1: 0.073 % and 0.047 % of T5-base."""
    backbone = pj.abstract_backbone(pj.backbone_config("t5_base"))
    assert pj.count(abstract_init(method, backbone)) == count
    assert f"{100 * count / tree.count(backbone.params):.3f}" == percent


@pytest.mark.parametrize(
    ("factory", "count"),
    [(pj.compacter, 870_400), (pj.compacter_plus_plus, 560_128)],
)
def test_counts_on_t0_3b_are_those_of_tfews_code(factory, count):
    """Its HyperComplexAdapter has 6,464 parameters at d_model 2048, 96 or 48 times, and norms."""
    tfews = factory(activation="relu", share_rules=False, rule_std=0.02)
    assert pj.count(abstract_init(tfews, T0_3B)) == count
    assert count == (count - 249_856) // 6_464 * 6_464 + 249_856


def test_rules_start_with_the_spread_that_they_are_told():
    stored = pj.compacter(1, 12, rule_std=0.5).init(jax.random.key(0), backbone_of())
    assert stored["rules"].shape == (12, 12, 12)
    assert np.std(stored["rules"]) == pytest.approx(0.5, rel=0.05)
    factors = tree.get(stored, f"{PLACE}/down_left")
    assert factors.shape == (3, 12, 2, 1)
    assert 0.9 * 2 < np.abs(factors).max() <= 2  # sqrt(12 / (2 + 1))
