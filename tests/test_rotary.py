"""Rotary positions: transformers' frequencies for every scaling, and what a rotation keeps."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import rotary
from peft_jax.backbones import decoder_fields
from peft_jax.errors import InputError
from peft_jax.rotary import Rope
from tests import oracle

LLAMA_3 = Rope(500000.0, "llama3", 8.0, original_positions=8192)
YARN = Rope(1e6, "yarn", 4.0, original_positions=32768)
# What config.json says in max_position_embeddings, read by the dynamic scaling.
POSITIONS = 4096


def frequencies(rope, width, positions):
    """By the angles at position 1, where no cosine and sine fall together, and the factor."""
    at = rotary.rotation(rope, width, jnp.array([[1, positions - 1]]))
    cos, sin = (np.asarray(each, np.float64)[0, 0, 0] for each in at)
    return np.arctan2(sin, cos), np.hypot(sin, cos)


ROPES = {
    "default": Rope(),
    "default, large base": Rope(1e6),
    "linear": Rope(10000.0, "linear", 8.0),
    "dynamic": Rope(10000.0, "dynamic", 2.5, original_positions=POSITIONS),
    "llama3": LLAMA_3,
    "llama 3.2": dataclasses.replace(LLAMA_3, factor=32.0),
    "llama3, other bounds": dataclasses.replace(
        LLAMA_3, theta=1e4, low_freq_factor=2.0, high_freq_factor=8.0, original_positions=1000
    ),
    "yarn": YARN,
    "yarn, smaller": Rope(1e4, "yarn", 16.0, original_positions=2048),
    "yarn, attention factor": dataclasses.replace(YARN, attention_factor=0.7),
    "yarn, not rounded": dataclasses.replace(YARN, truncate=False),
    "yarn, ramp": dataclasses.replace(YARN, beta_fast=20.0, beta_slow=2.0),
    "yarn, no ramp": Rope(1e4, "yarn", 2.0, original_positions=8, beta_fast=1.3, beta_slow=1.2),
    "yarn, factor 1": dataclasses.replace(YARN, factor=1.0),
}


@pytest.mark.oracle
@pytest.mark.parametrize("length", [2, POSITIONS, 3 * POSITIONS])
@pytest.mark.parametrize("width", [8, 64, 128])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_equal_transformers(name, width, length):
    transformers = oracle.live("make_decoders").transformers
    rope = ROPES[name]
    config = transformers.LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        rope_parameters=decoder_fields.write_rope(rope),
    )
    if rope.scaling == "default":
        module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
        wanted, scale = module.compute_default_rope_parameters(config)
    else:
        compute = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[rope.scaling]
        wanted, scale = compute(config, seq_len=length)
    found, factor = frequencies(rope, width, length)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=2e-6)
    np.testing.assert_allclose(factor, scale, rtol=1e-6)


@pytest.mark.parametrize("name", ROPES)
def test_a_written_rope_is_read_again(name):
    rope = ROPES[name]
    for fields in (decoder_fields.write_rope(rope), decoder_fields.write_rope_4(rope)):
        scaling = fields.get("rope_scaling", fields)
        assert decoder_fields.read_rope(scaling, rope.theta, POSITIONS) == rope


# ------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("rope", [Rope(), LLAMA_3, Rope(10000.0, "linear", 4.0)])
def test_products_depend_on_distances_alone(rope):
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def product(query_at, key_at):
        turned = (
            rotary.rotate(x, rotary.rotation(rope, 16, jnp.array([[at]])))
            for x, at in ((q, query_at), (k, key_at))
        )
        return float(np.sum(np.prod(np.stack([*turned]), axis=0)))

    near = product(7, 3)
    assert product(107, 103) == pytest.approx(near, rel=1e-4)
    assert abs(product(7, 4) - near) > 1e-2
    assert product(0, 0) == pytest.approx(float(jnp.sum(q * k)), rel=1e-6)


def test_a_head_is_turned_entry_i_with_entry_i_plus_half():
    x = jnp.zeros((1, 1, 1, 6)).at[..., 1].set(1.0)
    turned = rotary.rotate(x, rotary.rotation(Rope(100.0), 6, jnp.array([[3]])))[0, 0, 0]
    angle = 3 * 100.0 ** (-2 / 6)
    wanted = [0, math.cos(angle), 0, 0, math.sin(angle), 0]
    np.testing.assert_allclose(turned, wanted, atol=1e-6)


def test_the_dtype_of_the_heads_is_kept_and_the_angles_are_exact():
    x = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    by = rotary.rotation(Rope(), 8, jnp.array([[1001]]))
    turned = rotary.rotate(x, by)
    assert turned.dtype == jnp.bfloat16
    wanted = rotary.rotate(x.astype(jnp.float32), by).astype(jnp.bfloat16)
    np.testing.assert_array_equal(turned, wanted)


def test_dynamic_scaling_begins_behind_the_pretrained_positions():
    rope, plain = ROPES["dynamic"], ROPES["default"]
    short, long = (frequencies(rope, 64, length)[0] for length in (POSITIONS, POSITIONS + 100))
    np.testing.assert_allclose(short, frequencies(plain, 64, POSITIONS)[0], rtol=1e-6)
    assert (long[1:] < short[1:]).all()


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling": "longrope"}, "rope scaling 'longrope' is not supported; one of default"),
        ({"scaling": "llama3"}, "rope scaling 'llama3' needs original_positions"),
        ({"scaling": "yarn", "factor": 4.0}, "rope scaling 'yarn' needs original_positions"),
    ],
)
def test_a_rope_that_is_not_supported_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        Rope(**fields)
