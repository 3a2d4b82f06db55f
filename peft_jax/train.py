"""The train step: one body, jit-compiled over a mesh or under pmap.

``make_train_step`` returns ``step(state, frozen, batch) -> state, metrics``. The state holds the
trainable tree only and is donated; the frozen tree is an argument and never donated, so swapping
the backbone's weights or the adapter compiles nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from peft_jax import constraints, sharding, tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method
from peft_jax.methods.merging import merge
from peft_jax.objectives import Metrics, Objective
from peft_jax.transformer import Batch
from peft_jax.tree import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes.

    Attributes:
      step: updates made so far, int32.
      trainable: the trained leaves of the method's stored tree, float32.
      opt_state: the optimiser's state on that tree.
      key: the run's random key; step k uses ``fold_in(key, k)``.
      fixed: the stored tree's constants (``tree.split_fixed``); most methods have none.
    """

    step: jax.Array
    trainable: Params
    opt_state: Any
    key: jax.Array
    fixed: Params = dataclasses.field(default_factory=dict)

    @property
    def stored(self) -> Params:
        """The method's whole stored tree: what ``method.bind`` and ``save_adapter`` take."""
        return tree.join(self.trainable, self.fixed)


def init_state(
    stored: Params, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """The state before the first step, from a method's stored tree.

    Every leaf is a copy of its own: a step donates its state, which must neither free the caller's
    tree nor hold one buffer twice (an optimiser may start several moments from one zero).
    """
    trainable, fixed = tree.split_fixed(stored)
    state = TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), key, fixed)
    return jax.tree.map(lambda x: jnp.array(x, copy=True), state)


Step = Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    backbone: Backbone,
    method: Method,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    mesh: jax.sharding.Mesh | None = None,
    parallel: str = "jit",
    accumulate: int = 1,
) -> Step:
    """A compiled ``step(state, frozen, batch) -> (state, metrics)``.

    Args:
      backbone: gives the configuration; its parameters are passed to the step as ``frozen``.
      method: whose stored tree ``state.stored`` is.
      objective: what is minimised.
      mesh: from ``sharding.make_mesh``: its axes "data" and "fsdp" split the batch. The frozen tree
        stays as it is given (``sharding.place`` splits it); None means one device.
      parallel: "jit", or "pmap" for the same body under ``jax.pmap`` over the mesh's devices, which
        must be this process's. The batch alone is split, and each device draws its own dropout.
      accumulate: the batch is run in this many parts, one after the other, for one update. Losses
        are divided by counts over the whole batch: the result is that of one large batch.

    Returns:
      The step. Batches are global: [B, ...], with B divisible by ``accumulate`` times the devices.
      Metrics are float32 scalars: the objective's, and ``gradient_norm`` before clipping.
    """
    if parallel not in ("jit", "pmap"):
        raise InputError(f'parallel {parallel!r} is unknown; "jit" or "pmap"')
    if accumulate < 1:
        raise InputError(f"accumulate {accumulate} must be at least 1")
    body = _make_body(backbone.config, method, optimizer, objective, accumulate)
    if parallel == "pmap":
        return _pmap(body, mesh)
    if mesh is None:
        return jax.jit(lambda *a: body(*a, None), donate_argnums=0)
    return _on_mesh(body, backbone.config, mesh)


def _on_mesh(body, config, mesh: jax.sharding.Mesh) -> Step:
    """The step over a mesh: the state stays where it lies, and so does the batch."""

    def step(state: TrainState, frozen: Params, batch: Batch):
        lies = sharding.state_shardings(state, config, mesh)
        batch = jax.lax.with_sharding_constraint(batch, sharding.batch_sharding(mesh))
        with constraints.on_mesh(mesh):
            placed = jax.lax.with_sharding_constraint(state, lies)
            state, metrics = body(placed, frozen, batch, None)
        metrics = jax.lax.with_sharding_constraint(metrics, sharding.replicated(mesh))
        return jax.lax.with_sharding_constraint(state, lies), metrics

    return jax.jit(step, donate_argnums=0)


def _make_body(config, method, optimizer, objective, accumulate):
    def gradients(trainable, fixed, frozen, batch, key, counts):
        def loss(trainable):
            params = merge(frozen, method.bind(tree.join(trainable, fixed)))
            return objective.value(config, params, batch, key, counts)

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
        return grads, metrics

    def accumulated(trainable, fixed, frozen, batch, key, counts):
        def part(total, xs):
            piece, k = xs
            new = gradients(trainable, fixed, frozen, piece, k, counts)
            return jax.tree.map(jnp.add, total, new), None

        pieces = jax.tree.map(lambda x: _split(x, accumulate), batch)
        keys = jax.random.split(key, accumulate)
        first = jax.tree.map(lambda x: x[0], (pieces, keys))
        shapes = jax.eval_shape(gradients, trainable, fixed, frozen, *first, counts)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(part, zeros, (pieces, keys))[0]

    def body(state: TrainState, frozen: Params, batch: Batch, axis: str | None):
        key = jax.random.fold_in(state.key, state.step)
        counts = objective.counts(config, batch)
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
            counts = jax.lax.psum(counts, axis)
        run = gradients if accumulate == 1 else accumulated
        grads, metrics = run(state.trainable, state.fixed, frozen, batch, key, counts)
        if axis is not None:
            grads, metrics = jax.lax.psum((grads, metrics), axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {**metrics, "gradient_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, trainable, opt_state, state.key, state.fixed), metrics

    return body


def _split(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], each part taking every ``parts``-th row.

    Neighbouring rows lie on one device, so that strided parts keep the batch spread over all.
    """
    if x.shape[0] % parts:
        raise InputError(f"a batch of {x.shape[0]} cannot be accumulated in {parts} equal parts")
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def _pmap(body, mesh: jax.sharding.Mesh | None) -> Step:
    devices = jax.local_devices() if mesh is None else list(mesh.devices.flat)
    if mesh is not None and sharding.splits_weights(mesh):
        raise InputError(
            "pmap splits the batch alone: take a mesh with fsdp 1 and model 1, or parallel jit"
        )
    if any(device.process_index != jax.process_index() for device in devices):
        raise InputError("pmap runs over the devices of one process; take parallel jit")
    mapped = jax.pmap(
        lambda *a: body(*a, "data"),
        axis_name="data",
        in_axes=(None, None, 0),
        out_axes=None,
        devices=devices,
    )

    def step(state: TrainState, frozen: Params, batch: Mapping[str, jax.Array]):
        def spread(x):
            if x.shape[0] % len(devices):
                raise InputError(
                    f"a batch of {x.shape[0]} does not divide over {len(devices)} devices"
                )
            return jnp.reshape(x, (len(devices), -1, *x.shape[1:]))

        return mapped(state, frozen, jax.tree.map(spread, dict(batch)))

    return step
