"""Random projections from few dimensions to many that need no matrix.

Le et al. 2013, "Fastfood: Approximating Kernel Expansions in Loglinear Time", section 3: H G Π H B,
with a Walsh-Hadamard matrix H, a random diagonal of signs B, a random permutation Π and a Gaussian
diagonal G, acts much as a dense Gaussian matrix does. Where there are more outputs than
inputs, blocks with random parts of their own are stacked (their section 3.2).

The random parts are functions of a block's number and an entry's, drawn where they are used: they
are never stored, and neither a setting nor a version of jax changes them.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

# A Hadamard matrix of 2^6 rows is one factor of a large one: small enough to be cheap beside the
# memory traffic that each factor costs, large enough that there are few factors.
_FACTOR_BITS = 6
# Entries that are projected at one time, in whole blocks: bounds the memory of the random parts.
_AT_ONCE = 1 << 22
_ROUNDS = 4


class Stream(NamedTuple):
    """The key of a projection's random parts, as two words of 32 bits."""

    high: int
    low: int


def stream(seed: int, name: str) -> Stream:
    """The random stream of a seed and a name; others are independent of it."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return Stream(int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big"))


class Parts(NamedTuple):
    """The random parts of K blocks of N = 2^n entries.

    Attributes:
      signs: B's diagonal, [K, N] float32, each 1 or -1.
      permutation: Π as [K, N] int32: entry i is taken from there.
      gaussian: G's diagonal, [K, N] float32, standard normal.
    """

    signs: jax.Array
    permutation: jax.Array
    gaussian: jax.Array


def walsh_hadamard(x: jax.Array) -> jax.Array:
    """H x along the last axis, whose length N is a power of two; in O(N log N), not normalised.

    H is symmetric, in Sylvester's order (``scipy.linalg.hadamard``), and H H = N.
    """
    shape = x.shape
    bits = shape[-1].bit_length() - 1
    if shape[-1] != 1 << bits:
        raise ValueError(f"a Walsh-Hadamard transform of {shape[-1]} entries: no power of two")
    # H of 2^(a+b) rows is the Kronecker product of those of 2^a and 2^b: one factor at a time.
    before, after = 1, shape[-1]
    while after > 1:
        size = min(1 << _FACTOR_BITS, after)
        after //= size
        x = x.reshape(-1, before, size, after)
        x = jnp.einsum("zbsa,st->zbta", x, _hadamard(size), precision="highest")
        before *= size
    return x.reshape(shape)


def _hadamard(size: int) -> np.ndarray:
    """[size, size] float32: -1 to the number of bits that row and column share."""
    index = np.arange(size)
    shared = index[:, None] & index
    parity = np.array([int(i).bit_count() for i in range(size)])[shared] & 1
    return (1 - 2 * parity).astype(np.float32)


def random_parts(source: Stream, blocks: jax.Array, size: int) -> Parts:
    """Random parts of the blocks with the given numbers.

    Args:
      blocks: [K] uint32.
      size: N, a power of two of at most 2^31.
    """
    index = jnp.arange(size, dtype=jnp.uint32)
    beyond = jnp.uint32(1 << 31) + jnp.arange(_ROUNDS, dtype=jnp.uint32)  # no index is so large
    words = _words(source, blocks, jnp.concatenate([index, beyond]))
    (one, other), rounds = words[:, :, :size], words[:, :, size:]
    uniform = ((one >> 8).astype(jnp.float32) + 0.5) * 2.0**-24
    gaussian = np.float32(np.sqrt(2)) * jax.scipy.special.erfinv(2 * uniform - 1)
    signs = 1 - 2 * (other & 1).astype(jnp.float32)
    return Parts(signs, _permutation(index, *rounds), gaussian)


def _words(source: Stream, blocks: jax.Array, index: jax.Array) -> jax.Array:
    """[2, K, N] uint32: Threefry-2x32 (Salmon et al. 2011) of the block's number and the index."""
    counter = jnp.stack(jnp.broadcast_arrays(blocks[:, None], index[None]))
    key = jnp.array(source, jnp.uint32)
    return threefry_2x32(key, counter.reshape(-1)).reshape(counter.shape)


def _permutation(index: jax.Array, factors: jax.Array, terms: jax.Array) -> jax.Array:
    """[K, N] int32: a bijection of the indices [N] in each block, from random words [K, rounds].

    Each round multiplies by a random odd number, adds another, and folds the high bits onto the low
    ones, all modulo N: invertible steps, so that nothing has to be sorted.
    """
    size = len(index)
    half = max(1, size.bit_length() // 2)
    x = jnp.broadcast_to(index, (len(factors), size))
    for r in range(_ROUNDS):
        x = (x * (factors[:, r, None] | 1) + terms[:, r, None]) & jnp.uint32(size - 1)
        x = x ^ (x >> half)
    return x.astype(jnp.int32)


def transform(x: jax.Array, parts: Parts) -> jax.Array:
    """H G Π H B x / (sqrt(N) |G|) of each block, [K, N], for x [N].

    So normalised, every column of a block has length 1: its first H B has entries of one size, and
    its last H keeps lengths but for sqrt(N).
    """
    size = x.shape[-1]
    mixed = walsh_hadamard(parts.signs * x)
    mixed = jnp.take_along_axis(mixed, parts.permutation, axis=-1)
    length = jnp.sqrt(size * jnp.sum(jnp.square(parts.gaussian), axis=-1, keepdims=True))
    return walsh_hadamard(mixed * (parts.gaussian / length))


def project(x: jax.Array, source: Stream, units: jax.Array, size: int) -> jax.Array:
    """Independent random projections of one vector: [d] -> [U, size] float32.

    A projection's columns have length 1 in the mean over the random parts, and exactly where
    ``size`` is a multiple of the smallest power of two N that is not below d. Linear in x.

    Args:
      source: of the random parts.
      units: [U] uint32, the numbers of the projections: equal ones are equal.
      size: outputs of each.
    """
    inputs = len(x)
    block = 1 << (inputs - 1).bit_length()
    per_unit = -(-size // block)
    padded = jnp.pad(x, (0, block - inputs))

    # Recomputed in the backward pass: the random parts are larger than what they project.
    @jax.checkpoint
    def of_blocks(numbers: jax.Array) -> jax.Array:
        return transform(padded, random_parts(source, numbers, block))

    numbers = (units[:, None] * per_unit + jnp.arange(per_unit, dtype=jnp.uint32)).reshape(-1)
    at_once = max(1, _AT_ONCE // block)
    if len(numbers) <= at_once:
        out = of_blocks(numbers)
    else:
        out = jax.lax.map(lambda n: of_blocks(n[None])[0], numbers, batch_size=at_once)
    out = out.reshape(len(units), per_unit * block)[:, :size]
    return out * np.float32(np.sqrt(block / size))
