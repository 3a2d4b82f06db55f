"""Rotary position embeddings (Su et al. 2021) and the scalings that stretch them.

Keys and queries are turned pairwise, entry i with entry i + K/2 (the convention of GPT-NeoX, and of
Hugging Face's Llama), by an angle of position * theta ** (-2i/K).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.errors import InputError

SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class Rope:
    """The frequencies of one kind of layer.

    Agrees with ``transformers.modeling_rope_utils``, whose names the fields keep apart from
    ``scaling`` (its rope_type) and ``original_positions``.
    """

    theta: float = 10000.0
    """The base of the frequencies."""
    scaling: str = "default"
    """"default"; "linear": positions divided by the factor (Chen et al. 2023); "dynamic": the base
    grows with the longest text of a batch (NTK-aware), while keys in a cache stay as they were
    turned; "llama3": long wavelengths divided (Llama 3.1); "yarn": by parts, with a temperature
    (Peng et al. 2023)."""
    factor: float = 1.0
    original_positions: int = 0
    """Positions that the model was pretrained with; read by dynamic, llama3 and yarn."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """yarn: factor on cosine and sine; None derives it from ``factor``."""
    truncate: bool = True
    """yarn: whether the bounds of its ramp are rounded to whole dimensions."""

    def __post_init__(self):
        if self.scaling not in SCALINGS:
            raise InputError(
                f"rope scaling {self.scaling!r} is not supported; one of {', '.join(SCALINGS)}"
            )
        if self.scaling in SCALINGS[2:] and self.original_positions < 1:
            raise InputError(f"rope scaling {self.scaling!r} needs original_positions")


class Rotation(NamedTuple):
    """Cosine and sine of every angle: [B or 1, T, 1, K/2] float32 each."""

    cos: jax.Array
    sin: jax.Array


def rotation(rope: Rope, width: int, positions: jax.Array) -> Rotation:
    """The rotation at ``positions`` [B, T] of heads of ``width`` K."""
    frequencies, scale = _frequencies(rope, width, positions)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    return Rotation(jnp.cos(angle) * scale, jnp.sin(angle) * scale)


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """Heads [B, T, H, K] turned; computed in float32, returned in x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * by.cos - second * by.sin, second * by.cos + first * by.sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _frequencies(rope: Rope, width: int, positions: jax.Array) -> tuple[jax.Array, float]:
    """[K/2] float32, and the factor on cosine and sine."""
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = (1.0 / np.float32(rope.theta) ** exponent).astype(np.float32)
    if rope.scaling == "linear":
        return jnp.asarray(plain / np.float32(rope.factor)), 1.0
    if rope.scaling == "dynamic":
        return _dynamic(rope, width, exponent, positions), 1.0
    if rope.scaling == "llama3":
        return jnp.asarray(_llama3(rope, plain)), 1.0
    if rope.scaling == "yarn":
        scale = rope.attention_factor
        if scale is None:
            scale = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
        return jnp.asarray(_yarn(rope, width, plain)), scale
    return jnp.asarray(plain), 1.0


def _dynamic(rope: Rope, width: int, exponent: np.ndarray, positions: jax.Array) -> jax.Array:
    known = rope.original_positions
    length = jnp.maximum(jnp.max(positions) + 1, known).astype(jnp.float32)
    growth = rope.factor * length / known - (rope.factor - 1)
    return 1.0 / (rope.theta * growth ** (width / (width - 2))) ** exponent


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    wavelength = 2 * math.pi / plain
    short = rope.original_positions / rope.high_freq_factor
    long = rope.original_positions / rope.low_freq_factor
    ramp = (rope.original_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - ramp) * plain / rope.factor + ramp * plain
    scaled = np.where(wavelength > long, plain / rope.factor, plain)
    middle = (wavelength >= short) & (wavelength <= long)
    return np.where(middle, between, scaled).astype(np.float32)


def _yarn(rope: Rope, width: int, plain: np.ndarray) -> np.ndarray:
    def dimension(turns: float) -> float:
        """The dimension that makes so many turns within the pretrained positions."""
        inside = rope.original_positions / (turns * 2 * math.pi)
        return width * math.log(inside) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low if high != low else 0.001
    ramp = np.clip((np.arange(width // 2, dtype=np.float32) - low) / span, 0, 1)
    return (plain / rope.factor * ramp + plain * (1 - ramp)).astype(np.float32)
