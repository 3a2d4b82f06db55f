"""Bottleneck adapters: formula, place, count, initial function. The laws are in test_methods.py."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import transformer, tree
from peft_jax.errors import InputError
from peft_jax.methods import adapters
from tests import oracle
from tests.families import quickly
from tests.random_adapters import abstract_init, adapted, assert_same_trees, backbone_of, run

T0_3B = pj.abstract_backbone(pj.backbone_config("t0_3b"))
FACTORIES = {
    "houlsby_adapter": adapters.houlsby_adapter,
    "pfeiffer_adapter": adapters.pfeiffer_adapter,
    "parallel_adapter": adapters.parallel_adapter,
    "low_rank_adapter": adapters.low_rank_adapter,
    "tfew_adapter": adapters.tfew_adapter,
    "compacter": pj.compacter,
    "compacter_plus_plus": pj.compacter_plus_plus,
}
SIZED = {
    "houlsby_adapter": {"bottleneck": 4},
    "pfeiffer_adapter": {"bottleneck": 4},
    "parallel_adapter": {"bottleneck": 4},
    "low_rank_adapter": {"rank": 2, "reduction_factor": 6},
    "tfew_adapter": {"reduction_factor": 6},
    "compacter": {"reduction_factor": 6, "divisions": 2},
    "compacter_plus_plus": {"reduction_factor": 6, "divisions": 2},
}
# Golden file of make_adapters.py -> the backbone, and the method with what the case sets.
EVERY_BRANCH = ("attention", "mlp")
GOLDEN = {
    "houlsby_t5": ("v1_1", adapters.houlsby_adapter(4)),
    "houlsby_bert": ("bert", adapters.houlsby_adapter(4)),
    "pfeiffer_t5": ("v1_0", adapters.pfeiffer_adapter(4)),
    "pfeiffer_bert": ("bert", adapters.pfeiffer_adapter(4, "silu", EVERY_BRANCH)),
    "parallel_t5": ("v1_0", adapters.parallel_adapter(4, 3.0, "tanh", EVERY_BRANCH)),
    "parallel_bert": ("bert", adapters.parallel_adapter(4, 0.5, "gelu")),
    "low_rank_adapter": ("v1_0", adapters.low_rank_adapter(reduction_factor=2)),
    "tfew_adapter": ("v1_1", adapters.tfew_adapter(reduction_factor=2)),
    "compacter": ("v1_1", pj.compacter(2, share_rules=False)),
    "compacter_plus_plus": ("v1_0", pj.compacter_plus_plus(2, divisions=2, rank=2)),
}


def without_norms(method):
    """The same method, but for the norms, which a golden file leaves as they are."""
    spec = method.spec | {"train_norms": False}
    name = spec.pop("name")
    return FACTORIES[name](**spec)


def golden_tree(method, arrays, prefix):
    """The stored tree that the arrays under a prefix are."""
    given = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
    placement = {"pfeiffer_adapter": "outer", "parallel_adapter": "parallel"}
    inside = f"{placement.get(method.spec['name'], 'inner')}/{method.spec['activation']}"
    stored = {}
    for path, array in given.items():
        branch, _, leaf = path.rpartition("/")
        stored[f"{branch}_adapter/{inside}/{leaf}" if branch else leaf] = array
    return tree.unflatten(stored)


# ---------------------------------------------------------------------------- against torch
# Together they have every placement, both kinds of families, and every way to make projections.
QUICK = ("houlsby_t5", "pfeiffer_bert", "parallel_t5", "compacter")


@pytest.mark.parametrize("case", quickly(GOLDEN, QUICK))
def test_result_and_gradients_equal_the_modules_of_torch(case):
    variant, method = GOLDEN[case]
    arrays = dict(np.load(oracle.GOLDEN / f"adapters_{case}.npz"))
    method = without_norms(method)
    backbone, batch = oracle.model("bert" if variant == "bert" else "t5", variant)
    stored = golden_tree(method, arrays, "adapter/")
    shapes = functools.partial(jax.tree.map, np.shape)
    assert shapes(stored) == shapes(abstract_init(method, backbone))

    def loss(stored):
        params = pj.merge(backbone.params, method.bind(stored))
        if variant == "bert":
            result = transformer.encode(backbone.config, params, batch).hidden
        else:
            result = backbone.logits(params, batch)
        return (result * arrays["cotangent"]).sum(), result

    gradients, result = jax.jit(jax.grad(loss, has_aux=True))(stored)
    oracle.assert_close(result, arrays["result"])
    wanted = tree.flatten(golden_tree(method, arrays, "grad/"))
    for path, gradient in tree.flatten(gradients).items():
        oracle.assert_close(gradient, wanted.pop(path), what=path)
    assert not wanted


@pytest.mark.oracle
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_files_are_what_torch_computes(case):
    make = oracle.live("make_adapters")
    checkout = os.environ.get("TFEW_CHECKOUT")
    if case in make.TFEW_CASES and not checkout:
        pytest.skip("TFEW_CHECKOUT names no clone of r-three/t-few")
    fresh = make.oracle(case, checkout and Path(checkout))
    golden = dict(np.load(oracle.GOLDEN / f"adapters_{case}.npz"))
    assert fresh.keys() == golden.keys()
    for name, array in fresh.items():
        oracle.assert_close(golden[name], array, 1e-6, name)


# ---------------------------------------------------------------------------- counts
BERT_LARGE_LAYERS = 24


@pytest.mark.parametrize(
    ("bottleneck", "count"), [(8, 835_968), (64, 6_343_680), (256, 25_227_264)]
)
def test_houlsby_counts_on_bert_large(bottleneck, count):
    """Houlsby et al. 2019: 2 m d + d + m for each of two adapters in a layer, and the norms."""
    backbone = pj.abstract_backbone(pj.backbone_config("bert_large_uncased"))
    norms = BERT_LARGE_LAYERS * 2 * 2 * 1024 + 2 * 1024
    method = adapters.houlsby_adapter(bottleneck)
    assert pj.count(abstract_init(method, backbone)) == count + norms
    assert pj.count(abstract_init(without_norms(method), backbone)) == count


def test_tfew_counts_on_t0_3b():
    """Liu et al. 2022 print 12.9M; r-three/t-few's module has 264,256 parameters of it 48 times."""
    assert pj.count(abstract_init(adapters.tfew_adapter(), T0_3B)) == 12_934_144
    assert 12_934_144 == 48 * 264_256 + 249_856


@pytest.mark.parametrize(
    ("method", "each"),
    [
        (adapters.pfeiffer_adapter(16), 2 * 24 * 16 + 24 + 16),
        (adapters.parallel_adapter(16), 2 * 24 * 16 + 24 + 16),
        (adapters.low_rank_adapter(3, 4, targets="mlp"), 2 * 3 * (24 + 6) + 24 + 6),
    ],
)
def test_counts_are_those_of_the_docstrings(method, each):
    backbone = backbone_of()  # 3 + 2 layers, d_model 24
    assert pj.count(abstract_init(without_norms(method), backbone)) == 5 * each


# ---------------------------------------------------------------------------- the start
@pytest.mark.parametrize(("name", "distance"), [
    ("parallel_adapter", 0.0),
    pytest.param("houlsby_adapter", 1e-4, marks=pytest.mark.slow),
    pytest.param("compacter", 1e-5, marks=pytest.mark.slow),
    pytest.param("tfew_adapter", 1e-1, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_function_at_the_start_is_near_the_backbones(name, distance):
    backbone = backbone_of()
    method = FACTORIES[name](**SIZED[name])
    stored = method.init(jax.random.key(0), backbone)
    before = run(backbone, backbone.params)
    after = run(backbone, pj.merge(backbone.params, method.bind(stored)))
    difference = np.abs(after - before).max() / np.abs(before).max()
    assert difference <= distance
    assert (difference > distance / 1e3) == (distance > 0)


def test_the_initial_weights_have_the_spread_that_they_are_told():
    backbone = backbone_of()
    for method, wanted in [
        # Cut at two standard deviations: 0.88 of the number, and nothing beyond twice of it.
        (adapters.houlsby_adapter(64, init_std=0.01), 0.0088),
        (adapters.pfeiffer_adapter(64, init_std=0.03), 0.03),
        (adapters.parallel_adapter(64), (24 * 3) ** -0.5),
    ]:
        for path, leaf in tree.flatten(method.init(jax.random.key(1), backbone)).items():
            if path.endswith("/down"):
                assert np.std(leaf) == pytest.approx(wanted, rel=0.05)
                limit = {"houlsby_adapter": 0.02, "parallel_adapter": 24**-0.5}
                assert np.abs(leaf).max() <= limit.get(method.spec["name"], np.inf)
            elif path.endswith("_bias"):
                assert not np.any(leaf)


# ---------------------------------------------------------------------------- arguments
@pytest.mark.parametrize("name", FACTORIES)
def test_a_spec_makes_the_same_method_again(name):
    method = FACTORIES[name](**SIZED[name], layers=[1])
    given = dict(method.spec)
    again = FACTORIES[given.pop("name")](**given)
    assert again.spec == method.spec
    shapes = [abstract_init(m, backbone_of()) for m in (method, again)]
    assert shapes[0] == shapes[1]


def test_layers_choose_which_get_adapters():
    backbone = backbone_of()
    method = adapters.houlsby_adapter(4, targets="mlp", layers=[1], train_norms=False)
    _, stored = adapted(backbone, method)
    flat = tree.flatten(stored)
    assert {leaf.shape[0] for leaf in flat.values()} == {1}
    everywhere = adapters.houlsby_adapter(4, targets="mlp", train_norms=False)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_init(everywhere, backbone))
    spread = {p: zeros_at.at[1].set(flat[p][0]) for p, zeros_at in tree.flatten(zeros).items()}
    one = pj.merge(backbone.params, method.bind(stored))
    # The other layers' adapters add up @ 0 + 0: nothing.
    other = pj.merge(backbone.params, everywhere.bind(tree.unflatten(spread)))
    assert_same_trees(one, other)


def test_targets_choose_branches():
    def places(**given):
        made = abstract_init(adapters.houlsby_adapter(4, train_norms=False, **given), backbone_of())
        return {path.partition("_adapter/")[0] for path in tree.flatten(made)}

    assert places() == {
        "encoder/layers/attention",
        "encoder/layers/mlp",
        "decoder/layers/self_attention",
        "decoder/layers/cross_attention",
        "decoder/layers/mlp",
    }
    assert places(targets="cross_attention") == {"decoder/layers/cross_attention"}
    stored = abstract_init(pj.compacter(6, 2, train_norms=False), backbone_of())
    assert "cross_attention_adapter" not in stored["decoder"]["layers"]
    assert "self_attention_adapter" in stored["decoder"]["layers"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adapters.houlsby_adapter(0), "bottleneck 0 must be a whole number"),
        (lambda: adapters.houlsby_adapter(2.5), "bottleneck 2.5 must be a whole number"),
        (lambda: adapters.pfeiffer_adapter(activation="swish"), "'swish' is unknown; one of relu,"),
        (lambda: adapters.houlsby_adapter(init_std=0.0), "init_std 0.0 must be a number above 0"),
        (lambda: adapters.parallel_adapter(scale=0), "scale 0 must be a number above 0"),
        (lambda: adapters.low_rank_adapter(rank=0), "rank 0 must be"),
        (lambda: adapters.tfew_adapter(layers="0"), "must be a list of layer numbers"),
        (lambda: pj.compacter(divisions=0), "divisions 0 must be"),
        (lambda: pj.compacter(rule_std=-1.0), "rule_std -1.0 must be"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (adapters.tfew_adapter(25), "reduction_factor 25 leaves nothing of .* d_model 24"),
        (adapters.houlsby_adapter(targets="mpl"), "'mpl' matches nothing; nearest: .*mlp"),
        (adapters.houlsby_adapter(layers=[5]), r"layers \[5\] do not fit"),
        (pj.compacter(6, divisions=3), "divisions 3 must divide d_model 24 .* 4 "),
    ],
)
def test_what_does_not_fit_a_backbone_is_named(method, message):
    with pytest.raises(InputError, match=message):
        method.init(jax.random.key(0), backbone_of())


def test_norms_are_trained_beside_and_are_those_of_norm_tuning():
    backbone = backbone_of()
    stored = tree.flatten(adapters.tfew_adapter(6).init(jax.random.key(0), backbone))
    norms = tree.flatten(pj.norm_tuning().init(jax.random.key(0), backbone))
    assert {path for path in stored if "_adapter/" not in path} == norms.keys()
    for path, leaf in norms.items():
        np.testing.assert_array_equal(stored[path], leaf)
