"""DoRA: its magnitudes, norms and gradients, against the formula written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import methods, tree
from peft_jax.errors import InputError
from tests import oracle
from tests.families import quickly
from tests.random_adapters import abstract_init, backbone_of

EVERY_PROJECTION = ("attention/.*", "mlp/w.*")
METHODS = {
    "all": pj.dora(3, alpha=7, targets=EVERY_PROJECTION, rank_pattern=[("wo", 2)]),
    "layers": pj.dora(3, rslora=True, layers=(1,)),
}
over_methods = pytest.mark.parametrize("name", quickly(METHODS, ("layers",)))


def random_adapter(method, backbone):
    """Magnitudes around the kernels' own, and factors of both kinds that matter."""
    rng = np.random.default_rng(0)

    def leaf(path, x):
        noise = rng.standard_normal(x.shape).astype(np.float32)
        return x * (1 + 0.2 * noise) if path.endswith("magnitude") else 0.3 * noise

    return tree.map_with_path(leaf, method.init(jax.random.key(0), backbone))


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        # query and value of 72 attentions: rank (in + out) + out.
        (pj.dora(8), 144 * (8 * 4096 + 2048)),
        (pj.dora(8, layers=(0, 23)), 12 * (8 * 4096 + 2048)),
        (pj.dora(4, targets="mlp/wo"), 48 * (4 * 7168 + 2048)),
    ],
)
def test_counts(method, wanted):
    backbone = pj.abstract_backbone(pj.backbone_config("t0_3b"), jnp.bfloat16)
    assert pj.count(abstract_init(method, backbone)) == wanted


@over_methods
def test_starts_at_the_kernels_norms_which_change_nothing(name):
    backbone, method = backbone_of(), METHODS[name]
    stored = method.init(jax.random.key(0), backbone)
    layers = method.spec["layers"] or slice(None)
    magnitudes = {p: x for p, x in tree.flatten(stored).items() if p.endswith("/magnitude")}
    assert magnitudes
    for path, magnitude in magnitudes.items():
        kernel = np.asarray(tree.get(backbone.params, path.replace("magnitude", "kernel")))[layers]
        np.testing.assert_allclose(magnitude, np.linalg.norm(kernel, axis=-2), rtol=1e-6)
    for path, factor in tree.flatten(pj.merge(backbone.params, method.bind(stored))).items():
        if path.endswith("/magnitude"):
            np.testing.assert_array_equal(factor, 1, err_msg=path)


@over_methods
def test_folded_columns_have_the_stored_magnitudes_and_the_updates_directions(name):
    backbone, method = backbone_of(), METHODS[name]
    stored = random_adapter(method, backbone)
    folded, flat = tree.flatten(method.fold(backbone.params, stored)), tree.flatten(stored)
    layers = method.spec["layers"]
    for path, kernel in folded.items():
        module = path.removesuffix("/kernel")
        own = np.asarray(tree.get(backbone.params, path), np.float64)
        if f"{module}/magnitude" in flat:
            a, b, m = (
                np.asarray(flat[f"{module}/{x}"], np.float64)
                for x in ("lora_a", "lora_b", "magnitude")
            )
            rank = a.shape[-1]
            scale = 7 / rank if name == "all" else rank / rank**0.5
            at = layers or slice(None)
            updated = own[at] + scale * a @ b
            wanted = own.copy()
            wanted[at] = m[:, None] * updated / np.linalg.norm(updated, axis=-2, keepdims=True)
            oracle.assert_close(kernel, wanted, 2e-6, path)
        else:
            np.testing.assert_array_equal(kernel, own, err_msg=path)


def test_the_norm_is_a_constant_for_the_gradient():
    """Section 4.3: what the factors change is the direction, as if the norm stayed."""
    method = pj.dora(2, targets="wo")
    backbone = backbone_of()
    stored = random_adapter(method, backbone)
    module = "encoder/layers/mlp/wo"
    frozen = tree.get(backbone.params, module)
    rng = np.random.default_rng(0)
    cotangent = rng.standard_normal(frozen["kernel"].shape).astype(np.float32)

    def value(stored, norm=None):
        a, b, m = (tree.get(stored, f"{module}/{x}") for x in ("lora_a", "lora_b", "magnitude"))
        updated = frozen["kernel"] + a @ b
        norm = jnp.linalg.norm(updated, axis=-2) if norm is None else norm
        return jnp.vdot(updated * (m / norm)[:, None], cotangent), norm

    def ours(stored):
        return jnp.vdot(
            tree.get(method.fold(backbone.params, stored), f"{module}/kernel"), cotangent
        )

    total, norm = value(stored)
    assert float(ours(stored)) == pytest.approx(float(total), rel=1e-5)
    wanted = jax.grad(lambda s: value(s, norm)[0])(stored)
    gradients = jax.grad(ours)(stored)
    for kind in ("lora_a", "lora_b", "magnitude"):
        path = f"{module}/{kind}"
        oracle.assert_close(tree.get(gradients, path), tree.get(wanted, path), 1e-5, kind)


def test_it_meets_no_other_lora():
    method = pj.compose(pj.dora(2), pj.lora(2))
    with pytest.raises(InputError, match=r"DoRA and another method meet at '.*query/lora_a'"):
        abstract_init(method, backbone_of())


def test_a_spec_makes_the_same_method_again():
    method = pj.dora(3, init="pissa", svd_iterations=4, rank_pattern=[("query", 2)], layers=(1,))
    assert methods.from_spec(method.spec).spec == method.spec


def test_a_rank_of_zero_is_refused():
    with pytest.raises(InputError, match="rank 0 must be a whole number"):
        pj.dora(0)
