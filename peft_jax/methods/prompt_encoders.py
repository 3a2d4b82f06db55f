"""Small networks that make a prompt while it is trained and are dropped afterwards.

Linear layers, chains of them, and bidirectional LSTMs, as torch computes and initialises them: the
public implementations of prefix tuning and P-tuning are compared with tensor by tensor. They run in
``bind``, once a step and on as many rows as a prompt has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from peft_jax.tree import Params


def draw_linear(key: jax.Array, inputs: int, outputs: int, *depth: int) -> Params:
    """``kernel`` [*depth, inputs, outputs] and ``bias`` [*depth, outputs], U(±1/sqrt(inputs))."""
    kernel_key, bias_key = jax.random.split(key)
    bound = inputs**-0.5
    return {
        "kernel": jax.random.uniform(
            kernel_key, (*depth, inputs, outputs), jnp.float32, -bound, bound
        ),
        "bias": jax.random.uniform(bias_key, (*depth, outputs), jnp.float32, -bound, bound),
    }


def linear(params: Params, x: jax.Array) -> jax.Array:
    """x [P, in] -> [P, out], or [L, P, out] where the kernel has a layer axis."""
    # An accelerator's default would round the factors of so small a product to bfloat16.
    product = jnp.matmul(x, params["kernel"], precision="highest")
    return product + params["bias"][..., None, :]


def draw_chain(key: jax.Array, widths: Sequence[int]) -> Params:
    """Linear layers ``linear_0``, ``linear_1`` ... from each width to the next."""
    keys = jax.random.split(key, len(widths) - 1)
    pairs = itertools.pairwise(widths)
    return {
        f"linear_{i}": draw_linear(k, *pair)
        for i, (k, pair) in enumerate(zip(keys, pairs, strict=True))
    }


def chain(params: Params, x: jax.Array, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """x [P, in] through the layers of :func:`draw_chain`, the activation between them."""
    for i in range(len(params)):
        x = linear(params[f"linear_{i}"], x if i == 0 else activation(x))
    return x


# --------------------------------------------------------------------------------------------
# LSTM
# --------------------------------------------------------------------------------------------
_DIRECTIONS = ("forward", "backward")


def draw_lstm(key: jax.Array, inputs: int, hidden: int, num_layers: int) -> Params:
    """A bidirectional LSTM's parameters; 8 (in H + H^2 + 2 H) of them in a layer.

    ``layer_<i>/<forward|backward>`` holds ``input_kernel`` [in, 4 H] (of the second layer on, in is
    2 H), ``hidden_kernel`` [H, 4 H], ``input_bias`` and ``hidden_bias`` [4 H]: torch's tensors
    transposed, its gates in its order (input, forget, cell, output), U(±1/sqrt(H)).
    """
    bound = hidden**-0.5
    layers = {}
    for i, layer_key in enumerate(jax.random.split(key, num_layers)):
        width = inputs if i == 0 else 2 * hidden
        shapes = {
            "input_kernel": (width, 4 * hidden),
            "hidden_kernel": (hidden, 4 * hidden),
            "input_bias": (4 * hidden,),
            "hidden_bias": (4 * hidden,),
        }
        layers[f"layer_{i}"] = {
            direction: {
                name: jax.random.uniform(k, shape, jnp.float32, -bound, bound)
                for k, (name, shape) in zip(jax.random.split(d, 4), shapes.items(), strict=True)
            }
            for d, direction in zip(jax.random.split(layer_key), _DIRECTIONS, strict=True)
        }
    return layers


def lstm(params: Params, x: jax.Array) -> jax.Array:
    """x [P, in] -> [P, 2 H]: each layer reads the rows both ways (torch.nn.LSTM, without dropout).

    Hochreiter & Schmidhuber 1997, with forget gates.
    """
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        there = _one_way(layer["forward"], x)
        back = _one_way(layer["backward"], x[::-1])[::-1]
        x = jnp.concatenate([there, back], axis=-1)
    return x


def _one_way(params: Params, x: jax.Array) -> jax.Array:
    read = jnp.matmul(x, params["input_kernel"], precision="highest")
    read = read + params["input_bias"] + params["hidden_bias"]
    zeros = jnp.zeros(params["hidden_kernel"].shape[0], x.dtype)

    def step(carry, row):
        state, cell = carry
        gates = row + jnp.matmul(state, params["hidden_kernel"], precision="highest")
        enter, forget, new, leave = jnp.split(gates, 4)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
        state = jax.nn.sigmoid(leave) * jnp.tanh(cell)
        return (state, cell), state

    return jax.lax.scan(step, (zeros, zeros), read)[1]
