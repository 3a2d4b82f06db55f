"""torch.save's files, without torch: read as torch would, and nothing in them is executed."""

import os
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import tensor_files
from peft_jax.errors import InputError
from peft_jax.torch_files import open_torch, read_torch, write_torch
from tests.oracle import GOLDEN

FOLDER = GOLDEN / "torch_files"


def as_zip(path, program, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        for name, data in entries.items():
            archive.writestr(f"x/{name.replace('__', '/')}", data)
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_reads_what_torch_wrote(kind):
    expected = np.load(FOLDER / "expected.npz")
    found = read_torch(FOLDER / f"{kind}.pt")
    assert list(found) == expected.files
    for name, array in found.items():
        wanted = jnp.bfloat16 if name == "bfloat16" else expected[name].dtype
        assert array.dtype == wanted, name
        assert array.shape == expected[name].shape, name
        np.testing.assert_array_equal(array.astype(expected[name].dtype), expected[name], name)


def test_shapes_are_known_before_anything_is_read():
    held = open_torch(FOLDER / "zip.pt")
    assert held["window"].shape == (2, 4)
    assert held["bfloat16"].dtype == jnp.bfloat16


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    arrays = {
        "a.weight": np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32),
        "b": jnp.arange(4, dtype=jnp.bfloat16),
        "scalar": np.float64(3.5),
        "empty": np.zeros((0, 2), np.float16),
        "strided": np.arange(12).reshape(3, 4).T,
        "übung": np.array([True, False]),
    }
    write_torch(tmp_path / "a.pt", arrays)
    again = read_torch(tmp_path / "a.pt")
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        assert again[name].shape == np.shape(array)
        assert again[name].tobytes() == np.ascontiguousarray(array).tobytes()
    write_torch(tmp_path / "b.pt", again)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.oracle
@pytest.mark.parametrize("options", [{}, {"mmap": True}])
def test_torch_loads_what_is_written(tmp_path, options):
    torch = pytest.importorskip("torch")
    write_torch(tmp_path / "a.pt", read_torch(FOLDER / "zip.pt"))
    loaded = torch.load(tmp_path / "a.pt", weights_only=True, **options)
    expected = torch.load(FOLDER / "zip.pt", weights_only=True)
    assert list(loaded) == list(expected)
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.detach()), name


def test_a_dtype_that_torch_lacks_is_refused(tmp_path):
    with pytest.raises(InputError, match="tensor a has dtype complex64"):
        write_torch(tmp_path / "a.pt", {"a": np.zeros(2, np.complex64)})
    assert not (tmp_path / "a.pt").exists()


class Execute:
    """What an evil file is made of: unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_is_executed(tmp_path, protocol):
    program = pickle.dumps({"a": Execute(tmp_path / "made")}, protocol)
    path = as_zip(tmp_path / "evil.pt", program)
    with pytest.raises(InputError, match=r"asks for (posix|nt)\.mkdir"):
        read_torch(path)
    assert not (tmp_path / "made").exists()
    pickle.loads(program)  # the file is as evil as it says
    assert (tmp_path / "made").exists()


STORAGE = (
    b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)


def tensor(offset=0, shape=(4,), strides=(1,), storage=STORAGE):
    sizes = b"".join(b"(" + b"".join(b"J" + struct.pack("<i", n) for n in each) + b"t"
                     for each in (shape, strides))  # fmt: skip
    place = b"J" + struct.pack("<i", offset)
    rest = place + sizes + b"\x89}tR"
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((" + storage + rest + b"s."
    )


def test_the_hand_made_tensor_is_one(tmp_path):
    data = np.arange(4, dtype=np.float32)
    path = as_zip(tmp_path / "a.pt", tensor(shape=(2, 2), strides=(1, 2)), data__0=data.tobytes())
    np.testing.assert_array_equal(read_torch(path)["a"], [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (tensor(offset=1), "lies outside of storage 0"),
        (tensor(offset=-1), "lies outside of storage 0"),
        (tensor(shape=(2, 4), strides=(0, 1)), "larger than storage 0"),
        (tensor(shape=(100000, 100000), strides=(0, 0)), "larger than storage 0"),
        (tensor(shape=(2,), strides=(-1,)), "strides"),
        (tensor(storage=STORAGE.replace(b"FloatStorage", b"QInt8Storage")), "torch.QInt8Storage"),
        (tensor(storage=STORAGE.replace(b"storage", b"nothing")), "is no storage"),
        (tensor().replace(b"_rebuild_tensor_v2", b"_rebuild_sparse"), "_utils._rebuild_sparse"),
        (pickle.dumps({"a": 3}), "holds a int at 'a'; wanted a tensor"),
        (pickle.dumps([1]), "holds a list; wanted a dict of tensors"),
        (pickle.dumps({"a": {1, 2}}, 4), "EMPTY_SET"),
        (pickle.dumps({"a": complex(1, 2)}), "asks for builtins.complex"),
        (tensor()[:-1], "not a readable torch file"),
        (tensor()[:40], "not a readable torch file"),
        (b"", "not a readable torch file"),
        (b"\x80\x02u.", "not a readable torch file"),
        (b"\x80\x02h\x07.", "not a readable torch file"),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(tmp_path, program, message):
    path = as_zip(tmp_path / "a.pt", program, data__0=b"\0" * 16)
    with pytest.raises(InputError, match=message):
        read_torch(path)


@pytest.mark.parametrize("entries", [{}, {"data__0": b"\0" * 12}, {"data__0": b"\0" * 20}])
def test_a_storage_that_is_missing_or_cut_short_is_refused(tmp_path, entries):
    with pytest.raises(InputError, match="not a readable torch file"):
        read_torch(as_zip(tmp_path / "a.pt", tensor(), **entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [({"constants.pkl": b""}, "TorchScript"), ({"byteorder": b"big"}, "big-endian")],
)
def test_other_archives_are_refused(tmp_path, entries, message):
    with pytest.raises(InputError, match=message):
        read_torch(as_zip(tmp_path / "a.pt", tensor(), data__0=b"\0" * 16, **entries))


def test_files_that_are_none_of_torchs(tmp_path):
    with pytest.raises(InputError, match="no file at"):
        read_torch(tmp_path / "none.pt")
    for content in (b"", b"hello", pickle.dumps({"a": 1})):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"is not a file of torch\.save"):
            read_torch(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(InputError, match=r"needs one data\.pkl"):
        read_torch(tmp_path / "b.pt")


def test_every_cut_of_the_old_format_is_noticed(tmp_path):
    whole = (FOLDER / "legacy.pt").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_torch(tmp_path / "cut.pt")
    assert read_torch(FOLDER / "legacy.pt")


BOXES = [
    (slice(1, 3), slice(None), slice(0, 4)),
    (slice(None), slice(2, 3), slice(None)),
    (slice(0, 4), slice(0, 3), slice(1, 2)),
    (slice(2, 2), slice(None), slice(None)),
]


@pytest.mark.parametrize("box", BOXES)
def test_parts_are_those_of_the_whole(tmp_path, box):
    """Of tensors that lie row by row, of views that are turned round, and of packed ones."""
    whole = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    view = tensor(shape=(4, 3, 5), strides=(1, 4, 12)).replace(b"cpuK\x04", b"cpuK\x3c")
    flat = np.ascontiguousarray(whole.transpose(2, 1, 0)).tobytes()
    turned = as_zip(tmp_path / "turned.pt", view, data__0=flat)
    write_torch(tmp_path / "rows.pt", {"a": whole})
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", view)
        archive.writestr("x/data/0", flat)
    for path in (turned, tmp_path / "rows.pt", tmp_path / "packed.pt"):
        np.testing.assert_array_equal(open_torch(path)["a"].read_part(box), whole[box], str(path))


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_parts_of_what_torch_wrote(kind):
    for name, held in open_torch(FOLDER / f"{kind}.pt").items():
        box = tuple(slice(n // 3, n - n // 4) for n in held.shape)
        np.testing.assert_array_equal(held.read_part(box), held.read()[box], name)


def test_a_part_reads_no_other_bytes(tmp_path, monkeypatch):
    write_torch(tmp_path / "a.pt", {"a": np.ones((1000, 64), np.float32)})
    held = open_torch(tmp_path / "a.pt")["a"]
    asked = []
    into = tensor_files._read_into
    monkeypatch.setattr(
        tensor_files, "_read_into", lambda f, at, to: (asked.append(to.size), into(f, at, to))
    )
    assert held.read_part((slice(100, 200), slice(None))).sum() == 6400
    assert sum(asked) == 100 * 64 * 4
