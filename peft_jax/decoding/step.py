"""Reading the input, and one decoding step: a new token of every sequence through the decoder.

What is read once (:class:`Read`) is shared by all sequences of an input and never written. A
sequence's own keys and values are in a cache that is written in place, one place a step; a beam
search never moves what is in it (see :func:`new_cache`).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import layers, transformer
from peft_jax.constraints import BATCH, constrain
from peft_jax.transformer import Batch, Config, Context, Prompt, View
from peft_jax.tree import Params

# Lengths of inputs are rounded up to a multiple of this for the loop, so that most lengths find a
# compiled one. Masked keys cost little beside the weights that a step reads.
BUCKET = 32

# Of a decoder's layers: one tree with an axis [L] in front, or a list of trees without it.
Layers = Any


class Read(NamedTuple):
    """What the decoder has read of B inputs.

    Attributes:
      start: [B] int32, the token that the first step decodes: the start token, or the last of a
        decoder-only model's input.
      position: [B] int32, its position.
      mask: [B, S] bool, the encoder's places; None in a decoder-only model.
      cross: keys and values of the encoder's places, [L, B, H_kv, S, K] each, or a list of L pairs
        without the axis.
      prompt: what the decoder itself has read: a decoder-only model's input, and a soft prompt; its
        key and value are like ``cross``.
      tokens: [B, P] int32, the input's tokens that the decoder has read, and the start token, with
        padding in front; known: [B, P] bool, which are tokens.
    """

    start: jax.Array
    position: jax.Array
    mask: jax.Array | None
    cross: Any
    prompt: Prompt | None
    tokens: jax.Array
    known: jax.Array


# --------------------------------------------------------------------------------------------
# Layers one by one
# --------------------------------------------------------------------------------------------
def separate_layers(params: Params) -> list[Params] | None:
    """The decoder's layers one by one, without a copy; None where the stack is to be kept whole.

    Inside a scan a CPU copies every layer's weights at every step, which takes as long as using
    them: the loop runs a list of layers instead. An accelerator reads them where they are, and one
    compiled body for all layers takes less time to compile.
    """
    leaves, structure = jax.tree.flatten(transformer._promptless(params["decoder"]["layers"]))
    if not all(_lies_in_host_memory(leaf) for leaf in leaves):
        return None
    device = next(iter(leaves[0].devices()))
    # A view of a whole array's memory, which device_put takes over as it is.
    arrays = [np.asarray(leaf) for leaf in leaves]
    depth = len(arrays[0])
    views = jax.device_put([array[i] for i in range(depth) for array in arrays], device)
    width = len(arrays)
    return [jax.tree.unflatten(structure, views[i * width : (i + 1) * width]) for i in range(depth)]


def _lies_in_host_memory(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return False
    devices = leaf.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def without_layers(params: Params) -> Params:
    """What a step reads beside the layers: embeddings, biases of positions, norms and the head."""
    own = {
        n: x for n, x in params["decoder"].items() if n not in ("layers", "prompt", "prompt_mask")
    }
    return {name: leaf for name, leaf in params.items() if name != "encoder"} | {"decoder": own}


def _at(tree: Any, layer: int) -> Any:
    return jax.tree.map(lambda x: x[layer], tree)


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
@functools.partial(jax.jit, static_argnums=(0, 3))
def read(config: Config, params: Params, batch: Batch, separate: bool) -> Read:
    """Runs the encoder, or a decoder-only model, over ``encoder_input_tokens`` once.

    Args:
      separate: whether keys and values are wanted layer by layer.
    """
    context = transformer.context(config, params, batch, stack_cross=not separate)
    if context.prompt is not None:
        tokens, known = _without_gaps(config, batch)
        return Read(
            context.start,
            context.position,
            mask=None,
            cross=None,
            prompt=_fill_prompt(context.prompt, separate),
            tokens=tokens,
            known=known,
        )
    assert context.encoded is not None
    prompt, position = _read_soft_prompt(config, params, context)
    cross: Any = context.cross
    if separate:
        stack = params["decoder"]["layers"]["cross_attention"]
        cross = [
            transformer._keys_values(config, _at(stack, i), context.encoded.hidden)
            for i in range(config.decoder_layers)
        ]
    return Read(
        context.start,
        position,
        mask=_fill(context.encoded.mask, 1),
        cross=jax.tree.map(lambda x: _fill(x, -2), cross),
        prompt=None if prompt is None else _fill_prompt(prompt, separate),
        tokens=context.start[:, None],
        known=jnp.ones((len(context.start), 1), bool),
    )


def _fill(x: jax.Array, axis: int, *, in_front: bool = False) -> jax.Array:
    """Zeros along an axis up to a multiple of BUCKET."""
    widths = [(0, 0)] * x.ndim
    more = -x.shape[axis] % BUCKET
    widths[axis] = (more, 0) if in_front else (0, more)
    return jnp.pad(x, widths)


def _fill_prompt(prompt: Prompt, separate: bool) -> Prompt:
    kept: list[Any] = [_fill(x, -2) for x in prompt[:2]]
    if separate:
        kept = [[x[i] for i in range(len(x))] for x in kept]
    return Prompt(kept[0], kept[1], _fill(prompt.mask, 1), _fill(prompt.positions, 1))


def _without_gaps(config: Config, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Tokens of a decoder-only model's input moved together at the end of the row, and a mask."""
    tokens = batch["encoder_input_tokens"]
    mask = batch.get("encoder_mask")
    mask = tokens != config.pad_id if mask is None else mask.astype(bool)
    mask = mask & (tokens >= 0)  # a soft token is no word that could be repeated
    order = jnp.argsort(mask, axis=1, stable=True)
    tokens, mask = (jnp.take_along_axis(x, order, axis=1) for x in (tokens, mask))
    return _fill(tokens, 1, in_front=True), _fill(mask, 1, in_front=True)


def _read_soft_prompt(
    config: Config, params: Params, context: Context
) -> tuple[Prompt | None, jax.Array]:
    """An encoder-decoder model's soft prompt in the decoder, and the position [B] behind it.

    The prompt's rows see the encoder's places and each other, and all sequences of an input share
    what was computed of them.
    """
    own, b = params["decoder"], len(context.start)
    if "prompt" not in own:
        return None, context.position
    assert context.encoded is not None
    nothing = jnp.zeros((b, 0), jnp.int32)
    mask = transformer._own_places(params, nothing)
    behind = jnp.broadcast_to(jnp.sum(mask, axis=1), (b,)) + context.position
    positions = transformer._positions(config, params, "decoder", mask)
    if config.positions == "relative":
        # Only distances count, and where prompts of several lengths are filled it is in front.
        behind = jnp.full(b, mask.shape[1])
        positions = jnp.arange(mask.shape[1])[None]
    view = transformer._view(
        config, params, "decoder", positions, positions, transformer._causal(mask)
    )
    x = transformer._embed(config, params, "decoder", nothing, positions)
    bias = layers.mask_bias(context.encoded.mask[:, None, None, :])
    _, kept = transformer._run_decoder(
        config, params, x, view, None, context=context, cross_bias=bias, keep=True
    )
    mask, positions = (jnp.broadcast_to(each, (b, mask.shape[1])) for each in (mask, positions))
    assert kept is not None
    return Prompt(kept[0], kept[1], mask, positions), behind


# --------------------------------------------------------------------------------------------
# The cache
# --------------------------------------------------------------------------------------------
def new_cache(config: Config, stack: Layers, rows: int, places: int, group: int = 1) -> Any:
    """An empty cache: keys and values [L, rows, H_kv, places * group, K], or a list without L.

    Args:
      rows: sequences, or inputs where the ``group`` beams of an input share a row. Their keys stand
        side by side at every place, and which of them a beam comes from is a mask (see
        :func:`advance`): when beams are chosen anew a table of integers changes, and no key is
        copied. A row's keys are then read once for all of its beams.
    """
    dtype = jnp.dtype(config.activation_dtype)
    shape: tuple[int, ...] = (rows, config.kv_heads, places * group, config.d_kv)
    if isinstance(stack, list):
        return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in stack]
    empty = jnp.zeros((config.decoder_layers, *shape), dtype)
    empty = constrain(empty, None, BATCH, "model", None, None)
    return empty, empty


def _write(
    new: tuple[jax.Array, jax.Array], cache: tuple[jax.Array, jax.Array], place: jax.Array, *layer
) -> tuple[jax.Array, jax.Array]:
    """The cache with keys and values [N, H_kv, 1, K] of new tokens at their place, and layer."""
    rows = cache[0].shape[-4]

    def written(old, fresh):
        fresh = fresh.reshape(rows, -1, *fresh.shape[1:2], fresh.shape[-1]).swapaxes(1, 2)
        start = (*layer, 0, 0, place * fresh.shape[2], 0)
        return jax.lax.dynamic_update_slice(old, fresh[(None,) * len(layer)], start)

    return written(cache[0], new[0]), written(cache[1], new[1])


# --------------------------------------------------------------------------------------------
# The step
# --------------------------------------------------------------------------------------------
def advance(
    config: Config,
    params: Params,
    stack: Layers,
    context: Read,
    tokens: jax.Array,
    place: jax.Array,
    cache: Any,
    ancestors: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Decodes one more token of N sequences, reading and extending the cache.

    Args:
      params: :func:`without_layers`; ``stack``: its layers, or a list of them.
      context: of B inputs; N is a multiple of B, and an input's sequences stand together.
      tokens: [N] int32.
      place: [] int32, the token's index in the cache.
      ancestors: [rows, beams, places] int32: which beam of its row each beam's keys at a place were
        written by; None where every sequence has a row of its own.
    Returns:
      Hidden states [N, D], and the cache with the new place in it.
    """
    n = len(tokens)
    positions = jnp.repeat(context.position, n // len(context.position))[:, None] + place
    rows = cache[0][0].shape[-4]
    places = cache[0][0].shape[-2] * rows // n
    view = _own_view(config, params, positions, place, places, ancestors)
    prompt_view = cross_bias = None
    if context.prompt is not None:
        prompt_view = transformer._view_of_prompt(config, params, context.prompt, positions)
    if context.mask is not None:
        cross_bias = layers.mask_bias(context.mask[:, None, None, :])
    x = transformer._embed(config, params, "decoder", tokens[:, None], positions)

    def layer(x, p, cross, prompt, local, extend):
        bias, turn = view.of_layer(p, local)

        def self_attention(y):
            own = extend(transformer._keys_values(config, p["self_attention"], y, turn))
            parts = [layers.Keys(own[0], own[1], bias)]
            if prompt is not None and prompt_view is not None:
                parts.append(layers.Keys(prompt[0], prompt[1], prompt_view.of_layer(p, local)[0]))
            parts += transformer._prefix(config, p["self_attention"], y, view.prefix_bias)
            return transformer._attention(config, p["self_attention"], y, parts, turn, None)

        x = transformer._residual(config, p, "self_attention", x, self_attention)
        if cross is not None:
            x = transformer._cross_attention(config, p, x, None, cross, cross_bias, None)
        return transformer._feed_forward(config, p, x, None)

    run = _run_list if isinstance(stack, list) else _run_stack
    x, cache = run(config, layer, x, stack, context, cache, place)
    return transformer._finish(config, params["decoder"], x, None)[:, 0], cache


def _run_list(config, layer, x, stack, context, cache, place):
    cache = list(cache)
    flags = transformer._local_flags(config, "decoder")
    for i, p in enumerate(stack):

        def extend(new, i=i):
            cache[i] = _write(new, cache[i], place)
            return cache[i]

        cross = context.cross and context.cross[i]
        prompt = context.prompt and (context.prompt.key[i], context.prompt.value[i])
        local = None if flags is None else i in config.local_layers
        x = layer(x, p, cross, prompt, local, extend)
    return x, cache


def _run_stack(config, layer, x, stack, context, cache, place):
    def body(carry, xs):
        # The cache is carried whole and written in place; as the scan's input and output it would
        # be two arrays, and all of it copied at every step.
        x, cache = carry
        p, cross, prompt, local, index = xs

        def extend(new):
            nonlocal cache
            cache = _write(new, cache, place, index)
            return [jax.lax.dynamic_index_in_dim(c, index, keepdims=False) for c in cache]

        x = layer(x, p, cross, prompt, local, extend)
        return (x, cache), None

    prompt = context.prompt and context.prompt[:2]
    flags = transformer._local_flags(config, "decoder")
    xs = (stack, context.cross, prompt, flags, jnp.arange(config.decoder_layers))
    return jax.lax.scan(body, (x, cache), xs)[0]


def _own_view(
    config: Config,
    params: Params,
    positions: jax.Array,
    place: jax.Array,
    places: int,
    ancestors: jax.Array | None,
) -> View:
    """The view of new tokens at ``positions`` [N, 1] on the cache's places up to their own."""
    written = jnp.arange(places) <= place
    if ancestors is None:
        at, visible = positions, written[None, None, None, :]
        keys = at - place + jnp.arange(places)
    else:
        rows, beams, _ = ancestors.shape
        at = positions.reshape(rows, beams)[:, :1]
        keys = jnp.repeat(at - place + jnp.arange(places), beams, axis=1)
        visible = (ancestors[..., None] == jnp.arange(beams)) & written[:, None]
        visible = visible.reshape(rows, 1, beams, places * beams)
    view = transformer._view(config, params, "decoder", at, keys, visible)
    if ancestors is None:
        return view
    # Keys and queries of all beams are turned, and each by its own position.
    turns = transformer._view(config, params, "decoder", positions, positions, jnp.ones((), bool))
    return view._replace(rotation=turns.rotation, local_rotation=turns.local_rotation)
