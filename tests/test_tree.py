"""Trees of plain dicts: paths, targets, and what an error says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import tree
from peft_jax.errors import InputError

TREE = {"a": {"b": np.zeros((2, 3)), "c": {"d": np.zeros(4, np.int32)}}, "e": np.zeros(())}
PATHS = (
    "encoder/layers/attention/query",
    "encoder/layers/attention/out",
    "encoder/layers/mlp/wi_0",
    "encoder/layers/mlp/wo",
    "decoder/layers/self_attention/query",
    "decoder/layers/cross_attention/key",
    "lm_head",
)


def test_flatten_and_unflatten_are_inverse():
    flat = tree.flatten(TREE)
    assert list(flat) == ["a/b", "a/c/d", "e"]
    again = tree.unflatten(flat)
    assert jax.tree.structure(again) == jax.tree.structure(TREE)
    assert again["a"]["c"]["d"] is TREE["a"]["c"]["d"]


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}, {"a/b/c": 1, "a/b": 2}])
def test_a_path_inside_another_is_refused(flat):
    with pytest.raises(InputError, match="path 'a"):
        tree.unflatten(flat)


def test_get():
    assert tree.get(TREE, "a/c/d") is TREE["a"]["c"]["d"]
    assert tree.get(TREE, "a/c") is TREE["a"]["c"]
    for path in ("a/x", "a/b/c", "x"):
        with pytest.raises(KeyError, match=path):
            tree.get(TREE, path)


def test_map_with_path_sees_every_leaf_with_its_path():
    mapped = tree.map_with_path(lambda path, x: (path, x.shape), TREE)
    assert mapped == {"a": {"b": ("a/b", (2, 3)), "c": {"d": ("a/c/d", (4,))}}, "e": ("e", ())}


def test_count_and_bytes_of_arrays_and_of_shapes():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)
    assert tree.count(TREE) == tree.count(shapes) == 11
    assert tree.size_in_bytes(TREE) == tree.size_in_bytes(shapes) == 8 * 7 + 4 * 4
    big = jax.ShapeDtypeStruct((100_000, 100_000), jnp.bfloat16)
    assert tree.count(big) == 10**10
    assert tree.size_in_bytes(big) == 2 * 10**10


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("query", (0, 4)),
        ("attention/query", (0, 4)),
        ("attention/(query|key)", (0, 4, 5)),
        ("self_attention/query", (4,)),
        ("encoder/layers/.*", (0, 1, 2, 3)),
        ("^encoder/.*/query", (0,)),
        ("/query", (0, 4)),
        (("wo", "lm_head"), (3, 6)),
        (("wo", "w[io].*"), (2, 3)),
        (".*", range(7)),
    ],
)
def test_match_holds_a_pattern_against_the_end_of_a_path(pattern, found):
    assert tree.match(pattern, PATHS) == [PATHS[i] for i in found]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        # Hugging Face's names; "o" alone would be the end of "wo".
        ("o", "wo"),
        ("wi", "wi_0"),
        ("attention/qery", "encoder/layers/attention/query"),
        (("query", "lm_hed"), "lm_head"),
        ("", "query"),
        ("uery", "query"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(pattern, near):
    with pytest.raises(InputError, match=rf"target '.*' matches nothing; nearest: .*{near}"):
        tree.match(pattern, PATHS)


def test_a_broken_pattern_is_named():
    with pytest.raises(InputError, match=r"rule 'a\(' is not a regular expression"):
        tree.match("a(", PATHS, "rule")


def test_nearest_without_candidates():
    assert "nothing to choose from" in tree.nearest("a", [])


def test_cast_leaves_integers_alone():
    cast = tree.cast({"x": jnp.ones(2), "i": jnp.ones(2, jnp.int32)}, jnp.bfloat16)
    assert cast["x"].dtype == jnp.bfloat16
    assert cast["i"].dtype == jnp.int32
