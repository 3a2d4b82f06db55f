"""LoRA: low-rank updates beside frozen projections (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from peft_jax import quantization, tree
from peft_jax.backbones.base import Backbone, find_modules
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, check_depth, chosen_layers, make_method, sizes
from peft_jax.methods.lazy import at_layers
from peft_jax.transformer import Config
from peft_jax.tree import Params

Init = Literal["uniform", "gaussian", "tfew", "pissa"]


def lora(
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] = "attention/(query|value)",
    layers: Sequence[int] | None = None,
    dropout: float = 0.0,
    rslora: bool = False,
    init: Init = "uniform",
    rank_pattern: Sequence[tuple[str, int]] = (),
    alpha_pattern: Sequence[tuple[str, float]] = (),
    freeze_a: bool = False,
    svd_iterations: int | None = None,
) -> Method:
    """h = W x + (alpha / rank) B A x; the function is unchanged at the start.

    The stored tree has ``lora_a`` [layers, in, rank] and ``lora_b`` [layers, rank, out] per target:
    layers * rank * (in + out) parameters.

    With ``init="pissa"`` (Meng et al. 2024) the factors start at the kernel's ``rank`` largest
    singular values and vectors. The published code takes that part out of the frozen kernel; here
    the kernel stays and the factors' initial values are constants that are taken off again,
    h = W x + (alpha / rank) (B A - B0 A0) x, which is the same function.

    T-Few's baseline is ``lora(4, alpha=1, init="tfew", targets=(...))``: its scale is 1 / rank.

    Args:
      rank: of the update.
      alpha: the update is scaled by alpha / rank; None means alpha = rank, a scale of 1.
      targets: regular expressions on the ends of module paths.
      layers: indices of the layers to train; None means all.
      dropout: rate on the input of the low-rank branch alone, while training.
      rslora: scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).
      init: of A, with B zero. "uniform": within 1/sqrt(in), as loralib and Hugging Face PEFT;
        "gaussian": deviation 1/rank, PEFT's option of that name; "tfew": deviation 0.01, as the
        code of Liu et al. 2022; "pissa": both factors as above.
      rank_pattern: other ranks for some targets: pairs of a regular expression on the end of a
        module path and a rank. The first pair that matches counts.
      alpha_pattern: the same for alpha.
      freeze_a: train B only, and keep A as drawn: LoRA-FA (Zhang et al. 2023), whose backward pass
        keeps rank numbers per token where LoRA keeps in.
      svd_iterations: find PiSSA's singular vectors by so many power iterations from a random start
        (Halko et al. 2011), 16 for instance: minutes where the exact decomposition of a large model
        takes hours. None means exactly.

    Raises:
      InputError: a number out of its range; from ``init``, a target or a pattern that matches
        nothing, or a PiSSA rank above a kernel's smaller side.
    """
    check_rank(rank)
    check_alpha(alpha)
    check_dropout(dropout)
    if init not in get_args(Init):
        raise InputError(f"init {init!r} is unknown; one of {', '.join(get_args(Init))}")
    if init == "pissa" and dropout:
        # The constants must not be dropped, and a layer knows one branch only.
        raise InputError(f"dropout {dropout} does not go with init 'pissa', which has none")
    if svd_iterations is not None and (init != "pissa" or svd_iterations < 0):
        raise InputError(
            f"svd_iterations {svd_iterations} must be at least 0, and is for init 'pissa' alone"
        )
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen = chosen_layers(layers)
    ranks = _pattern("rank_pattern", rank_pattern, check_rank)
    alphas = _pattern("alpha_pattern", alpha_pattern, check_alpha)

    def init_tree(key: jax.Array, backbone: Backbone) -> Params:
        found = projections(backbone.config, targets, chosen)
        for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
            if pattern:
                tree.match([p for p, _ in pattern], found, f"module of {name}")
        stored = {}
        keys = jax.random.split(key, len(found))
        for k, (module, sides) in zip(keys, found.items(), strict=True):
            size = _value_at(module, ranks, rank)
            if init == "pissa":
                kernel = chosen_kernel(backbone.params, module, chosen)
                _check_singular_values(module, kernel, size)
                a, b = _principal(k, kernel, size, svd_iterations)
                a, b = (x * scale_of(module, size) ** -0.5 for x in (a, b))
                stored[f"{module}/fixed/lora_a"], stored[f"{module}/fixed/lora_b"] = a, b
                # Copies: the step donates what is trained and must not free the constants.
                a, b = jnp.array(a, copy=True), jnp.array(b, copy=True)
            else:
                a = _draw(k, (*sides.depth, sides.inputs, size), init)
                b = jnp.zeros((*sides.depth, size, sides.outputs), jnp.float32)
            stored[f"{module}/fixed/lora_a" if freeze_a else f"{module}/lora_a"] = a
            stored[f"{module}/lora_b"] = b
        return tree.unflatten(stored)

    def scale_of(module: str, size: int) -> float:
        own = _value_at(module, alphas, size if alpha is None else alpha)
        return own / (size**0.5 if rslora else size)

    def bind(stored: Params) -> Params:
        flat, bound = tree.flatten(stored), {}
        for module, b in leaves_named("lora_b", flat):
            size = b.shape[-2]
            a: Any = flat.get(f"{module}/lora_a")
            a0: Any = flat.get(f"{module}/fixed/lora_a")
            b0 = flat.get(f"{module}/fixed/lora_b")
            if a is None:
                a, b = a0, b if b0 is None else b - b0
            elif b0 is not None:
                a, b = jnp.concatenate([a, a0], axis=-1), jnp.concatenate([b, -b0], axis=-2)
            scale = scale_of(module, size)
            bound[f"{module}/lora_a"] = at_layers(a, chosen, 0.0)
            bound[f"{module}/lora_b"] = at_layers(b if scale == 1 else b * scale, chosen, 0.0)
            if dropout:
                # A constant that travels with the factors; layers know no configuration.
                rate = jnp.full(a.shape[:-2], dropout, jnp.float32)
                bound[f"{module}/lora_dropout"] = at_layers(rate, chosen, 0.0)
        return tree.unflatten(bound)

    spec = {
        "name": "lora",
        "rank": rank,
        "alpha": alpha,
        "targets": list(targets),
        "layers": chosen and list(chosen),
        "dropout": dropout,
        "rslora": rslora,
        "init": init,
        "rank_pattern": [list(pair) for pair in ranks],
        "alpha_pattern": [list(pair) for pair in alphas],
        "freeze_a": freeze_a,
        "svd_iterations": svd_iterations,
    }
    return make_method(init_tree, bind, spec, foldable=True)


# --------------------------------------------------------------------------------------------
# What methods with low-rank factors share
# --------------------------------------------------------------------------------------------
class Projection(NamedTuple):
    """Sizes of a targeted kernel: ``depth`` is [layers] in a stack and [] elsewhere."""

    depth: list[int]
    inputs: int
    outputs: int


def projections(
    config: Config, targets: Sequence[str], chosen: Sequence[int] | None
) -> dict[str, Projection]:
    """Module path -> sizes of every kernel that a target matches, for the chosen layers."""
    outputs = find_modules(config, "lora_b", targets)
    found = {}
    for module, slot in find_modules(config, "lora_a", targets).items():
        *depth, inputs = sizes(slot)
        depth = check_depth(chosen, depth, module)
        found[module] = Projection(depth, inputs, sizes(outputs[module])[-1])
    return found


def chosen_kernel(params: Params, module: str, chosen: Sequence[int] | None) -> jax.Array:
    """The module's kernel in the chosen layers, float32 [layers, in, out]."""
    kernel = quantization.dequantize(tree.get(params, f"{module}/kernel"))
    return (kernel if chosen is None else kernel[jnp.asarray(chosen)]).astype(jnp.float32)


def leaves_named(name: str, flat: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(module, leaf) for every trained leaf of that name in a flat stored tree."""
    for path, leaf in flat.items():
        module, _, kind = path.rpartition("/")
        if kind == name and not module.endswith("/fixed"):
            yield module, leaf


def check_dropout(rate: float) -> None:
    """InputError unless it is a rate of dropout."""
    if not 0 <= rate < 1:
        raise InputError(f"dropout {rate} must be at least 0 and below 1")


def check_rank(rank: int, where: str = "rank") -> None:
    """InputError unless it is the rank of a matrix."""
    if not isinstance(rank, int) or rank < 1:
        raise InputError(f"{where} {rank!r} must be a whole number of at least 1")


def check_alpha(alpha: float | None, where: str = "alpha") -> None:
    """InputError unless it scales an update, or leaves the scale at 1."""
    if alpha is not None and not alpha > 0:
        raise InputError(f"{where} {alpha!r} must be above 0: at 0 nothing is trained")


def _pattern(name: str, given: Sequence[tuple[str, Any]], check_value) -> tuple:
    """The pairs of a pattern, checked."""
    pairs = []
    for pair in given:
        if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InputError(
                f"{name} has {pair!r}; give pairs of a module and a number, ('mlp/wo', 4)"
            )
        check_value(pair[1], f"{name}'s value for {pair[0]!r}:")
        pairs.append(tuple(pair))
    return tuple(pairs)


def _value_at(module: str, pattern: Sequence[tuple[str, Any]], otherwise: Any) -> Any:
    return next((value for p, value in pattern if tree.ends_with(p, module)), otherwise)


def _draw(key: jax.Array, shape: Sequence[int], init: Init) -> jax.Array:
    """A of shape [..., in, rank]."""
    *_, inputs, rank = shape
    if init == "uniform":
        bound = inputs**-0.5
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    return (1 / rank if init == "gaussian" else 0.01) * jax.random.normal(key, shape, jnp.float32)


def _check_singular_values(module: str, kernel: jax.Array, rank: int) -> None:
    have = min(kernel.shape[-2:])
    if rank > have:
        raise InputError(
            f"rank {rank} is above the {have} singular values of {module!r}, which init 'pissa' "
            "starts from"
        )


def _principal(
    key: jax.Array, kernel: jax.Array, rank: int, iterations: int | None
) -> tuple[jax.Array, jax.Array]:
    """A [..., in, rank] and B [..., rank, out]: A B is the kernel's best approximation."""

    def factors(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        if iterations is None:
            u, s, v = jnp.linalg.svd(matrix, full_matrices=False)
        else:
            basis = _leading_columns(key, matrix, rank + _OVERSAMPLING, iterations)
            within = jnp.matmul(basis.T, matrix, precision="highest")
            u, s, v = jnp.linalg.svd(within, full_matrices=False)
            u = jnp.matmul(basis, u, precision="highest")
        root = jnp.sqrt(s[:rank])
        return u[:, :rank] * root, root[:, None] * v[:rank]

    # One layer at a time: all of a layer's singular vectors are as large as its kernel.
    return factors(kernel) if kernel.ndim == 2 else jax.lax.map(factors, kernel)


_OVERSAMPLING = 10  # Halko et al. 2011, section 4.2: 5 or 10 are enough


def _leading_columns(key: jax.Array, matrix: jax.Array, size: int, iterations: int) -> jax.Array:
    """An orthonormal basis [in, size] of about the leading left singular vectors.

    Subspace iteration from a random start (Halko et al. 2011, algorithm 4.4).
    """
    size = min(size, *matrix.shape)

    def times(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.linalg.qr(jnp.matmul(left, right, precision="highest"))[0]

    start = times(matrix, jax.random.normal(key, (matrix.shape[1], size), jnp.float32))
    return jax.lax.fori_loop(
        0, iterations, lambda _, basis: times(matrix, times(matrix.T, basis)), start
    )
