"""Greedy decoding with a key-value cache; one compiled loop, prefill separate."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from peft_jax import transformer
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.transformer import Batch, Config
from peft_jax.tree import Params


def greedy(backbone: Backbone, params: Params, batch: Batch, max_length: int = 64) -> jax.Array:
    """The most probable token at every step, up to EOS.

    The token sequence equals what the full pass over it would choose, token by token.

    Args:
      params: the backbone's tree, alone or merged with a method's leaves (arguments of the compiled
        function: another adapter of the same shape compiles nothing).
      batch: ``encoder_input_tokens`` [B, S].
      max_length: most tokens to generate, EOS included.
    Returns:
      [B, max_length] int32, padded behind EOS.
    """
    if max_length < 1:
        raise InputError(f"max_length {max_length} must be at least 1")
    return _greedy(backbone.config, params, batch, max_length)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _greedy(config: Config, params: Params, batch: Batch, max_length: int) -> jax.Array:
    context = transformer.context(config, params, batch)
    rows = len(context.start)
    length = transformer.cache_length(config, params, max_length)
    offset = length - max_length
    cache = transformer.init_cache(config, rows, length)

    def choose(hidden, done):
        token = jnp.argmax(transformer.head(config, params, hidden[:, -1]), axis=-1)
        token = jnp.where(done, config.pad_id, token.astype(jnp.int32))
        return token, done | (token == config.eos_id)

    start = context.start[:, None]
    hidden, cache = transformer.decode_step(config, params, context, start, 0, cache)
    token, done = choose(hidden, jnp.zeros(rows, bool))
    tokens = jnp.full((rows, max_length), config.pad_id, jnp.int32).at[:, 0].set(token)

    def unfinished(state):
        step, _, done, _ = state
        return (step < max_length) & ~jnp.all(done)

    def advance(state):
        step, tokens, done, cache = state
        last = jax.lax.dynamic_slice_in_dim(tokens, step - 1, 1, axis=1)
        hidden, cache = transformer.decode_step(config, params, context, last, offset + step, cache)
        token, done = choose(hidden, done)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        return step + 1, tokens, done, cache

    return jax.lax.while_loop(unfinished, advance, (1, tokens, done, cache))[1]
