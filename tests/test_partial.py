"""Partial fine-tuning: which parameters are copied, counted, trained and saved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import methods, transformer, tree
from peft_jax.errors import InputError
from tests import oracle
from tests.random_adapters import abstract_init, adapted, assert_same_trees, backbone_of
from tests.test_transformer import random_batch

# Some of every kind: stacked kernels of both stacks, norms, an embedding outside the layers.
SOME = ("attention/query/kernel", "mlp_norm/scale", "relative_bias/embedding")


@pytest.mark.parametrize(
    ("targets", "layers", "wanted"),
    [
        # T-Few's baseline "LayerNorm": (5 L + 2) d.
        ("norm/scale", None, 249_856),
        ("token_embedder/embedding", None, 32_128 * 2048),
        ("attention/(query|value)/kernel", None, 72 * 2 * 2048 * 2048),
        ("decoder/layers/self_attention/query/kernel", (22, 23), 2 * 2048 * 2048),
        (".*", None, 2_849_757_184),
    ],
)
def test_counts_of_t0_3b(targets, layers, wanted):
    backbone = pj.abstract_backbone(pj.backbone_config("t0_3b"), jnp.bfloat16)
    stored = abstract_init(pj.partial(targets, layers), backbone)
    assert pj.count(stored) == wanted
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("layers", [None, (1,), (1, 0)])
def test_what_is_stored_are_float32_copies(layers):
    backbone = backbone_of(dtype=jnp.bfloat16)
    targets = ("decoder/layers/mlp/wo/kernel", "layers/mlp_norm/scale")
    stored = tree.flatten(pj.partial(targets, layers).init(jax.random.key(0), backbone))
    assert set(stored) == {
        "decoder/layers/mlp/wo/kernel",
        "decoder/layers/mlp_norm/scale",
        "encoder/layers/mlp_norm/scale",
    }
    for path, leaf in stored.items():
        own = np.asarray(tree.get(backbone.params, path))
        chosen = own if layers is None else own[list(layers)]
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, chosen.astype(np.float32))
    # A step donates what is stored: no buffer may be the backbone's.
    wide = backbone_of()
    copied = pj.partial("final_norm/scale").init(jax.random.key(0), wide)
    for path, leaf in tree.flatten(copied).items():
        assert leaf.unsafe_buffer_pointer() != tree.get(wide.params, path).unsafe_buffer_pointer()


@pytest.mark.parametrize("layers", [None, (0,), (1, 0)])
def test_leaves_take_their_own_places_and_no_others(layers):
    backbone = backbone_of()
    targets = SOME if layers is None else SOME[:2]
    method, stored = adapted(backbone, pj.partial(targets, layers))
    merged = tree.flatten(jax.jit(lambda s: pj.merge(backbone.params, method.bind(s)))(stored))
    flat = tree.flatten(stored)
    for path, own in tree.flatten(backbone.params).items():
        wanted = np.array(own)
        if path in flat:
            wanted[slice(None) if layers is None else list(layers)] = flat[path]
            assert (wanted != own).any()
        np.testing.assert_array_equal(merged[path], wanted)
    assert merged.keys() == tree.flatten(backbone.params).keys()


@pytest.mark.slow
def test_gradients_are_those_of_full_fine_tuning():
    backbone = backbone_of()
    batch, logits = random_batch(), functools.partial(transformer.logits, backbone.config)
    cotangent = np.random.default_rng(0).standard_normal((3, 7, 57)).astype(np.float32)
    method, stored = adapted(backbone, pj.partial(SOME[:2], (0,)))

    @jax.jit
    def gradients(stored):
        def loss(params):
            return jnp.sum(cotangent * logits(params, batch))

        def merge(stored):
            return pj.merge(backbone.params, method.bind(stored))

        return jax.grad(lambda s: loss(merge(s)))(stored), jax.grad(loss)(merge(stored))

    ours, full = gradients(stored)
    for path, leaf in tree.flatten(ours).items():
        oracle.assert_close(leaf, tree.get(full, path)[:1], 1e-5, path)


def test_every_parameter_is_full_fine_tuning():
    backbone = backbone_of()
    one, other = (m.init(jax.random.key(0), backbone) for m in (pj.partial(".*"), pj.full()))
    assert_same_trees(one, other)


def test_the_spec_and_the_file_make_the_same_again(tmp_path):
    backbone = backbone_of()
    method, stored = adapted(backbone, pj.partial(list(SOME[:2]), [1]))
    pj.save_adapter(tmp_path, stored, method, backbone)
    loaded, again = pj.load_adapter(tmp_path, backbone)
    assert_same_trees(loaded, stored)
    assert again.spec == method.spec == methods.from_spec(method.spec).spec


@pytest.mark.parametrize(
    ("targets", "layers", "message"),
    [
        ((), None, "partial needs targets"),
        ("qery/kernel", None, "parameter 'qery/kernel' matches nothing; nearest: .*query/kernel"),
        # A module is no parameter.
        ("attention/query", None, "matches nothing"),
        ("[", None, "not a regular expression"),
        ("mlp_norm/scale", (3,), "layers .3. do not fit 'encoder/layers/mlp_norm/scale'"),
        ("final_norm/scale", (0,), "it has no layers"),
    ],
)
def test_errors(targets, layers, message):
    with pytest.raises(InputError, match=message):
        pj.partial(targets, layers).init(jax.random.key(0), backbone_of())
