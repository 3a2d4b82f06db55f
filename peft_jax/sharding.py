"""The mesh, and where every array of a run lies on it.

A mesh has three axes: "data" and "fsdp" split the batch, "fsdp" and "model" split the weights. One
table says of every leaf, frozen, trained or of an optimiser, which of its dimensions are split: it
names what a dimension counts, and a second one the axis that this is split over. Nothing else in
the library knows an axis of the weights; no collective is written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from peft_jax import torus, tree
from peft_jax.architecture import Config
from peft_jax.constraints import BATCH
from peft_jax.errors import InputError

AXES = ("data", "fsdp", "model")

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # The end of a leaf's path, and what its last dimensions count; those in front (layers, the
    # tasks of a bank) are never split. The first row that matches holds.
    ("token_embedder/embedding", ("vocabulary", "width")),
    ("lm_head/kernel", ("width", "vocabulary")),
    ("lm_head/bias", ("vocabulary",)),
    ("query/kernel", ("width", "heads")),
    ("(key|value)/kernel", ("width", "kv_heads")),
    ("attention/out/kernel", ("heads", "width")),
    ("(wi|wi_0|wi_1)/kernel", ("width", "hidden")),
    ("wo/kernel", ("hidden", "width")),
    # Beside a kernel, a leaf lies as the side of the kernel that it meets. Adapters are small: they
    # are split where their kernel computes in parts, and not to save memory.
    ("query/(lora_b|bias|ia3|magnitude)", ("heads",)),
    ("(key|value)/(lora_b|bias|ia3|magnitude)", ("kv_heads",)),
    ("(wi|wi_0|wi_1)/(lora_b|bias|ia3|magnitude)", ("hidden",)),
    ("attention/out/lora_a", ("heads", None)),
    ("attention/out/input_scale", ("heads",)),
    ("wo/lora_a", ("hidden", None)),
    ("wo/input_scale", ("hidden",)),
    ("mlp/ia3", ("hidden",)),
    ("attention/prefix_(key|value)", ("kv_heads",)),
)

AXIS_OF = {
    "vocabulary": "model",
    "heads": "model",
    "kv_heads": "model",
    "hidden": "model",
    "width": "fsdp",
}
"""What a dimension counts -> the axis of the mesh that it is split over."""


# --------------------------------------------------------------------------------------------
# The mesh
# --------------------------------------------------------------------------------------------
def make_mesh(
    batch_size: int | None = None,
    devices: int | Sequence[jax.Device] | None = None,
    *,
    data: int | None = None,
    fsdp: int = 1,
    model: int = 1,
) -> Mesh:
    """A mesh ("data", "fsdp", "model") over the devices of all processes.

    Args:
      batch_size: rows of a batch, which "data" times "fsdp" must divide.
      devices: how many to use, or which; by default as many as fit the other arguments.
      data: ways that the batch is split beside ``fsdp``; by default what the others leave.
      fsdp: ways that the batch and the weights are split.
      model: ways that the weights, heads and hidden units are split.

    Raises:
      InputError: more devices than there are, or a number that does not divide the batch.
    """
    found = list(jax.devices()) if devices is None or isinstance(devices, int) else list(devices)
    wanted = devices if isinstance(devices, int) else None
    for name, ways in (("data", data), ("fsdp", fsdp), ("model", model)):
        if ways is not None and ways < 1:
            raise InputError(f"mesh.{name} is {ways}; it must be at least 1")
    if wanted is not None and not 1 <= wanted <= len(found):
        raise InputError(f"devices {wanted}: there are {len(found)} here")
    if data is None:
        data = _data_ways(batch_size, wanted, len(found), fsdp, model)
    size = data * fsdp * model
    if size > len(found) or (wanted is not None and size != wanted):
        have = f"devices {wanted}" if wanted is not None else f"{len(found)} devices here"
        raise InputError(f"a mesh of data {data} x fsdp {fsdp} x model {model} is not {have}")
    if batch_size is not None and batch_size % (data * fsdp):
        raise InputError(
            f"a batch of {batch_size} does not divide over {data * fsdp} devices "
            f"(data {data} x fsdp {fsdp})"
        )
    shape = (data, fsdp, model)
    used, auto = found[:size], (AxisType.Auto,) * 3
    if used[0].platform == "tpu" and size == len(found):
        return Mesh(_on_links(used, shape), AXES, axis_types=auto)
    return Mesh(np.asarray(used).reshape(shape), AXES, axis_types=auto)


def _on_links(devices: Sequence[Any], shape: tuple[int, int, int]) -> np.ndarray:
    """Chips as a mesh, on which neighbours are neighbours on the chips' links.

    Several slices are connected by the data centre's network, which "data" alone crosses.
    """
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    data, fsdp, model = shape
    if data % len(slices):
        raise InputError(
            f"mesh.data is {data} on {len(slices)} slices, which it does not divide over; fsdp "
            f"{fsdp} x model {model} must lie within one slice"
        )
    own = (data // len(slices), fsdp, model)
    parts = []
    for _, chips in sorted(slices.items()):
        arranged = torus.arrange(chips, own)
        if arranged is None:
            arranged = jax.make_mesh(own, AXES, (AxisType.Auto,) * 3, devices=chips).devices
        parts.append(arranged)
    return np.concatenate(parts)


def _data_ways(batch_size: int | None, wanted: int | None, here: int, fsdp: int, model: int) -> int:
    """The most ways that the devices and the batch allow."""
    most = (here if wanted is None else wanted) // (fsdp * model)
    if most < 1:
        have = here if wanted is None else wanted
        raise InputError(f"fsdp {fsdp} x model {model} needs more than the {have} devices here")
    if wanted is not None:
        return most
    fitting = [n for n in range(1, most + 1) if not (batch_size or n * fsdp) % (n * fsdp)]
    return fitting[-1] if fitting else 1


# --------------------------------------------------------------------------------------------
# Choosing the mesh
# --------------------------------------------------------------------------------------------
class Axes(NamedTuple):
    """The sizes of a mesh, as :func:`make_mesh` takes them."""

    data: int
    fsdp: int
    model: int


# Of a device's memory, what weights may take; the rest is for activations and the program's own.
_WEIGHTS_SHARE = 0.5


def device_bytes(device: jax.Device | None = None) -> int | None:
    """Bytes of memory that jax may use of a device (by default the first of this process).

    None where it doesn't say: on a CPU, where devices share the host's memory.
    """
    device = jax.local_devices()[0] if device is None else device
    stats = None if device.platform == "cpu" else device.memory_stats()
    return None if stats is None else stats.get("bytes_limit")


def choose_axes(
    weights_bytes: int,
    per_device_bytes: int | None,
    devices: int,
    config: Config,
    batch: int,
    *,
    row_tokens: int = 256,
    data: int | None = None,
    fsdp: int | None = None,
    model: int | None = None,
) -> Axes:
    """The mesh for the hardware: weights are split no further than makes them fit.

    Of the meshes that hold the weights in half of a device's memory it takes those that use the
    most devices, and of these the one whose devices exchange the fewest bytes in a train step:
    "fsdp" gathers the weights once forwards and once backwards (frozen weights have no gradient to
    scatter), "model" adds up each layer's activations twice forwards and twice backwards.
    ``peft-jax plan --search`` compiles the candidates instead.

    Args:
      weights_bytes: of what a mesh splits: the frozen tree; where weights are trained, also their
        float32 copy and the optimiser's.
      per_device_bytes: a device's memory (:func:`device_bytes`). None: it isn't known, and only
        the batch is split.
      devices: how many there are.
      config: whose heads and hidden units "model" must divide, and whose width "fsdp".
      batch: rows, which data x fsdp must divide.
      row_tokens: of a row, all of its choices counted.
      data, fsdp, model: sizes that are given; the others are chosen around them.

    Raises:
      InputError: no mesh has the given sizes on so many devices, or none of them divides the batch.
    """
    splits = per_device_bytes is not None
    found = []
    for f in _sizes(fsdp, devices if splits else 1):
        for m in _sizes(model, devices // f if splits else 1):
            if model is None and (config.num_heads % m or config.d_ff % m):
                continue
            if fsdp is None and config.d_model % f:
                continue
            ways = [data] if data is not None else range(1, devices // (f * m) + 1)
            fitting = [d for d in ways if d * f * m <= devices and not batch % (d * f)]
            found += [Axes(fitting[-1], f, m)] if fitting else []
    if not found:
        asked = {"data": data, "fsdp": fsdp, "model": model}
        given = ", ".join(f"mesh.{k} {v}" for k, v in asked.items() if v is not None)
        raise InputError(
            f"no mesh of {devices} devices has {given or 'a size'} and divides a batch of {batch}"
        )
    budget = (per_device_bytes or 0) * _WEIGHTS_SHARE if splits else math.inf

    def cost(axes: Axes):
        held = weights_bytes / (axes.fsdp * axes.model)
        moved = _bytes_moved(axes, weights_bytes, config, batch * row_tokens)
        return (max(held, budget), -math.prod(axes), moved, axes.model, axes.fsdp)

    return min(found, key=cost)


def _sizes(given: int | None, most: int) -> Sequence[int]:
    return range(1, most + 1) if given is None else [given]


def _bytes_moved(axes: Axes, weights_bytes: int, config: Config, tokens: int) -> float:
    """Bytes that a device sends in a train step, all collectives run as rings."""
    gathered = 2 * weights_bytes / axes.model * (1 - 1 / axes.fsdp)
    depth = config.encoder_layers + config.decoder_layers
    width = config.d_model * (2 if config.activation_dtype == "bfloat16" else 4)
    summed = 2 * width * tokens / (axes.data * axes.fsdp) * (1 - 1 / axes.model)
    return gathered + 4 * depth * summed


# --------------------------------------------------------------------------------------------
# Where leaves lie
# --------------------------------------------------------------------------------------------
def leaf_spec(path: str, shape: Sequence[int], config: Config, mesh: Mesh) -> PartitionSpec:
    """Where a leaf of a tree lies; see :data:`RULES`.

    A dimension that does not divide over its axis is not split (see :func:`undivided`).
    """
    return PartitionSpec(*(axis for axis, _ in _dimensions(path, shape, config, mesh)))


def _dimensions(path: str, shape: Sequence[int], config: Config, mesh: Mesh):
    """(axis or None, what was asked for in vain or None) of each dimension of a leaf."""
    counted = next((names for pattern, names in RULES if tree.ends_with(pattern, path)), ())
    if len(counted) > len(shape):
        counted = ()
    found: list[tuple[str | None, str | None]] = [(None, None)] * (len(shape) - len(counted))
    for size, name in zip(shape[len(shape) - len(counted) :], counted, strict=True):
        axis = None if name is None else AXIS_OF[name]
        ways = mesh.shape.get(axis, 1)
        if ways == 1 or size == 1:  # one scale for all rows of a quantised kernel
            found.append((None, None))
        elif size % ways or _units(name, size, config) % ways:
            found.append((None, name))
        else:
            found.append((axis, None))
    return found


def _units(name: str | None, size: int, config: Config) -> int:
    """The parts of a dimension that must not be cut: heads, where it counts them."""
    return {"heads": config.num_heads, "kv_heads": config.kv_heads}.get(name or "", size)


def leaf_path(path: Sequence[Any]) -> str:
    """The names of the dicts on the way to a leaf: of a bank's, a quantised or an optimiser's leaf
    the place of the leaf that it stands for."""
    return "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def shardings(params: Any, config: Config, mesh: Mesh) -> Any:
    """The sharding of every array (or ``jax.ShapeDtypeStruct``) of a frozen or trainable tree."""

    def one(path, leaf):
        return NamedSharding(mesh, leaf_spec(leaf_path(path), leaf.shape, config, mesh))

    return jax.tree_util.tree_map_with_path(one, params)


def state_shardings(state: Any, config: Config, mesh: Mesh) -> Any:
    """The sharding of every array of a ``train.TrainState``.

    What the optimiser keeps of a leaf in that leaf's shape lies as the leaf does; the rest (counts,
    the sums of a factored moment) is small and whole on every device.
    """
    trained = tree.flatten(state.trainable)

    def one(path, leaf):
        name = leaf_path(path)
        like = trained.get(name)
        if like is None or like.shape != leaf.shape:
            return replicated(mesh)
        return NamedSharding(mesh, leaf_spec(name, leaf.shape, config, mesh))

    return jax.tree_util.tree_map_with_path(one, state)


def undivided(params: Any, config: Config, mesh: Mesh) -> list[str]:
    """What the mesh was to split and cannot, in words: every device holds it whole."""
    told: dict[str, None] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        for _, name in _dimensions(leaf_path(path), leaf.shape, config, mesh):
            if name is not None:
                axis, units = AXIS_OF[name], _units(name, leaf.shape[-1], config)
                what = f"{units} {name}" if name.endswith("heads") else name
                told[f"{what} do not divide over {axis} {mesh.shape[axis]}: not split"] = None
    return list(told)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def splits_weights(mesh: Mesh) -> bool:
    """Whether the mesh has an axis over which weights are split."""
    return mesh.shape["fsdp"] * mesh.shape["model"] > 1


def batch_ways(mesh: Mesh) -> int:
    """Parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


# --------------------------------------------------------------------------------------------
# Putting arrays there
# --------------------------------------------------------------------------------------------
def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """[b] the rows of a global batch [B] that devices of this process hold, in order.

    Where "model" reaches over processes, several of them hold the same rows.

    Raises:
      InputError: the mesh does not divide the batch.
    """
    if batch_size % batch_ways(mesh):
        raise InputError(
            f"a batch of {batch_size} does not divide over {batch_ways(mesh)} devices "
            f"(data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})"
        )
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in held.values() if index is not None]
    return np.unique(np.concatenate(rows)) if rows else np.arange(0)


def put_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """A batch as global arrays, split over "data" and "fsdp".

    Args:
      batch: arrays [b, ...] of this process's rows, see :func:`local_rows`: all of them where it is
        the only process.
    """
    placed = batch_sharding(mesh)
    if placed.is_fully_addressable:
        return jax.device_put(dict(batch), placed)
    ways = batch_ways(mesh)
    rows = local_rows(mesh, ways)  # which parts of a batch are here

    def put(array: np.ndarray) -> jax.Array:
        size = len(array) // len(rows)
        shape = (ways * size, *array.shape[1:])

        def part(index: Any) -> np.ndarray:
            place = int(np.searchsorted(rows, (index[0].start or 0) // size)) * size
            return array[place : place + size]

        return jax.make_array_from_callback(shape, placed, part)

    return {name: put(np.asarray(array)) for name, array in batch.items()}


def fetch(mesh: Mesh, tree: Any) -> Any:
    """A tree of arrays on a mesh as NumPy arrays, whole in every process."""

    def one(x: jax.Array) -> np.ndarray:
        return np.asarray(x if x.is_fully_addressable else jax.device_put(x, replicated(mesh)))

    return jax.tree.map(one, tree)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """A tree copied to every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def place(mesh: Mesh, params: Any, config: Config) -> Any:
    """A tree of the backbone's or a method's leaves, split as :data:`RULES` says."""
    return jax.device_put(params, shardings(params, config, mesh))
