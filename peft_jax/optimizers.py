"""Optimisers and learning-rate schedules, as one frozen dataclass and one factory on top of optax.

Layers are stacked in our trees ([L, d] for the (IA)³ vectors of L layers), and are L separate
tensors in the programs whose results are to be reproduced. Adam and SGD work element by element and
cannot tell; Adafactor measures whole tensors (the scale of the parameters, the size of the update,
the rows and columns of the second moment), so it is written here to measure each layer for itself.
A leaf is stacked if ``layers`` occurs among the names above it.

The optimiser sees the trainable tree only; its state is a plain tree of arrays and counters.
"""

import dataclasses
import difflib
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from peft_jax import rank_allocation, tree
from peft_jax.errors import InputError
from peft_jax.methods.base import Method

OptimizerName = Literal["adafactor", "adafactor_t5x", "adamw", "adam", "sgd"]
ScheduleName = Literal["constant", "linear", "cosine", "inverse_sqrt"]

# Adafactor's two floors, on squared gradients and on the scale of a parameter: the same in the
# paper, Hugging Face and T5X, and never tuned.
_GRADIENT_FLOOR = 1e-30
_SCALE_FLOOR = 1e-3

# Hugging Face factors every tensor of two axes or more; T5X only where both are at least this long.
_T5X_SHORTEST_FACTORED = 128


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Everything that `make_optimizer` needs. The defaults are T-Few's for (IA)³.

    Raises:
        InputError: an unknown name, a figure out of its range, or two that contradict each other.

    Example:
        >>> config = OptimizerConfig(total_steps=1000, warmup_ratio=0.06)
        >>> [round(float(learning_rate_at(config, k)), 6) for k in (0, 30, 60, 530, 1000)]
        [0.0, 0.0015, 0.003, 0.0015, 0.0]
    """

    name: OptimizerName = "adafactor"
    """adafactor: as Hugging Face's; adafactor_t5x: T5X's conventions; adamw, adam, sgd: torch's."""
    learning_rate: float = 3e-3
    """The peak of the schedule."""
    schedule: ScheduleName = "linear"
    """What follows the warm-up; linear and cosine end at zero after total_steps."""
    total_steps: int | None = None
    """Where linear and cosine end, and what warmup_ratio is a share of; in a run, by default, all
    of its updates (training.steps)."""
    warmup_steps: int | None = None
    """Updates over which the learning rate rises from zero; by default none."""
    warmup_ratio: float | None = None
    """The same as a share of total_steps (T-Few: 0.06)."""
    weight_decay: float = 0.0
    """Multiplied by the learning rate, except in adafactor_t5x; added to the gradient in sgd."""
    clip_norm: float | None = 1.0
    """The largest global norm of the gradient, before anything else; None: not clipped."""
    scale_parameter: bool = True
    """Adafactor: multiply the update of a tensor by its root mean square (at least 1e-3)."""
    clip_threshold: float | None = 1.0
    """Adafactor: the largest root mean square of a tensor's update, before the learning rate."""
    decay_rate: float = 0.8
    """Adafactor: the second moment's decay at update t (from 1) is 1 - t ** -decay_rate."""
    b1: float = 0.9
    """Adam: decay of the first moment."""
    b2: float = 0.999
    """Adam: decay of the second moment."""
    eps: float = 1e-8
    """Adam: added to the root of the second moment."""
    momentum: float = 0.0
    """SGD: decay of the sum of gradients; zero for none."""
    lora_plus_ratio: float = 1.0
    """LoRA+ (Hayou et al. 2024): the learning rate of every lora_b over that of its lora_a; 16 is
    the paper's choice."""
    multipliers: tuple[tuple[str, float], ...] = ()
    """Learning rates of single leaves: pairs of a regular expression for the end of a path and a
    factor; the first pair that matches a leaf counts. Multiplied with lora_plus_ratio."""

    def __post_init__(self):
        _check_name("name", self.name, get_args(OptimizerName))
        _check_name("schedule", self.schedule, get_args(ScheduleName))
        for field, lowest in (("learning_rate", 0), ("weight_decay", 0), ("total_steps", 1)):
            given = getattr(self, field)
            if given is not None and not given >= lowest:
                raise InputError(f"{field} is {given}; it must be at least {lowest}")
        for field in ("clip_norm", "clip_threshold"):
            given = getattr(self, field)
            if given is not None and not given > 0:
                raise InputError(
                    f"{field} is {given}; it must be positive, or None for no clipping"
                )
        if not self.lora_plus_ratio > 0:
            raise InputError(f"lora_plus_ratio is {self.lora_plus_ratio}; it must be positive")
        if self.name == "adam" and self.weight_decay:
            raise InputError("adam has no weight_decay; use adamw, or weight_decay 0")
        self._check_warmup()

    def _check_warmup(self):
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise InputError("warmup_steps and warmup_ratio are both given; give one of them")
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"warmup_ratio is {self.warmup_ratio}; it must lie in [0, 1]")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise InputError(f"warmup_steps is {self.warmup_steps}; it must be at least 0")
        if self.total_steps is None or self.schedule not in ("linear", "cosine"):
            return
        if self.warmup > self.total_steps:
            raise InputError(
                f"warmup_steps is {self.warmup_steps}, more than total_steps, {self.total_steps}"
            )

    @property
    def warmup(self) -> float:
        """Updates of warm-up. Not rounded, as T-Few's warmup_ratio * num_steps is not."""
        if self.warmup_ratio is not None:
            return self.warmup_ratio * self.end
        return float(self.warmup_steps or 0)

    @property
    def end(self) -> int:
        """``total_steps``, where the schedule cannot do without; InputError if it is not given."""
        if self.total_steps is None:
            raise InputError(
                f"schedule {self.schedule!r} with this warm-up needs optimizer.total_steps"
            )
        return self.total_steps

    def over(self, steps: int) -> "OptimizerConfig":
        """The same for a run of so many updates, unless ``total_steps`` says otherwise."""
        if self.total_steps is not None:
            return self
        return dataclasses.replace(self, total_steps=steps)


def _check_name(field: str, given: str, names: tuple[str, ...]) -> None:
    if given not in names:
        close = difflib.get_close_matches(str(given), names, 1, 0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"{field} is {given!r}; it must be one of {', '.join(names)}{hint}")


def learning_rate_at(config: OptimizerConfig, step: int | jax.Array) -> jax.Array:
    """The learning rate of the update that follows `step` updates.

    With a warm-up the first update, at step 0, has learning rate zero, as torch's LambdaLR gives it
    in T-Few. "linear", "cosine" and "inverse_sqrt" are Hugging Face's schedules of these names;
    "inverse_sqrt" without warm-up is PPT's, learning_rate / sqrt(step + 1).

    Args:
        config: its schedule, learning_rate, total_steps and warm-up.
        step: an integer or an int32 array of any shape.

    Returns:
        float32, in the shape of `step`.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = config.warmup
    if config.schedule in ("linear", "cosine"):
        left = jnp.clip((config.end - step) / max(1.0, config.end - warmup), 0.0, 1.0)
        cosine = 0.5 * (1.0 - jnp.cos(math.pi * left))
        factor = left if config.schedule == "linear" else cosine
    elif config.schedule == "inverse_sqrt":
        factor = jax.lax.rsqrt(jnp.maximum(step, 1.0) / warmup if warmup else step + 1.0)
    else:
        factor = jnp.ones_like(step)
    return config.learning_rate * jnp.where(step < warmup, step / max(1.0, warmup), factor)


def make_optimizer(
    config: OptimizerConfig, method: Method | None = None
) -> optax.GradientTransformation:
    """The optimiser that the configuration describes.

    Clipping by the global norm, the method's own direction, the multipliers, the learning rate, in
    this order. `update` needs the parameters.

    Args:
        config: its figures.
        method: what is trained. AdaLoRA's ranks are allocated, and its factors kept orthogonal, as
            its arguments say; no other method makes a difference.

    Raises:
        InputError: AdaLoRA without ``total_steps``, or with no step to allocate ranks in; from
            `init`, where a multiplier or ``lora_plus_ratio`` finds no leaf in the trainable tree.

    Example:
        >>> optimizer = make_optimizer(OptimizerConfig(name="sgd", schedule="constant"))
        >>> params = {"encoder": {"layers": {"ia3": jnp.ones((2, 3))}}}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> round(float(jnp.linalg.norm(updates["encoder"]["layers"]["ia3"])), 6)
        0.003
    """
    learning_rate_at(config, 0)  # a schedule without its end is known now, not in the first step
    adaloras = rank_allocation.adaloras_of(method)
    clipping = [
        rank_allocation.add_orthogonality(adalora["orthogonality"], within)
        for within, adalora in adaloras.items()
        if adalora["orthogonality"]
    ]
    if config.clip_norm is not None:
        clipping.append(optax.clip_by_global_norm(config.clip_norm))
    stages = _direction(config)
    if config.lora_plus_ratio != 1:
        stages.append(_scale_by_path([("lora_b", config.lora_plus_ratio)], "lora_plus_ratio"))
    if config.multipliers:
        stages.append(_scale_by_path(config.multipliers, "multipliers"))
    stages.append(optax.scale_by_learning_rate(lambda step: learning_rate_at(config, step)))
    if config.name == "adafactor_t5x" and config.weight_decay:
        # After the learning rate, which T5X does not multiply it by; updates are negative here.
        stages.append(optax.add_decayed_weights(-config.weight_decay))
    if not adaloras:
        return optax.chain(*clipping, *stages)
    if config.total_steps is None:
        raise InputError("adalora takes ranks away over a run: it needs optimizer.total_steps")
    optimizer = optax.chain(*stages)
    names = ("target_rank", "initial_steps", "final_steps", "interval", "beta1", "beta2")
    for within, adalora in adaloras.items():
        given = {name: adalora[name] for name in names}
        optimizer = rank_allocation.allocate_ranks(
            optimizer, config.total_steps, **given, within=within
        )
    return optax.chain(*clipping, optimizer)


def _direction(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    if config.name in ("adafactor", "adafactor_t5x"):
        t5x = config.name == "adafactor_t5x"
        return [
            scale_by_adafactor(
                decay_rate=config.decay_rate,
                clip_threshold=config.clip_threshold,
                scale_parameter=config.scale_parameter,
                weight_decay=0.0 if t5x else config.weight_decay,
                shortest_factored=_T5X_SHORTEST_FACTORED if t5x else 1,
                never_factored=("prompt",) if t5x else (),
            )
        ]
    decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    if config.name == "sgd":
        return decay + ([optax.trace(config.momentum)] if config.momentum else [])
    return [optax.scale_by_adam(config.b1, config.b2, config.eps), *decay]


# -------------------------------------------------------------------------------------- Adafactor


class AdafactorState(NamedTuple):
    """The second moments, each a tree like the parameters.

    A factored leaf [..., n, m] has `rows` [..., n] and `columns` [..., m]; any other has
    `elements` in its own shape. What a leaf lacks is a zero of shape (1,), as in optax and T5X.
    """

    count: jax.Array  # type: ignore[assignment]  # not tuple.count
    rows: Any
    columns: Any
    elements: Any


class _Moments(NamedTuple):
    rows: jax.Array
    columns: jax.Array
    elements: jax.Array


def scale_by_adafactor(
    *,
    decay_rate: float = 0.8,
    clip_threshold: float | None = 1.0,
    scale_parameter: bool = True,
    weight_decay: float = 0.0,
    shortest_factored: int = 1,
    never_factored: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Adafactor's direction, before the learning rate; each layer of a stacked leaf for itself.

    With the defaults it agrees with `transformers.optimization.Adafactor(relative_step=False)`
    on the layers as separate tensors, weight decay included. It differs from `optax.adafactor` in
    what a tensor is (a layer), in the factored axes (the last two, not the longest two) and in
    weight decay (multiplied by the learning rate and the parameter's scale).

    Source: Shazeer and Stern 2018, algorithms 4 and 5, without momentum.

    Args:
        decay_rate: the second moment's decay at update t (from 1) is 1 - t ** -decay_rate.
        clip_threshold: the largest root mean square of a tensor's update; None: not clipped.
        scale_parameter: multiply by the root mean square of the parameter, at least 1e-3.
        weight_decay: this times the parameter is added to the clipped update.
        shortest_factored: tensors are factored where their last two axes are at least this long.
        never_factored: names of leaves that are not factored in any case.

    Returns:
        An optax transformation whose `update` needs the parameters.
    """

    def is_factored(path: str, leaf: jax.Array) -> bool:
        short = leaf.ndim - is_stacked(path) < 2 or min(leaf.shape[-2:]) < shortest_factored
        return not short and path.split("/")[-1] not in never_factored

    def init_leaf(path: str, leaf: jax.Array) -> _Moments:
        absent = jnp.zeros((1,), leaf.dtype)
        if is_factored(path, leaf):
            return _Moments(jnp.zeros_like(leaf[..., 0]), jnp.zeros_like(leaf[..., 0, :]), absent)
        return _Moments(absent, absent, jnp.zeros_like(leaf))

    def update_leaf(path, gradient, moments, leaf, decay):
        step_size, moments = _whiten(gradient, moments, decay, is_factored(path, leaf))
        axes = tuple(range(int(is_stacked(path)), leaf.ndim))
        if clip_threshold is not None:
            step_size /= jnp.maximum(1.0, _root_mean_square(step_size, axes) / clip_threshold)
        if weight_decay:
            step_size += weight_decay * leaf
        if scale_parameter:
            step_size *= jnp.maximum(_root_mean_square(leaf, axes), _SCALE_FLOOR)
        return step_size, moments

    def init(params):
        moments = _map_with_path(init_leaf, params)
        return AdafactorState(jnp.zeros((), jnp.int32), *_unzip(moments))

    def update(gradients, state, params=None):
        if params is None:
            raise ValueError("adafactor's update needs the parameters")
        count = optax.safe_increment(state.count)
        decay = 1.0 - count.astype(jnp.float32) ** -decay_rate
        moments = jax.tree.map(_Moments, state.rows, state.columns, state.elements)
        both = _map_with_path(
            lambda path, g, m, p: update_leaf(path, g, m, p, decay), gradients, moments, params
        )
        updates = jax.tree.map(lambda _, pair: pair[0], gradients, both)
        moments = jax.tree.map(lambda _, pair: pair[1], gradients, both)
        return updates, AdafactorState(count, *_unzip(moments))

    return optax.GradientTransformation(init, update)


def is_stacked(path: str) -> bool:
    """Whether a leaf's first axis counts layers: ``layers`` is one of the names above it.

    Example:
        >>> is_stacked("lora/encoder/layers/attention/query/lora_a"), is_stacked("encoder/prompt")
        (True, False)
    """
    return "layers" in path.split("/")[:-1]


def _whiten(gradient, moments: _Moments, decay, factored: bool) -> tuple[jax.Array, _Moments]:
    """The gradient over the root of its second moment, and the new moments."""
    square = jnp.square(gradient) + _GRADIENT_FLOOR

    def average(old, new):
        return decay * old + (1.0 - decay) * new

    if not factored:
        elements = average(moments.elements, square)
        return gradient * jax.lax.rsqrt(elements), moments._replace(elements=elements)
    rows = average(moments.rows, jnp.mean(square, axis=-1))
    columns = average(moments.columns, jnp.mean(square, axis=-2))
    by_row = jax.lax.rsqrt(rows / jnp.mean(rows, axis=-1, keepdims=True))[..., :, None]
    by_column = jax.lax.rsqrt(columns)[..., None, :]
    return gradient * by_row * by_column, moments._replace(rows=rows, columns=columns)


def _root_mean_square(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))


def _map_with_path(function, params, *rest):
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(_path_name(path), *leaves), params, *rest
    )


def _path_name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _unzip(moments) -> tuple[Any, Any, Any]:
    """A tree of moments as the three trees that a state holds."""

    def part(name):
        return jax.tree.map(
            lambda m: getattr(m, name), moments, is_leaf=lambda m: isinstance(m, _Moments)
        )

    return part("rows"), part("columns"), part("elements")


# ------------------------------------------------------------------------- learning rates of leaves


def _scale_by_path(multipliers, field: str) -> optax.GradientTransformation:
    """Updates times the factor of the first pattern that matches the end of the leaf's path."""

    def factor(path: str) -> float:
        return next((f for pattern, f in multipliers if tree.ends_with(pattern, path)), 1.0)

    def init(params):
        paths = [_path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        if paths:  # optax asks for the state of a tree without leaves to find out its structure
            patterns = [pattern for pattern, _ in multipliers]
            tree.match(patterns, paths, f"the trainable in {field}")
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        return _map_with_path(lambda path, leaf: leaf * factor(path), updates), state

    return optax.GradientTransformation(init, update)
