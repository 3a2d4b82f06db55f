"""The step: its pieces add up, however the batch is cut and wherever it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peft_jax as pj
from peft_jax import objectives, sharding, train

CONFIG = pj.Config("t5", 53, 16, 24, 2, 8, 2, 2, dropout=0.1, remat="none")
COMPOSED = pj.compose(pj.ia3(), pj.lora(2), pj.prompt_tuning(3))


@pytest.fixture(scope="module")
def backbone():
    return pj.init_backbone(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    choices = rng.integers(2, 53, (8, 3, 4))
    choices[:, 1, 2:] = 0
    mask = np.ones((8, 3), bool)
    mask[::2, 2] = False
    return {
        "encoder_input_tokens": rng.integers(1, 53, (8, 10)).astype(np.int32),
        "choices": choices.astype(np.int32),
        "choice_mask": mask,
        "label": rng.integers(0, 2, 8).astype(np.int32),
    }


@pytest.fixture(scope="module")
def lm_batch():
    rng = np.random.default_rng(1)
    targets = rng.integers(2, 53, (8, 6)).astype(np.int32)
    targets[:4, 3:] = 0
    return {
        "encoder_input_tokens": rng.integers(1, 53, (8, 10)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
    }


def run(backbone, method, batch, objective, steps=8, mesh=None, **options):
    optimizer = optax.adam(1e-2)
    adapter = method.init(jax.random.key(1), backbone)
    state = train.init_state(adapter, optimizer, jax.random.key(2))
    step = train.make_train_step(backbone, method, optimizer, objective, mesh=mesh, **options)
    placed = batch if mesh is None or "parallel" in options else sharding.put_batch(mesh, batch)
    history = []
    for _ in range(steps):
        state, metrics = step(state, backbone.params, placed)
        history.append(jax.device_get(metrics))
    return jax.device_get(state.trainable), history


def assert_same_run(one, other, tolerance=1e-5):
    for a, b in zip(one[1], other[1], strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=20 * tolerance, atol=20 * tolerance),
        one[0],
        other[0],
    )


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["tfew", pytest.param("lm", marks=pytest.mark.slow)])
def test_pmap_and_accumulation_equal_one_batch(backbone, batch, lm_batch, objective):
    # Without dropout: the pieces draw other masks than the whole would.
    backbone, method = backbone.replace(dropout=0.0), COMPOSED
    batch = batch if objective == "tfew" else lm_batch
    objective = objectives.tfew_objective() if objective == "tfew" else objectives.lm_objective()
    one = run(backbone, method, batch, objective)
    assert_same_run(one, run(backbone, method, batch, objective, accumulate=4))
    assert_same_run(one, run(backbone, method, batch, objective, parallel="pmap"))
    mesh = sharding.make_mesh(4)
    assert_same_run(one, run(backbone, method, batch, objective, mesh=mesh, accumulate=2))


def test_dropout_differs_between_steps_and_devices(backbone, batch):
    frozen_rate = optax.sgd(0.0)
    method = pj.ia3()
    state = train.init_state(
        method.init(jax.random.key(1), backbone), frozen_rate, jax.random.key(2)
    )
    step = train.make_train_step(backbone, method, frozen_rate, objectives.tfew_objective())
    state, first = step(state, backbone.params, batch)
    state, second = step(state, backbone.params, batch)
    assert float(first["loss"]) != float(second["loss"])


def test_the_state_is_donated_and_nothing_else(backbone, batch):
    method, optimizer = pj.ia3(), optax.adam(1e-3)
    adapter = method.init(jax.random.key(1), backbone)
    state = train.init_state(adapter, optimizer, jax.random.key(2))
    step = train.make_train_step(backbone, method, optimizer, objectives.tfew_objective())
    step(state, backbone.params, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((adapter, backbone.params)))


def test_another_adapter_and_backbone_compile_nothing(backbone, batch):
    method, optimizer = pj.ia3(), optax.adam(1e-3)
    step = train.make_train_step(backbone, method, optimizer, objectives.tfew_objective())
    for seed in range(3):
        other = pj.init_backbone(CONFIG, jax.random.key(seed))
        adapter = method.init(jax.random.key(seed), other)
        step(train.init_state(adapter, optimizer, jax.random.key(seed)), other.params, batch)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": "shard"}, "jit"),
        ({"accumulate": 0}, "at least 1"),
    ],
)
def test_bad_options(backbone, options, message):
    with pytest.raises(pj.InputError, match=message):
        train.make_train_step(
            backbone, pj.ia3(), optax.sgd(0.1), objectives.tfew_objective(), **options
        )


def test_uneven_accumulation(backbone, batch):
    with pytest.raises(pj.InputError, match="batch of 8"):
        run(backbone, pj.ia3(), batch, objectives.tfew_objective(), steps=1, accumulate=3)


def test_mesh_sizes():
    assert sharding.make_mesh(6).size == 6
    assert sharding.make_mesh(12).size == 6
    assert sharding.make_mesh().size == jax.local_device_count()
    with pytest.raises(pj.InputError, match="does not divide"):
        sharding.make_mesh(6, 4)
    with pytest.raises(pj.InputError, match="there are"):
        sharding.make_mesh(6, 99)


@pytest.mark.slow
def test_gradient_norm_is_reported_before_clipping(backbone, batch):
    _, history = run(backbone, pj.ia3(), batch, objectives.tfew_objective(), steps=1)

    def loss(adapter):
        params = pj.merge(backbone.params, pj.ia3().bind(adapter))
        counts = objectives.tfew_objective().counts(CONFIG, batch)
        key = jax.random.fold_in(jax.random.key(2), 0)
        return objectives.tfew_objective().value(CONFIG, params, batch, key, counts)[0]

    gradient = jax.grad(loss)(pj.ia3().init(jax.random.key(1), backbone))
    np.testing.assert_allclose(
        history[0]["gradient_norm"],
        jnp.sqrt(optax.tree_utils.tree_l2_norm(gradient, squared=True)),
        rtol=1e-5,
    )
