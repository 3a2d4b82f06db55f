"""What distinguishes one transformer from another, and the shapes of its parameters.

One specification gives random parameters, the abstract tree and the slots of methods
(``backbones.base.slots``); what is computed with them is in :mod:`peft_jax.transformer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from peft_jax import layers
from peft_jax.errors import InputError
from peft_jax.rotary import Rope
from peft_jax.tree import Params, flatten, unflatten

_policies = jax.checkpoint_policies
_NAMED = (layers.PROJECTION, layers.HIDDEN)
REMAT = {
    "none": None,
    # Keep the outputs of the projections, recompute attention and elementwise work. The names keep
    # them as the layers pass them on: of a mixed product that is not the float32 sum.
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(*_NAMED)
    ),
    # Without the wide hidden units, more than half of what "dots" keeps.
    "attention": _policies.save_only_these_names(layers.PROJECTION),
    "full": _policies.nothing_saveable,
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_NAMED),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""What the backward pass finds of a layer, from most to least memory of the device: everything, the
projections' outputs ("dots"), those of the attentions alone, or the layer's input ("full").
"offload" keeps what "dots" keeps in the host's memory."""


def rematerialized(body: Callable, remat: str) -> Callable:
    """A layer of a scan with the backward pass that ``Config.remat`` asks for.

    Raises:
      InputError: "offload" on a device that cannot reach its host's memory.
    """
    if remat == "none":
        return body
    if remat == "offload":
        device = jax.devices()[0]
        if "pinned_host" not in {memory.kind for memory in device.addressable_memories()}:
            raise InputError(
                f'remat "offload" needs pinned host memory, which {device.device_kind} devices do '
                'not offer here; take "attention" or "full"'
            )
    # Inside a scan the barrier against common-subexpression elimination is not needed.
    return jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)


@dataclasses.dataclass(frozen=True)
class Config:
    """What distinguishes one transformer from another, and how it is run.

    The first block fixes the function and the shapes of its parameters; the second may be changed
    on a loaded backbone (``dataclasses.replace``). The defaults are those of T5 v1.1.
    """

    family: str
    """The Hugging Face model type whose name table is used, such as "t5" or "bert"."""
    vocab_size: int
    """Rows of the embedding, V; padding rows of the published checkpoints included."""
    d_model: int
    d_ff: int
    num_heads: int
    d_kv: int
    """Width of one head, K. heads * d_kv need not equal d_model."""
    encoder_layers: int
    """0 in a decoder-only model."""
    decoder_layers: int
    """0 in an encoder-only model."""
    activation: str = "gelu_tanh"
    """One of relu, gelu_tanh, gelu, silu."""
    gated: bool = True
    """Whether the feed-forward has the two input projections wi_0 (gate) and wi_1."""
    norm: str = "rms"
    """"rms", or "layer" with mean and bias."""
    norm_position: str = "pre"
    """Of a residual branch's norm: "pre", "post" (behind the sum, as in BERT), or "sandwich" (in
    front of the branch and behind it, as in Gemma 2)."""
    norm_unit_offset: bool = False
    """Whether norms multiply by 1 + scale (Gemma)."""
    norm_epsilon: float = 1e-6
    qkv_bias: bool = False
    out_bias: bool = False
    """Bias of an attention's output projection."""
    mlp_bias: bool = False
    num_kv_heads: int | None = None
    """Heads with keys and values of their own, shared by groups of the others; None: all."""
    qk_norm: bool = False
    """Whether every head's query and key are normed before they are rotated."""
    attention_scale: float = 1.0
    """Factor on the attention logits; 1 in a T5, K ** -0.5 elsewhere."""
    attention_softcap: float | None = None
    window: int | None = None
    """Positions that a layer of ``local_layers`` sees, its own included."""
    local_layers: tuple[int, ...] = ()
    positions: str = "relative"
    """"relative" (T5's bias), "learned", or "rotary"."""
    relative_buckets: int = 32
    relative_max_distance: int = 128
    relative_per_layer: bool = False
    """Whether every layer has a relative bias of its own (umT5), or all of a stack share one."""
    max_positions: int = 0
    """Tokens that learned positions reach. Rotary ones have no limit: of them it is what a file
    promises, or 0."""
    position_offset: int = 0
    """Rows of the table in front of the first position's (2 in RoBERTa and BART)."""
    count_positions: bool = False
    """Whether a position is the number of tokens in front that are no padding (RoBERTa and every
    decoder-only model), or the place in the row."""
    rope: Rope | None = None
    local_rope: Rope | None = None
    """Of the local layers, where they have another one (Gemma 3)."""
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    token_types: int = 0
    """Rows of BERT's table of token types; 0: none."""
    lm_head: bool = True
    """Whether the model scores tokens; a BERT may lack the part."""
    tied_head: bool = False
    """Whether logits are taken with the embedding's transpose."""
    scale_head: bool = False
    """Whether hidden states are scaled by d_model ** -0.5 before the head (T5 v1.0)."""
    head_bias: bool = False
    head_transform: bool = False
    """Whether a projection, the activation and a norm stand in front of the head (BERT)."""
    logit_softcap: float | None = None
    pooler: bool = False
    """Whether the first token's state passes a tanh layer before a classifier (BERT)."""
    num_labels: int = 0
    """Classes of the checkpoint's own classification head; 0: none."""
    classifier_dense: bool = False
    """Whether a tanh layer belongs to a classification head (RoBERTa, BART, T5)."""
    classifier_bias: bool = True
    pad_id: int = 0
    """Fills batches; -1 where the family has no token for it."""
    eos_id: int = 1
    decoder_start_id: int = 0
    extra_eos_ids: tuple[int, ...] = ()
    """Further tokens that end a generated text."""

    final_dropout: bool = True
    """Whether a stack's result is dropped out too, as in a T5."""
    dropout: float = 0.1
    """Rate of every dropout while a key is given; 0 <= dropout < 1."""
    attention_dropout: float | None = None
    """Of attention weights, where it differs."""
    activation_dropout: float | None = None
    """Of the feed-forward's hidden activations, where it differs."""
    classifier_dropout: float | None = None
    """Of what a classification head reads, where it differs."""
    remat: str = "dots"
    """What the backward pass keeps of a layer: "none" recomputes nothing, "dots" keeps the
    projections' outputs, "attention" those of the attentions, "full" only the layer's input;
    "offload" keeps as much as "dots", in the host's memory."""
    activation_dtype: str = "float32"
    """dtype of hidden states: "float32" or "bfloat16". Frozen weights have their own."""

    def __post_init__(self):
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} {getattr(self, name)!r} is unknown; one of {_list(known)}"
                )
        for name in ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise InputError(f"{name} {rate} must be at least 0 and below 1")
        for name in ("vocab_size", "d_model", "d_ff", "num_heads", "d_kv"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")
        _check_stacks(self)

    @property
    def inner(self) -> int:
        """Width of all heads together, H*K."""
        return self.num_heads * self.d_kv

    @property
    def kv_heads(self) -> int:
        """Heads with keys and values of their own."""
        return self.num_kv_heads or self.num_heads

    @property
    def kind(self) -> str:
        """ "encoder_decoder", "encoder" or "decoder"."""
        if not self.decoder_layers:
            return "encoder"
        return "encoder_decoder" if self.encoder_layers else "decoder"

    @property
    def input_stack(self) -> str:
        """The stack that reads the input: "encoder", or "decoder" where there is no other."""
        return "encoder" if self.encoder_layers else "decoder"

    def depth(self, path: str) -> int:
        """Layers of the stack that a path lies in."""
        return self.encoder_layers if path.startswith("encoder/") else self.decoder_layers


_KNOWN = {
    "activation": tuple(layers.ACTIVATIONS),
    "norm": ("rms", "layer"),
    "norm_position": ("pre", "post", "sandwich"),
    "positions": ("relative", "learned", "rotary"),
    "remat": tuple(REMAT),
    "activation_dtype": ("float32", "bfloat16"),
}


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _check_stacks(config: Config) -> None:
    """Raises InputError for fields that contradict each other."""
    depths = (config.encoder_layers, config.decoder_layers)
    if min(depths) < 0 or not any(depths):
        raise InputError(
            f"encoder_layers {depths[0]} and decoder_layers {depths[1]}: neither may be below 0, "
            "and one must be at least 1"
        )
    if config.num_heads % config.kv_heads or config.kv_heads < 1:
        raise InputError(
            f"num_kv_heads {config.num_kv_heads} must divide num_heads {config.num_heads}"
        )
    if config.positions == "rotary" and (config.rope is None or config.d_kv % 2):
        raise InputError(f"rotary positions need rope, and an even d_kv (it is {config.d_kv})")
    if config.positions == "learned" and config.max_positions < 1:
        raise InputError(f"learned positions need max_positions (it is {config.max_positions})")
    if config.local_layers and (config.window is None or config.window < 1):
        raise InputError(f"local_layers need a window of at least 1 (it is {config.window})")
    if config.local_layers and max(config.local_layers) >= config.decoder_layers:
        raise InputError(
            f"local_layers {config.local_layers} do not fit {config.decoder_layers} decoder layers"
        )


# --------------------------------------------------------------------------------------------
# Parameters: one specification, from which come init, the abstract tree and the slots
# --------------------------------------------------------------------------------------------
class Spec(NamedTuple):
    """Shape of a parameter and the standard deviation it is drawn with (None: ones, 0: zeros)."""

    shape: tuple[int, ...]
    std: float | None


# Where T5 scales each matrix by its width, the other families draw all alike.
_STD = 0.02


def _linear_spec(config: Config, shape: tuple[int, ...], std: float, bias: bool) -> Params:
    spec: Params = {"kernel": Spec(shape, std if config.positions == "relative" else _STD)}
    if bias:
        spec["bias"] = Spec((*shape[:-2], shape[-1]), 0.0)
    return spec


def _norm_spec(config: Config, *shape: int) -> Params:
    spec = {"scale": Spec(shape, 0.0 if config.norm_unit_offset else None)}
    return spec | {"bias": Spec(shape, 0.0)} if config.norm == "layer" else spec


def _embedding_spec(config: Config, rows: int, std: float = 1.0) -> Params:
    std = std if config.positions == "relative" else _STD
    return {"embedding": Spec((rows, config.d_model), std)}


def _attention_spec(config: Config, depth: int) -> Params:
    d, inner, shared = config.d_model, config.inner, config.kv_heads * config.d_kv

    def projection(outputs: int, std: float) -> Params:
        return _linear_spec(config, (depth, d, outputs), std, config.qkv_bias)

    # T5 has no 1/sqrt(d_kv) in its attention: the query's initialisation carries it.
    spec = {
        "query": projection(inner, (d * config.d_kv) ** -0.5),
        "key": projection(shared, d**-0.5),
        "value": projection(shared, d**-0.5),
        "out": _linear_spec(config, (depth, inner, d), inner**-0.5, config.out_bias),
    }
    if config.qk_norm:
        spec |= {
            name: _norm_spec(config, depth, config.d_kv) for name in ("query_norm", "key_norm")
        }
    return spec


def _mlp_spec(config: Config, depth: int) -> Params:
    d, f = config.d_model, config.d_ff
    inputs = ("wi_0", "wi_1") if config.gated else ("wi",)
    spec = {n: _linear_spec(config, (depth, d, f), d**-0.5, config.mlp_bias) for n in inputs}
    spec["wo"] = _linear_spec(config, (depth, f, d), f**-0.5, config.mlp_bias)
    return spec


def _stack_spec(config: Config, depth: int, attentions: tuple[str, ...]) -> Params:
    d = config.d_model
    stack: Params = {"mlp_norm": _norm_spec(config, depth, d)}
    for name in attentions:
        stack[f"{name}_norm"] = _norm_spec(config, depth, d)
        stack[name] = _attention_spec(config, depth)
    stack["mlp"] = _mlp_spec(config, depth)
    if config.norm_position == "sandwich":
        stack |= {f"{n}_post_norm": _norm_spec(config, depth, d) for n in (*attentions, "mlp")}
    spec: Params = {}
    if config.positions == "relative":
        bias = Spec((config.relative_buckets, config.num_heads), d**-0.5)
        if config.relative_per_layer:
            stack["relative_bias"] = {"embedding": Spec((depth, *bias.shape), bias.std)}
        else:
            spec["relative_bias"] = {"embedding": bias}
    if config.positions == "learned":
        rows = config.max_positions + config.position_offset
        spec["position_embedder"] = _embedding_spec(config, rows)
    if config.embedding_norm:
        spec["embedding_norm"] = _norm_spec(config, d)
    spec["layers"] = stack
    if config.norm_position != "post":
        spec["final_norm"] = _norm_spec(config, d)
    return spec


def _head_spec(config: Config) -> Params:
    d = config.d_model
    tree: Params = {}
    if config.lm_head:
        head: Params = {}
        if not config.tied_head:
            head |= _linear_spec(config, (d, config.vocab_size), d**-0.5, False)
        if config.head_bias:
            head["bias"] = Spec((config.vocab_size,), 0.0)
        if head:
            tree["lm_head"] = head
        if config.head_transform:
            tree["head_transform"] = _linear_spec(config, (d, d), d**-0.5, True)
            tree["head_norm"] = _norm_spec(config, d)
    if config.pooler:
        tree["pooler"] = _linear_spec(config, (d, d), d**-0.5, True)
    if config.num_labels:
        tree["classifier"] = classifier_spec(config, config.num_labels)
    return tree


def classifier_spec(config: Config, labels: int) -> Params:
    """A classification head for this backbone: ``dense`` where its family has one, and ``out``."""
    d = config.d_model
    spec: Params = {}
    if config.classifier_dense:
        spec["dense"] = _linear_spec(config, (d, d), d**-0.5, True)
    spec["out"] = _linear_spec(config, (d, labels), d**-0.5, config.classifier_bias)
    return spec


def attentions(config: Config, stack: str) -> tuple[str, ...]:
    """Names of the attentions in a layer of a stack."""
    if stack == "encoder":
        return ("attention",)
    return ("self_attention", "cross_attention") if config.encoder_layers else ("self_attention",)


def specification(config: Config) -> Params:
    """The tree of :class:`Spec` of a backbone; shapes need no arrays."""
    tree: Params = {"token_embedder": _embedding_spec(config, config.vocab_size)}
    if config.encoder_layers:
        tree["encoder"] = _stack_spec(config, config.encoder_layers, attentions(config, "encoder"))
        if config.token_types:
            types = _embedding_spec(config, config.token_types)
            tree["encoder"] = {"type_embedder": types, **tree["encoder"]}
    if config.decoder_layers:
        tree["decoder"] = _stack_spec(config, config.decoder_layers, attentions(config, "decoder"))
    return tree | _head_spec(config)


def abstract(config: Config, dtype: Any = jnp.float32) -> Params:
    """The tree of ``jax.ShapeDtypeStruct``: T0-11B costs no memory."""
    flat = flatten(specification(config))
    return unflatten({p: jax.ShapeDtypeStruct(s.shape, dtype) for p, s in flat.items()})


def draw(key: jax.Array, specs: Params, dtype: Any = jnp.float32) -> Params:
    """Random parameters for a tree of :class:`Spec`."""
    flat = flatten(specs)
    keys = jax.random.split(key, len(flat))

    def leaf(key, spec):
        if not spec.std:
            return jnp.full(spec.shape, 1 if spec.std is None else 0, dtype)
        return (jax.random.normal(key, spec.shape, jnp.float32) * spec.std).astype(dtype)

    return unflatten({p: leaf(k, s) for k, (p, s) in zip(keys, flat.items(), strict=True)})


def init(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> Params:
    """Random parameters with T5's initialisation (Mesh TensorFlow's, as in T5X), or N(0, 0.02)."""
    return draw(key, specification(config), dtype)
