"""The configuration of a T5X checkpoint, which holds none itself.

Sizes are told by the arrays' shapes. What they do not tell (the activation, the reach of relative
positions, dropout) comes from a gin file beside the checkpoint, else from a configuration that is
named, else from the only published one of these sizes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_jax import tree
from peft_jax.backbones import t5
from peft_jax.backbones.base import RUN_FIELDS
from peft_jax.backbones.gin_files import read_gin
from peft_jax.errors import InputError
from peft_jax.paths import is_remote
from peft_jax.transformer import Config

GIN_FILES = ("model_config.gin", "config.gin")
"""Names under which a gin file is looked for, beside the checkpoint and in T5X's model_dir."""

SIZES = (
    *("vocab_size", "d_model", "d_ff", "num_heads", "d_kv", "encoder_layers", "decoder_layers"),
    *("gated", "tied_head", "relative_buckets"),
)
"""The fields that the shapes of a checkpoint's arrays tell."""

# Our fields' names in gin: first as T5X's own networks have them, then as Flaxformer does.
_NAMES = {
    "vocab_size": ("T5Config.vocab_size",),
    "d_model": ("T5Config.emb_dim",),
    "d_ff": ("T5Config.mlp_dim",),
    "num_heads": ("T5Config.num_heads",),
    "d_kv": ("T5Config.head_dim",),
    "encoder_layers": ("T5Config.num_encoder_layers",),
    "decoder_layers": ("T5Config.num_decoder_layers",),
    "tied_head": ("T5Config.logits_via_embedding",),
    "dropout": ("T5Config.dropout_rate", "DROPOUT_RATE"),
    "relative_buckets": ("RelativePositionBiases.num_buckets",),
    "relative_max_distance": ("RelativePositionBiases.max_distance",),
    # Macros of our own, written where nothing of T5X's says it.
    "family": ("PEFT_JAX_FAMILY",),
    "eos_id": ("PEFT_JAX_EOS_ID",),
}
_FAMILIES = ("t5", "mt5")
_ACTIVATIONS = ("T5Config.mlp_activations", "MlpBlock.activations")

# flax's names of activations; its gelu is the tanh form.
_OF_FLAX = {"relu": "relu", "gelu": "gelu_tanh", "silu": "silu", "swish": "silu"}
_TO_FLAX = {"relu": "relu", "gelu_tanh": "gelu", "silu": "silu"}


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
def find_config(path: Path, sizes: Mapping[str, Any], named: str | None = None) -> Config:
    """The configuration of the checkpoint at ``path``.

    Args:
      path: the checkpoint's folder or file.
      sizes: the fields SIZES, as the arrays' shapes tell them.
      named: of a published T5; its other fields hold where no gin file says otherwise.

    Raises:
      InputError: no source tells the activation, or two contradict each other.
    """
    file = _find_gin(path)
    told = {} if file is None else _gin_fields(file)
    for field, value in sizes.items():
        if told.get(field, value) != value:
            raise InputError(
                f"{file} says {field} {told[field]}; the tensors of {path} say {value}"
            )
    try:
        return _complete(path, {**told, **sizes}, named)
    except TypeError as error:
        raise InputError(f"{file} has a value of the wrong type: {error}") from None


def _find_gin(path: Path) -> Path | None:
    folders = [path if path.is_dir() else path.parent]
    if re.fullmatch(r"checkpoint_\d+", path.name):
        folders.append((path if is_remote(path) else path.absolute()).parent)  # T5X's model_dir
    files = (folder / name for folder in folders for name in GIN_FILES)
    return next((file for file in files if file.is_file()), None)


def _gin_fields(file: Path) -> dict[str, Any]:
    """Fields of a configuration that a gin file tells."""
    values = read_gin(file)
    fields: dict[str, Any] = {}
    for field, names in _NAMES.items():
        found = [values[name] for name in names if name in values]
        fields |= {field: found[0]} if found else {}
    if fields.get("family", "t5") not in _FAMILIES:
        raise InputError(f"{file}: family {fields['family']!r} is none of {', '.join(_FAMILIES)}")
    found = [values[name] for name in _ACTIVATIONS if name in values]
    if found:
        first, *second = found[0]
        if first not in _OF_FLAX or second not in ([], ["linear"]):
            raise InputError(
                f"{file}: activations {found[0]} are not supported; one of "
                f"{', '.join(_OF_FLAX)}, alone or with 'linear' behind it"
            )
        fields |= {"activation": _OF_FLAX[first], "gated": bool(second)}
    return fields


def _complete(path: Path, told: dict[str, Any], named: str | None) -> Config:
    """The fields that are told, and the rest from the configuration that is named or fits."""
    sizes = {field: told[field] for field in SIZES}
    same = {c for c in t5.CONFIGS.values() if all(getattr(c, f) == sizes[f] for f in SIZES)}
    if named is not None:
        base = _named(path, told, named)
    elif len(same) == 1:
        (base,) = same
    elif "activation" in told:
        base = t5.CONFIGS["t5_v1_1_base"]
    else:
        raise InputError(
            f"{path}: T5X keeps no configuration, and no published model has these sizes "
            f"({', '.join(f'{f} {v}' for f, v in sizes.items())}). Name one of the same kind "
            '(--backbone-config t5_v1_1_base, config="t5_v1_1_base"), or put the '
            f"{GIN_FILES[0]} that it was trained with beside it"
        )
    # T5X scales the states in front of the head wherever that is the embedding.
    return dataclasses.replace(base, **told, scale_head=told["tied_head"])


def _named(path: Path, told: dict[str, Any], name: str) -> Config:
    if name not in t5.CONFIGS:
        raise InputError(f"no T5 is named {name!r}; {tree.nearest(name, t5.CONFIGS)}")
    base = t5.CONFIGS[name]
    for field in ("gated", "tied_head", "activation"):
        if told.get(field, getattr(base, field)) != getattr(base, field):
            raise InputError(
                f"{path} is no model of the kind of {name}: its {field} is {told[field]}, there it "
                f"is {getattr(base, field)}"
            )
    return base


# --------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------
def gin_text(config: Config, scanned: bool) -> str:
    """The ``model_config.gin`` that goes with a checkpoint, for T5X's own networks.

    Args:
      config: of the model.
      scanned: for the network ``scalable_t5``, else for ``t5``.

    Raises:
      InputError: shapes and gin cannot tell the configuration: T5X has no such model.
    """
    if config.family not in _FAMILIES:
        raise InputError(f"T5X's networks are T5s ({', '.join(_FAMILIES)}), not a {config.family}")
    if config.activation not in _TO_FLAX:
        raise InputError(
            f"T5X has no such model: activation is {config.activation!r}, in T5X it is one of "
            f"{', '.join(_TO_FLAX)}"
        )
    told = {field: getattr(config, field) for field in (*SIZES, "activation", "dropout")}
    told["relative_per_layer"] = config.relative_per_layer  # the arrays tell it
    scalable = scanned or config.relative_per_layer
    activations = (_TO_FLAX[config.activation], *(("linear",) if config.gated else ()))
    lines = [f"{_ACTIVATIONS[0]} = {activations}"]
    lines += [f"{names[0]} = {told[f]!r}" for f, names in _NAMES.items() if f in told]
    if scalable:
        lines.append(f"T5Config.scan_layers = {scanned}")
    own = [f"network.{line}" for line in lines if line.startswith("T5Config.")]
    imports = [f"from t5x.examples.{'scalable_t5' if scalable else 't5'} import network"]
    if (config.relative_buckets, config.relative_max_distance) != (32, 128):
        # T5X's networks have these numbers in their code; Flaxformer's take them from gin.
        told["relative_max_distance"] = config.relative_max_distance
        imports.append("from flaxformer.components import relative_position_biases")
        own += [
            f"relative_position_biases.{_NAMES[field][0]} = {told[field]}"
            for field in ("relative_buckets", "relative_max_distance")
        ]
    for field in ("family", "eos_id"):
        value = getattr(config, field)
        if value != getattr(_complete(Path(), told, None), field):
            told[field] = value
            own.append(f"{_NAMES[field][0]} = {value!r}")
    _check_told(_complete(Path(), told, None), config)
    return "\n".join(["from __gin__ import dynamic_registration", *imports, "", *own, ""])


def _check_told(told: Config, config: Config) -> None:
    for field in dataclasses.fields(Config):
        wanted, found = getattr(config, field.name), getattr(told, field.name)
        if field.name not in RUN_FIELDS and wanted != found:
            raise InputError(
                f"T5X has no such model: {field.name} is {wanted!r}, in T5X it is {found!r}"
            )
