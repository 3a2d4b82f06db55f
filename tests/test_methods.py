"""Methods: exact counts, and the laws of init, bind, merge, fold and compose."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import methods, tree
from peft_jax.backbones import check_slots
from peft_jax.errors import InputError
from tests import oracle
from tests.random_adapters import (
    METHODS,
    PROMPTED,
    abstract_init,
    adapted,
    adapted_backbone,
    assert_same_trees,
    backbone_of,
    over_configs,
    over_foldable,
    over_methods,
    over_promptless,
    over_t5,
    run,
)
from tests.test_transformer import CONFIG, random_batch

# ------------------------------------------------------------------------------ exact counts

EVERY_PROJECTION = r"attention/(query|key|value|out)|mlp/(wi_0|wi_1|wo)"
COUNTS = [
    # Liu et al. 2022, figure 2: L_enc (2 inner + d_ff) + L_dec (4 inner + d_ff).
    (pj.ia3(), "t5_v1_1_small", 34_816),
    (pj.ia3(), "t5_v1_1_base", 104_448),
    (pj.ia3(), "t5_v1_1_large", 282_624),
    (pj.ia3(), "t0_3b", 540_672),
    (pj.ia3(), "t0_11b", 1_081_344),
    (pj.ia3(), "t5_small", 43_008),
    (pj.ia3(), "t5_base", 129_024),
    (pj.ia3(), "t5_3b", 1_376_256),
    (pj.ia3(), "t5_11b", 5_505_024),
    # peft's default places: query and value of every attention.
    (pj.lora(), "t5_v1_1_small", 344_064),
    (pj.lora(8), "t5_v1_1_base", 884_736),
    (pj.lora(8), "t5_v1_1_large", 2_359_296),
    (pj.full(), "t0_3b", 2_849_757_184),
    (pj.lora(8), "t0_3b", 4_718_592),
    (pj.lora(8, rslora=True, dropout=0.1), "t0_11b", 9_437_184),
    # T-Few's baseline without its layer norms.
    (pj.lora(4, targets=EVERY_PROJECTION), "t0_3b", 8_847_360),
    # Liu et al. 2022 as released: without wo, whose name their pattern misspells, and without the
    # layer norms that they train beside it.
    (pj.bitfit(("attention/.*", "mlp/wi_.*")), "t0_3b", 1_081_344),
    (pj.bitfit(), "t0_3b", 1_081_344 + 48 * 2048),
    # Lester et al. 2021, table 4.
    (pj.prompt_tuning(100), "t5_lm_small", 51_200),
    (pj.prompt_tuning(100), "t5_lm_base", 76_800),
    (pj.prompt_tuning(100, "random"), "t5_lm_large", 102_400),
    (pj.prompt_tuning(100), "t5_lm_xl", 204_800),
    (pj.prompt_tuning(100), "t0_3b", 204_800),
    (pj.prompt_tuning(100), "t5_lm_xxl", 409_600),
    (pj.prompt_tuning(5), "t5_lm_xxl", 20_480),
    # T-Few's baseline: one prompt in each stack.
    (pj.prompt_tuning(10, where="both"), "t0_3b", 40_960),
    (pj.prompt_tuning(100, where="both"), "t0_3b", 409_600),
    (pj.full(), "t5_v1_1_small", 76_961_152),
    (pj.full(), "t0_11b", 11_135_332_352),
    (pj.compose(pj.ia3(), pj.prompt_tuning(10, where="both")), "t0_3b", 540_672 + 40_960),
]


@pytest.mark.parametrize(
    ("method", "backbone", "wanted"), COUNTS, ids=[f"{m.spec['name']}-{b}" for m, b, _ in COUNTS]
)
def test_counts_are_exact_and_cost_no_memory(method, backbone, wanted):
    backbone = pj.abstract_backbone(pj.backbone_config(backbone), jnp.bfloat16)
    adapter = abstract_init(method, backbone)
    assert pj.count(adapter) == wanted
    for leaf in jax.tree.leaves(adapter):
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert leaf.dtype == jnp.float32


@over_methods
def test_count_is_the_number_of_stored_scalars(name):
    _, _, stored = adapted_backbone(name, "v1_1")
    assert pj.count(stored) == sum(np.asarray(leaf).size for leaf in jax.tree.leaves(stored))


@over_methods
def test_describe_lists_places_whose_counts_sum_to_the_count(name):
    backbone, _, stored = adapted_backbone(name, "v1_1")
    header, rule, *rows, _, total = pj.describe(stored, backbone).split("\n")
    assert header.split() == ["place", "shape", "count", "share"]
    assert set(rule) == {"-"}
    flat = tree.flatten(stored)
    assert [row.split()[0] for row in rows] == list(flat)
    counts = [int(row.split()[2].replace(",", "")) for row in rows]
    assert counts == [leaf.size for leaf in flat.values()]
    assert [row.split()[1] for row in rows] == ["x".join(map(str, x.shape)) for x in flat.values()]
    assert total.split()[:2] == ["total", f"{sum(counts):,}"]
    assert sum(counts) == pj.count(stored)
    for line, number in zip([*rows, total], [*counts, sum(counts)], strict=True):
        share = float(line.split()[-1].removesuffix("%")) / 100
        assert share == pytest.approx(number / tree.count(backbone.params), abs=5.1e-7)


@pytest.mark.parametrize(
    ("name", "share"), [("t5_v1_1_small", "0.0452%"), ("t0_3b", "0.0190%"), ("t0_11b", "0.0097%")]
)
def test_describe_gives_the_published_shares_of_abstract_backbones(name, share):
    backbone = pj.abstract_backbone(pj.backbone_config(name))
    adapter = abstract_init(pj.ia3(), backbone)
    last = pj.describe(adapter, backbone).split("\n")[-1]
    assert last.split() == ["total", f"{pj.count(adapter):,}", share]
    alone = pj.describe(adapter)
    assert "share" not in alone
    assert "%" not in alone


# ------------------------------------------------------------------------------ init


@over_configs
@over_promptless
def test_the_initial_function_is_the_backbones(name, version):
    backbone, method = backbone_of(version), METHODS[name]
    params = pj.merge(backbone.params, method.bind(method.init(jax.random.key(0), backbone)))
    oracle.assert_close(run(backbone, params), run(backbone, backbone.params), 1e-6)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_prompt_is_read_from_the_start(stack):
    """There is no prompt that changes nothing; each of the two has its effect."""
    backbone, _, stored = adapted_backbone("prompt", "v1_1")
    without = stored | {stack: {"prompt": jnp.zeros_like(stored[stack]["prompt"])}}
    one, other = (run(backbone, pj.merge(backbone.params, s)) for s in (stored, without))
    assert np.abs(one - other).max() > 1e-3 * np.abs(other).max()


@over_methods
def test_init_is_float32_and_depends_on_the_key_alone(name):
    method, backbone = METHODS[name], backbone_of(dtype=jnp.bfloat16)
    stored = method.init(jax.random.key(0), backbone)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float32")}
    assert_same_trees(method.init(jax.random.key(0), backbone), stored)
    other = method.init(jax.random.key(1), backbone)
    for path, leaf in tree.flatten(stored).items():
        drawn = path.endswith(("lora_a", "prompt"))
        assert np.array_equal(leaf, tree.get(other, path)) != drawn, path


@over_methods
def test_a_spec_makes_the_same_method_again(name):
    backbone, method, stored = adapted_backbone(name, "v1_1")
    again = methods.from_spec(json.loads(json.dumps(method.spec)))
    assert again.spec == method.spec
    key = jax.random.key(3)
    assert_same_trees(again.init(key, backbone), method.init(key, backbone))
    assert_same_trees(again.bind(stored), method.bind(stored))


def test_ia3_starts_at_ones():
    stored = tree.flatten(pj.ia3().init(jax.random.key(0), backbone_of()))
    layers = {"encoder": 3, "decoder": 2}
    attentions = {"encoder": ["attention"], "decoder": ["self_attention", "cross_attention"]}
    wanted = {f"{s}/layers/mlp/ia3": (layers[s], 40) for s in layers} | {
        f"{s}/layers/{a}/{p}/ia3": (layers[s], 18)
        for s in layers
        for a in attentions[s]
        for p in ("key", "value")
    }
    assert {path: leaf.shape for path, leaf in stored.items()} == wanted
    assert all((leaf == 1).all() for leaf in stored.values())


def test_lora_draws_a_uniformly_within_the_inverse_root_of_the_inputs():
    """Kaiming's uniform initialisation with a = sqrt(5), as loralib and peft call it."""
    backbone = backbone_of()
    stored = tree.flatten(
        pj.lora(64, targets=("query", "out", "wo")).init(jax.random.key(0), backbone)
    )
    inputs = {"query": 24, "out": 18, "wo": 40}
    drawn = {path: np.asarray(x) for path, x in stored.items() if path.endswith("/lora_a")}
    assert len(drawn) == 3 + 5
    for path, a in drawn.items():
        width = inputs[path.split("/")[-2]]
        assert a.shape[1:] == (width, 64)
        bound = width**-0.5
        assert np.abs(a).max() <= bound
        assert np.abs(a).max() > 0.99 * bound
        # Five standard errors of the mean, and of the variance of a uniform distribution.
        assert abs(a.mean()) < 5 * bound / math.sqrt(3 * a.size)
        assert a.var() == pytest.approx(bound**2 / 3, rel=5 * math.sqrt(0.8 / a.size))
        # Every layer, and every module of one shape, has draws of its own.
        assert len({x.tobytes() for x in a}) == len(a)
    same = [a.tobytes() for path, a in drawn.items() if "decoder" in path]
    assert len(set(same)) == len(same)
    assert all((x == 0).all() for path, x in stored.items() if path.endswith("/lora_b"))


# ------------------------------------------------------------------------------ bind and merge


@over_methods
def test_bind_is_deterministic_and_the_same_under_jit(name):
    _, method, stored = adapted_backbone(name, "v1_1")
    bound = method.bind(stored)
    assert_same_trees(method.bind(stored), bound)
    jax.tree.map(lambda a, b: oracle.assert_close(a, b, 1e-6), jax.jit(method.bind)(stored), bound)


def aligned(rng, gradient):
    """A direction of length 1 in which no entry's part of the slope cancels another's."""
    signs = np.where(gradient == 0, rng.choice([-1.0, 1.0], gradient.shape), np.sign(gradient))
    direction = np.abs(rng.standard_normal(gradient.shape)) * signs
    return direction / np.linalg.norm(direction)


def central_difference(function, stored, path, step):
    """(f(x + step) - f(x - step)) / 2, with the step on one leaf alone; float64."""
    ends = []
    for sign in (1, -1):
        flat = tree.flatten(stored)
        flat[path] = flat[path] + jnp.asarray(sign * step, jnp.float32)
        ends.append(np.asarray(function(tree.unflatten(flat)), np.float64))
    return (ends[0] - ends[1]) / 2


@over_methods
def test_derivatives_of_bind_equal_finite_differences(name):
    """bind is linear in each leaf: only rounding distinguishes the two."""
    _, method, stored = adapted_backbone(name, "v1_1")
    bound, pullback = jax.vjp(method.bind, stored)
    rng = np.random.default_rng(0)
    cotangent = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), bound)
    (gradients,) = pullback(cotangent)

    def value(stored):
        parts = jax.tree.map(lambda x, c: np.vdot(np.float64(x), c), method.bind(stored), cotangent)
        return sum(jax.tree.leaves(parts))

    for path, gradient in tree.flatten(gradients).items():
        gradient = np.asarray(gradient, np.float64)
        assert (gradient != 0).all(), path
        step = aligned(rng, gradient)
        slope = central_difference(value, stored, path, step)
        assert slope == pytest.approx((gradient * step).sum(), rel=1e-4), path


EVERY_KIND = (
    pj.ia3(layers=(1,)),
    pj.lora(2, alpha=3.0, layers=(1, 0), rslora=True),
    pj.prompt_tuning(2, where="both"),
)
STEP = 2e-3


# v1.0's gradients are held against peft's above; its program takes as long to compile again.
@pytest.mark.parametrize("version", [pytest.param("v1_0", marks=pytest.mark.slow), "v1_1"])
def test_gradients_of_logits_equal_finite_differences(version):
    backbone, batch = backbone_of(version), random_batch()
    method, stored = adapted(backbone, *EVERY_KIND)
    rng = np.random.default_rng(0)
    shape = (*batch["decoder_input_tokens"].shape, CONFIG.vocab_size)
    cotangent = rng.standard_normal(shape).astype(np.float32)

    @jax.jit
    def logits_and_gradients(stored):
        def logits(stored):
            return backbone.logits(pj.merge(backbone.params, method.bind(stored)), batch)

        output, pullback = jax.vjp(logits, stored)
        return output, pullback(cotangent)[0]

    def value(stored):
        return np.vdot(np.asarray(logits_and_gradients(stored)[0], np.float64), cotangent)

    for path, gradient in tree.flatten(logits_and_gradients(stored)[1]).items():
        gradient = np.asarray(gradient, np.float64)
        direction = aligned(rng, gradient)
        wanted = (gradient * direction).sum()
        slope = central_difference(value, stored, path, STEP * direction) / STEP
        # What remains is float32's rounding, and the kinks of v1.0's ReLU.
        assert slope == pytest.approx(wanted, rel=1e-2), path


@over_methods
def test_merge_copies_nothing_and_changes_nothing(name):
    backbone, method, stored = adapted_backbone(name, "v1_1")
    frozen = tree.unflatten(tree.flatten(backbone.params))
    bound = method.bind(stored)
    merged = tree.flatten(pj.merge(frozen, bound))
    assert_same_trees(frozen, backbone.params)
    places = tree.flatten(bound)
    assert merged.keys() == tree.flatten(frozen).keys() | places.keys()
    for path, leaf in tree.flatten(frozen).items():
        assert (merged[path] is leaf) != (path in places)
    for path, leaf in places.items():
        if not isinstance(leaf, methods.AtLayers):
            np.testing.assert_array_equal(merged[path], leaf)


def test_a_replaced_leaf_keeps_the_backbones_precision():
    backbone = backbone_of(dtype=jnp.bfloat16)
    method, stored = adapted(backbone, pj.full())
    merged = pj.merge(backbone.params, method.bind(stored))
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


def test_full_starts_from_a_copy():
    """A step gives its stored tree's memory away: the backbone's must not be the same."""
    backbone = backbone_of()
    stored = tree.flatten(pj.full().init(jax.random.key(0), backbone))
    for path, leaf in tree.flatten(backbone.params).items():
        assert stored[path].unsafe_buffer_pointer() != leaf.unsafe_buffer_pointer()


# ------------------------------------------------------------------------------ fold


@over_configs
@over_foldable
def test_folded_equals_merged(name, version):
    backbone, method, stored = adapted_backbone(name, version)
    folded = method.fold(backbone.params, stored)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, backbone.params)
    merged = pj.merge(backbone.params, method.bind(stored))
    wanted = run(backbone, merged)
    assert np.abs(wanted - run(backbone, backbone.params)).max() > 5e-3 * np.abs(wanted).max()
    oracle.assert_close(run(backbone, folded), wanted)
    assert_same_trees(pj.fold(merged), folded)


@over_foldable
def test_folding_keeps_the_backbones_precision(name):
    backbone, method = backbone_of(dtype=jnp.bfloat16), METHODS[name]
    folded = method.fold(backbone.params, method.init(jax.random.key(0), backbone))
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype("bfloat16")}
    assert_same_trees(folded, backbone.params)  # the initial adapter is folded without a trace


@pytest.mark.parametrize("name", PROMPTED)
def test_a_prompt_cannot_be_folded(name):
    backbone, method, stored = adapted_backbone(name, "v1_1")
    assert method.fold is None
    with pytest.raises(InputError, match="soft prompt cannot be folded"):
        pj.fold(pj.merge(backbone.params, method.bind(stored)))


def test_an_unknown_leaf_beside_a_kernel_is_not_folded_away():
    params = {"wo": {"kernel": jnp.ones((2, 3)), "strength": jnp.ones(3)}}
    with pytest.raises(InputError, match="'strength' cannot be folded"):
        pj.fold(params)


# ------------------------------------------------------------------------------ layers

AT_LAYERS = {
    "ia3": lambda layers: pj.ia3(("encoder/layers/attention/key", "encoder/layers/mlp"), layers),
    "lora": lambda layers: pj.lora(
        2, 3.0, ("encoder/layers/attention/key", "encoder/layers/mlp/wo"), layers
    ),
}
AT_LAYERS_KERNELS = {f"encoder/layers/{m}/kernel" for m in ("attention/key", "mlp/wo")}


@over_t5
@pytest.mark.parametrize("name", AT_LAYERS)
def test_only_the_chosen_layers_change(name, version):
    backbone = backbone_of(version)
    method, stored = adapted(backbone, AT_LAYERS[name]((2, 0)))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(stored)} == {2}
    folded = tree.flatten(method.fold(backbone.params, stored))
    for path, frozen in tree.flatten(backbone.params).items():
        same = [np.array_equal(a, b) for a, b in zip(folded[path], frozen, strict=True)]
        assert same == ([False, True, False] if path in AT_LAYERS_KERNELS else [True] * len(same))


@pytest.mark.parametrize("name", AT_LAYERS)
def test_chosen_layers_are_stored_in_the_order_they_are_named_in(name):
    backbone = backbone_of()
    method, stored = adapted(backbone, AT_LAYERS[name]((2, 0)))
    every = AT_LAYERS[name](None)
    spread = tree.flatten(every.init(jax.random.key(7), backbone))
    for path, leaf in tree.flatten(stored).items():
        spread[path] = spread[path].at[jnp.array([2, 0])].set(leaf)
    merged = pj.merge(backbone.params, method.bind(stored))
    wanted = pj.merge(backbone.params, every.bind(tree.unflatten(spread)))
    assert_same_trees(pj.fold(merged), pj.fold(wanted))


# ------------------------------------------------------------------------------ compose


@pytest.mark.parametrize(
    "parts",
    [
        {"ia3": pj.ia3(), "lora": pj.lora(2, 3.0), "prompt_tuning": pj.prompt_tuning(3)},
        {"lora": pj.lora(2), "lora_2": pj.lora(3, 7.0, "mlp/wo"), "ia3": pj.ia3(layers=(1,))},
        {"full": pj.full(), "lora": pj.lora(2, dropout=0.1), "lora_2": pj.lora(2, targets="out")},
    ],
    ids="+".join,
)
def test_compose_is_the_union(parts):
    backbone = backbone_of()
    method, stored = adapted(backbone, *parts.values())
    assert set(stored) == set(parts)
    bound = tree.flatten(method.bind(stored))
    separate = {n: tree.flatten(m.bind(stored[n])) for n, m in parts.items()}
    assert len(bound) == sum(map(len, separate.values()))
    for leaves in separate.values():
        assert_same_trees(tree.unflatten(leaves), tree.unflatten({p: bound[p] for p in leaves}))
    for name, part in parts.items():
        alone = abstract_init(part, backbone)
        assert jax.tree.map(jnp.shape, stored[name]) == jax.tree.map(jnp.shape, alone)


def test_compose_is_associative_and_one_method_is_itself():
    a, b, c = pj.ia3(), pj.lora(2, dropout=0.1), pj.prompt_tuning(3)
    flat = pj.compose(a, b, c)
    backbone, key = backbone_of(), jax.random.key(0)
    for nested in (pj.compose(pj.compose(a, b), c), pj.compose(a, pj.compose(b, c))):
        assert nested.spec == flat.spec
        assert_same_trees(nested.init(key, backbone), flat.init(key, backbone))
    assert pj.compose(a) is a


def test_two_loras_on_one_leaf_concatenate_their_ranks():
    backbone = backbone_of()
    one, two = pj.lora(2, 5.0), pj.lora(3, 4.0, "attention/.*", rslora=True)
    method, stored = adapted(backbone, one, two)
    bound = tree.flatten(method.bind(stored))
    shared = "decoder/layers/cross_attention/value"
    a = [tree.get(stored[n], f"{shared}/lora_a") for n in ("lora", "lora_2")]
    b = [tree.get(stored[n], f"{shared}/lora_b") for n in ("lora", "lora_2")]
    scaled = [b[0] * (5.0 / 2), b[1] * (4.0 / 3**0.5)]
    np.testing.assert_array_equal(bound[f"{shared}/lora_a"], np.concatenate(a, axis=2))
    np.testing.assert_array_equal(bound[f"{shared}/lora_b"], np.concatenate(scaled, axis=1))
    # One alone keeps its rank, and a leaf is never written twice.
    assert bound["encoder/layers/attention/out/lora_a"].shape == (3, 18, 3)
    folded = two.fold(one.fold(backbone.params, stored["lora"]), stored["lora_2"])
    assert_folds_alike(method.fold(backbone.params, stored), folded)


def test_two_ia3_on_one_leaf_multiply():
    backbone = backbone_of()
    method, stored = adapted(backbone, pj.ia3(), pj.ia3("attention/key"))
    one, two = pj.ia3(), pj.ia3("attention/key")
    folded = two.fold(one.fold(backbone.params, stored["ia3"]), stored["ia3_2"])
    assert_folds_alike(method.fold(backbone.params, stored), folded)


def assert_folds_alike(one, other):
    other = tree.flatten(other)
    for path, leaf in tree.flatten(one).items():
        oracle.assert_close(leaf, other[path], 1e-6, path)


def test_two_prompts_stand_one_behind_the_other():
    backbone = backbone_of()
    method, stored = adapted(backbone, pj.prompt_tuning(2), pj.prompt_tuning(3, where="both"))
    bound = method.bind(stored)
    rows = [stored[n]["encoder"]["prompt"] for n in ("prompt_tuning", "prompt_tuning_2")]
    np.testing.assert_array_equal(bound["encoder"]["prompt"], np.concatenate(rows))
    assert bound["decoder"]["prompt"].shape == (3, 24)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((pj.full(), pj.full()), "meet at '.*/(scale|kernel|embedding)' and cannot be combined"),
        ((pj.lora(2, dropout=0.1), pj.lora(2)), "meet at '.*/lora_a' and one has dropout"),
        ((pj.lora(2), pj.lora(2, targets="cross_attention/query", dropout=0.1)), "dropout"),
        ((pj.lora(2, layers=(0,)), pj.lora(2)), "meet at '.*/lora_a'"),
        ((pj.ia3(), pj.ia3(layers=(0,))), "meet at '.*/ia3'"),
        ((pj.ia3(layers=(0,)), pj.ia3(layers=(1,))), "one chooses layers"),
        ((pj.ia3(), pj.lora(2), pj.lora(1, dropout=0.1)), "dropout"),
    ],
)
def test_what_cannot_be_combined_is_refused_before_training(parts, message):
    with pytest.raises(InputError, match=message):
        pj.compose(*parts).init(jax.random.key(0), backbone_of())


def test_compose_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least one method"):
        pj.compose()


# ------------------------------------------------------------------------------ dropout


def test_lora_dropout_acts_with_a_key_alone():
    backbone = backbone_of()
    without, stored = adapted(backbone, pj.lora(2))
    method = pj.lora(2, dropout=0.5)
    merged = pj.merge(backbone.params, method.bind(stored))
    plain = run(backbone, pj.merge(backbone.params, without.bind(stored)))
    oracle.assert_close(run(backbone, merged), plain, 1e-6)
    first, same, other = (run(backbone, merged, jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - plain).max() > 1e-2
    assert np.abs(first - other).max() > 1e-2
    # Only the low-rank branch is dropped: at the start, where it is zero, nothing happens.
    start = pj.merge(backbone.params, method.bind(method.init(jax.random.key(0), backbone)))
    dropped = run(backbone, start, jax.random.key(0))
    oracle.assert_close(dropped, run(backbone, backbone.params), 1e-6)


def test_lora_dropout_leaves_the_other_layers_alone():
    backbone = backbone_of()
    method = pj.lora(2, dropout=0.25, layers=(1,))
    bound = method.bind(method.init(jax.random.key(0), backbone))
    merged = pj.merge(backbone.params, bound)
    rate = merged["encoder"]["layers"]["attention"]["query"]["lora_dropout"]
    np.testing.assert_array_equal(rate, [0, 0.25, 0])


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("method", "version", "near"),
    [
        (pj.ia3("attention/(kay|value_)"), "v1_1", "attention/(key|value)"),
        (pj.ia3(("mlp", "atention/key")), "v1_1", "attention/key"),
        (pj.lora(targets="SelfAttention.q"), "v1_1", "self_attention/query"),
        (pj.lora(targets="mlp/wi"), "v1_1", "mlp/wi_0"),
        (pj.lora(targets="mlp/wi_1"), "v1_0", "mlp/wi"),
        (pj.lora(targets="lm_head"), "v1_0", "encoder|decoder"),
        # LoRA has no place in a whole feed-forward, though (IA)³ has.
        (pj.lora(targets="mlp"), "v1_1", "mlp/"),
        (pj.bitfit("attention/(qery|key_)"), "v1_1", "attention/(query|key)"),
        (pj.compose(pj.ia3(), pj.lora(targets="o")), "v1_1", "attention"),
    ],
)
def test_a_mistyped_target_is_refused_with_the_nearest_names(method, version, near):
    with pytest.raises(InputError, match=rf"target '.*' matches nothing; nearest: .*{near}"):
        method.init(jax.random.key(0), backbone_of(version))


@pytest.mark.parametrize("make", [pj.ia3, pj.lora, pj.bitfit], ids=["ia3", "lora", "bitfit"])
def test_no_target_at_all_is_refused(make):
    with pytest.raises(InputError, match="no target is given"):
        make(targets=()).init(jax.random.key(0), backbone_of())


def test_a_target_that_is_no_regular_expression_is_named():
    with pytest.raises(InputError, match=r"'attention/\(key' is not a regular expression"):
        pj.ia3("attention/(key").init(jax.random.key(0), backbone_of())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pj.lora(0), "rank 0 must be a whole number of at least 1"),
        (lambda: pj.lora(-2), "rank -2 must be"),
        (lambda: pj.lora(2.5), "rank 2.5 must be"),
        (lambda: pj.lora(2, alpha=0.0), "alpha 0.0 must be above 0"),
        (lambda: pj.lora(2, layers=1), "layers 1 must be a list of layer numbers"),
        (lambda: pj.ia3(layers="01"), "layers '01' must be a list"),
        (lambda: pj.prompt_tuning(1, "labels", labels=("a", "b")), "2 labels do not fit .* 1"),
        (lambda: pj.lora(2, dropout=1.0), "dropout 1.0 must be at least 0 and below 1"),
        (lambda: pj.lora(2, dropout=-0.1), "dropout -0.1"),
        (lambda: pj.prompt_tuning(0), "length 0 must be at least 1"),
        (lambda: pj.prompt_tuning(2, "zeros"), "init 'zeros' is unknown; one of random, vocab"),
        (
            lambda: pj.prompt_tuning(2, where="middle"),
            "where 'middle' is unknown; one of input, encoder",
        ),
        (lambda: pj.prompt_tuning(2, "text"), "init 'text' needs the argument text="),
        (lambda: pj.prompt_tuning(2, "labels"), "init 'labels' needs the argument labels="),
        (lambda: pj.prompt_tuning(2, "file"), "init 'file' needs the argument file="),
        (lambda: methods.from_spec({"name": "lorra", "rank": 2}), "'lorra'; nearest: lora"),
        (lambda: methods.from_spec({"name": "lora", "ranks": 2}), "'lora' cannot be made .*ranks"),
        (lambda: methods.from_spec({"rank": 2}), "no method is named None"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("make", [pj.ia3, pj.lora], ids=["ia3", "lora"])
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((3,), r"layers \[3\] do not fit 'encoder/.*from 0 to 2"),
        ((2,), r"layers \[2\] do not fit 'decoder/.*from 0 to 1"),
        ((-1,), r"layers \[-1\]"),
        ((0, 0), r"layers \[0, 0\] .* different numbers"),
        ((), r"layers \[\]"),
    ],
)
def test_layers_that_do_not_exist_are_refused(make, layers, message):
    with pytest.raises(InputError, match=message):
        make(layers=layers).init(jax.random.key(0), backbone_of())


def test_a_module_outside_the_layers_has_none_to_choose():
    with pytest.raises(InputError, match=r"layers \[0\] do not fit 'lm_head': it has no layers"):
        pj.lora(2, targets="lm_head", layers=(0,)).init(jax.random.key(0), backbone_of())


WIDER = dataclasses.replace(CONFIG, d_kv=7, d_ff=41, d_model=25)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (pj.ia3("value"), r"attention/value/ia3' has shape \(., 18\); its slot wants \(., 21\)"),
        (pj.ia3("mlp"), r"mlp/ia3' has shape \(., 40\); its slot wants \(., 41\)"),
        (pj.lora(2), r"/lora_a' has shape \(., 24, 2\); its slot wants \(., 25, 'rank'\)"),
        (pj.prompt_tuning(2), r"prompt' has shape \(2, 24\); its slot wants \('length', 25\)"),
        (pj.full(), r"has shape \((57, )?24,?\); its slot wants \((57, )?25,?\)"),
    ],
    ids=lambda x: x.spec["name"] if hasattr(x, "spec") else None,
)
def test_the_leaves_of_another_backbone_fit_no_slot(method, message):
    bound = method.bind(abstract_init(method, backbone_of()))
    check_slots(bound, CONFIG)
    with pytest.raises(InputError, match=message):
        check_slots(bound, WIDER)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("encoder/layers/attention/kay/ia3", "nearest: encoder/layers/attention/key/ia3"),
        ("encoder/layers/mlp/wi/ia3", "nearest: .*wi_0/ia3"),
        ("encoder/prompts", "nearest: encoder/prompt"),
    ],
)
def test_a_leaf_that_no_layer_reads_is_refused_with_the_nearest(path, message):
    bound = tree.unflatten({path: jnp.ones((3, 18))})
    with pytest.raises(InputError, match=f"no layer .* reads a leaf at '{path}'; {message}"):
        check_slots(bound, CONFIG)


def test_the_two_factors_of_a_lora_must_have_one_rank():
    bound = {"lm_head": {"lora_a": jnp.ones((24, 2)), "lora_b": jnp.ones((3, 57))}}
    with pytest.raises(InputError, match=r"lora_b' has shape \(3, 57\)"):
        check_slots(bound, CONFIG)


def test_merging_into_another_backbone_is_refused():
    frozen = backbone_of("v1_0").params
    gated, stored = adapted(backbone_of("v1_1"), pj.lora(2, targets="mlp/wi_0"))
    with pytest.raises(InputError, match="no module 'wi_0' to merge into; nearest: wi"):
        pj.merge(frozen, gated.bind(stored))
    deeper = tree.unflatten(
        {"encoder/layers/mlp/wi/ia3": methods.AtLayers(jnp.zeros((1, 40)), (3,), 1.0)}
    )
    with pytest.raises(InputError, match=r"layers \[3\] do not fit a stack of 3 layers"):
        pj.merge(frozen, deeper)
    scale = {"encoder": {"final_norm": {"scale": jnp.ones(25)}}}
    with pytest.raises(InputError, match=r"'scale' of shape \(25,\) does not fit"):
        pj.merge(frozen, scale)
    with pytest.raises(InputError, match="'final_norm' of shape"):
        pj.merge(frozen, {"encoder": {"final_norm": jnp.ones(24)}})
