"""What each remat policy keeps for the backward pass: counted in the traced step, to the byte."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import peft_jax as pj
from peft_jax import transformer
from peft_jax.transformer import REMAT
from tests.test_transformer import scan_outputs

CONFIG = pj.Config("t5", 32, 16, 40, 3, 8, 5, 1, dropout=0.0)
D, F, INNER = CONFIG.d_model, CONFIG.d_ff, CONFIG.inner
# Of each token and layer of an encoder, float32. The input of the layer is always kept.
ATTENTION = D + 3 * INNER + D
KEPT = {"full": D, "attention": ATTENTION, "dots": ATTENTION + 2 * F, "offload": ATTENTION + 2 * F}


def kept(remat, activations="float32", weights=jnp.float32):
    """Bytes of what the encoder's scan stacks up for the backward pass of an IA3 step."""
    config = dataclasses.replace(CONFIG, remat=remat, activation_dtype=activations)
    backbone = pj.abstract_backbone(config, weights)
    batch = {"encoder_input_tokens": jnp.ones((2, 7), jnp.int32)}
    method = pj.ia3(("attention/(key|value)", "mlp/wi_1"))
    stored = jax.eval_shape(method.init, jax.random.key(0), backbone)

    def residuals(stored, frozen):
        def loss(stored):
            params = pj.merge(frozen, method.bind(stored))
            return jnp.sum(transformer.encode(config, params, batch).hidden)

        return jax.vjp(loss, stored)

    traced = jax.make_jaxpr(residuals)(stored, backbone.params)
    # All but the vectors' own layers, which are 1 of the 14 tokens' size.
    stacks = [(s, t) for s, t in scan_outputs(traced.jaxpr) if s[:3] == (5, 2, 7)]
    return sum(jnp.dtype(t).itemsize * jnp.zeros(s, t).size for s, t in stacks)


@pytest.mark.parametrize("remat", KEPT)
def test_kept_by_policy(remat):
    assert kept(remat) == 4 * 5 * 14 * KEPT[remat]


def test_kept_without_remat():
    assert kept("none") > 1.5 * kept("dots")


@pytest.mark.parametrize("remat", ["attention", "dots"])
def test_products_are_kept_in_the_dtype_of_the_activations(remat):
    """Of bfloat16 activations times float32 weights not the float32 sums."""
    assert kept(remat, "bfloat16") == 2 * 5 * 14 * KEPT[remat]


def test_every_policy_is_counted():
    assert set(KEPT) | {"none"} == set(REMAT)


def test_offload_where_the_host_cannot_be_reached(monkeypatch):
    class Device:
        device_kind = "toy"

        def addressable_memories(self):
            return []

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    with pytest.raises(pj.InputError, match="pinned host memory"):
        kept("offload")
