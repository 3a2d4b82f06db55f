"""T-Few's two forms of LoRA with its own code's weights: logits, gradients, first factors."""

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones import hugging_face
from tests import oracle

METHODS = {
    "lora": pj.lora(4, alpha=1, init="tfew", targets=("attention/.*", "mlp/w.*")),
    "lora_scaling": pj.rank_one_scaling(),
}
LEAVES = {
    "lora_a": "lora_a",
    "lora_b": "lora_b",
    "multi_lora_a": "input_scale",
    "multi_lora_b": "ia3",
}


def from_tfew(backbone, arrays, prefix):
    """Our leaves, flat, that T-Few's tensors under a prefix are; every one of them has a place."""
    given = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    config, found = backbone.config, {}
    for rule in hugging_face.FAMILIES["t5"].hugging_face_rules(config):
        module, depth = rule.ours.removesuffix("/kernel"), config.depth(rule.ours)
        for suffix, leaf in LEAVES.items():
            names = [name.removesuffix("weight") + suffix for _, name in rule.names(depth)]
            if names[0] in given:
                tensors = np.stack([given.pop(name).T for name in names])
                vector = suffix.startswith("multi") and prefix != "start/"
                found[f"{module}/{leaf}"] = tensors.reshape(depth, -1) if vector else tensors
    assert not given
    return found


@pytest.mark.parametrize("form", METHODS)
def test_logits_gradients_and_first_factors_equal_tfews(form):
    arrays = dict(np.load(oracle.GOLDEN / f"tfew_{form}_v1_1.npz"))
    backbone, batch = oracle.t5("v1_1")
    method = METHODS[form]
    stored = tree.unflatten(from_tfew(backbone, arrays, "adapter/"))
    first = method.init(jax.random.key(0), backbone)
    assert jax.tree.map(np.shape, stored) == jax.tree.map(np.shape, first)

    @jax.jit
    def results(stored):
        def loss(stored):
            logits = backbone.logits(pj.merge(backbone.params, method.bind(stored)), batch)
            return oracle.inner_product(logits, batch), logits

        return jax.grad(loss, has_aux=True)(stored)

    gradients, logits = results(stored)
    oracle.assert_close(logits, arrays["logits"])
    wanted = from_tfew(backbone, arrays, "grad/")
    for path, gradient in tree.flatten(gradients).items():
        oracle.assert_close(gradient, wanted[path], what=path)
    first, theirs = tree.flatten(first), from_tfew(backbone, arrays, "start/")
    for kind in {path.rpartition("/")[2] for path in first}:
        ours = np.concatenate([x.ravel() for path, x in first.items() if path.endswith(kind)])
        moments = np.concatenate([x for path, x in theirs.items() if path.endswith(kind)])
        deviation, mean = np.sqrt((moments[:, 0] ** 2).mean()), moments[:, 1].mean()
        # Some thousand numbers of either are drawn; what is not drawn is exact.
        assert ours.std() == pytest.approx(deviation, rel=0.15), kind
        assert ours.mean() == pytest.approx(mean, abs=float(deviation) / 5), kind
