"""(IA)³ and norm tuning, as PEFT keeps them: vectors, one for a module."""

from __future__ import annotations

import jax
import numpy as np

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.exchange.modules import (
    Found,
    Leaves,
    Linear,
    Names,
    Part,
    Written,
    by_layer,
    groups,
    ia3_of,
    missing,
    our_targets,
    stacked,
    their_targets,
)
from peft_jax.exchange.peft_names import full_name, modules_of
from peft_jax.methods import norm_tuning


# --------------------------------------------------------------------------------------------
# (IA)³
# --------------------------------------------------------------------------------------------
def read_ia3(fields, tensors, names: Names, backbone: Backbone) -> Found:
    """``ia3_l`` [out, 1] scales what a module computes, [1, in] what it reads (feed-forwards)."""
    del fields
    leaves: Leaves = {}
    for name, held in modules_of(tensors, names, ("ia3_l",)).items():
        linear, vector = names.linears[name], held["ia3_l"]
        if vector.shape == (1, linear.inputs):
            for part in linear.parts:
                leaves.setdefault(_input_leaf(part), {})[part.layer] = vector[0]
            continue
        if vector.shape != (linear.outputs * len(linear.parts), 1):
            raise InputError(
                f"tensor {name}.ia3_l has shape {vector.shape}; wanted (1, {linear.inputs}) or "
                f"({linear.outputs * len(linear.parts)}, 1)"
            )
        for part, own in zip(linear.parts, np.split(vector[:, 0], len(linear.parts)), strict=True):
            leaves.setdefault(f"{part.module}/ia3", {})[part.layer] = own
    made = groups(leaves, backbone.config)
    return [(ia3_of(held, layers, backbone.config), stacked(held)) for held, layers in made], []


def _input_leaf(part: Part) -> str:
    """Our leaf for what a module reads: an MLP has one of its own."""
    above, _, name = part.module.rpartition("/")
    return f"{above}/ia3" if name == "wo" else f"{part.module}/input_scale"


def write_ia3(parts, names: Names, backbone: Backbone) -> Written:
    """The folder of an (IA)³; what a fused projection has beside its targets is 1."""
    leaves: Leaves = {}
    for method, stored in parts:
        leaves |= by_layer(tree.flatten(method.bind(stored)), backbone.config)
    vectors: dict[str, np.ndarray] = {}
    feedforward = set()
    for path, held in leaves.items():
        module, _, kind = path.rpartition("/")
        reads = kind == "input_scale" or module.endswith("mlp")
        module = f"{module}/wo" if module.endswith("mlp") else module
        for layer, vector in held.items():
            name = names.places[Part(module, layer)]
            linear = names.linears[name]
            if (reads and name in vectors) or name in feedforward:
                raise InputError(
                    f"PEFT's (IA)³ scales either what {name} reads or what it computes, and this "
                    "adapter has two vectors there"
                )
            if reads:
                feedforward.add(name)
                vectors[name] = vector[None, :]
            else:
                vectors[name] = _with_part(vectors.get(name), linear, Part(module, layer), vector)
    full = {name: full_name(name, names) for name in vectors}
    every = [names.in_class(name) for name in names.tensors]
    outputs = their_targets([full[n] for n in vectors if n not in feedforward], every)
    inputs = _feedforward_targets({full[n] for n in feedforward}, set(full.values()), every)
    fields = {
        "peft_type": "IA3",
        "target_modules": [*outputs, *inputs],
        "feedforward_modules": inputs,
        "fan_in_fan_out": any(names.linears[name].conv1d for name in vectors),
    }
    return fields, {f"base_model.model.{full[n]}.ia3_l": v for n, v in vectors.items()}


def _with_part(before, linear: Linear, part: Part, vector: np.ndarray) -> np.ndarray:
    """The vector [out, 1] of a projection with the entries of one of its parts."""
    whole = (
        np.ones((linear.outputs * len(linear.parts), 1), np.float32) if before is None else before
    )
    at = linear.parts.index(part) * linear.outputs
    whole[at : at + linear.outputs, 0] = vector
    return whole


def _feedforward_targets(chosen: set[str], adapted: set[str], every: list[str]) -> list[str]:
    """Names for ``feedforward_modules``, which peft compares with any end of a name."""
    short = their_targets(chosen, every)
    if all(name in chosen for name in adapted if name.endswith(tuple(short))):
        return short
    return sorted(chosen)


# --------------------------------------------------------------------------------------------
# Norms
# --------------------------------------------------------------------------------------------
_NORM_LEAVES = {"weight": "scale", "bias": "bias"}


def read_norms(fields, tensors, names: Names, backbone: Backbone) -> Found:
    """``ln_tuning_layers.weight`` and ``.bias``: a norm's own tensors, trained."""
    del fields
    leaves: Leaves = {}
    for name in list(tensors):
        module, found, leaf = name.rpartition(".ln_tuning_layers.")
        if not found:
            continue
        tensor = names.canonical(f"{module.removeprefix('base_model.model.')}.{leaf}")
        if tensor not in names.norms:
            raise missing("norm", tensor, names.norms, backbone.config)
        path, layer = names.norms[tensor]
        leaves.setdefault(path, {})[layer] = tensors.pop(name)
    modules = list(dict.fromkeys(path.rpartition("/")[0] for path in leaves))
    there = list(dict.fromkeys(part.module.rpartition("/")[0] for part in names.norms.values()))
    method = norm_tuning(our_targets(modules, there))
    shapes = tree.flatten(jax.eval_shape(method.init, jax.random.key(0), backbone))
    for path in shapes:
        held = leaves.setdefault(path, {})
        for part in names.norms.values():
            if part.module == path and part.layer not in held:
                held[part.layer] = _own(backbone, part)
    return [(method, stacked(leaves))], []


def _own(backbone: Backbone, part: Part) -> np.ndarray:
    """A norm's leaf of the backbone, where the file has none for a layer."""
    leaf = tree.get(backbone.params, part.module)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise InputError(
            f"the file has {part.module!r} for some layers only; the others are the backbone's "
            "own, which is needed with its weights"
        )
    return np.asarray(leaf if part.layer is None else leaf[part.layer], np.float32)


def write_norms(parts, names: Names, backbone: Backbone) -> Written:
    """The folder of a norm tuning."""
    places = {part: name for name, part in names.norms.items()}
    tensors, modules = {}, []
    for method, stored in parts:
        for path, held in by_layer(tree.flatten(method.bind(stored)), backbone.config).items():
            for layer, array in held.items():
                if Part(path, layer) not in places:
                    raise InputError(f"{path!r} is no norm of this {backbone.config.family}'s")
                name = names.in_class(places[Part(path, layer)])
                module, _, leaf = name.rpartition(".")
                modules.append(module)
                tensors[f"base_model.model.{module}.ln_tuning_layers.{leaf}"] = array
    every = [names.in_class(name) for name in names.tensors]
    return {"peft_type": "LN_TUNING", "target_modules": their_targets(modules, every)}, tensors
