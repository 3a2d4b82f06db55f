"""Soft tokens among the others, and soft prompts that every layer has of its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from peft_jax.architecture import Config
from peft_jax.errors import InputError
from peft_jax.tree import Params


class Placed(NamedTuple):
    """Tokens among which soft ones may have been inserted.

    Attributes:
      tokens: [N, T] int32; mask: [N, T] bool.
      places: [N, T'] int32, where the T' tokens that were given are now; None: where they were.
    """

    tokens: jax.Array
    mask: jax.Array
    places: jax.Array | None


def place_soft_tokens(
    config: Config, own: Params, tokens: jax.Array, mask: jax.Array, ends: jax.Array | None = None
) -> Placed:
    """Inserts a stack's ``soft_tokens`` where its ``soft_places`` say, as ids -2 - k.

    Row k stands behind the first real token for a place of 1, behind the last of the input for 2,
    and nowhere for 0 (only where the tokens hold its id already).

    Args:
      own: the stack's parameters.
      tokens, mask: [N, T].
      ends: [N] index of the input's last token, where more follows it; None: the last real one.
    """
    places = own.get("soft_places")
    if places is None:
        return Placed(tokens, mask, None)
    n, t = tokens.shape
    places = jnp.broadcast_to(places, (1, places.shape[-1])) if places.ndim == 1 else places
    places = jnp.repeat(places, n // len(places), axis=0).astype(jnp.int32)
    first = jnp.argmax(mask, axis=1)[:, None]
    last = (t - 1 - jnp.argmax(mask[:, ::-1], axis=1) if ends is None else ends)[:, None]
    among = jnp.select([places == 1, places == 2], [2 * first + 1, 2 * last + 1], 2 * t)
    in_order = jnp.broadcast_to(2 * jnp.arange(t), (n, t))
    order = jnp.argsort(jnp.concatenate([in_order, among], axis=1), axis=1, stable=True)
    ids = jnp.where(places > 0, -2 - jnp.arange(places.shape[1]), config.pad_id)
    both = (
        jnp.concatenate([tokens, ids.astype(tokens.dtype)], axis=1),
        jnp.concatenate([mask, places > 0], axis=1),
    )
    tokens, mask = (jnp.take_along_axis(each, order, axis=1) for each in both)
    return Placed(tokens, mask, jnp.argsort(order, axis=1)[:, :t])


def take(x: jax.Array, places: jax.Array | None) -> jax.Array:
    """x [N, T, ...] at places [N, T'], or as it is."""
    if places is None:
        return x
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1)


def spread(x: jax.Array, places: jax.Array | None, length: int, filling: int) -> jax.Array:
    """The inverse of :func:`take`: x [N, T'] at its places in [N, length]."""
    if places is None:
        return x
    rows = jnp.arange(len(x))[:, None]
    return jnp.full((len(x), length), filling, x.dtype).at[rows, places].set(x)


def overwrite_prompt(params: Params, x: jax.Array) -> jax.Array:
    """A layer's input [N, T, D] with its own rows in the places of the stack's soft prompt.

    Raises:
      InputError: the stack's prompt has another number of rows.
    """
    rows = params.get("prompt")
    if rows is None:
        return x
    length = rows.shape[-2]
    if length > x.shape[1]:
        raise InputError(f"a prompt of {length} rows at every layer finds {x.shape[1]} places")
    rows = rows.astype(x.dtype)
    before = x[:, :length]
    if rows.ndim == 3:
        rows = jnp.repeat(rows, len(x) // len(rows), axis=0)
    if "prompt_mask" in params:
        own = jnp.repeat(params["prompt_mask"], len(x) // len(params["prompt_mask"]), axis=0)
        rows = jnp.where(own[..., None], rows, before)
    return jnp.concatenate([jnp.broadcast_to(rows, before.shape), x[:, length:]], axis=1)
