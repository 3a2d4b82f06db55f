"""LoRA's relatives with Hugging Face PEFT's weights: logits, gradients, merged kernels."""

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones import hugging_face
from peft_jax.methods.adalora import adalora
from peft_jax.methods.dora import dora
from peft_jax.methods.lora import lora
from peft_jax.methods.vera import vera
from tests import oracle
from tests.random_adapters import abstract_init

METHODS = {
    "dora": dora(3, alpha=7, targets=("query", "wo")),
    "pissa": lora(3, alpha=7, targets=("value", "wo"), init="pissa"),
    "lora_patterns": lora(
        3,
        alpha=7,
        targets=("query", "value", "wo"),
        rank_pattern=[("query", 2), ("wo", 4)],
        alpha_pattern=[("mlp/wo", 5)],
    ),
    "vera": vera(5, targets=("query", "value", "wo")),
    "adalora": adalora(3, 2, alpha=7, targets=("value", "wo")),
}
GOLDEN = [
    ("dora", "v1_0"),
    ("pissa", "v1_1"),
    ("lora_patterns", "llama"),
    ("vera", "v1_0"),
    ("adalora", "llama"),
]
LIVE = [
    (name, variant)
    for name in METHODS
    for variant in ("v1_0", "v1_1", "llama")
    if (name, variant) not in GOLDEN
]
CASES = [*GOLDEN, *(pytest.param(*case, marks=pytest.mark.oracle) for case in LIVE)]

# peft's leaf -> ours and the axes of ours, behind the layers.
LEAVES = {
    "lora_A.default.weight": ("lora_a", (1, 0)),
    "lora_B.default.weight": ("lora_b", (1, 0)),
    "lora_A.default": ("lora_a", (1, 0)),
    "lora_B.default": ("lora_b", (1, 0)),
    "lora_E.default": ("lora_e", (1, 0)),
    "lora_magnitude_vector.default.weight": ("magnitude", (0,)),
    "vera_lambda_d.default": ("vera_lambda_d", (0,)),
    "vera_lambda_b.default": ("vera_lambda_b", (0,)),
}


def peft_arrays(name, variant):
    file = oracle.GOLDEN / f"peft_{name}_{variant}.npz"
    if file.is_file():
        return dict(np.load(file))
    return oracle.live("make_peft_low_rank").oracle(name, variant)


def backbone_of(variant):
    return oracle.model("decoders" if variant == "llama" else "t5", variant)


def from_peft(backbone, arrays, prefix):
    """Our leaves, flat, that peft's tensors under a prefix are; every one of them has a place."""
    given = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    found = {
        f"vera_{name.lower()}": given.pop(f"base_model.vera_{name}.default").T
        for name in "AB"
        if f"base_model.vera_{name}.default" in given
    }
    config = backbone.config
    for rule in hugging_face.FAMILIES[config.family].hugging_face_rules(config):
        module, depth = rule.ours.removesuffix("/kernel"), config.depth(rule.ours)
        for suffix, (leaf, axes) in LEAVES.items():
            names = [name.removesuffix("weight") + suffix for _, name in rule.names(depth)]
            names = [f"base_model.model.{name}" for name in names]
            if names[0] in given:
                tensors = np.stack([given.pop(name).transpose(axes) for name in names])
                found[f"{module}/{leaf}"] = tensors[:, 0] if leaf == "lora_e" else tensors
    assert not given
    return found


def stored_from_peft(backbone, arrays):
    stored = from_peft(backbone, arrays, "adapter/")
    for path, constant in from_peft(backbone, arrays, "fixed/").items():
        module, _, name = path.rpartition("/")
        stored[f"{module}/fixed/{name}".removeprefix("/")] = constant
    return tree.unflatten(stored)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_logits_gradients_and_merged_kernels_equal_peft(name, variant):
    arrays, method = peft_arrays(name, variant), METHODS[name]
    backbone, batch = backbone_of(variant)
    stored = stored_from_peft(backbone, arrays)
    assert jax.tree.map(np.shape, stored) == jax.tree.map(np.shape, abstract_init(method, backbone))
    trained, fixed = tree.split_fixed(stored)

    @jax.jit
    def results(trained, fixed):
        def loss(trained):
            bound = method.bind(tree.join(trained, fixed))
            logits = backbone.logits(pj.merge(backbone.params, bound), batch)
            real = (batch["decoder_input_tokens"] != backbone.config.pad_id)[..., None]
            logits = logits * real if variant == "llama" else logits
            return oracle.inner_product(logits, batch), logits

        return jax.grad(loss, has_aux=True)(trained)

    gradients, logits = results(trained, fixed)
    oracle.assert_close(logits, arrays["logits"])
    wanted = from_peft(backbone, arrays, "grad/")
    gradients = tree.flatten(gradients)
    assert gradients.keys() == wanted.keys()
    for path, gradient in gradients.items():
        oracle.assert_close(gradient, wanted[path], 3e-5, path)
    assert_merged(backbone, method.fold(backbone.params, stored), arrays)


def assert_merged(backbone, folded, arrays):
    folded = oracle.by_hugging_face_name(backbone, folded)
    merged = {n.removeprefix("merged/"): a for n, a in arrays.items() if n.startswith("merged/")}
    frozen = oracle.by_hugging_face_name(backbone, backbone.params)
    assert merged
    for tensor, array in folded.items():
        oracle.assert_close(array, merged.get(tensor, frozen[tensor]), 2e-6, tensor)
    assert all(np.abs(array - frozen[tensor]).max() > 0.01 for tensor, array in merged.items())


def test_pissa_starts_from_the_same_principal_part():
    """Signs of singular vectors are free: products are compared, and that the halves balance."""
    backbone, _ = backbone_of("v1_1")
    wanted = from_peft(backbone, peft_arrays("pissa", "v1_1"), "fixed/")
    stored = tree.flatten(METHODS["pissa"].init(jax.random.key(0), backbone))
    for path in [p for p in wanted if p.endswith("lora_a")]:
        module = path.removesuffix("/lora_a")
        for start in (module, f"{module}/fixed"):
            a, b = (np.asarray(stored[f"{start}/{name}"]) for name in ("lora_a", "lora_b"))
            oracle.assert_close(a @ b, wanted[path] @ wanted[f"{module}/lora_b"], 1e-5, module)
            columns, rows = (np.linalg.norm(x, axis=y) for x, y in ((a, -2), (b, -1)))
            np.testing.assert_allclose(columns, rows, rtol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "variant"), GOLDEN)
def test_golden_files_are_what_the_installed_peft_computes(name, variant):
    fresh = oracle.live("make_peft_low_rank").oracle(name, variant)
    golden = peft_arrays(name, variant)
    assert fresh.keys() == golden.keys()
    for tensor, array in fresh.items():
        oracle.assert_close(golden[tensor], array, 1e-5, tensor)
