"""Several methods at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peft_jax import tree
from peft_jax.backbones.base import Backbone, check_slots
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, expanded
from peft_jax.methods.lazy import Lazy
from peft_jax.methods.merging import fold_leaves, merge
from peft_jax.tree import Params


def compose(*methods: Method) -> Method:
    """Several methods at once: the union of their bound leaves.

    Their stored trees lie side by side under the methods' names (``{"ia3": ..., "lora": ...}``; a
    second one of a name gets a number, ``lora_2``). Two methods on one leaf combine where that is
    exact: LoRA ranks and prompts concatenate, (IA)³ vectors multiply; anything else raises.
    compose is associative; its order matters only for the order of ranks and prompt rows.
    """
    flat = _flatten_methods(methods)
    if len(flat) == 1:
        return methods[0]
    if not flat:
        raise InputError("compose needs at least one method")
    labels = stored_names([m.spec["name"] for m in flat])

    def init(key: jax.Array, backbone: Backbone) -> Params:
        keys = jax.random.split(key, len(flat))
        stored = {n: m.init(k, backbone) for n, m, k in zip(labels, flat, keys, strict=True)}
        # Two methods on one place must fit together, and that is known before training.
        check_slots(
            jax.eval_shape(lambda s: expanded(bind(s), backbone.params), stored), backbone.config
        )
        return stored

    def bind(stored: Params) -> Params:
        bound: dict[str, Any] = {}
        for label, method in zip(labels, flat, strict=True):
            _unite(bound, tree.flatten(method.bind(stored[label])))
        return tree.unflatten(bound)

    spec = {"name": "compose", "methods": [m.spec for m in flat]}

    def fold(frozen: Params, stored: Params) -> Params:
        return fold_leaves(merge(frozen, bind(stored)))

    return Method(init, bind, fold if all(m.fold for m in flat) else None, spec)


def _flatten_methods(methods: Sequence[Method]) -> list[Method]:
    from peft_jax.methods import from_spec

    flat: list[Method] = []
    for method in methods:
        if method.spec["name"] == "compose":
            flat += [from_spec(spec) for spec in method.spec["methods"]]
        else:
            flat.append(method)
    return flat


def stored_names(names: Sequence[str]) -> list[str]:
    """The branches of a composed stored tree, for the names of its methods."""
    labels: list[str] = []
    for i, name in enumerate(names):
        earlier = names[:i].count(name)
        labels.append(f"{name}_{earlier + 1}" if earlier else name)
    return labels


# How the leaves of two methods at one path become one, where that is exact.
_TOGETHER: dict[str, Callable[[Any, Any], jax.Array]] = {
    "lora_a": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "lora_b": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "ia3": lambda a, b: a * b,
    "input_scale": lambda a, b: a * b,
    "prompt": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "prefix_key": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "prefix_value": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "prefix_places": lambda a, b: jnp.concatenate([a, b], axis=-1),
    # Adapters at one place are summed.
    "down": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "down_bias": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "up": lambda a, b: jnp.concatenate([a, b], axis=-2),
    "up_bias": lambda a, b: a + b,
}


def _unite(bound: dict[str, Any], more: dict[str, Any]) -> None:
    """Adds leaves to a flat tree, combining those at one path where that is exact."""
    together = [path for path in more if path in bound]
    for path in together:
        _check_together(path, bound, more)
    for path, leaf in more.items():
        kind = path.rpartition("/")[2]
        bound[path] = _TOGETHER[kind](bound[path], leaf) if path in together else leaf


def _check_together(path: str, bound: dict[str, Any], more: dict[str, Any]) -> None:
    """Raises InputError where two methods' leaves at one path cannot be combined exactly."""
    module, _, kind = path.rpartition("/")
    # The rate belongs to one method, but a layer would apply it to the ranks of both.
    rate = f"{module}/lora_dropout"
    if kind == "lora_a" and (rate in bound or rate in more):
        raise InputError(
            f"two methods meet at {path!r} and one has dropout: set both to 0, or give them "
            "different targets"
        )
    # A magnitude is divided by the norms of one method's update.
    if kind == "lora_a" and (f"{module}/magnitude" in bound or f"{module}/magnitude" in more):
        raise InputError(f"DoRA and another method meet at {path!r}; give them different targets")
    # What one alone has would not be as long as what both have.
    beside = {
        "down": f"{module}/down_bias",
        "prefix_key": f"{path.partition('/')[0]}/prefix_places",
        "prompt": f"{path.partition('/')[0]}/layers/prompt",
    }.get(kind)
    if beside is not None and (beside in bound) != (beside in more):
        raise InputError(f"two methods meet at {path!r}, but only one has {beside!r}")
    if isinstance(more[path], Lazy) or isinstance(bound[path], Lazy):
        raise InputError(
            f"two methods meet at {path!r} and one chooses layers, or changes the backbone's "
            "own leaf; give both all layers, or different targets"
        )
    if kind not in _TOGETHER:
        raise InputError(
            f"two methods meet at {path!r} and cannot be combined exactly; give them different "
            "targets"
        )
