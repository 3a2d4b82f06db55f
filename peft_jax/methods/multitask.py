"""Several tasks' adapters trained at once, each from its own inputs, against one frozen backbone.

A multi-task method is a bank that is trained: a batch mixes the tasks, ``task_ids`` says which
adapter reads each input, and one step updates all of them. Nothing is shared but the backbone, so
that what comes out are single adapters (:func:`split_tasks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.bank import bank
from peft_jax.methods.base import Method
from peft_jax.methods.merging import merge
from peft_jax.tree import Params


def multitask(methods: Mapping[str, Method] | Sequence[Method]) -> Method:
    """One method for several tasks: a bank of their adapters in one stored tree.

    ::

        method = multitask({"rte": lora(4), "cb": compose(ia3(), prompt_tuning(20))})
        step = make_train_step(backbone, method, optimizer, objective)
        state, metrics = step(state, backbone.params, batch | {"task_ids": task_ids})
        for task, (own, adapter) in split_tasks(method, state.stored).items():
            save_adapter(folder / task, adapter, own, backbone)

    The stored tree has one subtree for each task. ``task_ids`` [B] are positions in the order given
    here; -1 reads an input without an adapter. A task's gradient comes from its own inputs alone;
    an objective divides the loss by the tokens (or examples) of the whole batch, so that it is the
    gradient of the task's own loss times its share of them. With an optimiser that treats every
    leaf by itself (SGD, Adam, Adafactor) the tasks do not see each other at all; clipping by the
    global norm does, since the norm is over all of them.

    Args:
      methods: the tasks' methods by name, or a list (``task_0``, ``task_1`` ...). They may differ
        in kind, rank and length; whatever a bank can hold.

    Count: the sum over tasks. Folds into nothing: no kernel holds several adapters.

    Raises:
      InputError: no task, a name that cannot be part of a path; from ``init``, what a task's own
        method raises, or adapters that cannot stand in one bank.
    """
    named = _named(methods)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        keys = jax.random.split(key, len(named))
        stored = {
            task: method.init(k, backbone)
            for k, (task, method) in zip(keys, named.items(), strict=True)
        }
        # What cannot be in one bank is known before training.
        jax.eval_shape(lambda s: merge(backbone.params, bind(s)), stored)
        return stored

    def bind(stored: Params) -> Params:
        return bank([(method, stored[task]) for task, method in named.items()])

    # A list: the order of the tasks is what task_ids mean, and JSON may sort a mapping.
    tasks = [{"task": task, "method": method.spec} for task, method in named.items()]
    return Method(init, bind, None, {"name": "multitask", "tasks": tasks})


def _named(methods: Mapping[str, Method] | Sequence[Method]) -> dict[str, Method]:
    if not isinstance(methods, Mapping):
        methods = {f"task_{i}": method for i, method in enumerate(methods)}
    if not methods:
        raise InputError("multitask needs at least one task")
    for task, method in methods.items():
        if not isinstance(task, str) or not task or "/" in task or task == tree.FIXED:
            raise InputError(
                f"task name {task!r} must be a word without '/', other than {tree.FIXED!r}"
            )
        if not isinstance(method, Method):
            raise InputError(f"task {task!r} has {method!r} where a method should be")
        if method.spec["name"] == "multitask":
            raise InputError(f"task {task!r} is itself a multitask: give its tasks one by one")
    return dict(methods)


def split_tasks(method: Method, stored: Params) -> dict[str, tuple[Method, Params]]:
    """Each task's own method and stored tree, which save, bind and fold as usual.

    Args:
      method: made by :func:`multitask`.
      stored: its stored tree, such as ``state.stored`` after training.
    """
    from peft_jax.methods import from_spec

    if method.spec["name"] != "multitask":
        raise InputError(f"{method.spec['name']!r} is not a multitask: it has one adapter")
    made: list[dict[str, Any]] = method.spec["tasks"]
    return {entry["task"]: (from_spec(entry["method"]), stored[entry["task"]]) for entry in made}
