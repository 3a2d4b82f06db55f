"""Greedy decoding and sampling: sequences that grow by one token a step, each by itself."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from peft_jax import transformer
from peft_jax.constraints import BATCH, constrain
from peft_jax.decoding import sampling
from peft_jax.decoding.largest import top_k
from peft_jax.decoding.options import Decoding
from peft_jax.decoding.processing import History, Strengths, process, reads_history
from peft_jax.decoding.step import Layers, Read, advance, new_cache
from peft_jax.decoding.stopping import Stops
from peft_jax.transformer import Config
from peft_jax.tree import Params


class Loop(NamedTuple):
    """What a step changes.

    Attributes:
      step: [] int32.
      tokens: [N, T] int32, padded behind the end.
      last: [N] int32, the token that is decoded next.
      done: [N] bool; lengths: [N] int32, tokens up to the end.
      log_probs: [N] float32, of the tokens together; None where nobody asks.
      states: of the automata in ``Stops``; None where there are none.
      cache: see ``step.new_cache``.
    """

    step: jax.Array
    tokens: jax.Array
    last: jax.Array
    done: jax.Array
    lengths: jax.Array
    log_probs: jax.Array | None
    states: jax.Array | None
    cache: Any


@functools.partial(jax.jit, static_argnames=("config", "decoding", "scored"))
def decode_one_by_one(
    config: Config,
    decoding: Decoding,
    scored: bool,
    params: Params,
    stack: Layers,
    context: Read,
    strengths: Strengths,
    key: jax.Array | None,
    stops: Stops | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Tokens [N, T], lengths [N] and summed log-probabilities [N] of N = B * sequences texts.

    On a mesh every device has them all, so that every process can read them.

    Args:
      decoding: without what ``strengths`` and ``stops`` hold, so that it says only what the
        program depends on.
      scored: whether log-probabilities are wanted.
      key: for sampling.
    """
    n, t = len(context.start) * decoding.sequences, decoding.max_length
    keys = None if key is None else sampling.row_keys(key, n)

    def unfinished(loop: Loop):
        return (loop.step < t) & ~jnp.all(loop.done)

    def grow(loop: Loop) -> Loop:
        hidden, cache = advance(config, params, stack, context, loop.last, loop.step, loop.cache)
        logits = transformer.head(config, params, hidden)
        history = history_of(decoding, context, loop.tokens, loop.step)
        wanted = process(logits, loop.step, decoding, strengths, history)
        if keys is None:
            # top_k finds the largest, the first of equals, in half the time of argmax on a CPU.
            token = top_k(wanted, 1)[1][:, 0]
        else:
            whole = constrain(wanted, BATCH, None)
            warped = sampling.warp(whole, strengths, decoding.top_k)
            token = sampling.draw(keys, loop.step, warped)
        log_probs = loop.log_probs
        if log_probs is not None:
            gained = _log_prob(logits, token)
            log_probs = log_probs + jnp.where(loop.done, 0.0, gained)
        token = jnp.where(loop.done, config.pad_id, token.astype(jnp.int32))
        done, states = loop.done | is_eos(decoding, token), loop.states
        if stops is not None and states is not None:
            states = stops.next(states, token)
            done = done | stops.reached(states)
        return Loop(
            loop.step + 1,
            jax.lax.dynamic_update_slice_in_dim(loop.tokens, token[:, None], loop.step, axis=1),
            token,
            done,
            loop.lengths + ~loop.done,
            log_probs,
            states,
            cache,
        )

    start = Loop(
        jnp.int32(0),
        jnp.full((n, t), config.pad_id, jnp.int32),
        jnp.repeat(context.start, decoding.sequences),
        jnp.zeros(n, bool),
        jnp.zeros(n, jnp.int32),
        jnp.zeros(n, jnp.float32) if scored else None,
        None if stops is None else stops.first(n),
        new_cache(config, stack, n, t),
    )
    end = jax.lax.while_loop(unfinished, grow, start)
    found = (end.tokens, end.lengths, end.log_probs)
    return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), found)


def is_eos(decoding: Decoding, tokens: jax.Array) -> jax.Array:
    """Whether tokens [...] are an EOS."""
    found = jnp.zeros(tokens.shape, bool)
    for id in decoding.eos_ids or ():
        found = found | (tokens == id)
    return found


def history_of(
    decoding: Decoding, context: Read, tokens: jax.Array, step: jax.Array
) -> History | None:
    """The history of sequences whose own tokens are [N, T], where something reads it."""
    if not reads_history(decoding):
        return None
    n, t = tokens.shape
    before, known = (jnp.repeat(x, n // len(x), axis=0) for x in (context.tokens, context.known))
    own = jnp.broadcast_to(jnp.arange(t) < step, (n, t))
    return History(
        jnp.concatenate([before, tokens], axis=1),
        jnp.concatenate([known, own], axis=1),
        before.shape[1] + step,
    )


def _log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
