"""What is kept of a distribution, against transformers' warpers; and that draws follow it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import peft_jax as pj
from peft_jax.decoding import sampling
from peft_jax.decoding.processing import Strengths
from tests.random_adapters import backbone_of
from tests.test_generate import inputs_of

# The least p-value of a test with its fixed key that passes for agreement.
LEAST = 1e-3


def random_logits(rows=64, vocabulary=200, seed=0, excluded=True):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.uniform(0.1, 4, (rows, 1)), (rows, vocabulary)).astype(np.float32)
    if excluded:
        logits[rng.random(logits.shape) < 0.2] = -np.inf
    return logits


def warped(logits, temperature=None, top_k=None, top_p=None):
    numbers = [None if x is None else jnp.float32(x) for x in (temperature, top_p)]
    return np.asarray(sampling.warp(jnp.asarray(logits), Strengths(*numbers, None), top_k))


def by_definition(logits, top_k, top_p):
    """The tokens kept, one row after the other, by sorting them."""
    kept = np.zeros(logits.shape, bool)
    for row, keep in zip(logits.astype(np.float64), kept, strict=True):
        left = np.flatnonzero(row > -np.inf)
        if top_k is not None and len(left) > top_k:
            left = left[row[left] >= np.sort(row[left])[-top_k]]
        if top_p is not None:
            weights = np.exp(row[left] - row[left].max())
            order = np.argsort(-weights)
            above = np.cumsum(weights[order]) - weights[order]
            left = left[order[above < top_p * weights.sum()]]
        keep[left] = True
    return kept


@pytest.mark.parametrize("top_k", [None, 1, 7, 500])
@pytest.mark.parametrize("top_p", [None, 0.03, 0.5, 0.937])
def test_what_is_kept_is_what_the_definition_keeps(top_k, top_p):
    logits = random_logits()
    out = warped(logits, top_k=top_k, top_p=top_p)
    kept = by_definition(logits, top_k, top_p)
    np.testing.assert_array_equal(out > -np.inf, kept)
    np.testing.assert_array_equal(out[kept], logits[kept])


@pytest.mark.oracle
@pytest.mark.parametrize("temperature", [None, 0.3, 2.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.5), (7, None), (20, 0.7), (None, 0.999)])
def test_equals_the_warpers_of_transformers(temperature, top_k, top_p):
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = random_logits()
    wanted = torch.as_tensor(logits)
    if temperature is not None:
        wanted = process.TemperatureLogitsWarper(temperature)(None, wanted)
    if top_k is not None:
        wanted = process.TopKLogitsWarper(top_k)(None, wanted)
    if top_p is not None:
        wanted = process.TopPLogitsWarper(top_p)(None, wanted)
    out = warped(logits, temperature, top_k, top_p)
    np.testing.assert_array_equal(out > -np.inf, wanted.numpy() > -np.inf)
    np.testing.assert_allclose(out, wanted.numpy(), rtol=1e-6)


def test_equals_are_kept_together():
    logits = np.float32([[2, 1, 1, 1, 0, -np.inf]])
    assert (warped(logits, top_k=2) > -np.inf).sum() == 4
    assert (warped(logits, top_p=0.5) > -np.inf).sum() == 4
    assert (warped(logits, top_p=1e-6) > -np.inf).sum() == 1


# ------------------------------------------------------------------------------ draws


def draws(logits, rows, step=0, seed=0):
    keys = sampling.row_keys(jax.random.key(seed), rows)
    many = jnp.broadcast_to(jnp.asarray(logits), (rows, len(logits)))
    return np.asarray(jax.jit(sampling.draw)(keys, jnp.int32(step), many))


def p_value(counts, probabilities):
    """That of Pearson's chi-square, cells of few expected counts taken together."""
    expected = probabilities * counts.sum()
    few = expected < 8
    if few.any():
        counts, expected = (np.append(x[~few], x[few].sum()) for x in (counts, expected))
    there = expected > 0
    assert (counts[~there] == 0).all()
    return stats.chisquare(counts[there], expected[there]).pvalue


@pytest.mark.parametrize("vocabulary", [3, 128, 300, 1000])
def test_draws_follow_the_distribution(vocabulary):
    logits = random_logits(1, vocabulary, seed=vocabulary)[0]
    logits[0] = 0.0
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    counts = np.bincount(draws(logits, 40_000), minlength=vocabulary)
    assert len(counts) == vocabulary
    assert (counts[logits == -np.inf] == 0).all()
    assert p_value(counts, probabilities) > LEAST
    skewed = probabilities * np.linspace(0.7, 1.3, vocabulary)
    assert p_value(counts, skewed / skewed.sum()) < LEAST, "the test would not see a wrong one"


def test_the_rarest_places_are_drawn_and_empty_blocks_are_not():
    logits = np.full(400, -np.inf, np.float32)
    logits[[5, 130, 399]] = 0.0
    assert set(draws(logits, 2000)) == {5, 130, 399}
    logits[[5, 130]] = 60.0  # the last token's weight vanishes beside theirs
    assert set(draws(logits, 2000)) == {5, 130}


def test_steps_and_rows_draw_independently():
    logits = np.float32([0.5, 0.0, -0.5])
    first, second = draws(logits, 20_000, 0), draws(logits, 20_000, 1)
    for one, other in ((first, second), (first[:-1], first[1:])):
        table = np.zeros((3, 3))
        np.add.at(table, (one, other), 1)
        assert stats.chi2_contingency(table).pvalue > LEAST


def test_a_row_does_not_depend_on_the_others():
    logits = random_logits(1, 300)[0]
    np.testing.assert_array_equal(draws(logits, 7), draws(logits, 100)[:7])
    np.testing.assert_array_equal(draws(logits, 7), draws(logits, 7))
    assert not np.array_equal(draws(logits, 7), draws(logits, 7, seed=1))


# ------------------------------------------------------------------------------ texts


def sampled(family, key=0, rows=3, **options):
    backbone = backbone_of(family)
    decoding = pj.Decoding(**options)
    return pj.generate(
        backbone, backbone.params, inputs_of(family, rows), decoding, jax.random.key(key)
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5_v1_1", "gpt2"])
def test_first_tokens_follow_the_model(family):
    backbone = backbone_of(family)
    options = {"temperature": 0.8, "top_k": 12, "top_p": 0.9}
    drawn = np.asarray(sampled(family, max_length=1, sequences=1500, **options).tokens)[..., 0]
    batch, last = inputs_of(family), np.zeros(3, int)
    if family == "gpt2":
        batch = {"decoder_input_tokens": batch["encoder_input_tokens"]}
        last = (batch["decoder_input_tokens"] != backbone.config.pad_id).sum(axis=1) - 1
    else:
        batch["decoder_input_tokens"] = np.full((3, 1), backbone.config.decoder_start_id)
    found = np.asarray(jax.jit(backbone.logits)(backbone.params, batch))
    for tokens, logits in zip(drawn, warped(found[np.arange(3), last], **options), strict=True):
        probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
        counts = np.bincount(tokens, minlength=len(logits))
        assert (counts[logits == -np.inf] == 0).all()
        assert p_value(counts, probabilities / probabilities.sum()) > LEAST


@pytest.mark.slow
def test_a_key_decides_the_texts():
    options = {"max_length": 6, "temperature": 1.5, "sequences": 2}
    one, again, other = (sampled("llama", key, **options).tokens for key in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[:, 0], one[:, 1])
    fewer = sampled("llama", 0, rows=1, **options).tokens
    np.testing.assert_array_equal(fewer[0], one[0])


def test_the_most_probable_of_one_is_greedy():
    backbone = backbone_of("llama")
    greedy = pj.greedy(backbone, backbone.params, inputs_of("llama"), 6)
    drawn = sampled("llama", max_length=6, top_k=1, sequences=3).tokens
    for i in range(3):
        np.testing.assert_array_equal(drawn[:, i], greedy)
