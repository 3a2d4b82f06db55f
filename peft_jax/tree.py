"""Plain nested dicts of arrays, addressed by paths: ``encoder/layers/attention/key/kernel``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from peft_jax.errors import InputError

Params = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": x}}`` becomes ``{"a/b": x}``; leaves are whatever is not a mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            flat.update(flatten(value, path))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of :func:`flatten`.

    Raises:
      InputError: one path lies inside another (``a`` and ``a/b``).
    """
    tree: Params = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"path {path!r} runs through the leaf {parent!r}")
        if name in node:
            raise InputError(f"path {path!r} is both a leaf and a branch, or occurs twice")
        node[name] = value
    return tree


def get(tree: Mapping[str, Any], path: str) -> Any:
    """The leaf or branch at ``path``; KeyError names the whole path."""
    node: Any = tree
    for part in path.split("/"):
        if not isinstance(node, Mapping) or part not in node:
            raise KeyError(path)
        node = node[part]
    return node


def map_with_path(function: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> Params:
    """``function(path, leaf)`` for every leaf."""
    return unflatten({path: function(path, leaf) for path, leaf in flatten(tree).items()})


FIXED = "fixed"
"""Name of the branches of a stored tree that hold constants: kept and saved, never trained."""


def split_fixed(stored: Mapping[str, Any]) -> tuple[Params, Params]:
    """A stored tree's trained leaves, and its constants (those below a branch named "fixed")."""
    flat = flatten(stored)
    fixed = {path for path in flat if FIXED in path.split("/")[:-1]}
    return (
        unflatten({path: leaf for path, leaf in flat.items() if path not in fixed}),
        unflatten({path: leaf for path, leaf in flat.items() if path in fixed}),
    )


def join(one: Mapping[str, Any], other: Mapping[str, Any]) -> Params:
    """The union of two trees without a leaf in common: the inverse of :func:`split_fixed`."""
    flat, more = flatten(one), flatten(other)
    both = [path for path in more if path in flat]
    if both:
        raise InputError(f"{both[0]!r} is in both trees")
    return unflatten({**flat, **more})


def count(tree: Any) -> int:
    """Number of scalars in a tree of arrays or of ``jax.ShapeDtypeStruct``.

    Of a quantised leaf its entries are counted, and not their scales.
    """
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: hasattr(leaf, "qvalue"))
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in leaves)


def size_in_bytes(tree: Any) -> int:
    """Bytes that the arrays of a tree hold on a device, where two entries of 4 bits take one."""
    return sum(
        -(-int(np.prod(leaf.shape, dtype=np.int64)) * bits(leaf.dtype) // 8)
        for leaf in jax.tree.leaves(tree)
    )


def bits(dtype: Any) -> int:
    """Bits of one entry on a device."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return 64
    four = np.dtype(dtype).name in ("int4", "uint4")
    return 4 if four else 8 * np.dtype(dtype).itemsize


def ends_with(pattern: str, path: str) -> bool:
    """Whether the regular expression matches the end of the path, from the start of a word.

    Words are what ``/`` and ``_`` separate: ``attention/(query|value)`` matches
    ``decoder/layers/self_attention/query``; ``wi`` matches ``mlp/wi`` but not ``mlp/wi_0``; ``o``
    (another library's name for the output projection) matches no ``mlp/wo``.
    """
    return re.search(rf"(?:^|(?<=[/_])|(?=[/_]))(?:{pattern})$", path) is not None


def match(patterns: str | Iterable[str], paths: Iterable[str], what: str = "target") -> list[str]:
    """The paths that any pattern matches, in their own order.

    Args:
      patterns: one regular expression or several; each is held against the end of a path.
      paths: the candidates.
      what: the word that an error uses for a pattern.

    Raises:
      InputError: there is no pattern, or one that matches nothing (a target that trains nothing is
        the classic silent bug of this field) or that is no regular expression. The message names
        the nearest paths.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not patterns:
        raise InputError(f"no {what} is given: nothing would be matched")
    paths = list(paths)
    found: set[str] = set()
    for pattern in patterns:
        try:
            hits = [path for path in paths if ends_with(pattern, path)]
        except re.error as error:
            raise InputError(f"{what} {pattern!r} is not a regular expression: {error}") from None
        if not hits:
            raise InputError(f"{what} {pattern!r} matches nothing; {nearest(pattern, paths)}")
        found.update(hits)
    return [path for path in paths if path in found]


def nearest(wanted: str, candidates: Iterable[str], most: int = 4) -> str:
    """A phrase for error messages: the candidates that look most like ``wanted``."""
    candidates = list(dict.fromkeys(candidates))
    # Compare with every suffix of a path, since a target is usually written as the end of one.
    score = {
        candidate: max(
            difflib.SequenceMatcher(None, wanted, candidate.split("/", k)[-1]).ratio()
            for k in range(candidate.count("/") + 1)
        )
        for candidate in candidates
    }
    best = sorted(candidates, key=lambda candidate: -score[candidate])[:most]
    return "nearest: " + ", ".join(best) if best else "there is nothing to choose from"


def cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves cast to ``dtype``, others as they are."""

    def leaf(x):
        return x.astype(dtype) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating) else x

    return jax.tree.map(leaf, tree)
