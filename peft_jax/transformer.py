"""One transformer for every family: its configuration, its parameters, and its pure functions.

The parameters are a plain nested dict; layers are stacked on a leading axis [L, ...] and run by
``lax.scan``, so that compile time does not grow with depth. T5's relative bias is shared by all
layers and stays outside the scan::

    token_embedder/embedding            [V, D]
    encoder/relative_bias/embedding     [buckets, H]
    encoder/layers/attention_norm/scale [L, D]
    encoder/layers/attention/{query,key,value}/kernel [L, D, H*K]    out/kernel [L, H*K, D]
    encoder/layers/mlp_norm/scale       [L, D]
    encoder/layers/mlp/{wi_0,wi_1}/kernel [L, D, F]                  wo/kernel [L, F, D]
    encoder/final_norm/scale            [D]
    decoder/...                         self_attention, cross_attention and their norms likewise
    lm_head/kernel                      [D, V], absent where the head is tied to the embedding

Batches carry seqio's names: ``encoder_input_tokens`` [B, S], ``decoder_input_tokens`` [B, T], and
optionally ``encoder_mask`` [B, S] (default: tokens that are not padding), ``encoder_segment_ids``
[B, S] and ``decoder_segment_ids`` [B, T] for packed examples.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from peft_jax import layers
from peft_jax.errors import InputError
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
    on a loaded backbone (``dataclasses.replace``).
    """

    family: str
    """The Hugging Face model type whose name table is used: "t5" or "mt5"."""
    vocab_size: int
    """Rows of the embedding, V; padding rows of the published checkpoints included."""
    d_model: int
    d_ff: int
    num_heads: int
    d_kv: int
    """Width of one head, K. heads * d_kv need not equal d_model."""
    encoder_layers: int
    decoder_layers: int
    activation: str = "gelu_tanh"
    """One of relu, gelu_tanh, gelu, silu."""
    gated: bool = True
    """Whether the feed-forward has the two input projections wi_0 (gate) and wi_1."""
    tied_head: bool = False
    """Whether logits are taken with the embedding's transpose."""
    scale_head: bool = False
    """Whether hidden states are scaled by d_model ** -0.5 before the head (T5 v1.0)."""
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm_epsilon: float = 1e-6
    pad_id: int = 0
    eos_id: int = 1
    decoder_start_id: int = 0

    dropout: float = 0.1
    """Rate of every dropout while a key is given; 0 <= dropout < 1."""
    remat: str = "dots"
    """What the backward pass keeps of a layer: "none" recomputes nothing, "dots" keeps the
    projections' outputs, "full" keeps only the layer's input."""
    activation_dtype: str = "float32"
    """dtype of hidden states: "float32" or "bfloat16". Frozen weights have their own."""

    def __post_init__(self):
        if self.activation not in layers.ACTIVATIONS:
            raise InputError(
                f"activation {self.activation!r} is unknown; one of {', '.join(layers.ACTIVATIONS)}"
            )
        if self.remat not in REMAT:
            raise InputError(f"remat {self.remat!r} is unknown; one of {', '.join(REMAT)}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout {self.dropout} must be at least 0 and below 1")
        if self.activation_dtype not in ("float32", "bfloat16"):
            raise InputError(
                f"activation_dtype {self.activation_dtype!r} must be float32 or bfloat16"
            )
        for name in ("vocab_size", "d_model", "d_ff", "num_heads", "d_kv", "decoder_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")

    @property
    def inner(self) -> int:
        """Width of all heads together, H*K."""
        return self.num_heads * self.d_kv


# --------------------------------------------------------------------------------------------
# Parameters: one specification, from which come init, the abstract tree and the slots
# --------------------------------------------------------------------------------------------
class Spec(NamedTuple):
    """Shape of a parameter and the standard deviation it is drawn with (None: ones)."""

    shape: tuple[int, ...]
    std: float | None


def _attention_spec(config: Config, depth: int) -> Params:
    d, inner = config.d_model, config.inner
    # T5 has no 1/sqrt(d_kv) in its attention: the query's initialisation carries it.
    return {
        "query": {"kernel": Spec((depth, d, inner), (d * config.d_kv) ** -0.5)},
        "key": {"kernel": Spec((depth, d, inner), d**-0.5)},
        "value": {"kernel": Spec((depth, d, inner), d**-0.5)},
        "out": {"kernel": Spec((depth, inner, d), inner**-0.5)},
    }


def _stack_spec(config: Config, depth: int, attentions: tuple[str, ...]) -> Params:
    d, f = config.d_model, config.d_ff
    stack: Params = {"mlp_norm": {"scale": Spec((depth, d), None)}}
    for name in attentions:
        stack[f"{name}_norm"] = {"scale": Spec((depth, d), None)}
        stack[name] = _attention_spec(config, depth)
    inputs = ("wi_0", "wi_1") if config.gated else ("wi",)
    stack["mlp"] = {name: {"kernel": Spec((depth, d, f), d**-0.5)} for name in inputs}
    stack["mlp"]["wo"] = {"kernel": Spec((depth, f, d), f**-0.5)}
    bias = Spec((config.relative_buckets, config.num_heads), d**-0.5)
    return {
        "relative_bias": {"embedding": bias},
        "layers": stack,
        "final_norm": {"scale": Spec((d,), None)},
    }


def specification(config: Config) -> Params:
    """The tree of :class:`Spec` of a backbone; shapes need no arrays."""
    tree: Params = {
        "token_embedder": {"embedding": Spec((config.vocab_size, config.d_model), 1.0)},
        "encoder": _stack_spec(config, config.encoder_layers, ("attention",)),
        "decoder": _stack_spec(
            config, config.decoder_layers, ("self_attention", "cross_attention")
        ),
    }
    if not config.tied_head:
        head = Spec((config.d_model, config.vocab_size), config.d_model**-0.5)
        tree["lm_head"] = {"kernel": head}
    return tree


def abstract(config: Config, dtype: Any = jnp.float32) -> Params:
    """The tree of ``jax.ShapeDtypeStruct``: T0-11B costs no memory."""
    flat = flatten(specification(config))
    return unflatten({p: jax.ShapeDtypeStruct(s.shape, dtype) for p, s in flat.items()})


def init(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> Params:
    """Random parameters with T5's initialisation (Mesh TensorFlow's, as in T5X)."""
    flat = flatten(specification(config))
    keys = jax.random.split(key, len(flat))

    def leaf(key, spec):
        if spec.std is None:
            return jnp.ones(spec.shape, dtype)
        return (jax.random.normal(key, spec.shape, jnp.float32) * spec.std).astype(dtype)

    return unflatten({p: leaf(k, s) for k, (p, s) in zip(keys, flat.items(), strict=True)})


# --------------------------------------------------------------------------------------------
# Encoder
# --------------------------------------------------------------------------------------------
class Encoded(NamedTuple):
    """The encoder's result: hidden [B, S, D]; mask [B, S] bool; segments [B, S] int32 or None.

    S counts an encoder prompt's rows too.
    """

    hidden: jax.Array
    mask: jax.Array
    segments: jax.Array | None = None


def _scan(config: Config, body, carry, xs):
    """``lax.scan`` over layers with the backward pass that ``config.remat`` asks for."""
    if config.remat != "none":
        # Inside a scan the barrier against common-subexpression elimination is not needed.
        body = jax.checkpoint(body, policy=REMAT[config.remat], prevent_cse=False)
    return jax.lax.scan(body, carry, xs)


def _layer_keys(key: jax.Array | None, depth: int) -> jax.Array | None:
    return None if key is None else jax.random.split(key, depth)


def _embed(config: Config, params: Params, stack: str, tokens: jax.Array) -> jax.Array:
    """Embedded tokens [N, T, D], behind the stack's soft prompt if it has one."""
    dtype = jnp.dtype(config.activation_dtype)
    x = params["token_embedder"]["embedding"][tokens].astype(dtype)
    prompt = params[stack].get("prompt")
    if prompt is not None:
        rows = jnp.broadcast_to(prompt.astype(dtype), (x.shape[0], *prompt.shape))
        x = jnp.concatenate([rows, x], axis=1)
    return x


def _prompt_length(params: Params, stack: str) -> int:
    prompt = params[stack].get("prompt")
    return 0 if prompt is None else prompt.shape[0]


def encode(config: Config, params: Params, batch: Batch, key: jax.Array | None = None) -> Encoded:
    """Runs the encoder over ``encoder_input_tokens``.

    Args:
      params: the backbone's tree, with or without a method's leaves.
      batch: see the module's docstring.
      key: for dropout; None means evaluation.
    """
    tokens = batch["encoder_input_tokens"]
    mask = batch.get("encoder_mask")
    mask = tokens != config.pad_id if mask is None else mask.astype(bool)
    segments = batch.get("encoder_segment_ids")
    x = _embed(config, params, "encoder", tokens)
    prompt = _prompt_length(params, "encoder")
    if prompt:
        if segments is not None:
            raise InputError(
                "encoder_segment_ids: packed examples cannot share an encoder prompt; "
                "turn packing off"
            )
        mask = jnp.pad(mask, ((0, 0), (prompt, 0)), constant_values=True)

    positions = jnp.arange(x.shape[1])
    bias = layers.relative_bias(
        params["encoder"]["relative_bias"]["embedding"],
        positions,
        positions,
        bidirectional=True,
        max_distance=config.relative_max_distance,
    ) + layers.mask_bias(mask[:, None, None, :])
    if segments is not None:
        bias = bias + layers.mask_bias(segments[:, None, :, None] == segments[:, None, None, :])

    def layer(x, xs):
        p, k = xs
        y = layers.rms_norm(p["attention_norm"], x, config.norm_epsilon)
        key_value = layers.keys_values(p["attention"], y, config.num_heads, layers.site_key(k, 0))
        x = x + _attention(config, p["attention"], y, key_value, bias, layers.site_key(k, 1))
        return x + _feed_forward(config, p, x, layers.site_key(k, 2)), None

    x = layers.dropout(layers.site_key(key, 0), x, config.dropout)
    keys = _layer_keys(layers.site_key(key, 1), config.encoder_layers)
    x, _ = _scan(config, layer, x, (params["encoder"]["layers"], keys))
    x = layers.rms_norm(params["encoder"]["final_norm"], x, config.norm_epsilon)
    x = layers.dropout(layers.site_key(key, 2), x, config.dropout)
    return Encoded(x, mask, segments)


def _attention(
    config: Config,
    params: Params,
    x: jax.Array,
    key_value: tuple[jax.Array, jax.Array],
    bias: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """Query projection, attention, output projection and its dropout: one residual branch."""
    k, v = key_value
    q = layers.linear(params["query"], x, layers.site_key(key, 0))
    q = layers.split_heads(q, config.num_heads)
    out = layers.attend(q, k, v, bias, config.dropout, layers.site_key(key, 1))
    out = layers.linear(params["out"], out, layers.site_key(key, 2))
    return layers.dropout(layers.site_key(key, 3), out, config.dropout)


def _feed_forward(config, params, x, key) -> jax.Array:
    y = layers.rms_norm(params["mlp_norm"], x, config.norm_epsilon)
    y = layers.mlp(params["mlp"], y, config.activation, config.dropout, layers.site_key(key, 0))
    return layers.dropout(layers.site_key(key, 1), y, config.dropout)


# --------------------------------------------------------------------------------------------
# Decoder
# --------------------------------------------------------------------------------------------
class Cache(NamedTuple):
    """Self-attention keys and values of the positions decoded so far: [L, N, H, T, K] each."""

    key: jax.Array
    value: jax.Array


def init_cache(config: Config, sequences: int, length: int) -> Cache:
    """An empty cache for ``sequences`` sequences of at most ``length`` positions."""
    shape = (config.decoder_layers, sequences, config.num_heads, length, config.d_kv)
    dtype = jnp.dtype(config.activation_dtype)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def cross_keys_values(
    config: Config, params: Params, encoded: Encoded
) -> tuple[jax.Array, jax.Array]:
    """Every layer's cross-attention keys and values, computed once: [L, B, H, S, K] each."""

    def layer(_, p):
        return None, layers.keys_values(p, encoded.hidden, config.num_heads)

    return jax.lax.scan(layer, None, params["decoder"]["layers"]["cross_attention"])[1]


def decode(
    config: Config,
    params: Params,
    encoded: Encoded,
    tokens: jax.Array,
    key: jax.Array | None = None,
    *,
    segments: jax.Array | None = None,
    cross: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Runs the decoder over whole sequences.

    Args:
      encoded: of B inputs.
      tokens: [N, T] decoder inputs (targets shifted right); N is a multiple of B, and the N // B
        sequences of one input stand together: all choices of an example share its encoder states
        and cross-attention keys and values.
      key: for dropout; None means evaluation.
      segments: [N, T] for packed examples, with ``encoded.segments``.
      cross: from :func:`cross_keys_values`; None computes them layer by layer.
    Returns:
      Hidden states [N, T, D] of the tokens (a decoder prompt's own positions are cut off).
    """
    if (segments is None) != (encoded.segments is None):
        raise InputError(
            "packed examples need both encoder_segment_ids and decoder_segment_ids: with one alone "
            "they would read each other"
        )
    x = _embed(config, params, "decoder", tokens)
    prompt = _prompt_length(params, "decoder")
    if prompt and segments is not None:
        raise InputError("decoder_segment_ids: packed examples cannot share a decoder prompt")
    positions = jnp.arange(x.shape[1])
    self_bias = _decoder_bias(config, params, positions, positions)
    cross_bias = layers.mask_bias(encoded.mask[:, None, None, :])
    if segments is not None and encoded.segments is not None:
        same = segments[:, None, :, None] == segments[:, None, None, :]
        self_bias = self_bias + layers.mask_bias(same)
        same = segments[:, None, :, None] == encoded.segments[:, None, None, :]
        cross_bias = cross_bias + layers.mask_bias(same)

    def layer(x, xs):
        p, k, shared = xs
        y = layers.rms_norm(p["self_attention_norm"], x, config.norm_epsilon)
        key_value = layers.keys_values(
            p["self_attention"], y, config.num_heads, layers.site_key(k, 0)
        )
        x = x + _attention(
            config, p["self_attention"], y, key_value, self_bias, layers.site_key(k, 1)
        )
        x = x + _cross_attention(config, p, x, encoded, shared, cross_bias, layers.site_key(k, 2))
        return x + _feed_forward(config, p, x, layers.site_key(k, 3)), None

    x = layers.dropout(layers.site_key(key, 0), x, config.dropout)
    keys = _layer_keys(layers.site_key(key, 1), config.decoder_layers)
    x, _ = _scan(config, layer, x, (params["decoder"]["layers"], keys, cross))
    x = layers.rms_norm(params["decoder"]["final_norm"], x[:, prompt:], config.norm_epsilon)
    return layers.dropout(layers.site_key(key, 2), x, config.dropout)


def _decoder_bias(config, params, query_positions, key_positions) -> jax.Array:
    """Relative bias plus the causal mask: [1, H, T, S]."""
    bias = layers.relative_bias(
        params["decoder"]["relative_bias"]["embedding"],
        query_positions,
        key_positions,
        bidirectional=False,
        max_distance=config.relative_max_distance,
    )
    return bias + layers.mask_bias(key_positions[None, :] <= query_positions[:, None])


def _cross_attention(config, params, x, encoded, shared, bias, key) -> jax.Array:
    y = layers.rms_norm(params["cross_attention_norm"], x, config.norm_epsilon)
    if shared is None:
        shared = layers.keys_values(
            params["cross_attention"], encoded.hidden, config.num_heads, layers.site_key(key, 0)
        )
    return _attention(config, params["cross_attention"], y, shared, bias, layers.site_key(key, 1))


def decode_step(
    config: Config,
    params: Params,
    encoded: Encoded,
    cross: tuple[jax.Array, jax.Array],
    tokens: jax.Array,
    position: jax.Array | int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Decodes T more positions of N sequences, reading and extending the cache.

    Args:
      tokens: [N, T]; at position 0 a decoder prompt is put in front of them.
      position: index of the first new position, a prompt's rows counted.
    Returns:
      Hidden states [N, T, D] of the tokens, and the cache with the new positions in it.
    """
    # The prompt stands in front of the sequence, so only the first step (a static 0) carries it.
    first = isinstance(position, int) and position == 0
    prompt = _prompt_length(params, "decoder") if first else 0
    source = params if prompt else {**params, "decoder": _without_prompt(params["decoder"])}
    x = _embed(config, source, "decoder", tokens)
    length = cache.key.shape[3]
    query_positions = position + jnp.arange(x.shape[1])
    self_bias = _decoder_bias(config, params, query_positions, jnp.arange(length))
    cross_bias = layers.mask_bias(encoded.mask[:, None, None, :])

    def layer(carry, xs):
        # The cache is carried whole and written in place; as the scan's input and output it would
        # be two arrays, and all of it copied at every step.
        x, cache = carry
        p, shared, index = xs
        y = layers.rms_norm(p["self_attention_norm"], x, config.norm_epsilon)
        new = layers.keys_values(p["self_attention"], y, config.num_heads)
        cache = Cache(
            *(
                jax.lax.dynamic_update_slice(old, fresh[None], (index, 0, 0, position, 0))
                for old, fresh in zip(cache, new, strict=True)
            )
        )
        cached = tuple(jax.lax.dynamic_index_in_dim(c, index, keepdims=False) for c in cache)
        x = x + _attention(config, p["self_attention"], y, cached, self_bias, None)
        x = x + _cross_attention(config, p, x, encoded, shared, cross_bias, None)
        return (x + _feed_forward(config, p, x, None), cache), None

    depth = jnp.arange(config.decoder_layers)
    (x, cache), _ = jax.lax.scan(layer, (x, cache), (params["decoder"]["layers"], cross, depth))
    x = layers.rms_norm(params["decoder"]["final_norm"], x[:, prompt:], config.norm_epsilon)
    return x, cache


def _without_prompt(stack: Params) -> Params:
    return {name: leaf for name, leaf in stack.items() if name != "prompt"}


# --------------------------------------------------------------------------------------------
# Head
# --------------------------------------------------------------------------------------------
def head(
    config: Config, params: Params, hidden: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """Logits [..., V] in float32 from hidden states [..., D]; the key is for LoRA's dropout."""
    hidden = hidden.astype(jnp.float32)
    if config.scale_head:
        hidden = hidden * (config.d_model**-0.5)
    if config.tied_head:
        return layers.matmul(hidden, params["token_embedder"]["embedding"].T)
    return layers.linear(params["lm_head"], hidden, key)


def logits(config: Config, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Logits [B, T, V], float32, of ``decoder_input_tokens`` given ``encoder_input_tokens``."""
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    encoded = encode(config, params, batch, encoder_key)
    hidden = decode(
        config,
        params,
        encoded,
        batch["decoder_input_tokens"],
        decoder_key,
        segments=batch.get("decoder_segment_ids"),
    )
    return head(config, params, hidden, layers.site_key(decoder_key, 3))


def shift_right(config: Config, targets: jax.Array) -> jax.Array:
    """Decoder inputs for targets [..., T]: the start token, then all but the last target."""
    start = jnp.full_like(targets[..., :1], config.decoder_start_id)
    return jnp.concatenate([start, targets[..., :-1]], axis=-1)
