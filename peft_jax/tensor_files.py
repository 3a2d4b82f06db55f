"""safetensors files, written and read one tensor at a time.

The safetensors package's own functions for NumPy take and give copies of everything; here a tensor
goes from its array to the file, and from the file into memory that JAX takes over as it is, so
that neither way needs more than one copy of a model.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from peft_jax.errors import InputError
from peft_jax.files import replace_file
from peft_jax.paths import as_path, is_remote, open_file

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}

# XLA's alignment of buffers on a CPU: such an array becomes a jax.Array without a copy.
_ALIGNMENT = 64


Index = tuple[slice, ...]
"""A box in an array: a slice of step 1 for each axis."""


class StoredTensor(NamedTuple):
    """A tensor in a file, not yet read.

    Attributes:
      shape: of the array.
      dtype: of the array.
      read: reads it; ``jax.device_put`` of what it returns makes no copy on a CPU.
      map: gives it without reading it: a read-only array whose pages come from the file when they
        are looked at, and which are no memory of this process. The file must stay as it is. None
        where the file's format does not allow it.
      part: reads a box of it, for :meth:`read_part`, which has made its bounds numbers within the
        shape. None: the format knows only the whole.
      axes: in the order in which they lie in the file, the one along which neighbours are farthest
        apart first; (): as they come. Along the first it is best read in pieces.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    map: Callable[[], np.ndarray] | None = None
    part: Callable[[Index], np.ndarray] | None = None
    axes: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """``axes``, all of them."""
        return self.axes or tuple(range(len(self.shape)))

    def read_part(self, index: Index) -> np.ndarray:
        """A box of the tensor, without the rest of it in memory where the format allows that.

        Args:
          index: a slice of step 1 for each axis, as ``jax.make_array_from_callback`` gives them.
        """
        box = bounded(index, self.shape)
        if is_whole(box, self.shape):
            return self.read()
        return self.read()[box] if self.part is None else self.part(box)


def bounded(index: Index, shape: tuple[int, ...]) -> Index:
    """A box with numbers for its bounds; ValueError where it is none of an array of this shape."""
    if len(index) != len(shape):
        raise ValueError(f"index {index} has {len(index)} axes; the tensor has shape {shape}")
    bounds = [one.indices(size) for one, size in zip(index, shape, strict=True)]
    if any(step != 1 for _, _, step in bounds):
        raise ValueError(f"index {index} has a step; only 1 is read")
    return tuple(slice(start, max(start, stop)) for start, stop, _ in bounds)


def is_whole(box: Index, shape: tuple[int, ...]) -> bool:
    """Whether a box (with numbers for its bounds) is all of an array of this shape."""
    return all((one.start, one.stop) == (0, n) for one, n in zip(box, shape, strict=True))


def box_shape(box: Index) -> tuple[int, ...]:
    """The shape of a box (with numbers for its bounds)."""
    return tuple(one.stop - one.start for one in box)


# --------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------
def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes arrays (of jax or NumPy) into one file, which is there whole or not at all.

    Args:
      path: the file; replaced if it exists.
      tensors: written in their order, in the dtype that they have.
      metadata: strings for the file's header.
      on_tensor: called with the name of every tensor that is written.

    Raises:
      InputError: an array has a dtype that the format lacks.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in tensors.items():
        dtype = np.dtype(array.dtype)
        if dtype not in _NAMES:
            raise InputError(f"{path}: tensor {name} has dtype {dtype}, which no safetensors has")
        start, end = end, end + array.size * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replace_file(path) as new, new.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in tensors.items():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            on_tensor(name)


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
def open_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; the data is read when it is asked for.

    Raises:
      InputError: there is no such file, or it is damaged or cut short.
    """
    return _open(as_path(path))[1]


def open_with_metadata(path: str | Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """The strings of a file's header, and what :func:`open_tensors` gives; raises as it does."""
    return _open(as_path(path))


def _open(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    try:
        with open_file(path) as file:
            size = file.seek(0, io.SEEK_END) or file.tell()
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("its header does not fit into it")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        return metadata, {n: _entry(path, e, 8 + length, size) for n, e in header.items()}
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from None


def _entry(path: Path, entry: dict[str, Any], data: int, size: int) -> StoredTensor:
    shape = tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r} is unknown")
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    if end - start != dtype.itemsize * int(np.prod(shape, dtype=np.int64)) or start < 0:
        raise ValueError(f"{end - start} bytes cannot hold {dtype} {shape}")
    if data + end > size:
        raise ValueError(f"it is cut short: {size} bytes of at least {data + end}")

    def part(box: Index) -> np.ndarray:
        with open_file(path) as file:
            return read_box(file, data + start, shape, dtype, box)

    def read() -> np.ndarray:
        return part(tuple(slice(0, size) for size in shape))

    def map_it() -> np.ndarray:
        if start == end:  # nothing can be mapped
            return np.empty(shape, dtype)
        # As a plain array: looking up rows of a memmap is several times slower.
        return np.memmap(path, dtype, "r", data + start, shape).view(np.ndarray)

    return StoredTensor(shape, dtype, read, None if is_remote(path) else map_it, part)


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Like ``numpy.empty``; ``jax.device_put`` takes such an array over without a copy on a CPU."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -buffer.ctypes.data % _ALIGNMENT
    return buffer[offset : offset + size].view(dtype).reshape(shape)


# Rows and columns of a matrix that is turned round that fit into a core's cache together.
_TILE = 128


def copy_into(out: np.ndarray, array: np.ndarray) -> None:
    """``out[...] = array`` in out's dtype; several times faster for matrices turned round.

    NumPy goes through one of the two in steps of a row, and reads each cache line for a number.
    """
    if array.ndim < 2 or array.strides[-1] <= array.strides[-2] or min(array.shape[-2:]) < 2:
        out[...] = array
        return
    # Cast first, in the order in which the numbers lie.
    array = array.astype(out.dtype, order="K", copy=False)
    rows, columns = array.shape[-2:]
    for outer in np.ndindex(array.shape[:-2]):
        source, to = array[outer], out[outer]
        for i in range(0, rows, _TILE):
            for j in range(0, columns, _TILE):
                to[i : i + _TILE, j : j + _TILE] = source[i : i + _TILE, j : j + _TILE]


# --------------------------------------------------------------------------------------------
# Boxes of an array in a file
# --------------------------------------------------------------------------------------------
# Bytes between two runs that are read rather than skipped: a seek costs about as much.
_HOLE = 2**18
# Bytes that are read at once where runs are picked from between such holes.
_BLOCK = 2**23


def read_box(
    file: BinaryIO, start: int, shape: tuple[int, ...], dtype: Any, box: Index
) -> np.ndarray:
    """A box of an array that lies in a file row by row; aligned as :func:`aligned_empty` is.

    Only the box is held in memory, and of the file no more is read than it, and short holes in it.

    Args:
      file: opened to read bytes; where it stands is changed.
      start: place of the array's first byte.
      shape, dtype: of the array.
      box: with numbers for its bounds.

    Raises:
      InputError: the file ends before the box does.
    """
    out = aligned_empty(box_shape(box), dtype)
    strides = [out.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    corner = start + sum(one.start * stride for one, stride in zip(box, strides, strict=True))
    cut = [axis for axis in range(len(shape)) if out.shape[axis] != shape[axis]]
    last = cut[-1] if cut else 0
    if out.size == 0:
        return out
    if last == 0:  # one run
        _read_into(file, corner, _bytes_of(out))
        return out
    stride = strides[last - 1]
    for outer in np.ndindex(out.shape[: last - 1]):
        place = corner + sum(i * s for i, s in zip(outer, strides, strict=False))
        runs = _bytes_of(out[outer]).reshape(out.shape[last - 1], -1)
        _read_runs(file, place, stride, runs)
    return out


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _read_runs(file: BinaryIO, place: int, stride: int, runs: np.ndarray) -> None:
    """Reads runs of bytes [N, bytes], each ``stride`` bytes behind the one before."""
    count, length = runs.shape
    several = _BLOCK // stride
    if stride - length >= _HOLE or several < 2:
        for i, run in enumerate(runs):
            _read_into(file, place + i * stride, run)
        return
    block = np.empty(several * stride, np.uint8)
    for first in range(0, count, several):
        here = min(several, count - first)
        # The hole behind the last run may be the end of the file.
        _read_into(file, place + first * stride, block[: (here - 1) * stride + length])
        runs[first : first + here] = block.reshape(several, stride)[:here, :length]


def _read_into(file: BinaryIO, place: int, buffer: np.ndarray) -> None:
    file.seek(place)
    # One call reads at most 2 GiB on Linux.
    done = 0
    while done < len(buffer):
        count = _read_some(file, buffer[done:])
        if not count:
            name = getattr(file, "name", None) or getattr(file, "path", "the file")
            raise InputError(f"{name} ends in the middle of a tensor")
        done += count


def _read_some(file: BinaryIO, buffer: np.ndarray) -> int:
    if hasattr(file, "readinto"):
        return file.readinto(buffer)
    # TensorFlow's files of a bucket only give bytes; a piece of them at a time.
    found = file.read(min(len(buffer), _BLOCK))
    buffer[: len(found)] = np.frombuffer(found, np.uint8)
    return len(found)
