"""Which module of a PyTorch model each of our modules is, layer by layer.

Everything is derived from the families' own name tables (``backbones.names.Rule``), which say it
for the backbone's tensors.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from peft_jax import transformer, tree
from peft_jax.backbones.base import find_modules
from peft_jax.backbones.families import FAMILIES
from peft_jax.backbones.names import Rule
from peft_jax.errors import InputError
from peft_jax.methods import Method, compose, from_spec, ia3
from peft_jax.methods.composition import stored_names
from peft_jax.methods.ia3 import TARGETS as IA3_TARGETS
from peft_jax.methods.lazy import AtLayers
from peft_jax.transformer import Config
from peft_jax.tree import Params

Layer = int | None
"""A layer of a stack, or None for a module outside of the stacks."""

Leaves = dict[str, dict[Layer, np.ndarray]]
"""Our path of a leaf -> layer -> its array in that layer."""

Found = tuple[list[tuple[Method, Params]], list[str]]
"""Methods with their stored trees, and names of what was not needed."""

Written = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Fields of an adapter_config.json, and its tensors by name."""


class Part(NamedTuple):
    """One of our modules in one layer."""

    module: str
    layer: Layer


class Linear(NamedTuple):
    """A projection of the other side: an ``nn.Linear``, or a ``Conv1D`` in a GPT-2.

    Attributes:
      parts: our modules whose outputs it holds side by side, in their order: one, but three in a
        GPT-2's ``c_attn``.
      inputs: its width in.
      outputs: the width out of each part.
      conv1d: whether it keeps its matrix as [in, out].
    """

    parts: tuple[Part, ...]
    inputs: int
    outputs: int
    conv1d: bool


class Names:
    """The other side's names for a backbone's modules and tensors.

    Attributes:
      config: of the backbone.
      linears: projections by the name that the family's table has.
      norms: (tensor name -> our path and layer) of the norms' scales and biases.
      head: tensor name -> rule of the family's classification head.
      tensors: names of all of the backbone's own.
      classifies: whether the class that is loaded is the one with a classification head.
    """

    classifies = False

    def __init__(self, config: Config) -> None:
        self.config = config
        self.family = FAMILIES[config.family]
        rules = self.family.hugging_face_rules(config)
        specs = tree.flatten(transformer.specification(config))
        self.linears: dict[str, Linear] = {}
        self.norms: dict[str, Part] = {}
        self.tensors = [name for rule in rules for _, name in rule.names(config.depth(rule.ours))]
        for rule in rules:
            for layer, name in rule.names(config.depth(rule.ours)):
                if rule.ours.endswith("/kernel"):
                    self._add_linear(rule, layer, name, specs[rule.ours].shape)
                elif rule.ours.rpartition("/")[0].endswith("norm"):
                    self.norms[name] = Part(rule.ours, layer)
        self.places = {part: name for name, each in self.linears.items() for part in each.parts}
        self.head = _head_rules(config)

    def _add_linear(self, rule: Rule, layer: Layer, name: str, shape: tuple[int, ...]) -> None:
        name = name.removesuffix(".weight")
        part = Part(rule.ours.removesuffix("/kernel"), layer)
        before = self.linears.get(name)
        parts = (*before.parts, part) if before else (part,)
        self.linears[name] = Linear(parts, shape[-2], shape[-1], not rule.transpose)

    def canonical(self, name: str) -> str:
        """The table's name of a module or tensor of any of the family's PyTorch classes."""
        return self.family.canonical_name(name)

    def in_class(self, name: str) -> str:
        """The name in the class that is loaded for the backbone: with a classification head, with
        a language-model head, or bare."""
        if self.classifies:
            prefix = "transformer." if self.config.family in ("t5", "mt5") else ""
            return name if name.startswith("classification_head.") else prefix + name
        bare = name.partition(".")[2]
        if not (self.config.lm_head or self.config.num_labels) and self.canonical(bare) == name:
            return bare
        return name


def _head_rules(config: Config) -> dict[str, Rule]:
    """Tensor name -> rule of the family's classification head."""
    labelled = dataclasses.replace(config, num_labels=config.num_labels or 1)
    rules = FAMILIES[config.family].hugging_face_rules(labelled)
    return {rule.theirs: rule for rule in rules if rule.ours.startswith("classifier/")}


# --------------------------------------------------------------------------------------------
# Leaves by layer, and stacked
# --------------------------------------------------------------------------------------------
def by_layer(leaves: Mapping[str, Any], config: Config) -> Leaves:
    """Stored or bound leaves, taken apart into layers.

    Args:
      leaves: path -> array, stacked [layers, ...] in a stack, or ``AtLayers`` of one.
    """
    found: Leaves = {}
    for path, leaf in leaves.items():
        chosen: Sequence[Layer]
        if isinstance(leaf, AtLayers):
            chosen, leaf = leaf.layers, leaf.values
        elif "/layers/" in path:
            chosen = range(config.depth(path))
        else:
            chosen, leaf = [None], leaf[None]
        found[path] = {i: np.asarray(x) for i, x in zip(chosen, leaf, strict=True)}
    return found


def stacked(leaves: Leaves) -> Params:
    """The stored tree of leaves by layer, as one of :func:`groups` has them."""
    flat = {
        path: held[None] if None in held else np.stack([x for _, x in sorted(held.items())])
        for path, held in leaves.items()
    }
    return tree.unflatten({p: jnp.asarray(x, jnp.float32) for p, x in flat.items()})


def groups(leaves: Leaves, config: Config) -> list[tuple[Leaves, tuple[int, ...] | None]]:
    """Leaves that lie in the same layers, together: those in all layers of their stack first."""
    made: dict[tuple[int, ...] | None, Leaves] = collections.defaultdict(dict)
    for path, held in leaves.items():
        layers: tuple[int, ...] | None = tuple(sorted(i for i in held if i is not None))
        layers = None if None in held else layers
        if layers is not None and len(layers) == config.depth(path):
            layers = None
        made[layers][path] = held
    return [(made[layers], layers) for layers in sorted(made, key=lambda x: (x is not None, x))]


def composed(parts: Sequence[tuple[Method, Params]]) -> tuple[Params, Method]:
    """One stored tree and its method of several."""
    if len(parts) == 1:
        method, stored = parts[0]
        return stored, method
    labels = stored_names([method.spec["name"] for method, _ in parts])
    method = compose(*(method for method, _ in parts))
    return {label: stored for label, (_, stored) in zip(labels, parts, strict=True)}, method


def parts_of(method: Method, stored: Params) -> list[tuple[Method, Params]]:
    """The methods that a method is composed of, each with its stored tree; or itself alone."""
    if method.spec["name"] != "compose":
        return [(method, stored)]
    methods = [from_spec(spec) for spec in method.spec["methods"]]
    labels = stored_names([each.spec["name"] for each in methods])
    return [(each, stored[label]) for each, label in zip(methods, labels, strict=True)]


def ia3_of(leaves: Leaves, layers: tuple[int, ...] | None, config: Config) -> Method:
    """The (IA)³ that has these leaves; the plain ``ia3()`` where they are its own."""
    outputs = {p.removesuffix("/ia3") for p in leaves if p.endswith("/ia3")}
    inputs = {p.removesuffix("/input_scale") for p in leaves if p.endswith("/input_scale")}
    places = find_modules(config, "ia3", ".*")
    if not inputs and outputs == set(tree.match(IA3_TARGETS, places)):
        return ia3(layers=layers)
    readers = find_modules(config, "input_scale", ".*")
    return ia3(our_targets(outputs, places), layers, our_targets(inputs, readers))


# --------------------------------------------------------------------------------------------
# Targets: few short names for many long ones
# --------------------------------------------------------------------------------------------
def our_targets(chosen: Iterable[str], there: Collection[str]) -> tuple[str, ...]:
    """Ends of paths that match the chosen modules and no other.

    Args:
      chosen: paths of modules.
      there: all modules that a target is held against; their order is the targets'.
    """
    chosen = set(chosen)
    found: list[str] = []
    for path in there:
        if path in chosen and not any(tree.ends_with(target, path) for target in found):
            ends = _ends(path)
            matched = ({p for p in there if tree.ends_with(end, p)} for end in ends)
            fits = (end for end, paths in zip(ends, matched, strict=True) if paths <= chosen)
            found.append(next(fits, path))
    return tuple(found)


def _ends(path: str) -> list[str]:
    """How a module may be named, the most general first: ``attention/query`` is in every kind."""
    words = path.split("/")
    ends = [words[-1], "/".join(words[-2:]), path]
    if len(words) > 1 and words[-2].endswith("attention"):
        ends[0] = f"attention/{words[-1]}"
    elif words[-1].endswith("attention_norm"):
        ends.insert(0, "attention_norm")
    return ends


def their_targets(chosen: Iterable[str], tensors: Iterable[str]) -> list[str]:
    """Ends of module names that PEFT's ``target_modules`` matches with the chosen and no other.

    Args:
      chosen: full names of modules.
      tensors: names of all tensors of the model.
    """
    chosen = set(chosen)
    names = {
        ".".join(name.split(".")[:i]) for name in tensors for i in range(1, name.count(".") + 1)
    }
    matched: dict[str, set[str]] = collections.defaultdict(set)
    for name in names | chosen:
        words = name.split(".")
        for i in range(len(words)):
            matched[".".join(words[i:])].add(name)
    found: list[str] = []
    left = sorted(chosen)
    while left:
        words = left[0].split(".")
        ends = [".".join(words[i:]) for i in range(len(words) - 1, -1, -1)]
        end = next(e for e in ends if matched[e] <= chosen or e == left[0])
        found.append(end)
        left = [name for name in left if name not in matched[end]]
    return found


def missing(kind: str, name: str, there: Collection[str], config: Config) -> InputError:
    """The error for a name of the other side that the backbone has no module for."""
    return InputError(
        f"{kind} {name!r} is none of this {config.family}'s; {tree.nearest(name, there)}"
    )
