"""The files of a T5X checkpoint, read and written without T5X: which tensors there are, and where.

T5X's own format is a folder ``checkpoint_<step>``: a msgpack file ``checkpoint`` with the tree of
the train state, whose leaves are arrays or TensorStore specs of zarr arrays that lie beside it::

    {"version": 3, "optimizer": {"target": {...}, "state": {"step": ..., "param_states": ...}}}

Up to version 2 the bits of a bfloat16 array are in one of uint16; files without a version are those
of flax, with all arrays inline. Through orbax T5X writes ``state/`` in that folder instead: one
OCDBT database of zarr arrays, or (earlier) a folder for each and a msgpack file of
``PLACEHOLDER://`` strings. ``target``, the parameters, is looked at; of the optimizer nothing is
read. A checkpoint may lie in a bucket, ``gs://``.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.files import replace_folder
from peft_jax.paths import as_path, is_remote
from peft_jax.tensor_files import Index, StoredTensor

INDEX = "checkpoint"
STATE = "state"
_OCDBT = "manifest.ocdbt"
_PLACEHOLDER = "PLACEHOLDER://"
TARGET = "target"
_FIRST_WITH_BFLOAT16 = 3

# Bytes that one file of an array holds at most, as in T5X.
_CHUNK = 64 * 2**20


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
def is_t5x(path: Path) -> bool:
    """Whether a folder holds one of the formats, or a file is a checkpoint without arrays."""
    if path.is_file():
        return _has_target(path)
    return any(_holds_arrays(folder) for folder in (path, path / STATE))


def _holds_arrays(folder: Path) -> bool:
    if (folder / INDEX).is_file() or (folder / _OCDBT).is_file():
        return True
    return folder.is_dir() and any(folder.glob(f"{TARGET}.*"))


def _has_target(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    return head[:1] >= b"\x80" and any(word in head for word in (b"optimizer", b"target"))


def open_checkpoint(
    path: str | Path, root: str = TARGET, *, required: bool = True
) -> dict[str, StoredTensor]:
    """The parameters of a checkpoint by path (``encoder/layers_0/mlp/wo/kernel``), not yet read.

    Args:
      path: the folder ``checkpoint_<step>``, or a file that holds all arrays itself.
      root: the branch of the train state that is opened, such as "flax_mutables/fixed".
      required: whether that branch must be there.

    Raises:
      InputError: no checkpoint is there, or an array that it names is missing or not whole.
    """
    path = as_path(path)
    if path.is_file():
        return _from_index(path, path.parent, root, required)
    folder = path if _holds_arrays(path) else path / STATE
    if (folder / INDEX).is_file():
        return _from_index(folder / INDEX, folder, root, required)
    within = root.replace("/", ".") + "."
    names = _list_arrays(folder, within)
    if not names and required:
        steps = sorted(path.glob("checkpoint_*"))
        found = f"; it holds {steps[-1].name}, which is one" if steps else ""
        raise InputError(f"{path} is no T5X checkpoint: it has no file {INDEX!r}{found}")
    return _open_arrays(folder, {n.removeprefix(within).replace(".", "/"): n for n in names})


def _from_index(index: Path, folder: Path, root: str, required: bool) -> dict[str, StoredTensor]:
    """The leaves that a msgpack file holds or names."""
    arrays: dict[str, str] = {}
    found: dict[str, StoredTensor] = {}
    branch, version = _read_branch(index, root, required)
    for path, leaf in _leaves(branch).items():
        if isinstance(leaf, np.ndarray | np.generic):
            array = np.asarray(leaf)
            found[path] = StoredTensor(array.shape, array.dtype, functools.partial(_get, array))
        elif isinstance(leaf, dict):
            # The path that a spec names is relative to the folder where it was written.
            place = leaf["kvstore"].get("path") or leaf.get("path") or ""
            arrays[path] = Path(place).name
        elif isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
            arrays[path] = leaf.removeprefix(_PLACEHOLDER)
        elif leaf is not None:
            raise InputError(f"{index}: {path} is a {type(leaf).__name__}, which is no tensor")
    opened = _open_arrays(folder, arrays)
    if 0 < version < _FIRST_WITH_BFLOAT16:
        opened = {path: _as_bfloat16(tensor) for path, tensor in opened.items()}
    return found | opened


def _get(array: np.ndarray) -> np.ndarray:
    return array


def _as_bfloat16(tensor: StoredTensor) -> StoredTensor:
    """The tensor whose bits an array of uint16 holds; any other as it is."""
    if tensor.dtype != np.uint16:
        return tensor
    whole, part = tensor.read, tensor.part
    return tensor._replace(
        dtype=np.dtype(jnp.bfloat16),
        read=lambda: whole().view(jnp.bfloat16),
        part=part and (lambda box: part(box).view(jnp.bfloat16)),
    )


def _read_branch(index: Path, root: str, required: bool) -> tuple[dict[str, Any], int]:
    """A branch of the train state in a msgpack file, and the format's version (0: flax's own)."""
    from flax import serialization

    content = index.read_bytes()
    if content.startswith(b"model_checkpoint_path"):
        raise InputError(
            f"{index.parent} is a checkpoint of TensorFlow (Mesh TensorFlow's T5); T5X's "
            "convert_tf_checkpoint makes one of T5X of it"
        )
    try:
        state = serialization.msgpack_restore(content)
    except Exception as error:  # msgpack raises a dozen kinds for a damaged file
        raise InputError(f"{index} is not a readable T5X checkpoint: {error}") from None
    version = state.get("version", 0) if isinstance(state, dict) else 0
    for key in ("optimizer", "_optimizer", *root.split("/")):
        inside = key in ("optimizer", "_optimizer")
        state = state.get(key, state if inside else None) if isinstance(state, dict) else None
    if isinstance(state, dict) and state:
        return state, int(version)
    if required:
        raise InputError(f"{index} holds no parameters: its tree has no {root!r}")
    return {}, int(version)


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Path -> leaf; unlike in ``tree.flatten`` a TensorStore spec, itself a dict, is one."""
    if not isinstance(node, dict) or {"driver", "kvstore"} <= node.keys():
        return {prefix: node}
    return {
        path: leaf
        for key, value in node.items()
        for path, leaf in _leaves(value, f"{prefix}/{key}" if prefix else key).items()
    }


def _list_arrays(folder: Path, within: str) -> list[str]:
    """Names of the arrays below a branch, in a folder that no msgpack file describes."""
    if not (folder / _OCDBT).is_file():
        return [path.name for path in folder.glob(f"{within}*") if path.is_dir()]
    import tensorstore as ts

    try:
        store = ts.KvStore.open(_stores(folder)("")).result()
        names = store.list(ts.KvStore.KeyRange(within, f"{within[:-1]}/")).result()
    except ValueError as error:
        raise InputError(f"{folder} is not a readable OCDBT database: {error}") from None
    found = (re.fullmatch(r"(.*)/(?:\.zarray|zarr\.json)", name.decode()) for name in names)
    return [match[1] for match in found if match]


def _stores(folder: Path) -> Callable[[str], dict[str, Any]]:
    """Name of an array -> TensorStore's spec of the key-value store that it lies in."""
    place = _folder_store(folder)
    if (folder / _OCDBT).is_file():
        return lambda name: {"driver": "ocdbt", "base": place, "path": name}
    return lambda name: place | {"path": place["path"] + name}


def _folder_store(folder: Path) -> dict[str, Any]:
    """TensorStore's spec of a folder: a local one, or one in a bucket."""
    bucket = re.fullmatch(r"gs://([^/]+)/(.*?)/?", str(folder))
    if bucket:
        return {"driver": "gcs", "bucket": bucket[1], "path": f"{bucket[2]}/"}
    if is_remote(folder):
        raise InputError(f"{folder}: checkpoints of T5X are read from local folders and gs://")
    return {"driver": "file", "path": f"{folder.resolve()}/"}


def _open_arrays(folder: Path, arrays: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Path -> tensor for path -> name; all are opened at once, since that is waiting mostly."""
    if not arrays:
        return {}
    import tensorstore as ts

    store = _stores(folder)
    opening = {}
    for path, name in arrays.items():
        spec = {"driver": "auto", "kvstore": store(name + "/")}  # zarr 2 or 3
        opening[path] = ts.open(spec, open=True, read=True)
    opened = {path: _opened(folder, arrays[path], each) for path, each in opening.items()}
    # TensorStore reads a chunk that is missing as zeros; those of a fill value are not stored.
    chunks = {p: array.kvstore.list() for p, array in opened.items() if array.fill_value is None}
    for path, keys in chunks.items():
        _check_whole(folder, arrays[path], opened[path], keys.result())
    return {path: _tensor(folder, arrays[path], array) for path, array in opened.items()}


def _opened(folder: Path, name: str, opening: Any) -> Any:
    try:
        return opening.result()
    except ValueError as error:
        raise InputError(f"{folder}: array {name} is missing or damaged: {error}") from None


def _check_whole(folder: Path, name: str, array: Any, keys: list[bytes]) -> None:
    """Raises InputError unless every chunk is there."""
    chunk = array.chunk_layout.write_chunk.shape
    wanted = math.prod(-(-size // each) for size, each in zip(array.shape, chunk, strict=True))
    if sum(not key.startswith((b".z", b"zarr.")) for key in keys) < wanted:
        raise InputError(
            f"{folder}: array {name} lacks some of its chunks; the folder was not copied whole"
        )


def _tensor(folder: Path, name: str, array: Any) -> StoredTensor:
    def read_part(box: Index) -> np.ndarray:
        try:
            return array[box].read().result()
        except ValueError as error:
            raise InputError(f"{folder}: array {name} is damaged: {error}") from None

    shape, dtype = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
    everything = (slice(None),) * len(shape)
    return StoredTensor(shape, dtype, lambda: read_part(everything), part=read_part)


# --------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------
@contextlib.contextmanager
def new_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to write a checkpoint into, there whole or not at all.

    In a bucket, where nothing can be moved as one, files are written in their places: what says
    that they are a checkpoint must be written last.

    Raises:
      InputError: as ``files.replace_folder``.
    """
    path = as_path(folder)
    if not is_remote(path):
        with replace_folder(path, overwrite) as new:
            yield new
        return
    _folder_store(path)
    if path.exists() and any(path.iterdir()):
        if not overwrite:
            raise InputError(
                f"{path} exists and is not empty; give another place, or overwrite it (--overwrite)"
            )
        path.rmtree()  # type: ignore[attr-defined]  # of epath
    path.mkdir(parents=True, exist_ok=True)
    yield path


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Callable[[], np.ndarray]],
    step: int = 0,
    on_tensor: Callable[[str], None] = lambda path: None,
) -> None:
    """Writes T5X's own format, version 3, without an optimizer's state into an empty folder.

    Args:
      folder: an existing folder.
      tensors: path -> a function that makes the array; it is called when the array is written.
      step: of training.
      on_tensor: called with the path of every tensor that is written.
    """
    import tensorstore as ts
    from flax import serialization

    store = _stores(folder)
    specs = {}
    for path, make in tensors.items():
        array = make()
        name = f"{TARGET}.{path.replace('/', '.')}/"
        spec = {
            "driver": "zarr",
            "dtype": array.dtype.name,
            "kvstore": {"driver": "file", "path": name},
            # Weights hardly get smaller, and T5X reads what is not compressed as well.
            "metadata": {"shape": array.shape, "chunks": _chunks(array), "compressor": None},
        }
        specs[path] = ts.Spec(spec).to_json()
        place = specs[path] | {"kvstore": store(name)}
        ts.open(place, create=True, open=False).result().write(array).result()
        on_tensor(path)
    state = {"step": np.asarray(step, np.int32)}
    index = {"version": 3, "optimizer": {TARGET: tree.unflatten(specs), "state": state}}
    (folder / INDEX).write_bytes(serialization.msgpack_serialize(index))


def write_orbax(
    folder: Path,
    tensors: Mapping[str, Callable[[], np.ndarray]],
    step: int = 0,
    on_tensor: Callable[[str], None] = lambda path: None,
) -> None:
    """Writes what T5X writes through orbax; otherwise as :func:`write_checkpoint`.

    Orbax takes all arrays at once: the host holds a copy of the model while they are written.
    """
    import orbax.checkpoint as ocp

    arrays = {}
    for path, make in tensors.items():
        arrays[path] = make()
        on_tensor(path)
    state = {TARGET: tree.unflatten(arrays), "state": {"step": np.asarray(step, np.int32)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as writer:
        place = folder if is_remote(folder) else folder.resolve()
        writer.save(place / STATE, args=ocp.args.PyTreeSave(state))


def _chunks(array: np.ndarray) -> list[int]:
    """Shape of a chunk: whole rows, as many as fit."""
    if not array.ndim:
        return []
    files = max(1, -(-array.nbytes // _CHUNK))
    return [max(1, -(-len(array) // files)), *array.shape[1:]]
