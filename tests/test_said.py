"""SAID: counts, what moves what, T-Few's own code, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import fastfood, transformer, tree
from peft_jax.errors import InputError
from peft_jax.methods.said import Factor, Moved, said
from tests import oracle
from tests.random_adapters import abstract_init, backbone_of
from tests.test_transformer import random_batch

# A matrix in a stack, vectors in a stack and outside, a matrix outside.
SOME = tuple(
    f"decoder/{path}"
    for path in (
        "layers/cross_attention/query/kernel",
        "layers/mlp_norm/scale",
        "final_norm/scale",
        "relative_bias/embedding",
    )
)


def trained(stored):
    return tree.split_fixed(stored)[0]


@pytest.mark.parametrize(
    ("dimension", "structure_aware", "update", "entries"),
    [
        (500_000, True, "rank_one", 500_000 - 558),
        (20_000, True, "full", 20_000 - 558),
        (20_000, False, "rank_one", 20_000),
    ],
)
def test_counts_of_t0_3b_are_the_dimension_whatever_is_moved(
    dimension, structure_aware, update, entries
):
    backbone = pj.abstract_backbone(pj.backbone_config("t0_3b"), jnp.bfloat16)
    method = said(dimension, structure_aware, update)
    stored = abstract_init(method, backbone)
    assert tree.count(trained(stored)) == dimension
    assert stored["vector"].shape == (entries,)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float32")}
    # As many tensors as transformers' T5ForConditionalGeneration has, each with a factor.
    scales = {path: leaf for path, leaf in tree.flatten(stored).items() if path != "vector"}
    assert tree.count(scales) == 558
    assert all(path.endswith("/fixed/scale") != structure_aware for path in scales)


def random_adapter(method, backbone, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        if "fixed" in path:
            return jnp.ones(shape.shape)
        drawn = rng.standard_normal(shape.shape) if path == "vector" else rng.uniform(0.5, 2)
        return jnp.asarray(drawn * np.ones(shape.shape), jnp.float32)

    return tree.map_with_path(leaf, abstract_init(method, backbone))


@functools.cache
def moved(update, dtype=jnp.float32, structure_aware=True):
    """A backbone, a random adapter of it, and the merged parameters."""
    backbone = backbone_of("v1_1", dtype)
    method = said(60, structure_aware, update, SOME)
    stored = random_adapter(method, backbone)
    merge = jax.jit(lambda stored: pj.merge(backbone.params, method.bind(stored)))
    return backbone, method, stored, merge


@pytest.mark.parametrize("update", ["full", "rank_one"])
def test_the_initial_parameters_are_the_backbones(update):
    backbone, method, _, merge = moved(update)
    merged = tree.flatten(merge(method.init(jax.random.key(0), backbone)))
    for path, own in tree.flatten(backbone.params).items():
        np.testing.assert_array_equal(merged[path], own)
    for path in merged.keys() - tree.flatten(backbone.params).keys():
        assert path.endswith(("lora_a", "lora_b"))
        assert not merged[path].any()


_project = jax.jit(fastfood.project, static_argnums=(1, 3))


def projected(stored, path, unit, size):
    source = fastfood.stream(0, path)
    return np.asarray(_project(stored["vector"], source, jnp.asarray([unit], jnp.uint32), size)[0])


def test_full_adds_each_layers_own_projection_times_its_factor():
    backbone, _, stored, merge = moved("full")
    merged = tree.flatten(merge(stored))
    for path, own in tree.flatten(backbone.params).items():
        changed = np.asarray(merged[path] - own, np.float64)
        if path not in SOME:
            assert not changed.any()
            continue
        scale = tree.get(stored, f"{path}/scale")
        layers = changed if scale.ndim else changed[None]
        for unit, (change, factor) in enumerate(zip(layers, scale.reshape(-1), strict=True)):
            wanted = factor * projected(stored, path, unit, change.size)
            oracle.assert_close(change.ravel(), wanted, 1e-5, path)
            # |P v| is about |v| in every tensor, whatever its size (a small one varies).
            if change.size > 100:
                energy = np.linalg.norm(change) / np.linalg.norm(factor * stored["vector"])
                assert energy == pytest.approx(1, abs=0.35)


def test_rank_one_adds_the_outer_product_of_two_projections():
    backbone, _, stored, merge = moved("rank_one")
    merged = merge(stored)
    path = "decoder/layers/cross_attention/query/kernel"
    query = tree.get(merged, path.rpartition("/")[0])
    np.testing.assert_array_equal(query["kernel"], tree.get(backbone.params, path))
    inputs, outputs = query["kernel"].shape[1:]
    for unit, factor in enumerate(tree.get(stored, f"{path}/scale")):
        change = projected(stored, path, unit, inputs + outputs)
        product = np.asarray(query["lora_a"][unit] @ query["lora_b"][unit], np.float64)
        wanted = factor * np.outer(change[outputs:], change[:outputs])
        oracle.assert_close(product, wanted, 1e-5)
    path = "decoder/relative_bias/embedding"
    own = tree.get(backbone.params, path)
    change = projected(stored, path, 0, sum(own.shape))
    wanted = own + tree.get(stored, f"{path}/scale") * np.outer(
        change[: len(own)], change[len(own) :]
    )
    oracle.assert_close(tree.get(merged, path), wanted, 1e-6)


@pytest.mark.parametrize("update", ["full", "rank_one"])
def test_folded_computes_what_the_merged_does(update):
    backbone, method, stored, merge = moved(update)
    folded = jax.jit(method.fold)(backbone.params, stored)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, backbone.params)
    logits = jax.jit(functools.partial(transformer.logits, backbone.config))
    wanted = logits(merge(stored), random_batch())
    oracle.assert_close(logits(folded, random_batch()), wanted, 2e-5)
    assert np.abs(wanted - logits(backbone.params, random_batch())).max() > 0.1


def test_a_bfloat16_backbone_is_rounded_once():
    backbone, method, stored, merge = moved("full", jnp.bfloat16)
    merged = tree.flatten(merge(stored))
    wide = dataclasses.replace(backbone, params=tree.cast(backbone.params, jnp.float32))
    wanted = tree.flatten(jax.jit(lambda s: pj.merge(wide.params, method.bind(s)))(stored))
    for path, leaf in merged.items():
        assert leaf.dtype == jnp.bfloat16
        # A last bit may differ: two programs add in their own orders.
        oracle.assert_close(leaf.astype(jnp.float32), wanted[path], 2**-8, path)


def test_gradients_are_the_chain_rule_through_full_fine_tunings():
    """With the gradient g of each parameter: dv = sum lambda P' g, d lambda = g P v."""
    backbone, _, stored, merge = moved("full")
    rng = np.random.default_rng(0)
    cotangent = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), backbone.params
    )
    gradients = jax.jit(lambda s, c: jax.vjp(merge, s)[1](c)[0])(stored, cotangent)
    entries = len(stored["vector"])
    wanted = np.zeros(entries)
    for place, scale in tree.flatten(stored).items():
        if place == "vector":
            continue
        path = place.removesuffix("/scale")
        g = np.asarray(tree.get(cotangent, path), np.float64)
        g = g.reshape(scale.size, -1)
        matrix = jax.jit(
            jax.vmap(
                lambda v, path=path, n=scale.size, size=g.shape[1]: fastfood.project(
                    v, fastfood.stream(0, path), jnp.arange(n, dtype=jnp.uint32), size
                )
            )
        )(np.eye(entries, dtype=np.float32))
        matrix = np.asarray(matrix, np.float64)  # [d, L, size]
        wanted += np.einsum("l,dls,ls->d", np.asarray(scale).reshape(-1), matrix, g)
        of_scale = np.einsum("d,dls,ls->l", np.asarray(stored["vector"]), matrix, g)
        oracle.assert_close(tree.get(gradients, place).reshape(-1), of_scale, 1e-4, place)
    oracle.assert_close(gradients["vector"], wanted, 1e-5)


def test_rank_one_is_set_in_motion_by_vectors():
    backbone, method, _, merge = moved("rank_one")
    stored = method.init(jax.random.key(0), backbone)

    def change(stored):
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(merge(stored)))

    assert jax.jit(jax.grad(change))(stored)["vector"].any()


def test_no_array_of_the_stacks_size_is_made_but_the_moved_leaf():
    layers, inputs, outputs = 64, 64, 128
    own = jax.ShapeDtypeStruct((layers, inputs, outputs), jnp.float32)
    vector = jax.ShapeDtypeStruct((300,), jnp.float32)
    scale = jax.ShapeDtypeStruct((layers,), jnp.float32)

    def both(vector, scale, own, cotangent):
        def move(vector, scale):
            return Moved(vector, scale, fastfood.stream(0, "a"), False).expand(own, {}, layers)

        moved, pullback = jax.vjp(move, vector, scale)
        return moved, pullback(cotangent)

    memory = jax.jit(both).lower(vector, scale, own, own).compile().memory_analysis()
    # The random parts and what is made of them, of one layer at a time.
    layer = inputs * outputs * 4
    assert memory.temp_size_in_bytes < 24 * layer < layers * layer


def test_tfews_code_moves_parameters_alike(monkeypatch):
    """With its random parts in the place of ours; golden/make_tfew_subset.py made the values."""
    held = np.load(oracle.GOLDEN / "said.npz")

    def parts(source, blocks, size):
        assert size == 64
        drawn = [held[f"{source}/{part}"] for part in ("signs", "permutation", "gaussian")]
        return fastfood.Parts(*(jnp.asarray(x)[None].repeat(len(blocks), 0) for x in drawn))

    monkeypatch.setattr(fastfood, "random_parts", parts)
    vector = jnp.asarray(held["vector"])
    for name, scale in zip(("embedding", "linear", "norm"), held["scales"], strict=True):
        before, after = held[f"{name}/before"], held[f"{name}/after"]
        arguments = (vector, jnp.asarray(scale), name)
        if name == "linear":
            kernel = jnp.asarray(before.T)
            factors = [
                jax.jit(Factor(*arguments, side=side).expand)(None, {"kernel": kernel}, 0)
                for side in ("input", "output")
            ]
            found = (kernel + factors[0] @ factors[1]).T
        else:
            found = jax.jit(Moved(*arguments, rank_one=True).expand)(before, {}, 0)
        assert np.abs(after - before).max() > 0.01
        oracle.assert_close(found - before, after - before, 1e-5, name)


def test_the_seed_is_the_projections_and_the_key_is_nothing():
    backbone, method, stored, _ = moved("rank_one")
    same = [method.init(jax.random.key(k), backbone) for k in (0, 1)]
    jax.tree.map(np.testing.assert_array_equal, *same)
    path = "decoder/final_norm/scale"
    sources = [
        tree.get(m.bind(stored), path).source
        for m in (
            method,
            said(60, True, "rank_one", SOME),
            said(60, True, "rank_one", SOME, seed=1),
        )
    ]
    assert sources[0] == sources[1] == fastfood.stream(0, path)
    assert sources[2] == fastfood.stream(1, path) != sources[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimension": 0}, "dimension 0 must be a whole number"),
        ({"update": "rank1"}, "'rank1' is unknown; one of full, rank_one"),
        ({"seed": -1}, "seed -1"),
        ({"dimension": 3, "targets": SOME}, "must be more than the .* tensors"),
        ({"targets": "qery/kernel"}, "'qery/kernel' matches nothing; nearest"),
        ({"update": "rank_one", "targets": "kernel"}, "needs a target that is a vector"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        said(**arguments).init(jax.random.key(0), backbone_of())
