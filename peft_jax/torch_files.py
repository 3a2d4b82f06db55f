"""Files of ``torch.save``, read and written without torch, and without executing a pickle.

A torch file is a pickle, a program for a stack machine that may call any function it can import,
with the tensors' bytes beside it. Here the program is interpreted by a machine of our own that
knows dicts, lists, tuples, plain values, storages and tensors: it imports nothing and calls
nothing, and whatever else a file asks for is an error that names it.

Both of torch's formats are read: the zip archive (since 1.6) and the older sequence of pickles
followed by the storages. What is written is the zip archive, which torch also loads with
``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from peft_jax.errors import InputError
from peft_jax.files import replace_file
from peft_jax.paths import as_path, open_file
from peft_jax.tensor_files import Index, StoredTensor, read_box

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_STORAGES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# Beside these, how a damaged or foreign file makes the machine stumble.
_DAMAGE = (
    *(ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError),
    *(EOFError, struct.error, zipfile.BadZipFile, NotImplementedError, RecursionError),
)


# --------------------------------------------------------------------------------------------
# The machine
# --------------------------------------------------------------------------------------------
class _Global(NamedTuple):
    """A name that a pickle would import; here it is only compared."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Storage(NamedTuple):
    """A run of bytes in the file."""

    key: str
    dtype: np.dtype
    size: int


class _View(NamedTuple):
    """A tensor: a storage seen through a shape and strides, both in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()

_PLAIN = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
"""Operations that put their own argument on the stack."""

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


def _interpret(stream: BinaryIO) -> Any:
    """The value of the pickle that starts at the stream's position, which is left behind it."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for operation, argument, _ in pickletools.genops(stream):
        name = operation.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            (value,) = stack
            return value
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        else:
            _collect(name, argument, stack)
    raise EOFError("the pickle has no end")


def _collect(name: str, argument: Any, stack: list[Any]) -> None:
    """Operations that make one value of several."""
    if name == "TUPLE":
        stack.append(tuple(_to_mark(stack)))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        number = int(name[-1])
        stack[-number:] = [tuple(stack[-number:])]
    elif name == "DICT":
        stack.append(_pairs(_to_mark(stack)))
    elif name == "LIST":
        stack.append(_to_mark(stack))
    elif name in ("SETITEM", "SETITEMS"):
        items = _to_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        _expect(stack[-1], dict).update(_pairs(items))
    elif name in ("APPEND", "APPENDS"):
        items = _to_mark(stack) if name == "APPENDS" else [stack.pop()]
        _expect(stack[-1], list).extend(items)
    elif name == "GLOBAL":
        stack.append(_Global(*argument.split(" ")))
    elif name == "STACK_GLOBAL":
        stack[-2:] = [_Global(*stack[-2:])]
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        arguments = stack.pop()
        stack.append(_made(stack.pop(), arguments))
    elif name == "BUILD":
        # An OrderedDict's own attributes, such as the _metadata of a state_dict: no tensors.
        _expect(stack.pop(), dict)
        _expect(stack[-1], dict)
    elif name in ("NEWOBJ", "NEWOBJ_EX"):
        wanted = stack[-2 if name == "NEWOBJ" else -3]
        raise InputError(f"holds an object of {_word(wanted)}: only tensors and dicts are read")
    else:
        raise InputError(f"asks for the operation {name}, which no file of tensors needs")


def _to_mark(stack: list[Any]) -> list[Any]:
    start = max(i for i, value in enumerate(stack) if value is _MARK)
    taken = stack[start + 1 :]
    del stack[start:]
    return taken


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise InputError(f"puts something into a {_word(value)}, which is no {kind.__name__}")
    return value


def _word(value: Any) -> str:
    return str(value) if isinstance(value, _Global) else type(value).__name__


def _storage(reference: Any) -> _Storage:
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise InputError(f"refers to {reference!r}, which is no storage")
    kind, key, size = reference[1], reference[2], reference[4]
    if len(reference) > 5 and reference[5] is not None:
        raise InputError(f"storage {key} is a view of another, as torch has not written since 0.4")
    name = kind.name if isinstance(kind, _Global) and kind.module == "torch" else None
    if name not in _DTYPES:
        raise InputError(f"holds a storage of type {_word(kind)}; known: {', '.join(_DTYPES)}")
    return _Storage(str(key), np.dtype(_DTYPES[name]), int(size))


def _made(function: Any, arguments: Any) -> Any:
    """What a call would return, for the few that stand in files of tensors."""
    name = str(function) if isinstance(function, _Global) else ""
    if name == "collections.OrderedDict":
        return dict(*arguments)
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, _Storage):
            raise InputError(f"makes a tensor of a {_word(storage)}")
        return _checked(_View(storage, int(offset), _sizes(shape), _sizes(strides)))
    if name == "torch._utils._rebuild_parameter":
        if not isinstance(arguments[0], _View):
            raise InputError(f"makes a parameter of a {_word(arguments[0])}")
        return arguments[0]
    raise InputError(
        f"asks for {_word(function)}: only tensors, dicts of them and plain values are read"
    )


def _sizes(given: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in given)


def _checked(view: _View) -> _View:
    """Raises ValueError for a tensor that leaves its storage, or is larger than it."""
    count = int(np.prod(view.shape, dtype=object)) if view.shape else 1
    if len(view.shape) != len(view.strides) or min((*view.shape, *view.strides), default=0) < 0:
        raise ValueError(f"shape {view.shape} with strides {view.strides}")
    reach = sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    if count and not 0 <= view.offset <= view.storage.size - 1 - reach:
        raise ValueError(f"a tensor {view.shape} lies outside of storage {view.storage.key}")
    if count > view.storage.size:
        raise ValueError(f"a tensor {view.shape} is larger than storage {view.storage.key}")
    return view


# --------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------
def open_torch(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a file of ``torch.save({name: tensor, ...})``; the data is read when asked.

    Raises:
      InputError: there is no such file, it is damaged or no torch file, it holds something else
        than tensors by name, or asks for something that no file of tensors needs; by name.
    """
    path = as_path(path)
    if not path.is_file():
        raise InputError(f"no file at {path}")
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
            file.seek(0)
            opened = (_open_zip if is_zip else _open_legacy)(path, file)
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except _DAMAGE as error:
        raise InputError(f"{path} is not a readable torch file: {error}") from None
    held, read, place = opened
    if not isinstance(held, dict):
        raise InputError(f"{path} holds a {_kind(held)}; wanted a dict of tensors")
    for name, view in held.items():
        if not isinstance(name, str) or not isinstance(view, _View):
            raise InputError(f"{path} holds a {_kind(view)} at {name!r}; wanted a tensor")
    return {name: _stored(path, view, read, place) for name, view in held.items()}


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file of ``torch.save({name: tensor, ...})``; see :func:`open_torch`."""
    return {name: tensor.read() for name, tensor in open_torch(path).items()}


def _kind(value: Any) -> str:
    return "tensor" if isinstance(value, _View) else _word(value)


Reader = Callable[[_Storage], bytes]
"""Reads a storage, checked against what the file says of it."""

Place = Callable[[_Storage], int | None]
"""Where the bytes of a storage start in the file; None where they are packed."""


def _stored(path: Path, view: _View, read: Reader, place: Place) -> StoredTensor:
    dtype = view.storage.dtype
    strides = [stride * dtype.itemsize for stride in view.strides]

    def array() -> np.ndarray:
        with _damage_named(path):
            data = read(view.storage)
        flat = np.frombuffer(data, dtype)[view.offset :]
        if not flat.size:
            return np.zeros(view.shape, dtype)
        return np.lib.stride_tricks.as_strided(flat, view.shape, strides).copy()

    def part(box: Index) -> np.ndarray:
        with _damage_named(path):
            start = place(view.storage)
        if start is None:
            return array()[box]
        start += view.offset * dtype.itemsize
        with open_file(path) as file:
            # Torch keeps a matrix that was turned round as a view of what it was.
            order = sorted(range(len(view.shape)), key=lambda axis: -view.strides[axis])
            turned = tuple(view.shape[axis] for axis in order)
            if [view.strides[axis] for axis in order] != _row_major(turned):
                return array()[box]
            found = read_box(file, start, turned, dtype, tuple(box[axis] for axis in order))
        return found.transpose(np.argsort(order))

    return StoredTensor(view.shape, dtype, array, part=part)


def _row_major(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, *_DAMAGE) as error:
        raise InputError(f"{path} is not a readable torch file: {error}") from None


def _open_zip(path: Path, file: BinaryIO) -> tuple[Any, Reader, Place]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        programs = [name for name in names if name.endswith("data.pkl")]
        if len(programs) != 1:
            raise InputError("is a zip archive, but not of torch.save: it needs one data.pkl")
        root = programs[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise InputError("is a TorchScript program, not a file of tensors")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise InputError("was written on a machine with big-endian numbers")
        held = _interpret(io.BytesIO(archive.read(programs[0])))

        entries = {entry.filename: entry for entry in archive.infolist()}

    def entry_of(storage: _Storage) -> zipfile.ZipInfo:
        entry = entries[f"{root}data/{storage.key}"]
        wanted = storage.size * storage.dtype.itemsize
        # Compared before it is unpacked: a few bytes of a zip can become any number.
        if entry.file_size != wanted:
            raise ValueError(f"storage {storage.key} has {entry.file_size} bytes, not {wanted}")
        return entry

    def read(storage: _Storage) -> bytes:
        entry = entry_of(storage)
        with path.open("rb") as again, zipfile.ZipFile(again) as archive:
            return archive.read(entry)

    def place(storage: _Storage) -> int | None:
        entry = entry_of(storage)
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        with path.open("rb") as again:
            again.seek(entry.header_offset)
            header = again.read(30)
        # In front of the bytes the entry has its name again, and a filling of any length.
        signature, name, filling = struct.unpack("<4s22xHH", header)
        if signature != b"PK\x03\x04":
            raise ValueError(f"storage {storage.key} is not where the archive says")
        return entry.header_offset + 30 + name + filling

    return held, read, place


def _open_legacy(path: Path, file: BinaryIO) -> tuple[Any, Reader, Place]:
    try:
        if _interpret(file) != _LEGACY_MAGIC or _interpret(file) != _LEGACY_PROTOCOL:
            raise ValueError("its first number is not torch's")
    except (InputError, *_DAMAGE):
        raise InputError("is not a file of torch.save (or of one before version 0.4)") from None
    if _interpret(file).get("little_endian") is not True:
        raise InputError("was written on a machine with big-endian numbers")
    held = _interpret(file)
    keys, here = _interpret(file), file.tell()
    storages = {view.storage.key: view.storage for view in _views(held)}
    size = file.seek(0, io.SEEK_END) or file.tell()
    places: dict[str, int] = {}
    for key in keys:
        if str(key) not in storages:
            raise ValueError(f"storage {key} belongs to no tensor")
        storage = storages[str(key)]
        file.seek(here)
        (count,) = struct.unpack("<q", file.read(8))
        places[storage.key] = here + 8
        here += 8 + count * storage.dtype.itemsize
        if count != storage.size or here > size:
            raise ValueError(f"storage {key} has {count} elements, not {storage.size}")
    missing = sorted(set(storages) - set(places))
    if missing:
        raise ValueError(f"storage {missing[0]} is missing")

    def read(storage: _Storage) -> bytes:
        with path.open("rb") as again:
            again.seek(places[storage.key])
            return again.read(storage.size * storage.dtype.itemsize)

    return held, read, lambda storage: places[storage.key]


def _views(value: Any) -> list[_View]:
    if isinstance(value, _View):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    return [v for x in inner for v in _views(x)] if isinstance(value, dict | list | tuple) else []


# --------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------
# torch maps the file into memory and takes the bytes where they lie.
_ALIGNMENT = 64
_ROOT = "archive"


def write_torch(path: str | Path, tensors: Mapping[str, Any]) -> None:
    """Writes arrays (of jax or NumPy) as ``torch.save`` would a dict of tensors.

    Args:
      path: the file; replaced if it exists.
      tensors: written in their order, in the dtype that they have.

    Raises:
      InputError: an array has a dtype that torch's storages lack.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    arrays = {name: array.reshape(np.shape(tensors[name])) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype not in _STORAGES:
            raise InputError(f"{path}: tensor {name} has dtype {array.dtype}, which is none here")
    # One time for all entries, so that the same tensors are the same file.
    with replace_file(path) as new, zipfile.ZipFile(new, "w") as archive:
        _add(archive, "data.pkl", _program(arrays))
        _add(archive, "byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            _add(archive, f"data/{i}", array.tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(entry.filename)
    entry.extra = b"FB" + struct.pack("<H", filled := -(start + 4) % _ALIGNMENT) + b"Z" * filled
    archive.writestr(entry, data)


def _program(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a dict of tensors, each in a storage of its own."""
    code = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for i, (name, array) in enumerate(arrays.items()):
        strides = [s // array.dtype.itemsize for s in array.strides]
        code += [
            _text(name),
            _global("torch._utils", "_rebuild_tensor_v2"),
            pickle.MARK,
            *(pickle.MARK, _text("storage"), _global("torch", _STORAGES[array.dtype])),
            *(_text(str(i)), _text("cpu"), _whole(array.size), pickle.TUPLE, pickle.BINPERSID),
            *(_whole(0), _wholes(array.shape), _wholes(strides), pickle.NEWFALSE),
            *(_global("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE),
            *(pickle.TUPLE, pickle.REDUCE),
        ]
    return b"".join([*code, pickle.SETITEMS, pickle.STOP])


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _whole(number: int) -> bytes:
    data = int(number).to_bytes(8, "little", signed=True)
    return pickle.LONG1 + struct.pack("<B", len(data)) + data


def _wholes(numbers) -> bytes:
    return pickle.MARK + b"".join(_whole(n) for n in numbers) + pickle.TUPLE
