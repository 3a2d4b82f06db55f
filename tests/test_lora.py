"""LoRA's options: ranks and scales by module, initial factors, and what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import methods, tree
from peft_jax.errors import InputError
from peft_jax.methods.lora import _principal
from tests import oracle
from tests.random_adapters import abstract_init, adapted, assert_same_trees, backbone_of, run

EVERY_PROJECTION = ("attention/.*", "mlp/w.*")
TFEW = pj.lora(4, alpha=1, init="tfew", targets=EVERY_PROJECTION)


def t0_3b():
    return pj.abstract_backbone(pj.backbone_config("t0_3b"), jnp.bfloat16)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        # T-Few's baseline without its layer norms: 72 * 16384 + 48 * 3 * 28672.
        (TFEW, 8_847_360),
        # query and value of 72 attentions: 2 * 8 * 4096 each; A or B alone is half of it.
        (pj.lora(8, init="pissa"), 72 * 2 * 8 * 4096),
        (pj.lora(8, freeze_a=True), 72 * 2 * 8 * 2048),
        (pj.lora(8, init="pissa", freeze_a=True), 72 * 2 * 8 * 2048),
        (pj.lora(8, rank_pattern=[("cross_attention/.*", 2)]), 48 * 2 * 8 * 4096 + 24 * 16384),
    ],
    ids=["tfew", "pissa", "freeze_a", "pissa, freeze_a", "rank_pattern"],
)
def test_constants_are_not_counted(method, wanted):
    assert pj.count(abstract_init(method, t0_3b())) == wanted


# ------------------------------------------------------------------------------ patterns


def test_rank_and_alpha_differ_by_module_and_the_first_pattern_counts():
    method = pj.lora(
        3,
        alpha=6,
        targets=EVERY_PROJECTION,
        rank_pattern=[("self_attention/query", 5), ("query", 2), ("wo", 4)],
        alpha_pattern=[("mlp/.*", 10), ("wo", 1)],
    )
    _, stored = adapted(backbone_of(), method)
    bound, stored = tree.flatten(method.bind(stored)), tree.flatten(stored)
    for path, b in stored.items():
        module, _, kind = path.rpartition("/")
        rank = {"query": 2, "wo": 4}.get(module.split("/")[-1], 3)
        rank = 5 if module.endswith("self_attention/query") else rank
        alpha = 10 if "/mlp/" in module else 6
        assert b.shape[-1 if kind == "lora_a" else -2] == rank, path
        scale = alpha / rank if kind == "lora_b" else 1
        np.testing.assert_allclose(bound[path], scale * b, rtol=1e-6, err_msg=path)


def test_without_alpha_the_scale_is_one_at_every_rank():
    method = pj.lora(3, rank_pattern=[("query", 2)])
    _, stored = adapted(backbone_of(), method)
    assert_same_trees(method.bind(stored), stored)
    rslora = tree.flatten(pj.lora(3, rank_pattern=[("query", 2)], rslora=True).bind(stored))
    for path, leaf in tree.flatten(stored).items():
        rank = 2 if "query" in path else 3
        factor = rank**0.5 if path.endswith("lora_b") else 1
        np.testing.assert_allclose(rslora[path], factor * leaf, rtol=1e-6)


# ------------------------------------------------------------------------------ initial factors


@pytest.mark.parametrize(("init", "std"), [("gaussian", 1 / 8), ("tfew", 0.01)])
def test_a_is_drawn_with_the_deviation_of_its_source(init, std):
    stored = pj.lora(8, init=init, targets=EVERY_PROJECTION).init(jax.random.key(0), backbone_of())
    stored = tree.flatten(stored)
    drawn = np.concatenate([x.ravel() for path, x in stored.items() if path.endswith("lora_a")])
    assert drawn.std() == pytest.approx(std, rel=5 / np.sqrt(2 * drawn.size))
    assert abs(drawn.mean()) < 5 * std / np.sqrt(drawn.size)
    assert all(not x.any() for path, x in stored.items() if path.endswith("lora_b"))


PISSA = {
    "all": pj.lora(5, alpha=2, init="pissa", targets=(*EVERY_PROJECTION, "lm_head")),
    "layers": pj.lora(5, init="pissa", layers=(1,)),
    "freeze_a": pj.lora(5, alpha=2, init="pissa", freeze_a=True),
}

FEW = ("layers", "freeze_a")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", *(pytest.param(n, marks=pytest.mark.slow) for n in FEW)])
def test_pissa_takes_off_what_it_starts_from(name):
    """The initial function, and W + s (A B - A0 B0) once the factors have moved."""
    backbone, method = backbone_of(), PISSA[name]
    stored = method.init(jax.random.key(0), backbone)
    start = run(backbone, pj.merge(backbone.params, method.bind(stored)))
    oracle.assert_close(start, run(backbone, backbone.params), 3e-6)
    trained, fixed = tree.split_fixed(stored)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype("f4"), trained)
    folded = tree.flatten(method.fold(backbone.params, tree.join(moved, fixed)))
    flat = tree.flatten(tree.join(moved, fixed))
    scale, layers = method.spec["alpha"] or 5, method.spec["layers"] or slice(None)
    for path, b in tree.flatten(moved).items():
        if not path.endswith("lora_b"):
            continue
        module = path.removesuffix("/lora_b")
        own = np.asarray(tree.get(backbone.params, f"{module}/kernel"))
        a0, b0 = (np.asarray(flat[f"{module}/fixed/{x}"]) for x in ("lora_a", "lora_b"))
        a = flat.get(f"{module}/lora_a", a0)
        wanted = own.copy()
        at = layers if own.ndim == 3 else slice(None)
        wanted[at] += (a @ b - a0 @ b0) * (scale / 5)
        oracle.assert_close(folded[f"{module}/kernel"], wanted, 1e-6, module)
        u, s, v = np.linalg.svd(own[at], full_matrices=False)
        principal = (u[..., :5] * s[..., None, :5]) @ v[..., :5, :]
        oracle.assert_close(a0 @ b0 * (scale / 5), principal, 1e-4, module)


def test_power_iterations_find_the_same_principal_part():
    """Of a kernel whose singular values fall as trained ones do; fewer iterations, further off."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((n, 60)))[0] for n in (80, 60))
    values = 1 / np.arange(1, 61) ** 0.5
    kernel = jnp.asarray((u * values) @ v.T, jnp.float32)
    best = (u[:, :8] * values[:8]) @ v[:, :8].T
    errors = []
    for iterations in (0, 2, 16):
        a, b = _principal(jax.random.key(0), kernel, 8, iterations)
        errors.append(np.abs(a @ b - best).max() / np.abs(best).max())
        np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1), rtol=1e-5)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4
    method = pj.lora(3, alpha=6, init="pissa", svd_iterations=16, targets="value")
    exact = pj.lora(3, alpha=6, init="pissa", targets="value")
    ours, wanted = (tree.flatten(m.init(jax.random.key(0), backbone_of())) for m in (method, exact))
    for path in [p for p in wanted if p.endswith("/lora_a")]:
        other = path.replace("lora_a", "lora_b")
        oracle.assert_close(ours[path] @ ours[other], wanted[path] @ wanted[other], 1e-2, path)


def test_a_frozen_a_is_a_constant_of_the_same_function():
    backbone = backbone_of()
    frozen, both = pj.lora(3, alpha=7, freeze_a=True), pj.lora(3, alpha=7)
    stored = frozen.init(jax.random.key(5), backbone)
    trained, fixed = tree.split_fixed(stored)
    assert all(path.endswith("/lora_b") for path in tree.flatten(trained))
    assert all(path.endswith("/fixed/lora_a") for path in tree.flatten(fixed))
    moved = jax.tree.map(lambda x: x + 0.5, tree.flatten(trained))
    flat = moved | {p.replace("/fixed", ""): x for p, x in tree.flatten(fixed).items()}
    same = both.bind(tree.unflatten(flat))
    assert_same_trees(frozen.bind(tree.join(tree.unflatten(moved), fixed)), same)
    # The same draw as without freezing.
    plain = tree.flatten(both.init(jax.random.key(5), backbone))
    for path, leaf in flat.items():
        if path.endswith("lora_a"):
            np.testing.assert_array_equal(leaf, plain[path])


# ------------------------------------------------------------------------------ files and errors


def test_adapters_saved_before_the_options_were_there_are_read():
    spec = {"name": "lora", "rank": 2, "alpha": 2.0, "targets": ["query"], "layers": [1]}
    method = methods.from_spec(spec | {"dropout": 0.0, "rslora": False})
    _, stored = adapted(backbone_of(), method)
    assert_same_trees(method.bind(stored), pj.lora(2, targets="query", layers=(1,)).bind(stored))


@pytest.mark.parametrize("name", ["layers", "freeze_a"])
def test_constants_are_saved_with_the_adapter(name, tmp_path):
    backbone, method = backbone_of(), PISSA[name]
    stored = method.init(jax.random.key(0), backbone)
    pj.save_adapter(tmp_path / "a.safetensors", stored, method, backbone)
    again, loaded = pj.load_adapter(tmp_path / "a.safetensors", backbone)
    assert loaded.spec == method.spec
    assert_same_trees(again, stored)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pj.lora(init="svd"), "init 'svd' is unknown; one of uniform, gaussian, tfew, pi"),
        (lambda: pj.lora(svd_iterations=2), "svd_iterations 2 must be .* for init 'pissa' alone"),
        (lambda: pj.lora(init="pissa", svd_iterations=-1), "svd_iterations -1 must be at least 0"),
        (lambda: pj.lora(init="pissa", dropout=0.1), "dropout 0.1 does not go with init 'pissa'"),
        (lambda: pj.lora(rank_pattern=[("wo", 0)]), "rank_pattern's value for 'wo': 0 must be a w"),
        (
            lambda: pj.lora(alpha_pattern=[("wo", 0)]),
            "alpha_pattern's value for 'wo': 0 must be a",
        ),
        (lambda: pj.lora(rank_pattern=["wo"]), "rank_pattern has 'wo'; give pairs"),
        (lambda: pj.lora(rank_pattern=[(4, "wo")]), r"rank_pattern has \(4, 'wo'\); give pairs"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            pj.lora(rank_pattern=[("mlp/wo", 2)]),
            "module of rank_pattern 'mlp/wo' matches nothing; nearest: ",
        ),
        (
            pj.lora(alpha_pattern=[("quarry", 2)]),
            "module of alpha_pattern 'quarry' matches nothing; nearest: .*query",
        ),
        (pj.lora(19, init="pissa"), "rank 19 is above the 18 singular values of 'encoder/"),
    ],
)
def test_what_does_not_fit_the_backbone_is_named(method, message):
    with pytest.raises(InputError, match=message):
        abstract_init(method, backbone_of())
