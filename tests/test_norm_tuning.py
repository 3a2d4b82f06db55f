"""Norm tuning: which leaves it trains. The laws are in test_methods.py."""

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.errors import InputError
from tests.random_adapters import abstract_init, adapted, backbone_of, run


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("t0_3b", 249_856),  # Liu et al. 2022: (5 L + 2) d_model
        ("t5_v1_1_small", (5 * 8 + 2) * 512),
        # Scale and bias, two in a layer and the embeddings' (Houlsby et al. 2019, section 3.5).
        ("bert_large_uncased", 98_304 + 2_048),
        ("gpt2", (2 * 12 + 1) * 2 * 768),
        ("gemma_2_2b", (4 * 26 + 1) * 2304),
        ("qwen3_0_6b", (2 * 28 + 1) * 1024 + 2 * 28 * 128),
    ],
)
def test_counts_without_memory(name, count):
    backbone = pj.abstract_backbone(pj.backbone_config(name))
    assert pj.count(abstract_init(pj.norm_tuning(), backbone)) == count


@pytest.mark.parametrize("version", ["v1_1", "bert", "gemma3"])
def test_it_holds_copies_of_the_backbones_own(version):
    backbone = backbone_of(version)
    own = tree.flatten(backbone.params)
    stored = tree.flatten(pj.norm_tuning().init(jax.random.key(0), backbone))
    assert stored.keys() == {
        path for path in own if "norm/" in path and not path.startswith("head_norm/")
    }
    for path, leaf in stored.items():
        np.testing.assert_array_equal(leaf, own[path])
        assert leaf.unsafe_buffer_pointer() != own[path].unsafe_buffer_pointer()


def test_folded_equals_merged():
    backbone = backbone_of()
    method, stored = adapted(backbone, pj.norm_tuning())
    folded = method.fold(backbone.params, stored)
    merged = run(backbone, pj.merge(backbone.params, method.bind(stored)))
    np.testing.assert_allclose(run(backbone, folded), merged, rtol=1e-5, atol=1e-5)
    assert np.abs(merged - run(backbone, backbone.params)).max() > 1e-2


def test_targets_choose_norms():
    def modules(target):
        made = abstract_init(pj.norm_tuning(target), backbone_of("bert"))
        return {path.rpartition("/")[0] for path in tree.flatten(made)}

    assert modules("mlp_norm") == {"encoder/layers/mlp_norm"}
    assert modules(("embedding_norm", "head_norm")) == {"encoder/embedding_norm", "head_norm"}
    with pytest.raises(InputError, match="'self_attention_norm' matches nothing; nearest: enc"):
        modules("self_attention_norm")
