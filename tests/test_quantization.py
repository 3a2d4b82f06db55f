"""Frozen kernels of 8 and 4 bits: the function of their unpacked values, and no copy of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import layers, objectives, quantization, tree
from peft_jax.backbones import hugging_face, native
from peft_jax.backbones.base import identity
from peft_jax.errors import InputError

qwix = pytest.importorskip("qwix")

# No two sizes are equal, and none is a multiple of 64.
CONFIG = pj.Config("t5", 53, 24, 48, 5, 8, 6, 7, dropout=0.0)
KINDS = pytest.mark.parametrize("kind", quantization.KINDS)


@pytest.fixture(scope="module")
def backbone():
    return pj.init_backbone(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "encoder_input_tokens": rng.integers(1, 53, (4, 10)).astype(np.int32),
        "choices": rng.integers(2, 53, (4, 3, 4)).astype(np.int32),
        "choice_mask": np.ones((4, 3), bool),
        "label": rng.integers(0, 2, 4).astype(np.int32),
    }


def kernel(dtype=jnp.float32):
    return jax.random.normal(jax.random.key(0), (3, 96, 40)).astype(dtype)


# ---------------------------------------------------------------------------------- one kernel


@KINDS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_unpacks_as_qwix_does(kind, dtype):
    packed = quantization.quantize(kernel(dtype), kind)
    assert packed.shape == (3, 96, 40)
    assert packed.dtype == dtype
    assert packed.scale.shape == ((3, 1, 40) if kind == "int8" else (3, 2, 40))
    assert jnp.dtype(packed.qvalue.dtype) == (jnp.int8 if kind == "int8" else jnp.uint4)
    ours, theirs = quantization.dequantize(packed), qwix.dequantize(packed)
    assert ours.dtype == theirs.dtype == dtype
    np.testing.assert_allclose(
        ours.astype(jnp.float32),
        theirs.astype(jnp.float32),
        rtol=0 if dtype != jnp.bfloat16 else 2**-7,
    )


@KINDS
def test_error_is_that_of_the_grid(kind):
    """Within half a step everywhere; the rms error of a normal kernel is the published one."""
    packed = quantization.quantize(kernel(), kind)
    error = np.asarray(quantization.dequantize(packed) - kernel())
    if kind == "int8":
        assert (np.abs(error) <= np.asarray(packed.scale) * 0.5001).all()
        assert np.sqrt(np.mean(error**2)) < 0.008
    else:
        assert 0.07 < np.sqrt(np.mean(error**2)) < 0.1


@KINDS
def test_product_and_gradient_are_those_of_the_values(kind):
    packed = jax.tree.map(lambda leaf: leaf[1], quantization.quantize(kernel(), kind))
    plain = quantization.dequantize(packed)
    x = jax.random.normal(jax.random.key(1), (2, 5, 96))

    def summed(weights):
        return lambda x: jnp.sum(jnp.sin(layers.linear({"kernel": weights}, x)))

    ours, theirs = (jax.jit(jax.value_and_grad(summed(w)))(x) for w in (packed, plain))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-4)


@KINDS
def test_shapes_alone_can_be_quantised(kind):
    shape = quantization.quantize(jax.ShapeDtypeStruct((3, 96, 40), jnp.bfloat16), kind)
    made = quantization.quantize(kernel(jnp.bfloat16), kind)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shape) == jax.tree.map(
        lambda a: (a.shape, a.dtype), made
    )


def test_scales_have_no_gradient():
    packed = jax.tree.map(lambda leaf: leaf[1], quantization.quantize(kernel(), "nf4"))

    def loss(scale):
        return jnp.sum(layers.matmul(jnp.ones((2, 96)), packed.replace(scale=scale)))

    with pytest.raises(InputError, match="frozen"):
        jax.grad(loss)(packed.scale)


# ---------------------------------------------------------------------------------- a backbone


def loss_and_gradients(params, batch, trained, method, config=CONFIG):
    objective = objectives.tfew_objective()
    counts = objective.counts(config, batch)

    def loss(trained):
        merged = pj.merge(params, method.bind(trained))
        return objective.value(config, merged, batch, None, counts)[0]

    return jax.value_and_grad(loss)(trained)


@pytest.mark.parametrize(
    ("kind", "remat"),
    [
        ("nf4", "dots"),
        pytest.param("int8", "none", marks=pytest.mark.slow),
        pytest.param("int8", "full", marks=pytest.mark.slow),
        pytest.param("nf4", "none", marks=pytest.mark.slow),
    ],
)
def test_a_step_is_that_of_the_unpacked_backbone(kind, remat, backbone, batch):
    """The same loss and gradients, and no stack of unpacked kernels in the compiled step."""
    method = pj.compose(pj.ia3(), pj.lora(2))
    config, packed = backbone.replace(remat=remat).config, backbone.quantize(kind)
    trained = method.init(jax.random.key(1), packed)
    trained = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), trained
    )

    def compiled(params):
        run = jax.jit(lambda p, b, t: loss_and_gradients(p, b, t, method, config))
        return run.lower(params, batch, trained).compile()

    plain = packed.dequantize().params
    ours, theirs = compiled(packed.params), compiled(plain)
    assert stacks(theirs.as_text())  # as its arguments
    assert not stacks(ours.as_text())
    ours, theirs = ours(packed.params, batch, trained), theirs(plain, batch, trained)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for one, other in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def stacks(program):
    """Arrays of floats in a compiled program that could hold a kernel of all layers."""
    return re.findall(r"(?:f32|bf16)\[(?:6|7),(?:24,40|40,24|24,48|48,24)\]", program)


def test_kernels_of_layers_alone_are_quantised(backbone):
    packed = backbone.quantize("int8")
    for path, leaf in tree.flatten(packed.params).items():
        assert quantization.is_quantized(leaf) == ("/layers/" in path and path.endswith("kernel"))
        if not quantization.is_quantized(leaf):
            assert leaf is tree.get(backbone.params, path)
    assert quantization.kind_of(packed.params) == "int8"
    assert quantization.kind_of(backbone.params) == "none"
    with pytest.raises(InputError, match="int8 already"):
        packed.quantize("nf4")
    assert tree.count(packed.params) == tree.count(backbone.params)


def test_an_adapter_does_not_tell_them_apart(backbone, tmp_path):
    packed = backbone.quantize("nf4")
    assert identity(packed) == identity(backbone)
    assert identity(packed.dequantize()) == identity(backbone)
    assert packed.fingerprint is not None


def test_bytes_count_half_bytes(backbone):
    kernels = sum(
        x.size for p, x in tree.flatten(backbone.params).items() if quantization.quantizable(p)
    )
    packed = backbone.quantize("nf4").params
    scales = sum(
        x.scale.nbytes for x in tree.flatten(packed).values() if quantization.is_quantized(x)
    )
    wanted = tree.size_in_bytes(backbone.params) - 4 * kernels + kernels // 2 + scales
    assert tree.size_in_bytes(packed) == wanted


@pytest.mark.parametrize(
    "method",
    [pj.full(), pj.partial(("mlp/wo/kernel",)), pj.top_layers(1), pj.partial(("wo/kernel",), (1,))],
    ids=["full", "partial", "top_layers", "some layers"],
)
def test_quantised_kernels_are_not_trained(method, backbone):
    with pytest.raises(InputError, match="quantised"):
        method.init(jax.random.key(0), backbone.quantize("int8"))


def test_norms_beside_quantised_kernels_are(backbone):
    stored = pj.partial(("norm/scale",)).init(jax.random.key(0), backbone.quantize("int8"))
    assert tree.count(stored) == tree.count(pj.partial(("norm/scale",)).init(None, backbone))


def test_nothing_is_folded_into_quantised_kernels(backbone):
    method = pj.lora(2)
    packed = backbone.quantize("int8")
    stored = method.init(jax.random.key(0), packed)
    with pytest.raises(InputError, match="dequantize"):
        method.fold(packed.params, stored)
    assert not quantization.is_quantized(
        method.fold(packed.dequantize().params, stored)["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    )


def test_dora_starts_at_the_quantised_weights(backbone):
    """Its magnitudes are the norms of the unpacked columns: its factors are 1 at first."""
    method, packed = pj.dora(2), backbone.quantize("nf4")
    stored = method.init(jax.random.key(0), packed)
    merged = tree.flatten(pj.merge(packed.params, method.bind(stored)))
    factors = [leaf for path, leaf in merged.items() if path.endswith("magnitude")]
    assert factors
    for factor in factors:
        np.testing.assert_allclose(factor, np.ones(factor.shape), atol=1e-5)


@pytest.mark.parametrize("write", [hugging_face.write_backbone, native.write_backbone])
def test_no_checkpoint_holds_quantised_kernels(write, backbone, tmp_path):
    with pytest.raises(InputError, match="no checkpoint format holds"):
        write(tmp_path / "folder", backbone.quantize("int8"))
    assert not (tmp_path / "folder").exists()


def test_an_unknown_kind_is_refused(backbone):
    with pytest.raises(InputError, match="one of none, int8, nf4"):
        backbone.quantize("int3")
