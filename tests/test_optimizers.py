"""The optimisers against transformers, torch, T5X and T-Few, and the laws of stacked layers."""

import dataclasses
import doctest
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peft_jax import optimizers, tree
from peft_jax.errors import InputError
from peft_jax.optimizers import OptimizerConfig, learning_rate_at, make_optimizer

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "optimizers.npz"))
STEPS = 6
CONSTANT = OptimizerConfig(
    learning_rate=3e-2, schedule="constant", clip_norm=None, total_steps=STEPS
)
HUGGING_FACE = {
    "tfew": OptimizerConfig(total_steps=STEPS, warmup_ratio=0.3),
    "scaled": CONSTANT,
    "unscaled": dataclasses.replace(CONSTANT, scale_parameter=False),
    "decayed": dataclasses.replace(CONSTANT, weight_decay=0.1),
}


def golden(run: str) -> dict[str, np.ndarray]:
    return {k[len(run) + 1 :]: v for k, v in GOLDEN.items() if k.startswith(run + ":")}


def follow(optimizer, params, gradients, jit=True):
    """Every leaf after every step, [STEPS, *shape], by path."""

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    def run(params, gradients):
        return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]

    if jit:
        return tree.flatten(jax.jit(run)(params, gradients))
    carry, after = (params, optimizer.init(params)), []
    for k in range(STEPS):
        carry, current = step(carry, jax.tree.map(lambda g, k=k: g[k], gradients))
        after.append(current)
    return tree.flatten(jax.tree.map(lambda *steps: jnp.stack(steps), *after))


def assert_close(ours, expected, relative=2e-6):
    """Within `relative` of a layer's largest entry at that step: every layer counts for itself."""
    assert ours.keys() == expected.keys()
    for path, theirs in expected.items():
        axes = tuple(range(2 if optimizers.is_stacked(path) else 1, theirs.ndim))
        size = np.abs(theirs).max(axis=axes, keepdims=True)
        assert (np.abs(ours[path] - theirs) <= relative * size).all(), path


def test_docstring_examples():
    assert doctest.testmod(optimizers).failed == 0


# -------------------------------------------------------------------------------------- Adafactor


@pytest.mark.parametrize("run", HUGGING_FACE)
def test_stacked_leaves_move_as_hugging_faces_separate_tensors(run):
    params, gradients = tree.unflatten(golden("params")), tree.unflatten(golden("gradients"))
    ours = follow(make_optimizer(HUGGING_FACE[run]), params, gradients)
    assert_close(ours, golden(run))


def test_without_jit_the_same():
    path = "lora/decoder/layers/attention/query/lora_a"
    params, gradients = ({path: golden(k)[path]} for k in ("params", "gradients"))
    params, gradients = tree.unflatten(params), tree.unflatten(gradients)
    ours = follow(make_optimizer(HUGGING_FACE["scaled"]), params, gradients, jit=False)
    assert_close(ours, {path: golden("scaled")[path]})


def test_what_the_equality_guards_against():
    """optax.adafactor on the stacked leaf takes scale, rows and clipping over all layers."""
    for path in ("ia3/encoder/layers/mlp/ia3", "lora/decoder/layers/attention/query/lora_a"):
        params, gradients = ({path: golden(k)[path]} for k in ("params", "gradients"))
        optimizer = optax.adafactor(3e-2, min_dim_size_to_factor=0)
        theirs = follow(optimizer, tree.unflatten(params), tree.unflatten(gradients))
        with pytest.raises(AssertionError):
            assert_close(theirs, {path: golden("scaled")[path]}, relative=1e-2)


@pytest.mark.parametrize("scale_parameter", [True, False])
@pytest.mark.parametrize("shape", [(16,), (16, 1), (5, 9), (9, 5)])
def test_a_leaf_outside_the_layers_moves_as_with_optax(shape, scale_parameter):
    rng = np.random.default_rng(0)
    params = {"prompt": rng.standard_normal(shape).astype(np.float32)}
    gradients = {"prompt": rng.standard_normal((STEPS, *shape)).astype(np.float32)}
    config = dataclasses.replace(CONSTANT, scale_parameter=scale_parameter)
    theirs = optax.adafactor(
        3e-2, min_dim_size_to_factor=0, multiply_by_parameter_scale=scale_parameter
    )
    ours = follow(make_optimizer(config), params, gradients)
    assert_close(ours, follow(theirs, params, gradients))


@pytest.mark.oracle
@pytest.mark.parametrize("options", [{}, {"scale_parameter": False}, {"weight_decay": 0.3}])
@pytest.mark.parametrize(
    ("path", "shape", "of_layer"),
    [
        ("encoder/layers/attention/key/ia3", (4, 24), (24,)),
        ("encoder/layers/attention/key/ia3", (4, 24), (24, 1)),
        ("encoder/layers/attention/query/lora_a", (4, 24, 3), (24, 3)),
        ("encoder/layers/attention/query/lora_b", (4, 3, 24), (3, 24)),
        ("encoder/prompt", (10, 24), None),
    ],
)
def test_live_against_hugging_face(path, shape, of_layer, options):
    torch = pytest.importorskip("torch")
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    rng = np.random.default_rng(1)
    sizes = 10.0 ** rng.uniform(-2, 1, (shape[0], *[1] * (len(shape) - 1)))
    x = (sizes * rng.standard_normal(shape)).astype(np.float32)
    gradients = (sizes * rng.standard_normal((STEPS, *shape))).astype(np.float32)
    layers = x[None] if of_layer is None else x
    tensors = [torch.nn.Parameter(torch.tensor(a).reshape(of_layer or shape)) for a in layers]
    optimizer = adafactor(tensors, lr=3e-2, relative_step=False, **options)
    expected = []
    for gradient in gradients:
        for tensor, g in zip(tensors, gradient if of_layer else gradient[None], strict=True):
            tensor.grad = torch.tensor(g).reshape(tensor.shape)
        optimizer.step()
        expected.append(np.stack([a.detach().numpy() for a in tensors]).reshape(shape))
    ours = make_optimizer(dataclasses.replace(CONSTANT, **options))
    ours = follow(ours, tree.unflatten({path: x}), tree.unflatten({path: gradients}))
    assert_close(ours, {path: np.stack(expected)})


@pytest.mark.parametrize(
    ("run", "options"),
    [("t5x", {}), ("t5x_decayed", {"scale_parameter": False, "weight_decay": 1e-2})],
)
def test_t5x_conventions_equal_t5x(run, options, monkeypatch):
    # The golden leaves are small: both sides factor from 4 on, where T5X's default is 128.
    monkeypatch.setattr(optimizers, "_T5X_SHORTEST_FACTORED", 4)
    expected = golden(run)
    params, gradients = (
        tree.unflatten({k: v for k, v in golden(kind).items() if k in expected})
        for kind in ("params", "gradients")
    )
    config = dataclasses.replace(CONSTANT, name="adafactor_t5x", learning_rate=0.3, **options)
    assert_close(follow(make_optimizer(config), params, gradients), expected)


@pytest.mark.parametrize(
    ("name", "path", "shape", "factored"),
    [
        ("adafactor", "encoder/layers/query/lora_a", (3, 12, 4), True),
        ("adafactor", "encoder/layers/key/ia3", (128, 256), False),
        ("adafactor", "encoder/prompt", (20, 8), True),
        ("adafactor_t5x", "encoder/layers/query/lora_a", (3, 256, 4), False),
        ("adafactor_t5x", "encoder/layers/query/kernel", (3, 256, 128), True),
        ("adafactor_t5x", "encoder/layers/query/kernel", (3, 256, 127), False),
        ("adafactor_t5x", "encoder/prompt", (128, 128), False),
    ],
)
def test_which_leaves_are_factored(name, path, shape, factored):
    params = tree.unflatten({path: jnp.zeros(shape)})
    state = jax.eval_shape(
        make_optimizer(OptimizerConfig(name=name, total_steps=9, clip_norm=None)).init, params
    )
    shapes = [tree.flatten(t)[path].shape for t in (state[0].rows, state[0].columns)]
    assert shapes == ([shape[:-1], shape[:-2] + shape[-1:]] if factored else [(1,), (1,)])
    assert tree.flatten(state[0].elements)[path].shape == ((1,) if factored else shape)


def test_zero_gradients_and_zero_parameters_stay_finite():
    params = tree.unflatten({"encoder/layers/lora_b": jnp.zeros((2, 4, 8))})
    gradients = tree.unflatten({"encoder/layers/lora_b": jnp.zeros((STEPS, 2, 4, 8))})
    after = follow(make_optimizer(CONSTANT), params, gradients)
    assert not np.asarray(after["encoder/layers/lora_b"]).any()


# ------------------------------------------------------------------------------------- the others


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("config", "make"),
    [
        (OptimizerConfig(name="adamw", weight_decay=0.1), ("AdamW", {"weight_decay": 0.1})),
        (OptimizerConfig(name="adam", b2=0.95), ("Adam", {"betas": (0.9, 0.95)})),
        (OptimizerConfig(name="sgd", weight_decay=0.1), ("SGD", {"weight_decay": 0.1})),
        (OptimizerConfig(name="sgd", momentum=0.9), ("SGD", {"momentum": 0.9})),
    ],
    ids=["adamw", "adam", "sgd-decayed", "sgd-momentum"],
)
def test_live_against_torch(config, make):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(config, schedule="constant", clip_norm=None, learning_rate=0.05)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 8)).astype(np.float32)
    gradients = rng.standard_normal((STEPS, 3, 8)).astype(np.float32)
    tensor, expected = torch.nn.Parameter(torch.tensor(x)), []
    optimizer = getattr(torch.optim, make[0])([tensor], lr=0.05, **make[1])
    for gradient in gradients:
        tensor.grad = torch.tensor(gradient)
        optimizer.step()
        expected.append(tensor.detach().numpy().copy())
    ours = follow(make_optimizer(config), {"x": x}, {"x": gradients})
    assert_close(ours, {"x": np.stack(expected)})


def test_clipping_is_by_the_norm_of_the_whole_tree():
    config = OptimizerConfig(name="sgd", schedule="constant", learning_rate=1.0)
    optimizer, params = make_optimizer(config), {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    for size, expected in ((0.1, 0.1), (5.0, 1.0)):
        gradient = {"a": jnp.zeros(3).at[0].set(0.6 * size), "b": jnp.full((2, 2), 0.4 * size)}
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        assert float(optax.global_norm(updates)) == pytest.approx(expected, rel=1e-6)


def test_multipliers_scale_single_leaves():
    config = OptimizerConfig(
        name="adamw", schedule="constant", multipliers=(("lora_b", 16.0), ("lora_.|ia3", 0.5))
    )
    params = tree.unflatten(
        {f"encoder/layers/query/{k}": jnp.ones(2) for k in ("lora_a", "lora_b")}
    )
    params["prompt"] = jnp.ones(2)
    plain, scaled = (
        make_optimizer(dataclasses.replace(config, multipliers=m)) for m in ((), config.multipliers)
    )
    expected, _ = plain.update(params, plain.init(params), params)
    updates, _ = scaled.update(params, scaled.init(params), params)
    updates, expected = tree.flatten(updates), tree.flatten(expected)
    factors = {"encoder/layers/query/lora_a": 0.5, "encoder/layers/query/lora_b": 16, "prompt": 1}
    for path, factor in factors.items():
        np.testing.assert_allclose(updates[path], factor * expected[path], rtol=1e-6)


LORA_PLUS = OptimizerConfig(
    name="adamw", learning_rate=1e-2, schedule="constant", weight_decay=0.1, clip_norm=None
)


def lora_leaves(rng, *steps):
    module = "encoder/layers/attention/query"
    shapes = {"lora_a": (2, 6, 3), "lora_b": (2, 3, 5)}
    return tree.unflatten(
        {f"{module}/{k}": rng.standard_normal((*steps, *s)).astype("f4") for k, s in shapes.items()}
    )


def test_lora_plus_is_a_learning_rate_of_its_own_for_b():
    rng = np.random.default_rng(0)
    params, gradients = lora_leaves(rng), lora_leaves(rng, STEPS)
    plus = dataclasses.replace(LORA_PLUS, lora_plus_ratio=16.0)
    alone = {
        "lora_a": LORA_PLUS,
        "lora_b": dataclasses.replace(LORA_PLUS, learning_rate=16 * LORA_PLUS.learning_rate),
    }
    ours = follow(make_optimizer(plus), params, gradients)
    for kind, config in alone.items():
        wanted = follow(make_optimizer(config), params, gradients)
        wanted = {path: x for path, x in wanted.items() if path.endswith(kind)}
        assert_close({path: ours[path] for path in wanted}, wanted)
    several = dataclasses.replace(plus, multipliers=(("lora_b", 0.25),))
    quarter = dataclasses.replace(LORA_PLUS, lora_plus_ratio=4.0)
    both = (follow(make_optimizer(c), params, gradients) for c in (several, quarter))
    assert_close(*both)


@pytest.mark.oracle
def test_lora_plus_agrees_with_peft():
    torch, peft = (pytest.importorskip(name) for name in ("torch", "peft"))
    from peft.optimizers import create_loraplus_optimizer

    rng = np.random.default_rng(0)
    params, gradients = lora_leaves(rng), lora_leaves(rng, STEPS)
    # One linear layer for each layer of our stack.
    model = torch.nn.ModuleDict({f"q{i}": torch.nn.Linear(6, 5) for i in range(2)})
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["q0", "q1"]))
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    weights = {
        (kind, i): getattr(model.base_model.model[f"q{i}"], name)["default"].weight
        for kind, name in (("lora_a", "lora_A"), ("lora_b", "lora_B"))
        for i in range(2)
    }
    at = "encoder/layers/attention/query"
    for (kind, i), weight in weights.items():
        weight.data = torch.tensor(tree.get(params, f"{at}/{kind}")[i].T.copy())
    for step in range(STEPS):
        for (kind, i), weight in weights.items():
            weight.grad = torch.tensor(tree.get(gradients, f"{at}/{kind}")[step, i].T.copy())
        optimizer.step()
    ours = follow(
        make_optimizer(dataclasses.replace(LORA_PLUS, lora_plus_ratio=16.0)), params, gradients
    )
    for (kind, i), weight in weights.items():
        wanted = weight.detach().numpy().T
        np.testing.assert_allclose(ours[f"{at}/{kind}"][-1, i], wanted, atol=2e-5)


def test_lora_plus_without_lora_is_refused():
    optimizer = make_optimizer(dataclasses.replace(LORA_PLUS, lora_plus_ratio=16.0))
    with pytest.raises(InputError, match=r"in lora_plus_ratio 'lora_b' matches nothing.*ia3"):
        optimizer.init(tree.unflatten({"encoder/layers/mlp/ia3": jnp.ones(2)}))
    with pytest.raises(InputError, match="lora_plus_ratio is 0; it must be positive"):
        OptimizerConfig(lora_plus_ratio=0)


def test_a_multiplier_that_matches_nothing():
    optimizer = make_optimizer(OptimizerConfig(total_steps=9, multipliers=(("lora_c", 2.0),)))
    params = tree.unflatten({"encoder/layers/query/lora_a": jnp.ones(2)})
    with pytest.raises(InputError, match=r"'lora_c' matches nothing.*lora_a"):
        optimizer.init(params)


# ------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("name", ["adafactor", "adafactor_t5x", "adamw", "sgd"])
def test_every_leaf_of_the_state_that_belongs_to_a_parameter_is_found(name):
    """optax.tree_utils.tree_map_params, by which a state is sharded like its parameters."""
    params = tree.unflatten(golden("params"))
    optimizer = make_optimizer(
        OptimizerConfig(name=name, total_steps=9, multipliers=(("ia3", 2.0),))
    )
    state = optimizer.init(params)
    marked = optax.tree_utils.tree_map_params(
        optimizer, lambda _: "param", state, transform_non_params=lambda _: "other"
    )
    trees = {"adafactor": 3, "adafactor_t5x": 3, "adamw": 2, "sgd": 0}[name]
    assert jax.tree.leaves(marked).count("param") == trees * len(golden("params"))


def test_the_state_survives_orbax(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    params, gradients = tree.unflatten(golden("params")), tree.unflatten(golden("gradients"))
    optimizer = make_optimizer(HUGGING_FACE["tfew"])
    first = jax.tree.map(lambda g: g[0], gradients)
    _, state = jax.jit(optimizer.update)(first, optimizer.init(params), params)
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for ours, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, expected)


# --------------------------------------------------------------------------------------- schedules


def test_tfew_schedule():
    config, k = OptimizerConfig(total_steps=1000, warmup_ratio=0.06), np.arange(1001)
    expected = 3e-3 * np.where(k < 60, k / 60, (1000 - k) / 940)
    rates = learning_rate_at(config, k)
    assert rates[0] == rates[1000] == 0
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_the_first_update_of_tfew_is_none_and_the_second_is_not():
    optimizer = make_optimizer(OptimizerConfig(total_steps=1000, warmup_ratio=0.06))
    params = tree.unflatten({"encoder/layers/ia3": jnp.ones((2, 4))})
    state = optimizer.init(params)
    for rate in (0.0, 3e-3 / 60, 6e-3 / 60):
        updates, state = optimizer.update(params, state, params)
        np.testing.assert_allclose(updates["encoder"]["layers"]["ia3"], -rate, rtol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("schedule", "warmup"),
    [(s, w) for s in ("linear", "cosine", "constant") for w in (0, 7)] + [("inverse_sqrt", 7)],
)
def test_schedules_equal_hugging_faces(schedule, warmup):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.optimization")
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    made = {
        "linear": lambda: theirs.get_linear_schedule_with_warmup(sgd, warmup, 40),
        "cosine": lambda: theirs.get_cosine_schedule_with_warmup(sgd, warmup, 40),
        "inverse_sqrt": lambda: theirs.get_inverse_sqrt_schedule(sgd, warmup),
        "constant": lambda: theirs.get_constant_schedule_with_warmup(sgd, warmup),
    }[schedule]()
    config = OptimizerConfig(
        learning_rate=0.5, schedule=schedule, warmup_steps=warmup, total_steps=40
    )
    for step in range(41):
        rate = float(learning_rate_at(config, step))
        assert rate == pytest.approx(made.get_last_lr()[0], rel=1e-5, abs=1e-7)
        sgd.step()
        made.step()


def test_inverse_sqrt_without_warmup_is_ppts():
    config = OptimizerConfig(learning_rate=0.1, schedule="inverse_sqrt")
    for step in (0, 1, 99, 200_000):
        rate = float(learning_rate_at(config, step))
        assert rate == pytest.approx(0.1 / math.sqrt(step + 1), rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_last_step_the_rate_stays_zero(schedule):
    config = OptimizerConfig(schedule=schedule, total_steps=10, warmup_steps=10)
    assert [float(learning_rate_at(config, k)) for k in (5, 11, 15, 30)] == pytest.approx(
        [1.5e-3, 0, 0, 0]
    )


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adafactr"}, "'adafactr'; it must be one of .*did you mean 'adafactor'"),
        ({"name": "lion"}, "'lion'; it must be one of adafactor, adafactor_t5x, adamw, adam, sgd$"),
        ({"schedule": "linea"}, "did you mean 'linear'"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0; it must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"total_steps": 0}, "total_steps is 0; it must be at least 1"),
        ({"clip_norm": 0.0}, r"clip_norm is 0\.0; it must be positive, or None"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "give one of them"),
        ({"warmup_steps": 2000, "total_steps": 1000}, "more than total_steps, 1000"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio is 1\.5; it must lie in"),
        ({"name": "adam", "weight_decay": 0.1}, "use adamw"),
    ],
)
def test_bad_configurations(fields, message):
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**fields)


def test_update_without_the_parameters():
    optimizer, params = make_optimizer(OptimizerConfig(total_steps=9)), {"prompt": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(params, optimizer.init(params))
