"""AdaLoRA's allocation of ranks while training, as transformations of the optimiser.

::

    gradients -> orthogonality's -> clipping -> allocate_ranks(the optimiser proper) -> updates

``optimizers.make_optimizer(config, method)`` puts them in this order where a method is AdaLoRA. The
budget of a step is data, not structure: arrays keep their shapes, a rank that is taken away is a
zero in ``lora_e``, and nothing is compiled again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.methods.base import Method
from peft_jax.methods.composition import stored_names
from peft_jax.methods.lora import leaves_named
from peft_jax.tree import Params

_FACTORS = ("lora_a", "lora_b", "lora_e")


class AllocationState(NamedTuple):
    """State of :func:`allocate_ranks`.

    Attributes:
      step: updates made, int32.
      optimizer: the state of the optimiser inside.
      importance, uncertainty: trees like the parameters: averages of every entry of the factors,
        and for other leaves a zero of shape [1].
      kept: the same of ``lora_e``: which ranks the last allocation has left, bool.
    """

    step: jax.Array
    optimizer: Any
    importance: Params
    uncertainty: Params
    kept: Params


def adaloras_of(method: Method | None) -> dict[str, dict[str, Any]]:
    """Every AdaLoRA in a method: where its leaves start in the stored tree -> its arguments.

    It is at the top by itself (""), in a composition under its label ("adalora/"), and in a
    ``multitask`` under its task's name; each has a budget of its own.
    """
    return {} if method is None else dict(_adaloras("", method.spec))


def _adaloras(path: str, spec: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if spec["name"] == "adalora":
        yield path, dict(spec)
    elif spec["name"] == "compose":
        parts = spec["methods"]
        for label, part in zip(stored_names([p["name"] for p in parts]), parts, strict=True):
            yield from _adaloras(f"{path}{label}/", part)
    elif spec["name"] == "multitask":
        for task in spec["tasks"]:
            yield from _adaloras(f"{path}{task['task']}/", task["method"])


def allocate_ranks(
    optimizer: optax.GradientTransformation,
    total_steps: int,
    *,
    target_rank: int,
    initial_steps: int = 0,
    final_steps: int = 0,
    interval: int = 1,
    beta1: float = 0.85,
    beta2: float = 0.85,
    within: str = "",
) -> optax.GradientTransformation:
    """An optimiser after whose updates the least important singular values are zero.

    The importance of a number w with gradient g is the running average of |w g|, times that of its
    own fluctuation; a rank's is lambda's plus the means of its vectors' (Zhang et al. 2023,
    equations 8 to 12). At step t (from 1) the ranks beyond the budget

        target + (start - target) (1 - (t - initial) / (total - final - initial)) ** 3

    (rounded down, over all targets together) with the smallest importance are set to zero. Others
    may come back until step total - final, after which they stay as they are.

    Agrees with Hugging Face PEFT's ``update_and_allocate(t)`` after ``optimizer.step()``.

    Args:
      optimizer: what makes the updates; its gradients are those that importance is measured with.
      total_steps: updates of the whole run.
      target_rank, initial_steps, final_steps, interval, beta1, beta2: see ``adalora``.
      within: only leaves whose paths start like this have ranks, and share the budget.

    Raises:
      InputError: no step is left between the initial and the final ones.
    """
    last = total_steps - final_steps

    def is_factor(path: str, params: Params) -> bool:
        return path.startswith(within) and _is_factor(path, params)

    if initial_steps >= last:
        raise InputError(
            f"adalora's initial_steps {initial_steps} and final_steps {final_steps} leave none of "
            f"{total_steps} steps for taking ranks away"
        )

    def init(params: Params) -> AllocationState:
        averages = _like(params, jnp.zeros_like, is_factor)
        kept = _like(
            params,
            lambda x: jnp.ones(x.shape, bool),
            lambda path, params: path.endswith("lora_e") and is_factor(path, params),
        )
        step = jnp.zeros((), jnp.int32)
        return AllocationState(step, optimizer.init(params), averages, averages, kept)

    def update(gradients, state: AllocationState, params=None):
        if params is None:
            raise ValueError("allocating ranks needs the parameters")
        updates, inside = optimizer.update(gradients, state.optimizer, params)
        step = state.step + 1
        own, flat = tree.flatten(params), tree.flatten(updates)
        importance, uncertainty = _measure(
            {path: own[path] + flat[path] for path in own if is_factor(path, params)},
            tree.flatten(gradients),
            (tree.flatten(state.importance), tree.flatten(state.uncertainty)),
            (beta1, beta2),
            step < last,
        )
        scores = _scores(importance, uncertainty, within)
        start = sum(score.size for score in scores.values())
        target = target_rank * sum(score[..., 0].size for score in scores.values())
        budget = _budget(start, target, initial_steps, last, step)
        allocates = (step > initial_steps) & (step <= last)
        allocates &= (step % interval == 0) | (step == last)
        kept = tree.flatten(state.kept)
        for path, best in _largest(scores, budget).items():
            kept[path] = jnp.where(allocates, best, kept[path])
            gone = (allocates | (step > last)) & ~kept[path]
            flat[path] = jnp.where(gone, -own[path], flat[path])
        trees = (tree.unflatten(x) for x in (importance, uncertainty, kept))
        return tree.unflatten(flat), AllocationState(step, inside, *trees)

    return optax.GradientTransformation(init, update)


def _is_factor(path: str, params: Params) -> bool:
    module, _, name = path.rpartition("/")
    return name in _FACTORS and "lora_e" in tree.get(params, module)


def _like(params: Any, make: Callable, ours: Callable[[str, Params], bool]) -> Any:
    """A tree like the parameters: made from the leaves that are ours, and else a zero [1]."""

    def leaf(path, x):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return make(x) if ours(path, params) else jnp.zeros((1,), make(x).dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _measure(values, gradients, averages, betas, measuring):
    """The averages of importance and uncertainty after a step, as they were unless measuring."""
    importance, uncertainty = map(dict, averages)
    for path, value in values.items():
        now = jnp.abs(value * gradients[path])
        smooth = betas[0] * importance[path] + (1 - betas[0]) * now
        spread = betas[1] * uncertainty[path] + (1 - betas[1]) * jnp.abs(now - smooth)
        importance[path] = jnp.where(measuring, smooth, importance[path])
        uncertainty[path] = jnp.where(measuring, spread, uncertainty[path])
    return importance, uncertainty


def _scores(
    importance: Mapping[str, jax.Array], uncertainty: Mapping[str, jax.Array], within: str
) -> dict[str, jax.Array]:
    """Path of each ``lora_e`` -> the importance [..., rank] of its ranks."""

    def of(path: str) -> jax.Array:
        return importance[path] * uncertainty[path]

    return {
        f"{module}/lora_e": of(f"{module}/lora_e")
        + of(f"{module}/lora_a").mean(axis=-2)
        + of(f"{module}/lora_b").mean(axis=-1)
        for module, _ in leaves_named("lora_e", importance)
        if module.startswith(within)
    }


def _budget(start: int, target: int, initial_steps: int, last: int, step: jax.Array) -> jax.Array:
    """Ranks that may remain at a step after the initial ones, int32."""
    steps = np.arange(initial_steps, last + 1)
    share = 1 - (steps - initial_steps) / (last - initial_steps)
    budgets = ((start - target) * share**3 + target).astype(np.int64)
    # Counted by the last step at which each spare rank is there: as exact as Python's numbers, and
    # a constant of as many entries as ranks to take away, however long the run is.
    spare = np.arange(target + 1, start + 1)
    ends = initial_steps + np.searchsorted(-budgets, -spare, side="right") - 1
    return target + jnp.sum(step <= jnp.asarray(ends, jnp.int32), dtype=jnp.int32)


def _largest(scores: Mapping[str, jax.Array], budget: jax.Array) -> dict[str, jax.Array]:
    """Which ranks are above the smallest that the budget leaves out: ties go with it."""
    every = jnp.sort(jnp.concatenate([score.ravel() for score in scores.values()]))
    threshold = jnp.where(budget < every.size, every[every.size - budget - 1], -jnp.inf)
    return {path: score > threshold for path, score in scores.items()}


# --------------------------------------------------------------------------------------------
# Orthogonality
# --------------------------------------------------------------------------------------------
def orthogonality_loss(params: Params, within: str = "") -> jax.Array:
    """Mean over all P and Q of ||P^T P - I||, the Frobenius norm (Zhang et al. 2023, equation 4).

    A mean of norms, as published code has it where the paper has a sum of squares; of the
    leaves whose paths start with ``within``. 0 without AdaLoRA's factors.
    """
    flat = tree.flatten(params)
    norms = []
    for path, x in flat.items():
        if not path.endswith(("lora_a", "lora_b")) or not _is_factor(path, params):
            continue
        if not path.startswith(within):
            continue
        x = x if path.endswith("lora_a") else jnp.swapaxes(x, -1, -2)
        gram = jnp.einsum("...nr,...ns->...rs", x, x, precision="highest")
        square = jnp.sum(jnp.square(gram - jnp.eye(x.shape[-1])), axis=(-1, -2))
        norms.append(jnp.sqrt(jnp.maximum(square, 1e-30)).ravel())
    return jnp.mean(jnp.concatenate(norms)) if norms else jnp.zeros(())


def add_orthogonality(weight: float, within: str = "") -> optax.GradientTransformation:
    """Gradients plus those of ``weight * orthogonality_loss``.

    The regulariser is a function of the trained leaves alone, so that adding its gradient here is
    exactly adding it to the loss, with no objective having to know about it.
    """

    def update(gradients, state, params=None):
        if params is None:
            raise ValueError("the orthogonality's gradient needs the parameters")
        more = jax.grad(orthogonality_loss)(params, within)
        return jax.tree.map(lambda g, m: g + weight * m, gradients, more), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def allocated_ranks(stored: Params) -> dict[str, np.ndarray]:
    """Module -> the ranks that its layers use, [layers] int: non-zero entries of ``lora_e``."""
    leaves = leaves_named("lora_e", tree.flatten(stored))
    return {module: np.count_nonzero(np.asarray(leaf), axis=-1) for module, leaf in leaves}
