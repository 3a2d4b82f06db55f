"""Beam search: the sequences of highest probability, a few of them followed at every step.

The rules are those of transformers' generate, step by step: twice as many candidates as beams (or
more, with several EOS) are taken, so that as many unended ones remain; a candidate that ends
becomes a hypothesis if it is among the best ``beams``; and the search of an input ends by
``early_stopping``.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import transformer
from peft_jax.constraints import constrain
from peft_jax.decoding.largest import top_k_of_few, top_k_of_groups
from peft_jax.decoding.one_by_one import history_of, is_eos
from peft_jax.decoding.options import Decoding
from peft_jax.decoding.processing import Strengths, process
from peft_jax.decoding.step import Layers, Read, advance, new_cache
from peft_jax.decoding.stopping import Stops
from peft_jax.transformer import Config
from peft_jax.tree import Params

# Added to the log-probability of what may not be chosen; transformers' own value, since beams that
# are left out keep such scores and are compared by them.
_EXCLUDED = -1e9


class Beams(NamedTuple):
    """Sequences that go on, K of each input, the best first.

    Attributes:
      tokens: [B, K, T] int32.
      scores: [B, K] float32 log-probabilities.
      ancestors: [B, K, T] int32, see ``step.advance``.
      states: [B, K, automata] int32 or None.
    """

    tokens: jax.Array
    scores: jax.Array
    ancestors: jax.Array
    states: jax.Array | None


class Hypotheses(NamedTuple):
    """Texts that have ended, the best K of each input, the best first.

    Attributes:
      tokens: [B, K, T] int32; lengths: [B, K] int32.
      scores: [B, K] float32: log-probability / length ** length_penalty.
      there: [B, K] bool, which of them exist.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    there: jax.Array


class Loop(NamedTuple):
    """What a step changes; ``improvable`` [B] bool: whether an input may still get better texts."""

    step: jax.Array
    beams: Beams
    hypotheses: Hypotheses
    improvable: jax.Array
    going: jax.Array
    cache: Any


class LengthFactors(NamedTuple):
    """What log-probabilities are divided by, [T] float32 by length - 1.

    Attributes:
      ended: for a text of this length.
      best: for the best that could still come of one that has this length and goes on.
    """

    ended: jax.Array
    best: jax.Array


def length_factors(decoding: Decoding) -> LengthFactors:
    """Powers of lengths, as arguments of the loop: another penalty compiles nothing."""
    lengths = np.arange(1, decoding.max_length + 1, dtype=np.float64)
    factors = (lengths**decoding.length_penalty).astype(np.float32)
    best = factors
    if decoding.early_stopping == "never" and decoding.length_penalty > 0:
        best = np.full_like(factors, factors[-1])
    return LengthFactors(jnp.asarray(factors), jnp.asarray(best))


@functools.partial(jax.jit, static_argnames=("config", "decoding"))
def search_beams(
    config: Config,
    decoding: Decoding,
    params: Params,
    stack: Layers,
    context: Read,
    strengths: Strengths,
    factors: LengthFactors,
    stops: Stops | None,
) -> Hypotheses:
    """The best texts of B inputs; arguments and devices as of ``one_by_one.decode_one_by_one``."""
    b, k, t = len(context.start), decoding.beams, decoding.max_length

    def grow(loop: Loop) -> Loop:
        step, beams = loop.step, loop.beams
        # A new token's keys are written by its own beam.
        own = jnp.broadcast_to(jnp.arange(k)[None, :, None], (b, k, 1))
        ancestors = jax.lax.dynamic_update_slice_in_dim(beams.ancestors, own, step, axis=2)
        last = jax.lax.dynamic_slice_in_dim(beams.tokens, jnp.maximum(step - 1, 0), 1, axis=2)
        last = jnp.where(step == 0, context.start[:, None], last[..., 0])
        hidden, cache = advance(
            config, params, stack, context, last.reshape(-1), step, loop.cache, ancestors
        )
        log_probs = jax.nn.log_softmax(transformer.head(config, params, hidden), axis=-1)
        history = history_of(decoding, context, beams.tokens.reshape(b * k, t), step)
        log_probs = process(log_probs, step, decoding, strengths, history)
        candidates, ending = _candidates(
            decoding, beams._replace(ancestors=ancestors), log_probs, step, stops
        )
        hypotheses = _keep_ended(
            decoding, loop.hypotheses, candidates, ending, loop.improvable, factors, step
        )
        beams = _go_on(candidates, ending, k)
        improvable = loop.improvable & _could_improve(beams, hypotheses, factors, step)
        going = jnp.any(improvable) & ~jnp.all(ending)
        if decoding.early_stopping is True:
            going = going & ~jnp.all(hypotheses.there)
        return Loop(step + 1, beams, hypotheses, improvable, going, cache)

    start = Loop(
        jnp.int32(0),
        _first_beams(config, b, k, t, stops),
        _no_hypotheses(config, b, k, t),
        jnp.ones(b, bool),
        jnp.ones((), bool),
        new_cache(config, stack, b, t, k),
    )
    found = jax.lax.while_loop(lambda loop: loop.going, grow, start).hypotheses
    return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), found)


def _first_beams(config: Config, b: int, k: int, t: int, stops: Stops | None) -> Beams:
    # All beams begin alike: only the first one's candidates count.
    scores = jnp.where(jnp.arange(k) == 0, 0.0, _EXCLUDED)
    return Beams(
        jnp.full((b, k, t), config.pad_id, jnp.int32),
        jnp.broadcast_to(scores, (b, k)).astype(jnp.float32),
        jnp.zeros((b, k, t), jnp.int32),
        None if stops is None else stops.first(b * k).reshape(b, k, -1),
    )


def _no_hypotheses(config: Config, b: int, k: int, t: int) -> Hypotheses:
    return Hypotheses(
        jnp.full((b, k, t), config.pad_id, jnp.int32),
        jnp.zeros((b, k), jnp.int32),
        jnp.full((b, k), _EXCLUDED, jnp.float32),
        jnp.zeros((b, k), bool),
    )


def _of_each(tree: Any, index: jax.Array) -> Any:
    """Entries ``index`` [B, M] of the second axis of arrays [B, K, ...]."""

    def pick(x):
        return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)

    return jax.tree.map(pick, tree)


def _candidates(
    decoding: Decoding, beams: Beams, log_probs: jax.Array, step: jax.Array, stops: Stops | None
) -> tuple[Beams, jax.Array]:
    """The best continuations of all beams together, M of each input, and which of them end."""
    b, k, _ = beams.tokens.shape
    vocabulary = log_probs.shape[-1]
    wanted = max(2, 1 + len(decoding.eos_ids or ())) * k
    totals = log_probs.reshape(b, k, vocabulary) + beams.scores[:, :, None]
    scores, index = top_k_of_groups(totals, wanted)
    tokens = (index % vocabulary).astype(jnp.int32)
    grown = _of_each(beams, index // vocabulary)
    written = jax.lax.dynamic_update_slice_in_dim(grown.tokens, tokens[..., None], step, axis=2)
    ending = is_eos(decoding, tokens) | (step == decoding.max_length - 1)
    states = grown.states
    if stops is not None:
        states = stops.next(states, tokens)
        ending = ending | stops.reached(states)
    return Beams(written, scores, grown.ancestors, states), ending


def _go_on(candidates: Beams, ending: jax.Array, k: int) -> Beams:
    """The best candidates that do not end."""
    scores = candidates.scores + ending * jnp.float32(_EXCLUDED)
    _, index = top_k_of_few(scores, k)
    return _of_each(candidates._replace(scores=scores), index)


def _keep_ended(
    decoding: Decoding,
    hypotheses: Hypotheses,
    candidates: Beams,
    ending: jax.Array,
    improvable: jax.Array,
    factors: LengthFactors,
    step: jax.Array,
) -> Hypotheses:
    """The best texts with those that end now, if they are among the best candidates."""
    k = decoding.beams
    ended = ending & (jnp.arange(ending.shape[1]) < k)
    scores = candidates.scores / factors.ended[step]
    if decoding.early_stopping is True:
        full = jnp.all(hypotheses.there, axis=1, keepdims=True)
        scores = scores + full * jnp.float32(_EXCLUDED)
    scores = scores + ~improvable[:, None] * jnp.float32(_EXCLUDED)
    scores = scores + ~ended * jnp.float32(_EXCLUDED)
    lengths = jnp.broadcast_to(step + 1, ended.shape)
    now = Hypotheses(candidates.tokens, lengths, scores, ended)
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), hypotheses, now)
    _, index = top_k_of_few(both.scores, k)
    return _of_each(both, index)


def _could_improve(
    beams: Beams, hypotheses: Hypotheses, factors: LengthFactors, step: jax.Array
) -> jax.Array:
    """[B]: whether the best beam, at the best length, beats the worst text or one is missing."""
    best = beams.scores[:, :1] / factors.best[step]
    worst = jnp.min(hypotheses.scores, axis=1, keepdims=True)
    return jnp.any(best > jnp.where(hypotheses.there, worst, _EXCLUDED), axis=1)
