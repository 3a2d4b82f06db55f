"""GPT-2 (Radford et al. 2019) and DistilGPT-2: learned positions, LayerNorm, fused projections."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft_jax.backbones import decoder_fields
from peft_jax.backbones.names import Rule
from peft_jax.backbones.options import (
    Options,
    head_width,
    rate_beside,
    read_activation,
    write_activation,
)
from peft_jax.errors import InputError
from peft_jax.transformer import Config

MODEL_TYPES = ("gpt2",)

_ALIKE: dict[str, Any] = {
    "family": "gpt2",
    "gated": False,
    "norm": "layer",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "positions": "learned",
    **decoder_fields.ALIKE,
}


def _published(d_model: int, depth: int, heads: int) -> Config:
    return Config(
        **_ALIKE,
        vocab_size=50257,
        d_model=d_model,
        d_ff=4 * d_model,
        num_heads=heads,
        d_kv=d_model // heads,
        decoder_layers=depth,
        activation="gelu_tanh",
        norm_epsilon=1e-5,
        attention_scale=(d_model // heads) ** -0.5,
        max_positions=1024,
        tied_head=True,
        pad_id=decoder_fields.NO_TOKEN,
        eos_id=50256,
        decoder_start_id=50256,
    )


CONFIGS: dict[str, Config] = {
    "gpt2": _published(768, 12, 12),
    "gpt2_medium": _published(1024, 24, 16),
    "gpt2_large": _published(1280, 36, 20),
    "gpt2_xl": _published(1600, 48, 25),
    "distilgpt2": _published(768, 6, 12),
}
"""gpt2, gpt2_medium, gpt2_large, gpt2_xl and distilgpt2."""


# --------------------------------------------------------------------------------------------
# Names in a Hugging Face checkpoint
# --------------------------------------------------------------------------------------------
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"

CLASSIFIERS = (decoder_fields.CLASSIFIER,)

ALIASES: dict[str, str] = {}

# The first published files hold the causal mask of every layer.
UNUSED = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)


def canonical_name(name: str) -> str:
    """With the prefix that the files of a bare GPT2Model, and the published ones, lack."""
    if name.startswith(("transformer.", "lm_head.", "score.")):
        return name
    return f"transformer.{name}"


def tied_by_default(model_type: str) -> bool:
    return True


def _affine(
    ours: str, theirs: str, leaf: str = "kernel", part: int = 0, parts: int = 1
) -> list[Rule]:
    """A matrix, or a norm's scale, and its bias; Conv1D keeps matrices as [in, out]."""
    return [
        Rule(f"{ours}/{leaf}", f"{theirs}.weight", part=part, parts=parts),
        Rule(f"{ours}/bias", f"{theirs}.bias", part=part, parts=parts),
    ]


def hugging_face_rules(config: Config) -> list[Rule]:
    """Our paths against transformers' names, for reading and for writing."""
    layers, block = "decoder/layers", "transformer.h.{layer}"
    attention = f"{layers}/self_attention"
    rules = [
        Rule("token_embedder/embedding", EMBEDDING),
        Rule("decoder/position_embedder/embedding", "transformer.wpe.weight"),
        *_affine(f"{layers}/self_attention_norm", f"{block}.ln_1", "scale"),
        *_affine(f"{attention}/out", f"{block}.attn.c_proj"),
        *_affine(f"{layers}/mlp_norm", f"{block}.ln_2", "scale"),
        *_affine(f"{layers}/mlp/wi", f"{block}.mlp.c_fc"),
        *_affine(f"{layers}/mlp/wo", f"{block}.mlp.c_proj"),
        *_affine("decoder/final_norm", "transformer.ln_f", "scale"),
    ]
    for part, name in enumerate(("query", "key", "value")):
        rules += _affine(f"{attention}/{name}", f"{block}.attn.c_attn", part=part, parts=3)
    if config.lm_head and not config.tied_head:
        rules.append(Rule("lm_head/kernel", HEAD, True))
    if config.num_labels:
        rules.append(Rule("classifier/out/kernel", decoder_fields.CLASSIFIER, True))
    return rules


# --------------------------------------------------------------------------------------------
# config.json
# --------------------------------------------------------------------------------------------
OPTIONS = {
    "gpt2": Options(
        read=(
            *("model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
            *("activation_function", "layer_norm_epsilon", "scale_attn_weights"),
            *("resid_pdrop", "embd_pdrop", "attn_pdrop", "tie_word_embeddings"),
            *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "num_labels"),
        ),
        required={
            "scale_attn_by_inverse_layer_idx": (None, False),
            "is_encoder_decoder": (None, False),
        },
        harmless=(
            # Logits and softmax are float32 here in any case.
            "reorder_and_upcast_attn",
            # The length of the positions under its first name.
            "n_ctx",
            # Of the head of GPT2DoubleHeadsModel, which is not read.
            *("summary_type", "summary_use_proj", "summary_activation"),
            *("summary_proj_to_labels", "summary_first_dropout"),
        ),
    )
}

_DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
"""What transformers takes for a field that config.json lacks."""


def config_from_hugging_face(fields: dict[str, Any], names: Collection[str]) -> Config:
    """The configuration that a ``config.json`` describes, for a file with tensors of these names.

    Raises:
      InputError: an option that is not supported; dropouts of embeddings and residual branches
        that differ.
    """
    OPTIONS["gpt2"].check(fields)
    fields = {**_DEFAULTS, **fields}
    d_model, d_kv = fields["n_embd"], head_width(fields, "n_embd", "n_head")
    if fields["embd_pdrop"] != fields["resid_pdrop"]:
        raise InputError(
            f"embd_pdrop {fields['embd_pdrop']!r} and resid_pdrop {fields['resid_pdrop']!r} "
            "differ, which is not supported; make them equal"
        )
    return Config(
        **_ALIKE
        | decoder_fields.read_tokens(fields)
        | decoder_fields.read_head(fields, names, HEAD),
        vocab_size=fields["vocab_size"],
        d_model=d_model,
        d_ff=fields["n_inner"] or 4 * d_model,
        num_heads=fields["n_head"],
        d_kv=d_kv,
        decoder_layers=fields["n_layer"],
        activation=read_activation("activation_function", fields["activation_function"]),
        norm_epsilon=fields["layer_norm_epsilon"],
        attention_scale=d_kv**-0.5 if fields["scale_attn_weights"] else 1.0,
        max_positions=fields["n_positions"],
        dropout=fields["resid_pdrop"],
        attention_dropout=rate_beside(fields["attn_pdrop"], fields["resid_pdrop"]),
    )


def config_to_hugging_face(config: Config) -> dict[str, Any]:
    """The ``config.json`` from which transformers, of version 4 or 5, rebuilds the same model."""
    attention = config.attention_dropout
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.d_model,
        "n_layer": config.decoder_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff if config.d_ff != 4 * config.d_model else None,
        "activation_function": write_activation(config.activation),
        "layer_norm_epsilon": config.norm_epsilon,
        "scale_attn_weights": config.attention_scale != 1,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout if attention is None else attention,
        **decoder_fields.write_tokens(config),
        **decoder_fields.write_head(config, "GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    }
