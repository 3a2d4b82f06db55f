"""The Walsh-Hadamard transform, the random parts, and the laws of the projection."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from peft_jax import fastfood
from tests import oracle

SOURCE = fastfood.stream(0, "decoder/layers/mlp/wo/kernel")


@pytest.mark.parametrize("size", [1, 8, 64, 512])
def test_walsh_hadamard_equals_scipys_matrix(size):
    x = np.random.default_rng(0).standard_normal((2, 3, size)).astype(np.float32)
    wanted = x.astype(np.float64) @ scipy.linalg.hadamard(size)
    oracle.assert_close(jax.jit(fastfood.walsh_hadamard)(x), wanted, 1e-6)


def test_walsh_hadamard_takes_powers_of_two():
    with pytest.raises(ValueError, match="no power of two"):
        fastfood.walsh_hadamard(jnp.zeros(12))


random_parts = jax.jit(fastfood.random_parts, static_argnums=(0, 2))


def numbers(*values):
    return jnp.asarray(values, jnp.uint32)


@pytest.mark.parametrize("size", [1, 2, 4, 64, 4096])
def test_permutations_are_bijections(size):
    permutation = np.asarray(random_parts(SOURCE, numbers(0, 1, 7), size).permutation)
    np.testing.assert_array_equal(np.sort(permutation, axis=1), [np.arange(size)] * 3)


def test_random_parts_have_their_distributions():
    size, blocks = 4096, 4
    signs, permutation, gaussian = map(
        np.asarray, random_parts(SOURCE, jnp.arange(blocks, dtype=jnp.uint32), size)
    )
    n = size * blocks
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / n**0.5
    assert abs(gaussian.mean()) < 5 / n**0.5
    assert gaussian.var() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert (gaussian**4).mean() == pytest.approx(3, abs=5 * (96 / n) ** 0.5)
    # No order is left: neither that of the indices, nor among neighbours, nor between blocks.
    index = np.arange(size)
    for p in permutation:
        assert abs(np.corrcoef(p, index)[0, 1]) < 5 / size**0.5
        assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 5 / size**0.5
        assert (p == index).sum() < 12  # one is expected
        # Nor in single bits, which a Hadamard matrix is made of.
        bits = p[:, None] >> np.arange(12) & 1
        of_index = index[:, None] >> np.arange(12) & 1
        agree = (bits[:, :, None] == of_index[:, None, :]).mean(0)
        assert np.abs(agree - 0.5).max() < 6 * 0.5 / size**0.5
    for one, other in itertools.pairwise(permutation):
        assert (one == other).sum() < 12


@pytest.mark.parametrize(
    ("key", "counter", "wanted"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_words_are_threefrys(key, counter, wanted):
    """The known answers that Salmon et al. publish with Random123."""
    words = fastfood._words(fastfood.Stream(*key), numbers(counter[0]), numbers(counter[1]))
    assert words.ravel().tolist() == list(wanted)


# Of block 3: what adapter files rely on.
SIGNS = [-1, 1, -1, 1, 1, 1, -1, 1, -1, -1, -1, 1, 1, -1, -1, -1]
PERMUTATION = [14, 6, 4, 12, 13, 11, 7, 0, 1, 3, 8, 10, 9, 5, 2, 15]
GAUSSIAN = [-0.13182244, -0.000636995, 1.91068876, 0.39947018]


def test_random_parts_depend_on_seed_name_and_block_and_on_nothing_else():
    """An adapter's meaning must not change with a version of jax, nor with its settings."""
    signs, permutation, gaussian = random_parts(SOURCE, numbers(3), 16)
    np.testing.assert_array_equal(signs[0], SIGNS)
    np.testing.assert_array_equal(permutation[0], PERMUTATION)
    np.testing.assert_allclose(gaussian[0, :4], GAUSSIAN, rtol=1e-5)
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        again = random_parts(SOURCE, numbers(3), 16)
    for x, y in zip(again, (signs, permutation, gaussian), strict=True):
        np.testing.assert_array_equal(x, y)
    others = [
        random_parts(fastfood.stream(1, "decoder/layers/mlp/wo/kernel"), numbers(3), 16),
        random_parts(fastfood.stream(0, "encoder/layers/mlp/wo/kernel"), numbers(3), 16),
        random_parts(SOURCE, numbers(4), 16),
    ]
    for other in others:
        assert not np.array_equal(other.gaussian, gaussian)
        assert not np.array_equal(other.permutation, permutation)


@functools.cache
def dense(inputs, size, units=1, source=SOURCE):
    """The projections as matrices [U, size, inputs]."""
    columns = jax.jit(
        jax.vmap(lambda x: fastfood.project(x, source, jnp.arange(units, dtype=jnp.uint32), size))
    )(np.eye(inputs, dtype=np.float32))
    return np.asarray(columns, np.float64).transpose(1, 2, 0)


def test_a_block_is_the_product_of_its_five_factors():
    parts = random_parts(SOURCE, numbers(5), 32)
    signs, permutation, gaussian = (np.asarray(x[0], np.float64) for x in parts)
    h = scipy.linalg.hadamard(32)
    matrix = h @ np.diag(gaussian) @ np.eye(32)[permutation.astype(int)] @ h @ np.diag(signs)
    matrix /= np.sqrt(32) * np.linalg.norm(gaussian)
    x = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    oracle.assert_close(jax.jit(fastfood.transform)(x, parts)[0], matrix @ x, 1e-6)


@pytest.mark.parametrize(("inputs", "size"), [(60, 64), (1, 5), (50, 64 * 3)])
def test_columns_of_whole_blocks_have_length_one(inputs, size):
    lengths = np.linalg.norm(dense(inputs, size, 2), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_columns_of_a_part_of_a_block_have_length_one_in_the_mean():
    """A vector narrower than the projected one, such as a norm's scale, and a block cut short."""
    for inputs, size in ((200, 24), (40, 150)):
        matrices = dense(inputs, size, 40)
        squares = (matrices**2).sum(1).mean(1)  # a mean over the columns, per unit
        assert squares.mean() == pytest.approx(1, abs=5 * squares.std() / 40**0.5)
        # Rows have energy too, and equally: each output is reached by every input.
        rows = (matrices**2).mean((0, 2)) * size
        assert rows.min() > 0.5
        assert rows.max() < 2


def test_units_and_streams_are_independent():
    one, other = dense(50, 300, 2)
    third, _ = dense(50, 300, 2, fastfood.stream(0, "another"))
    for x, y in ((one, other), (one, third)):
        # Inner products of unrelated columns are as small as those of random ones.
        assert np.abs(x.T @ y).max() < 6 * 3**0.5 / 300**0.5


def test_the_gradient_is_the_transpose():
    matrix = dense(50, 300, 2)
    cotangent = np.random.default_rng(0).standard_normal((2, 300)).astype(np.float32)

    def project(x):
        return fastfood.project(x, SOURCE, jnp.arange(2, dtype=jnp.uint32), 300)

    pullback = jax.jit(lambda c: jax.vjp(project, jnp.ones(50))[1](c)[0])
    oracle.assert_close(pullback(cotangent), np.einsum("usd,us->d", matrix, cotangent), 1e-5)


def test_a_projection_in_parts_is_that_at_once(monkeypatch):
    wanted = dense(50, 300, 2)
    monkeypatch.setattr(fastfood, "_AT_ONCE", 3 * 64)
    oracle.assert_close(dense.__wrapped__(50, 300, 2), wanted, 1e-6)
