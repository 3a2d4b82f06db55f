"""What is done to logits before a token is chosen: pure functions of [N, V] float32.

Each equals the processor of transformers that its docstring names, in the order in which
transformers applies them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from peft_jax.decoding.options import Decoding


class Strengths(NamedTuple):
    """The real numbers of a :class:`Decoding`, as arguments of the compiled loop: another
    temperature compiles nothing. None where a step is left out."""

    temperature: jax.Array | None
    top_p: jax.Array | None
    repetition_penalty: jax.Array | None


class History(NamedTuple):
    """The tokens that a sequence has so far: its input where the decoder read it, and its own.

    Attributes:
      tokens: [N, H] int32, each row's without gaps up to ``count``.
      known: [N, H] bool, which are tokens (padding in front and what is still to come are not).
      count: [] int32, places up to the next token.
    """

    tokens: jax.Array
    known: jax.Array
    count: jax.Array  # type: ignore[assignment]  # not tuple.count


def reads_history(decoding: Decoding) -> bool:
    """Whether the tokens in front matter to the choice of the next one."""
    return decoding.no_repeat_ngram > 0 or decoding.repetition_penalty != 1


def process(
    logits: jax.Array,
    step: jax.Array,
    decoding: Decoding,
    strengths: Strengths,
    history: History | None,
) -> jax.Array:
    """Logits of the next token with all that is asked of it, but for what only sampling does.

    Args:
      logits: [N, V]; a beam search gives log-probabilities.
      step: [] int32, tokens generated before.
      history: None where nothing reads it.
    """
    if strengths.repetition_penalty is not None and history is not None:
        logits = penalize_repetition(logits, strengths.repetition_penalty, history)
    if decoding.no_repeat_ngram and history is not None:
        logits = ban_repeated_ngrams(logits, decoding.no_repeat_ngram, history)
    if decoding.min_length and decoding.eos_ids:
        ended = jnp.zeros(logits.shape[-1], bool).at[jnp.asarray(decoding.eos_ids)].set(True)
        logits = jnp.where(ended & (step < decoding.min_length), -jnp.inf, logits)
    if decoding.first_token is not None:
        logits = jnp.where(step == 0, _only(decoding.first_token, logits), logits)
    if decoding.last_token is not None:
        last = step == decoding.max_length - 1
        logits = jnp.where(last, _only(decoding.last_token, logits), logits)
    return logits


def _only(token: int, logits: jax.Array) -> jax.Array:
    """Log-probabilities [V] of a token that is certain."""
    return jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, -jnp.inf)


def penalize_repetition(logits: jax.Array, penalty: jax.Array, history: History) -> jax.Array:
    """Logits of earlier tokens divided by the penalty, or multiplied where they are negative.

    RepetitionPenaltyLogitsProcessor; Keskar et al. 2019, section 4.1.
    """
    rows = jnp.arange(len(logits))[:, None]
    seen = jnp.zeros(logits.shape, bool).at[rows, history.tokens].max(history.known)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def ban_repeated_ngrams(logits: jax.Array, size: int, history: History) -> jax.Array:
    """No probability for tokens that would complete an n-gram that is there already.

    NoRepeatNGramLogitsProcessor; it counts padding in front of a prompt as tokens, this does not.
    """
    tokens, known, count = history
    windows = tokens.shape[1] - size + 1
    if windows < 1:
        return logits
    # The last size - 1 tokens. Where there are fewer no window is whole, so that what is cut out
    # instead does not matter.
    ending = jax.lax.dynamic_slice_in_dim(tokens, count - size + 1, size - 1, axis=1)
    whole = known[:, :windows] & (jnp.arange(windows) + size <= count)
    same = whole
    for place in range(size - 1):
        same = same & (tokens[:, place : place + windows] == ending[:, place : place + 1])
    rows = jnp.arange(len(logits))[:, None]
    banned = jnp.zeros(logits.shape, bool).at[rows, tokens[:, size - 1 :]].max(same)
    return jnp.where(banned, -jnp.inf, logits)
