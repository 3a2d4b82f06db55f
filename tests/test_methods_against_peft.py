"""What Hugging Face PEFT computes with the same weights: logits, gradients, merged kernels."""

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones import hugging_face
from tests import oracle
from tests.random_adapters import abstract_init

PEFT_METHODS = {
    "ia3": pj.ia3(),
    "lora": pj.lora(3, alpha=7),
    "rslora": pj.lora(3, alpha=7, rslora=True),
    "prompt_tuning": pj.prompt_tuning(5),
}
PEFT_FILES = [
    ("ia3", "v1_0"),
    ("ia3", "v1_1"),
    ("lora", "v1_1"),
    ("rslora", "v1_0"),
    ("prompt_tuning", "v1_0"),
]
PEFT_PROMPT = "prompt_encoder.default.embedding.weight"
PEFT_LEAVES = {
    "ia3_l.default": "ia3",
    "lora_A.default.weight": "lora_a",
    "lora_B.default.weight": "lora_b",
}


def peft_arrays(method, variant):
    return dict(np.load(oracle.GOLDEN / f"peft_{method}_{variant}.npz"))


def stored_from_peft(backbone, arrays, prefix):
    """The stored tree that peft's tensors under a prefix are; every one of them has a place."""
    given = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    stored = {}
    if PEFT_PROMPT in given:
        stored["encoder/prompt"] = given.pop(PEFT_PROMPT)
    config = backbone.config
    for rule in hugging_face.FAMILIES[config.family].hugging_face_rules(config):
        depth = config.encoder_layers if rule.ours.startswith("enc") else config.decoder_layers
        module = rule.ours.removesuffix("/kernel")
        for suffix, leaf in PEFT_LEAVES.items():
            theirs = [name.removesuffix("weight") + suffix for _, name in rule.names(depth)]
            theirs = [f"base_model.model.{name}" for name in theirs]
            if theirs[0] not in given:
                continue
            tensors = np.stack([given.pop(name) for name in theirs])
            if leaf == "ia3":
                # peft scales what wo reads: our vector of the whole feed-forward.
                stored[f"{module.removesuffix('/wo')}/ia3"] = tensors.reshape(depth, -1)
            else:
                stored[f"{module}/{leaf}"] = tensors.swapaxes(1, 2)
    assert not given
    return tree.unflatten(stored)


@pytest.mark.parametrize(("name", "variant"), PEFT_FILES)
def test_logits_and_gradients_equal_peft(name, variant):
    arrays = peft_arrays(name, variant)
    backbone, batch = oracle.t5(variant)
    method = PEFT_METHODS[name]
    stored = stored_from_peft(backbone, arrays, "adapter/")
    assert jax.tree.map(np.shape, stored) == jax.tree.map(np.shape, abstract_init(method, backbone))

    def loss(stored):
        logits = backbone.logits(pj.merge(backbone.params, method.bind(stored)), batch)
        return oracle.inner_product(logits, batch), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(stored)
    oracle.assert_close(logits, arrays["logits"])
    wanted = tree.flatten(stored_from_peft(backbone, arrays, "grad/"))
    gradients = tree.flatten(gradients)
    assert gradients.keys() == wanted.keys()
    for path, gradient in gradients.items():
        oracle.assert_close(gradient, wanted[path], what=path)


@pytest.mark.parametrize(("name", "variant"), [c for c in PEFT_FILES if c[0] != "prompt_tuning"])
def test_folded_kernels_equal_what_peft_merges(name, variant):
    arrays = peft_arrays(name, variant)
    backbone, _ = oracle.t5(variant)
    folded = PEFT_METHODS[name].fold(
        backbone.params, stored_from_peft(backbone, arrays, "adapter/")
    )
    folded = oracle.by_hugging_face_name(backbone, folded)
    merged = {n.removeprefix("merged/"): a for n, a in arrays.items() if n.startswith("merged/")}
    frozen = oracle.by_hugging_face_name(backbone, backbone.params)
    assert merged
    for tensor, array in folded.items():
        oracle.assert_close(array, merged.get(tensor, frozen[tensor]), 1e-6, tensor)
    assert all(np.abs(array - frozen[tensor]).max() > 0.1 for tensor, array in merged.items())


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "variant"), PEFT_FILES)
def test_golden_files_are_what_the_installed_peft_computes(name, variant):
    fresh = oracle.live("make_peft").oracle(name, variant)
    golden = peft_arrays(name, variant)
    assert fresh.keys() == golden.keys()
    for tensor, array in fresh.items():
        oracle.assert_close(golden[tensor], array, 1e-6, tensor)
