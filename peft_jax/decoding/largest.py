"""The largest entries of rows over the vocabulary, which on a mesh lie in parts.

A device sorts out the largest of its own part, and only those are brought together: left to itself
the compiler gathers the logits of the whole batch on every device, at every token. Ties go to the
first, as ``lax.top_k`` has it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from peft_jax.constraints import BATCH, constrain, ways


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """``lax.top_k`` of rows over the vocabulary [N, V]: values and indices [N, k]."""
    parts = ways("model")
    if parts == 1 or x.shape[1] % parts or x.shape[1] // parts < k:
        return top_k_of_few(x, k)
    values, index = _of_parts(x, k, "model")
    index = index + jnp.repeat(jnp.arange(parts) * (x.shape[1] // parts), k)
    return _chosen(values, index, k)


def top_k_of_groups(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """``lax.top_k`` of [B, G, V] as rows [B, G * V]: values and indices [B, k]."""
    b, groups, width = x.shape
    if ways(*BATCH, "model") == 1:
        return jax.lax.top_k(x.reshape(b, -1), k)
    most = min(k, width)
    values, index = top_k(x.reshape(b * groups, width), most)
    index = index.reshape(b, groups, most) + width * jnp.arange(groups)[:, None]
    return _chosen(values.reshape(b, -1), index.reshape(b, -1), k)


def top_k_of_few(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """``lax.top_k`` of short rows [N, M], each of which is brought to one place."""
    if ways(*BATCH, "model") == 1:
        return jax.lax.top_k(x, k)
    return _of_parts(constrain(x, BATCH, None), k, None)


def _chosen(values: jax.Array, index: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of candidates [N, M], and what ``index`` [N, M] says of them."""
    index = constrain(index, BATCH, None)
    values, place = top_k_of_few(values, k)
    return values, jnp.take_along_axis(index, place, axis=1)


def _of_parts(x: jax.Array, k: int, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """The k largest of each part of each row, and their places in the part."""
    rows = None if len(x) % ways(*BATCH) else BATCH
    lies = PartitionSpec(rows, axis)
    local = jax.shard_map(lambda part: jax.lax.top_k(part, k), in_specs=lies, out_specs=lies)
    values, index = local(x)
    return values, index
