"""Frozen kernels of 8 or 4 bits: qwix's ``QArray`` as a leaf, and products that never unpack it.

Kept small, a kernel is unpacked one layer at a time, in the product that reads it and again in that
product's backward pass: nothing of it is a residual, or a scan would stack the unpacked layers into
a second, full-precision copy of the model. What is trained stays in full precision beside it
(QLoRA, Dettmers et al. 2023). qwix is imported where something is quantised, and nowhere else.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.tree import Params

if TYPE_CHECKING:
    from qwix import QArray

KINDS = ("int8", "nf4")
"""int8: one scale for each output. nf4: 4-bit NormalFloat, one scale for each :data:`BLOCK` inputs
of an output (Dettmers et al. 2023, section 3)."""

BLOCK = 64
"""Inputs that share a scale in nf4, as in QLoRA; fewer where they do not divide a kernel's."""


# --------------------------------------------------------------------------------------------
# Leaves
# --------------------------------------------------------------------------------------------
def is_quantized(leaf: Any) -> bool:
    """Whether a leaf of a parameter tree is a ``qwix.QArray``."""
    return hasattr(leaf, "qvalue")


def quantizable(path: str) -> bool:
    """Whether :func:`quantize_params` takes a leaf: the kernels of the layers.

    Embeddings and heads are read once and not by every layer, and cost more accuracy; norms, biases
    and position tables are small.
    """
    return "/layers/" in path and path.endswith("/kernel")


def quantize(kernel: Any, kind: str) -> QArray:
    """A kernel of 8 or 4 bits with its scales, which ``layers.matmul`` reads as it is.

    Args:
      kernel: [..., in, out] float32 or bfloat16, a jax or NumPy array (sharded ones stay sharded)
        or a ``jax.ShapeDtypeStruct``. It is not changed; drop it to have its memory back.
      kind: one of :data:`KINDS`.
    Returns:
      A ``qwix.QArray`` with ``qvalue`` [..., in, out] int8 or uint4, and ``scale`` [..., 1, out]
      or [..., in / block, out] in the kernel's dtype.

    Raises:
      InputError: an unknown kind, or qwix is not installed.
    """
    check_kind(kind)
    _qwix()
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return jax.eval_shape(functools.partial(_quantize, kind=kind), kernel)
    return jax.jit(_quantize, static_argnames="kind")(kernel, kind=kind)


def _quantize(kernel: jax.Array, kind: str) -> QArray:
    how: dict[str, Any] = {"channelwise_axes": [*range(kernel.ndim - 2), kernel.ndim - 1]}
    if kind == "nf4":
        how["tiled_axes"] = {kernel.ndim - 2: block_size(kernel.shape[-2])}
    # In float32: a quotient in bfloat16 has too few bits for 127 steps.
    wide = kernel.astype(jnp.float32)
    qtype = jnp.int8 if kind == "int8" else "nf4"
    return _qwix().quantize(wide, qtype, scale_dtype=kernel.dtype, **how)


def block_size(inputs: int) -> int:
    """Inputs that share a scale in nf4: the largest divisor up to :data:`BLOCK`."""
    return max(size for size in range(1, BLOCK + 1) if inputs % size == 0)


def dequantize(leaf: Any) -> Any:
    """[..., in, out] in the dtype that the kernel had; an array is returned as it is."""
    return _values(leaf, leaf.dtype) if is_quantized(leaf) else leaf


def check_kind(kind: str) -> None:
    """Raises InputError unless ``kind`` is one of :data:`KINDS`."""
    if kind not in KINDS:
        raise InputError(f"quantize {kind!r} is unknown; one of none, {', '.join(KINDS)}")


def _qwix() -> Any:
    try:
        import qwix
    except ImportError:
        raise InputError(
            "quantised weights are qwix's: pip install qwix, or load with quantize none"
        ) from None
    return qwix


# --------------------------------------------------------------------------------------------
# Trees
# --------------------------------------------------------------------------------------------
def quantize_params(params: Params, kind: str) -> Params:
    """A backbone's tree with the kernels of its layers quantised; the other leaves are shared.

    Where memory is short, quantise while loading: here the full-precision tree is there beside it.
    """

    def leaf(path, x):
        return quantize(x, kind) if quantizable(path) and not is_quantized(x) else x

    return tree.map_with_path(leaf, params)


def dequantize_params(params: Params) -> Params:
    """The tree with plain arrays, rounded as quantising left them."""
    return tree.map_with_path(lambda _, x: dequantize(x), params)


def check_plain(params: Params) -> None:
    """Raises InputError where a leaf is quantised: checkpoints hold plain arrays."""
    if kind_of(params) != "none":
        raise InputError(
            f"this backbone is {kind_of(params)}, which no checkpoint format holds: write the one "
            "it was made of, or backbone.dequantize()"
        )


def kind_of(params: Params) -> str:
    """ "none", or how the kernels of a tree are quantised."""
    found = {str(_name(x.qtype)) for x in tree.flatten(params).values() if is_quantized(x)}
    return " and ".join(sorted(found)) or "none"


def _name(qtype: Any) -> str:
    return qtype if isinstance(qtype, str) else np.dtype(qtype).name


# --------------------------------------------------------------------------------------------
# Products
# --------------------------------------------------------------------------------------------
def matmul(x: jax.Array, kernel: QArray) -> jax.Array:
    """x [..., in] times a quantised kernel [in, out]: [..., out] in x's dtype.

    Both are multiplied in bfloat16 where either has that dtype, else in float32.
    """
    if kernel.qvalue.ndim != 2:
        raise InputError(f"a quantised kernel has shape {kernel.shape}; a product reads [in, out]")
    return _product(kernel.qtype, x, kernel.qvalue, kernel.scale, kernel.zero_point)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(qtype, x, codes, scale, zero):
    dtype = _operand_dtype(x, scale)
    if _scaled_outputs(qtype, codes, scale, zero):
        # Small integers are exact in bfloat16: the scale waits until they are summed.
        y = _contract(x, codes.astype(dtype), 0)
        return (y.astype(jnp.float32) * scale[0].astype(jnp.float32)).astype(x.dtype)
    return _contract(x, _unpack(qtype, codes, scale, zero, dtype), 0)


def _forward(qtype, x, codes, scale, zero):
    if scale.perturbed:
        raise InputError("a quantised kernel is frozen; its scales have no gradient")
    zero = None if zero is None else zero.value
    kernel = (codes.value, scale.value, zero)
    return _product(qtype, x.value, *kernel), kernel


def _backward(qtype, kernel, cotangent):
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        aval: Any = cotangent.aval
        cotangent = jnp.zeros(aval.shape, aval.dtype)
    codes, scale, zero = kernel
    dtype = _operand_dtype(cotangent, scale)
    if _scaled_outputs(qtype, codes, scale, zero):
        scaled = cotangent.astype(jnp.float32) * scale[0].astype(jnp.float32)
        d_x = _contract(scaled.astype(cotangent.dtype), codes.astype(dtype), 1)
    else:
        d_x = _contract(cotangent, _unpack(qtype, codes, scale, zero, dtype), 1)
    return d_x, None, None, None


_product.defvjp(_forward, _backward, symbolic_zeros=True)


def _operand_dtype(x: jax.Array, scale: jax.Array) -> Any:
    both = (x.dtype, scale.dtype)
    return jnp.bfloat16 if jnp.bfloat16 in both else jnp.float32


def _scaled_outputs(qtype: Any, codes: jax.Array, scale: jax.Array, zero: jax.Array | None) -> bool:
    """Whether one factor for each output is all that stands between the codes and the kernel."""
    return qtype != "nf4" and zero is None and scale.shape == (1, codes.shape[1])


def _contract(x: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
    dims = (((x.ndim - 1,), (axis,)), ((), ()))
    return jax.lax.dot_general(x.astype(kernel.dtype), kernel, dims, preferred_element_type=x.dtype)


# --------------------------------------------------------------------------------------------
# Unpacking
# --------------------------------------------------------------------------------------------
# The 16 levels of NF4: Dettmers et al. 2023, appendix E.
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def _values(leaf: QArray, dtype: Any) -> jax.Array:
    return _unpack(leaf.qtype, leaf.qvalue, leaf.scale, leaf.zero_point, dtype)


def _unpack(qtype: Any, codes: jax.Array, scale: jax.Array, zero: Any, dtype: Any) -> jax.Array:
    """The kernel's values [..., in, out]."""
    if qtype != "nf4" or zero is not None:
        return _qwix().dequantize(_qwix().QArray(codes, scale, zero, qtype)).astype(dtype)
    *stack, blocks, outputs = scale.shape
    blocked = _level(codes).reshape(*stack, blocks, -1, outputs)
    values = blocked * scale.astype(jnp.float32)[..., None, :]
    return values.reshape(codes.shape).astype(dtype)


def _level(codes: jax.Array) -> jax.Array:
    """The level of each 4-bit code, float32.

    Selected bit by bit, which fuses with what reads it. A table that is looked up for each entry
    (as in ``qwix.dequantize``) is a gather, which no accelerator does quickly.
    """
    codes = codes.astype(jnp.int32)
    level: list[Any] = [jnp.float32(value) for value in NF4_LEVELS]
    for bit in range(4):
        on = ((codes >> bit) & 1) == 1
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [jnp.where(on, one, zero) for zero, one in pairs]
    return level[0]
