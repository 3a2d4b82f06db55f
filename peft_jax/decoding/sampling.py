"""Drawing tokens: temperature, top-k, top-p, and the draw itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from peft_jax.decoding.largest import top_k
from peft_jax.decoding.processing import Strengths

# Entries of a block of the two-level draw; a lane of an accelerator's vector unit.
_BLOCK = 128


def warp(logits: jax.Array, strengths: Strengths, most: int | None) -> jax.Array:
    """Logits [N, V] with what is not to be drawn at -inf, in transformers' order."""
    if strengths.temperature is not None:
        logits = logits / strengths.temperature
    if most is not None:
        logits = keep_top_k(logits, most)
    if strengths.top_p is not None:
        logits = keep_top_p(logits, strengths.top_p)
    return logits


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """The k largest of [N, V] and all that equal the last of them; TopKLogitsWarper."""
    if k >= logits.shape[-1]:
        return logits
    least = top_k(logits, k)[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """The largest of [N, V] whose probabilities sum to at least ``top_p``.

    A token is kept if those above it sum to less than top_p: TopPLogitsWarper, but tokens of equal
    probability are kept or left together. Nothing is sorted (a CPU takes ten times as long for that
    as for a whole decoding step): the least probability that is kept is searched for bit by bit, in
    the order of float32's bits, which for positive numbers is their own.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        limit = jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None]
        above = jnp.sum(jnp.where(probabilities > limit, probabilities, 0.0), axis=-1)
        enough = above < top_p
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low = jnp.zeros(len(logits), jnp.int32)
    largest = jnp.max(probabilities, axis=-1)
    high = jax.lax.bitcast_convert_type(largest, jnp.int32)
    _, bits = jax.lax.fori_loop(0, 31, halve, (low, high))
    least = jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None]
    return jnp.where(probabilities < least, -jnp.inf, logits)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """A key for each sequence, so that a row's draws do not depend on how many rows there are."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def draw(keys: jax.Array, step: jax.Array, logits: jax.Array) -> jax.Array:
    """A token [N] int32 of each row with the probabilities softmax(logits [N, V]).

    By one uniform number and the inverse of the distribution function, taken over blocks first: a
    Gumbel number for every token of the vocabulary costs a CPU half as long as the model itself.

    Args:
      keys: [N] from :func:`row_keys`.
      step: [] int32, which of the row's draws this is.
    """
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    vocabulary = weights.shape[-1]
    weights = jnp.pad(weights, ((0, 0), (0, -vocabulary % _BLOCK)))
    blocks = weights.reshape(len(weights), -1, _BLOCK)
    masses = jnp.sum(blocks, axis=-1)
    totals = jnp.cumsum(masses, axis=-1)
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step)))(keys)
    point = uniform * totals[:, -1]
    block = _reach(masses, totals, point)
    before = jnp.where(block > 0, _pick(totals, block - 1), 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    place = _reach(inside, jnp.cumsum(inside, axis=-1), point - before)
    return (block * _BLOCK + place).astype(jnp.int32)


def _reach(weights: jax.Array, sums: jax.Array, point: jax.Array) -> jax.Array:
    """Index [N] of the first weight at which the sums [N, W] pass the point [N].

    Never one of weight zero, which the rounding of sums could otherwise come to.
    """
    there = weights > 0
    passed = there & (sums > point[:, None])
    last = weights.shape[-1] - 1 - jnp.argmax(there[:, ::-1], axis=-1)
    return jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
