"""Dropping the networks that make a prompt or a prefix, once it is trained."""

from __future__ import annotations

from typing import Any

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.methods.base import Method
from peft_jax.tree import Params

_PREFIX = ("where", "decoder_length", "places", "shared")
_PROMPT = ("where", "placement")


def eject(method: Method, adapter: Params) -> tuple[Method, Params]:
    """A method and an adapter that give the same leaves without a network in between.

    The MLP of a prefix (Li & Liang 2021, section 4.3) and the prompt encoder of P-tuning (Liu et
    al. 2021, section 3.2) are run once more and dropped: what is left is a direct prefix, or a
    plain soft prompt, as Hugging Face PEFT saves it. In a composition, the parts that have such a
    network are replaced; the others stay as they are.

    Raises:
      InputError: nothing in it has a network to drop.
    """
    # What the registry holds imports this module's neighbours.
    from peft_jax.methods import compose, from_spec
    from peft_jax.methods.composition import stored_names

    if method.spec["name"] != "compose":
        if not _has_network(method.spec):
            raise InputError(f"{method.spec['name']!r} has no network to drop")
        direct = from_spec(_direct_spec(method.spec))
        return direct, _direct_leaves(direct.spec, method.bind(adapter))
    specs = method.spec["methods"]
    if not any(map(_has_network, specs)):
        names = ", ".join(spec["name"] for spec in specs)
        raise InputError(f"none of {names} has a network to drop")
    parts = []
    for label, spec in zip(stored_names([spec["name"] for spec in specs]), specs, strict=True):
        part = from_spec(spec), adapter[label]
        parts.append(eject(*part) if _has_network(spec) else part)
    labels = stored_names([part.spec["name"] for part, _ in parts])
    return compose(*(part for part, _ in parts)), {
        label: stored for label, (_, stored) in zip(labels, parts, strict=True)
    }


def _has_network(spec: dict[str, Any]) -> bool:
    return spec["name"] == "p_tuning" or spec.get("reparameterization") == "mlp"


def _direct_spec(spec: dict[str, Any]) -> dict[str, Any]:
    if spec["name"] == "p_tuning":
        kept = {name: spec[name] for name in _PROMPT}
        return {"name": "prompt_tuning", "length": spec["length"], "init": "random", **kept}
    kept = {name: spec[name] for name in _PREFIX}
    return {"name": "prefix_tuning", "length": spec["length"], **kept}


def _direct_leaves(spec: dict[str, Any], bound: Params) -> Params:
    """Of the bound leaves, those that the direct method stores."""
    flat = tree.flatten(bound)
    made = ("soft_places", "prefix_places")
    stored = {path: leaf for path, leaf in flat.items() if not path.endswith(made)}
    if spec.get("shared"):
        stored = {path: leaf for path, leaf in stored.items() if "/cross_attention/" not in path}
    return tree.unflatten(stored)
