"""The losses against the released code of T-Few and T5X, float64 torch, and their own laws."""

import doctest
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import losses
from peft_jax.errors import InputError

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "losses.npz"))
PARTS = ("lm_loss", "unlikelihood_loss", "length_normalized_loss")


def golden(prefix: str) -> dict:
    return {k[len(prefix) + 1 :]: v for k, v in GOLDEN.items() if k.startswith(prefix + "/")}


def random_batch(seed=0, batch=6, choices=4, length=5, vocabulary=17, scale=2.0):
    """Ragged choices, from one to all of them valid per example."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((batch, choices, length, vocabulary))).astype(np.float32)
    tokens = rng.integers(1, vocabulary, (batch, choices, length))
    lengths = rng.integers(1, length + 1, (batch, choices, 1))
    valid = 1 + np.arange(batch) % choices
    mask = np.arange(choices) < valid[:, None]
    tokens = np.where((np.arange(length) < lengths) & mask[..., None], tokens, 0)
    return (
        logits,
        tokens.astype(np.int32),
        mask,
        (rng.integers(0, 99, batch) % valid).astype(np.int32),
    )


@partial(
    jax.jit,
    static_argnames=("variant", "length_normalization", "unlikelihood", "length_normalized"),
)
def loss_of_logits(logits, choices, mask, label, **options):
    return losses.tfew_loss(
        losses.token_log_probs(logits, choices), choices, mask, label, **options
    )


@pytest.mark.slow
def test_docstring_examples():
    assert doctest.testmod(losses).failed == 0


# ------------------------------------------------------------------------------ log-probabilities


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (3, 11), (2, 3, 4, 5)])
def test_token_log_probs_equals_log_softmax(shape, dtype):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(4 * rng.standard_normal(shape), dtype)
    targets = rng.integers(0, shape[-1], shape[:-1])
    scale = rng.standard_normal(shape[:-1]).astype(np.float32)

    def plain(x, targets):
        log_softmax = jax.nn.log_softmax(x.astype(jnp.float32))
        return jnp.take_along_axis(log_softmax, targets[..., None], -1)[..., 0]

    def graded(function):
        value, pullback = jax.vjp(lambda x: function(x, targets), logits)
        return value, pullback(scale)[0]

    value, gradient = jax.jit(partial(graded, losses.token_log_probs))()
    expected_value, expected = jax.jit(partial(graded, plain))()
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(value, expected_value, rtol=2e-6, atol=1e-6)
    rounding = 1e-6 if dtype == jnp.float32 else 1e-2
    gradient, expected = (x.astype(jnp.float32) for x in (gradient, expected))
    np.testing.assert_allclose(gradient, expected, rtol=rounding, atol=rounding)


def test_token_log_probs_under_vmap():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 4, 9)).astype(np.float32)
    targets = rng.integers(0, 9, (3, 4))

    def gradient(logits, targets):
        return jax.grad(lambda x: losses.token_log_probs(x, targets).sum())(logits)

    batched, mapped = jax.jit(gradient), jax.jit(jax.vmap(gradient))
    np.testing.assert_allclose(mapped(logits, targets), batched(logits, targets), rtol=1e-6)


@pytest.mark.parametrize("gap", [5.0, 20.0, 40.0, 80.0])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_token_log_probs_keeps_its_precision_near_one(gap, offset):
    """1 - p of a certain token has a relative precision, though p itself rounds to one."""
    logits = np.full((1000,), offset, np.float32)
    logits[7] += gap
    log_prob = float(losses.token_log_probs(jnp.asarray(logits), jnp.asarray(7)))
    assert log_prob == pytest.approx(-np.log1p(999 * np.exp(-gap)), rel=2e-5)


def test_backward_pass_stores_the_logits_only_in_their_dtype():
    logits = jnp.zeros((8, 1024), jnp.bfloat16)
    targets = jnp.zeros((8,), jnp.int32)
    _, pullback = jax.vjp(lambda x: losses.token_log_probs(x, targets), logits)
    stored = [x for x in jax.tree.leaves(pullback) if x.size >= logits.size]
    assert [x.dtype for x in stored] == [jnp.bfloat16]


def test_a_sharded_vocabulary_is_not_gathered():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("model",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    logits = jax.device_put(jax.random.normal(jax.random.key(0), (4, 64)), sharding)
    targets = jnp.array([0, 9, 33, 63])
    step = jax.jit(jax.value_and_grad(lambda x: losses.token_log_probs(x, targets).sum()))
    assert "all-gather" not in step.lower(logits).compile().as_text()
    whole = jax.value_and_grad(lambda x: losses.token_log_probs(x, targets).sum())
    for ours, expected in zip(step(logits), whole(np.asarray(logits)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("log_p", [-1e-6, -1e-3, -0.5, -np.log(2), -0.7, -5.0, -30.0, -79.0])
def test_log1mexp_value_and_slope(log_p):
    value, slope = jax.value_and_grad(losses.log1mexp)(jnp.float32(log_p))
    exact = np.float64(np.float32(log_p))
    assert float(value) == pytest.approx(np.log(-np.expm1(exact)), rel=1e-6)
    assert float(slope) == pytest.approx(-1 / np.expm1(-exact), rel=1e-6)


@pytest.mark.parametrize("log_p", [0.0, -0.0, -1e-38, -1e-9, -88.0, -104.0, -1e30, -np.inf])
def test_log1mexp_is_finite_at_the_ends(log_p):
    for function in (
        losses.log1mexp,
        jax.grad(losses.log1mexp),
        jax.jit(jax.grad(losses.log1mexp)),
    ):
        assert np.isfinite(function(jnp.float32(log_p)))
    assert jax.grad(losses.log1mexp)(jnp.float32(log_p)) <= 0


# ------------------------------------------------------------------------------ the T-Few losses


@pytest.mark.parametrize("case", ["mild", "summed", "confident", "one_token"])
def test_tfew_variant_equals_the_released_code(case):
    given = golden(f"tfew/{case}")
    mask = np.ones(given["choices"].shape[:2], bool)
    options = {"variant": "tfew", "length_normalization": float(given["length_norm"])}

    def loss(logits):
        return loss_of_logits(logits, given["choices"], mask, given["label"], **options)

    (total, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(given["logits"])
    for part in PARTS:
        assert float(metrics[part]) == pytest.approx(float(given[part]), rel=2e-6, abs=1e-6), part
    assert float(total) == pytest.approx(float(given["loss"]), rel=2e-6)
    np.testing.assert_allclose(gradient, given["gradient"], rtol=2e-5, atol=1e-6)
    right = given["prediction"] == given["label"]
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(right))


@pytest.mark.parametrize("case", ["mild", "summed"])
def test_tfew_variant_equals_the_released_code_on_padded_shapes(case):
    """More choices, longer choices and more examples than T-Few's batch had change nothing."""
    given = golden(f"tfew/{case}")
    batch, count, _ = given["choices"].shape
    choices = np.pad(given["choices"], ((0, 2), (0, 1), (0, 3)))
    logits = np.pad(given["logits"], ((0, 2), (0, 1), (0, 3), (0, 0)))
    mask = np.pad(np.ones((batch, count), bool), ((0, 2), (0, 1)))
    label = np.pad(given["label"], (0, 2))
    weight = (np.arange(batch + 2) < batch).astype(np.float32)
    options = {"variant": "tfew", "length_normalization": float(given["length_norm"])}
    _, metrics = loss_of_logits(logits, choices, mask, label, weight=weight, **options)
    for part in PARTS:
        assert float(metrics[part]) == pytest.approx(float(given[part]), rel=2e-6, abs=1e-6), part


@pytest.mark.oracle
@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize("length_normalization", [1.0, 0.0])
def test_paper_variant_equals_its_formulas_in_float64(scale, length_normalization):
    """Liu et al. 2022, section 3.2, written out example by example in torch."""
    torch = pytest.importorskip("torch")
    logits, choices, mask, label = random_batch(scale=scale)
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(x, -1)
    likelihood, unlikelihood, ranking, tokens, wrong_tokens = 0.0, 0.0, 0.0, 0, 0
    for b in range(len(choices)):
        scores = []
        for c in np.flatnonzero(mask[b]):
            n = int((choices[b, c] != 0).sum())
            of_choice = log_p[b, c, range(n), choices[b, c, :n]]
            scores.append(of_choice.sum() / n**length_normalization)
            if c == label[b]:
                likelihood, tokens = likelihood - of_choice.sum(), tokens + n
            else:
                unlikelihood = unlikelihood - torch.log1p(-of_choice.exp()).sum()
                wrong_tokens += n
        ranking = ranking - torch.log_softmax(torch.stack(scores), 0)[label[b]]
    parts = (likelihood / tokens, unlikelihood / wrong_tokens, ranking / len(choices))
    (parts[0] + 0.5 * parts[1] + 2.0 * parts[2]).backward()

    def loss(logits):
        return loss_of_logits(
            logits,
            choices,
            mask,
            label,
            unlikelihood=0.5,
            length_normalized=2.0,
            length_normalization=length_normalization,
        )

    (_, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    for name, part in zip(PARTS, parts, strict=True):
        assert float(metrics[name]) == pytest.approx(part.item(), rel=2e-6), name
    np.testing.assert_allclose(gradient, x.grad, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("variant", ["paper", "tfew"])
def test_pieces_add_up_to_the_whole(variant):
    """Gradient accumulation: losses, metrics, gradients of unequal pieces over shared counts."""
    logits, choices, mask, label = random_batch(batch=6)
    choices[:, 0, :] = np.maximum(choices[:, 0, :], 1)  # every piece is as long as the whole
    weight = np.array([1, 1, 1, 1, 1, 0], np.float32)
    counts = losses.tfew_counts(choices, mask, label, weight)

    def loss(logits, rows, counts):
        rows = slice(*rows)
        return loss_of_logits(
            logits, *(a[rows] for a in (choices, mask, label)), weight=weight[rows],
            variant=variant, counts=counts,
        )  # fmt: skip

    graded = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, whole), gradient = graded(logits, (0, 6), None)
    pieces = [(0, 1), (1, 4), (4, 6)]
    results = [graded(logits[slice(*rows)], rows, counts) for rows in pieces]
    for name, value in whole.items():
        added = sum(float(metrics[name]) for (_, metrics), _ in results)
        assert added == pytest.approx(float(value), rel=1e-6), name
    np.testing.assert_allclose(np.concatenate([g for _, g in results]), gradient, atol=1e-7)


@pytest.mark.parametrize("variant", ["paper", "tfew"])
def test_padding_of_the_batch_changes_nothing(variant):
    logits, choices, mask, label = random_batch()
    total, expected = loss_of_logits(logits, choices, mask, label, variant=variant)
    weight = np.pad(np.ones(len(label), np.float32), (0, 3))

    def padded(logits):
        return loss_of_logits(
            logits,
            np.pad(choices, ((0, 3), (0, 2), (0, 1))),
            np.pad(mask, ((0, 3), (0, 2))),
            np.pad(label, (0, 3)),
            weight=weight,
            variant=variant,
        )

    wide = np.pad(logits, ((0, 3), (0, 2), (0, 1), (0, 0)), constant_values=7.0)
    (value, metrics), gradient = jax.jit(jax.value_and_grad(padded, has_aux=True))(wide)
    assert float(value) == pytest.approx(float(total), rel=1e-6)
    for name in expected:
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-6), name
    gradient = np.array(gradient)
    gradient[: len(label), : mask.shape[1], : choices.shape[2]] = 0
    assert not gradient.any()


@pytest.mark.parametrize("variant", ["paper", "tfew"])
@pytest.mark.parametrize("poison", [0.0, -np.inf, np.nan, -200.0])
def test_cells_that_do_not_count_never_reach_the_gradient(variant, poison):
    _, choices, mask, label = random_batch()
    log_probs = np.where(choices != 0, -0.7, poison).astype(np.float32)

    def loss(log_probs):
        return losses.tfew_loss(log_probs, choices, mask, label, variant=variant)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(log_probs))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[choices == 0].any()


@pytest.mark.parametrize("variant", ["paper", "tfew"])
@pytest.mark.parametrize("gap", [0.0, 30.0, 120.0, 1e4])
def test_certain_and_impossible_tokens_have_finite_gradients(variant, gap):
    choices = np.array([[[3, 1], [4, 1], [5, 0]]], np.int32)
    for sign in (gap, -gap):
        logits = sign * jax.nn.one_hot(choices, 8)
        value, gradient = jax.jit(
            jax.value_and_grad(
                lambda x: loss_of_logits(
                    x, choices, choices[..., 0] > 0, np.array([0]), variant=variant
                )[0]
            )
        )(logits)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() <= 2


@pytest.mark.parametrize("variant", ["paper", "tfew"])
@pytest.mark.parametrize("pad_id", [-1, 99])
def test_another_pad_id_fills_the_same_batch(variant, pad_id):
    logits, choices, mask, label = random_batch()
    choices = np.where(choices == 3, 0, choices)  # 0 is a token here, 3 the padding's stand-in
    log_probs = losses.token_log_probs(logits, choices)
    plain = np.where(choices == 0, 3, choices)
    length = np.sum(random_batch()[1] != 0, axis=-1, keepdims=True)
    padding = np.arange(choices.shape[-1]) >= length
    expected = losses.tfew_loss(
        log_probs, np.where(padding, 0, plain), mask, label, variant=variant
    )
    filled = np.where(padding, pad_id, choices)
    options = {"variant": variant, "pad_id": pad_id}
    got = losses.tfew_loss(log_probs, filled, mask, label, **options)
    counted = losses.tfew_counts(filled, mask, label, pad_id=pad_id)
    again = losses.tfew_loss(log_probs, filled, mask, label, counts=counted, **options)
    for name, value in expected[1].items():
        assert got[1][name] == again[1][name] == value, name
    assert got[0] != losses.tfew_loss(log_probs, filled, mask, label, variant=variant)[0]
    np.testing.assert_array_equal(
        losses.choice_scores(log_probs, filled, pad_id=pad_id),
        losses.choice_scores(log_probs, np.where(padding, 0, plain)),
    )


def test_one_valid_choice_leaves_language_modelling_alone():
    logits, choices, mask, label = random_batch()
    mask, label = mask & (np.arange(4) == 0), np.zeros_like(label)
    for variant in ("paper", "tfew"):
        loss, metrics = loss_of_logits(logits, choices, mask, label, variant=variant)
        assert float(metrics["unlikelihood_loss"]) == 0
        assert float(metrics["length_normalized_loss"]) == 0
        assert float(loss) == float(metrics["lm_loss"]) > 0
        assert float(metrics["accuracy"]) == 1


def test_a_batch_of_padding_only_is_zero():
    logits, choices, mask, label = random_batch()
    options = {"weight": np.zeros(len(label), np.float32)}

    def loss(logits):
        return loss_of_logits(logits, choices, np.zeros_like(mask), label, **options)

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    assert float(value) == 0
    assert not any(float(metric) for metric in metrics.values())
    assert not np.asarray(gradient).any()


def test_choice_scores_by_hand():
    log_probs = jnp.array([[[-1.0, -2.0, -3.0], [-4.0, 9.0, 9.0], [5.0, 5.0, 5.0]]])
    choices = jnp.array([[[5, 6, 1], [1, 0, 0], [0, 0, 0]]])
    for exponent, expected in ((0.0, [-6, -4, 0]), (1.0, [-2, -4, 0]), (0.5, [-6 / 3**0.5, -4, 0])):
        scores = losses.choice_scores(log_probs, choices, exponent)
        np.testing.assert_allclose(scores[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "code"}, '"paper" or "tfew"'),
        ({"choice_mask": jnp.ones((2, 4), bool)}, r"choice_mask has shape \[2, 4\].*\[2, 3\]"),
        ({"label": jnp.zeros((2, 1), int)}, r"label has shape \[2, 1\].*\[2\]"),
        ({"choices": jnp.ones((2, 3, 5), int)}, r"choices has shape \[2, 3, 5\].*\[2, 3, 4\]"),
        ({"weight": jnp.ones((3,))}, r"weight has shape \[3\].*\[2\]"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        "log_probs": jnp.zeros((2, 3, 4)),
        "choices": jnp.ones((2, 3, 4), int),
        "choice_mask": jnp.ones((2, 3), bool),
        "label": jnp.zeros((2,), int),
    }
    with pytest.raises(InputError, match=message):
        losses.tfew_loss(**(arguments | change))


# ------------------------------------------------------------------------------- language modelling


@pytest.mark.parametrize("case", ["plain", "z_loss", "smoothed", "both"])
def test_sequence_loss_equals_t5x(case):
    given = golden(f"t5x/{case}")
    z_loss, label_smoothing = float(given["z_loss"]), float(given["label_smoothing"])

    def loss(logits):
        return losses.sequence_loss(
            logits,
            given["targets"],
            given["weights"],
            z_loss=z_loss,
            label_smoothing=label_smoothing,
        )

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(given["logits"])
    assert float(value) == pytest.approx(float(given["loss"]), rel=2e-6)
    assert float(metrics["z_loss"]) == pytest.approx(float(given["of_z"]), rel=2e-6)
    np.testing.assert_allclose(gradient, given["gradient"], rtol=2e-5, atol=1e-6)


def test_sequence_loss_by_default_counts_what_is_not_padding():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    targets = jnp.array([[4, 1, 0], [1, 0, 0]])
    loss, metrics = jax.jit(losses.sequence_loss)(logits, targets)
    log_probs = jax.nn.log_softmax(logits)
    expected = -(log_probs[0, 0, 4] + log_probs[0, 1, 1] + log_probs[1, 0, 1]) / 3
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["lm_loss"]) == float(loss)


def test_sequence_loss_counts_token_zero_where_it_is_no_padding():
    logits = np.random.default_rng(0).standard_normal((2, 4, 9)).astype(np.float32)
    targets = jnp.array([[0, 5, 0, -1], [7, -1, -1, -1]])
    loss, _ = losses.sequence_loss(logits, targets, pad_id=-1)
    kept = losses.token_log_probs(logits, targets)[targets >= 0]
    np.testing.assert_allclose(loss, -kept.mean(), rtol=1e-6)
    gradient = jax.grad(lambda x: losses.sequence_loss(x, targets, pad_id=-1)[0])(logits)
    assert not np.asarray(gradient)[np.asarray(targets) < 0].any()


def test_sequence_loss_pieces_add_up():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 5))
    targets = jnp.array([[4, 1, 0, 0], [1, 0, 0, 0], [2, 3, 4, 1]])
    count = losses.token_weights(targets).sum()
    options = {"z_loss": 0.1, "label_smoothing": 0.1}
    loss = jax.jit(partial(losses.sequence_loss, **options))
    whole, _ = loss(logits, targets)
    parts = [loss(logits[i], targets[i], count=count)[0] for i in range(3)]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_label_smoothing_outside_its_range():
    with pytest.raises(InputError, match=r"label_smoothing is 1\.0"):
        losses.sequence_loss(jnp.zeros((1, 1, 3)), jnp.ones((1, 1), int), label_smoothing=1.0)
