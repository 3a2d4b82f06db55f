"""AdaLoRA's form, and a training run that allots its ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import methods, objectives, train, tree
from peft_jax.errors import InputError
from peft_jax.optimizers import OptimizerConfig, make_optimizer
from peft_jax.rank_allocation import allocated_ranks
from tests import oracle
from tests.families import quickly
from tests.random_adapters import abstract_init, adapted, backbone_of

METHODS = {
    "all": pj.adalora(3, 2, alpha=7, targets=("attention/.*", "mlp/w.*")),
    "layers": pj.adalora(3, 2, layers=(1,)),
}
over_methods = pytest.mark.parametrize("name", quickly(METHODS, ("layers",)))


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        # query and value of 72 attentions: rank (in + out + 1).
        (pj.adalora(), 144 * 12 * 4097),
        (pj.adalora(4, 2, targets="mlp/wo", layers=(0, 5)), 4 * 4 * 7169),
    ],
)
def test_counts(method, wanted):
    backbone = pj.abstract_backbone(pj.backbone_config("t0_3b"), jnp.bfloat16)
    assert pj.count(abstract_init(method, backbone)) == wanted


@over_methods
def test_starts_with_drawn_vectors_and_no_singular_values(name):
    backbone, method = backbone_of(), METHODS[name]
    stored = method.init(jax.random.key(0), backbone)
    flat = tree.flatten(stored)
    assert all(not x.any() for path, x in flat.items() if path.endswith("lora_e"))
    drawn = [x.ravel() for path, x in flat.items() if not path.endswith("lora_e")]
    assert len({x.tobytes() for x in drawn}) == len(drawn)
    drawn = np.concatenate(drawn)
    assert drawn.std() == pytest.approx(0.02, rel=5 / np.sqrt(2 * drawn.size))


@over_methods
def test_folded_is_the_formula(name):
    backbone = backbone_of()
    method, stored = adapted(backbone, METHODS[name], noise=0.5)
    flat = {path: np.asarray(x, np.float64) for path, x in tree.flatten(stored).items()}
    scale = (method.spec["alpha"] or 3) / (3 + 1e-5)
    for path, kernel in tree.flatten(method.fold(backbone.params, stored)).items():
        module = path.removesuffix("/kernel")
        wanted = np.asarray(tree.get(backbone.params, path), np.float64).copy()
        if f"{module}/lora_e" in flat:
            q, e, p = (flat[f"{module}/lora_{x}"] for x in "aeb")
            wanted[method.spec["layers"] or slice(None)] += scale * (q * e[:, None]) @ p
        oracle.assert_close(kernel, wanted, 1e-6, path)


def test_a_spec_makes_the_same_method_again():
    method = pj.adalora(5, 3, alpha=2.0, interval=4, beta2=0.5, final_steps=1, orthogonality=0.1)
    assert methods.from_spec(method.spec).spec == method.spec


# ------------------------------------------------------------------------------ training

STEPS = 10
CONFIG = pj.Config("t5", 53, 16, 24, 2, 8, 2, 2, dropout=0.0, remat="none")


@pytest.mark.slow
def test_training_allots_the_ranks_compiles_once_and_leaves_constants_alone():
    """AdaLoRA beside a LoRA-FA on other targets: one program, one state, one optimiser."""
    method = pj.compose(
        pj.adalora(4, 1, initial_steps=2, final_steps=3, interval=2),
        pj.lora(2, targets="mlp/wo", freeze_a=True),
    )
    backbone = pj.init_backbone(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(0)
    targets = rng.integers(2, 53, (4, 3)).astype(np.int32)
    batch = {
        "encoder_input_tokens": rng.integers(1, 53, (4, 5)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
    }
    config = OptimizerConfig(
        name="adam", learning_rate=1e-2, total_steps=STEPS, schedule="constant"
    )
    optimizer = make_optimizer(config, method)
    stored = method.init(jax.random.key(1), backbone)
    state = train.init_state(stored, optimizer, jax.random.key(2))
    step = train.make_train_step(backbone, method, optimizer, objectives.lm_objective())
    used = []
    for _ in range(STEPS):
        state, metrics = step(state, backbone.params, batch)
        used.append(sum(ranks.sum() for ranks in allocated_ranks(state.stored).values()))
    assert step._cache_size() == 1
    assert np.isfinite(metrics["loss"])
    # Twelve matrices of rank 4: all at first, one each from the 7th step on.
    assert used[:3] == [48, 48, 48]
    assert used[6:] == [12, 12, 12, 12]
    assert 12 < used[3] < 48
    ranks = np.concatenate(list(allocated_ranks(state.stored).values()))
    assert ranks.max() > 1, "where ranks are is not decided in advance"
    before, after = tree.flatten(stored), tree.flatten(state.stored)
    assert before.keys() == after.keys()
    for path, leaf in after.items():
        still = "/fixed/" in path or (path.endswith("lora_e") and not leaf.any())
        assert np.array_equal(leaf, before[path]) == still, path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pj.adalora(0), "rank 0 must be a whole number"),
        (lambda: pj.adalora(4, 5), "target_rank 5 is above the rank at the start, 4"),
        (lambda: pj.adalora(4, 0), "target_rank 0 must be a whole number"),
        (lambda: pj.adalora(alpha=-1), "alpha -1 must be above 0"),
        (lambda: pj.adalora(interval=0), "interval 0 must be a whole number of at least 1"),
        (lambda: pj.adalora(initial_steps=0.5), "initial_steps 0.5 must be a whole number"),
        (lambda: pj.adalora(final_steps=-1), "final_steps -1 must be a whole number"),
        (lambda: pj.adalora(beta1=1.0), "beta1 1.0 must lie between 0 and 1"),
        (lambda: pj.adalora(orthogonality=-0.5), "orthogonality -0.5 must be at least 0"),
        (lambda: pj.adalora(dropout=1.0), "dropout 1.0 must be"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
