"""The files of T5X's checkpoints: versions, forms, parts of arrays, and buckets."""

import dataclasses
import json
import os
import shutil
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones import t5x, t5x_files
from peft_jax.errors import InputError
from tests.golden import make_t5x
from tests.test_t5x import LAYOUTS, WRITERS, WRITTEN, assert_same, tensors_of, with_gin
from tests.test_transformer import random_backbone

BACKBONE = random_backbone(WRITTEN["v1_1"])

# ---------------------------------------------------------------------------------------- versions


@pytest.mark.parametrize("version", [1, 2, 3, None])
def test_bfloat16_of_every_version(tmp_path, version):
    """Up to version 2 its bits are in zarr arrays of uint16; without a version all is inline."""
    tensors = {n: a.astype(jnp.bfloat16) for n, a in tensors_of("v1_1").items()}
    old = version in (1, 2)
    stored = {n: a.view(np.uint16) if old else a for n, a in tensors.items()}
    partitioned = {} if version is None else None
    folder = make_t5x.write_native(tmp_path / "checkpoint_0", stored, 0, partitioned)
    index = msgpack.unpackb((folder / "checkpoint").read_bytes(), strict_map_key=False)
    if version is None:  # flax.training.checkpoints of a whole optimizer
        index = index["optimizer"]
    else:
        index["version"] = version
    (folder / "checkpoint").write_bytes(msgpack.packb(index))
    found = t5x_files.open_checkpoint(folder)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(found[name].read(), array, err_msg=name)
        part = (slice(1, 3),) + (slice(None),) * (array.ndim - 1)
        np.testing.assert_array_equal(found[name].read_part(part), array[1:3], err_msg=name)


# ------------------------------------------------------------------------------------------- parts

OCDBT = [(layout, "ocdbt") for layout in LAYOUTS]


@pytest.mark.parametrize(
    ("layout", "writer"), [("t5", "inline"), ("scanned scalable_t5", "zarr"), *OCDBT]
)
def test_a_part_of_a_leaf_is_read_alone(tmp_path, writer, layout):
    tensors = LAYOUTS[layout](tensors_of("v1_1"), 3)
    folder = with_gin(WRITERS[writer](tmp_path / "checkpoint_0", tensors), "v1_1")
    stored = t5x.open_backbone(folder)
    numbers = np.random.default_rng(0)
    for path, leaf in stored.leaves.items():
        whole = leaf.read()
        for _ in range(3):
            firsts = [int(numbers.integers(size)) for size in leaf.shape]
            ends = zip(firsts, leaf.shape, strict=True)
            box = tuple(slice(first, int(numbers.integers(first, n)) + 1) for first, n in ends)
            np.testing.assert_array_equal(leaf.read_part(box), whole[box], err_msg=path)


def test_only_the_chunks_of_a_part_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(t5x_files, "_CHUNK", 400)
    folder = t5x.write_backbone(tmp_path / "checkpoint_0", BACKBONE)
    chunks = sorted((folder / "target.token_embedder.embedding").glob("[0-9]*"))
    assert len(chunks) > 10
    stored = t5x_files.open_checkpoint(folder)["token_embedder/embedding"]
    for chunk in chunks[1:]:
        chunk.write_bytes(b"not an array")
    rows = np.asarray(BACKBONE.params["token_embedder"]["embedding"])
    np.testing.assert_array_equal(stored.read_part((slice(0, 2), slice(3, 9))), rows[:2, 3:9])
    with pytest.raises(InputError, match="embedding is damaged"):
        stored.read()


# ------------------------------------------------------------------------------------------- orbax


@pytest.mark.parametrize(("scanned", "dtype"), [(False, jnp.bfloat16), (True, jnp.float32)])
def test_the_form_of_orbax_is_written_and_read_back(tmp_path, scanned, dtype):
    import orbax.checkpoint as ocp

    backbone = random_backbone(WRITTEN["v1_1"], dtype=dtype)
    written: list[str] = []
    folder = t5x.write_backbone(
        tmp_path / "checkpoint_9",
        backbone,
        scanned=scanned,
        orbax=True,
        step=9,
        on_leaf=written.append,
    )
    again = t5x.read_backbone(folder)
    assert again.config == backbone.config
    assert_same(again, backbone)
    assert sorted(written) == sorted(tree.flatten(backbone.params))
    # As T5X's users read it: with orbax alone.
    state = ocp.StandardCheckpointer().restore((folder / "state").resolve())
    assert int(state["state"]["step"]) == 9
    assert not (folder / "checkpoint").exists()


# ----------------------------------------------------------------------------------------- buckets


class Bucket(BaseHTTPRequestHandler):
    """As much of Google Cloud Storage's JSON interface as TensorStore uses, over a folder."""

    root: Path

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def of_object(self, name):
        file = self.root / name
        size, changed = file.stat().st_size, file.stat().st_mtime_ns
        return {"name": name, "generation": str(changed), "size": str(size)}

    def do_GET(self):
        address = urllib.parse.urlparse(self.path)
        given = urllib.parse.parse_qs(address.query)
        _, _, name = address.path.partition("/o/")
        if not name:
            first, last = (given.get(key, [""])[0] for key in ("startOffset", "endOffset"))
            files = (file for file in self.root.rglob("*") if file.is_file())
            names = sorted(str(file.relative_to(self.root)) for file in files)
            inside = (name for name in names if name >= first and (not last or name < last))
            items = [self.of_object(name) for name in inside]
            self.reply(200, json.dumps({"items": items}).encode())
            return
        name = urllib.parse.unquote(name)
        if not (self.root / name).is_file():
            self.reply(404)
            return
        if given.get("alt") != ["media"]:
            self.reply(200, json.dumps(self.of_object(name)).encode())
            return
        generation = self.of_object(name)["generation"]
        content = (self.root / name).read_bytes()
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            first, last = int(first), int(last or len(content) - 1)
            part = content[first : last + 1]
            span = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            self.reply(206, part, x_goog_generation=generation, Content_Range=span)
        else:
            self.reply(200, content, x_goog_generation=generation)

    def do_POST(self):
        given = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        name = given["name"][0]
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply(200, json.dumps(self.of_object(name)).encode())


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket "models" that TensorStore and epath see, and the folder that it is."""
    from etils.epath import gpath, testing

    # Where TensorFlow is installed epath takes its client for buckets, whose requests go elsewhere.
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    root = tmp_path / "bucket"
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Bucket,), {"root": root}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")

    def here(path):
        return os.fspath(path).replace("gs://models", str(root))

    def there(path):
        return os.fspath(path).replace(str(root), "gs://models")

    def mapped(name):
        return lambda original, path, *given, **named: original(here(path), *given, **named)

    names = ("exists", "isdir", "listdir", "makedirs", "mkdir", "open", "remove", "rmtree")
    functions = {name: mapped(name) for name in names}
    functions["glob"] = lambda original, path: [there(each) for each in original(here(path))]
    with testing.mock_epath(**functions):
        yield root
    server.shutdown()
    server.server_close()


@pytest.mark.slow  # TensorStore looks for credentials for some seconds
def test_a_checkpoint_in_a_bucket(bucket, tmp_path, monkeypatch):
    place = "gs://models/t5/checkpoint_5"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "spiece.model").write_bytes(b"a vocabulary")
    told = dataclasses.replace(BACKBONE, vocabulary=tmp_path / "spiece.model")
    written = t5x.write_backbone(place, told)
    assert str(written) == place
    assert (bucket / "t5" / "checkpoint_5" / "checkpoint").is_file()
    again = t5x.read_backbone(place)
    assert again.config == BACKBONE.config
    assert again.vocabulary.read_bytes() == b"a vocabulary"
    assert_same(again, BACKBONE)
    assert_same(pj.load_backbone(place), BACKBONE)
    # The folder is the same as a local one, so that it may be copied either way.
    assert_same(t5x.read_backbone(bucket / "t5" / "checkpoint_5"), BACKBONE)
    with pytest.raises(InputError, match="exists and is not empty"):
        t5x.write_backbone(place, BACKBONE)
    other = random_backbone(WRITTEN["v1_1"], seed=1)
    t5x.write_backbone(place, other, overwrite=True)
    assert_same(t5x.read_backbone(place), other)


@pytest.mark.slow
def test_a_database_in_a_bucket(bucket, tmp_path):
    folder = t5x.write_backbone(tmp_path / "checkpoint_5", BACKBONE, orbax=True)
    shutil.copytree(folder, bucket / "checkpoint_5")
    stored = t5x.open_backbone("gs://models/checkpoint_5")
    leaf = stored.leaves["decoder/layers/mlp/wo/kernel"]
    kernel = np.asarray(BACKBONE.params["decoder"]["layers"]["mlp"]["wo"]["kernel"])
    part = (slice(1, 2), slice(3, 20), slice(0, 5))
    np.testing.assert_array_equal(leaf.read_part(part), kernel[part])
    assert_same(t5x.read_backbone("gs://models/checkpoint_5"), BACKBONE)


def test_another_kind_of_place_is_refused(tmp_path):
    with pytest.raises(InputError, match="are read from local folders and gs://"):
        t5x.write_backbone("s3://models/checkpoint_5", BACKBONE)
