"""Objectives are sums over counts: the pieces of a batch add up to the whole, of every one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import objectives
from tests import families

ROWS = 6
MASK_ID = 56


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, 50, shape).astype(np.int32)


def inputs():
    return {
        "encoder_input_tokens": tokens(ROWS, 7),
        "label": np.array([0, 1, 1, 0, 2, 0], np.int32),
        "weight": np.array([1, 1, 0, 1, 1, 0], np.float32),
    }


def choices(length):
    mask = np.ones((ROWS, 3), bool)
    mask[0, 2] = False
    return {"choices": tokens(ROWS, 3, length, seed=1), "choice_mask": mask}


def masked():
    batch = inputs()
    batch["encoder_input_tokens"][:, 3] = MASK_ID
    return batch | choices(1)


def texts():
    weights = np.random.default_rng(2).random((ROWS, 5)).astype(np.float32)
    return {
        "encoder_input_tokens": tokens(ROWS, 7),
        "decoder_input_tokens": tokens(ROWS, 5, seed=1),
        "decoder_target_tokens": tokens(ROWS, 5, seed=2),
        "decoder_loss_weights": weights * (weights > 0.3),
    }


CASES = {
    "lm": (families.BART, pj.ia3(), objectives.lm_objective(1e-2, 0.1), texts),
    "lm in parts": (families.BART, pj.ia3(), objectives.lm_objective(1e-2, 0.1, 4000), texts),
    "tfew": (
        families.BART,
        pj.lora(2),
        objectives.tfew_objective(memory_budget=20_000),
        lambda: inputs() | choices(4),
    ),
    "head": (families.BERT, pj.classification_head(3), objectives.head_objective(), inputs),
    "regression": (
        families.BERT,
        pj.classification_head(1),
        objectives.regression_objective(),
        lambda: inputs() | {"target": np.arange(ROWS, dtype=np.float32)},
    ),
    "verbalizer": (families.BERT, pj.ia3(), objectives.verbalizer_objective(MASK_ID), masked),
    "trained verbalizer": (
        families.BERT,
        pj.warp(4, labels=3),
        objectives.trained_verbalizer_objective(MASK_ID),
        masked,
    ),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "lm in parts" else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_pieces_add_up(name):
    config, method, objective, make_batch = CASES[name]
    backbone = pj.init_backbone(config, jax.random.key(0))
    stored = method.init(jax.random.key(1), backbone)
    batch = make_batch()
    counts = objective.counts(config, batch)

    @jax.jit
    def run(stored, batch):
        def loss(stored):
            params = pj.merge(backbone.params, method.bind(stored))
            return objective.value(config, params, batch, None, counts)

        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(stored)
        return value, metrics, gradients

    whole = run(stored, batch)
    pieces = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
    added = jax.tree.map(jnp.add, *(run(stored, piece) for piece in pieces))
    assert float(whole[0]) > 0
    assert any(np.any(leaf) for leaf in jax.tree.leaves(whole[2]))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(added), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
