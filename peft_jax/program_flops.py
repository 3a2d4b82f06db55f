"""FLOPs read off a traced program."""

from __future__ import annotations

import math
from typing import Any

import jax


def jaxpr_flops(jaxpr: Any, unknown_rounds: int = 1) -> float:
    """FLOPs of the ``dot_general`` of a jaxpr, loops included.

    Args:
      unknown_rounds: how often a ``while`` runs.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
            continue
        rounds = {"scan": given.get("length", 1), "while": unknown_rounds}.get(name, 1)
        inner = [_open(each) for each in jax.tree.leaves(list(given.values()), is_leaf=_is_jaxpr)]
        parts = [jaxpr_flops(each, unknown_rounds) for each in inner if each is not None]
        if name == "cond":
            total += max(parts, default=0.0)
        else:
            total += rounds * sum(parts)
    return total


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _open(value: Any) -> Any:
    """A jaxpr, taken out of what closes over its constants; None for everything else."""
    if hasattr(value, "eqns"):
        return value
    inner = getattr(value, "jaxpr", None)
    return inner if hasattr(inner, "eqns") else None
