"""What the config.json of every decoder-only family says alike: tokens, heads, rotary positions.

transformers 5 keeps all of the rotary positions in ``rope_parameters``, for every kind of layer
where they differ, and names each layer's kind in ``layer_types``; transformers 4 has
``rope_theta`` and ``rope_scaling``. Both forms are read; what is written says the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from peft_jax.backbones.options import count_labels, eos_ids, write_eos_ids
from peft_jax.errors import InputError
from peft_jax.rotary import SCALINGS, Rope
from peft_jax.transformer import Config

NO_TOKEN = -1
"""``Config.pad_id`` or ``eos_id`` of a model without such a token."""

CLASSIFIER = "score.weight"
"""The head's matrix in every ...ForSequenceClassification of a decoder-only family."""

ALIKE: dict[str, Any] = {
    "encoder_layers": 0,
    "count_positions": True,
    "classifier_bias": False,
    "final_dropout": False,
    "activation_dropout": 0.0,
    "classifier_dropout": 0.0,
}
"""Fields of :class:`Config` that are alike in all of them."""


# --------------------------------------------------------------------------------------------
# Tokens and heads
# --------------------------------------------------------------------------------------------
def read_tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of :class:`Config` that name tokens.

    A padding token that also ends texts would hide the ends of texts from every mask: it counts as
    none. Where no token begins a text, the one that ends the last stands in front of the next.
    """
    end, more = eos_ids(fields.get("eos_token_id"))
    pad, start = fields.get("pad_token_id"), fields.get("bos_token_id")
    return {
        "pad_id": NO_TOKEN if pad is None or pad in (end, *more) else pad,
        "eos_id": end,
        "extra_eos_ids": more,
        "decoder_start_id": end if start is None else start,
    }


def write_tokens(config: Config) -> dict[str, Any]:
    """The other way round."""
    # transformers classifies no batch without a padding token.
    pad = config.eos_id if config.num_labels and config.pad_id == NO_TOKEN else config.pad_id
    start = config.decoder_start_id
    return {
        "bos_token_id": None if start == NO_TOKEN else start,
        "eos_token_id": write_eos_ids(config.eos_id, config.extra_eos_ids),
        "pad_token_id": None if pad == NO_TOKEN else pad,
    }


def read_head(fields: Mapping[str, Any], names: Collection[str], head: str) -> dict[str, Any]:
    """The fields of :class:`Config` that say which heads a file with these tensors has."""
    classifies = CLASSIFIER in names
    return {
        "lm_head": not classifies,
        "tied_head": not classifies and head not in names,
        "num_labels": count_labels(fields) if classifies else 0,
    }


def write_head(config: Config, generator: str, classifier: str) -> dict[str, Any]:
    """The other way round, for transformers' classes of these names."""
    fields: dict[str, Any] = {"tie_word_embeddings": config.tied_head}
    if config.num_labels:
        return fields | {"architectures": [classifier], "num_labels": config.num_labels}
    return fields | {"architectures": [generator]}


# --------------------------------------------------------------------------------------------
# Kinds of layers
# --------------------------------------------------------------------------------------------
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
LAYER_TYPES = (_GLOBAL, _LOCAL)


def read_layer_types(fields: Mapping[str, Any]) -> tuple[int, ...] | None:
    """``Config.local_layers``, where config.json has ``layer_types``; else None."""
    types, depth = fields.get("layer_types"), fields["num_hidden_layers"]
    if types is None:
        return None
    for kind in types:
        if kind not in LAYER_TYPES:
            raise InputError(f"layer_types: {kind!r} is not supported; {' or '.join(LAYER_TYPES)}")
    if len(types) != depth:
        raise InputError(f"layer_types has {len(types)} entries for num_hidden_layers {depth}")
    return tuple(layer for layer, kind in enumerate(types) if kind == _LOCAL)


def write_layer_types(config: Config) -> list[str]:
    """The other way round."""
    local = set(config.local_layers)
    return [_LOCAL if layer in local else _GLOBAL for layer in range(config.decoder_layers)]


# --------------------------------------------------------------------------------------------
# Rotary positions
# --------------------------------------------------------------------------------------------
# "finetuned" is a note that the first YaRN checkpoints carry.
_IN_EVERY_ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned")
_FIELDS_OF_SCALING: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        *("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    ),
}


def read_rope(scaling: Mapping[str, Any] | None, theta: float, max_positions: int) -> Rope:
    """The rotary positions of one kind of layer.

    Args:
      scaling: its part of ``rope_parameters``, or transformers 4's ``rope_scaling``.
      theta: the base, where ``scaling`` has none.
      max_positions: ``max_position_embeddings``.

    Raises:
      InputError: a scaling that is not supported, or a field that its kind does not read.
      KeyError: a field is missing.
    """
    scaling = {name: value for name, value in (scaling or {}).items() if value is not None}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise InputError(f"rope scaling {kind!r} is not supported; one of {', '.join(SCALINGS)}")
    for name, value in scaling.items():
        if name not in (*_IN_EVERY_ROPE, *_FIELDS_OF_SCALING[kind]):
            raise InputError(f"rope scaling {kind!r} does not read {name} (it is {value!r})")
    partial = scaling.get("partial_rotary_factor", 1)
    if partial != 1:
        raise InputError(f"partial_rotary_factor {partial!r} is not supported; it must be 1")
    fields: dict[str, Any] = {}
    original = scaling.get("original_max_position_embeddings", max_positions)
    if kind == "dynamic":
        fields = {"factor": scaling["factor"], "original_positions": max_positions}
    elif kind == "linear":
        fields = {"factor": scaling["factor"]}
    elif kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        fields = {name: scaling[name] for name in names} | {"original_positions": original}
    elif kind == "yarn":
        fields = _read_yarn(scaling, original, max_positions)
    return Rope(theta=scaling.get("rope_theta", theta), scaling=kind, **fields)


def _read_yarn(scaling: Mapping[str, Any], original: int, max_positions: int) -> dict[str, Any]:
    factor = scaling.get("factor", max_positions / original)
    attention = scaling.get("attention_factor")
    one, other = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if attention is None and one and other and factor > 1:
        attention = (0.1 * one * math.log(factor) + 1) / (0.1 * other * math.log(factor) + 1)
    return {
        "factor": factor,
        "original_positions": original,
        "beta_fast": scaling.get("beta_fast") or 32.0,
        "beta_slow": scaling.get("beta_slow") or 1.0,
        "attention_factor": attention,
        "truncate": scaling.get("truncate", True),
    }


def flat_rope(fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """``rope_scaling`` or ``rope_parameters`` of a family whose layers all turn alike."""
    # The order is transformers' own, where a file holds both.
    scaling = fields.get("rope_scaling") or fields.get("rope_parameters")
    for name in scaling or ():
        if name in LAYER_TYPES:
            raise InputError(
                f"rope_parameters by kind of layer ({name}) are not supported in a "
                f"{fields['model_type']}"
            )
    return scaling


def write_rope(rope: Rope) -> dict[str, Any]:
    """``rope_parameters`` of one kind of layer; without its base it is ``rope_scaling``."""
    fields: dict[str, Any] = {"rope_type": rope.scaling, "rope_theta": rope.theta}
    if rope.scaling != "default":
        fields["factor"] = rope.factor
    if rope.scaling in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = rope.original_positions
    if rope.scaling == "llama3":
        names = ("low_freq_factor", "high_freq_factor")
        fields |= {name: getattr(rope, name) for name in names}
    if rope.scaling == "yarn":
        for name in ("beta_fast", "beta_slow", "attention_factor", "truncate"):
            if getattr(rope, name) != getattr(Rope, name):
                fields[name] = getattr(rope, name)
    return fields


def write_rope_4(rope: Rope) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling``, as transformers 4 reads them."""
    scaling = write_rope(rope)
    theta = scaling.pop("rope_theta")
    return {"rope_theta": theta, "rope_scaling": scaling if rope.scaling != "default" else None}


def write_max_positions(config: Config) -> int:
    """``max_position_embeddings``, also of a configuration that leaves it open."""
    rope = config.rope
    stretched = int(rope.original_positions * rope.factor) if rope is not None else 0
    if rope is not None and rope.scaling == "dynamic":
        return rope.original_positions
    return config.max_positions or stretched or 2048
