"""Bottleneck adapters: a small feed-forward beside or behind a branch of the frozen layers.

::

    A(x) = act(x down + down_bias) up + up_bias        down [D, m], up [m, D]

``inner`` (Houlsby et al. 2019): h + A(h), with h what a branch returns, before the residual sum.
``outer`` (Pfeiffer et al. 2021): x + h + A(x + h), behind the sum.
``parallel`` (He et al. 2022): h + s A(n), with n what the branch itself reads.

The stored tree has the path of its place and its activation, so that layers need no further
configuration: ``encoder/layers/mlp_adapter/inner/relu/down`` is [L, D, m].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from peft_jax import transformer, tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, check_depth, chosen_layers, make_method
from peft_jax.methods.lazy import at_layers
from peft_jax.methods.norm_tuning import norm_copies
from peft_jax.transformer import Config
from peft_jax.tree import Params

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh", "identity"]
Placement = Literal["inner", "outer", "parallel"]
Leaves = dict[str, jax.Array]


# --------------------------------------------------------------------------------------------
# Factories
# --------------------------------------------------------------------------------------------
def houlsby_adapter(
    bottleneck: int = 64,
    activation: Activation = "gelu_tanh",
    targets: str | Sequence[str] = ("attention", "mlp"),
    layers: Sequence[int] | None = None,
    init_std: float = 1e-3,
    train_norms: bool = True,
) -> Method:
    """h + A(h) behind every attention and every feed-forward, inside the residual branch.

    Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1, and its code
    (google-research/adapter-bert): weights drawn from a normal distribution cut at two standard
    deviations, biases zero, the tanh form of GELU, and all norms trained beside. The initial
    function is the backbone's up to terms of the size of ``init_std`` squared.

    Count: (2 D m + D + m) for each adapter, two in a BERT's layer; with the norms, see
    ``norm_tuning``.

    Args:
      bottleneck: m, the width between the two projections.
      activation: between the two projections.
      targets: regular expressions on the ends of the paths of branches: ``attention`` (self and
        cross), ``self_attention``, ``cross_attention``, ``mlp``, ``decoder/.*``.
      layers: indices of the layers that get adapters; None means all (AdapterDrop leaves the lowest
        ones out). The norms are trained in all of them.
      init_std: of the initial weights; the paper finds values up to 1e-2 good.
      train_norms: whether the norms of the whole backbone are trained too.

    Raises:
      InputError: a number out of range, a target or a layer that does not exist.
    """
    spec = {
        "name": "houlsby_adapter",
        "bottleneck": bottleneck,
        "activation": activation,
        "targets": _listed(targets),
        "layers": _listed(layers),
        "init_std": init_std,
        "train_norms": train_norms,
    }
    _check_bottleneck(bottleneck)
    _check_std("init_std", init_std)

    def draw(key: jax.Array, depth: list[int], width: int) -> Leaves:
        return _dense(key, depth, width, bottleneck, lambda k, s: truncated_normal(k, s, init_std))

    return adapter_method(spec, "inner", draw)


def pfeiffer_adapter(
    bottleneck: int = 64,
    activation: Activation = "relu",
    targets: str | Sequence[str] = "mlp",
    layers: Sequence[int] | None = None,
    init_std: float = 0.02,
    train_norms: bool = False,
) -> Method:
    """x + h + A(x + h) behind the feed-forward's residual sum: half of Houlsby's adapters.

    Pfeiffer et al. 2021, "AdapterFusion", section 3 and appendix A, which call it the placement
    that a search over all found best; AdapterHub's ``seq_bn``. In families whose norms stand behind
    the sum (BERT, BART) the adapter reads the normed sum, and the norm follows it once more:
    LN(x + h + A(LN(x + h))). Weights are drawn from N(0, init_std), biases are zero.

    Count: (2 D m + D + m) for each adapter.

    Args:
      bottleneck: m, the width between the two projections.
      activation: between the two projections.
      targets: regular expressions on the ends of the paths of branches, see ``houlsby_adapter``.
      layers: indices of the layers that get adapters; None means all.
      init_std: of the initial weights.
      train_norms: whether the norms of the whole backbone are trained too.

    Raises:
      InputError: a number out of range, a target or a layer that does not exist.
    """
    spec = {
        "name": "pfeiffer_adapter",
        "bottleneck": bottleneck,
        "activation": activation,
        "targets": _listed(targets),
        "layers": _listed(layers),
        "init_std": init_std,
        "train_norms": train_norms,
    }
    _check_bottleneck(bottleneck)
    _check_std("init_std", init_std)

    def draw(key: jax.Array, depth: list[int], width: int) -> Leaves:
        return _dense(key, depth, width, bottleneck, lambda k, s: normal(k, s, init_std))

    return adapter_method(spec, "outer", draw)


def parallel_adapter(
    bottleneck: int = 64,
    scale: float = 4.0,
    activation: Activation = "relu",
    targets: str | Sequence[str] = "mlp",
    layers: Sequence[int] | None = None,
    train_norms: bool = False,
) -> Method:
    """h + s A(n): a second, small feed-forward that reads what the branch reads.

    He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 3.3
    ("scaled parallel adapter", s = 4 beside the feed-forward is their best single change). ``down``
    is drawn as LoRA's A is, uniform within 1/sqrt(D), ``up`` and the biases are zero: unchanged at
    the start.

    Count: (2 D m + D + m) for each adapter.

    Args:
      bottleneck: m, the width between the two projections.
      scale: s; it is no parameter.
      activation: between the two projections.
      targets: regular expressions on the ends of the paths of branches, see ``houlsby_adapter``.
      layers: indices of the layers that get adapters; None means all.
      train_norms: whether the norms of the whole backbone are trained too.

    Raises:
      InputError: a number out of range, a target or a layer that does not exist.
    """
    spec = {
        "name": "parallel_adapter",
        "bottleneck": bottleneck,
        "scale": scale,
        "activation": activation,
        "targets": _listed(targets),
        "layers": _listed(layers),
        "train_norms": train_norms,
    }
    _check_bottleneck(bottleneck)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise InputError(f"scale {scale!r} must be a number above 0: at 0 nothing is trained")

    def draw(key: jax.Array, depth: list[int], width: int) -> Leaves:
        bound = width**-0.5
        leaves = _dense(key, depth, width, bottleneck, lambda k, s: uniform(k, s, bound))
        return leaves | {"up": jnp.zeros_like(leaves["up"])}

    def expand(leaves: Leaves, shared: Leaves) -> Leaves:
        return leaves | {name: scale * leaves[name] for name in ("up", "up_bias")}

    return adapter_method(spec, "parallel", draw, expand)


def low_rank_adapter(
    rank: int = 1,
    reduction_factor: int = 32,
    activation: Activation = "gelu_tanh",
    targets: str | Sequence[str] = ("layers/attention|self_attention", "mlp"),
    layers: Sequence[int] | None = None,
    train_norms: bool = True,
) -> Method:
    """h + A(h) where both projections are products of rank r: down = S T, up = U V.

    The low-rank adapter that Karimi Mahabadi et al. 2021, "Compacter", section 4, compare with; in
    their code rank 1, behind self-attention and feed-forward, all norms trained. Factors are drawn
    uniformly within sqrt(12 / (rows + columns)) (Glorot with gain sqrt 2), biases are zero, so that
    the initial function is NOT the backbone's. T-Few's copy of that code has no residual
    connection around it and works for rank 1 only; neither is followed here.

    Count: (2 r (D + m) + D + m) for each adapter.

    Args:
      rank: r of either projection.
      reduction_factor: the bottleneck is m = D // reduction_factor.
      activation: between the two projections.
      targets: regular expressions on the ends of the paths of branches, see ``houlsby_adapter``.
      layers: indices of the layers that get adapters; None means all.
      train_norms: whether the norms of the whole backbone are trained too.

    Raises:
      InputError: a number out of range, a target or a layer that does not exist.
    """
    spec = {
        "name": "low_rank_adapter",
        "rank": rank,
        "reduction_factor": reduction_factor,
        "activation": activation,
        "targets": _listed(targets),
        "layers": _listed(layers),
        "train_norms": train_norms,
    }
    check_whole("rank", rank)
    check_whole("reduction_factor", reduction_factor)

    def draw(key: jax.Array, depth: list[int], width: int) -> Leaves:
        m = reduced(width, reduction_factor)
        shapes = {
            "down_left": (width, rank),
            "down_right": (rank, m),
            "up_left": (m, rank),
            "up_right": (rank, width),
        }
        keys = jax.random.split(key, len(shapes))
        leaves = {
            name: glorot(k, (*depth, *shape))
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return leaves | biases(depth, width, m)

    def expand(leaves: Leaves, shared: Leaves) -> Leaves:
        return {
            "down": leaves["down_left"] @ leaves["down_right"],
            "down_bias": leaves["down_bias"],
            "up": leaves["up_left"] @ leaves["up_right"],
            "up_bias": leaves["up_bias"],
        }

    return adapter_method(spec, "inner", draw, expand)


def tfew_adapter(
    reduction_factor: int = 32,
    activation: Activation = "relu",
    targets: str | Sequence[str] = "mlp",
    layers: Sequence[int] | None = None,
    init_std: float = 0.02,
    train_norms: bool = True,
) -> Method:
    """h + A(h) behind the feed-forwards: the adapter that Liu et al. 2022 compare (IA)³ with.

    Their section 3.3 says "after self-attention and feed-forward"; the code (r-three/t-few,
    configs/adapter.json) has adapters behind the feed-forwards alone, and the count that the paper
    prints agrees with it: 12,934,144 on T0-3B, norms included. Weights are drawn from
    N(0, init_std), biases are zero: near the backbone's function at the start. Their adapter reads
    the branch before its dropout, ours behind it, as Houlsby et al. have it; at evaluation the two
    are one function.

    Count: (2 D m + D + m) for each adapter, and the norms, see ``norm_tuning``.

    Args:
      reduction_factor: the bottleneck is m = D // reduction_factor.
      activation: between the two projections.
      targets: regular expressions on the ends of the paths of branches, see ``houlsby_adapter``.
      layers: indices of the layers that get adapters; None means all.
      init_std: of the initial weights.
      train_norms: whether the norms of the whole backbone are trained too.

    Raises:
      InputError: a number out of range, a target or a layer that does not exist.
    """
    spec = {
        "name": "tfew_adapter",
        "reduction_factor": reduction_factor,
        "activation": activation,
        "targets": _listed(targets),
        "layers": _listed(layers),
        "init_std": init_std,
        "train_norms": train_norms,
    }
    check_whole("reduction_factor", reduction_factor)
    _check_std("init_std", init_std)

    def draw(key: jax.Array, depth: list[int], width: int) -> Leaves:
        m = reduced(width, reduction_factor)
        return _dense(key, depth, width, m, lambda k, s: normal(k, s, init_std))

    return adapter_method(spec, "inner", draw)


# --------------------------------------------------------------------------------------------
# What all of them have in common
# --------------------------------------------------------------------------------------------
def adapter_method(
    spec: dict[str, Any],
    placement: Placement,
    draw: Callable[[jax.Array, list[int], int], Leaves],
    expand: Callable[[Leaves, Leaves], Leaves] | None = None,
    draw_shared: Callable[[jax.Array], Leaves] | None = None,
) -> Method:
    """An adapter at every place that a spec's ``targets`` and ``layers`` name, and the norms.

    Args:
      spec: with ``activation``, ``targets``, ``layers`` and ``train_norms``.
      placement: where the adapters stand, see the top of this file.
      draw: (key, [layers], D) -> the stored leaves of one place.
      expand: (stored leaves of one place, shared leaves) -> ``down`` [L, D, m], ``down_bias``,
        ``up``, ``up_bias``; by default the stored ones are those.
      draw_shared: leaves at the top of the stored tree that every place reads.
    """
    activation = spec["activation"]
    if activation not in get_args(Activation):
        raise InputError(
            f"activation {activation!r} is unknown; one of {', '.join(get_args(Activation))}"
        )
    chosen = chosen_layers(spec["layers"])

    def init(key: jax.Array, backbone: Backbone) -> Params:
        own_key, shared_key = jax.random.split(key)
        places = branches(backbone.config, spec["targets"])
        stored: dict[str, Any] = {}
        for k, (branch, depth) in zip(
            jax.random.split(own_key, len(places)), places.items(), strict=True
        ):
            leaves = draw(k, check_depth(chosen, [depth], branch), backbone.config.d_model)
            module = f"{branch}_adapter/{placement}/{activation}"
            stored |= {f"{module}/{name}": leaf for name, leaf in leaves.items()}
        if spec["train_norms"]:
            stored |= norm_copies(backbone)
        if draw_shared is not None:
            stored |= draw_shared(shared_key)
        return tree.unflatten(stored)

    def bind(stored: Params) -> Params:
        shared = {name: leaf for name, leaf in stored.items() if not isinstance(leaf, dict)}
        places: dict[str, Leaves] = {}
        bound: dict[str, Any] = {}
        for path, leaf in tree.flatten(stored).items():
            module, _, name = path.rpartition("/")
            if f"_adapter/{placement}/" in path:
                places.setdefault(module, {})[name] = leaf
            elif path not in shared:
                bound[path] = leaf
        for module, leaves in places.items():
            for name, leaf in (expand(leaves, shared) if expand else leaves).items():
                bound[f"{module}/{name}"] = at_layers(leaf, chosen, 0.0)
        return tree.unflatten(bound)

    return make_method(init, bind, spec, foldable=False)


def branches(config: Config, targets: str | Sequence[str]) -> dict[str, int]:
    """The residual branches whose paths end as a target says, with their number of layers.

    >>> branches(config, "attention")  # doctest: +SKIP
    {'encoder/layers/attention': 24, 'decoder/layers/self_attention': 24, ...}
    """
    found: dict[str, int] = {}
    for stack, spec in transformer.specification(config).items():
        if stack in ("encoder", "decoder"):
            found |= {
                f"{stack}/layers/{name}": config.depth(f"{stack}/")
                for name in spec["layers"]
                if f"{name}_norm" in spec["layers"]
            }
    return {path: found[path] for path in tree.match(targets, found)}


def _dense(
    key: jax.Array,
    depth: list[int],
    width: int,
    m: int,
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array],
) -> Leaves:
    down, up = jax.random.split(key)
    return {
        "down": draw(down, (*depth, width, m)),
        "up": draw(up, (*depth, m, width)),
        **biases(depth, width, m),
    }


def biases(depth: list[int], width: int, m: int) -> Leaves:
    """Zeros: ``down_bias`` [L, m] and ``up_bias`` [L, D]."""
    return {
        "down_bias": jnp.zeros((*depth, m), jnp.float32),
        "up_bias": jnp.zeros((*depth, width), jnp.float32),
    }


def reduced(width: int, factor: int) -> int:
    """The bottleneck D // factor; InputError where nothing is left of it."""
    if width < factor:
        raise InputError(
            f"reduction_factor {factor} leaves nothing of a backbone of d_model {width}; it must "
            "not be above that"
        )
    return width // factor


# --------------------------------------------------------------------------------------------
# Draws, float32
# --------------------------------------------------------------------------------------------
def normal(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    return std * jax.random.normal(key, shape, jnp.float32)


def truncated_normal(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """N(0, std) cut at two standard deviations, and so of 0.88 std itself, as TensorFlow draws."""
    return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)


def uniform(key: jax.Array, shape: tuple[int, ...], bound: float) -> jax.Array:
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def glorot(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform within sqrt(2) sqrt(6 / (rows + columns)), as Compacter's code draws factors."""
    return uniform(key, shape, (12 / (shape[-2] + shape[-1])) ** 0.5)


# --------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------
def _listed(given: Any) -> Any:
    """An argument as JSON holds it; one pattern becomes a list of one."""
    if given is None or isinstance(given, int):
        return given
    return [given] if isinstance(given, str) else list(given)


def check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} {value!r} must be a whole number of at least 1")


def _check_bottleneck(bottleneck: Any) -> None:
    check_whole("bottleneck", bottleneck)


def _check_std(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(
            f"{name} {value!r} must be a number above 0: from zeros no adapter gets a gradient"
        )
