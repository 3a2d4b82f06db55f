"""A stored backbone, brought leaf by leaf to where its arrays lie.

Every format describes what it holds as leaves of our tree that are not yet read: their shapes, and
how a part of each is read. Here they become arrays. Of a leaf that a mesh splits only the parts of
this process's devices are read, each once, in pieces, so that neither a model nor a large leaf of
it is ever whole on a host that holds but a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from peft_jax import quantization, tree
from peft_jax.backbones import redistribution
from peft_jax.backbones.base import Backbone, Fingerprint
from peft_jax.sharding import leaf_spec, place
from peft_jax.tensor_files import (
    Index,
    StoredTensor,
    aligned_empty,
    bounded,
    box_shape,
    copy_into,
    is_whole,
)
from peft_jax.transformer import Config

# Bytes that are read before they are copied to their places.
_PIECE = 32 * 2**20


class StoredBackbone(NamedTuple):
    """A backbone in files, checked and not yet read.

    Attributes:
      leaves: path in our tree -> the leaf, in our shape.
      config: what they mean.
      name: of the backbone.
      vocabulary: the folder or file of its tokenizer, or None.
    """

    leaves: Mapping[str, StoredTensor]
    config: Config
    name: str
    vocabulary: Path | None


def read(
    stored: StoredBackbone,
    dtype: Any = None,
    mesh: Mesh | None = None,
    on_leaf: Callable[[str], None] = lambda path: None,
    quantize: str | None = None,
) -> Backbone:
    """The arrays of a stored backbone.

    Args:
      stored: from a format's ``open_backbone``.
      dtype: of the parameters; None keeps each as it is stored.
      mesh: where they lie: split over its axes as ``sharding.leaf_spec`` says, and of every leaf
        only the parts of this process's devices are read. None: on the default device.
      on_leaf: called with the path of every leaf that is read.
      quantize: "int8" or "nf4": a kernel is quantised as soon as it is read, and let go before the
        next one is; the backbone's fingerprint is that of the weights as they were.

    Raises:
      InputError: a file is damaged behind its header; ``quantize`` is no kind of quantisation.
    """
    if quantize is not None:
        quantization.check_kind(quantize)
    fingerprint = Fingerprint()
    flat: dict[str, Any] = {}
    previous: Any = None
    for path, leaf in stored.leaves.items():
        array = _read_leaf(path, leaf, dtype, stored.config, mesh)
        if quantize is not None:
            fingerprint.add(path, array)
            array = _quantized(path, array, quantize, stored.config, mesh)
        flat[path] = array
        del array
        # A copy to an accelerator goes on by itself, and holds the host's memory until it is done.
        jax.block_until_ready(previous)
        previous = flat[path]
        on_leaf(path)
    return Backbone(
        tree.unflatten(flat),
        stored.config,
        stored.name,
        stored.vocabulary,
        fingerprint=None if quantize is None else fingerprint.digest(),
    )


def _quantized(path: str, array: jax.Array, kind: str, config: Config, mesh: Mesh | None) -> Any:
    if not quantization.quantizable(path):
        return array
    made = {path: quantization.quantize(array, kind)}
    return made[path] if mesh is None else place(mesh, made, config)[path]


def _read_leaf(
    path: str, leaf: StoredTensor, dtype: Any, config: Config, mesh: Mesh | None
) -> jax.Array:
    dtype = np.dtype(leaf.dtype if dtype is None else dtype)
    if mesh is None:
        return jax.device_put(read_whole(leaf, dtype))
    return read_parts(leaf, dtype, NamedSharding(mesh, leaf_spec(path, leaf.shape, config, mesh)))


def read_whole(leaf: StoredTensor, dtype: Any) -> np.ndarray:
    """A leaf in a dtype."""
    return leaf.read() if leaf.dtype == dtype else read_in_pieces(leaf, dtype)


def read_in_pieces(leaf: StoredTensor, dtype: Any) -> np.ndarray:
    """A leaf in a dtype, by its parts: beside the whole only a piece of it is in memory."""
    out = aligned_empty(leaf.shape, dtype)
    _fill(leaf, [(bounded((slice(None),) * out.ndim, leaf.shape), out)])
    return out


def read_parts(leaf: StoredTensor, dtype: Any, lies: NamedSharding) -> jax.Array:
    """A leaf as a global array, of which this process reads its share.

    That is what its devices hold, or where that would be most of the file for every process, some
    rows of it (see :mod:`redistribution`); all processes of the mesh call this together.
    """
    specs = redistribution.reading_specs(leaf, lies)
    sharding = NamedSharding(lies.mesh, specs[0])
    devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        assert index is not None  # it is for shardings of JAX's own kind alone
        bounds = tuple((one.start, one.stop) for one in bounded(index, leaf.shape))
        devices.setdefault(bounds, []).append(device)
    parts = read_boxes(leaf, dtype, [tuple(slice(*ends) for ends in bounds) for bounds in devices])
    arrays = [
        jax.device_put(part, device)
        for part, holders in zip(parts, devices.values(), strict=True)
        for device in holders
    ]
    read = jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays, dtype=dtype)
    return read if len(specs) == 1 else redistribution.move(read, specs)


def read_boxes(leaf: StoredTensor, dtype: Any, boxes: Sequence[Index]) -> list[np.ndarray]:
    """Boxes of a leaf (with numbers for their bounds) that do not overlap, cast to a dtype."""
    if any(is_whole(box, leaf.shape) for box in boxes):
        return [read_whole(leaf, dtype) for _ in boxes]
    parts = [aligned_empty(box_shape(box), dtype) for box in boxes]
    _fill(leaf, list(zip(boxes, parts, strict=True)))
    return parts


# --------------------------------------------------------------------------------------------
# Boxes of a leaf into their arrays
# --------------------------------------------------------------------------------------------
Part = tuple[Index, np.ndarray]
"""A box of a leaf, and the array that it is read into."""


def _fill(leaf: StoredTensor, parts: list[Part]) -> None:
    """Reads boxes of a leaf, which do not overlap, into their arrays, cast to their dtype."""
    axis = leaf.order[0] if leaf.order else 0
    read = leaf.part or leaf.read_part  # ``read`` of the whole may itself come from here
    for first, last in _pieces(leaf, axis, parts):
        here = [cut for part in parts if (cut := _cut(part, axis, first, last))]
        around = _around([box for box, _ in here])
        if sum(array.size for _, array in here) == math.prod(box_shape(around)):
            # Side by side they are one run of the file, or one read of every row.
            piece = read(around)
            for box, array in here:
                copy_into(array, piece[_within(box, around)])
        else:
            for box, array in here:
                copy_into(array, read(box))


def _pieces(leaf: StoredTensor, axis: int, parts: list[Part]) -> Iterator[tuple[int, int]]:
    """Bounds along an axis, so that what lies between them is no more than a piece."""
    if leaf.part is None or not leaf.shape:  # it is read as a whole, for each piece again
        yield 0, max(leaf.shape, default=1)
        return
    around = _around([box for box, _ in parts])
    size = box_shape(around)
    row = math.prod(size[:axis] + size[axis + 1 :]) * leaf.dtype.itemsize
    step = max(1, _PIECE // max(row, 1))
    for first in range(around[axis].start, around[axis].stop, step):
        yield first, min(first + step, around[axis].stop)


def _cut(part: Part, axis: int, first: int, last: int) -> Part | None:
    """The part of a box between two bounds on an axis; None where it has none."""
    box, array = part
    if not box:
        return part
    start, stop = max(box[axis].start, first), min(box[axis].stop, last)
    if start >= stop:
        return None
    inner = [slice(None)] * len(box)
    inner[axis] = slice(start - box[axis].start, stop - box[axis].start)
    return (*box[:axis], slice(start, stop), *box[axis + 1 :]), array[tuple(inner)]


def _around(boxes: list[Index]) -> Index:
    """The smallest box that holds all of them."""
    return tuple(
        slice(min(one.start for one in axis), max(one.stop for one in axis))
        for axis in zip(*boxes, strict=True)
    )


def _within(box: Index, around: Index) -> Index:
    """A box as seen from a larger one's corner."""
    return tuple(
        slice(one.start - whole.start, one.stop - whole.start)
        for one, whole in zip(box, around, strict=True)
    )
