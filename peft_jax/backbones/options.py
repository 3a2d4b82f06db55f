"""What a family knows of the fields of its config.json: an unsupported option is never passed over.

transformers reads a config.json by attribute, so that a field which this package did not know
would silently change nothing here and the model there. Each family therefore says of every field
that transformers knows whether it is read, must have one of some values, or changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from peft_jax.errors import InputError

COMMON_REQUIRED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "pruned_heads": (None, {}),
    "tie_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "cross_attention_hidden_size": (None,),
}
"""Fields of any model, and the values with which it is an ordinary one."""

COMMON_HARMLESS = (
    # What was written, and by whom; the precision is chosen when a backbone is loaded.
    *("architectures", "transformers_version", "dtype", "torch_dtype", "tokenizer_class", "prefix"),
    *("finetuning_task", "task_specific_params", "problem_type", "label2id"),
    # How a model is run, and what it returns beside its result.
    *("output_hidden_states", "output_attentions", "return_dict", "use_cache", "output_past"),
    *("chunk_size_feed_forward", "torchscript", "use_bfloat16", "gradient_checkpointing"),
    # How fresh weights are drawn.
    *("initializer_range", "initializer_factor", "init_std"),
    # Tokens that only tokenizers and generate read, and the settings of generate.
    *("bos_token_id", "sep_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("force_bos_token_to_be_generated", "max_length", "min_length", "do_sample", "num_beams"),
    *("early_stopping", "no_repeat_ngram_size", "length_penalty", "repetition_penalty"),
    *("temperature", "top_k", "top_p", "num_beam_groups", "num_return_sequences"),
)
"""Fields of any model that do not change what it computes."""


class Options(NamedTuple):
    """The fields of a family's config.json.

    Attributes:
      read: names of those that the configuration is made of.
      required: the values that the others may have: everything else is refused.
      harmless: names of those that do not change what the model computes.
    """

    read: tuple[str, ...]
    required: Mapping[str, tuple[Any, ...]] = {}
    harmless: tuple[str, ...] = ()

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raises InputError for a field whose value is not supported.

        Fields that no table names are let through: everyone may keep notes in a config.json.
        """
        for name, allowed in {**COMMON_REQUIRED, **self.required}.items():
            if name in self.read or name not in fields or fields[name] in allowed:
                continue
            wanted = " or ".join(repr(value) for value in allowed)
            raise InputError(f"{name} {fields[name]!r} is not supported; it must be {wanted}")

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of the names that no table holds; private ones are passed over."""
        known = {*self.read, *self.required, *self.harmless, *COMMON_REQUIRED, *COMMON_HARMLESS}
        return sorted(n for n in set(names) - known if not n.startswith("_"))


# --------------------------------------------------------------------------------------------
# Values that several families share
# --------------------------------------------------------------------------------------------
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


def read_activation(field: str, value: Any) -> str:
    """``Config.activation`` for the name that transformers gives it.

    Args:
      field: of config.json, for the message.
    """
    if value not in _ACTIVATIONS:
        raise InputError(f"{field} {value!r} is not supported; one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def write_activation(activation: str, tanh: str = "gelu_new") -> str:
    """The name that transformers gives to ``Config.activation``."""
    return tanh if activation == "gelu_tanh" else activation


def count_labels(fields: Mapping[str, Any], default: int = 2) -> int:
    """Classes of a classification head: transformers names them, and else counts ``default``."""
    return len(fields["id2label"]) if fields.get("id2label") else fields.get("num_labels", default)


def eos_ids(value: int | list[int] | None) -> tuple[int, tuple[int, ...]]:
    """``Config.eos_id`` (-1 where a family has none) and ``extra_eos_ids`` of an eos_token_id."""
    ids = value if isinstance(value, list | tuple) else [-1 if value is None else value]
    return ids[0], tuple(ids[1:])


def write_eos_ids(eos_id: int, extra: tuple[int, ...]) -> int | list[int] | None:
    """The eos_token_id that :func:`eos_ids` reads."""
    return [eos_id, *extra] if extra else (None if eos_id < 0 else eos_id)


def head_width(fields: Mapping[str, Any], width: str, heads: str) -> int:
    """Width of one head, where config.json has the widths of all and their number."""
    if fields[heads] < 1 or fields[width] % fields[heads]:
        raise InputError(f"{heads} {fields[heads]} does not divide {width} {fields[width]}")
    return fields[width] // fields[heads]


def rate_beside(value: float | None, dropout: float) -> float | None:
    """A dropout rate of its own kind as ``Config`` has it: None where it does not differ."""
    return None if value == dropout else value
