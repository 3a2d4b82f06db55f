"""BitFit: which biases it trains, and what it leaves alone. The laws are in test_methods.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import transformer, tree
from peft_jax.errors import InputError
from tests import oracle
from tests.random_adapters import abstract_init, adapted, assert_same_trees, backbone_of

BERT = pj.Config(
    family="bert", vocab_size=50, d_model=24, d_ff=40, num_heads=3, d_kv=8,
    encoder_layers=3, decoder_layers=0, activation="gelu", gated=False, norm="layer",
    norm_position="post", qkv_bias=True, out_bias=True, mlp_bias=True,
    attention_scale=8**-0.5, positions="learned", max_positions=16, embedding_norm=True,
    token_types=2, lm_head=False, pooler=True, dropout=0.0,
)  # fmt: skip
# Qwen2's attention: biases on three projections of four.
PARTLY = dataclasses.replace(BERT, out_bias=False)


def bert(config=BERT, dtype=jnp.float32):
    """A random backbone whose biases are drawn too."""
    backbone = pj.init_backbone(config, jax.random.key(0))
    rng = np.random.default_rng(0)

    def leaf(path, x):
        drawn = rng.normal(size=x.shape) if path.endswith("/bias") else x
        return jnp.asarray(drawn, dtype)

    return dataclasses.replace(backbone, params=tree.map_with_path(leaf, backbone.params))


def state(backbone, params):
    """[B, S, D] of two rows, the second one padded."""
    tokens = jnp.array([[2, 7, 9, 4, 11], [2, 30, 4, 0, 0]])
    batch = {"encoder_input_tokens": tokens}
    return transformer.encode(backbone.config, params, batch).hidden


def test_every_bias_of_a_bert_is_copied_and_none_is_added():
    backbone = bert()
    own = {p: x for p, x in tree.flatten(backbone.params).items() if p.endswith("/bias")}
    stored = pj.bitfit().init(jax.random.key(0), backbone)
    assert_same_trees(stored, tree.unflatten(own))
    # Ben Zaken et al. 2022, section 3: query, key, value, out, both norms and both projections of
    # every layer; beside them the norm of the embeddings and the pooler.
    assert pj.count(stored) == 3 * (4 * 24 + 2 * 24 + 40 + 24) + 24 + 24
    for path, leaf in tree.flatten(stored).items():
        assert leaf.unsafe_buffer_pointer() != own[path].unsafe_buffer_pointer()


def test_a_projection_without_bias_gets_one_beside_those_that_have_one():
    backbone = bert(PARTLY)
    stored = tree.flatten(pj.bitfit().init(jax.random.key(0), backbone))
    added = set(stored) - set(tree.flatten(backbone.params))
    assert added == {"encoder/layers/attention/out/bias"}
    assert (stored["encoder/layers/attention/out/bias"] == 0).all()


@pytest.mark.parametrize("config", [BERT, PARTLY], ids=["every bias", "some"])
def test_the_initial_function_is_the_backbones(config):
    backbone, method = bert(config), pj.bitfit()
    params = pj.merge(backbone.params, method.bind(method.init(jax.random.key(0), backbone)))
    oracle.assert_close(state(backbone, params), state(backbone, backbone.params), 1e-6)


def test_folded_equals_merged_where_the_checkpoint_has_the_biases():
    backbone = bert()
    method, stored = adapted(backbone, pj.bitfit())
    folded = method.fold(backbone.params, stored)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, backbone.params)
    wanted = state(backbone, pj.merge(backbone.params, method.bind(stored)))
    assert np.abs(wanted - state(backbone, backbone.params)).max() > 0.1
    oracle.assert_close(state(backbone, folded), wanted)


@pytest.mark.parametrize("backbone", [backbone_of(), bert(PARTLY)], ids=["T5", "partly"])
def test_an_added_bias_cannot_be_folded(backbone):
    method, stored = adapted(backbone, pj.bitfit())
    with pytest.raises(InputError, match=r"attention/.*/bias' cannot be folded: .* has no bias"):
        method.fold(backbone.params, stored)


def test_targets_choose_among_projections_and_norms():
    stored = pj.bitfit(("attention/query", "mlp_norm")).init(jax.random.key(0), bert())
    assert set(tree.flatten(stored)) == {
        "encoder/layers/attention/query/bias",
        "encoder/layers/mlp_norm/bias",
    }
    # A T5's norms have no bias and read none.
    with pytest.raises(InputError, match="'mlp_norm' matches nothing"):
        pj.bitfit("mlp_norm").init(jax.random.key(0), backbone_of())


def test_the_head_of_a_language_model_gets_a_bias_only_when_it_is_named():
    assert "lm_head" not in abstract_init(pj.bitfit(), backbone_of())
    named = abstract_init(pj.bitfit("lm_head"), backbone_of())
    assert named["lm_head"]["bias"].shape == (57,)


@pytest.mark.parametrize("labels", [0, 3], ids=["new head", "the checkpoint's"])
def test_a_classification_head_is_trained_beside_it(labels):
    backbone = bert(dataclasses.replace(BERT, num_labels=labels))
    method = pj.compose(pj.bitfit(), pj.classification_head(3))
    stored = method.init(jax.random.key(0), backbone)
    assert "classifier" not in stored["bitfit"]
    assert stored["classification_head"]["classifier"]["out"]["bias"].shape == (3,)
    bound = tree.flatten(method.bind(stored))
    assert bound.keys() >= {"classifier/out/bias", "pooler/bias"}


def test_a_bias_keeps_float32_while_it_is_trained():
    backbone = bert(dtype=jnp.bfloat16)
    method = pj.bitfit()
    stored = method.init(jax.random.key(0), backbone)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float32")}
    merged = pj.merge(backbone.params, method.bind(stored))
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
