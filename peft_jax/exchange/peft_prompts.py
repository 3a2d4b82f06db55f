"""Prompt tuning, P-tuning and prefix tuning, as PEFT keeps them: one table, ``prompt_embeddings``.

P-tuning and reparameterised prefixes are saved as what their encoders make. For an encoder-decoder
model PEFT allots a second half of rows to a prompt, which it never reads; a prefix stands in the
decoder's self-attention alone.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.exchange.modules import Names
from peft_jax.methods import Method, from_spec, prompt_tuning
from peft_jax.transformer import Config
from peft_jax.tree import Params

TABLE = "prompt_embeddings"

Found = tuple[list[tuple[Method, Params]], list[str]]
Written = tuple[dict[str, Any], dict[str, np.ndarray]]


def _take_table(fields, tensors, width: int) -> np.ndarray:
    if TABLE not in tensors:
        raise InputError(f"tensor {TABLE} is missing")
    table = tensors.pop(TABLE)
    rows = fields.get("num_virtual_tokens")
    if table.ndim != 2 or table.shape[1] != width or table.shape[0] % (rows or 1):
        raise InputError(f"tensor {TABLE} has shape {table.shape}; wanted ({rows}, {width})")
    return table


def _check_head(names: Names) -> None:
    """A prompt beside a classification head is not the same function on both sides."""
    if names.classifies:
        raise InputError(
            "a prompt beside a classification head: PEFT's head reads the state of the prompt's "
            "first row (a BERT) or of padding (a GPT-2), ours that of a token of the input"
        )


# --------------------------------------------------------------------------------------------
# Prompts
# --------------------------------------------------------------------------------------------
def read_prompt(fields, tensors, names: Names, backbone: Backbone) -> Found:
    """A prompt in front of the embedded input."""
    _check_head(names)
    config = backbone.config
    table = _take_table(fields, tensors, config.d_model)
    rows, notes = fields["num_virtual_tokens"], []
    if len(table) not in (rows, rows * fields.get("num_transformer_submodules", 1)):
        raise InputError(f"tensor {TABLE} has {len(table)} rows; num_virtual_tokens is {rows}")
    if len(table) > rows:
        notes.append(f"rows {rows} to {len(table) - 1} of {TABLE}, which PEFT never reads")
    table = table[:rows]
    stack = config.input_stack
    method = prompt_tuning(rows, init="random")
    return [(method, {stack: {"prompt": jnp.asarray(table)}})], notes


def write_prompt(parts, names: Names, backbone: Backbone) -> Written:
    """The folder of a prompt, whatever made it."""
    config = backbone.config
    _check_head(names)
    stack, rows = config.input_stack, []
    for method, stored in parts:
        bound = tree.flatten(method.bind(stored))
        foreign = sorted(set(bound) - {f"{stack}/prompt"})
        if foreign:
            raise InputError(
                f"PEFT knows prompts in front of the input only; this adapter has {foreign[0]!r}"
            )
        rows.append(np.asarray(bound[f"{stack}/prompt"]))
    table = np.concatenate(rows)
    fields = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": len(table),
        "token_dim": config.d_model,
        # For an encoder-decoder model peft would make a second half of rows that nothing reads.
        "num_transformer_submodules": 1,
        "num_layers": _depth(config),
        "num_attention_heads": config.num_heads,
    }
    return fields, {TABLE: table}


def _depth(config: Config) -> int:
    return config.decoder_layers or config.encoder_layers


# --------------------------------------------------------------------------------------------
# Prefixes
# --------------------------------------------------------------------------------------------
_PLACE = "decoder/layers/self_attention"


def read_prefix(fields, tensors, names: Names, backbone: Backbone) -> Found:
    """Keys and values in front of those of the decoder's self-attention."""
    config = backbone.config
    if not config.decoder_layers:
        raise InputError(f"transformers' {config.family} has no cache that a prefix could stand in")
    depth, width = config.decoder_layers, config.kv_heads * config.d_kv
    table = _take_table(fields, tensors, depth * 2 * width)
    rows = fields["num_virtual_tokens"]
    if len(table) != rows:
        raise InputError(f"tensor {TABLE} has {len(table)} rows; num_virtual_tokens is {rows}")
    sets = table.reshape(rows, 2 * depth, width).swapaxes(0, 1)
    places = [_column(config, layer) for layer in range(depth)]
    keys, values = (jnp.asarray(sets[[i + v for i in places]]) for v in (0, 1))
    unread = sorted({*range(0, 2 * depth, 2)} - set(places))
    notes = [f"columns {width * i} to {width * (i + 2) - 1} of {TABLE}, which PEFT never reads"
             for i in unread]  # fmt: skip
    spec = {"name": "prefix_tuning", "length": rows, "where": ["decoder"]}
    spec["places"] = config.positions == "relative"
    leaves = {f"{_PLACE}/prefix_key": keys, f"{_PLACE}/prefix_value": values}
    return [(from_spec(spec), tree.unflatten(leaves))], notes


def _column(config: Config, layer: int) -> int:
    """Where a layer's keys stand in a row of the table, in widths; its values come behind them.

    For an encoder-decoder model peft doubles the row, as if for cross-attention, and hands four of
    its widths to each layer in turn, of which self-attention gets the first two. Layers half a
    stack apart share theirs where the number of layers is even, and half of the row is not read.
    """
    depth = config.decoder_layers
    return 4 * layer % (2 * depth) if config.kind == "encoder_decoder" else 2 * layer


def write_prefix(parts, names: Names, backbone: Backbone) -> Written:
    """The folder of a prefix of the decoder's self-attention."""
    config = backbone.config
    if len(parts) > 1:
        raise InputError("a PEFT folder has one prefix; compose gives several")
    ((method, stored),) = parts
    bound = tree.flatten(method.bind(stored))
    known = {f"{_PLACE}/prefix_key", f"{_PLACE}/prefix_value", "decoder/prefix_places"}
    foreign = sorted(set(bound) - known)
    if foreign:
        raise InputError(
            "PEFT's prefixes stand in the decoder's self-attention alone; this adapter has "
            f"{foreign[0]!r} (prefix_tuning(where=('decoder',)) has not)"
        )
    if config.positions == "relative" and "decoder/prefix_places" not in bound:
        raise InputError(
            "PEFT's prefixes count as places in front of a T5's tokens: prefix_tuning(places=True)"
        )
    keys, values = (
        np.asarray(bound[f"{_PLACE}/{leaf}"]) for leaf in ("prefix_key", "prefix_value")
    )
    depth, rows, width = keys.shape
    sets = np.zeros((2 * depth, rows, width), np.float32)
    for layer in range(depth):
        at, same = _column(config, layer), layer % (depth // 2 or 1)
        if config.kind == "encoder_decoder" and depth % 2 == 0:
            pairs = ((x[layer], x[same]) for x in (keys, values))
            if not all(np.array_equal(*pair) for pair in pairs):
                raise InputError(
                    f"PEFT gives the decoder's layers {same} and {layer} of an encoder-decoder "
                    "model the same prefix; this adapter's differ"
                )
        sets[at], sets[at + 1] = keys[layer], values[layer]
    fields = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": rows,
        # peft's own values would be wrong where heads * d_kv is not d_model.
        "token_dim": width,
        "num_attention_heads": config.kv_heads,
        "num_layers": depth,
        "num_transformer_submodules": 2 if config.kind == "encoder_decoder" else 1,
        "prefix_projection": False,
    }
    return fields, {TABLE: sets.swapaxes(0, 1).reshape(rows, -1)}
