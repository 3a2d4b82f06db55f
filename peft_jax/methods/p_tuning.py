"""P-tuning: a prompt whose rows a small network makes, anywhere in a template (Liu et al. 2021)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods import prompt_encoders
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.prompt_places import Placement, check_placement, check_stack, placed
from peft_jax.methods.prompt_tuning import stack_of
from peft_jax.methods.texts import drawn_rows
from peft_jax.tree import Params

ENCODER = "prompt_encoder"


def p_tuning(
    length: int = 20,
    encoder: Literal["lstm", "mlp"] = "lstm",
    placement: Placement = "front",
    *,
    where: Literal["input", "encoder", "decoder"] = "input",
    hidden: int | None = None,
    mlp_hidden: int | None = None,
    lstm_layers: int = 2,
    mlp_layers: int | None = None,
    init: Literal["normal", "vocabulary"] = "normal",
    std: float = 1.0,
    vocabulary_range: tuple[int, int] = (0, 5000),
) -> Method:
    """Pseudo tokens h = MLP(LSTM(e)) or h = MLP(e), with e [length, D] trained too.

    Liu et al. 2021 ("GPT Understands, Too"), section 3.2. The network runs once a step, over the
    rows alone, and is dropped by :func:`peft_jax.methods.eject.eject`. Its parameters, beside
    length * D: an LSTM has 8 (in H + H^2 + 2 H) a layer (in is D, then 2 H), and every linear
    layer in * out + out.

    The defaults are the paper's LAMA setting: H = D / 2, then 2 H -> 2 H -> D with a ReLU between.
    Its few-shot setting is hidden=D, mlp_hidden=D (LSTM), or hidden=D, mlp_layers=2 (MLP); Hugging
    Face PEFT's is hidden=D, and three linear layers for an MLP. The function changes at the start.

    Args:
      length: number of rows, P.
      encoder: "lstm", bidirectional, an MLP behind it; or "mlp", on each row by itself.
      placement: "front" of the input; "after_first", behind its first token ([CLS], BOS); "suffix",
        behind its last; or "markers", where a template says ``<soft>`` or ``<soft 3>``: words
        between the markers are the paper's anchors.
      where: the stack, "input" (the one that reads it), "encoder" or "decoder".
      hidden: width H of one direction of the LSTM (default D / 2), or of the MLP (default D).
      mlp_hidden: width of the MLP behind an LSTM; default 2 H.
      lstm_layers: of the LSTM.
      mlp_layers: linear layers of the MLP; default 2 behind an LSTM, else 3.
      init: of e: "normal" N(0, std^2), or "vocabulary", embeddings of drawn tokens.
      std: of the normal values.
      vocabulary_range: first and one past the last token id to draw from.
    """
    check_placement(placement)
    if encoder not in ("lstm", "mlp"):
        raise InputError(f"encoder {encoder!r} is unknown; one of lstm, mlp")
    if encoder == "mlp" and mlp_hidden is not None:
        raise InputError("mlp_hidden is of the MLP behind an LSTM; an MLP's width is hidden")
    if where not in ("input", "encoder", "decoder"):
        raise InputError(f"where {where!r} is unknown; one of input, encoder, decoder")
    if init not in ("normal", "vocabulary"):
        raise InputError(f"init {init!r} is unknown; one of normal, vocabulary")
    linears = mlp_layers if mlp_layers is not None else (2 if encoder == "lstm" else 3)
    sizes = {"length": length, "hidden": hidden, "mlp_hidden": mlp_hidden, "mlp_layers": linears}
    for name, value in (sizes | {"lstm_layers": lstm_layers}).items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{name} {value!r} must be a whole number of at least 1")

    def init_tree(key: jax.Array, backbone: Backbone) -> Params:
        config = backbone.config
        stack = stack_of(where, config)
        check_stack(placement, stack, config)
        d = config.d_model
        rows_key, lstm_key, mlp_key = jax.random.split(key, 3)
        if init == "normal":
            rows = std * jax.random.normal(rows_key, (length, d), jnp.float32)
        else:
            rows = drawn_rows(rows_key, backbone, length, vocabulary_range)
        network: Params = {"embedding": rows}
        if encoder == "lstm":
            h = hidden or max(1, d // 2)
            network["lstm"] = prompt_encoders.draw_lstm(lstm_key, d, h, lstm_layers)
            read, between = 2 * h, mlp_hidden or 2 * h
        else:
            read, between = d, hidden or d
        widths = [read, *[between] * (linears - 1), d]
        network["mlp"] = prompt_encoders.draw_chain(mlp_key, widths)
        return {stack: {ENCODER: network}}

    def bind(stored: Params) -> Params:
        ((stack, leaves),) = stored.items()
        return {stack: placed(_rows(leaves[ENCODER]), placement)}

    spec = {
        "name": "p_tuning",
        "length": length,
        "encoder": encoder,
        "placement": placement,
        "where": where,
        "hidden": hidden,
        "mlp_hidden": mlp_hidden,
        "lstm_layers": lstm_layers,
        "mlp_layers": mlp_layers,
        "init": init,
        "std": std,
        "vocabulary_range": list(vocabulary_range),
    }
    return make_method(init_tree, bind, spec, foldable=False)


def _rows(network: Params) -> jax.Array:
    rows = network["embedding"]
    if "lstm" in network:
        rows = prompt_encoders.lstm(network["lstm"], rows)
    return prompt_encoders.chain(network["mlp"], rows, jax.nn.relu)
