"""Methods that the laws are tested over, and random backbones and adapters for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import transformer, tree
from tests.families import FAMILIES, quickly
from tests.test_transformer import CONFIG, V1_0, random_batch

CONFIGS = {"v1_0": V1_0, "v1_1": CONFIG} | FAMILIES
# Several of them have leaves of equal shapes, so that one compiled program runs them all.
METHODS = {
    "ia3": pj.ia3(),
    "ia3, some layers": pj.ia3(layers=(1,)),
    "lora": pj.lora(2, alpha=3.0),
    "lora, some layers": pj.lora(2, alpha=5.0, layers=(1, 0)),
    "two loras": pj.compose(pj.lora(1, alpha=0.5), pj.lora(1)),
    "everywhere": pj.compose(
        pj.lora(3, alpha=5.0, targets=("mlp/.*", "out"), rslora=True), pj.ia3(targets=".*")
    ),
    "bitfit": pj.bitfit(),
    "prompt": pj.prompt_tuning(3, where="both"),
    "full": pj.full(),
    "composed": pj.compose(pj.ia3(), pj.lora(2), pj.prompt_tuning(3)),
}
PROMPTED = ("prompt", "composed")
PROMPTLESS = [name for name in METHODS if name not in PROMPTED]
# A T5 has no place for the biases that BitFit adds.
FOLDABLE = [name for name in PROMPTLESS if name != "bitfit"]

over_methods = pytest.mark.parametrize("name", METHODS)
over_promptless = pytest.mark.parametrize("name", PROMPTLESS)
over_foldable = pytest.mark.parametrize("name", FOLDABLE)
over_t5 = pytest.mark.parametrize("version", ["v1_0", "v1_1"])
# The T5s are there under their short names already.
over_configs = pytest.mark.parametrize(
    "version",
    quickly([c for c in CONFIGS if not c.startswith("t5")], ("v1_1", "gemma3")),
)


@functools.cache
def backbone_of(version="v1_1", dtype=jnp.float32):
    return draw_backbone(CONFIGS[version], dtype)


def draw_backbone(config, dtype=jnp.float32):
    """Random weights, the norms' too. NumPy draws them: jax would compile a program per shape."""
    rng = np.random.default_rng(0)
    flat = tree.flatten(transformer.specification(config))
    params = {path: _random(rng, path, spec) for path, spec in flat.items()}
    params = {path: jnp.asarray(x, jnp.float32).astype(dtype) for path, x in params.items()}
    return pj.Backbone(tree.unflatten(params), config, "random")


def _random(rng, path, spec):
    """Drawn so that every leaf matters: biases are not zero, and no state vanishes."""
    if spec.std is None:
        return rng.uniform(0.5, 1.5, spec.shape)
    if not spec.std:
        return 0.3 * rng.standard_normal(spec.shape)
    width = spec.shape[-2] if path.endswith("kernel") else 1
    std = spec.std if spec.std != 0.02 else width**-0.5
    return std * rng.standard_normal(spec.shape)


def adapted(backbone, *parts, noise=0.1, seed=0):
    """A composed method and a random adapter of it: noise on what changes nothing."""
    method = pj.compose(*parts)
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        values = noise * rng.standard_normal(shape.shape)
        if path.endswith("/ia3"):
            values = 1 + values
        elif path.startswith("full/") or method.spec["name"] == "full":
            values = values + tree.get(backbone.params, path.removeprefix("full/"))
        return jnp.asarray(values, jnp.float32)

    return method, tree.map_with_path(leaf, abstract_init(method, backbone))


@functools.cache
def adapted_backbone(name, version):
    """A backbone, a method and a random adapter of it."""
    backbone = backbone_of(version)
    return backbone, *adapted(backbone, METHODS[name])


@functools.cache
def compiled_logits(config):
    return jax.jit(functools.partial(transformer.logits, config))


def run(backbone, params, key=None):
    return np.asarray(compiled_logits(backbone.config)(params, random_batch(), key))


def assert_same_trees(one, other):
    assert tree.flatten(one).keys() == tree.flatten(other).keys()
    jax.tree.map(np.testing.assert_array_equal, one, other)


def abstract_init(method, backbone):
    return jax.eval_shape(method.init, jax.random.key(0), backbone)
