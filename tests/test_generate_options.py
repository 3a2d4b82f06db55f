"""Options that contradict each other, and what is done to logits before a token is chosen."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax.decoding.processing import (
    History,
    Strengths,
    ban_repeated_ngrams,
    penalize_repetition,
    process,
)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 0}, "max_length 0 must be at least 1"),
        ({"min_length": 9, "max_length": 8}, "min_length 9"),
        ({"min_length": -1}, "min_length -1"),
        ({"sequences": 0}, "sequences 0"),
        ({"sequences": 2}, "sequences 2: greedy decoding gives one text"),
        ({"temperature": 0.0}, "temperature 0.0 must be above 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"beams": 0}, "beams 0"),
        ({"beams": 3, "temperature": 0.7}, "temperature 0.7 samples, and beams 3 search"),
        ({"beams": 3, "top_p": 0.7}, "top_p 0.7 samples"),
        ({"beams": 3, "sequences": 4}, "sequences 4 are more than beams 3"),
        ({"length_penalty": 2.0}, "length_penalty 2.0 is of a beam search"),
        ({"early_stopping": True}, "early_stopping True is of a beam search"),
        ({"beams": 2, "early_stopping": "always"}, "early_stopping 'always'"),
        ({"beams": 2, "early_stopping": 1}, "early_stopping 1"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"first_token": -1}, "first_token -1"),
        ({"eos_ids": (1, -1)}, "eos_ids: token -1"),
        ({"stop": ("a", "")}, "stop: an empty text"),
        ({"stop_tokens": ((1,), ())}, r"stop_tokens: \(\)"),
    ],
    ids=str,
)
def test_a_contradiction_is_said(options, words):
    with pytest.raises(pj.InputError, match=words):
        pj.Decoding(**options)


def test_options_are_a_value():
    assert pj.Decoding(beams=2) == dataclasses.replace(pj.Decoding(), beams=2)
    assert hash(pj.Decoding(stop=("a",))) == hash(pj.Decoding(stop=("a",)))


# ------------------------------------------------------------------------------ processing

VOCABULARY = 9


def histories(rows=40, width=12, count=9, seed=0):
    """Random texts of few words behind padding of several lengths, and what comes behind ``count``
    that must not be read."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 4, (rows, width))
    padding = rng.integers(0, count - 1, (rows, 1))
    known = (np.arange(width) >= padding) & (np.arange(width) < count)
    return History(jnp.asarray(tokens), jnp.asarray(known), jnp.int32(count))


def texts_of(history):
    pairs = zip(np.asarray(history.tokens), np.asarray(history.known), strict=True)
    return [tokens[known].tolist() for tokens, known in pairs]


@pytest.mark.parametrize("size", [1, 2, 3, 9, 20])
def test_repeated_ngrams_are_banned(size):
    logits, history = jnp.zeros((40, VOCABULARY)), histories()
    out = np.asarray(ban_repeated_ngrams(logits, size, history))
    for row, text in zip(out, texts_of(history), strict=True):
        there = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        for token in range(VOCABULARY):
            repeats = len(text) >= size - 1 and (*text[len(text) - size + 1 :], token) in there
            if size == 1:
                repeats = token in text
            assert (row[token] == -np.inf) == repeats
    assert (out == -np.inf).any() == (size < 9)


def test_repetition_is_penalised():
    rng, history = np.random.default_rng(1), histories()
    logits = rng.standard_normal((40, VOCABULARY)).astype(np.float32)
    out = np.asarray(penalize_repetition(jnp.asarray(logits), jnp.float32(1.5), history))
    for row, before, text in zip(out, logits, texts_of(history), strict=True):
        for token in range(VOCABULARY):
            wanted = before[token]
            if token in text:
                wanted = wanted * 1.5 if wanted < 0 else wanted / 1.5
            np.testing.assert_allclose(row[token], wanted, rtol=1e-6)


@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_forced_tokens_and_the_least_length(step):
    decoding = pj.Decoding(max_length=5, min_length=2, first_token=3, last_token=4, eos_ids=(6, 7))
    out = np.asarray(
        process(
            jnp.ones((2, VOCABULARY)), jnp.int32(step), decoding, Strengths(None, None, None), None
        )
    )
    possible = set(np.flatnonzero(out[0] > -np.inf))
    everything = set(range(VOCABULARY))
    assert possible == {0: {3}, 1: everything - {6, 7}, 2: everything, 4: {4}}[step]
