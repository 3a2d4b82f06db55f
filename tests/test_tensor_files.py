"""safetensors files, against the safetensors package, and every way to be broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from peft_jax import tensor_files
from peft_jax.errors import InputError
from peft_jax.tensor_files import open_tensors, open_with_metadata, write_tensors

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]


def arrays():
    rng = np.random.default_rng(0)
    made = {d: (4 * rng.standard_normal((3, 5))).astype(jnp.dtype(d)) for d in DTYPES}
    return made | {
        "scalar": np.float32(2),
        "empty": np.zeros((0, 4), np.float32),
        "transposed": rng.standard_normal((4, 3)).T,
        "of jax": jnp.arange(7.0),
    }


def test_the_safetensors_package_reads_what_is_written(tmp_path):
    made, seen = arrays(), []
    write_tensors(tmp_path / "a.safetensors", made, {"made by": "a test"}, seen.append)
    assert seen == list(made)
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == made.keys()
    for name, array in made.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"made by": "a test"}


def test_what_the_safetensors_package_writes_is_read(tmp_path):
    made = {name: np.ascontiguousarray(array) for name, array in arrays().items()}
    save_file(made, tmp_path / "a.safetensors", metadata={"made by": "a test"})
    found = open_tensors(tmp_path / "a.safetensors")
    assert found.keys() == made.keys()
    for name, array in made.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name].read(), array, err_msg=name)


def test_jax_takes_over_what_is_read_without_a_copy(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"x": np.ones((300, 70), np.float32)})
    read = open_tensors(tmp_path / "a.safetensors")["x"].read()
    taken = jax.device_put(read, jax.devices("cpu")[0])
    assert taken.unsafe_buffer_pointer() == read.ctypes.data
    # Giving such an array away is as safe as any other: the file's copy stays.
    jax.jit(lambda x: x + 1, donate_argnums=0)(taken)
    np.testing.assert_array_equal(read, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not fit"),
        (b"\x09" * 50, "does not fit"),
        (b"\x02" + b"\x00" * 7 + b"{}"[:1], "does not fit"),
        (b"\x04" + b"\x00" * 7 + b"nope", "not a readable"),
        (b"\x02" + b"\x00" * 7 + b"[]", "not a readable"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=f"a.safetensors.*{message}"):
        open_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"F32", b"F99", "dtype 'F99' is unknown"),
        (b"[2,3]", b"[2,4]", "24 bytes cannot hold float32"),
        (b'"shape"', b'"shade"', "'shape'"),
    ],
)
def test_a_wrong_header_is_named(tmp_path, old, new, message):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": np.ones((2, 3), np.float32)})
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(InputError, match=message):
        open_tensors(path)


def test_a_file_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": np.ones((2, 3), np.float32)})
    found = open_tensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="cut short"):
        open_tensors(path)
    with pytest.raises(InputError, match="ends in the middle"):
        found["x"].read()


def test_a_missing_file_and_a_foreign_dtype_are_named(tmp_path):
    with pytest.raises(InputError, match=r"b.safetensors is missing"):
        open_tensors(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="tensor x has dtype complex64"):
        write_tensors(tmp_path / "b.safetensors", {"x": np.ones(2, np.complex64)})
    assert not list(tmp_path.iterdir())


def test_mapped_tensors_are_those_that_are_read(tmp_path):
    write_tensors(tmp_path / "a.safetensors", arrays(), {"made by": "a test"})
    metadata, found = open_with_metadata(tmp_path / "a.safetensors")
    assert metadata == {"made by": "a test"}
    for name, stored in found.items():
        mapped = stored.map()
        assert mapped.dtype == stored.dtype
        np.testing.assert_array_equal(mapped, stored.read(), err_msg=name)
        assert not (mapped.size and mapped.flags.writeable)


# ------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("hole", "block"), [(2**18, 2**23), (0, 2**23), (16, 2**23), (2**18, 100), (2**18, 400)]
)
def test_parts_are_those_of_the_whole(tmp_path, monkeypatch, hole, block):
    monkeypatch.setattr(tensor_files, "_HOLE", hole)
    monkeypatch.setattr(tensor_files, "_BLOCK", block)
    rng = np.random.default_rng(0)
    made = {
        "a": rng.standard_normal((5, 7, 6)).astype(np.float32),
        "b": rng.standard_normal((11, 4)).astype(jnp.bfloat16),
        "c": np.arange(9),
    }
    write_tensors(tmp_path / "a.safetensors", made)
    for name, stored in open_tensors(tmp_path / "a.safetensors").items():
        for _ in range(60):
            ends = (sorted(map(int, rng.integers(0, n + 1, 2))) for n in stored.shape)
            box = tuple(slice(*e) if rng.random() < 0.7 else slice(None) for e in ends)
            np.testing.assert_array_equal(stored.read_part(box), made[name][box], str(box))


def test_of_a_part_little_else_is_read(tmp_path, monkeypatch):
    made = np.arange(64 * 32 * 1000, dtype=np.float32).reshape(64, 32, 1000)
    write_tensors(tmp_path / "a.safetensors", {"a": made})
    stored = open_tensors(tmp_path / "a.safetensors")["a"]
    asked, into = [], tensor_files._read_into

    def counted(file, place, buffer):
        asked.append(buffer.size)
        into(file, place, buffer)

    monkeypatch.setattr(tensor_files, "_read_into", counted)
    stored.read_part((slice(8, 16), slice(None), slice(None)))
    assert sum(asked) == made.nbytes // 8  # one run
    asked.clear()
    stored.read_part((slice(None), slice(0, 8), slice(None)))
    assert made.nbytes // 4 <= sum(asked) < made.nbytes  # its holes are short
    monkeypatch.setattr(tensor_files, "_HOLE", 2**10)
    asked.clear()
    stored.read_part((slice(None), slice(0, 8), slice(None)))
    assert sum(asked) == made.nbytes // 4


@pytest.mark.parametrize("box", [(slice(0, 2),), (slice(None, None, 2), slice(None))])
def test_what_is_no_box_is_refused(tmp_path, box):
    write_tensors(tmp_path / "a.safetensors", {"a": np.ones((4, 4))})
    with pytest.raises(ValueError, match="index"):
        open_tensors(tmp_path / "a.safetensors")["a"].read_part(box)


@pytest.mark.parametrize("shape", [(7,), (0, 3), (1, 300), (300, 1), (2, 140, 300), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copying_a_matrix_that_is_turned_round(shape, dtype):
    made = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    turned = np.ascontiguousarray(made.swapaxes(-1, -2)).swapaxes(-1, -2) if made.ndim > 1 else made
    for array in (made, turned, np.asfortranarray(made)):
        out = np.zeros(shape, jnp.dtype(dtype))
        tensor_files.copy_into(out, array)
        np.testing.assert_array_equal(out, made.astype(out.dtype))
