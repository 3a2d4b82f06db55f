"""Backbones that lie in a bucket, read through epath and fsspec from a folder that plays one."""

import functools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import convert, paths, sharding, tree
from peft_jax.backbones import TINY, hugging_face, native
from peft_jax.errors import InputError
from peft_jax.tensor_files import open_tensors
from peft_jax.torch_files import write_torch
from tests import oracle


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that is gs://bucket, for fsspec; nothing else can be reached."""
    from etils import epath
    from etils.epath import backend, gpath
    from fsspec.implementations.local import LocalFileSystem

    folder = tmp_path / "bucket"
    folder.mkdir()

    class Bucket(LocalFileSystem):
        protocol = ("gcs", "gs")

        def __init__(self, **options):
            options.pop("finalize_on_close", None)
            super().__init__(**options)

        @classmethod
        def _strip_protocol(cls, path):
            return LocalFileSystem._strip_protocol(str(path).replace("gs://bucket", str(folder)))

        def glob(self, path, **options):
            return [found.replace(str(folder), "bucket") for found in super().glob(path, **options)]

    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(
        backend._FileSystemSpecBackend,
        "_get_filesystem",
        functools.lru_cache(lambda self, name: Bucket()),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert epath.Path("gs://bucket").is_dir()
    return folder


@pytest.mark.parametrize("source", ["gs://bucket/a/b", "gs:/bucket/a/b", Path("gs://bucket/a/b")])
def test_a_path_in_a_bucket_survives_pathlib(source):
    path = paths.as_path(source)
    assert str(path) == "gs://bucket/a/b"
    assert paths.is_remote(path)
    assert str(path.parent / "c") == "gs://bucket/a/c"
    assert paths.as_path(path) == path


@pytest.mark.parametrize("source", ["tiny", "/a/b", Path("a:b/c"), "C:/a"])
def test_other_paths_are_local(source):
    assert paths.as_path(source) == Path(source)


def test_an_address_of_another_kind_is_named():
    with pytest.raises(InputError, match=r"https:.*gs://, s3://, az://"):
        pj.load_backbone("https://example.org/model")


def test_a_missing_package_is_named(monkeypatch):
    from etils.epath import gpath

    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    with pytest.raises(InputError, match="gs://bucket/model cannot be read here: install gcsfs"):
        pj.load_backbone("gs://bucket/model")


def in_bucket(folder, kind):
    """The embedded backbone in a format."""
    backbone = pj.load_backbone("tiny")
    if kind == "native":
        native.write_backbone(folder, backbone)
    else:
        shutil.copytree(TINY, folder)
    if kind == "torch":
        tensors = {n: t.read() for n, t in open_tensors(folder / hugging_face.WEIGHTS).items()}
        write_torch(folder / "pytorch_model.bin", tensors)
        (folder / hugging_face.WEIGHTS).unlink()
    return backbone


@pytest.mark.parametrize("kind", ["hugging_face", "native", "torch"])
def test_a_backbone_is_read_from_a_bucket(bucket, tmp_path, kind):
    wanted = in_bucket(bucket / "models" / "tiny", kind)
    mesh = sharding.make_mesh(data=2, fsdp=2, model=2)
    found = pj.load_backbone("gs://bucket/models/tiny", mesh=mesh)
    assert found.config == wanted.config
    assert found.name == "tiny"
    for path, leaf in tree.flatten(found.params).items():
        np.testing.assert_array_equal(leaf, tree.get(wanted.params, path), err_msg=path)
    # The tokenizer is read by others, from a local copy.
    assert tmp_path / "cache" in found.vocabulary.parents
    assert found.vocabulary.read_bytes() == wanted.vocabulary.read_bytes()
    outline = pj.backbones.backbone_outline("gs://bucket/models/tiny")
    assert outline.vocabulary == found.vocabulary


def test_a_backbone_is_converted_from_a_bucket(bucket, tmp_path):
    in_bucket(bucket / "tiny", "hugging_face")
    read, written = convert.convert("gs://bucket/tiny", tmp_path / "ours")
    assert (read.files, read.size) == (
        sum(file.is_file() for file in TINY.iterdir()),
        sum(file.stat().st_size for file in TINY.iterdir()),
    )
    assert (written.format, written.parameters) == ("native", read.parameters)
    assert native.read_backbone(tmp_path / "ours").vocabulary is not None


def test_several_files_in_a_bucket(bucket):
    wanted = pj.load_backbone(oracle.GOLDEN / "t5" / "v1_1")
    hugging_face.write_backbone(bucket / "model", wanted, 2000)
    assert len(list((bucket / "model").glob("*.safetensors"))) > 1
    found = pj.load_backbone("gs://bucket/model")
    assert found.vocabulary is None
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_is_missing_in_a_bucket_is_named(bucket):
    with pytest.raises(InputError, match="no checkpoint folder at gs://bucket/none"):
        pj.load_backbone("gs://bucket/none")
    (bucket / "empty").mkdir()
    with pytest.raises(InputError, match="gs://bucket/empty is no checkpoint of a backbone"):
        pj.load_backbone("gs://bucket/empty")
    in_bucket(bucket / "cut", "hugging_face")
    weights = bucket / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"gs://bucket/cut/model.safetensors.*cut short"):
        pj.load_backbone("gs://bucket/cut")


def test_nothing_of_a_bucket_is_mapped(bucket):
    in_bucket(bucket / "tiny", "hugging_face")
    tensors = open_tensors("gs://bucket/tiny/model.safetensors")
    assert all(tensor.map is None for tensor in tensors.values())


def test_files_that_only_give_bytes_are_read(tmp_path):
    """As TensorFlow's of a bucket: no readinto, no name."""
    from peft_jax import tensor_files

    class OnlyRead:
        def __init__(self, file):
            self.seek, self.read = file.seek, file.read

    array = np.arange(4000, dtype=np.int16).reshape(40, 100)
    (tmp_path / "a").write_bytes(b"head" + array.tobytes())
    with (tmp_path / "a").open("rb") as file:
        for box in ((slice(3, 30), slice(0, 100)), (slice(0, 40), slice(7, 50))):
            found = tensor_files.read_box(OnlyRead(file), 4, array.shape, array.dtype, box)
            np.testing.assert_array_equal(found, array[box])
        with pytest.raises(InputError, match="ends in the middle"):
            tensor_files.read_box(OnlyRead(file), 9, (4000,), array.dtype, (slice(0, 4000),))
