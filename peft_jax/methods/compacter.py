"""Compacter: adapters whose projections are sums of Kronecker products (PHM layers).

Karimi Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", section 3.
A projection W [in, out] is

::

    W = sum_i A_i (x) (s_i t_i)      A_i [n, n], s_i [in / n, r], t_i [r, out / n],  i = 1..n

with (x) the Kronecker product. The rules A are few, and in the paper shared by all adapters of the
model; what belongs to a layer are the factors s and t.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax.errors import InputError
from peft_jax.methods.adapters import (
    Activation,
    Leaves,
    _listed,
    adapter_method,
    biases,
    check_whole,
    glorot,
    normal,
    reduced,
)
from peft_jax.methods.base import Method

PROJECTIONS = ("down", "up")


def compacter(
    reduction_factor: int = 32,
    divisions: int = 4,
    rank: int = 1,
    activation: Activation = "gelu_tanh",
    targets: str | Sequence[str] = ("layers/attention|self_attention", "mlp"),
    layers: Sequence[int] | None = None,
    share_rules: bool = True,
    rule_std: float = 1e-4,
    train_norms: bool = True,
) -> Method:
    """h + A(h) behind self-attention and feed-forward, with Kronecker products as projections.

    Karimi Mahabadi et al. 2021, section 3.2, and its code (rabeehk/compacter): n = 4, factors of
    rank 1 drawn uniformly within sqrt(12 / (rows + columns)) (Glorot with gain sqrt 2), rules from
    N(0, rule_std), biases zero, all norms trained: near the backbone's function at the start.
    Kronecker products are formed when a stored tree is bound, once for a step and not for a token.

    T-Few's baseline is ``compacter(activation="relu", share_rules=False, rule_std=0.02)``: its
    config says 1e-4, but its code reads that number for factorised rules only. The paper's T5-base
    has 161,728 parameters (0.073 %); T-Few's code 870,400 on T0-3B, where its paper prints 807K.

    Count: r (D + m) 2 + D + m for each adapter, n³ for the rules (twice that for each adapter
    unless they are shared), and the norms, see ``norm_tuning``.

    Args:
      reduction_factor: the bottleneck is m = D // reduction_factor; n must divide both.
      divisions: n, the number of products in a sum and the size of the rules.
      rank: r of the factors.
      activation: between the two projections.
      targets: regular expressions on the ends of the paths of branches, see ``houlsby_adapter``.
      layers: indices of the layers that get adapters; None means all.
      share_rules: one set of rules [n, n, n] for all adapters and both projections, or one for each
        projection of each layer.
      rule_std: of the initial rules.
      train_norms: whether the norms of the whole backbone are trained too.

    Raises:
      InputError: a number out of range, n that does not divide a size, a target or a layer that
        does not exist.
    """
    return _compacter("compacter", **locals())


def compacter_plus_plus(
    reduction_factor: int = 32,
    divisions: int = 4,
    rank: int = 1,
    activation: Activation = "gelu_tanh",
    targets: str | Sequence[str] = "mlp",
    layers: Sequence[int] | None = None,
    share_rules: bool = True,
    rule_std: float = 1e-4,
    train_norms: bool = True,
) -> Method:
    """h + A(h) behind the feed-forwards alone, with Kronecker products as projections.

    Karimi Mahabadi et al. 2021, section 3.2 ("Compacter++"): 104,704 parameters on T5-base
    (0.047 %). T-Few's baseline is
    ``compacter_plus_plus(activation="relu", share_rules=False, rule_std=0.02)``: 560,128 on T0-3B
    by its code, where its paper prints 540K. Formula, count and initial function: ``compacter``.

    Args:
      reduction_factor: the bottleneck is m = D // reduction_factor; n must divide both.
      divisions: n, the number of products in a sum and the size of the rules.
      rank: r of the factors.
      activation: between the two projections.
      targets: regular expressions on the ends of the paths of branches, see ``houlsby_adapter``.
      layers: indices of the layers that get adapters; None means all.
      share_rules: one set of rules [n, n, n] for all adapters and both projections, or one for each
        projection of each layer.
      rule_std: of the initial rules.
      train_norms: whether the norms of the whole backbone are trained too.

    Raises:
      InputError: as ``compacter``.
    """
    return _compacter("compacter_plus_plus", **locals())


def _compacter(
    name: str,
    *,
    reduction_factor: int,
    divisions: int,
    rank: int,
    activation: Activation,
    targets: str | Sequence[str],
    layers: Sequence[int] | None,
    share_rules: bool,
    rule_std: float,
    train_norms: bool,
) -> Method:
    for field, value in {
        "reduction_factor": reduction_factor,
        "divisions": divisions,
        "rank": rank,
    }.items():
        check_whole(field, value)
    if isinstance(rule_std, bool) or not isinstance(rule_std, int | float) or not rule_std > 0:
        raise InputError(f"rule_std {rule_std!r} must be a number above 0")
    spec = {
        "name": name,
        "reduction_factor": reduction_factor,
        "divisions": divisions,
        "rank": rank,
        "activation": activation,
        "targets": _listed(targets),
        "layers": _listed(layers),
        "share_rules": share_rules,
        "rule_std": rule_std,
        "train_norms": train_norms,
    }
    n = divisions

    def draw(key: jax.Array, depth: list[int], width: int) -> Leaves:
        m = reduced(width, reduction_factor)
        if width % n or m % n:
            raise InputError(
                f"divisions {n} must divide d_model {width} and the bottleneck {m} "
                f"(d_model // reduction_factor {reduction_factor})"
            )
        sizes = {"down": (width // n, m // n), "up": (m // n, width // n)}
        leaves = biases(depth, width, m)
        for k, (projection, (inputs, outputs)) in zip(
            jax.random.split(key), sizes.items(), strict=True
        ):
            left, right, rules = jax.random.split(k, 3)
            leaves[f"{projection}_left"] = glorot(left, (*depth, n, inputs, rank))
            leaves[f"{projection}_right"] = glorot(right, (*depth, n, rank, outputs))
            if not share_rules:
                leaves[f"{projection}_rules"] = normal(rules, (*depth, n, n, n), rule_std)
        return leaves

    def expand(leaves: Leaves, shared: Leaves) -> Leaves:
        bound = {f"{projection}_bias": leaves[f"{projection}_bias"] for projection in PROJECTIONS}
        for projection in PROJECTIONS:
            factors = leaves[f"{projection}_left"] @ leaves[f"{projection}_right"]
            rules = shared["rules"] if share_rules else leaves[f"{projection}_rules"]
            bound[projection] = kronecker_sum(rules, factors)
        return bound

    def draw_shared(key: jax.Array) -> Leaves:
        return {"rules": normal(key, (n, n, n), rule_std)}

    return adapter_method(spec, "inner", draw, expand, draw_shared if share_rules else None)


def kronecker_sum(rules: jax.Array, factors: jax.Array) -> jax.Array:
    """sum_i rules[i] (x) factors[i], of [..., n, a, c] and [..., n, k, p]: [..., a k, c p]."""
    product = jnp.einsum("...iac,...ikp->...akcp", rules, factors)
    *depth, a, k, c, p = product.shape
    return product.reshape(*depth, a * k, c * p)
