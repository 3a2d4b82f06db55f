"""A multi-task step is the tasks' own steps; what comes out are single adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peft_jax as pj
from peft_jax import objectives, train, tree
from peft_jax.errors import InputError
from peft_jax.methods.multitask import multitask, split_tasks
from tests.random_adapters import assert_same_trees

CONFIG = pj.Config("t5", 53, 16, 24, 2, 8, 2, 2, dropout=0.0, remat="none")
TASKS = {
    "rte": pj.lora(2),
    "cb": pj.compose(pj.ia3(), pj.prompt_tuning(2, "random")),
}
IDS = np.array([0, 1, 1, 0, 0, 1], np.int32)  # three of each: equal shares of the loss


@pytest.fixture(scope="module")
def backbone():
    return pj.init_backbone(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    targets = rng.integers(2, 53, (len(IDS), 4)).astype(np.int32)
    return {
        "encoder_input_tokens": rng.integers(1, 53, (len(IDS), 7)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
    }


def stepper(backbone, method, rate):
    """steps(stored, batch, number) -> stored, compiled once; an optimiser leaf by leaf."""
    optimizer = optax.sgd(rate, momentum=0.9)
    step = train.make_train_step(backbone, method, optimizer, objectives.lm_objective())

    def steps(stored, batch, number):
        state = train.init_state(stored, optimizer, jax.random.key(2))
        for _ in range(number):
            state, _ = step(state, backbone.params, batch)
        return state.stored

    return steps


@pytest.fixture(scope="module")
def steps_together(backbone):
    return stepper(backbone, multitask(TASKS), 1.0)


def drawn(method, backbone):
    """A start at which no gradient is zero."""
    rng = np.random.default_rng(3)
    start = method.init(jax.random.key(1), backbone)
    return jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), start)


def test_a_step_is_the_step_of_every_task(backbone, batch, steps_together):
    method = multitask(TASKS)
    stored = drawn(method, backbone)
    # Each task has half of the tokens, so that its own loss weighs a half.
    together = steps_together(stored, batch | {"task_ids": IDS}, 2)
    for i, (task, (own, alone)) in enumerate(split_tasks(method, stored).items()):
        rows = {name: x[i == IDS] for name, x in batch.items()}
        alone = stepper(backbone, own, 0.5)(alone, rows, 2)
        before, wanted = tree.flatten(stored[task]), tree.flatten(alone)
        for path, leaf in tree.flatten(together[task]).items():
            moved = np.asarray(wanted[path] - before[path])
            assert np.abs(moved).max() > 1e-5, path
            np.testing.assert_allclose(
                leaf - before[path], moved, atol=2e-5 * np.abs(moved).max() + 1e-7, err_msg=path
            )


def test_a_task_without_inputs_stays_as_it_was(backbone, batch, steps_together):
    method = multitask(TASKS)
    stored = drawn(method, backbone)
    only = np.where(IDS == 1, -1, IDS)  # inputs without an adapter train nothing
    after = steps_together(stored, batch | {"task_ids": only}, 1)
    assert_same_trees(after["cb"], stored["cb"])
    for path, leaf in tree.flatten(after["rte"]).items():
        assert (leaf != tree.get(stored["rte"], path)).any(), path


def test_the_adapters_of_the_tasks_save_as_usual(backbone, tmp_path):
    method = multitask(list(TASKS.values()))
    stored = method.init(jax.random.key(1), backbone)
    single = split_tasks(method, stored)
    assert list(single) == ["task_0", "task_1"]
    assert pj.count(stored) == sum(pj.count(adapter) for _, adapter in single.values())
    own, adapter = single["task_1"]
    assert own.spec == TASKS["cb"].spec
    loaded, again = pj.load_adapter(pj.save_adapter(tmp_path, adapter, own, backbone), backbone)
    assert_same_trees(loaded, adapter)
    assert again.spec == own.spec
    # All of them in one file, as a run's checkpoint holds them: the order of the tasks is kept.
    path = pj.save_adapter(tmp_path / "all", stored, method, backbone)
    loaded, again = pj.load_adapter(path, backbone)
    assert_same_trees(loaded, stored)
    assert again.spec == method.spec


def test_bad_input_is_named():
    cases = [
        (lambda: multitask({}), "at least one task"),
        (lambda: multitask({"a/b": pj.ia3()}), "task name 'a/b' must be a word"),
        (lambda: multitask({"fixed": pj.ia3()}), "task name 'fixed'"),
        (lambda: multitask({"a": multitask([pj.ia3()])}), "is itself a multitask"),
        (lambda: multitask({"a": "ia3"}), "'ia3' where a method should be"),
        (lambda: split_tasks(pj.ia3(), {}), "'ia3' is not a multitask"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
