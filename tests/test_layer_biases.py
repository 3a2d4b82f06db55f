"""A relative bias for each layer (umT5): config.relative_per_layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import transformer, tree
from peft_jax.backbones import hugging_face
from peft_jax.decoding import Decoding, generate
from peft_jax.errors import InputError
from peft_jax.methods import merge, prompt_tuning
from tests.test_transformer import CONFIG, random_backbone, random_batch

OWN = dataclasses.replace(CONFIG, relative_per_layer=True)


def with_copies(shared):
    """The model that has the shared table in each of its layers."""
    flat = tree.flatten(shared.params)
    for stack in ("encoder", "decoder"):
        table = flat.pop(f"{stack}/relative_bias/embedding")
        copies = jnp.stack([table] * OWN.depth(f"{stack}/"))
        flat[f"{stack}/layers/relative_bias/embedding"] = copies
    return pj.Backbone(tree.unflatten(flat), OWN)


@pytest.mark.slow
def test_copies_of_one_table_are_the_shared_one():
    shared, batch = random_backbone(CONFIG), random_batch()
    copies = with_copies(shared)

    def value(backbone):
        def loss(params):
            return jnp.sum(jax.nn.log_softmax(backbone.logits(params, batch))[..., 3])

        return jax.jit(jax.value_and_grad(loss))(backbone.params)

    (own, own_grads), (wanted, wanted_grads) = value(copies), value(shared)
    np.testing.assert_allclose(own, wanted, rtol=1e-6)
    for stack in ("encoder", "decoder"):
        summed = own_grads[stack]["layers"]["relative_bias"]["embedding"].sum(0)
        table = wanted_grads[stack]["relative_bias"]["embedding"]
        np.testing.assert_allclose(summed, table, rtol=1e-3, atol=1e-4)


def test_layers_read_their_own_tables():
    backbone, batch = random_backbone(OWN), random_batch()
    table = backbone.params["decoder"]["layers"]["relative_bias"]["embedding"]
    logits_of = jax.jit(lambda p: backbone.logits(p, batch))

    def logits(table):
        leaf = {"decoder": {"layers": {"relative_bias": {"embedding": table}}}}
        return logits_of(merge(backbone.params, leaf))

    before = logits(table)
    for layer in range(OWN.decoder_layers):
        # A constant on all keys changes nothing; one on the nearest keys does.
        np.testing.assert_allclose(logits(table.at[layer].add(1.5)), before, atol=1e-4)
        assert np.abs(logits(table.at[layer, 0].add(1.5)) - before).max() > 1e-3


@pytest.mark.parametrize("beams", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_texts_are_what_the_whole_sequences_say(beams):
    """Token by token through the caches, behind a soft prompt."""
    backbone, batch = random_backbone(OWN), random_batch()
    method = prompt_tuning(2, "random", "both")
    params = merge(backbone.params, method.bind(method.init(jax.random.key(0), backbone)))
    inputs = {"encoder_input_tokens": batch["encoder_input_tokens"]}
    written = generate(backbone, params, inputs, Decoding(max_length=5, beams=beams))
    tokens = np.asarray(written.tokens[:, 0])
    shifted = transformer.shift_right(OWN, jnp.asarray(tokens))
    whole = {**inputs, "decoder_input_tokens": shifted}
    logits = jax.jit(backbone.logits)(params, whole)
    inside = np.arange(5) < np.asarray(written.lengths[:, :1])
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
    mean = (log_probs * inside).sum(1) / inside.sum(1)
    np.testing.assert_allclose(written.scores[:, 0], mean, rtol=1e-4)
    if beams == 1:
        best = np.where(inside, np.argmax(logits, -1), OWN.pad_id)
        np.testing.assert_array_equal(tokens, best)


def test_what_has_no_such_biases_says_so(tmp_path):
    with pytest.raises(InputError, match="has no relative bias for each layer"):
        hugging_face.write_backbone(tmp_path, random_backbone(OWN))
