"""Blocks: each against its formula, alone, with every leaf that a method may put beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import layers
from tests import oracle

BUCKETS = dict(np.load(oracle.GOLDEN / "position_buckets.npz"))


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


# ------------------------------------------------------------------------------ positions


@pytest.mark.parametrize("setting", BUCKETS)
def test_position_buckets_equal_transformers(setting):
    """Distances -1000 .. 1000, through the public function: the table holds the bucket's number."""
    direction, buckets, far = setting.split("/")
    table = jnp.arange(int(buckets), dtype=jnp.float32)[:, None]
    bias = layers.relative_bias(
        table,
        jnp.array([1000]),
        jnp.arange(2001),
        bidirectional=direction == "both",
        max_distance=int(far),
    )
    assert bias.shape == (1, 1, 1, 2001)
    np.testing.assert_array_equal(bias[0, 0, 0], BUCKETS[setting])


@pytest.mark.oracle
def test_golden_buckets_are_what_the_installed_transformers_computes():
    fresh = oracle.live("make_t5").position_buckets()
    assert fresh.keys() == BUCKETS.keys()
    for setting, buckets in fresh.items():
        np.testing.assert_array_equal(buckets, BUCKETS[setting])


# ------------------------------------------------------------------------------ linear

LEAVES = {
    "kernel": (5, 7),
    "lora_a": (5, 2),
    "lora_b": (2, 7),
    "bias": (7,),
    "ia3": (7,),
}
BESIDE = [(), ("bias",), ("ia3",), ("lora_a", "lora_b"), ("lora_a", "lora_b", "bias", "ia3")]


def leaves(beside, depth=()):
    names = ("kernel", *beside)
    return {n: normal(i, *depth, *LEAVES[n]) for i, n in enumerate(names)}


@pytest.mark.parametrize("beside", BESIDE, ids="+".join)
def test_linear_equals_its_formula(beside):
    p, x = leaves(beside), normal(9, 3, 4, 5)
    wanted = np.float64(x) @ np.float64(p["kernel"])
    if "lora_a" in p:
        wanted += np.float64(x) @ np.float64(p["lora_a"]) @ np.float64(p["lora_b"])
    wanted = (wanted + p.get("bias", 0)) * p.get("ia3", 1)
    oracle.assert_close(layers.linear(p, x), wanted, 1e-6)


@pytest.mark.parametrize("depth", [(), (3,)])
@pytest.mark.parametrize("beside", BESIDE, ids="+".join)
def test_fold_linear_equals_linear(beside, depth):
    p, x = leaves(beside, depth), normal(9, *depth, 4, 5)
    folded = layers.fold_linear(p)
    assert set(folded) == {"kernel"} | ({"bias"} & set(p))
    run = jax.vmap(layers.linear) if depth else layers.linear
    oracle.assert_close(run(folded, x), run(p, x), 2e-6)


def test_fold_linear_rounds_once():
    p = leaves(("lora_a", "lora_b", "ia3"))
    half = p | {"kernel": p["kernel"].astype(jnp.bfloat16)}
    exact = layers.fold_linear(p | {"kernel": half["kernel"].astype(jnp.float32)})["kernel"]
    folded = layers.fold_linear(half)["kernel"]
    np.testing.assert_array_equal(folded, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_bfloat16_kernel_under_float32_activations(frozen):
    """Rounds x, not the kernel, and sums in float32; its own gradient where it is trained."""
    x, kernel = normal(0, 3, 4, 64), normal(1, 64, 7, dtype=jnp.bfloat16)
    weight = normal(2, 3, 4, 7)

    def loss(x, kernel):
        return (layers.matmul(x, kernel) * weight).sum()

    y = layers.matmul(x, kernel)
    assert y.dtype == jnp.float32
    rounded = np.float64(x.astype(jnp.bfloat16))
    oracle.assert_close(y, rounded @ np.float64(kernel), 1e-6)
    d_y = np.float64(weight.astype(jnp.bfloat16))
    if frozen:
        d_x = jax.grad(loss)(x, kernel)
    else:
        d_x, d_kernel = jax.grad(loss, argnums=(0, 1))(x, kernel)
        assert d_kernel.dtype == jnp.bfloat16
        wanted = np.einsum("abi,abo->io", np.float64(x), np.float64(weight))
        oracle.assert_close(d_kernel, wanted, 2**-8)
    oracle.assert_close(d_x, d_y @ np.float64(kernel).T, 1e-6)


# ------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.97])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate, dtype):
    x = jnp.ones((400, 500), dtype)
    y = np.asarray(layers.dropout(jax.random.key(0), x, rate), np.float64)
    five_sigma = 5 * (rate * (1 - rate) / x.size) ** 0.5
    assert (y == 0).mean() == pytest.approx(rate, abs=five_sigma)
    assert np.unique(y).tolist() == pytest.approx([0, 1 / (1 - rate)], rel=2**-8)
    traced = jax.jit(functools.partial(layers.dropout, jax.random.key(0)))(x, jnp.float32(rate))
    np.testing.assert_array_equal(traced, y)


@pytest.mark.parametrize("key", [None, jax.random.key(0)])
def test_dropout_is_the_identity_at_evaluation_and_at_rate_zero(key):
    x = normal(0, 5, 6)
    np.testing.assert_array_equal(layers.dropout(key, x, 0.0), x)
    if key is None:
        assert layers.dropout(key, x, 0.5) is x
    else:
        np.testing.assert_array_equal(layers.dropout(key, x, jnp.float32(0)), x)


def test_dropout_masks_are_independent_of_each_other():
    """Across keys, sites, rows and neighbours: correlations within five sigma of none."""
    x = jnp.ones((300, 300))
    key = jax.random.key(3)
    masks = [np.asarray(layers.dropout(key, x, 0.5)) > 0]
    masks += [np.asarray(layers.dropout(jax.random.key(s), x, 0.5)) > 0 for s in range(3)]
    masks += [np.asarray(layers.dropout(layers.site_key(key, s), x, 0.5)) > 0 for s in range(4)]
    nested = [layers.site_key(layers.site_key(key, s), t) for s, t in ((0, 1), (1, 0), (2, 2))]
    masks += [np.asarray(layers.dropout(k, x, 0.5)) > 0 for k in nested]
    signs = [np.where(m, 1.0, -1.0) for m in masks]
    for i, one in enumerate(signs):
        for other in signs[:i]:
            assert abs((one * other).mean()) < 5 / 300
        for shift in (1, 2, 7, 64):
            assert abs((one[shift:] * one[:-shift]).mean()) < 5 / 290
            assert abs((one[:, shift:] * one[:, :-shift]).mean()) < 5 / 290
        assert abs(one.mean(0)).max() < 6 / 300**0.5
        assert abs(one.mean(1)).max() < 6 / 300**0.5


def test_site_keys_differ_and_none_stays_none():
    assert layers.site_key(None, 3) is None
    keys = {tuple(np.asarray(jax.random.key_data(k))) for k in map(site, range(20))}
    assert len(keys) == 20


def site(number):
    return layers.site_key(jax.random.key(0), number)


def test_lora_dropout_acts_on_the_low_rank_branch_alone():
    p, x, key = leaves(("lora_a", "lora_b")), normal(9, 4000, 5), jax.random.key(0)
    rate = jnp.float32(0.3)
    plain = layers.linear({"kernel": p["kernel"]}, x)
    nothing = p | {"lora_b": jnp.zeros_like(p["lora_b"]), "lora_dropout": rate}
    np.testing.assert_array_equal(layers.linear(nothing, x, key), plain)
    # The branch sees x with entries dropped: exactly the branch of a dropped x.
    dropped = layers.linear(p | {"lora_dropout": rate}, x, key)
    branch = layers.dropout(key, x, rate) @ p["lora_a"] @ p["lora_b"]
    oracle.assert_close(dropped, plain + branch, 1e-6)
    assert float((dropped - layers.linear(p, x)).std()) > 0.1
    # Without a key, or without a rate, nothing is dropped.
    np.testing.assert_array_equal(layers.linear(p | {"lora_dropout": rate}, x), layers.linear(p, x))
    np.testing.assert_array_equal(layers.linear(p, x, key), layers.linear(p, x))


# ---------------------------------------------------------------------------- norm, MLP, attention


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rms_norm_takes_its_statistics_in_float32(dtype):
    x = (1e4 * normal(0, 3, 256)).astype(dtype)
    scale = normal(1, 256)
    y = np.float64(x)
    wanted = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * np.float64(scale)
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-6
    result = layers.rms_norm({"scale": scale}, x, 1e-6)
    assert result.dtype == dtype
    oracle.assert_close(result, wanted, tolerance)
    assert not layers.rms_norm({"scale": scale}, jnp.zeros_like(x), 1e-6).any()


@pytest.mark.parametrize("activation", layers.ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_ia3_of_an_mlp_scales_what_wo_reads(activation, gated):
    """For a gated MLP that is scaling wi_1's output, as the released T-Few code does."""
    names = ("wi_0", "wi_1") if gated else ("wi",)
    p = {name: {"kernel": normal(i, 6, 8)} for i, name in enumerate(names)}
    p["wo"] = {"kernel": normal(5, 8, 6)}
    x, vector = normal(7, 4, 6), normal(8, 8)
    result = layers.mlp(p | {"ia3": vector}, x, activation, 0.0, None)
    rows = p | {"wo": {"kernel": vector[:, None] * p["wo"]["kernel"]}}
    oracle.assert_close(result, layers.mlp(rows, x, activation, 0.0, None), 1e-6)
    if gated:
        other = p | {"wi_1": {**p["wi_1"], "ia3": vector}}
        oracle.assert_close(result, layers.mlp(other, x, activation, 0.0, None), 1e-6)


def attention_inputs(inputs=2, choices=3, source=5, target=4, heads=2, width=6):
    q = normal(0, inputs * choices, target, heads, width)
    k, v = (normal(i, inputs, heads, source, width) for i in (1, 2))
    mask = np.arange(source) < np.array([[source], [3]])
    return q, k, v, layers.mask_bias(jnp.asarray(mask)[:, None, None, :])


def test_choices_share_the_keys_of_their_input():
    q, k, v, bias = attention_inputs()
    shared = layers.attend(q, [layers.Keys(k, v, bias)], 0.0, None)
    repeated = layers.attend(
        q, [layers.Keys(*(jnp.repeat(x, 3, axis=0) for x in (k, v, bias)))], 0.0, None
    )
    assert shared.shape == (6, 4, 12)
    oracle.assert_close(shared, repeated, 1e-6)


def test_attention_equals_its_formula_and_ignores_masked_keys():
    q, k, v, bias = attention_inputs(choices=1)
    logits = np.einsum("bthk,bhsk->bhts", np.float64(q), np.float64(k)) + np.float64(bias)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    wanted = np.einsum("bhts,bhsk->bthk", weights, np.float64(v)).reshape(2, 4, 12)
    result = layers.attend(q, [layers.Keys(k, v, bias)], 0.0, None)
    oracle.assert_close(result, wanted, 1e-6)
    other = layers.attend(
        q, [layers.Keys(k.at[1, :, 3:].set(9), v.at[1, :, 3:].set(-9), bias)], 0.0, None
    )
    np.testing.assert_array_equal(result, other)


def test_a_row_with_every_key_masked_is_finite():
    q, k, v, bias = attention_inputs(choices=1)
    result = layers.attend(q, [layers.Keys(k, v, jnp.full_like(bias, layers.MASKED))], 0.0, None)
    oracle.assert_close(result[0, 0], v[0].mean(1).reshape(-1), 1e-5)
