"""``adapter_config.json``: what a PEFT folder says of its method.

peft passes over fields that it does not know, and this package must not: a field that changes what
the adapter computes is read, or must have the value with which it changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_jax.errors import InputError

CONFIG = "adapter_config.json"

_HARMLESS = {
    # Who wrote it, for which model, and how it is loaded.
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping"),
    *("peft_version", "inference_mode", "runtime_config", "megatron_core", "megatron_config"),
    # The tensors themselves say which modules are adapted, and which are saved whole.
    *("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules"),
    *("layers_to_transform", "layers_pattern"),
    # How peft keeps the matrices that it does not save.
    *("fan_in_fan_out", "ensure_weight_tying"),
}
"""Fields of any method that change nothing of what an adapter's tensors compute."""

_LORA_READ = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights"),
    *("rank_pattern", "alpha_pattern"),
}
_LORA_EMPTY = {
    # Other forms of LoRA, by the field that turns them on.
    *("layer_replication", "lora_bias", "use_qalora", "alora_invocation_tokens", "arrow_config"),
    *("use_bdlora", "velora_config", "monteclora_config", "kasa_config", "target_parameters"),
    *("trainable_token_indices", "loftq_config", "corda_config", "lora_ga_config"),
}
_LORA_HARMLESS = {"eva_config", "qalora_group_size"}
_PROMPT_READ = {"num_virtual_tokens", "token_dim", "num_transformer_submodules"}
_PROMPT_HARMLESS = {"num_attention_heads", "num_layers"}

FIELDS: dict[str, tuple[set[str], set[str], set[str]]] = {
    # What is read, what must be empty (None, False, "none", [] or {}), what changes nothing.
    "IA3": (set(), set(), {"init_ia3_weights"}),
    "LORA": (_LORA_READ, {*_LORA_EMPTY, "bias"}, _LORA_HARMLESS),
    "ADALORA": (
        {
            *("lora_alpha", "lora_dropout", "target_r", "init_r", "tinit", "tfinal", "deltaT"),
            *("beta1", "beta2", "orth_reg_weight", "rank_pattern"),
        },
        {*_LORA_EMPTY, "bias", "use_dora", "use_rslora", "alpha_pattern"},
        # r is LoRA's; AdaLoRA has init_r.
        {*_LORA_HARMLESS, "r", "init_lora_weights", "total_step"},
    ),
    "VERA": (
        {"r", "vera_dropout", "d_initial", "save_projection", "projection_prng_key"},
        {"bias"},
        {"init_weights"},
    ),
    "LN_TUNING": (set(), set(), set()),
    "PROMPT_TUNING": (
        _PROMPT_READ,
        set(),
        {
            *_PROMPT_HARMLESS,
            *(
                "prompt_tuning_init",
                "prompt_tuning_init_text",
                "prompt_tuning_init_state_dict_path",
            ),
            *("tokenizer_name_or_path", "tokenizer_kwargs"),
        },
    ),
    "P_TUNING": (
        _PROMPT_READ,
        set(),
        {
            *_PROMPT_HARMLESS,
            *("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers"),
            "encoder_dropout",
        },
    ),
    "PREFIX_TUNING": (
        {*_PROMPT_READ, "num_layers", "num_attention_heads"},
        set(),
        # What was behind the MLP is saved.
        {"encoder_hidden_size", "prefix_projection", "init_weights"},
    ),
}
"""By PEFT's name of a method: its fields."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 8, "lora_alpha": 8},
    "ADALORA": {"lora_alpha": 8, "target_r": 8, "init_r": 12, "tinit": 0, "tfinal": 0}
    | {"deltaT": 1, "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5},
    "VERA": {"r": 256, "d_initial": 0.1, "save_projection": True},
}
"""What peft takes for a field that the file lacks."""


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's ``adapter_config.json``, checked.

    Raises:
      InputError: it is missing or broken, or a method or a field's value is not supported.
    """
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder} is no PEFT folder: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds a {type(fields).__name__}; wanted a JSON object")
    kind = fields.get("peft_type")
    if kind not in FIELDS:
        raise InputError(f"{path}: peft_type {kind!r} is not supported; one of {', '.join(FIELDS)}")
    _check(path, kind, fields)
    return _DEFAULTS.get(kind, {}) | {k: v for k, v in fields.items() if v is not None}


def _check(path: Path, kind: str, fields: Mapping[str, Any]) -> None:
    read, empty, harmless = FIELDS[kind]
    for name, value in fields.items():
        nothing = value in (None, False, "none", [], {})
        if name in read or name in harmless or name in _HARMLESS or nothing:
            continue
        known = "must be empty" if name in empty else "is unknown"
        raise InputError(f"{path}: {name} {value!r} of a {kind} is not supported: it {known}")


def write_config(folder: Path, fields: Mapping[str, Any]) -> None:
    """Writes the fields as the folder's ``adapter_config.json``."""
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
