"""AdaLoRA's allocation of ranks against peft's, and its place in the optimiser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peft_jax as pj
from peft_jax import rank_allocation, tree
from peft_jax.errors import InputError
from peft_jax.methods.adalora import adalora
from peft_jax.methods.lora import lora
from peft_jax.optimizers import OptimizerConfig, make_optimizer
from peft_jax.rank_allocation import allocate_ranks, allocated_ranks
from tests import oracle

GOLDEN = dict(np.load(oracle.GOLDEN / "peft_rank_allocation.npz"))
STEPS = 14
ALLOCATION = {"target_rank": 2, "initial_steps": 2, "final_steps": 3, "interval": 2}
RATE = 0.1


def factors(kind):
    """peft's matrices [rank, in], [rank, 1], [out, rank] as our leaves, with a leading axis."""
    flat = {}
    for name, array in GOLDEN.items():
        if name.startswith(f"{kind}/"):
            _, module, factor = name.split("/")
            array = array[..., 0] if factor == "lora_E" else np.swapaxes(array, -1, -2)
            flat[f"{module}/{factor.lower()}"] = jnp.asarray(array)
    return tree.unflatten(flat)


def follow(optimizer, params, gradients):
    """Every leaf after every step, compiled once."""

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    run = jax.jit(lambda p, g: jax.lax.scan(step, (p, optimizer.init(p)), g)[1])
    return tree.flatten(run(params, gradients))


def test_every_step_leaves_what_pefts_allocator_leaves():
    optimizer = allocate_ranks(optax.sgd(RATE), STEPS, **ALLOCATION)
    ours = follow(optimizer, factors("start"), factors("gradient"))
    for path, wanted in tree.flatten(factors("after")).items():
        np.testing.assert_allclose(ours[path], wanted, atol=2e-6, err_msg=path)
        if path.endswith("lora_e"):
            np.testing.assert_array_equal(ours[path] == 0, wanted == 0, err_msg=path)
    kept = sum((np.asarray(x) != 0).sum(-1) for p, x in ours.items() if p.endswith("lora_e"))
    budget = GOLDEN["budget"]
    # Steps 4, 6, .. 10 allocate, the 11th finally; between them, ranks may come back.
    for k in (4, 6, 8, 10, 11, 12, 13, 14):
        assert kept[k - 1] == budget[k - 1], k
    assert (kept[:3] == 12).all()
    assert list(budget[[0, 10, 13]]) == [12, 6, 6]


@pytest.mark.oracle
def test_golden_values_are_what_the_installed_peft_computes():
    fresh = oracle.live("make_peft_low_rank").allocation()
    assert fresh.keys() == GOLDEN.keys()
    for name, array in fresh.items():
        np.testing.assert_allclose(GOLDEN[name], array, atol=1e-6, err_msg=name)


def test_layers_of_a_stack_share_one_budget_with_everything_else():
    """Stacked matrices are separate ones: their ranks compete as if they were leaves."""
    start, gradients = factors("start"), factors("gradient")
    two = {f"m{i}": start["first"] for i in range(2)}
    flat = follow(
        allocate_ranks(optax.sgd(RATE), STEPS, **ALLOCATION),
        two | {"other": start["second"]},
        {"m0": gradients["first"], "m1": {k: -v for k, v in gradients["first"].items()}}
        | {"other": gradients["second"]},
    )

    def stack(trees, axis):
        return {"layers": {"m": jax.tree.map(lambda *x: jnp.stack(x, axis), *trees)}}

    negative = jax.tree.map(jnp.negative, gradients["first"])
    stacked = follow(
        allocate_ranks(optax.sgd(RATE), STEPS, **ALLOCATION),
        stack([start["first"]] * 2, 0) | {"other": start["second"]},
        stack([gradients["first"], negative], 1) | {"other": gradients["second"]},
    )
    for name in ("lora_a", "lora_b", "lora_e"):
        np.testing.assert_allclose(stacked[f"other/{name}"], flat[f"other/{name}"], rtol=1e-6)
        for i in range(2):
            ours = stacked[f"layers/m/{name}"][:, i]
            np.testing.assert_allclose(ours, flat[f"m{i}/{name}"], rtol=1e-6)
    last = {"lora_e": stacked["layers/m/lora_e"][-1]}
    ranks = allocated_ranks({"layers": {"m": last}})["layers/m"]
    assert ranks.shape == (2,)
    assert ranks.sum() + (flat["other/lora_e"][-1] != 0).sum() == 6


@pytest.mark.parametrize(
    ("start", "target", "initial", "last"),
    [(288, 192, 0, 1000), (24, 10, 3, 20), (36, 36, 1, 5), (1000, 7, 13, 977), (5, 1, 0, 1)],
)
def test_the_budget_of_every_step_is_the_cubic_schedules(start, target, initial, last):
    steps = np.arange(1, last + 20)

    def wanted(step):
        if step <= initial:
            return start
        share = max(0.0, 1 - (step - initial) / (last - initial))
        return int((start - target) * share**3 + target)

    budget = jax.jit(jax.vmap(lambda k: rank_allocation._budget(start, target, initial, last, k)))
    np.testing.assert_array_equal(budget(steps), [wanted(k) for k in steps])


def test_the_regularisers_gradient_is_added_before_clipping():
    params = factors("start")
    loss = rank_allocation.orthogonality_loss(params)
    assert float(loss) == pytest.approx(float(GOLDEN["orthogonality_loss"]), rel=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, params)
    add = rank_allocation.add_orthogonality(0.25)
    updates, _ = add.update(zeros, add.init(params), params)
    wanted = tree.flatten(factors("orthogonality"))
    for path, update in tree.flatten(updates).items():
        if path.endswith("lora_e"):
            assert not update.any()
        else:
            np.testing.assert_allclose(update, 0.25 * wanted[path], rtol=1e-5, atol=1e-7)
    assert float(rank_allocation.orthogonality_loss({"prompt": jnp.ones(3)})) == 0


def test_make_optimizer_puts_the_parts_in_order():
    """Regulariser, clipping, optimiser, allocation: each step compared with the parts by hand."""
    method = pj.compose(adalora(4, orthogonality=0.3, **ALLOCATION), pj.ia3())
    config = OptimizerConfig(
        name="sgd", schedule="constant", learning_rate=RATE, clip_norm=0.7, total_steps=STEPS
    )
    parts = optax.chain(
        rank_allocation.add_orthogonality(0.3),
        optax.clip_by_global_norm(0.7),
        allocate_ranks(optax.sgd(RATE), STEPS, **ALLOCATION),
    )
    params = {"adalora": factors("start"), "ia3": {"ia3": jnp.ones(3)}}
    gradients = {"adalora": factors("gradient"), "ia3": {"ia3": jnp.ones((STEPS, 3))}}
    ours = follow(make_optimizer(config, method), params, gradients)
    for path, wanted in follow(parts, params, gradients).items():
        np.testing.assert_allclose(ours[path], wanted, rtol=1e-6, err_msg=path)
    assert (ours["ia3/ia3"][-1] < 1).all()
    plain = dataclasses.replace(config, clip_norm=None)
    alone = make_optimizer(plain, adalora(4, orthogonality=0.0, **ALLOCATION))
    after = follow(alone, factors("start"), factors("gradient"))
    for path, wanted in tree.flatten(factors("after")).items():
        np.testing.assert_allclose(after[path], wanted, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("kind", ["compose", "multitask"])
def test_each_adalora_has_a_budget_of_its_own(kind):
    """Two of them, with different arguments, move as each does by itself."""
    one = adalora(4, orthogonality=0.0, **ALLOCATION)
    other = adalora(4, orthogonality=0.2, **ALLOCATION | {"target_rank": 3})
    if kind == "compose":
        both, at = pj.compose(one, pj.ia3(), other), ("adalora", "adalora_2")
    else:
        both = pj.multitask({"first": one, "second": pj.compose(pj.ia3(), other)})
        at = ("first", "second/adalora")
    config = OptimizerConfig(
        name="sgd", schedule="constant", learning_rate=RATE, clip_norm=None, total_steps=STEPS
    )
    params, gradients = factors("start"), factors("gradient")
    trees = (
        tree.unflatten({f"{label}/{p}": x for label in at for p, x in tree.flatten(held).items()})
        for held in (params, gradients)
    )
    ours = follow(make_optimizer(config, both), *trees)
    for label, method in zip(at, (one, other), strict=True):
        for path, wanted in follow(make_optimizer(config, method), params, gradients).items():
            np.testing.assert_allclose(ours[f"{label}/{path}"], wanted, atol=1e-6, err_msg=path)
    last = [sum((ours[f"{p}/{m}/lora_e"][-1] != 0).sum() for m in params) for p in at]
    assert last == [6, 9]


def test_without_adalora_nothing_is_added():
    config = OptimizerConfig(name="sgd", schedule="constant")
    params = {"lora_a": jnp.ones(2)}
    states = [make_optimizer(config, m).init(params) for m in (None, lora(2))]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_the_states_trees_are_found_as_the_parameters():
    """optax.tree_utils.tree_map_params, by which a state is sharded like its parameters."""
    config = OptimizerConfig(name="adam", total_steps=STEPS)
    optimizer = make_optimizer(config, adalora(4, **ALLOCATION))
    params = {"adalora": factors("start"), "prompt": jnp.ones((2, 3))}
    marked = optax.tree_utils.tree_map_params(
        optimizer, lambda _: "param", optimizer.init(params), transform_non_params=lambda _: "other"
    )
    # Adam's two moments, importance, uncertainty, and the ranks that are kept.
    assert jax.tree.leaves(marked).count("param") == 5 * (9 + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_optimizer(OptimizerConfig(schedule="constant"), adalora()),
            "needs optimizer.total_steps",
        ),
        (
            lambda: make_optimizer(
                OptimizerConfig(total_steps=9), adalora(initial_steps=4, final_steps=5)
            ),
            "initial_steps 4 and final_steps 5 leave none of 9 steps",
        ),
    ],
)
def test_what_cannot_be_allocated_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
