"""T-Few's files: the trained tensors of a T5 by name, in one file of torch's.

The names are those of transformers' T5 with what T-Few's ``LoRALinear`` adds to a projection
(r-three/t-few, src/models/lora.py): ``multi_lora_b`` [out, 1] scales what it computes, which is how
(IA)³ is trained there, ``multi_lora_a`` [1, in] what it reads, and ``lora_a`` [rank, in] and
``lora_b`` [out, rank] are a LoRA whose scale is 1 / rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peft_jax import tree
from peft_jax.backbones.base import Backbone, find_modules
from peft_jax.errors import InputError
from peft_jax.exchange.hugging_face import Imported, check_shapes
from peft_jax.exchange.modules import (
    Leaves,
    Names,
    Part,
    by_layer,
    composed,
    groups,
    ia3_of,
    missing,
    our_targets,
    parts_of,
    stacked,
)
from peft_jax.exchange.peft_low_rank import Factors, lora_factors, lora_parts
from peft_jax.methods import Method, norm_tuning, rank_one_scaling
from peft_jax.torch_files import read_torch, write_torch
from peft_jax.tree import Params

_ADDED = ("multi_lora_a", "multi_lora_b", "lora_a", "lora_b")


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
def load_tfew(path: str | Path, backbone: Backbone) -> tuple[Params, Method]:
    """Reads a file of T-Few's: (IA)³, LoRA, rank-one scaling, and norms beside any of them.

    The published (IA)³ of T0-3B comes back as ``ia3()``: 540,672 parameters.

    Args:
      path: the ``.pt`` file; it is read without torch, and nothing in it is executed.
      backbone: a T5 of its sizes; an abstract one is enough.

    Raises:
      InputError: the file is damaged, or a tensor has no place in the backbone, or not its shape.
    """
    read = read_tfew(path, backbone)
    return read.adapter, read.method


def read_tfew(path: str | Path, backbone: Backbone) -> Imported:
    """As :func:`load_tfew`."""
    tensors = read_torch(path)
    try:
        names = _names(backbone)
        found: dict[str, dict[str, np.ndarray]] = {}
        norms: Leaves = {}
        for name, array in tensors.items():
            module, _, kind = name.rpartition(".")
            if kind in _ADDED and module in names.linears:
                found.setdefault(module, {})[kind] = array.astype(np.float32)
            elif name in names.norms:
                part = names.norms[name]
                norms.setdefault(part.module, {})[part.layer] = array.astype(np.float32)
            else:
                raise missing("tensor", name, [*names.linears, *names.norms], backbone.config)
        parts = [*_read_scaling(found, names, backbone), *_read_lora(found, names, backbone)]
        if norms:
            there = list(dict.fromkeys(p.module.rpartition("/")[0] for p in names.norms.values()))
            modules = [path.rpartition("/")[0] for path in norms]
            parts.append((norm_tuning(our_targets(modules, there)), stacked(norms)))
        adapter, method = composed(parts)
        check_shapes(adapter, method, backbone)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return Imported(adapter, method)


def _names(backbone: Backbone) -> Names:
    if backbone.config.family not in ("t5", "mt5"):
        raise InputError(f"T-Few adapts T5s; the backbone is a {backbone.config.family}")
    return Names(backbone.config)


def _checked(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape:
        raise InputError(f"tensor {name} has shape {array.shape}; wanted {shape}")
    return array


def _read_scaling(found, names: Names, backbone: Backbone) -> list[tuple[Method, Params]]:
    """(IA)³ where outputs alone are scaled, and rank-one scaling where inputs are too."""
    vectors: Leaves = {}
    pairs: Leaves = {}
    for name, held in found.items():
        linear = names.linears[name]
        ((module, layer),) = linear.parts
        if "multi_lora_b" not in held:
            if "multi_lora_a" in held:
                raise InputError(f"{name} has multi_lora_a, but no multi_lora_b")
            continue
        shape = linear.outputs, held["multi_lora_b"].shape[-1]
        if shape[1] != 1:
            raise InputError(f"{name} scales with rank {shape[1]}; only rank 1 is supported")
        output = _checked(f"{name}.multi_lora_b", held["multi_lora_b"], shape)[:, 0]
        if "multi_lora_a" not in held:
            # Of a gated feed-forward, to scale the linear branch is to scale their product.
            gated = module.endswith("mlp/wi_1")
            leaf = f"{module.removesuffix('/wi_1') if gated else module}/ia3"
            vectors.setdefault(leaf, {})[layer] = output
            continue
        if "lora_a" in held:
            raise InputError(f"{name} is scaled and has a LoRA, whose order no method here has")
        inputs = _checked(f"{name}.multi_lora_a", held["multi_lora_a"], (1, linear.inputs))[0]
        pairs.setdefault(f"{module}/ia3", {})[layer] = output
        pairs.setdefault(f"{module}/input_scale", {})[layer] = inputs
    made = [(ia3_of(held, layers, backbone.config), stacked(held))
            for held, layers in groups(vectors, backbone.config)]  # fmt: skip
    there = find_modules(backbone.config, "lora_a", ".*")
    for held, layers in groups(pairs, backbone.config):
        targets = our_targets((path.rpartition("/")[0] for path in held), there)
        made.append((rank_one_scaling(targets, layers), stacked(held)))
    return made


def _read_lora(found, names: Names, backbone: Backbone) -> list[tuple[Method, Params]]:
    factors = {}
    for name, held in found.items():
        if not {"lora_a", "lora_b"} & set(held):
            continue
        linear = names.linears[name]
        for kind in ("lora_a", "lora_b"):
            if kind not in held:
                raise InputError(f"tensor {name}.{kind} is missing")
        rank = held["lora_a"].shape[0]
        a = _checked(f"{name}.lora_a", held["lora_a"], (rank, linear.inputs))
        b = _checked(f"{name}.lora_b", held["lora_b"], (linear.outputs, rank))
        factors[linear.parts[0]] = Factors(a.T, b.T, 1)
    spec = {"name": "lora", "dropout": 0.0, "rslora": False, "init": "tfew"}
    return lora_parts(factors, spec, backbone)


# --------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------
def save_tfew(path: str | Path, adapter: Params, method: Method, backbone: Backbone) -> Path:
    """Writes what T-Few's code loads (``load_weight``): (IA)³, LoRA, rank-one scaling, norms.

    What :func:`load_tfew` read comes back as the same tensors, bit by bit. A LoRA of another scale
    than 1 / rank has the difference in its ``lora_b``.

    Raises:
      InputError: T-Few has no such method, or cannot say what this one does.
    """
    tensors = to_tfew(adapter, method, backbone)
    write_torch(path, tensors)
    return Path(path)


def to_tfew(adapter: Params, method: Method, backbone: Backbone) -> dict[str, np.ndarray]:
    """The tensors by name, in the order of T-Few's own files."""
    check_shapes(adapter, method, backbone)
    names = _names(backbone)
    tensors: dict[str, np.ndarray] = {}
    for each, stored in parts_of(method, adapter):
        made = _WRITERS.get(each.spec["name"])
        if made is None:
            raise InputError(
                f"T-Few's files have no method like {each.spec['name']!r}; they have "
                + ", ".join(sorted(_WRITERS))
            )
        for name, array in made(each, stored, names, backbone).items():
            if name in tensors:
                raise InputError(f"two methods meet at {name}, where T-Few's file has one tensor")
            tensors[name] = np.ascontiguousarray(array, np.float32)
    return {name: tensors[name] for name in sorted(tensors, key=lambda n: _place(n, names))}


def _place(name: str, names: Names) -> tuple:
    """Encoder first, then layer by layer, and inside a layer as the model has them."""
    module, _, kind = name.rpartition(".")
    module = module if module in names.linears else name
    words = name.split(".")
    number = int(words[2]) if words[1] == "block" else len(names.tensors)
    order: Sequence[str] = [*names.linears, *names.norms]
    return words[0] != "encoder", number, words[3:5], order.index(module), kind


def _write_ia3(method: Method, stored: Params, names: Names, backbone: Backbone):
    tensors = {}
    for path, layers in by_layer(tree.flatten(method.bind(stored)), backbone.config).items():
        module, _, kind = path.rpartition("/")
        if kind != "ia3":
            raise InputError(f"T-Few's (IA)³ scales what a projection computes; this has {path!r}")
        if module.endswith("mlp"):
            if not backbone.config.gated:
                raise InputError(
                    f"{path!r} scales what wo reads; T-Few's file can say that of a gated "
                    "feed-forward alone (by its wi_1)"
                )
            module = f"{module}/wi_1"
        for layer, vector in layers.items():
            tensors[f"{names.places[Part(module, layer)]}.multi_lora_b"] = vector[:, None]
    return tensors


def _write_scaling(method: Method, stored: Params, names: Names, backbone: Backbone):
    tensors = {}
    for path, layers in by_layer(tree.flatten(method.bind(stored)), backbone.config).items():
        module, _, kind = path.rpartition("/")
        for layer, vector in layers.items():
            name = names.places[Part(module, layer)]
            if kind == "ia3":
                tensors[f"{name}.multi_lora_b"] = vector[:, None]
            else:
                tensors[f"{name}.multi_lora_a"] = vector[None, :]
    return tensors


def _write_lora(method: Method, stored: Params, names: Names, backbone: Backbone):
    if method.spec["dropout"]:
        raise InputError("T-Few's LoRA has no dropout; this one has, which its file cannot say")
    tensors = {}
    for part, each in lora_factors(method, stored, backbone).items():
        name = names.places[part]
        factor = each.alpha * (each.rank**0.5 if method.spec["rslora"] else 1)
        tensors[f"{name}.lora_a"] = each.a.T
        tensors[f"{name}.lora_b"] = each.b.T if factor == 1 else each.b.T * np.float32(factor)
    return tensors


def _write_norms(method: Method, stored: Params, names: Names, backbone: Backbone):
    places = {part: name for name, part in names.norms.items()}
    leaves = by_layer(tree.flatten(method.bind(stored)), backbone.config)
    return {
        places[Part(path, layer)]: array
        for path, layers in leaves.items()
        for layer, array in layers.items()
    }


_WRITERS = {
    "ia3": _write_ia3,
    "rank_one_scaling": _write_scaling,
    "lora": _write_lora,
    "norm_tuning": _write_norms,
}
