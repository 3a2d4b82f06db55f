"""Our own folder for a backbone: the stacked tree as it is, so that loading only reads.

``config.json`` holds every field of :class:`~peft_jax.transformer.Config`; the leaves lie under
their paths in ``params.safetensors``, or in several files with ``params.safetensors.index.json``;
the vocabulary's files stand beside them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from peft_jax import quantization, transformer, tree
from peft_jax._version import __version__
from peft_jax.backbones import loading
from peft_jax.backbones.base import Backbone
from peft_jax.backbones.loading import StoredBackbone
from peft_jax.errors import InputError
from peft_jax.files import replace_folder
from peft_jax.paths import as_path, local_folder
from peft_jax.tensor_files import StoredTensor, open_tensors, write_tensors
from peft_jax.tokenizer_files import vocabulary_in
from peft_jax.transformer import Config

FORMAT = "peft_jax.backbone"
VERSION = 1

CONFIG = "config.json"
WEIGHTS = "params.safetensors"
INDEX = "params.safetensors.index.json"

TOKENIZER_FILES = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
"""What a checkpoint's folder may hold of its tokenizer."""


# --------------------------------------------------------------------------------------------
# The configuration as JSON
# --------------------------------------------------------------------------------------------
def config_to_json(config: Config) -> dict[str, Any]:
    """Every field, as values that JSON has (tuples as lists, nested dataclasses as objects)."""
    return dataclasses.asdict(config)


def config_from_json(fields: dict[str, Any]) -> Config:
    """The inverse of :func:`config_to_json`, after a detour through JSON too.

    A field that is absent has its default: an older release did not know it.

    Raises:
      InputError: a field that this release doesn't know, a required one that is missing, or a
        value that the field cannot have.
    """
    return _decode(Config, fields, "config")


def _decode(hint: Any, value: Any, field: str) -> Any:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        (hint,) = (a for a in arguments if a is not types.NoneType)
        return _decode(hint, value, field)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(each) == len(value):
            return tuple(_decode(h, v, field) for h, v in zip(each, value, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _decode_fields(hint, value, field)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    kind = getattr(hint, "__name__", hint)
    raise InputError(f"field {field!r} is {value!r}; wanted {kind}")


def _decode_fields(kind: Any, fields: dict[str, Any], field: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise InputError(
                f"{field!r} has the unknown field {name!r}, perhaps of a later release; "
                + tree.nearest(name, known)
            )
    for name, about in known.items():
        defaults = (about.default, about.default_factory)
        if name not in fields and all(d is dataclasses.MISSING for d in defaults):
            raise InputError(f"{field!r} lacks the field {name!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{n: _decode(hints[n], v, n) for n, v in fields.items()})


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
def is_native(folder: Path) -> bool:
    """Whether the folder's ``config.json`` says that it is ours."""
    try:
        fields = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("format") == FORMAT


def read_backbone(
    folder: str | Path, dtype: Any = None, on_leaf: Callable[[str], None] = lambda path: None
) -> Backbone:
    """The backbone of a folder that :func:`write_backbone` made, on the default device.

    Args:
      folder: that holds it.
      dtype: of the parameters; None keeps each as it is stored.
      on_leaf: called with the path of every leaf that is read.

    Raises:
      InputError: as :func:`open_backbone`.
    """
    return loading.read(open_backbone(as_path(folder)), dtype, on_leaf=on_leaf)


def open_backbone(folder: Path) -> StoredBackbone:
    """What a folder holds, all of it checked and no leaf read.

    Raises:
      InputError: another version or a damaged file; a leaf that is missing, left over, or whose
        shape is not what the configuration says.
    """
    fields = _read_fields(folder)
    config = _config(folder, fields)
    stored = _open(folder)
    _check_leaves(folder, config, stored)
    leaves = {path: stored[path] for path in tree.flatten(transformer.specification(config))}
    vocabulary = fields.get("vocabulary")
    if vocabulary is not None:
        beside = local_folder(folder, (*TOKENIZER_FILES, CONFIG))
        vocabulary = (beside / Path(vocabulary).name).resolve()
        if not vocabulary.exists():
            raise InputError(f"{folder / CONFIG} names the vocabulary {vocabulary}: it is missing")
    return StoredBackbone(leaves, config, fields.get("name", folder.name), vocabulary)


def read_config(folder: Path) -> Config:
    """The configuration of a folder, without its parameters."""
    return _config(folder, _read_fields(folder))


def _config(folder: Path, fields: dict[str, Any]) -> Config:
    try:
        return config_from_json(fields["config"])
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None


def _read_fields(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} is no folder of a backbone: it has no {CONFIG}")
    fields = _read_object(path)
    if fields.get("format") != FORMAT:
        raise InputError(f"{path}: format {fields.get('format')!r} is not {FORMAT!r}")
    if fields.get("version") != VERSION:
        raise InputError(
            f"{path} has version {fields.get('version')!r} of the format; this release reads "
            f"{VERSION}"
        )
    if not isinstance(fields.get("config"), dict):
        raise InputError(f"{path} lacks the object 'config'")
    return fields


def _read_object(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds a {type(fields).__name__}; wanted a JSON object")
    return fields


def _open(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX
    if not index.is_file():
        return open_tensors(folder / WEIGHTS)
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index} has no weight_map from leaves to files")
    files = {name: open_tensors(folder / name) for name in sorted(set(weight_map.values()))}
    return {path: tensor for tensors in files.values() for path, tensor in tensors.items()}


def _check_leaves(folder: Path, config: Config, stored: dict[str, StoredTensor]) -> None:
    specs = tree.flatten(transformer.specification(config))
    for path, spec in specs.items():
        if path not in stored:
            raise InputError(f"{folder}: leaf {path} is missing; {tree.nearest(path, stored)}")
        shape, dtype = stored[path][:2]
        if shape != spec.shape:
            raise InputError(
                f"{folder}: leaf {path} has shape {shape}; {CONFIG} asks for {spec.shape}"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(f"{folder}: leaf {path} holds {dtype}; wanted a floating dtype")
    left = sorted(set(stored) - set(specs))
    if left:
        raise InputError(
            f"{folder}: leaf {left[0]} is not part of this configuration"
            + (f", nor are {len(left) - 1} more" if len(left) > 1 else "")
        )


# --------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------
def write_backbone(
    folder: str | Path,
    backbone: Backbone,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = 5 * 2**30,
    on_leaf: Callable[[str], None] = lambda path: None,
) -> Path:
    """Writes a backbone, whole or not at all; returns the folder.

    Args:
      folder: must not exist or be empty, unless it may be overwritten.
      backbone: every leaf is written in the dtype that it has.
      overwrite: replace what is in the folder.
      max_shard_bytes: leaves beyond this are split over several files with an index; a single leaf
        is never split.
      on_leaf: called with the path of every leaf that is written.
    """
    quantization.check_plain(backbone.params)
    flat = tree.flatten(backbone.params)
    shards = _plan_shards(flat, max_shard_bytes)
    files = [
        WEIGHTS if len(shards) == 1 else f"params-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    with replace_folder(folder, overwrite) as new:
        for file, shard in zip(files, shards, strict=True):
            write_tensors(new / file, {p: flat[p] for p in shard}, {"format": FORMAT}, on_leaf)
        if len(shards) > 1:
            weight_map = {p: f for f, shard in zip(files, shards, strict=True) for p in shard}
            total = tree.size_in_bytes(backbone.params)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (new / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        fields = {
            "format": FORMAT,
            "version": VERSION,
            # Of which model the tokenizer beside it is, as in a Hugging Face folder.
            "model_type": backbone.config.family,
            "name": backbone.name,
            "vocabulary": copy_vocabulary(backbone.vocabulary, new),
            "config": config_to_json(backbone.config),
            "versions": {"peft_jax": __version__, "jax": jax.__version__},
        }
        (new / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
    return Path(folder)


def _plan_shards(flat: dict[str, jax.Array], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for path, leaf in flat.items():
        if used and used + leaf.nbytes > most:
            shards.append([])
            used = 0
        shards[-1].append(path)
        used += leaf.nbytes
    return shards


def local_vocabulary(folder: Path) -> Path | None:
    """What ``tokenizer_files.vocabulary_in`` finds in a folder; copied, if that is in a bucket."""
    return vocabulary_in(local_folder(folder, (*TOKENIZER_FILES, CONFIG)))


def copy_vocabulary(vocabulary: Path | None, folder: Path) -> str | None:
    """Copies a vocabulary, and what else stands beside it of its tokenizer, into a folder.

    Args:
      vocabulary: a file, or the folder of a tokenizer.
      folder: that the files are copied to.
    Returns:
      Where it is now, from that folder: the file's name, or "." for a tokenizer's folder.
    """
    if vocabulary is None:
        return None
    if not vocabulary.exists():
        raise InputError(f"the backbone's vocabulary {vocabulary} is gone")
    source = vocabulary if vocabulary.is_dir() else vocabulary.parent
    files = {file for name in TOKENIZER_FILES if (file := source / name).is_file()}
    if vocabulary.is_file():
        files.add(vocabulary)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return "." if vocabulary.is_dir() else vocabulary.name
