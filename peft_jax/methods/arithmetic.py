"""Arithmetic on adapters: sums, negation, concatenated ranks, truncation, TIES and DARE.

Every function takes adapters as pairs (method, stored tree) of one backbone and returns such a
pair, which saves, binds, folds and composes like any other::

    both = arithmetic.average([(method, one), (method, other)])
    exact = arithmetic.concatenate_ranks([(method, one), (method, other)], weights=[0.5, 0.5])
    small = arithmetic.truncate_rank(*exact, rank=4)

What is combined are *task vectors*: an adapter minus the point where its method changes nothing
(Ilharco et al. 2022; Zhang et al. 2023, "Composing Parameter-Efficient Modules with Arithmetic
Operations"). That point is 1 for (IA)³ and no update for LoRA. For what has none of its own - a
soft prompt - or takes it from the backbone - full fine-tuning, BitFit - it is the argument
``origin``: a stored tree, such as the one that training began with.

A sum of LoRA's *factors* is not the sum of their updates: (A1 + A2)(B1 + B2) has products of A1
with B2. :func:`concatenate_ranks` is exact and :func:`truncate_rank` brings its rank down again;
working on factors is the approximation that Hugging Face PEFT calls "linear", "ties" and so on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.methods import task_vectors
from peft_jax.methods.base import Method
from peft_jax.methods.composition import compose
from peft_jax.methods.lazy import AtLayers, Lazy
from peft_jax.methods.lora import lora
from peft_jax.methods.task_vectors import Vectors
from peft_jax.tree import Params

Adapter = tuple[Method, Params]
Election = Literal["total", "frequency"]
Scope = task_vectors.Scope


# --------------------------------------------------------------------------------------------
# Sums of stored trees
# --------------------------------------------------------------------------------------------
def weighted_sum(
    adapters: Sequence[Adapter], weights: Sequence[float], *, origin: Params | None = None
) -> Adapter:
    """origin + sum_i weight_i (adapter_i - origin), leaf by leaf.

    Exact, in the sense that the leaves that layers read are the same sum, for methods whose bound
    leaves are linear in what is stored: (IA)³ (whose result is 1 + sum_i w_i (l_i - 1)), BitFit,
    norms, prompts, full fine-tuning. Approximate where a layer multiplies two stored leaves:
    adapters' down and up, and LoRA, whose factors both get sqrt|w alpha / rank| and A the sign, so
    that one adapter's update is scaled by w exactly, and those of several have products between
    them. That is PEFT's "linear"; for LoRA's exact sum use :func:`concatenate_ranks`.

    Args:
      adapters: (method, stored tree) of each, the methods alike: same places, same ranks. LoRAs may
        differ in alpha and dropout; the result's LoRA has scale 1 and no dropout.
      weights: one for each adapter, of either sign.
      origin: a stored tree of the same form; not needed where weights sum to 1, or for (IA)³ and
        LoRA. PEFT sums (IA)³ vectors themselves: zeros as origin.

    Raises:
      InputError: adapters that are not alike, another number of weights, or no origin to sum from.
    """
    return _combine(adapters, weights, origin, None, task_vectors.add)


def average(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Adapter:
    """The mean of stored trees, or their mean weighted by ``weights`` over their sum.

    Exact and approximate as :func:`weighted_sum` is; needs no origin. For bottleneck adapters this
    is AdapterSoup (Chronopoulou et al. 2023).
    """
    if not adapters:
        raise InputError("an average needs at least one adapter")
    given = _weights(adapters, weights)
    if not given.sum() > 0:
        raise InputError(f"weights {given.tolist()} of an average must sum to more than 0")
    return weighted_sum(adapters, (given / given.sum()).tolist())


def negate(method: Method, adapter: Params, *, origin: Params | None = None) -> Adapter:
    """The adapter whose task vector is the opposite: subtracts what this one has learned.

    LoRA (AdaLoRA, VeRA): B becomes -B, and in bottleneck adapters the up projection becomes its
    opposite; the update itself is negated, exactly. (IA)³: l becomes 2 - l; the change of the
    scaled activations is negated, exactly (Zhang et al. 2023, section 3). Anything else:
    2 origin - adapter.

    Raises:
      InputError: a leaf without a point where it changes nothing, and no ``origin``.
    """
    given = None if origin is None else _arrays(origin)

    def opposite(path: str, leaf: Any) -> jax.Array:
        kind = path.rpartition("/")[2]
        leaf = np.asarray(leaf)
        if tree.FIXED in path.split("/") or kind in _KEPT_BY_NEGATION:
            return jnp.asarray(leaf)
        if kind in _NEGATED:
            return jnp.asarray(-leaf)
        return jnp.asarray(2 * _origin_of(path, leaf, given) - leaf)

    return method, tree.map_with_path(opposite, adapter)


# Of the factors of a product one is negated and the others are kept.
_NEGATED = ("lora_b", "up", "up_bias", "vera_lambda_b")
_KEPT_BY_NEGATION = ("lora_a", "lora_e", "down", "down_bias", "vera_lambda_d")


# --------------------------------------------------------------------------------------------
# LoRA: sums of updates
# --------------------------------------------------------------------------------------------
def concatenate_ranks(
    adapters: Sequence[Adapter], weights: Sequence[float] | None = None
) -> Adapter:
    """One LoRA with the exact sum of the weighted updates, of rank r_1 + r_2 + ... (PEFT's "cat").

    A = [A_1 A_2 ...], B = [w_1 s_1 B_1; w_2 s_2 B_2; ...]: weight and scale alpha / rank go into B,
    with their sign. Exact to float32 rounding at evaluation.

    Args:
      adapters: of any methods that become LoRA factors when bound, on the same modules and layers;
        ranks, scales and dropouts may differ. The result has no dropout.
      weights: one for each; None means 1 each, the plain sum.

    Raises:
      InputError: another method, other modules or layers, another number of weights.
    """
    if not adapters:
        raise InputError("a concatenation needs at least one adapter")
    given = _weights(adapters, weights)
    each = [_factors(method, stored) for method, stored in adapters]
    _check_places(each)
    summed = {}
    for module in each[0].pairs:
        pairs = [factors.pairs[module] for factors in each]
        scales = [w * factors.scales[module] for w, factors in zip(given, each, strict=True)]
        a = np.concatenate([a for a, _ in pairs], axis=-1)
        scaled = [np.float32(s) * b for s, (_, b) in zip(scales, pairs, strict=True)]
        summed[module] = (a, np.concatenate(scaled, axis=-2))
    return _plain_lora(summed, each[0])


def truncate_rank(method: Method, adapter: Params, rank: int) -> Adapter:
    """The LoRA of a given rank that is nearest to an adapter's updates (PEFT's "svd").

    Nearest in the Frobenius and spectral norms (Eckart & Young 1936), for every matrix of every
    layer; exact where the update's rank is no larger. The result's A has orthonormal columns and B
    the singular values, largest first. Computed from the factors (QR of each, then the SVD of a
    small core): the dense update is never formed.

    Args:
      method, adapter: any method that becomes LoRA factors when bound, such as the result of
        :func:`concatenate_ranks`.
      rank: at least 1; a rank above the adapter's is filled with zeros.
    """
    _check_rank(rank)
    factors = _factors(method, adapter)
    return _plain_lora(
        {m: _nearest(a, factors.scales[m] * b, rank) for m, (a, b) in factors.pairs.items()},
        factors,
    )


def _nearest(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    left, upper = np.linalg.qr(a.astype(np.float64))
    right, lower = np.linalg.qr(np.swapaxes(b, -1, -2).astype(np.float64))
    u, s, vh = np.linalg.svd(upper @ np.swapaxes(lower, -1, -2), full_matrices=False)
    new_b = s[..., :, None] * (vh @ np.swapaxes(right, -1, -2))
    return _to_rank(left @ u, new_b, rank)


def _nearest_dense(update: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    u, s, vh = np.linalg.svd(update, full_matrices=False)
    return _to_rank(u, s[..., :, None] * vh, rank)


def _to_rank(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors cut, or filled with zeros, to a rank."""
    missing = max(0, rank - a.shape[-1])
    a = np.pad(a[..., :rank], [(0, 0)] * (a.ndim - 1) + [(0, missing)])
    b = np.pad(b[..., :rank, :], [(0, 0)] * (b.ndim - 2) + [(0, missing), (0, 0)])
    return a.astype(np.float32), b.astype(np.float32)


# --------------------------------------------------------------------------------------------
# Sparse merges
# --------------------------------------------------------------------------------------------
def ties(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    *,
    election: Election = "total",
    scope: Scope = "matrix",
    rank: int | None = None,
    origin: Params | None = None,
) -> Adapter:
    """TIES merging: trim each task vector, elect signs, average those that agree.

    Yadav et al. 2023, "TIES-Merging", section 3.1; with ``scope="matrix"`` PEFT's "ties" and
    "ties_svd". Exact for one adapter at density 1; a merge of several is a heuristic, not a sum.

    Args:
      adapters: alike, as for :func:`weighted_sum`.
      weights: of the vectors in the average; None means 1 each, the paper's with lambda = 1.
      density: share of entries that trimming keeps; the paper keeps 0.2.
      election: "total" (the paper's: the sign of the sum) or "frequency".
      scope: what is trimmed together: each "matrix", as in PEFT, or the whole "adapter", as in the
        paper.
      rank: for LoRA: None works on the factors; a number on the dense updates, one module at a time
        (with scope "matrix"), and truncates the result to that rank.
      origin: as for :func:`weighted_sum`.
    """
    sparsify = _trimmed(density, scope)
    merge = functools.partial(task_vectors.elect_and_average, election=_election(election))
    return _combine(adapters, weights, origin, sparsify, merge, rank, scope)


def dare(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    *,
    seed: int = 0,
    election: Election | None = None,
    rank: int | None = None,
    origin: Params | None = None,
) -> Adapter:
    """DARE: drop entries of each task vector at random, rescale the others, then merge.

    Yu et al. 2023, section 3.1; PEFT's "dare_linear", "dare_ties" and their "_svd" forms. The drops
    leave the expected task vector as it is; exact at density 1, as :func:`weighted_sum` is.

    Args:
      density: probability that an entry is kept; what is kept is divided by it.
      seed: of the draws (NumPy's PCG64).
      election: None sums the vectors; "total" or "frequency" merges them as :func:`ties` does.
      adapters, weights, rank, origin: as for :func:`ties`.
    """
    _check_density(density)
    generator = np.random.default_rng(seed)
    merge = task_vectors.add
    if election is not None:
        merge = functools.partial(task_vectors.elect_and_average, election=_election(election))

    def sparsify(vectors: Vectors) -> Vectors:
        return task_vectors.drop(vectors, density, generator)

    return _combine(adapters, weights, origin, sparsify, merge, rank)


def magnitude_prune(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    *,
    scope: Scope = "matrix",
    rank: int | None = None,
    origin: Params | None = None,
) -> Adapter:
    """The weighted sum of task vectors trimmed to their largest entries (PEFT's "magnitude_prune").

    Exact at density 1, as :func:`weighted_sum` is. With one adapter it prunes that one.

    Args:
      density: share of entries that is kept.
      adapters, weights, scope, rank, origin: as for :func:`ties`.
    """
    return _combine(
        adapters, weights, origin, _trimmed(density, scope), task_vectors.add, rank, scope
    )


def _trimmed(density: float, scope: Scope) -> Callable[[Vectors], Vectors]:
    _check_density(density)
    if scope not in ("matrix", "adapter"):
        raise InputError(f'scope {scope!r} is unknown; "matrix" or "adapter"')
    return functools.partial(task_vectors.trim, density=density, scope=scope)


def _election(name: str) -> Election:
    if name == "total" or name == "frequency":
        return name  # type: ignore[return-value]
    raise InputError(f'election {name!r} is unknown; "total" or "frequency"')


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise InputError(f"density {density!r} must be above 0 and at most 1")


def _check_rank(rank: int) -> None:
    if not isinstance(rank, int) or rank < 1:
        raise InputError(f"rank {rank!r} must be a whole number of at least 1")


# --------------------------------------------------------------------------------------------
# Task vectors of alike adapters, and back
# --------------------------------------------------------------------------------------------
class _Part(NamedTuple):
    """One method of a composition (or the only one) with the task vectors of all adapters.

    Attributes:
      label: its name in the composed stored tree; "" for a method by itself.
      method: of the result.
      vectors: path in the stored tree -> [N, ...] float32.
      origin: path -> what is added to the merged vector.
      fixed: constants, the same in all adapters.
      scales: for LoRA, whose two factors share a weight: path -> alpha / rank [N] of each adapter.
    """

    label: str
    method: Method
    vectors: Vectors
    origin: dict[str, np.ndarray]
    fixed: Params
    scales: dict[str, np.ndarray] | None


def _combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None,
    origin: Params | None,
    sparsify: Callable[[Vectors], Vectors] | None,
    merge: Callable[[np.ndarray, np.ndarray], np.ndarray],
    rank: int | None = None,
    scope: Scope = "matrix",
) -> Adapter:
    """Sparsified task vectors merged leaf by leaf, or for LoRA (``rank``) update by update."""
    if not adapters:
        raise InputError("there is no adapter to combine")
    given = _weights(adapters, weights)
    if rank is not None:
        return _combine_updates(adapters, given, sparsify, merge, rank, scope)
    # A plain sum with weights of 1 together is the same from everywhere.
    free = sparsify is None and abs(given.sum() - 1) < 1e-6
    parts = list(_parts(adapters, origin, origin_is_free=free))
    sparse = {f"{p.label}/{path}": x for p in parts for path, x in p.vectors.items()}
    if sparsify is not None:
        sparse = sparsify(sparse)
    merged = {}
    for part in parts:
        values = {}
        for path in part.vectors:
            used = given if part.scales is None else _halved(given * part.scales[path], path)
            value = merge(sparse[f"{part.label}/{path}"], used) + part.origin[path]
            values[path] = jnp.asarray(value, jnp.float32)
        merged[part.label] = tree.join(tree.unflatten(values), part.fixed)
    if list(merged) == [""]:
        return parts[0].method, merged[""]
    return compose(*(part.method for part in parts)), merged


def _halved(weights: np.ndarray, path: str) -> np.ndarray:
    """sqrt|w| for either factor, so that their product has w; the sign belongs to A."""
    root = np.sqrt(np.abs(weights))
    return root * np.sign(weights) if path.endswith("/lora_a") else root


def _combine_updates(adapters, weights, sparsify, merge, rank, scope) -> Adapter:
    _check_rank(rank)
    if scope != "matrix":
        raise InputError(f'scope {scope!r} needs the factors: leave rank out, or use "matrix"')
    each = [_factors(method, stored) for method, stored in adapters]
    _check_places(each)
    merged = {}
    for module in each[0].pairs:
        pairs = [(*factors.pairs[module], factors.scales[module]) for factors in each]
        updates = np.stack([np.float32(scale) * (a @ b) for a, b, scale in pairs])
        (sparse,) = sparsify({f"{module}/kernel": updates}).values()
        merged[module] = _nearest_dense(merge(sparse, weights), rank)
    return _plain_lora(merged, each[0])


def _weights(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> np.ndarray:
    if weights is None:
        return np.ones(len(adapters))
    given = np.asarray(weights, np.float64)
    if given.shape != (len(adapters),):
        raise InputError(f"{given.size} weights for {len(adapters)} adapters: give one for each")
    if not np.isfinite(given).all():
        raise InputError(f"weights {given.tolist()} must be finite numbers")
    return given


def _arrays(stored: Params) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(stored).items()}


def _parts(
    adapters: Sequence[Adapter], origin: Params | None, *, origin_is_free: bool
) -> Iterator[_Part]:
    from peft_jax.methods import from_spec

    first = adapters[0][0].spec
    names = [_names(method) for method, _ in adapters]
    for i, other in enumerate(names):
        if other != names[0]:
            raise InputError(
                f"adapter {i} is of the methods {other} and adapter 0 of {names[0]}: only adapters "
                "of one method can be combined"
            )
    if first["name"] != "compose":
        yield _part("", adapters, origin, origin_is_free)
        return
    for k, label in enumerate(adapters[0][1]):
        pieces = [
            (from_spec(method.spec["methods"][k]), stored[label]) for method, stored in adapters
        ]
        own = None if origin is None else origin.get(label)
        yield _part(label, pieces, own, origin_is_free)


def _names(method: Method) -> list[str]:
    return [part["name"] for part in method.spec.get("methods", [method.spec])]


def _part(
    label: str, adapters: Sequence[Adapter], origin: Params | None, origin_is_free: bool
) -> _Part:
    if _is_lora(*adapters[0]):
        each = [_factors(method, stored) for method, stored in adapters]
        _check_places(each)
        made = [_plain_lora(factors.pairs, factors) for factors in each]
        stored = [_arrays(leaves) for _, leaves in made]
        _check_leaves(stored)
        vectors = {path: np.stack([s[path] for s in stored]) for path in stored[0]}
        zero = {path: np.zeros((), np.float32) for path in vectors}
        scales = {
            path: np.asarray([factors.scales[path.rpartition("/")[0]] for factors in each])
            for path in vectors
        }
        return _Part(label, made[0][0], vectors, zero, {}, scales)
    _check_bound_alike(adapters)
    trained, fixed = zip(*(tree.split_fixed(stored) for _, stored in adapters), strict=True)
    stored = [_arrays(leaves) for leaves in trained]
    _check_leaves(stored)
    given = None if origin is None else _arrays(origin)
    start = {
        path: np.zeros_like(leaf) if origin_is_free else _origin_of(path, leaf, given)
        for path, leaf in stored[0].items()
    }
    vectors = {path: np.stack([s[path] for s in stored]) - start[path] for path in stored[0]}
    return _Part(label, adapters[0][0], vectors, start, fixed[0], None)


def _origin_of(path: str, leaf: np.ndarray, given: dict[str, np.ndarray] | None) -> np.ndarray:
    """The value at which a stored leaf changes nothing, or from which it was trained."""
    if given is not None:
        if path not in given or given[path].shape != leaf.shape:
            raise InputError(f"origin has no leaf {path!r} of shape {leaf.shape}")
        return given[path]
    if path.endswith(("/ia3", "/input_scale")):
        return np.ones_like(leaf)
    raise InputError(
        f"{path!r} has no value of its own at which it changes nothing: pass origin=, the stored "
        "tree that training began with"
    )


def _check_leaves(stored: Sequence[dict[str, np.ndarray]]) -> None:
    """InputError unless all trees have the same leaves."""
    for i, other in enumerate(stored):
        for path in {**stored[0], **other}:
            shapes = [flat[path].shape if path in flat else None for flat in (stored[0], other)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"adapters 0 and {i} differ: {path!r} has the shapes {shapes[0]} and "
                    f"{shapes[1]} (concatenate_ranks takes different ranks)"
                )


def _check_bound_alike(adapters: Sequence[Adapter]) -> None:
    """InputError unless every method reads a stored tree as the first one does.

    Arguments that only matter at the start, such as a prompt's init, may differ; those that change
    the meaning of what is stored may not.
    """
    _check_leaves([_arrays(stored) for _, stored in adapters])
    wanted = adapters[0][0].bind(adapters[0][1])
    for i, (method, stored) in enumerate(adapters):
        found = method.bind(adapters[0][1])
        same = str(jax.tree.structure(wanted)) == str(jax.tree.structure(found))
        if not same or not all(
            map(np.array_equal, jax.tree.leaves(wanted), jax.tree.leaves(found))
        ):
            raise InputError(
                f"adapters 0 and {i} are made by different methods: {adapters[0][0].spec} and "
                f"{method.spec}"
            )
        constants = _arrays(tree.split_fixed(stored)[1])
        for path, leaf in _arrays(tree.split_fixed(adapters[0][1])[1]).items():
            if not np.array_equal(leaf, constants[path]):
                raise InputError(f"adapters 0 and {i} differ in the constant {path!r}")


# --------------------------------------------------------------------------------------------
# LoRA factors of any method that has them
# --------------------------------------------------------------------------------------------
class _Factors(NamedTuple):
    """LoRA factors of all modules.

    Attributes:
      pairs: module -> (A [(L,) in, r], B [(L,) r, out]).
      scales: module -> factor of the product A B.
      layers: the layers that they are for; None means all.
      targets: that name the modules.
    """

    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    scales: dict[str, float]
    layers: tuple[int, ...] | None
    targets: list[str]


_FACTORS = ("lora_a", "lora_b", "lora_dropout")


def _is_lora(method: Method, stored: Params) -> bool:
    bound = tree.flatten(jax.eval_shape(method.bind, stored))
    return all(_is_factor(path, leaf) for path, leaf in bound.items())


def _is_factor(path: str, leaf: Any) -> bool:
    # VeRA's A depends on the backbone: it is no array before it is merged.
    return path.endswith(_FACTORS) and (isinstance(leaf, AtLayers) or not isinstance(leaf, Lazy))


def _factors(method: Method, stored: Params) -> _Factors:
    bound = tree.flatten(method.bind(stored))
    other = [path for path, leaf in bound.items() if not _is_factor(path, leaf)]
    if other:
        raise InputError(
            f"{method.spec['name']!r} has {other[0]!r}, which is no LoRA factor of its own: ranks "
            "belong to LoRA alone"
        )
    chosen = {leaf.layers if isinstance(leaf, AtLayers) else None for leaf in bound.values()}
    if len(chosen) > 1:
        raise InputError(f"the modules of {method.spec['name']!r} are trained in different layers")
    values = {
        path: np.asarray(leaf.values if isinstance(leaf, AtLayers) else leaf, np.float32)
        for path, leaf in bound.items()
    }
    modules = [p.removesuffix("/lora_a") for p in values if p.endswith("/lora_a")]
    pairs = {module: (values[f"{module}/lora_a"], values[f"{module}/lora_b"]) for module in modules}
    scales = dict.fromkeys(modules, 1.0)
    named: Sequence[str] = modules
    if method.spec["name"] == "lora":
        # What is bound has the scale in B. As trained, both factors are of one size.
        named = method.spec["targets"]
        ones = method.bind(jax.tree.map(np.ones_like, stored))
        flat = tree.flatten(stored)
        for module, (a, _) in pairs.items():
            if f"{module}/fixed/lora_b" in flat:
                continue  # PiSSA: the trained product minus a constant one
            leaf = tree.get(ones, f"{module}/lora_b")
            scaled = np.asarray(leaf.values if isinstance(leaf, AtLayers) else leaf)
            scales[module] = float(scaled.flat[0])
            pairs[module] = (a, np.asarray(flat[f"{module}/lora_b"], np.float32))
    return _Factors(pairs, scales, chosen.pop(), list(named))


def _check_places(each: Sequence[_Factors]) -> None:
    """InputError unless all have their factors at the same modules and layers."""
    for i, other in enumerate(each):
        only = [m for m in {**each[0].pairs, **other.pairs} if m not in other.pairs]
        only += [m for m in other.pairs if m not in each[0].pairs]
        if only:
            raise InputError(
                f"adapters 0 and {i} have different targets: only one of them is at {only[0]!r}; "
                "compose runs both at once"
            )
        if other.layers != each[0].layers:
            raise InputError(
                f"adapters 0 and {i} are for different layers: {each[0].layers} and {other.layers}"
            )


def _plain_lora(pairs: dict[str, tuple[np.ndarray, np.ndarray]], like: _Factors) -> Adapter:
    """A LoRA of scale 1 with these factors; smaller ranks are filled with zeros."""
    rank = max(a.shape[-1] for a, _ in pairs.values())
    stored = {}
    for module, (a, b) in pairs.items():
        full_a, full_b = _to_rank(a, b, rank)
        stored[f"{module}/lora_a"] = jnp.asarray(full_a)
        stored[f"{module}/lora_b"] = jnp.asarray(full_b)
    return lora(rank, targets=like.targets, layers=like.layers), tree.unflatten(stored)
