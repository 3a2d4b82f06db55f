"""The building blocks that every backbone is made of, and the trainable leaves that they look for.

A block reads a small dict of parameters. Beside its own leaves it looks for optional ones, which
is all that a PEFT method ever adds; no block knows a method or its configuration:

====================  =========================  ==============================================
leaf                  beside                     effect
====================  =========================  ==============================================
``input_scale``       ``kernel`` [in, out]       x *= input_scale, for the kernel and for LoRA
``lora_a``/``lora_b``  ``kernel`` [in, out]      output += (x @ lora_a) @ lora_b
``lora_dropout``      ``lora_a``                 rate of the dropout on x in that branch alone
``magnitude``         ``kernel`` [in, out]       output *= magnitude (after LoRA)
``bias``              ``kernel`` [in, out]       output += bias
``ia3``               ``kernel`` [in, out]       output *= ia3 (after all of these)
``ia3``               ``wi*``, ``wo`` of an MLP  hidden activations *= ia3, just before ``wo``
``prefix_key``,       ``key`` and ``value`` of   keys and values [P, H_kv*K] of no token that every
``prefix_value``      an attention               query sees too
``down``, ``up``, ..  in ``<sub-layer>_adapter`` a bottleneck beside or behind a sub-layer
``prompt``            a stack's ``layers``       rows in front of the embedded tokens
``prompt``            in a stack's ``layers``    what stands in those rows at each layer's input
``soft_tokens``       a stack's ``layers``       what the token -2 - k reads: its row k
``soft_places``       ``soft_tokens``            where a row is inserted by itself (`transformer`)
====================  =========================  ==============================================

All of these, and a backbone's own leaves, may have an axis [B] in front: one leaf for each input of
the batch (``transformer.for_tasks``).

Shapes: B inputs, N sequences (B times the choices of an input), T query and S key positions,
H heads of K entries (H_kv of them with keys of their own), D = d_model, F = d_ff. Softmax, norm
statistics and logits are float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from peft_jax import quantization
from peft_jax.constraints import BATCH, constrain
from peft_jax.errors import InputError
from peft_jax.tree import Params

# Added to the logits of masked positions. Finite, so that a row with every position masked (a
# padding example in the last batch) gives a uniform softmax and no NaN.
MASKED = -1e9


# --------------------------------------------------------------------------------------------
# Matrix products with frozen weights
# --------------------------------------------------------------------------------------------
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``x @ kernel`` in x's dtype; [..., in] x [in, out] -> [..., out].

    With equal dtypes this is a plain product. A kernel of lower precision than x (bfloat16 weights
    under float32 activations) is used as it is, with float32 accumulation: x is rounded to the
    kernel's dtype, never the kernel converted up. Left to itself, the backward pass would convert
    the kernel, and inside a scan keep that second copy of the whole model.

    A kernel [B, in, out] is each input's own. A quantised one is unpacked inside the product.
    """
    if quantization.is_quantized(kernel):
        return quantization.matmul(x, kernel)
    if kernel.ndim == 3:
        return _times(x, kernel.astype(x.dtype))
    if x.dtype == kernel.dtype:
        return x @ kernel
    return _mixed_matmul(x, kernel)


def _contract(x, kernel, axis):
    dims = (((x.ndim - 1,), (axis,)), ((), ()))
    return jax.lax.dot_general(
        x.astype(kernel.dtype), kernel, dims, preferred_element_type=jnp.float32
    ).astype(x.dtype)


@jax.custom_vjp
def _mixed_matmul(x, kernel):
    return _contract(x, kernel, 0)


def _mixed_matmul_forward(x, kernel):
    # `perturbed` is known while tracing: a frozen kernel needs neither its gradient nor x for it.
    saved = x.value if kernel.perturbed else None
    return _contract(x.value, kernel.value, 0), (saved, kernel.value)


def _mixed_matmul_backward(residuals, cotangent):
    x, kernel = residuals
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        aval: Any = cotangent.aval
        cotangent = jnp.zeros(aval.shape, aval.dtype)
    d_x = _contract(cotangent, kernel, 1)
    if x is None:
        return d_x, None
    d_kernel = jnp.einsum(
        "ni,no->io",
        x.reshape(-1, x.shape[-1]),
        cotangent.reshape(-1, cotangent.shape[-1]),
        preferred_element_type=jnp.float32,
    )
    return d_x, d_kernel.astype(kernel.dtype)


_mixed_matmul.defvjp(_mixed_matmul_forward, _mixed_matmul_backward, symbolic_zeros=True)


PROJECTION, HIDDEN = "projection", "hidden"
"""Names under which the backward pass may keep a product: of the hidden units, and all others."""


def linear(
    params: Params, x: jax.Array, key: jax.Array | None = None, *, name: str = PROJECTION
) -> jax.Array:
    """A projection with its optional scales, LoRA factors, bias and (IA)³ vector.

    Args:
      params: ``kernel`` [in, out] and any of ``input_scale`` [in], ``lora_a`` [in, r], ``lora_b``
        [r, out], ``lora_dropout`` [], ``magnitude`` [out], ``bias`` [out], ``ia3`` [out]; each may
        have an axis [B] in front, for adapters that differ between the inputs of a batch.
      x: [N, ..., in].
      key: for LoRA's dropout; None means evaluation.
      name: of the kernel's product, for ``architecture.REMAT``.
    """
    if "input_scale" in params:
        x = x * per_row(params["input_scale"], x).astype(x.dtype)
    # Before what is trained: its gradients read the product.
    y = checkpoint_name(matmul(x, params["kernel"]), name)
    if "lora_a" in params:
        inputs = x
        if key is not None and "lora_dropout" in params:
            inputs = dropout(key, x, per_row(params["lora_dropout"], x, 0))
        low_rank = _times(inputs, params["lora_a"].astype(x.dtype))
        y = y + _times(low_rank, params["lora_b"].astype(x.dtype))
    if "magnitude" in params:
        y = y * per_row(params["magnitude"], y).astype(x.dtype)
    if "bias" in params:
        y = y + per_row(params["bias"], y).astype(x.dtype)
    if "ia3" in params:
        y = y * per_row(params["ia3"], y).astype(x.dtype)
    return y


# The last axis of these counts a projection's outputs.
_OF_OUTPUTS = ("kernel", "lora_b", "magnitude", "bias", "ia3")


def split_linear(params: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """:func:`linear` of x [B, S, in], or of M copies [M, B, S, in]: each makes its M-th of outputs.

    Returns:
      [B, S, out], of copies as of one.
    """
    if x.ndim == 3:
        return linear(params, x, key)
    copies = len(x)
    parts: Params = {}
    axes: dict[str, int | None] = {}
    for name, leaf in params.items():
        parts[name], axes[name] = leaf, None
        if name in _OF_OUTPUTS:
            parts[name] = leaf.reshape(*leaf.shape[:-1], copies, leaf.shape[-1] // copies)
            axes[name] = leaf.ndim - 1
    y = jax.vmap(lambda p, copy: linear(p, copy, key), in_axes=(axes, 0))(parts, x)
    return jnp.moveaxis(y, 0, 2).reshape(*y.shape[1:3], -1)


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table [V, D], or of each input's own [B, V, D], for ids [N, T]: [N, T, D]."""
    if table.ndim == 2:
        return table[ids]
    folded = ids.reshape(len(table), -1)
    return jax.vmap(lambda rows, i: rows[i])(table, folded).reshape(*ids.shape, table.shape[-1])


def bottleneck(params: Params, x: jax.Array) -> jax.Array:
    """Bottleneck adapters on x [N, T, D]: the sum of up(activation(down(x))) (Houlsby et al. 2019).

    Args:
      params: activation -> ``down`` [D, m], ``up`` [m, D] and optionally ``down_bias`` [m] and
        ``up_bias`` [D].
    """
    total = None
    for activation, own in params.items():
        hidden = _times(x, own["down"].astype(x.dtype))
        if "down_bias" in own:
            hidden = hidden + per_row(own["down_bias"], x).astype(x.dtype)
        y = _times(ACTIVATIONS[activation](hidden), own["up"].astype(x.dtype))
        if "up_bias" in own:
            y = y + per_row(own["up_bias"], x).astype(x.dtype)
        total = y if total is None else total + y
    assert total is not None
    return total


def per_row(leaf: jax.Array, x: jax.Array, ndim: int = 1) -> jax.Array:
    """A leaf of ``ndim`` axes to broadcast against x [N, ...]: one for all, or one for each row.

    Args:
      leaf: as a layer reads it, or [B, ...] with N a multiple of B: the leaf of each input, whose
        N // B sequences stand together.
    """
    if leaf.ndim == ndim:
        return leaf
    repeated = jnp.repeat(leaf, x.shape[0] // leaf.shape[0], axis=0)
    return repeated.reshape(x.shape[0], *(1,) * (x.ndim - 1 - ndim), *leaf.shape[1:])


def _times(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x [N, ..., in] times [in, out], or times each input's own [B, in, out]."""
    if matrix.ndim == 2:
        return x @ matrix
    folded = x.reshape(matrix.shape[0], -1, x.shape[-1]) @ matrix
    return folded.reshape(*x.shape[:-1], matrix.shape[-1])


# Leaves of a projection that a plain kernel and bias can express.
FOLDABLE = frozenset(
    ("kernel", "bias", "input_scale", "lora_a", "lora_b", "lora_dropout", "magnitude", "ia3")
)


def fold_linear(params: Params) -> Params:
    """The plain ``kernel`` (and ``bias``) that computes what :func:`linear` does at evaluation.

    Sums and products are taken in float32 and rounded once. Leading (layer) axes are kept.

    Raises:
      InputError: the kernel is quantised; what is folded into it would be rounded away.
    """
    kernel = params["kernel"]
    if quantization.is_quantized(kernel):
        raise InputError(
            "an adapter cannot be folded into quantised kernels: load the backbone without "
            "quantising it, or fold into backbone.dequantize()"
        )
    folded = kernel.astype(jnp.float32)
    bias = params.get("bias")
    bias = None if bias is None else bias.astype(jnp.float32)
    if "input_scale" in params:
        folded = folded * params["input_scale"][..., :, None]
    if "lora_a" in params:
        # An accelerator would round the factors to bfloat16, once and for all.
        a = params["lora_a"]
        if "input_scale" in params:
            a = a * params["input_scale"][..., :, None]
        folded = folded + jnp.matmul(a, params["lora_b"], precision="highest")
    if "magnitude" in params:
        folded = folded * params["magnitude"][..., None, :]
    if "ia3" in params:
        folded = folded * params["ia3"][..., None, :]
        bias = None if bias is None else bias * params["ia3"]
    out = {"kernel": folded.astype(kernel.dtype)}
    if bias is not None:
        out["bias"] = bias.astype(params["bias"].dtype)
    return out


# --------------------------------------------------------------------------------------------
# Dropout
# --------------------------------------------------------------------------------------------
def dropout(key: jax.Array | None, x: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Zeroes entries with probability ``rate`` and scales the others up; identity without a key."""
    if key is None or (isinstance(rate, float | int) and rate == 0):
        return x
    rate = jnp.asarray(rate, jnp.float32)
    # 24 bits are exact in float32: the comparison draws the rate to within 2**-24.
    uniform = (_hash_bits(key, x.shape) >> 8).astype(jnp.float32) * 2.0**-24
    scaled = x * (1 / (1 - rate)).astype(x.dtype)
    return jnp.where(uniform >= rate, scaled, jnp.zeros((), x.dtype))


def _hash_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """32 random bits per entry: a hash of its index and the key, good enough for masks.

    jax.random's Threefry is a loop of twenty rounds that is compiled again at each of the dozen
    places of a layer where dropout acts, and again where the backward pass recomputes them: three
    quarters of a small model's compile time. This is some ten integer operations (the two-multiply
    finaliser "lowbias32", applied once with each word of the key) which fuse into the mask: no
    bits are stored, and an entry's bits depend on its index alone, however the array is sharded.
    """
    words = jax.random.key_data(key).reshape(-1)
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride & 0xFFFFFFFF)
        stride *= shape[axis]
    return _lowbias32(_lowbias32(index + words[0]) ^ words[1])


def _lowbias32(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words; an input bit flips each output bit about half the time."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def site_key(key: jax.Array | None, site: int) -> jax.Array | None:
    """A key of its own for each place in a layer where dropout acts.

    Made as the bits are, by a hash: ``jax.random.fold_in`` would stand at every site of a layer
    with some hundred scalar instructions, and again where the backward pass recomputes it.
    """
    if key is None:
        return None
    words = jax.random.key_data(key)
    # Multiples of the golden ratio are far apart: neighbouring sites, and words, start far apart.
    places = np.arange(1 + site * words.size, 1 + (site + 1) * words.size, dtype=np.uint64)
    offsets = (places * 0x9E3779B9).astype(np.uint32).reshape(words.shape)
    mixed = _lowbias32(words + offsets)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(mixed, impl=jax.random.key_impl(key)) if typed else mixed


# --------------------------------------------------------------------------------------------
# Norms, activations, feed-forward
# --------------------------------------------------------------------------------------------
def rms_norm(
    params: Params, x: jax.Array, epsilon: float, *, unit_offset: bool = False
) -> jax.Array:
    """x / rms(x) * scale, without mean (Zhang & Sennrich 2019; T5's LayerNorm).

    Args:
      params: ``scale`` [D], and a ``bias`` [D] where a method trains one.
      unit_offset: the factor is 1 + scale, multiplied in float32, as Gemma keeps it.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    scale = per_row(params["scale"], x)
    if unit_offset:
        y = (y * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    else:
        y = y.astype(x.dtype) * scale.astype(x.dtype)
    return y + per_row(params["bias"], x).astype(x.dtype) if "bias" in params else y


def layer_norm(params: Params, x: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / deviation * scale + bias over the last axis, in float32 (Ba et al. 2016)."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    scale, bias = (per_row(params[n], x).astype(jnp.float32) for n in ("scale", "bias"))
    return (y * scale + bias).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


def mlp(
    params: Params, x: jax.Array, activation: str, rate: float, key: jax.Array | None
) -> jax.Array:
    """wo(act(wi x)), or wo(act(wi_0 x) * (wi_1 x)) where the feed-forward is gated. [..., D].

    An ``ia3`` leaf [F] scales the hidden activations just before ``wo``. That is the paper's
    l_ff (Liu et al. 2022, section 3.3); for gated layers it equals scaling ``wi_1``'s output, as
    the released T-Few code does.
    """
    act = ACTIVATIONS[activation]
    if "wi" in params:
        hidden = act(linear(params["wi"], x, site_key(key, 0), name=HIDDEN))
    else:
        gate = act(linear(params["wi_0"], x, site_key(key, 0), name=HIDDEN))
        hidden = gate * linear(params["wi_1"], x, site_key(key, 1), name=HIDDEN)
    if "ia3" in params:
        hidden = hidden * per_row(params["ia3"], hidden).astype(x.dtype)
    hidden = constrain(hidden, BATCH, *(None,) * (hidden.ndim - 2), "model")
    hidden = dropout(site_key(key, 2), hidden, rate)
    return linear(params["wo"], hidden, site_key(key, 3))


# --------------------------------------------------------------------------------------------
# Attention
# --------------------------------------------------------------------------------------------
def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[..., T, H*K] -> [..., T, H, K]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


class Keys(NamedTuple):
    """Keys and values [B, H_kv, S, K] of some positions, and float32 ``bias`` on their logits.

    The bias broadcasts to [B, H, T, S], with T counted as :func:`attend` folds the queries.
    """

    key: jax.Array
    value: jax.Array
    bias: jax.Array


def attend(
    q: jax.Array,
    parts: Sequence[Keys],
    rate: float,
    key: jax.Array | None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> jax.Array:
    """softmax(scale q k + bias) v over the keys of all parts together.

    The N // B sequences that belong to one input of a part are folded into the query axis, and so
    are the H // H_kv heads that share a key head (Ainslie et al. 2023): no key or value is ever
    repeated. Each part's softmax is taken alone and the results are weighted by their normalisers,
    so that parts of different B never stand in one array.

    Args:
      q: [N, T, H, K]; N is a multiple of each part's B.
      parts: what is attended to.
      rate, key: dropout on the attention weights.
      scale: of the logits; 1 in a T5, which folds 1/sqrt(K) into its initialisation.
      softcap: logits are bent to softcap * tanh(logits / softcap) before the bias (Gemma 2).
    Returns:
      [N, T, H*K] in q's dtype.
    """
    n, t, heads, width = q.shape
    if len(parts) == 1:
        logits = _logits(q, parts[0], scale, softcap)
        weights = jax.nn.softmax(logits, axis=-1).astype(parts[0].value.dtype)
        weights = dropout(key, weights, rate)
        return _weighted(weights, parts[0].value).reshape(n, t, heads * width)
    tops, sums, outs = [], [], []
    for site, part in enumerate(parts):
        logits = _logits(q, part, scale, softcap)
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        weights = jnp.exp(logits - top)
        sums.append(_per_query(jnp.sum(weights, axis=-1), q.shape))
        tops.append(_per_query(top[..., 0], q.shape))
        weights = dropout(site_key(key, site), weights.astype(part.value.dtype), rate)
        outs.append(_weighted(weights, part.value).reshape(q.shape))
    top = functools.reduce(jnp.maximum, tops)
    shares = [jnp.exp(each - top) for each in tops]
    total = sum(share * each for share, each in zip(shares, sums, strict=True))
    weighted = [
        out.astype(jnp.float32) * (share / total)[..., None]
        for out, share in zip(outs, shares, strict=True)
    ]
    return functools.reduce(jnp.add, weighted).astype(q.dtype).reshape(n, t, heads * width)


def _logits(q: jax.Array, part: Keys, scale: float, softcap: float | None) -> jax.Array:
    """[B, H, T', S] float32, or [B, H_kv, H // H_kv, T', S] where heads share keys."""
    b, kv_heads, _, width = part.key.shape
    heads = q.shape[2]
    q = q.reshape(b, -1, heads, width)
    if heads == kv_heads:
        logits = jnp.einsum("bthk,bhsk->bhts", q, part.key, preferred_element_type=jnp.float32)
        bias = part.bias
    else:
        q = q.reshape(*q.shape[:2], kv_heads, heads // kv_heads, width)
        logits = jnp.einsum("btngk,bnsk->bngts", q, part.key, preferred_element_type=jnp.float32)
        bias = part.bias[:, :, None]
        if part.bias.shape[1] > 1:
            bias = part.bias.reshape(len(part.bias), kv_heads, -1, *part.bias.shape[2:])
    if scale != 1:
        logits = logits * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return logits + bias


def _weighted(weights: jax.Array, value: jax.Array) -> jax.Array:
    """The weighted values, queries in front: [B, T', H, K], heads as in q."""
    if weights.ndim == 4:
        return jnp.einsum("bhts,bhsk->bthk", weights, value)
    return jnp.einsum("bngts,bnsk->btngk", weights, value)


def _per_query(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, H, T'] or [B, H_kv, G, T'] -> [N, T, H]."""
    return jnp.moveaxis(x, -1, 1).reshape(shape[:3])


def mask_bias(mask: jax.Array) -> jax.Array:
    """0 where the mask is true, a large negative number elsewhere; float32."""
    return jnp.where(mask, 0.0, MASKED).astype(jnp.float32)


# --------------------------------------------------------------------------------------------
# T5's relative position bias
# --------------------------------------------------------------------------------------------
def _bucket_of_distance(bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of key - query for -max_distance .. max_distance (further distances share the last).

    Half of the buckets are exact, the others grow logarithmically up to ``max_distance`` (Raffel
    et al. 2020, section 2.1). Computed in float32 as the public code does, so that the edges of
    the buckets agree; a table, so that nothing is computed on the device.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        back = np.abs(distance)
    else:
        back = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(back, 1).astype(np.float32) / np.float32(exact), dtype=np.float32)
    steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + steps.astype(np.int32), buckets - 1)
    return offset + np.where(back < exact, back, far)


def relative_bias(
    table: jax.Array,
    query_positions: jax.Array,
    key_positions: jax.Array,
    *,
    bidirectional: bool,
    max_distance: int,
) -> jax.Array:
    """T5's additive attention bias.

    Args:
      table: [buckets, H], or [B, buckets, H], each input's own.
      query_positions: [T] int32; key_positions: [S] int32.
    Returns:
      [1 or B, H, T, S] float32.
    """
    buckets = _bucket_of_distance(bidirectional, table.shape[-2], max_distance)
    by_distance = table.astype(jnp.float32)[..., buckets, :]  # [2 * max_distance + 1, H]
    distance = key_positions[None, :] - query_positions[:, None]
    index = jnp.clip(distance, -max_distance, max_distance) + max_distance
    bias = jnp.moveaxis(by_distance[..., index, :], -1, -3)
    return bias if table.ndim == 3 else bias[None]
