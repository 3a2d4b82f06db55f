"""LoRA, DoRA, AdaLoRA and VeRA, as PEFT keeps them: two factors, one pair for a module.

PEFT's A is [rank, in] and its B [out, rank], the transposes of ours. On a fused projection (a
GPT-2's ``c_attn``) it has one A for queries, keys and values together, where we have one for each.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.backbones.base import Backbone, find_modules
from peft_jax.errors import InputError
from peft_jax.exchange.modules import (
    Found,
    Layer,
    Leaves,
    Linear,
    Names,
    Part,
    Written,
    by_layer,
    groups,
    our_targets,
    stacked,
    their_targets,
)
from peft_jax.exchange.peft_names import PREFIX, full_name, modules_of
from peft_jax.methods import Method, from_spec
from peft_jax.methods.lazy import AtLayers
from peft_jax.tree import Params


class Factors(NamedTuple):
    """The update scale * a @ b of one of our modules in one layer, scale = alpha / rank.

    Attributes:
      a: [in, rank].
      b: [rank, out].
      alpha: with rank-stabilised scaling, scale = alpha / sqrt(rank).
      e: AdaLoRA's [rank] between them, or None.
      magnitude: DoRA's [out], or None.
    """

    a: np.ndarray
    b: np.ndarray
    alpha: float
    e: np.ndarray | None = None
    magnitude: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[-1]


def _scale(rank: int, alpha: float, rslora: bool) -> float:
    return alpha / (rank**0.5 if rslora else rank)


def _checked(name: str, kind: str, array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if array is None:
        raise InputError(f"tensor {name}.{kind} is missing")
    if array.shape != shape:
        raise InputError(f"tensor {name}.{kind} has shape {array.shape}; wanted {shape}")
    return array


# --------------------------------------------------------------------------------------------
# LoRA and DoRA
# --------------------------------------------------------------------------------------------
_LORA = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_magnitude_vector.weight")
_INITS = {
    **dict.fromkeys((True, False, "eva", "orthogonal", "uniform"), "uniform"),
    "gaussian": "gaussian",
    "pissa": "pissa",
}
"""``init_lora_weights``, where it leaves the backbone as it is, or in a way that is known here."""


def read_lora(fields, tensors, names: Names, backbone: Backbone) -> Found:
    """``lora_A.weight``, ``lora_B.weight`` and DoRA's ``lora_magnitude_vector``."""
    start = fields.get("init_lora_weights", True)
    if start not in _INITS:
        raise InputError(
            f"init_lora_weights {start!r} changes the backbone's own weights, in a way that is not "
            "known here; save it with path_initial_model_for_weight_conversion"
        )
    dora, rslora = bool(fields.get("use_dora")), bool(fields.get("use_rslora"))
    if dora and start == "pissa":
        raise InputError("init_lora_weights 'pissa' with use_dora is not supported")
    found: dict[Part, Factors] = {}
    for name, held in modules_of(tensors, names, _LORA).items():
        linear = names.linears[name]
        rank = _at(fields.get("rank_pattern"), name, fields["r"])
        alpha = _at(fields.get("alpha_pattern"), name, fields["lora_alpha"])
        width = linear.outputs * len(linear.parts)
        a = _checked(name, "lora_A", held.get("lora_A.weight"), (rank, linear.inputs))
        b = _checked(name, "lora_B", held.get("lora_B.weight"), (width, rank))
        magnitude = held.get("lora_magnitude_vector", held.get("lora_magnitude_vector.weight"))
        if dora:
            magnitude = _checked(name, "lora_magnitude_vector", magnitude, (width,))
        for i, part in enumerate(linear.parts):
            own = slice(i * linear.outputs, (i + 1) * linear.outputs)
            m = magnitude[own] if dora and magnitude is not None else None
            found[part] = Factors(a.T, b.T[:, own], alpha, magnitude=m)
    spec = {
        "name": "dora" if dora else "lora",
        "dropout": fields.get("lora_dropout", 0.0),
        "rslora": rslora,
        "init": _INITS[start],
    }
    return lora_parts(found, spec, backbone), []


def _at(pattern: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """A value of rank_pattern or alpha_pattern, found as peft finds it."""
    for key, value in (pattern or {}).items():
        # The pattern's names may lack the prefix of a model with a head, or have another.
        if re.match(rf"(.*\.)?({key})$", name) or key.endswith(f".{name}"):
            return value
    return otherwise


def lora_parts(
    found: Mapping[Part, Factors], spec: dict[str, Any], backbone: Backbone
) -> list[tuple[Method, Params]]:
    """LoRAs (or DoRAs) that hold these factors: one for all modules that lie in the same layers.

    Args:
      spec: name, dropout, rslora and init of the methods.
    """
    leaves: Leaves = {}
    numbers: dict[str, tuple[int, float]] = {}
    for module, own in _by_module(found).items():
        padded = _of_one_rank(own, spec["rslora"])
        first = next(iter(padded.values()))
        numbers[module] = first.rank, first.alpha
        for layer, each in padded.items():
            leaves.setdefault(f"{module}/lora_a", {})[layer] = each.a
            leaves.setdefault(f"{module}/lora_b", {})[layer] = each.b
            if each.magnitude is not None:
                leaves.setdefault(f"{module}/magnitude", {})[layer] = each.magnitude
    there = find_modules(backbone.config, "lora_a", ".*")
    made = []
    for held, layers in groups(leaves, backbone.config):
        modules = _modules_of(held, there)
        rank = _usual(numbers[m][0] for m in modules)
        alpha = _usual(numbers[m][1] for m in modules)
        method = from_spec(
            spec
            | {
                "rank": rank,
                "alpha": alpha,
                "targets": our_targets(modules, there),
                "layers": layers,
                "rank_pattern": [[m, numbers[m][0]] for m in modules if numbers[m][0] != rank],
                "alpha_pattern": [[m, numbers[m][1]] for m in modules if numbers[m][1] != alpha],
            }
        )
        made.append((method, _with_constants(method, stacked(held), spec, backbone)))
    return made


def _modules_of(leaves: Leaves, there: Iterable[str]) -> list[str]:
    """The modules that have leaves, in the order of the backbone's own."""
    held = {path.rpartition("/")[0] for path in leaves}
    return [module for module in there if module in held]


def _by_module(found: Mapping[Part, Factors]) -> dict[str, dict[Layer, Factors]]:
    modules: dict[str, dict[Layer, Factors]] = {}
    for part, each in found.items():
        modules.setdefault(part.module, {})[part.layer] = each
    return modules


def _of_one_rank(layers: Mapping[Layer, Factors], rslora: bool) -> dict[Layer, Factors]:
    """The same updates with the rank and the alpha of the layer that has the highest.

    Ranks are filled up with zeros in both factors, which no gradient ever moves.
    """
    whole = max(layers.values(), key=lambda each: each.rank)
    wanted = _scale(whole.rank, whole.alpha, rslora)
    made = {}
    for layer, each in layers.items():
        more = whole.rank - each.rank
        factor = _scale(each.rank, each.alpha, rslora) / wanted
        a = np.pad(each.a, ((0, 0), (0, more)))
        b = np.pad(each.b if factor == 1 else each.b * np.float32(factor), ((0, more), (0, 0)))
        made[layer] = each._replace(a=a, b=b, alpha=whole.alpha)
    return made


def _usual(values: Iterable[Any]) -> Any:
    return collections.Counter(values).most_common(1)[0][0]


def _with_constants(method: Method, stored: Params, spec, backbone: Backbone) -> Params:
    """With the principal components of the backbone's kernels, where training started there."""
    if spec["init"] != "pissa":
        return stored
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(backbone.params)):
        raise InputError("init_lora_weights 'pissa' refers to the backbone's weights: load them")
    fixed = tree.split_fixed(method.init(jax.random.key(0), backbone))[1]
    return tree.join(stored, fixed)


def write_lora(parts, names: Names, backbone: Backbone) -> Written:
    """The folder of a LoRA or DoRA; with constants (PiSSA), what its factors amount to."""
    names_of = {method.spec["name"] for method, _ in parts}
    assert len(names_of) == 1
    shared = {key: _shared(parts, key) for key in ("rslora", "dropout")}
    found: dict[Part, Factors] = {}
    for method, stored in parts:
        found |= lora_factors(method, stored, backbone)
    dora = names_of == {"dora"}
    linears = {n: _joined(n, own, names, shared["rslora"], dora, backbone)
               for n, own in _by_linear(found, names).items()}  # fmt: skip
    tensors = {}
    for name, each in linears.items():
        module = PREFIX + full_name(name, names)
        tensors[f"{module}.lora_A.weight"] = each.a.T
        tensors[f"{module}.lora_B.weight"] = each.b.T
        if each.magnitude is not None:
            tensors[f"{module}.lora_magnitude_vector"] = each.magnitude
    rank = _usual(each.rank for each in linears.values())
    alpha = _usual(each.alpha for each in linears.values())
    fields = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(alpha),
        "lora_dropout": shared["dropout"],
        "use_rslora": shared["rslora"],
        "use_dora": dora,
        "init_lora_weights": True,
        "bias": "none",
        "rank_pattern": {
            full_name(n, names): each.rank for n, each in linears.items() if each.rank != rank
        },
        "alpha_pattern": {
            full_name(n, names): _whole(each.alpha)
            for n, each in linears.items()
            if each.alpha != alpha
        },
        **_targets(linears, names),
    }
    return fields, tensors


def _targets(linears: Iterable[str], names: Names) -> dict[str, Any]:
    every = [names.in_class(name) for name in names.tensors]
    return {
        "target_modules": their_targets([full_name(n, names) for n in linears], every),
        "fan_in_fan_out": any(names.linears[n].conv1d for n in linears),
    }


def _whole(alpha: float) -> float:
    """As a whole number where it is one: peft's type for it."""
    return int(alpha) if float(alpha).is_integer() else float(alpha)


def _shared(parts: Sequence[tuple[Method, Params]], key: str) -> Any:
    values = list(dict.fromkeys(method.spec[key] for method, _ in parts))
    if len(values) > 1:
        raise InputError(f"a PEFT folder has one {key}; the composed methods have {values}")
    return values[0]


def lora_factors(method: Method, stored: Params, backbone: Backbone) -> dict[Part, Factors]:
    """The factors of a LoRA or DoRA, as trained, or with constants as its layers read them."""
    spec, flat = method.spec, tree.flatten(stored)
    constants = any(path.endswith("fixed/lora_b") for path in flat)
    bound = tree.flatten(method.bind(stored))
    if not constants:
        trained = {path.replace("/fixed/", "/"): leaf for path, leaf in flat.items()}
        # Bound leaves know the layers; the trained ones have no scale in them yet.
        bound = {
            path: _like(bound[path], leaf)
            for path, leaf in trained.items()
            if path.endswith(("/lora_a", "/lora_b"))
        }
    held = by_layer({p: x for p, x in bound.items() if p.endswith(("/lora_a", "/lora_b"))},
                    backbone.config)  # fmt: skip
    magnitudes = {p: x for p, x in flat.items() if p.endswith("/magnitude")}
    found = {}
    for path, layers in held.items():
        module, _, kind = path.rpartition("/")
        if kind != "lora_a":
            continue
        for i, (layer, a) in enumerate(layers.items()):
            rank = a.shape[-1]
            # Then the scale is in the factors.
            alpha = rank ** (0.5 if spec["rslora"] else 1)
            if not constants:
                alpha = rank if spec["alpha"] is None else spec["alpha"]
                alpha = next(
                    (v for p, v in spec["alpha_pattern"] if tree.ends_with(p, module)), alpha
                )
            m = magnitudes.get(f"{module}/magnitude")
            if m is not None:
                m = np.asarray(m if layer is None else m[i])
            found[Part(module, layer)] = Factors(a, held[f"{module}/lora_b"][layer], alpha, None, m)
    return found


def _like(bound: Any, leaf: jax.Array) -> Any:
    """The leaf in the layers of the bound one."""
    return dataclasses.replace(bound, values=leaf) if isinstance(bound, AtLayers) else leaf


def _by_linear(found: Mapping[Part, Factors], names: Names) -> dict[str, dict[Part, Factors]]:
    linears: dict[str, dict[Part, Factors]] = {}
    for part, each in found.items():
        linears.setdefault(names.places[part], {})[part] = each
    return {name: linears[name] for name in names.linears if name in linears}


def _joined(
    name: str,
    own: Mapping[Part, Factors],
    names: Names,
    rslora: bool,
    dora: bool,
    backbone: Backbone,
) -> Factors:
    """One pair of factors for a projection: that of its only part, or of several side by side.

    Parts that differ in A get ranks of their own, with zeros in the other parts' columns of B.
    """
    linear, (first, *others) = names.linears[name], own.values()
    if len(linear.parts) == 1:
        return first
    alike = len(own) == len(linear.parts) and all(
        np.array_equal(x.a, first.a) and x.alpha == first.alpha for x in others
    )
    if alike:
        b = np.concatenate([own[part].b for part in linear.parts], axis=1)
        joined = first._replace(b=b)
    else:
        joined = _side_by_side(linear, own, rslora)
    if not dora:
        return joined
    return joined._replace(
        magnitude=np.concatenate(
            [own[p].magnitude if p in own else _norms(p, backbone) for p in linear.parts]
        )
    )


def _side_by_side(linear: Linear, own: Mapping[Part, Factors], rslora: bool) -> Factors:
    total = sum(each.rank for each in own.values())
    first = next(iter(own.values()))
    scale = _scale(first.rank, first.alpha, rslora)
    b = np.zeros((total, linear.outputs * len(linear.parts)), np.float32)
    row = 0
    for part, each in own.items():
        at = linear.parts.index(part) * linear.outputs
        factor = _scale(each.rank, each.alpha, rslora) / scale
        b[row : row + each.rank, at : at + linear.outputs] = each.b * np.float32(factor)
        row += each.rank
    alpha = first.alpha * (total / first.rank) ** (0.5 if rslora else 1)
    return Factors(np.concatenate([each.a for each in own.values()], axis=1), b, alpha)


def _norms(part: Part, backbone: Backbone) -> np.ndarray:
    """The norms of a frozen kernel's columns, with which a DoRA changes nothing."""
    kernel = tree.get(backbone.params, f"{part.module}/kernel")
    if isinstance(kernel, jax.ShapeDtypeStruct):
        raise InputError(
            f"a DoRA on a part of a fused projection needs the weights of {part.module!r}"
        )
    own = np.asarray(kernel if part.layer is None else kernel[part.layer], np.float32)
    return np.linalg.norm(own, axis=0)


# --------------------------------------------------------------------------------------------
# AdaLoRA
# --------------------------------------------------------------------------------------------
_ADALORA_FIELDS = {
    "target_r": "target_rank",
    "tinit": "initial_steps",
    "tfinal": "final_steps",
    "deltaT": "interval",
    "beta1": "beta1",
    "beta2": "beta2",
    "orth_reg_weight": "orthogonality",
    "lora_dropout": "dropout",
}
"""PEFT's names of what is about training, and ours."""


def read_adalora(fields, tensors, names: Names, backbone: Backbone) -> Found:
    """``lora_A``, ``lora_E`` and ``lora_B``, of the ranks that ``rank_pattern`` says are left.

    The others come back as zeros, so that the places and the scale are those of training.
    """
    rank, leaves = fields["init_r"], Leaves()
    kept = {
        re.sub(r"\.lora_E(\.\w+)?$", "", key): np.asarray(mask, bool).reshape(-1)
        for key, mask in (fields.get("rank_pattern") or {}).items()
    }
    for name, held in modules_of(tensors, names, ("lora_A", "lora_E", "lora_B")).items():
        linear = names.linears[name]
        mask = _at(kept, name, np.ones(rank, bool))
        own = int(mask.sum())
        width = linear.outputs * len(linear.parts)
        shapes = {"lora_A": (own, linear.inputs), "lora_E": (own, 1), "lora_B": (width, own)}
        their = {kind: _checked(name, kind, held.get(kind), s) for kind, s in shapes.items()}
        if mask.shape != (rank,):
            raise InputError(f"rank_pattern of {name} has {len(mask)} entries; init_r is {rank}")
        a = np.zeros((linear.inputs, rank), np.float32)
        e, b = np.zeros(rank, np.float32), np.zeros((rank, width), np.float32)
        a[:, mask], e[mask], b[mask] = their["lora_A"].T, their["lora_E"][:, 0], their["lora_B"].T
        for i, part in enumerate(linear.parts):
            columns = b[:, i * linear.outputs : (i + 1) * linear.outputs]
            for kind, array in (("lora_a", a), ("lora_e", e), ("lora_b", columns)):
                leaves.setdefault(f"{part.module}/{kind}", {})[part.layer] = array
    there = find_modules(backbone.config, "lora_a", ".*")
    spec = {ours: fields[theirs] for theirs, ours in _ADALORA_FIELDS.items() if theirs in fields}
    spec |= {"name": "adalora", "rank": rank, "alpha": fields["lora_alpha"]}
    # What peft allots is the same where it is at the target from the start.
    spec["target_rank"] = min(spec["target_rank"], rank)
    made = []
    for group, layers in groups(leaves, backbone.config):
        modules = _modules_of(group, there)
        targets = our_targets(modules, there)
        method = from_spec(spec | {"targets": targets, "layers": layers})
        made.append((method, stacked(group)))
    return made, []


def write_adalora(parts, names: Names, backbone: Backbone) -> Written:
    """The folder of an AdaLoRA: all ranks, those that were taken away with a zero in ``lora_E``."""
    shared = {
        key: _shared(parts, key)
        for key in ("rank", "alpha", *dict.fromkeys(_ADALORA_FIELDS.values()))
    }
    rank = shared["rank"]
    alpha = float(rank if shared["alpha"] is None else shared["alpha"])
    found: dict[Part, Factors] = {}
    for method, stored in parts:
        bound, flat = tree.flatten(method.bind(stored)), tree.flatten(stored)
        like = {p: bound[re.sub("lora_e$", "lora_b", p)] for p in flat}
        held = by_layer({p: _like(like[p], x) for p, x in flat.items()}, backbone.config)
        for path, layers in held.items():
            module, _, kind = path.rpartition("/")
            if kind == "lora_e":
                for layer, e in layers.items():
                    a, b = (held[f"{module}/{kind}"][layer] for kind in ("lora_a", "lora_b"))
                    found[Part(module, layer)] = Factors(a, b, alpha, e)
    tensors, linears = {}, _by_linear(found, names)
    for name, own in linears.items():
        each = _one_adalora(name, own, names)
        module = PREFIX + full_name(name, names)
        assert each.e is not None
        tensors[f"{module}.lora_A"] = each.a.T
        tensors[f"{module}.lora_E"] = each.e[:, None]
        tensors[f"{module}.lora_B"] = each.b.T
    fields = {theirs: shared[ours] for theirs, ours in _ADALORA_FIELDS.items()}
    fields |= {
        "peft_type": "ADALORA",
        "init_r": rank,
        "lora_alpha": _whole(alpha),
        # peft loads no AdaLoRA without it; it is one more than it asks for.
        "total_step": shared["initial_steps"] + shared["final_steps"] + 1,
        **_targets(linears, names),
    }
    return fields, tensors


def _one_adalora(name: str, own: Mapping[Part, Factors], names: Names) -> Factors:
    linear, (first, *others) = names.linears[name], own.values()
    if len(linear.parts) == 1:
        return first
    pairs = [(x.e, first.e) for x in others if x.e is not None and first.e is not None]
    alike = all(np.array_equal(x.a, first.a) for x in others)
    alike = alike and all(np.array_equal(one, other) for one, other in pairs)
    if not alike or len(own) < len(linear.parts):
        raise InputError(
            f"PEFT's AdaLoRA has one lora_A and lora_E for all of {name}; this adapter has others "
            "for its parts"
        )
    return first._replace(b=np.concatenate([own[p].b for p in linear.parts], axis=1))


# --------------------------------------------------------------------------------------------
# VeRA
# --------------------------------------------------------------------------------------------
def read_vera(fields, tensors, names: Names, backbone: Backbone) -> Found:
    """``vera_lambda_b`` and ``_d``, and the shared projections ``vera_A`` and ``vera_B``."""
    rank = fields["r"]
    shared = {kind: tensors.pop(f"base_model.{kind}", None) for kind in ("vera_A", "vera_B")}
    if any(array is None for array in shared.values()):
        raise InputError(
            "the random projections are not in the file (save_projection was off), and torch's "
            "random numbers are not known here"
        )
    leaves: Leaves = {}
    sides: list[tuple[int, int]] = []
    for name, held in modules_of(tensors, names, ("vera_lambda_b", "vera_lambda_d")).items():
        linear = names.linears[name]
        if len(linear.parts) > 1:
            raise InputError(
                f"VeRA on the fused projection {name} is not supported: its parts read different "
                "rows of vera_B, ours all read the first ones"
            )
        _checked(name, "vera_lambda_b", held.get("vera_lambda_b"), (linear.outputs,))
        _checked(name, "vera_lambda_d", held.get("vera_lambda_d"), (rank,))
        (part,) = linear.parts
        sides.append((linear.inputs, linear.outputs))
        for kind, vector in held.items():
            leaves.setdefault(f"{part.module}/{kind}", {})[part.layer] = vector
    inputs = max((width for width, _ in sides), default=0)
    outputs = max((width for _, width in sides), default=0)
    _checked("base_model", "vera_A", shared["vera_A"], (rank, inputs))
    _checked("base_model", "vera_B", shared["vera_B"], (outputs, rank))
    there = find_modules(backbone.config, "lora_a", ".*")
    spec = {
        "name": "vera",
        "rank": rank,
        "dropout": fields.get("vera_dropout", 0.0),
        "d_initial": fields["d_initial"],
    }
    made = []
    for group, layers in groups(leaves, backbone.config):
        modules = _modules_of(group, there)
        own = [names.linears[names.places[Part(m, next(iter(group[f"{m}/vera_lambda_b"])))]]
               for m in modules]  # fmt: skip
        # As much of them as these modules read.
        a = shared["vera_A"].T[: max(linear.inputs for linear in own)]
        b = shared["vera_B"].T[:, : max(linear.outputs for linear in own)]
        method = from_spec(spec | {"targets": our_targets(modules, there), "layers": layers})
        fixed = {"fixed": {"vera_a": jnp.asarray(a), "vera_b": jnp.asarray(b)}}
        made.append((method, tree.join(stacked(group), fixed)))
    return made, []


def write_vera(parts, names: Names, backbone: Backbone) -> Written:
    """The folder of a VeRA, with its projections."""
    rank, dropout = _shared(parts, "rank"), _shared(parts, "dropout")
    shared = _largest([np.asarray(stored["fixed"]["vera_a"]) for _, stored in parts])
    columns = _largest([np.asarray(stored["fixed"]["vera_b"]).T for _, stored in parts])
    tensors = {"base_model.vera_A": shared.T, "base_model.vera_B": columns}
    linears = []
    for method, stored in parts:
        trained = tree.flatten(tree.split_fixed(stored)[0])
        bound = tree.flatten(method.bind(stored))
        like = {p: bound[f"{p.rpartition('/')[0]}/lora_b"] for p in trained}
        held = by_layer({p: _like(like[p], x) for p, x in trained.items()}, backbone.config)
        for path, layers in held.items():
            module, _, kind = path.rpartition("/")
            for layer, vector in layers.items():
                name = names.places[Part(module, layer)]
                if len(names.linears[name].parts) > 1:
                    raise InputError(
                        f"PEFT's VeRA adapts all of the fused projection {name}, with other rows "
                        "of vera_B for each part; ours has the same for all"
                    )
                linears.append(name)
                tensors[f"{PREFIX}{full_name(name, names)}.{kind}"] = vector
    fields = {
        "peft_type": "VERA",
        "r": rank,
        "vera_dropout": dropout,
        "d_initial": _shared(parts, "d_initial"),
        "save_projection": True,
        "bias": "none",
        **_targets(dict.fromkeys(linears), names),
    }
    return fields, tensors


def _largest(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The one with the most rows, of which all others must be a part."""
    whole = max(arrays, key=len)
    if any(not np.array_equal(whole[: len(each)], each) for each in arrays):
        raise InputError("a PEFT folder has one pair of random projections for all modules")
    return whole
