"""Hugging Face checkpoint folders, read and written tensor by tensor.

A folder holds ``config.json`` and either ``model.safetensors``, several safetensors files with
``model.safetensors.index.json``, or ``pytorch_model*.bin`` (read only). Tensors are streamed into
the stacked tree one at a time, so that peak memory stays near one copy of the model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import quantization, tensor_files, transformer, tree
from peft_jax.backbones import loading
from peft_jax.backbones.base import RUN_FIELDS, Backbone
from peft_jax.backbones.families import FAMILIES, Family
from peft_jax.backbones.loading import StoredBackbone
from peft_jax.backbones.names import Rule
from peft_jax.backbones.native import copy_vocabulary, local_vocabulary
from peft_jax.errors import InputError
from peft_jax.paths import as_path
from peft_jax.tensor_files import Index, StoredTensor, box_shape, copy_into
from peft_jax.torch_files import open_torch
from peft_jax.transformer import Config
from peft_jax.tree import Params

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VOCABULARY = "spiece.model"


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
def read_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json``; InputError where it is missing, broken or of a foreign family."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise InputError(f"no checkpoint folder at {folder}")
    if not path.is_file():
        raise InputError(f"{folder} is no Hugging Face folder: it has no {CONFIG}")
    fields = _read_json(path)
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"{path}: model_type {family!r} is not supported; one of {', '.join(FAMILIES)}"
        )
    return fields


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:  # no JSON, or no text at all
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds a {type(fields).__name__}; wanted a JSON object")
    return fields


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name, not yet read."""
    # The order is transformers' own, where a folder holds several.
    if (folder / WEIGHTS).is_file():
        return _open_safetensors([folder / WEIGHTS])
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX} has no weight_map from tensors to files")
        return _open_safetensors([folder / name for name in sorted(set(weight_map.values()))])
    files = sorted(folder.glob("pytorch_model*.bin"))
    if files:
        return _open_torch(files)
    raise InputError(f"{folder} has no weights: expected {WEIGHTS}, {INDEX} or pytorch_model.bin")


def _open_safetensors(files: list[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        if not path.is_file():
            raise InputError(f"{path} is missing, but the index names it")
        tensors |= tensor_files.open_tensors(path)
    return tensors


def _open_torch(files: list[Path]) -> dict[str, StoredTensor]:
    return {name: held for path in files for name, held in open_torch(path).items()}


def read_backbone(
    folder: str | Path,
    dtype: Any = jnp.float32,
    on_leaf: Callable[[str], None] = lambda path: None,
) -> Backbone:
    """The backbone of a Hugging Face folder, its floating tensors in ``dtype``.

    Args:
      folder: that holds it.
      dtype: of the parameters.
      on_leaf: called with the path of every leaf of ours that is read.

    Raises:
      InputError: a missing or malformed file; a tensor that the family's table doesn't know, that
        is missing, or whose shape is not what config.json says. Nothing is read before that is
        checked for all of them.
    """
    return loading.read(open_backbone(as_path(folder)), dtype, on_leaf=on_leaf)


def open_backbone(folder: Path) -> StoredBackbone:
    """What a folder holds as leaves of our tree, all of it checked and no leaf read.

    Raises:
      InputError: as :func:`read_backbone`.
    """
    config, tensors = open_checkpoint(folder)
    leaves = {
        rule.ours: _leaf(config, rule, tensors)
        for rule in FAMILIES[config.family].hugging_face_rules(config)
    }
    return StoredBackbone(leaves, config, folder.name, local_vocabulary(folder))


def open_checkpoint(folder: Path) -> tuple[Config, dict[str, StoredTensor]]:
    """A folder's configuration and its tensors, all checked and none read yet."""
    fields = read_config(folder)
    family = FAMILIES[fields["model_type"]]
    tensors = _without_aliases(folder, family, fields, _canonical(family, open_tensors(folder)))
    try:
        config = family.config_from_hugging_face(fields, frozenset(tensors))
    except KeyError as error:
        raise InputError(f"{folder / CONFIG} lacks the field {error}") from None
    except (TypeError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG} has a field of the wrong type: {error}") from None
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    _check_head(folder, family, fields, config)
    _check_tensors(folder, config, family.hugging_face_rules(config), tensors)
    return config, tensors


def _canonical(family: Family, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors that a model of the family reads, under the names that its table has.

    The bare model's files lack the prefix that a model with a head puts in front of it.
    """
    named = {}
    for name, tensor in tensors.items():
        name = family.canonical_name(name)
        if not any(re.fullmatch(pattern, name) for pattern in family.UNUSED):
            named[name] = tensor
    return named


def _without_aliases(
    folder: Path, family: Family, fields: dict[str, Any], tensors: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Without second names of a tensor, and without a head that is only a copy of the embedding."""
    for alias, name in family.ALIASES.items():
        held = tensors.pop(alias, None)
        if held is not None and not _same(held, tensors.setdefault(name, held)):
            raise InputError(
                f"{folder}: tensor {alias} differs from {name}, but in a "
                f"{fields['model_type']} they are one"
            )
    head, embedding = tensors.get(family.HEAD), tensors.get(family.EMBEDDING)
    tied = fields.get("tie_word_embeddings", family.tied_by_default(fields["model_type"]))
    if head and embedding and tied and _same(head, embedding):
        del tensors[family.HEAD]
    return tensors


def _same(tensor: StoredTensor, other: StoredTensor) -> bool:
    if tensor is other:
        return True
    return tensor.shape == other.shape and np.array_equal(tensor.read(), other.read())


def _check_head(folder: Path, family: Family, fields: dict[str, Any], config: Config) -> None:
    """A head that is read from the embedding must not be one of its own that is missing."""
    tied = fields.get("tie_word_embeddings", family.tied_by_default(fields["model_type"]))
    if config.lm_head and config.tied_head and tied is False:
        raise InputError(
            f"{folder}: tensor {family.HEAD} is missing; {CONFIG} says that the head is not tied "
            "to the embedding (tie_word_embeddings)"
        )


def _check_tensors(
    folder: Path, config: Config, rules: list[Rule], tensors: dict[str, StoredTensor]
) -> None:
    specs = tree.flatten(transformer.specification(config))
    known: set[str] = set()
    for rule in rules:
        shape = specs[rule.ours].shape
        wanted = rule.their_shape(shape[1:] if rule.stacked else shape)
        for _, name in rule.names(config.depth(rule.ours)):
            known.add(name)
            if name not in tensors:
                raise InputError(
                    f"{folder}: tensor {name} is missing; {tree.nearest(name, tensors)}"
                )
            if tensors[name].shape != wanted:
                raise InputError(
                    f"{folder}: tensor {name} has shape {tensors[name].shape}; "
                    f"config.json asks for {wanted}"
                )
    unknown = sorted(set(tensors) - known)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise InputError(
            f"{folder}: tensor {', '.join(unknown[:3])}{more} is not part of a "
            f"{config.family} of this configuration"
        )


def _leaf(config: Config, rule: Rule, tensors: Mapping[str, StoredTensor]) -> StoredTensor:
    """One leaf of our tree: the tensors of a row, transposed and stacked as they are read."""
    sources = [tensors[name] for _, name in rule.names(config.depth(rule.ours))]
    layer = rule.our_shape(sources[0].shape)
    shape = (len(sources), *layer) if rule.stacked else layer
    dtype = np.dtype(jnp.result_type(*(source.dtype for source in sources)))

    def part(box: Index) -> np.ndarray:
        there = rule.their_box(box[1:] if rule.stacked else box, layer)
        if not rule.stacked:
            return rule.our_array(sources[0].read_part(there))
        layers = sources[box[0]]
        if len(layers) == 1:
            return rule.our_array(layers[0].read_part(there))[None]
        out = np.empty(box_shape(box), dtype)
        for i, source in enumerate(layers):
            copy_into(out[i], rule.our_array(source.read_part(there)))
        return out

    def read() -> np.ndarray:
        if not rule.stacked and rule.parts == 1 and not rule.transpose:
            return rule.our_array(sources[0].read())
        return loading.read_in_pieces(leaf, dtype)

    first = (0,) if rule.stacked else ()
    within = range(len(first), len(shape))
    axes = (*first, *(reversed(within) if rule.transpose else within))
    leaf = StoredTensor(shape, dtype, read, part=part, axes=axes)
    return leaf


# --------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------
def write_backbone(
    folder: str | Path, backbone: Backbone, max_shard_bytes: int = 5 * 2**30
) -> Path:
    """Writes a folder that transformers loads as the same model; returns it.

    Args:
      backbone: its parameters are written in the dtype that they have.
      max_shard_bytes: a model beyond this is split over several files with an index.

    Raises:
      InputError: the family's config.json cannot say what the configuration does.
    """
    quantization.check_plain(backbone.params)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[backbone.config.family]
    rules = family.hugging_face_rules(backbone.config)
    fields = _written_fields(family, backbone.config, rules)
    shards = _plan_shards(backbone, rules, max_shard_bytes)
    files = [
        WEIGHTS if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    for file, shard in zip(files, shards, strict=True):
        tensors = {name: _tensor(backbone.params, places) for name, places in shard.items()}
        _write_safetensors(folder / file, tensors)
    if len(shards) > 1:
        weight_map = {name: f for f, shard in zip(files, shards, strict=True) for name in shard}
        total = tree.size_in_bytes(backbone.params)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1))
    # What an earlier model left would be read in place of this one.
    (folder / (WEIGHTS if len(shards) > 1 else INDEX)).unlink(missing_ok=True)
    fields["torch_dtype"] = str(jax.tree.leaves(backbone.params)[0].dtype)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
    _write_vocabulary(folder, backbone.vocabulary)
    return folder


def _write_vocabulary(folder: Path, vocabulary: Path | None) -> None:
    if vocabulary is None:
        return
    if vocabulary.is_dir():
        if vocabulary != folder.resolve():
            copy_vocabulary(vocabulary, folder)
    elif folder / VOCABULARY != vocabulary:
        (folder / VOCABULARY).write_bytes(vocabulary.read_bytes())


_CLASSIFIER_FIELDS = ("classifier_dense", "classifier_bias")


def _written_fields(family: Family, config: Config, rules: list[Rule]) -> dict[str, Any]:
    """The config.json of a backbone; InputError where it would not give the same model again."""
    fields = family.config_to_hugging_face(config)
    names = {name for rule in rules for _, name in rule.names(config.depth(rule.ours))}
    again = family.config_from_hugging_face(fields, names)
    # What a head that an adapter brings would be like is no part of this model.
    passed_over = RUN_FIELDS if config.num_labels else (*RUN_FIELDS, *_CLASSIFIER_FIELDS)
    if config.positions == "rotary":
        passed_over = (*passed_over, "max_positions")
    lost = [
        f"{field.name} {getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in passed_over
        and getattr(again, field.name) != getattr(config, field.name)
    ]
    if lost:
        raise InputError(f"{CONFIG} of a {config.family} cannot say {', '.join(lost)}")
    return fields


Place = tuple[Rule, int | None]


def _plan_shards(backbone, rules, max_bytes) -> list[dict[str, list[Place]]]:
    """Which tensor goes into which file, by name, and the leaves that it is made of.

    A file is closed when the next tensor would not fit.
    """
    places: dict[str, list[Place]] = {}
    for rule in rules:
        for layer, name in rule.names(backbone.config.depth(rule.ours)):
            places.setdefault(name, []).append((rule, layer))
    shards: list[dict[str, list[Place]]] = [{}]
    used = 0
    for name, parts in places.items():
        size = 0
        for rule, _ in parts:
            leaf = tree.get(backbone.params, rule.ours)
            size += tree.size_in_bytes(leaf) // (leaf.shape[0] if rule.stacked else 1)
        if used and used + size > max_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = parts
        used += size
    return shards


def _tensor(params: Params, places: list[Place]) -> np.ndarray:
    parts = []
    for rule, layer in sorted(places, key=lambda place: place[0].part):
        leaf = tree.get(params, rule.ours)
        parts.append(np.asarray(leaf if layer is None else leaf[layer]))
    array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    array = array.T if rule.transpose else array
    return np.ascontiguousarray(array[None] if rule.row else array)


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Written beside its place and moved there: a file that exists is whole."""
    from safetensors.numpy import save_file

    temporary = path.with_suffix(".partial")
    temporary.touch()
    mode = temporary.stat().st_mode  # safetensors' own files are closed to the group and to others
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.chmod(mode)
    os.replace(temporary, path)
