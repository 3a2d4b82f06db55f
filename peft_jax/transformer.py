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
    {encoder,decoder}/layers/relative_bias/embedding [L, buckets, H]         umT5, in place of one
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

from typing import NamedTuple

import jax
import jax.numpy as jnp

from peft_jax import layers, rotary
from peft_jax.architecture import (
    REMAT,
    Config,
    Spec,
    abstract,
    attentions,
    classifier_spec,
    draw,
    init,
    rematerialized,
    specification,
)
from peft_jax.constraints import BATCH, constrain, ways
from peft_jax.errors import InputError
from peft_jax.quantization import is_quantized
from peft_jax.soft_tokens import Placed, overwrite_prompt, place_soft_tokens, spread, take
from peft_jax.stacks import Batch, PerTask, Tail, for_tasks, scan_layers, without_tails
from peft_jax.tree import Params

__all__ = [
    "REMAT",
    "Batch",
    "Cache",
    "Config",
    "Context",
    "Encoded",
    "PerTask",
    "Placed",
    "Prompt",
    "Spec",
    "Tail",
    "View",
    "abstract",
    "attentions",
    "cache_length",
    "classifier_spec",
    "classify",
    "context",
    "cross_keys_values",
    "decode",
    "decode_step",
    "decode_text",
    "draw",
    "encode",
    "for_tasks",
    "head",
    "hidden_states",
    "init",
    "init_cache",
    "logits",
    "place_soft_tokens",
    "places_beside_tokens",
    "prefix_length",
    "shift_right",
    "specification",
    "state_at_mask",
    "verbalize",
    "without_tails",
]


# --------------------------------------------------------------------------------------------
# What all stacks share
# --------------------------------------------------------------------------------------------
def _scan(config: Config, body, carry, xs):
    """``lax.scan`` over layers with the backward pass that ``config.remat`` asks for."""
    return scan_layers(rematerialized(body, config.remat), carry, xs)


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
    # Whole in width: were it split there, as weights over "fsdp" suggest, every product would
    # exchange activations of the whole batch and not the weights of a layer.
    return constrain(_norm(config, params[f"{name}_norm"], x) if post else x, BATCH, None, None)


def _prompt_length(params: Params, stack: str) -> int:
    prompt = params[stack].get("prompt")
    return 0 if prompt is None else prompt.shape[-2]


def prefix_length(params: Params, stack: str) -> int:
    """Rows of the prefix in a stack's self-attention, which a decoder's positions count."""
    attention = params[stack]["layers"].get("self_attention", {})
    return attention["prefix_key"].shape[-2] if "prefix_key" in attention else 0


def places_beside_tokens(params: Params, stack: str) -> int:
    """Most places that prompts, inserted soft tokens and a prefix take in front of what follows."""
    inserted = params[stack].get("soft_places")
    soft = 0 if inserted is None else inserted.shape[-1]
    return _prompt_length(params, stack) + prefix_length(params, stack) + soft


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
    return jnp.asarray(prefix_length(params, stack) if own else 0, jnp.int32)


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
    x = _token_rows(params["token_embedder"]["embedding"], words).astype(dtype)
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
    return constrain(x, BATCH, None, None)


def _token_rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows [N, T, D] of the embedding, whose table no device gathers.

    Each one looks up the entries that it has of the rows that it has, for all tokens that the
    devices of its "fsdp" group read; then entries are exchanged for tokens.
    """
    rows = layers.look_up(table, constrain(tokens, "data", None))
    return constrain(constrain(rows, "data", None, "fsdp"), BATCH, None, None)


def _check_length(config: Config, params: Params, stack: str, length: int) -> None:
    length += prefix_length(params, stack)
    if config.positions == "learned" and length > config.max_positions:
        raise InputError(
            f"{length} positions in the {stack} (rows of a prompt or prefix counted), but this "
            f"{config.family} has learned {config.max_positions}; shorten the sequences"
        )


class Distances(NamedTuple):
    """How far keys are from queries, for the relative bias of a T5.

    Attributes:
      query, key: [T] and [S] int32 positions.
      bidirectional: whether what is behind a query has buckets of its own.
      longest: from which on all distances are one bucket.
      rows: sequences, where each input has a table of its own.
    """

    query: jax.Array
    key: jax.Array
    bidirectional: bool
    longest: int
    rows: int

    def bias(self, table: jax.Array) -> jax.Array:
        """[1 or rows, H, T, S] float32 from a table [buckets, H], or [B, buckets, H] of B inputs.

        Each input's own is repeated for all of its sequences.
        """
        bias = layers.relative_bias(
            table,
            self.query,
            self.key,
            bidirectional=self.bidirectional,
            max_distance=self.longest,
        )
        if len(bias) > 1:
            bias = jnp.repeat(bias, self.rows // len(bias), axis=0)
        return constrain(bias, BATCH, "model", None, None)


class View(NamedTuple):
    """What the queries of one stack see of the keys, for full and for windowed layers.

    Attributes:
      bias: float32, as in ``layers.Keys``.
      local_bias: the same with the window, where some layers have one.
      rotation, local_rotation: of the queries and of their own keys, where positions are rotary.
      prefix_bias: [B or 1, H, T, P], on a prefix that counts as places in front (a T5's relative
        bias); None: it has none.
      distances: where every layer has a relative bias of its own, which ``bias`` lacks then.
    """

    bias: jax.Array
    local_bias: jax.Array | None
    rotation: rotary.Rotation | None
    local_rotation: rotary.Rotation | None
    prefix_bias: jax.Array | None = None
    distances: Distances | None = None

    def of_layer(
        self, params: Params, local: jax.Array | None = None
    ) -> tuple[jax.Array, rotary.Rotation | None]:
        """Bias and rotation of a layer.

        Args:
          params: the layer's, which hold its relative bias where it has one.
          local: a traced bool, or None where all layers are alike.
        """
        if self.distances is not None:
            own = self.distances.bias(params["relative_bias"]["embedding"])
            return self.bias + own, self.rotation
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
    distances = None
    if config.positions == "relative":
        rows = max(len(positions), bias.shape[0] if bias.ndim else 1)
        distances = Distances(
            positions[0],
            key_positions[0],
            stack == "encoder",
            config.relative_max_distance,
            rows,
        )
        if not config.relative_per_layer:
            bias = bias + distances.bias(params[stack]["relative_bias"]["embedding"])
            distances = None
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
    prefix_bias = _prefix_bias(config, params, stack, positions)
    return View(bias, local_bias, turn, local_turn, prefix_bias, distances)


def _prefix_bias(
    config: Config, params: Params, stack: str, positions: jax.Array
) -> jax.Array | None:
    places = params[stack].get("prefix_places")
    if places is None or config.positions != "relative":
        return None
    if config.relative_per_layer:
        raise InputError(
            "a prefix that counts as places in front needs the relative bias that all layers "
            "share; this model has one for each layer"
        )
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
    """Keys and values [B, H_kv, S, K] of an attention over x [B, S, D] (or [M, B, S, D]: copies).

    Heads come before positions, as the products of ``layers.attend`` read them: keys and values
    that are kept (a cache, an input's cross-attention) are not transposed again at every step.
    """
    k = layers.split_linear(params["key"], x, layers.site_key(key, 0))
    v = layers.split_linear(params["value"], x, layers.site_key(key, 1))
    k, v = (_by_heads(each, config.kv_heads) for each in (k, v))
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


def _by_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, H*K] -> [B, T, H, K], whole heads on a device."""
    return constrain(layers.split_heads(x, heads), BATCH, None, "model", None)


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
    q = _by_heads(q, config.num_heads)
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
        return take(self.hidden, self.places)


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
    types = None if types is None else spread(types, places, tokens.shape[1], 0)
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
        x = overwrite_prompt(p, x)
        own = None

        def attention(y):
            nonlocal own
            own = _keys_values(config, p["attention"], y, view.rotation, layers.site_key(k, 0))
            parts = [layers.Keys(own[0], own[1], view.of_layer(p)[0])]
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
    hidden = _copies(config, params, encoded.hidden)

    def layer(_, p):
        return None, _keys_values(config, p, hidden)

    return scan_layers(layer, None, params["decoder"]["layers"]["cross_attention"])[1]


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
    if encoded is not None and cross is None:
        encoded = encoded._replace(hidden=_copies(config, params, encoded.hidden))

    def layer(x, xs):
        p, k, shared, read, local = xs
        x = overwrite_prompt(p, x)
        bias, turn = view.of_layer(p, local)
        own = None

        def self_attention(y):
            nonlocal own
            own = _keys_values(config, p["self_attention"], y, turn, layers.site_key(k, 0))
            parts = [layers.Keys(own[0], own[1], bias)]
            if read is not None and prompt_view is not None:
                parts.append(layers.Keys(read[0], read[1], prompt_view.of_layer(p, local)[0]))
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
    stack = own["layers"]
    of_tasks = (
        "prompt_mask" in own
        or "prefix_mask" in stack["self_attention"]
        or ("relative_bias" in own and own["relative_bias"]["embedding"].ndim == 3)
        or ("relative_bias" in stack and stack["relative_bias"]["embedding"].ndim == 4)
    )
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
            both_ways = spread(both_ways, places, tokens.shape[1], 1)
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
    return _finish(config, params["decoder"], take(x[:, rows:], places), key)


def _ends_of_inputs(both_ways: jax.Array | None) -> jax.Array | None:
    """[B] index of the last token that all others see: where the input of a prefix LM ends."""
    if both_ways is None:
        return None
    return both_ways.shape[1] - 1 - jnp.argmax(both_ways[:, ::-1].astype(bool), axis=1)


def _copies(config: Config, params: Params, hidden: jax.Array) -> jax.Array:
    """The encoder's result [B, S, D] as [M, B, S, D], a copy for each part of "model".

    A part makes the keys of its heads from its own copy, whose gradients all layers of the decoder
    add up where they are; one exchange sums them in the end, and not one in each layer.
    """
    parts = ways("model")
    kernel = params["decoder"]["layers"]["cross_attention"]["key"]["kernel"]
    if parts == 1 or config.kv_heads % parts or is_quantized(kernel):
        return hidden
    copies = jnp.broadcast_to(hidden[None], (parts, *hidden.shape))
    return constrain(copies, "model", BATCH, None, None)


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
        x = overwrite_prompt(p, x)
        bias, turn = view.of_layer(p, local)

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
                parts.append(layers.Keys(read[0], read[1], prompt_view.of_layer(p, local)[0]))
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
    # The loss reduces over the vocabulary in parts.
    return constrain(out, BATCH, *(None,) * (out.ndim - 2), "model")


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
    hidden, head_key = hidden_states(config, params, batch, key)
    return head(config, params, hidden, head_key)


def hidden_states(
    config: Config, params: Params, batch: Batch, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """What :func:`logits` gives to the head: states [B, T, D], and the head's key for dropout."""
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
    return hidden, layers.site_key(decoder_key, 3)


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
