"""The laws that every method obeys, on every family."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import scoring, transformer, tree
from peft_jax.methods.composition import stored_names
from peft_jax.methods.lazy import Lazy
from tests import oracle
from tests.families import FAMILIES, QUICK, quickly
from tests.random_adapters import backbone_of
from tests.test_families import batch_of, choices_of, tokens_of
from tests.test_transformer import frozen_kernels, scan_outputs, unrolled

SPAN = {"vocabulary_range": (3, 50)}
TARGETS = ("attention/(query|value)", "mlp/wo")
# The function changes at once.
SEEN = {
    "prompt": pj.prompt_tuning(3, **SPAN),
    "prompt after the first token": pj.prompt_tuning(2, placement="after_first", **SPAN),
    "prompt behind the input": pj.prompt_tuning(2, placement="suffix", **SPAN),
    "prompts at every layer": pj.prompt_tuning(2, per_layer=True, **SPAN),
    "prefix": pj.prefix_tuning(3),
    "prefix through an MLP": pj.prefix_tuning(2, reparameterization="mlp", hidden=5),
    "p_tuning": pj.p_tuning(3, hidden=6),
    "low rank": pj.low_rank_adapter(2, reduction_factor=6),
    "p_tuning behind the input": pj.p_tuning(2, "mlp", placement="suffix", hidden=6),
}
# The function is the backbone's at the start.
UNSEEN = {
    "houlsby": pj.houlsby_adapter(4),
    "pfeiffer": pj.pfeiffer_adapter(3),
    "parallel": pj.parallel_adapter(3, layers=(1,)),
    "compacter": pj.compacter(reduction_factor=6),
    "compacter++": pj.compacter_plus_plus(reduction_factor=6, divisions=2),
    "pissa": pj.lora(2, init="pissa", targets=TARGETS),
    "lora, other ranks": pj.lora(2, targets=TARGETS, rank_pattern=(("wo", 3),)),
    "dora": pj.dora(2, targets=TARGETS),
    "dora, one layer": pj.dora(2, targets=TARGETS, layers=(1,)),
    "vera": pj.vera(4, targets=TARGETS),
    "adalora": pj.adalora(3, target_rank=2, targets=TARGETS),
    "rank-one scaling": pj.rank_one_scaling(targets=TARGETS),
    "norms": pj.norm_tuning(),
    "partial": pj.partial(("attention/key/kernel", "mlp/wo/kernel"), layers=(0,)),
    "top layers": pj.top_layers(1),
    "fish": pj.fish_mask(0.01, targets="kernel", choice="random"),
    "said": pj.said(64, targets="query/kernel"),
    "rows": pj.vocabulary_rows(ids=(4, 7)),
}
METHODS = {**SEEN, **UNSEEN}
# Bottlenecks start close to it: with weights of 1e-3 and less.
CLOSE = {"houlsby": 1e-2, "pfeiffer": 0.5, "compacter": 1e-2, "compacter++": 1e-2}
FEW = ("prefix", "prompt behind the input", "prompts at every layer", "houlsby", "pfeiffer", "dora")


def cases(quick=tuple(METHODS), few=FEW, families=tuple(FAMILIES), names=tuple(METHODS)):
    """Every method on every family; without the slow ones, all on one T5 and a few elsewhere."""
    for family in families:
        for name in names:
            fast = name in (quick if family == "t5_v1_1" else few if family in QUICK else ())
            yield pytest.param(name, family, marks=() if fast else pytest.mark.slow)


def over(**chosen):
    return pytest.mark.parametrize(("name", "family"), list(cases(**chosen)))


@functools.cache
def started(name, family):
    backbone = backbone_of(family)
    method = METHODS[name]
    return backbone, method, jax.jit(method.init)(jax.random.key(0), backbone)


@functools.cache
def trained(name, family):
    """A backbone, a method, and an adapter that no entry of is where it started."""
    backbone, method, stored = started(name, family)
    rng = np.random.default_rng(sum(map(ord, name)))
    moved, fixed = tree.split_fixed(stored)
    moved = jax.tree.map(lambda x: x + jnp.float32(0.1) * rng.standard_normal(x.shape), moved)
    return backbone, method, tree.join(tree.cast(moved, jnp.float32), fixed)


def fitting_batch(config, rows=3):
    batch = batch_of(config, tokens_of(config, rows))
    if config.kind == "decoder":
        # Where the input ends: rows behind it would else stand behind the whole text.
        ends = np.arange(batch["decoder_input_tokens"].shape[1]) < 5
        batch["decoder_causal_attention"] = np.tile(ends, (rows, 1)).astype(np.int32)
    return batch


@over(
    quick=("parallel", "compacter++", "dora, one layer", "top layers", "rows", "norms"),
    few=("pfeiffer",),
    names=tuple(UNSEEN),
)
def test_the_initial_function_is_the_backbones(name, family):
    backbone, method, stored = started(name, family)
    batch = fitting_batch(backbone.config)
    run = jax.jit(backbone.logits)
    wanted = run(backbone.params, batch)
    found = run(pj.merge(backbone.params, method.bind(stored)), batch)
    oracle.assert_close(found, wanted, CLOSE.get(name, 1e-5))


@over(quick=("prefix", "top layers"), few=())
def test_an_adapter_changes_the_function_and_every_part_of_it_matters(name, family):
    backbone, method, stored = trained(name, family)
    batch = fitting_batch(backbone.config)
    moved, fixed = tree.split_fixed(stored)

    def loss(moved):
        params = pj.merge(backbone.params, method.bind(tree.join(moved, fixed)))
        return jnp.square(backbone.logits(params, batch)).mean()

    gradients = tree.flatten(jax.jit(jax.grad(loss))(moved))
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        # A BERT's pooler stands in front of a classifier; no logit of a token reads it.
        assert np.any(np.asarray(gradient) != 0) or "pooler" in path, path


@over(quick=("prefix", "pissa", "dora, one layer", "rank-one scaling"), few=())
def test_folded_equals_merged(name, family):
    backbone, method, stored = trained(name, family)
    merged = pj.merge(backbone.params, method.bind(stored))
    if method.fold is None:
        with pytest.raises(pj.InputError, match="cannot be folded"):
            pj.fold(merged)
        return
    folded = method.fold(backbone.params, stored)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, backbone.params)
    batch = fitting_batch(backbone.config)
    run = jax.jit(backbone.logits)
    oracle.assert_close(run(folded, batch), run(merged, batch), 1e-5)


@pytest.mark.parametrize("name", ["dora", "norms", "fish", "top layers", "vera"])
def test_unfolding_restores_the_backbone_bit_for_bit(name):
    backbone, method, stored = trained(name, "t5_v1_1")
    folded, kept = pj.fold_in(backbone.params, method, stored)
    own, now = tree.flatten(backbone.params), tree.flatten(folded)
    changed = [p for p in own if not np.array_equal(own[p], now[p])]
    assert changed
    assert set(changed) <= set(tree.flatten(kept))
    restored = tree.flatten(pj.unfold(folded, kept))
    assert restored.keys() == own.keys()
    assert all(np.array_equal(restored[p], own[p]) for p in own)


def test_what_was_not_folded_is_not_unfolded():
    backbone, method, stored = trained("prefix", "t5_v1_1")
    with pytest.raises(pj.InputError, match="prefix_tuning cannot be folded"):
        pj.fold_in(backbone.params, method, stored)
    with pytest.raises(pj.InputError, match="'other/kernel' was not folded"):
        pj.unfold(backbone.params, {"other": {"kernel": jnp.ones(3)}})


@pytest.mark.parametrize(
    "name",
    quickly(METHODS, ("prefix through an MLP", "p_tuning", "compacter", "dora", "adalora", "vera")),
)
def test_the_derivative_of_bind_is_the_finite_difference(name):
    """Along one direction; bind need not be linear (networks, products)."""
    _, method, stored = trained(name, "t5_v1_1")
    moved, fixed = tree.split_fixed(stored)
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), moved)

    @jax.jit
    def at(step):
        moved_on = jax.tree.map(lambda x, d: x + step * d, moved, direction)
        leaves = jax.tree.leaves(method.bind(tree.join(moved_on, fixed)))
        return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]

    step = jnp.float32(2e-3)
    _, slopes = jax.jvp(at, (jnp.float32(0),), (jnp.float32(1),))
    for slope, ahead, behind in zip(slopes, at(step), at(-step), strict=True):
        difference = (np.float64(ahead) - np.float64(behind)) / (2 * float(step))
        scale = np.abs(np.float64(slope)).max() + np.abs(np.float64(ahead)).max()
        np.testing.assert_allclose(slope, difference, atol=2e-3 * scale + 1e-4)


@pytest.mark.parametrize(
    "name",
    quickly(METHODS, ("prefix through an MLP", "vera", "partial", "fish", "p_tuning", "pissa")),
)
def test_saved_and_loaded_adapters_are_equal(name, tmp_path):
    backbone, method, stored = trained(name, "t5_v1_1")
    pj.save_adapter(tmp_path, stored, method, backbone)
    loaded, same = pj.load_adapter(tmp_path, backbone)
    assert same.spec == method.spec
    assert tree.flatten(loaded).keys() == tree.flatten(stored).keys()
    jax.tree.map(np.testing.assert_array_equal, loaded, stored)
    jax.tree.map(np.testing.assert_array_equal, same.bind(loaded), method.bind(stored))


@over(quick=("prefix", "prompts at every layer"), few=())
def test_scan_equals_a_loop_over_layers(monkeypatch, name, family):
    backbone, method, stored = trained(name, family)
    params = transformer.without_tails(pj.merge(backbone.params, method.bind(stored)))
    batch = fitting_batch(backbone.config)
    scanned = jax.jit(backbone.logits)(params, batch)
    monkeypatch.setattr(transformer, "_scan", unrolled)
    looped = jax.jit(lambda p, b: backbone.logits(p, b))(params, batch)
    oracle.assert_close(looped, scanned, 3e-6)


FROZEN = [n for n in METHODS if n not in ("partial", "top layers", "fish", "said")]


@over(quick=("prefix", "houlsby", "dora", "prompts at every layer"), few=(), names=tuple(FROZEN))
def test_no_matrix_of_a_frozen_weights_shape_is_saved_or_made(name, family):
    """No copy of a weight is kept for the backward pass, and no gradient of one is computed."""
    backbone, method, stored = trained(name, family)
    batch = fitting_batch(backbone.config)
    moved, fixed = tree.split_fixed(stored)

    def residuals(moved, frozen):
        def loss(moved):
            params = pj.merge(frozen, method.bind(tree.join(moved, fixed)))
            return backbone.logits(params, batch).mean()

        value, pullback = jax.vjp(loss, moved)
        return pullback(jnp.ones_like(value))

    outputs = scan_outputs(jax.make_jaxpr(residuals)(moved, backbone.params).jaxpr)
    assert outputs
    kernels = frozen_kernels(backbone.config)
    assert not [shape for shape, _ in outputs if shape in kernels or shape[1:] in kernels]


# ------------------------------------------------------------------------------ banks

BANK = tuple(METHODS)
# Rows, keys, a module and a matrix, for the quick tests.
MIXED = ("prompt behind the input", "prefix", "pfeiffer", "dora, one layer")
WRITERS = tuple(n for n, c in FAMILIES.items() if c.decoder_layers)


def entries(family, names=BANK):
    return [trained(name, family)[1:] for name in names]


def own_params(backbone, entry):
    method, stored = entry
    return transformer.without_tails(pj.merge(backbone.params, method.bind(stored)))


def banks(families, quick):
    """Some methods on a T5; with the slow tests all of them on every family."""
    yield pytest.param("t5_v1_1", quick, id="t5_v1_1, some")
    for family in families:
        yield pytest.param(family, BANK, id=family, marks=pytest.mark.slow)


@pytest.mark.parametrize(("family", "names"), banks(FAMILIES, MIXED))
def test_a_bank_of_all_methods_equals_the_loop_over_them(family, names):
    backbone = backbone_of(family)
    every = entries(family, names)
    together = pj.merge(backbone.params, pj.bank(every))
    tokens = tokens_of(backbone.config, len(every) + 1)
    tokens[::3, 6:] = backbone.config.pad_id
    batch = batch_of(backbone.config, tokens)
    ids = np.arange(-1, len(every), dtype=np.int32)
    run = jax.jit(backbone.logits)
    mixed = np.asarray(run(together, batch | {"task_ids": ids}))
    wanted = [run(backbone.params, batch)]
    wanted += [run(own_params(backbone, entry), batch) for entry in every]
    for row, alone in enumerate(wanted):
        real = slice(None)
        if backbone.config.kind != "encoder_decoder":
            real = tokens[row] != backbone.config.pad_id
        what = "none" if not row else names[row - 1]
        oracle.assert_close(mixed[row][real], np.asarray(alone)[row][real], 1e-5, what)


@pytest.mark.slow
@pytest.mark.parametrize("family", WRITERS)
def test_choices_and_texts_of_a_bank_equal_the_loop(family):
    backbone = backbone_of(family)
    every = entries(family)
    together = pj.merge(backbone.params, pj.bank(every))
    batch = choices_of(family)
    rows = len(every)
    batch = {n: np.concatenate([x] * (rows // len(x) + 1))[:rows] for n, x in batch.items()}
    ids = {"task_ids": np.arange(rows, dtype=np.int32)}
    score = jax.jit(lambda p, b: scoring.choice_log_probs(backbone.config, p, b))
    mixed = np.asarray(score(together, batch | ids))
    # Short enough for learned positions behind the longest of all prompts and prefixes.
    inputs = {"encoder_input_tokens": batch["encoder_input_tokens"][:, :6]}
    texts = np.asarray(pj.greedy(backbone, together, inputs | ids, 4))
    for row, entry in enumerate(every):
        params = own_params(backbone, entry)
        alone = np.asarray(score(params, batch))
        real = batch["choices"][row] != backbone.config.pad_id
        oracle.assert_close(mixed[row][real], alone[row][real], 2e-5, BANK[row])
        text = np.asarray(pj.greedy(backbone, params, inputs, 4))
        np.testing.assert_array_equal(texts[row], text[row], BANK[row])


@over(quick=(), few=(), families=WRITERS)
def test_decoding_step_by_step_equals_the_whole_text(name, family):
    """The scores of a text that was generated are those of the same text read at once."""
    backbone, method, stored = trained(name, family)
    params = own_params(backbone, (method, stored))
    config = backbone.config
    inputs = {"encoder_input_tokens": tokens_of(config, 3)}
    made = pj.generate(backbone, params, inputs, pj.Decoding(max_length=4))
    tokens = np.asarray(made.tokens)[:, 0]
    choices = tokens[:, None]
    log_probs = scoring.choice_log_probs(config, params, inputs | {"choices": choices})
    for row, length in enumerate(np.asarray(made.lengths)[:, 0]):
        wanted = np.asarray(log_probs)[row, 0, :length].mean()
        assert made.scores[row, 0] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("pair", [("prefix", "houlsby"), ("dora", "norms")])
def test_the_order_of_methods_at_different_places_does_not_matter(pair):
    backbone = backbone_of("t5_v1_1")
    batch = fitting_batch(backbone.config)
    run = jax.jit(backbone.logits)
    found = []
    for names in (pair, pair[::-1]):
        method = pj.compose(*(METHODS[n] for n in names))
        branches = dict(
            zip(stored_names([METHODS[n].spec["name"] for n in names]), names, strict=True)
        )
        stored = {branch: trained(name, "t5_v1_1")[2] for branch, name in branches.items()}
        found.append(run(pj.merge(backbone.params, method.bind(stored)), batch))
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_lazy_leaves_are_resolved_by_merge():
    for name in METHODS:
        backbone, method, stored = trained(name, "t5_v1_1")
        merged = pj.merge(backbone.params, method.bind(stored))
        assert not [x for x in jax.tree.leaves(merged) if isinstance(x, Lazy)]
