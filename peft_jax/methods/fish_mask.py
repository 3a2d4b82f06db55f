"""FISH masks: training a fixed few of the backbone's entries (Sung et al. 2021).

::

    method = fish_mask(share=0.002)
    information = fisher_information(backbone, objective, one_example_batches)
    method = with_information(method, information)  # now it knows which entries
    stored = method.init(key, backbone)

Sung et al. 2021, "Training Neural Networks with Fixed Sparse Masks", section 3: the entries are the
share with the largest Fisher information on the training examples, chosen once. T-Few's baselines
are 0.2% and 0.02% of all parameters (github.com/r-three/t-few, src/models/fishmask.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.composition import compose
from peft_jax.methods.lazy import Lazy
from peft_jax.tree import Params

Choice = Literal["fisher", "random"]
# What the indices count in.
_LARGEST = np.iinfo(np.int32).max


def fish_mask(
    share: float = 0.002,
    targets: str | Sequence[str] | None = None,
    choice: Choice = "fisher",
    counts: Mapping[str, int] | None = None,
) -> Method:
    """Trained copies of a fixed share of the backbone's entries, in their own places.

    The copies are float32, as full fine-tuning's are, and rounded to the backbone's dtype where
    they take their places: a bfloat16 backbone loses no small update, and an optimiser sees the
    weights themselves (Adafactor scales a step by their size). The function is unchanged at the
    start.

    The stored tree has, for each parameter with entries, ``values`` [n] float32 and
    ``fixed/indices`` [n] int32 into the flattened parameter, both below its path written with dots
    (``encoder.layers.mlp.wi_0.kernel``): the entries of all layers are one leaf.

    The count is int(share x number of parameters): of T0-3B 5,699,514 at 0.2% and 569,951 at 0.02%.
    It is split over the parameters by the information, so ``init`` raises until
    :func:`with_information` has given it; asked for shapes alone (``jax.eval_shape``) it splits
    evenly, or by ``counts``.

    Args:
      share: of the chosen parameters' entries, above 0 and at most 1.
      targets: regular expressions on the ends of parameter paths (``attention/.*/kernel``); None
        means all parameters, as in T-Few.
      choice: "fisher"; or "random", Sung et al.'s control: the same share of every parameter, drawn
        by ``init``'s key without looking at any example.
      counts: entries of each parameter, by path. :func:`with_information` fills it in, so that the
        file of an adapter says its own shapes; not to be given by hand.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise InputError(f"share {share!r} must be above 0 and at most 1")
    if choice not in get_args(Choice):
        raise InputError(f"choice {choice!r} is unknown; one of {', '.join(get_args(Choice))}")
    if choice == "random" and counts is not None:
        raise InputError('counts are of the choice "fisher"; a random choice knows its own')
    return _make(share, targets, choice, counts, None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entries(Lazy):
    """Entries of the backbone's own leaf, replaced.

    Attributes:
      indices: [n] int32 into the flattened leaf, none twice.
      values: [n] float32.
    """

    indices: jax.Array
    values: jax.Array

    def expand(self, own: jax.Array | None, module: Params, depth: int) -> jax.Array:
        if own is None:
            raise InputError("a fish_mask has entries of a parameter that this backbone lacks")
        flat = own.reshape(-1).at[self.indices].set(self.values.astype(own.dtype))
        return flat.reshape(own.shape)


def with_information(method: Method, information: Params) -> Method:
    """The method with the entries of a FISH mask chosen; other methods as they are.

    Args:
      method: ``fish_mask`` with the choice "fisher", or a composition with it. One that has been
        given information before chooses anew.
      information: of each parameter that the mask may choose from, as
        ``fisher.fisher_information`` returns it for the method's targets.

    Returns:
      The same method, whose ``init`` gives that mask and whose spec remembers its shapes.
    """
    spec = method.spec
    if spec["name"] == "compose":
        from peft_jax.methods import from_spec

        parts = (from_spec(part) for part in spec["methods"])
        return compose(*(with_information(part, information) for part in parts))
    if not wants_information(method):
        return method
    targets = spec["targets"]
    flat = tree.flatten(information)
    if targets is not None:
        flat = {path: flat[path] for path in tree.match(targets, flat, "parameter")}
    indices = most_informative(tree.unflatten(flat), _number(spec["share"], flat))
    counts = {path: len(i) for path, i in indices.items()}
    return _make(spec["share"], targets, "fisher", counts, indices)


def wants_information(method: Method) -> bool:
    """Whether the method, or a part of it, chooses its entries by the Fisher information."""
    return any(_chooses(part) for part in _parts(method))


def information_targets(method: Method) -> list[str] | None:
    """The parameters whose information a method wants; None means all of them."""
    wanted = [part["targets"] for part in _parts(method) if _chooses(part)]
    return None if None in wanted else [target for targets in wanted for target in targets]


def others(method: Method) -> Method | None:
    """What a method consists of beside its masks, such as a new classification head."""
    from peft_jax.methods import from_spec

    rest = [from_spec(part) for part in _parts(method) if not _chooses(part)]
    return compose(*rest) if rest else None


def _parts(method: Method) -> list[dict[str, Any]]:
    """The specs of a composition, or of a method by itself."""
    spec = method.spec
    return spec["methods"] if spec["name"] == "compose" else [spec]


def _chooses(spec: dict[str, Any]) -> bool:
    return spec["name"] == "fish_mask" and spec["choice"] == "fisher"


def _make(
    share: float,
    targets: str | Sequence[str] | None,
    choice: Choice,
    counts: Mapping[str, int] | None,
    indices: Mapping[str, np.ndarray] | None,
) -> Method:
    """The method; ``indices`` are what no spec can hold, and what ``init`` gives."""
    targets = (targets,) if isinstance(targets, str) else targets and tuple(targets)
    counts = counts and dict(counts)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        own = _places(backbone, targets)
        lengths = _split(share, own) if counts is None else _checked(counts, own)
        stored: dict[str, Any] = {}
        for k, (path, n) in zip(jax.random.split(key, len(lengths)), lengths.items(), strict=True):
            if choice == "random":
                chosen = jnp.sort(jax.random.choice(k, own[path].size, (n,), replace=False))
            elif indices is not None:
                chosen = jnp.asarray(indices[path])
            elif isinstance(key, jax.core.Tracer):
                chosen = jnp.zeros(n, jnp.int32)  # shapes are all that is asked for
            else:
                raise InputError(_UNKNOWN if counts is None else _ELSEWHERE)
            chosen = chosen.astype(jnp.int32)
            values = own[path].reshape(-1)[chosen].astype(jnp.float32)
            stored[_dotted(path)] = {"values": values, "fixed": {"indices": chosen}}
        return stored

    def bind(stored: Params) -> Params:
        return tree.unflatten(
            {
                name.replace(".", "/"): Entries(held["fixed"]["indices"], held["values"])
                for name, held in stored.items()
            }
        )

    spec = {
        "name": "fish_mask",
        "share": share,
        "targets": targets and list(targets),
        "choice": choice,
        "counts": counts,
    }
    return make_method(init, bind, spec, foldable=True)


_UNKNOWN = (
    "fish_mask chooses its entries by their Fisher information, which takes examples: "
    "with_information(method, fisher_information(backbone, objective, batches)); or choose at "
    'random with choice="random"'
)
_ELSEWHERE = (
    "this fish_mask was made from a spec, which remembers how many entries each parameter has and "
    "not which: they are in its adapter (load_adapter), or are chosen anew by with_information"
)


def _dotted(path: str) -> str:
    """One name for a parameter: below ``layers`` an optimiser would take entries for layers."""
    return path.replace("/", ".")


def _places(backbone: Backbone, targets: Sequence[str] | None) -> dict[str, Any]:
    flat = tree.flatten(backbone.params)
    paths = list(flat) if targets is None else tree.match(targets, flat, "parameter")
    for path in paths:
        if np.prod(flat[path].shape, dtype=np.int64) > _LARGEST:
            raise InputError(
                f"{path!r} of shape {flat[path].shape} has more entries than an int32 counts; "
                "leave it out of targets"
            )
    return {path: flat[path] for path in paths}


def _number(share: float, own: Mapping[str, Any]) -> int:
    """How many entries a share is, rounded down as in T-Few."""
    total = tree.count(dict(own))
    number = int(total * share)
    if not number:
        raise InputError(f"share {share} of {total} entries is none")
    return number


def _split(share: float, own: Mapping[str, Any]) -> dict[str, int]:
    """The same share of every parameter, rounded so that the sum is that of the whole."""
    sizes = np.array([np.prod(leaf.shape, dtype=np.int64) for leaf in own.values()])
    ends = _number(share, own) * np.cumsum(sizes) // sizes.sum()
    lengths = np.diff(ends, prepend=0)
    return {path: int(n) for path, n in zip(own, lengths, strict=True) if n}


def _checked(counts: Mapping[str, int], own: Mapping[str, Any]) -> Mapping[str, int]:
    for path, n in counts.items():
        if path not in own:
            raise InputError(
                f"the mask has entries of {path!r}, which is none of the chosen parameters of this "
                f"backbone; {tree.nearest(path, own)}"
            )
        if not 1 <= n <= np.prod(own[path].shape, dtype=np.int64):
            raise InputError(f"{n} entries do not fit {path!r} of shape {own[path].shape}")
    return counts


# --------------------------------------------------------------------------------------------
# The choice
# --------------------------------------------------------------------------------------------
def most_informative(information: Params, count: int) -> dict[str, np.ndarray]:
    """The ``count`` entries of the largest information, over all leaves together.

    T-Few's granularity: one threshold for all parameters, so a leaf may get many entries or none.
    The threshold is found by counting the values' bits, on the host, one leaf after the other:
    nothing is sorted or concatenated. Among equal values the first ones are taken.

    Args:
      information: leaves of at least 0, float32.
      count: entries to choose, at most all there are.

    Returns:
      For each leaf with entries, its path and their indices in the flattened leaf: [n] int32,
      rising. The n add up to ``count``.
    """
    flat = tree.flatten(information)
    total = tree.count(information)
    if not 1 <= count <= total:
        raise InputError(f"{count} entries cannot be chosen of {total}")
    threshold, at_threshold = _threshold(flat, count)
    chosen = {}
    for path, leaf in flat.items():
        bits = _bits(leaf)
        take = bits > threshold
        equal = np.flatnonzero(bits == threshold)[:at_threshold]
        at_threshold -= len(equal)
        take[equal] = True
        if take.any():
            chosen[path] = np.flatnonzero(take).astype(np.int32)
    return chosen


def _bits(leaf: jax.Array) -> np.ndarray:
    """[n] uint32, in the order of the values: so are the bits of floats that are not negative."""
    return np.asarray(leaf, np.float32).reshape(-1).view(np.uint32)


def _threshold(flat: dict[str, jax.Array], count: int) -> tuple[int, int]:
    """The bits of the smallest value that is chosen, and how many of those equal to it are."""
    high, wanted = _highest_bin(flat, count, lambda bits: bits >> 16)
    low, wanted = _highest_bin(
        flat, wanted, lambda bits: bits[(bits >> 16) == high] & np.uint32(0xFFFF)
    )
    return (high << 16) | low, wanted


def _highest_bin(flat, count: int, key) -> tuple[int, int]:
    """The bin of 65536 in which the count-th largest key lies, and its rank within that bin."""
    histogram = np.zeros(1 << 16, np.int64)
    for leaf in flat.values():
        histogram += np.bincount(key(_bits(leaf)), minlength=1 << 16)
    above = np.cumsum(histogram[::-1])  # entries in a bin or a higher one
    position = int(np.searchsorted(above, count))
    bin_ = (1 << 16) - 1 - position
    return bin_, count - int(above[position] - histogram[bin_])
