"""One transformer for every family: its configuration, its parameters, and its pure functions.

The parameters are a plain nested dict; layers are stacked on a leading axis [L, ...] and run by
``lax.scan``, so that compile time does not grow with depth. A T5 has::

    token_embedder/embedding            [V, D]
    encoder/relative_bias/embedding     [buckets, H]
    encoder/layers/attention_norm/scale [L, D]
    encoder/layers/attention/{query,key,value}/kernel [L, D, H*K]    out/kernel [L, H*K, D]
    encoder/layers/mlp_norm/scale       [L, D]
    encoder/layers/mlp/{wi_0,wi_1}/kernel [L, D, F]                  wo/kernel [L, F, D]
    encoder/final_norm/scale            [D]
    decoder/...                         self_attention, cross_attention and their norms likewise
    lm_head/kernel                      [D, V], absent where the head is tied to the embedding

An encoder-only model (BERT) has no decoder, a decoder-only one (Llama) neither encoder nor
cross-attention. The same names serve all of them; what a family has beside these::

    {encoder,decoder}/position_embedder/embedding [P, D]    learned positions
    encoder/type_embedder/embedding     [types, D]          BERT
    {encoder,decoder}/embedding_norm/{scale,bias}           BERT, BART
    .../{query,key,value,out,wi,wo}/bias                    BERT, GPT-2, BART; Qwen2's first three
    .../{query_norm,key_norm}/scale     [L, K]              Qwen3, Gemma 3
    .../{self_attention,mlp}_post_norm/scale                Gemma 2 and 3
    head_transform/{kernel,bias}, head_norm/{scale,bias}, lm_head/bias       a masked-LM head
    pooler/{kernel,bias}, classifier/{dense,out}/{kernel,bias}               a classification head

Batches carry seqio's names: ``encoder_input_tokens`` [B, S], ``decoder_input_tokens`` [B, T], and
optionally ``encoder_mask`` [B, S] and ``decoder_mask`` [B, T] (default: tokens that are not
padding), ``encoder_token_types`` [B, S], ``encoder_segment_ids`` [B, S] and
``decoder_segment_ids`` [B, T] for packed examples. Of a decoder-only model ``decoder_positions``
[B, T] and ``decoder_causal_attention`` [B, T] are read too: 1 at places that all others see
(a prefix language model). With a bank of adapters in the parameters, ``task_ids`` [B] says whose
adapter each input has; what takes a batch whole reads it (see :func:`for_tasks`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from peft_jax import layers, rotary
from peft_jax.errors import InputError
from peft_jax.rotary import Rope
from peft_jax.tree import Params, flatten, unflatten

Batch = dict[str, Any]

REMAT = {
    "none": None,
    # Keep the outputs of the projections, recompute attention and elementwise work.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


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
    projections' outputs, "full" keeps only the layer's input."""
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


# --------------------------------------------------------------------------------------------
# Adapters that differ between the inputs of a batch
# --------------------------------------------------------------------------------------------
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerTask:
    """A leaf of a bank: [tasks + 1, ...], or [L, tasks + 1, ...] in a stack of layers.

    The last one changes nothing: it serves the inputs without an adapter.
    """

    values: jax.Array
    stacked: bool = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tail:
    """A leaf [L, ...] of a stack whose last K layers are trained and the others frozen.

    Kept as two arrays, so that the layers below are run without a backward pass and no array of
    the stack's size is copied or has a gradient.
    """

    own: jax.Array
    values: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.own.shape

    @property
    def dtype(self) -> Any:
        return self.own.dtype

    @property
    def first(self) -> int:
        """Index of the first trained layer."""
        return len(self.own) - len(self.values)

    def whole(self) -> jax.Array:
        """[L, ...], a copy."""
        return jnp.concatenate([self.own[: self.first], self.values])


def for_tasks(params: Params, batch: Batch) -> Params:
    """Parameters in which each input of a batch has the leaves of its own task.

    Args:
      params: merged with a bank (``methods.bank``); without one they are returned as they are.
      batch: ``task_ids`` [B] int32, the index of each input's adapter in the bank; -1: none.
    Raises:
      InputError: the batch does not say the tasks, or (where it can be seen) one doesn't exist.
    """
    found = [x for x in jax.tree.leaves(params, is_leaf=_is_per_task) if _is_per_task(x)]
    if not found:
        return params
    if "task_ids" not in batch:
        raise InputError("the parameters hold a bank of adapters: the batch needs task_ids [B]")
    ids = batch["task_ids"]
    tasks = found[0].values.shape[1 if found[0].stacked else 0] - 1
    if not isinstance(ids, jax.core.Tracer):
        wrong = [int(i) for i in ids if not -1 <= i < tasks]
        if wrong:
            raise InputError(
                f"task_ids: {wrong[0]} is not in a bank of {tasks} adapters (-1: none)"
            )
    ids = jnp.asarray(ids)

    def own(leaf):
        if not _is_per_task(leaf):
            return leaf
        return leaf.values[:, ids] if leaf.stacked else leaf.values[ids]

    return jax.tree.map(own, params, is_leaf=_is_per_task)


def _is_per_task(leaf: Any) -> bool:
    return isinstance(leaf, PerTask)


# --------------------------------------------------------------------------------------------
# What all stacks share
# --------------------------------------------------------------------------------------------
def _scan(config: Config, body, carry, xs):
    """``lax.scan`` over layers with the backward pass that ``config.remat`` asks for."""
    if config.remat != "none":
        # Inside a scan the barrier against common-subexpression elimination is not needed.
        body = jax.checkpoint(body, policy=REMAT[config.remat], prevent_cse=False)
    return _scan_layers(body, carry, xs)


def _scan_layers(body, carry, xs):
    """``lax.scan`` over layers, in two parts where only the last layers have trained leaves."""
    firsts = {x.first for x in jax.tree.leaves(xs, is_leaf=_is_tail) if _is_tail(x)}
    if not firsts:
        return jax.lax.scan(body, carry, xs)
    first = min(firsts)
    frozen = jax.tree.map(lambda x: x.own if _is_tail(x) else x, xs, is_leaf=_is_tail)

    # Indexed in place: slices of the frozen layers would be a copy of them.
    def below(carry, i):
        return body(carry, jax.tree.map(lambda x: x[i], frozen))

    def above(x):
        if not _is_tail(x):
            return x[first:]
        return jnp.concatenate([x.own[first : x.first], x.values]) if x.first > first else x.values

    carry, lower = jax.lax.scan(below, carry, jnp.arange(first))
    carry, upper = jax.lax.scan(body, carry, jax.tree.map(above, xs, is_leaf=_is_tail))
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), lower, upper)


def _is_tail(leaf: Any) -> bool:
    return isinstance(leaf, Tail)


def without_tails(params: Params) -> Params:
    """Parameters in which every leaf is one array (see :class:`Tail`)."""
    return jax.tree.map(lambda x: x.whole() if _is_tail(x) else x, params, is_leaf=_is_tail)


def _layer_keys(key: jax.Array | None, depth: int) -> jax.Array | None:
    return None if key is None else jax.random.split(key, depth)


def _norm(config: Config, params: Params, x: jax.Array) -> jax.Array:
    if config.norm == "layer":
        return layers.layer_norm(params, x, config.norm_epsilon)
    return layers.rms_norm(params, x, config.norm_epsilon, unit_offset=config.norm_unit_offset)


def _residual(config: Config, params: Params, name: str, x: jax.Array, branch) -> jax.Array:
    """x plus a branch of it, with the branch's norms where the family has them.

    Bottleneck adapters stand on the branch's output ("inner", Houlsby et al. 2019), beside the
    branch ("parallel", He et al. 2022) or on the sum ("outer", Pfeiffer et al. 2021).
    """
    adapters = params.get(f"{name}_adapter", {})
    post = config.norm_position == "post"
    read = x if post else _norm(config, params[f"{name}_norm"], x)
    y = branch(read)
    if config.norm_position == "sandwich":
        y = _norm(config, params[f"{name}_post_norm"], y)
    added = y
    if "inner" in adapters:
        added = added + layers.bottleneck(adapters["inner"], y)
    if "parallel" in adapters:
        added = added + layers.bottleneck(adapters["parallel"], read)
    x = x + added
    if "outer" in adapters:
        # In a post-norm family it reads the normed sum, and its result is normed again.
        norm = params[f"{name}_norm"]
        x = x + layers.bottleneck(adapters["outer"], _norm(config, norm, x) if post else x)
    return _norm(config, params[f"{name}_norm"], x) if post else x


def _prompt_length(params: Params, stack: str) -> int:
    prompt = params[stack].get("prompt")
    return 0 if prompt is None else prompt.shape[-2]


def _with_prompt(params: Params, stack: str, mask: jax.Array) -> jax.Array:
    """A mask [N, T] with the stack's soft prompt in front: [N, P + T].

    Where every input has a prompt of its own, the shorter ones are padded in front and
    ``prompt_mask`` [B, P] says where.
    """
    own = params[stack].get("prompt_mask")
    if own is None:
        rows = _prompt_length(params, stack)
        return jnp.pad(mask, ((0, 0), (rows, 0)), constant_values=True)
    own = jnp.repeat(own, len(mask) // len(own), axis=0)
    return jnp.concatenate([own, mask], axis=1)


def _positions(config: Config, params: Params, stack: str, mask: jax.Array) -> jax.Array:
    """Position of every place of [B, T], padding included: [B, T], or [1, T] if all rows agree."""
    shift = _prefix_shift(config, params, stack)
    if shift.ndim:
        shift = jnp.repeat(shift, len(mask) // len(shift))[:, None]
    if config.count_positions:
        return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0) + shift
    places = jnp.arange(mask.shape[1])[None]
    own = params[stack].get("prompt_mask")
    # Relative positions are distances, the same for every input: nothing is taken off.
    if own is None or config.positions == "relative":
        return places + shift
    filled = jnp.sum(~own, axis=1, keepdims=True)
    return jnp.maximum(places - jnp.repeat(filled, len(mask) // len(own), axis=0), 0) + shift


def _prefix_shift(config: Config, params: Params, stack: str) -> jax.Array:
    """Positions that a prefix of the decoder's self-attention takes up: [], or [B].

    Li & Liang 2021 give it as past keys to a GPT-2, which counts its tokens from behind it; so does
    Hugging Face PEFT. Where positions are relative the tokens are not shifted.
    """
    own = params[stack]["layers"].get("self_attention", {})
    if config.positions == "relative":
        own = {}
    if "prefix_mask" in own:
        return jnp.sum(own["prefix_mask"][0], axis=-1, dtype=jnp.int32)
    rows = own["prefix_key"].shape[-2] if "prefix_key" in own else 0
    return jnp.asarray(rows, jnp.int32)


def _embed(
    config: Config,
    params: Params,
    stack: str,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    types: jax.Array | None = None,
) -> jax.Array:
    """What the first layer reads: embedded tokens [N, T, D], behind the stack's soft prompt.

    Args:
      positions: [N or 1, P + T] of the prompt's rows and the tokens; read where they are learned.
      types: [N, T] token types; None: all 0.
    """
    dtype = jnp.dtype(config.activation_dtype)
    own = params[stack]
    soft = own.get("soft_tokens")
    words = tokens if soft is None else jnp.maximum(tokens, 0)
    x = layers.look_up(params["token_embedder"]["embedding"], words).astype(dtype)
    if config.embedding_scale != 1:
        x = x * jnp.asarray(config.embedding_scale, dtype)
    if soft is not None:
        rows = layers.look_up(soft, jnp.clip(-2 - tokens, 0, soft.shape[-2] - 1)).astype(dtype)
        x = jnp.where((tokens <= -2)[..., None], rows, x)
    prompt = own.get("prompt")
    if prompt is not None:
        rows = prompt.astype(dtype)
        if prompt.ndim == 3:
            rows = jnp.repeat(rows, len(x) // len(rows), axis=0)
        rows = jnp.broadcast_to(rows, (len(x), *prompt.shape[-2:]))
        x = jnp.concatenate([rows, x], axis=1)
    if "type_embedder" in own:
        table = own["type_embedder"]["embedding"].astype(dtype)
        if types is None:
            types = jnp.zeros(tokens.shape, jnp.int32)
        behind = jnp.pad(types, ((0, 0), (x.shape[1] - types.shape[1], 0)))
        x = x + layers.look_up(table, behind)
    if config.positions == "learned":
        assert positions is not None
        table = own["position_embedder"]["embedding"]
        if table.ndim == 3:
            positions = jnp.broadcast_to(positions, x.shape[:2])
        x = x + layers.look_up(table, positions + config.position_offset).astype(dtype)
    if config.embedding_norm:
        x = _norm(config, own["embedding_norm"], x)
    return x


class Placed(NamedTuple):
    """Tokens among which soft ones may have been inserted.

    Attributes:
      tokens: [N, T] int32; mask: [N, T] bool.
      places: [N, T'] int32, where the T' tokens that were given are now; None: where they were.
    """

    tokens: jax.Array
    mask: jax.Array
    places: jax.Array | None


def place_soft_tokens(
    config: Config, own: Params, tokens: jax.Array, mask: jax.Array, ends: jax.Array | None = None
) -> Placed:
    """Inserts a stack's ``soft_tokens`` where its ``soft_places`` say, as ids -2 - k.

    Row k stands behind the first real token for a place of 1, behind the last of the input for 2,
    and nowhere for 0 (only where the tokens hold its id already).

    Args:
      own: the stack's parameters.
      tokens, mask: [N, T].
      ends: [N] index of the input's last token, where more follows it; None: the last real one.
    """
    places = own.get("soft_places")
    if places is None:
        return Placed(tokens, mask, None)
    n, t = tokens.shape
    places = jnp.broadcast_to(places, (1, places.shape[-1])) if places.ndim == 1 else places
    places = jnp.repeat(places, n // len(places), axis=0).astype(jnp.int32)
    first = jnp.argmax(mask, axis=1)[:, None]
    last = (t - 1 - jnp.argmax(mask[:, ::-1], axis=1) if ends is None else ends)[:, None]
    among = jnp.select([places == 1, places == 2], [2 * first + 1, 2 * last + 1], 2 * t)
    in_order = jnp.broadcast_to(2 * jnp.arange(t), (n, t))
    order = jnp.argsort(jnp.concatenate([in_order, among], axis=1), axis=1, stable=True)
    ids = jnp.where(places > 0, -2 - jnp.arange(places.shape[1]), config.pad_id)
    both = (
        jnp.concatenate([tokens, ids.astype(tokens.dtype)], axis=1),
        jnp.concatenate([mask, places > 0], axis=1),
    )
    tokens, mask = (jnp.take_along_axis(each, order, axis=1) for each in both)
    return Placed(tokens, mask, jnp.argsort(order, axis=1)[:, :t])


def _take(x: jax.Array, places: jax.Array | None) -> jax.Array:
    """x [N, T, ...] at places [N, T'], or as it is."""
    if places is None:
        return x
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1)


def _spread(x: jax.Array, places: jax.Array | None, length: int, filling: int) -> jax.Array:
    """The inverse of :func:`_take`: x [N, T'] at its places in [N, length]."""
    if places is None:
        return x
    rows = jnp.arange(len(x))[:, None]
    return jnp.full((len(x), length), filling, x.dtype).at[rows, places].set(x)


def _overwrite_prompt(params: Params, x: jax.Array) -> jax.Array:
    """A layer's input [N, T, D] with its own rows in the places of the stack's soft prompt.

    Raises:
      InputError: the stack's prompt has another number of rows.
    """
    rows = params.get("prompt")
    if rows is None:
        return x
    length = rows.shape[-2]
    if length > x.shape[1]:
        raise InputError(f"a prompt of {length} rows at every layer finds {x.shape[1]} places")
    rows = rows.astype(x.dtype)
    before = x[:, :length]
    if rows.ndim == 3:
        rows = jnp.repeat(rows, len(x) // len(rows), axis=0)
    if "prompt_mask" in params:
        own = jnp.repeat(params["prompt_mask"], len(x) // len(params["prompt_mask"]), axis=0)
        rows = jnp.where(own[..., None], rows, before)
    return jnp.concatenate([jnp.broadcast_to(rows, before.shape), x[:, length:]], axis=1)


def _check_length(config: Config, params: Params, stack: str, length: int) -> None:
    attention = params[stack]["layers"].get("self_attention", {})
    if "prefix_key" in attention:
        length += attention["prefix_key"].shape[-2]
    if config.positions == "learned" and length > config.max_positions:
        raise InputError(
            f"{length} positions in the {stack} (rows of a prompt or prefix counted), but this "
            f"{config.family} has learned {config.max_positions}; shorten the sequences"
        )


class View(NamedTuple):
    """What the queries of one stack see of the keys, for full and for windowed layers.

    Attributes:
      bias: float32, as in ``layers.Keys``.
      local_bias: the same with the window, where some layers have one.
      rotation, local_rotation: of the queries and of their own keys, where positions are rotary.
      prefix_bias: [B or 1, H, T, P], on a prefix that counts as places in front (a T5's relative
        bias); None: it has none.
    """

    bias: jax.Array
    local_bias: jax.Array | None
    rotation: rotary.Rotation | None
    local_rotation: rotary.Rotation | None
    prefix_bias: jax.Array | None = None

    def of_layer(self, local: jax.Array | None) -> tuple[jax.Array, rotary.Rotation | None]:
        """Bias and rotation of a layer; ``local`` is a traced bool, or None where all are alike."""
        if local is None:
            return self.bias, self.rotation
        turn = self.rotation
        if self.local_rotation is not None and turn is not None:
            both = zip(self.local_rotation, turn, strict=True)
            turn = rotary.Rotation(*(jnp.where(local, one, other) for one, other in both))
        if self.local_bias is None:
            return self.bias, turn
        return jnp.where(local, self.local_bias, self.bias), turn


def _local_flags(config: Config, stack: str) -> jax.Array | None:
    """[L] bool: which layers are local; None where the stack has none or no others."""
    if stack == "encoder" or len(config.local_layers) in (0, config.decoder_layers):
        return None
    return jnp.zeros(config.decoder_layers, bool).at[jnp.asarray(config.local_layers)].set(True)


def _view(
    config: Config,
    params: Params,
    stack: str,
    positions: jax.Array,
    key_positions: jax.Array,
    visible: jax.Array,
) -> View:
    """The view of queries at ``positions`` [B or 1, T] on keys at [B or 1, S].

    Args:
      visible: bool, broadcastable to [B, 1, T, S].
    """
    bias = layers.mask_bias(visible)
    local_bias = None
    if config.positions == "relative":
        bias = bias + layers.relative_bias(
            params[stack]["relative_bias"]["embedding"],
            positions[0],
            key_positions[0],
            bidirectional=stack == "encoder",
            max_distance=config.relative_max_distance,
        )
    if stack == "decoder" and config.local_layers and config.window is not None:
        distance = positions[:, None, :, None] - key_positions[:, None, None, :]
        near = layers.mask_bias(visible & (distance < config.window))
        if len(config.local_layers) == config.decoder_layers:
            bias = near
        else:
            local_bias = near
    turn = local_turn = None
    if config.rope is not None:
        turn = rotary.rotation(config.rope, config.d_kv, positions)
        if config.local_rope is not None and config.local_layers:
            local_turn = rotary.rotation(config.local_rope, config.d_kv, positions)
            if len(config.local_layers) == config.decoder_layers:
                turn = local_turn
    return View(bias, local_bias, turn, local_turn, _prefix_bias(config, params, stack, positions))


def _prefix_bias(
    config: Config, params: Params, stack: str, positions: jax.Array
) -> jax.Array | None:
    places = params[stack].get("prefix_places")
    if places is None or config.positions != "relative":
        return None
    # Distances alone count: the prefix ends in front of position 0.
    bias = layers.relative_bias(
        params[stack]["relative_bias"]["embedding"],
        positions[0],
        jnp.arange(-places.shape[-1], 0),
        bidirectional=stack == "encoder",
        max_distance=config.relative_max_distance,
    )
    return bias * places.reshape(-1, 1, 1, places.shape[-1])


def _keys_values(
    config: Config,
    params: Params,
    x: jax.Array,
    turn: rotary.Rotation | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, H_kv, S, K] of an attention over x [B, S, D].

    Heads come before positions, as the products of ``layers.attend`` read them: keys and values
    that are kept (a cache, an input's cross-attention) are not transposed again at every step.
    """
    k = layers.linear(params["key"], x, layers.site_key(key, 0))
    v = layers.linear(params["value"], x, layers.site_key(key, 1))
    k, v = (layers.split_heads(each, config.kv_heads) for each in (k, v))
    k = _norm_and_turn(config, params.get("key_norm"), k, turn)
    return k.swapaxes(-2, -3), v.swapaxes(-2, -3)


def _prefix(
    config: Config, params: Params, x: jax.Array, bias: jax.Array | None = None
) -> list[layers.Keys]:
    """The keys and values of an attention's prefix for queries of x [N, T, D]; none, without one.

    Args:
      bias: ``View.prefix_bias``.
    """
    if "prefix_key" not in params:
        return []
    key, value = (
        layers.split_heads(params[name].astype(x.dtype), config.kv_heads).swapaxes(-2, -3)
        for name in ("prefix_key", "prefix_value")
    )
    if key.ndim == 3:
        key, value = key[None], value[None]
    seen = params.get("prefix_mask")
    own = jnp.zeros((1, 1, 1, key.shape[-2]), jnp.float32)
    own = own if seen is None else layers.mask_bias(seen)[:, None, None, :]
    if bias is not None:
        # It differs between the queries of a sequence, which are not folded then.
        key, value = (jnp.repeat(each, len(x) // len(key), axis=0) for each in (key, value))
        own, bias = (jnp.repeat(each, len(x) // len(each), axis=0) for each in (own, bias))
        own = own + bias
    return [layers.Keys(key, value, own)]


def _norm_and_turn(config, norm: Params | None, heads, turn) -> jax.Array:
    if norm is not None:
        heads = _norm(config, norm, heads)
    return heads if turn is None else rotary.rotate(heads, turn)


def _attention(
    config: Config,
    params: Params,
    x: jax.Array,
    parts: list[layers.Keys],
    turn: rotary.Rotation | None,
    key: jax.Array | None,
) -> jax.Array:
    """Query projection, attention, output projection and its dropout: one residual branch."""
    q = layers.linear(params["query"], x, layers.site_key(key, 0))
    q = layers.split_heads(q, config.num_heads)
    q = _norm_and_turn(config, params.get("query_norm"), q, turn)
    rate = config.dropout if config.attention_dropout is None else config.attention_dropout
    out = layers.attend(
        q,
        parts,
        rate,
        layers.site_key(key, 1),
        scale=config.attention_scale,
        softcap=config.attention_softcap,
    )
    out = layers.linear(params["out"], out, layers.site_key(key, 2))
    return layers.dropout(layers.site_key(key, 3), out, config.dropout)


def _feed_forward(config: Config, params: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
    def branch(y):
        rate = config.dropout if config.activation_dropout is None else config.activation_dropout
        y = layers.mlp(params["mlp"], y, config.activation, rate, layers.site_key(key, 0))
        return layers.dropout(layers.site_key(key, 1), y, config.dropout)

    return _residual(config, params, "mlp", x, branch)


def _finish(config: Config, params: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """A stack's last norm and dropout, where it has them."""
    if "final_norm" in params:
        x = _norm(config, params["final_norm"], x)
    return layers.dropout(layers.site_key(key, 2), x, config.dropout if config.final_dropout else 0)


# --------------------------------------------------------------------------------------------
# Encoder
# --------------------------------------------------------------------------------------------
class Encoded(NamedTuple):
    """The encoder's result: hidden [B, S, D]; mask [B, S] bool; segments [B, S] int32 or None.

    S counts the rows of prompts too; ``places`` [B, S'] says where the tokens that were given are,
    where they are not the last S' places. ``kept`` are the keys and values of its self-attention,
    [L, B, H_kv, S, K] each, if they were asked for.
    """

    hidden: jax.Array
    mask: jax.Array
    segments: jax.Array | None = None
    places: jax.Array | None = None
    kept: tuple[jax.Array, jax.Array] | None = None

    def of_tokens(self, length: int) -> jax.Array:
        """Hidden states [B, S', D] of the S' tokens that were given."""
        if self.places is None:
            return self.hidden[:, self.hidden.shape[1] - length :]
        return _take(self.hidden, self.places)


def encode(
    config: Config,
    params: Params,
    batch: Batch,
    key: jax.Array | None = None,
    *,
    keep: bool = False,
) -> Encoded:
    """Runs the encoder over ``encoder_input_tokens``.

    Args:
      params: the backbone's tree, with or without a method's leaves.
      batch: see the module's docstring.
      key: for dropout; None means evaluation.
      keep: whether keys and values of all layers are returned too.
    """
    tokens = batch["encoder_input_tokens"]
    mask = batch.get("encoder_mask")
    mask = tokens != config.pad_id if mask is None else mask.astype(bool)
    segments = batch.get("encoder_segment_ids")
    types = batch.get("encoder_token_types")
    prompt = _prompt_length(params, "encoder")
    tokens, mask, places = place_soft_tokens(config, params["encoder"], tokens, mask)
    if segments is not None and (prompt or places is not None):
        raise InputError(
            "encoder_segment_ids: packed examples cannot share an encoder prompt; turn packing off"
        )
    types = None if types is None else _spread(types, places, tokens.shape[1], 0)
    real = tokens != config.pad_id
    mask, real = (_with_prompt(params, "encoder", each) for each in (mask, real))
    places = None if places is None else places + prompt
    _check_length(config, params, "encoder", mask.shape[1])
    positions = _positions(config, params, "encoder", real)
    if config.count_positions:
        # As in RoBERTa: padding that a mask lets be seen has the row in front of the first.
        positions = jnp.where(real, positions, -1)
    visible = mask[:, None, None, :]
    if segments is not None:
        _refuse_packing(config)
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    view = _view(config, params, "encoder", positions, positions, visible)
    x = _embed(config, params, "encoder", tokens, positions, types)

    def layer(x, xs):
        p, k = xs
        x = _overwrite_prompt(p, x)
        own = None

        def attention(y):
            nonlocal own
            own = _keys_values(config, p["attention"], y, view.rotation, layers.site_key(k, 0))
            parts = [layers.Keys(own[0], own[1], view.bias)]
            parts += _prefix(config, p["attention"], y, view.prefix_bias)
            return _attention(
                config, p["attention"], y, parts, view.rotation, layers.site_key(k, 1)
            )

        x = _residual(config, p, "attention", x, attention)
        return _feed_forward(config, p, x, layers.site_key(k, 2)), own if keep else None

    x = layers.dropout(layers.site_key(key, 0), x, config.dropout)
    keys = _layer_keys(layers.site_key(key, 1), config.encoder_layers)
    x, kept = _scan(config, layer, x, (params["encoder"]["layers"], keys))
    return Encoded(_finish(config, params["encoder"], x, key), mask, segments, places, kept)


def _refuse_packing(config: Config) -> None:
    if config.positions == "learned":
        raise InputError(
            f"segment ids: a {config.family} has learned positions, and packed examples would "
            "have wrong ones; turn packing off"
        )


# --------------------------------------------------------------------------------------------
# Decoder
# --------------------------------------------------------------------------------------------
class Prompt(NamedTuple):
    """Keys and values that a decoder-only model has made of an input, shared by what follows it.

    Attributes:
      key, value: [L, B, H_kv, S, K] each; S counts a soft prompt's rows too.
      mask: [B, S] bool, which of them are seen.
      positions: [B, S] int32.
    """

    key: jax.Array
    value: jax.Array
    mask: jax.Array
    positions: jax.Array


class Context(NamedTuple):
    """What a decoder reads beside its own tokens; computed once per input.

    Attributes:
      start: [B] int32, the first token that the decoder is given: the start token, or the input's
        last token, whose own keys are not in the prompt.
      position: [B] int32, the position of ``start``.
      encoded: the encoder's result, or None.
      cross: its keys and values, [L, B, H_kv, S, K] each; None: the layers compute them.
      prompt: of a decoder-only model.
    """

    start: jax.Array
    position: jax.Array
    encoded: Encoded | None = None
    cross: tuple[jax.Array, jax.Array] | None = None
    prompt: Prompt | None = None


def context(
    config: Config,
    params: Params,
    batch: Batch,
    key: jax.Array | None = None,
    *,
    stack_cross: bool = True,
) -> Context:
    """Reads the input once: through the encoder, or through a decoder-only model itself.

    Args:
      batch: ``encoder_input_tokens`` [B, S] and optionally ``encoder_mask``; a decoder-only model
        reads them as the prompt in front of what it decodes.
      key: for dropout; None means evaluation.
      stack_cross: whether cross-attention keys and values are computed here, for all layers.
    """
    if config.kind == "decoder":
        return _read_prompt(config, params, batch, key)
    encoded = encode(config, params, batch, key)
    rows = encoded.hidden.shape[0]
    cross = cross_keys_values(config, params, encoded) if stack_cross else None
    start = jnp.full(rows, config.decoder_start_id, jnp.int32)
    position = jnp.broadcast_to(_prefix_shift(config, params, "decoder"), (rows,))
    return Context(start, position, encoded, cross)


def _read_prompt(config: Config, params: Params, batch: Batch, key: jax.Array | None) -> Context:
    tokens = batch["encoder_input_tokens"]
    mask = batch.get("encoder_mask")
    mask = tokens != config.pad_id if mask is None else mask.astype(bool)
    tokens, mask, _ = place_soft_tokens(config, params["decoder"], tokens, mask)
    # The last token is left to whoever decodes: its state predicts the first token behind it.
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    seen = mask & (jnp.arange(mask.shape[1]) != last[:, None])
    rows = _prompt_length(params, "decoder")
    seen, mask = (_with_prompt(params, "decoder", each) for each in (seen, mask))
    positions = _positions(config, params, "decoder", mask)
    _check_length(config, params, "decoder", mask.shape[1])
    view = _view(config, params, "decoder", positions, positions, _causal(seen))
    x = _embed(config, params, "decoder", tokens, positions)
    _, kept = _run_decoder(config, params, x, view, key, keep=True)
    positions = jnp.broadcast_to(positions, seen.shape)
    start, position = (
        jnp.take_along_axis(each, at[:, None], axis=1)[:, 0]
        for each, at in ((tokens, last), (positions, rows + last))
    )
    assert kept is not None
    return Context(start, position, prompt=Prompt(kept[0], kept[1], seen, positions))


def cross_keys_values(
    config: Config, params: Params, encoded: Encoded
) -> tuple[jax.Array, jax.Array]:
    """Every layer's cross-attention keys and values, computed once: [L, B, H_kv, S, K] each."""

    def layer(_, p):
        return None, _keys_values(config, p, encoded.hidden)

    return _scan_layers(layer, None, params["decoder"]["layers"]["cross_attention"])[1]


def _causal(mask: jax.Array) -> jax.Array:
    """[B, 1, T, T] bool: every place sees the unmasked ones up to its own."""
    place = jnp.arange(mask.shape[1])
    return mask[:, None, None, :] & (place[None, :] <= place[:, None])


def _run_decoder(
    config: Config,
    params: Params,
    x: jax.Array,
    view: View,
    key: jax.Array | None,
    *,
    context: Context | None = None,
    cross_bias: jax.Array | None = None,
    prompt_view: View | None = None,
    keep: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """The decoder's layers over x [N, T, D], before the last norm; and, to keep, keys and values.

    Args:
      view: on the sequences' own places; ``prompt_view``: on those of ``context.prompt``.
      cross_bias: on the encoder's places.
    """
    encoded = cross = prompt = None
    if context is not None:
        encoded, cross = context.encoded, context.cross
        prompt = context.prompt and context.prompt[:2]

    def layer(x, xs):
        p, k, shared, read, local = xs
        x = _overwrite_prompt(p, x)
        bias, turn = view.of_layer(local)
        own = None

        def self_attention(y):
            nonlocal own
            own = _keys_values(config, p["self_attention"], y, turn, layers.site_key(k, 0))
            parts = [layers.Keys(own[0], own[1], bias)]
            if read is not None and prompt_view is not None:
                parts.append(layers.Keys(read[0], read[1], prompt_view.of_layer(local)[0]))
            parts += _prefix(config, p["self_attention"], y, view.prefix_bias)
            return _attention(config, p["self_attention"], y, parts, turn, layers.site_key(k, 1))

        x = _residual(config, p, "self_attention", x, self_attention)
        if encoded is not None:
            x = _cross_attention(config, p, x, encoded, shared, cross_bias, layers.site_key(k, 2))
        return _feed_forward(config, p, x, layers.site_key(k, 3)), own if keep else None

    x = layers.dropout(layers.site_key(key, 0), x, config.dropout)
    keys = _layer_keys(layers.site_key(key, 1), config.decoder_layers)
    stack = params["decoder"]["layers"]
    return _scan(config, layer, x, (stack, keys, cross, prompt, _local_flags(config, "decoder")))


def decode(
    config: Config,
    params: Params,
    context: Context,
    tokens: jax.Array,
    key: jax.Array | None = None,
    *,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Runs the decoder over whole sequences that follow an input.

    Args:
      context: of B inputs, from :func:`context`.
      tokens: [N, T] decoder inputs (targets shifted right, ``context.start`` in front); N is a
        multiple of B, and the N // B sequences of one input stand together: all choices of an
        example share what was computed of it.
      key: for dropout; None means evaluation.
      segments: [N, T] for packed examples, with ``context.encoded.segments``.
    Returns:
      Hidden states [N, T, D] of the tokens (a decoder prompt's own positions are cut off).
    """
    if context.prompt is not None:
        return _decode_behind_prompt(config, params, context, tokens, key)
    encoded = context.encoded
    assert encoded is not None
    if (segments is None) != (encoded.segments is None):
        raise InputError(
            "packed examples need both encoder_segment_ids and decoder_segment_ids: with one alone "
            "they would read each other"
        )
    prompt = _prompt_length(params, "decoder")
    if prompt and segments is not None:
        raise InputError("decoder_segment_ids: packed examples cannot share a decoder prompt")
    length = prompt + tokens.shape[1]
    _check_length(config, params, "decoder", length)
    mask = _own_places(params, tokens)
    positions = _positions(config, params, "decoder", mask)
    visible = _causal(mask)
    sources = encoded.mask[:, None, None, :]
    if segments is not None and encoded.segments is not None:
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
        same = segments[:, None, :, None] == encoded.segments[:, None, None, :]
        sources = sources & same
    view = _view(config, params, "decoder", positions, positions, visible)
    x = _embed(config, params, "decoder", tokens, positions)
    x, _ = _run_decoder(
        config, params, x, view, key, context=context, cross_bias=layers.mask_bias(sources)
    )
    return _finish(config, params["decoder"], x[:, prompt:], key)


def _own_places(params: Params, tokens: jax.Array) -> jax.Array:
    """[N or 1, P + T] bool: which places of a decoder's soft prompt and its tokens are seen."""
    own = params["decoder"]
    of_tasks = "prompt_mask" in own or "prefix_mask" in own["layers"]["self_attention"]
    rows = len(tokens) if of_tasks else 1
    return _with_prompt(params, "decoder", jnp.ones((rows, tokens.shape[1]), bool))


def _decode_behind_prompt(config, params, context, tokens, key) -> jax.Array:
    prompt = context.prompt
    params = _without_prompt(params)
    n, t = tokens.shape
    b = len(context.start)
    positions = jnp.repeat(context.position, n // b)[:, None] + jnp.arange(t)
    _check_length(config, params, "decoder", prompt.mask.shape[1] + t)
    view = _view(config, params, "decoder", positions, positions, _causal(jnp.ones((1, t), bool)))
    prompt_view = _view_of_prompt(config, params, prompt, positions)
    x = _embed(config, params, "decoder", tokens, positions)
    x, _ = _run_decoder(config, params, x, view, key, context=context, prompt_view=prompt_view)
    return _finish(config, params["decoder"], x, key)


def _view_of_prompt(config: Config, params: Params, prompt: Prompt, positions: jax.Array) -> View:
    """The view of sequences at ``positions`` [N, T] on the prompts in front of them."""
    folded = positions.reshape(len(prompt.mask), -1)
    visible = prompt.mask[:, None, None, :]
    return _view(config, params, "decoder", folded, prompt.positions, visible)


def decode_text(
    config: Config, params: Params, batch: Batch, key: jax.Array | None = None
) -> jax.Array:
    """Runs a decoder-only model over ``decoder_input_tokens``: hidden states [B, T, D].

    Args:
      batch: see the module's docstring; every place sees the tokens up to its own. Soft tokens that
        belong behind the input stand behind the whole text, unless ``decoder_causal_attention``
        says where the input ends.
      key: for dropout; None means evaluation.
    """
    tokens = batch["decoder_input_tokens"]
    mask = batch.get("decoder_mask")
    mask = tokens != config.pad_id if mask is None else mask.astype(bool)
    segments, both_ways = batch.get("decoder_segment_ids"), batch.get("decoder_causal_attention")
    rows = _prompt_length(params, "decoder")
    given = batch.get("decoder_positions")
    tokens, mask, places = place_soft_tokens(
        config, params["decoder"], tokens, mask, _ends_of_inputs(both_ways)
    )
    if (rows or places is not None) and segments is not None:
        raise InputError("decoder_segment_ids: packed examples cannot share a decoder prompt")
    if places is not None:
        if given is not None:
            raise InputError("decoder_positions cannot be given where soft tokens are inserted")
        if both_ways is not None:
            both_ways = _spread(both_ways, places, tokens.shape[1], 1)
    mask = _with_prompt(params, "decoder", mask)
    _check_length(config, params, "decoder", mask.shape[1])
    positions = _positions(config, params, "decoder", mask)
    if given is not None:
        in_front = jnp.broadcast_to(jnp.arange(rows), (len(given), rows))
        positions = jnp.concatenate([in_front, given + rows], axis=1)
        positions = positions + _prefix_shift(config, params, "decoder").reshape(-1, 1)
    elif segments is not None:
        raise InputError("decoder_segment_ids need decoder_positions, which count in each segment")
    visible = _causal(mask)
    if both_ways is not None:
        prefix = jnp.pad(both_ways.astype(bool), ((0, 0), (rows, 0)), constant_values=True)
        visible = visible | (prefix & mask)[:, None, None, :] & prefix[:, None, :, None]
    if segments is not None:
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    view = _view(config, params, "decoder", positions, positions, visible)
    x = _embed(config, params, "decoder", tokens, positions)
    x, _ = _run_decoder(config, params, x, view, key)
    return _finish(config, params["decoder"], _take(x[:, rows:], places), key)


def _ends_of_inputs(both_ways: jax.Array | None) -> jax.Array | None:
    """[B] index of the last token that all others see: where the input of a prefix LM ends."""
    if both_ways is None:
        return None
    return both_ways.shape[1] - 1 - jnp.argmax(both_ways[:, ::-1].astype(bool), axis=1)


def _cross_attention(config, params, x, encoded, shared, bias, key) -> jax.Array:
    name = "cross_attention"
    if shared is None:
        shared = _keys_values(config, params[name], encoded.hidden, None, layers.site_key(key, 0))
    parts = [layers.Keys(shared[0], shared[1], bias)]

    def branch(y):
        seen = [*parts, *_prefix(config, params[name], y)]
        return _attention(config, params[name], y, seen, None, layers.site_key(key, 1))

    return _residual(config, params, name, x, branch)


# --------------------------------------------------------------------------------------------
# Decoding with a cache
# --------------------------------------------------------------------------------------------
class Cache(NamedTuple):
    """Self-attention keys and values of the places decoded so far: [L, N, H_kv, T, K] each."""

    key: jax.Array
    value: jax.Array


def init_cache(config: Config, sequences: int, length: int) -> Cache:
    """An empty cache for ``sequences`` sequences of at most ``length`` places."""
    shape = (config.decoder_layers, sequences, config.kv_heads, length, config.d_kv)
    dtype = jnp.dtype(config.activation_dtype)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def cache_length(config: Config, params: Params, tokens: int) -> int:
    """Places that a cache needs for so many tokens: a decoder's soft prompt stands in it too."""
    return tokens + (_prompt_length(params, "decoder") if config.encoder_layers else 0)


def decode_step(
    config: Config,
    params: Params,
    context: Context,
    tokens: jax.Array,
    place: jax.Array | int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Decodes T more tokens of N sequences, reading and extending the cache.

    Args:
      context: of B inputs, with N a multiple of B as in :func:`decode`.
      tokens: [N, T], the first of all being ``context.start``. At place 0 the soft prompt of an
        encoder-decoder model's decoder is put in front of them.
      place: index in the cache of the first new token, a soft prompt's rows counted.
    Returns:
      Hidden states [N, T, D] of the tokens, and the cache with the new places in it.

    Raises:
      InputError: learned positions do not reach as far as the cache does.
    """
    # The prompt stands in front of the sequence, so only the first step (a static 0) carries it;
    # that of a decoder-only model is part of the context.
    first = isinstance(place, int) and place == 0 and context.prompt is None
    rows = _prompt_length(params, "decoder") if first else 0
    params = without_tails(params)
    source = params if rows else _without_prompt(params)
    length = cache.key.shape[3]
    read_before = 0 if context.prompt is None else context.prompt.mask.shape[1]
    _check_length(config, params, "decoder", read_before + length)
    # A soft prompt's rows are places of the cache, so this is the position of place 0.
    behind = jnp.repeat(context.position, len(tokens) // len(context.position))[:, None]
    places = place + jnp.arange(rows + tokens.shape[1])
    visible = (jnp.arange(length) <= places[:, None])[None, None]
    own = params["decoder"].get("prompt_mask")
    if own is not None and context.prompt is None:
        own = jnp.repeat(own, len(tokens) // len(own), axis=0)
        if config.positions != "relative":  # distances are the same for every input
            behind = behind - jnp.sum(~own, axis=1, keepdims=True)
        seen = jnp.pad(own, ((0, 0), (0, length - own.shape[1])), constant_values=True)
        visible = visible & seen[:, None, None, :]
    positions = jnp.maximum(behind + places, 0)
    key_positions = jnp.maximum(behind + jnp.arange(length), 0)
    view = _view(config, params, "decoder", positions, key_positions, visible)
    cross_bias = prompt_view = None
    if context.encoded is not None:
        cross_bias = layers.mask_bias(context.encoded.mask[:, None, None, :])
    if context.prompt is not None:
        prompt_view = _view_of_prompt(config, params, context.prompt, positions)
    x = _embed(config, source, "decoder", tokens, positions)

    def layer(carry, xs):
        # The cache is carried whole and written in place; as the scan's input and output it would
        # be two arrays, and all of it copied at every step.
        x, cache = carry
        p, shared, read, local, index = xs
        x = _overwrite_prompt(p, x)
        bias, turn = view.of_layer(local)

        def self_attention(y):
            nonlocal cache
            new = _keys_values(config, p["self_attention"], y, turn)
            cache = Cache(
                *(
                    jax.lax.dynamic_update_slice(old, fresh[None], (index, 0, 0, place, 0))
                    for old, fresh in zip(cache, new, strict=True)
                )
            )
            cached = [jax.lax.dynamic_index_in_dim(c, index, keepdims=False) for c in cache]
            parts = [layers.Keys(cached[0], cached[1], bias)]
            if read is not None and prompt_view is not None:
                parts.append(layers.Keys(read[0], read[1], prompt_view.of_layer(local)[0]))
            parts += _prefix(config, p["self_attention"], y, view.prefix_bias)
            return _attention(config, p["self_attention"], y, parts, turn, None)

        x = _residual(config, p, "self_attention", x, self_attention)
        if context.encoded is not None:
            x = _cross_attention(config, p, x, context.encoded, shared, cross_bias, None)
        return (_feed_forward(config, p, x, None), cache), None

    depth = jnp.arange(config.decoder_layers)
    read = context.prompt and context.prompt[:2]
    stack = source["decoder"]["layers"]
    xs = (stack, context.cross, read, _local_flags(config, "decoder"), depth)
    (x, cache), _ = jax.lax.scan(layer, (x, cache), xs)
    return _finish(config, params["decoder"], x[:, rows:], None), cache


def _without_prompt(params: Params) -> Params:
    """Parameters with which a decoder reads what stands behind its soft prompt."""
    stack = {name: leaf for name, leaf in params["decoder"].items() if name != "prompt"}
    return {**params, "decoder": {**stack, "layers": _promptless(stack["layers"])}}


def _promptless(stack: Params) -> Params:
    return {n: x for n, x in stack.items() if n not in ("prompt", "prompt_mask")}


# --------------------------------------------------------------------------------------------
# Heads
# --------------------------------------------------------------------------------------------
def head(
    config: Config, params: Params, hidden: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """Logits [..., V] in float32 from hidden states [..., D]; the key is for LoRA's dropout."""
    if not config.lm_head:
        raise InputError(
            f"this {config.family} has no language-model head: it cannot score tokens; use a "
            "classification head, or a checkpoint with its head"
        )
    hidden = _before_head(config, params, hidden, layers.site_key(key, 1))
    if config.tied_head:
        out = layers.matmul(hidden, params["token_embedder"]["embedding"].swapaxes(-1, -2))
        if config.head_bias:
            out = out + layers.per_row(params["lm_head"]["bias"], out).astype(out.dtype)
    else:
        out = layers.linear(params["lm_head"], hidden, key)
    if config.logit_softcap is not None:
        out = config.logit_softcap * jnp.tanh(out / config.logit_softcap)
    return out


def _before_head(config: Config, params: Params, hidden: jax.Array, key) -> jax.Array:
    """What the language-model head multiplies, float32."""
    if config.head_transform:
        hidden = layers.linear(params["head_transform"], hidden, key)
        hidden = _norm(config, params["head_norm"], layers.ACTIVATIONS[config.activation](hidden))
    hidden = hidden.astype(jnp.float32)
    return hidden * (config.d_model**-0.5) if config.scale_head else hidden


def logits(config: Config, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Logits [B, T, V], float32: of every decoder input, or of every input of a masked-LM encoder.

    Args:
      batch: ``encoder_input_tokens`` of an encoder, ``decoder_input_tokens`` of a decoder, both of
        an encoder-decoder model.
      key: for dropout; None means evaluation.
    """
    params = for_tasks(params, batch)
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    if config.kind == "encoder":
        encoded = encode(config, params, batch, encoder_key)
        hidden = encoded.of_tokens(batch["encoder_input_tokens"].shape[1])
    elif config.kind == "decoder":
        hidden = decode_text(config, params, batch, decoder_key)
    else:
        read = context(config, params, batch, encoder_key, stack_cross=False)
        tokens, segments = batch["decoder_input_tokens"], batch.get("decoder_segment_ids")
        hidden = decode(config, params, read, tokens, decoder_key, segments=segments)
    return head(config, params, hidden, layers.site_key(decoder_key, 3))


def classify(
    config: Config, params: Params, batch: Batch, key: jax.Array | None = None
) -> jax.Array:
    """Logits [B, labels], float32, of the classification head on ``encoder_input_tokens``.

    The state that is classified: of the first token in an encoder (through its pooler, where it
    has one), of the last token in a decoder-only model, and of the last token's place in the
    decoder, which reads the input again, in an encoder-decoder model; as transformers does.

    Args:
      params: with the leaves of a head: the checkpoint's own, or those of
        ``methods.classification_head``.
      key: for dropout; None means evaluation.
    """
    if "classifier" not in params:
        raise InputError(
            "there is no classification head: compose the method with "
            "classification_head(labels), or load a checkpoint that has one"
        )
    params = for_tasks(params, batch)
    reading_key, head_key = (None, None) if key is None else jax.random.split(key)
    x = _state_of_input(config, params, batch, reading_key)
    own = params["classifier"]
    rate = config.dropout if config.classifier_dropout is None else config.classifier_dropout
    # A RoBERTa may have a pooler too, but its classifier has a layer of its own in its place.
    if "pooler" in params and "dense" not in own:
        x = jnp.tanh(layers.linear(params["pooler"], x, layers.site_key(head_key, 0)))
    x = layers.dropout(layers.site_key(head_key, 1), x, rate)
    if "dense" in own:
        x = jnp.tanh(layers.linear(own["dense"], x, layers.site_key(head_key, 2)))
        x = layers.dropout(layers.site_key(head_key, 3), x, rate)
    x = x.astype(jnp.float32)
    return layers.linear(own["out"], x, layers.site_key(head_key, 4))


def verbalize(
    config: Config,
    params: Params,
    batch: Batch,
    mask_id: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Logits [B, C], float32, of a trained verbaliser (WARP, Hambardzumyan et al. 2021, section 3).

    Its class vectors take the place of the vocabulary's in the language-model head, at the mask of
    an encoder, and elsewhere at the place where the first token of the answer is predicted.

    Args:
      params: with the leaves ``verbalizer/kernel`` [D, C] and optionally ``verbalizer/bias`` [C].
      batch: ``encoder_input_tokens`` [B, S]; with ``mask_id`` once in each row for an encoder.
      mask_id: the mask token of a masked-LM encoder.
      key: for dropout; None means evaluation.
    """
    if "verbalizer" not in params:
        raise InputError("there is no verbaliser: take a method that trains one, such as warp")
    params = for_tasks(params, batch)
    keys = (None, None, None) if key is None else jax.random.split(key, 3)
    if config.kind == "encoder":
        hidden = state_at_mask(config, params, batch, mask_id, keys[0])
    else:
        read = context(config, params, batch, keys[0])
        hidden = decode(config, params, read, read.start[:, None], keys[1])[:, 0]
    hidden = _before_head(config, params, hidden, keys[2])
    return layers.linear(params["verbalizer"], hidden)


def state_at_mask(
    config: Config, params: Params, batch: Batch, mask_id: int | None, key: jax.Array | None
) -> jax.Array:
    """An encoder's hidden state [B, D] in the place of the mask."""
    if mask_id is None:
        raise InputError("an encoder answers at its mask: give mask_id")
    tokens = batch["encoder_input_tokens"]
    hidden = encode(config, params, batch, key).of_tokens(tokens.shape[1])
    place = jnp.argmax(tokens == mask_id, axis=1)
    return jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]


def _state_of_input(config, params, batch, key) -> jax.Array:
    """[B, D]: the state that stands for the whole input."""
    if config.kind == "encoder":
        encoded = encode(config, params, batch, key)
        return encoded.of_tokens(batch["encoder_input_tokens"].shape[1])[:, 0]
    tokens = batch["encoder_input_tokens"]
    mask = batch.get("encoder_mask")
    mask = tokens != config.pad_id if mask is None else mask.astype(bool)
    if config.kind == "decoder":
        text = {"decoder_input_tokens": tokens, "decoder_mask": mask}
        hidden = decode_text(config, params, text, key)
    else:
        keys = (None, None) if key is None else jax.random.split(key)
        read = context(config, params, batch, keys[0], stack_cross=False)
        hidden = decode(config, params, read, shift_right(config, tokens), keys[1])
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def shift_right(config: Config, targets: jax.Array, start: jax.Array | None = None) -> jax.Array:
    """Decoder inputs for targets [N, T]: the start token, then all but the last target.

    Args:
      start: [B] first tokens (``Context.start``), each of N // B sequences; None: the start token.
    """
    if start is None:
        first = jnp.full_like(targets[..., :1], config.decoder_start_id)
    else:
        first = jnp.repeat(start, targets.shape[0] // len(start))[:, None].astype(targets.dtype)
    return jnp.concatenate([first, targets[..., :-1]], axis=-1)
