"""A backbone read straight into the parts of a mesh: the same arrays, and nothing else is read."""

import dataclasses
import functools
import json
import math
import os
import socket
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import quantization, sharding, tree
from peft_jax.backbones import formats, hugging_face, loading, native, redistribution, t5x
from peft_jax.backbones.base import identity
from peft_jax.errors import InputError
from peft_jax.tensor_files import StoredTensor, bounded
from tests.families import BART, GPT2, LLAMA
from tests.test_transformer import CONFIG, V1_0, random_backbone


def even(config):
    """Sizes that divide over two and over four devices."""
    changes = {"norm_epsilon": 1e-5} if config.family == "bart" else {}
    return dataclasses.replace(config, vocab_size=56, num_heads=4, **changes)


def as_torch(folder, backbone):
    from safetensors.numpy import load_file

    from peft_jax.torch_files import write_torch

    hugging_face.write_backbone(folder, backbone)
    write_torch(folder / "pytorch_model.bin", load_file(folder / hugging_face.WEIGHTS))
    (folder / hugging_face.WEIGHTS).unlink()
    return folder


def as_scanned(folder, backbone):
    return t5x.write_backbone(folder, backbone, scanned=True)


WRITERS = {
    "native": native.write_backbone,
    "hugging_face": hugging_face.write_backbone,
    "torch": as_torch,
    "t5x": t5x.write_backbone,
    "scanned": as_scanned,
}
# A fused kernel (GPT-2), a vector that is kept as a row (BART), fewer heads of keys (Llama).
CASES = [
    *((writer, CONFIG) for writer in WRITERS),
    *(("hugging_face", config) for config in (V1_0, GPT2, BART, LLAMA)),
]
over_cases = pytest.mark.parametrize(
    ("writer", "config"), CASES, ids=[f"{w}-{c.family}-{c.tied_head}" for w, c in CASES]
)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=2, model=2)


@functools.cache
def backbone_of(config):
    return random_backbone(even(config))


def written(folder, writer, config):
    backbone = backbone_of(config)
    WRITERS[writer](folder, backbone)
    return backbone


@over_cases
@pytest.mark.parametrize("piece", [pytest.param(2**25, marks=pytest.mark.slow), 300])
def test_the_parts_are_those_of_the_whole(tmp_path, monkeypatch, mesh, writer, config, piece):
    monkeypatch.setattr(loading, "_PIECE", piece)
    backbone = written(tmp_path / "model", writer, config)
    dtype = jnp.float32 if piece > 300 else jnp.bfloat16
    loaded = pj.load_backbone(tmp_path / "model", dtype, mesh=mesh)
    lies = tree.flatten(sharding.shardings(backbone.params, backbone.config, mesh))
    found, wanted = tree.flatten(loaded.params), tree.flatten(jax.device_get(backbone.params))
    assert found.keys() == wanted.keys()
    for path, leaf in found.items():
        assert (leaf.sharding, leaf.dtype) == (lies[path], dtype), path
        np.testing.assert_array_equal(leaf, wanted[path].astype(dtype), err_msg=path)
    assert not sharding.undivided(loaded.params, loaded.config, mesh)


@over_cases
def test_every_box_of_a_leaf_is_that_of_the_array(tmp_path, writer, config):
    """Boxes that no mesh would ask for: their corners lie anywhere, within heads too."""
    backbone = written(tmp_path / "model", writer, config)
    stored, _ = formats.open_backbone(tmp_path / "model")
    rng = np.random.default_rng(0)
    for path, array in tree.flatten(jax.device_get(backbone.params)).items():
        leaf = stored.leaves[path]
        assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype), path
        np.testing.assert_array_equal(leaf.read(), array, err_msg=path)
        for _ in range(4):
            ends = (sorted(map(int, rng.integers(0, n + 1, 2))) for n in array.shape)
            box = tuple(slice(a, max(b, a + 1)) if a < n else slice(n - 1, n)
                        for (a, b), n in zip(ends, array.shape, strict=True))  # fmt: skip
            np.testing.assert_array_equal(leaf.read_part(box), array[box], err_msg=f"{path} {box}")


@pytest.mark.parametrize("kind", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def test_weights_are_quantised_as_they_are_read(tmp_path, monkeypatch, mesh, kind):
    pytest.importorskip("qwix")
    backbone = written(tmp_path / "model", "hugging_face", CONFIG)
    wanted = tree.flatten(backbone.quantize(kind).params)
    quantize, given = quantization.quantize, []

    def watched(kernel, kind):
        # A model is never whole in the precision that it is stored in.
        assert not any(ref() is not None for ref in given)
        given.append(weakref.ref(kernel))
        return quantize(kernel, kind)

    monkeypatch.setattr(quantization, "quantize", watched)
    for where in (None, mesh):
        given.clear()
        loaded = pj.load_backbone(tmp_path / "model", mesh=where, quantize=kind)
        assert len(given) == sum(map(quantization.quantizable, wanted))
        assert identity(loaded)["fingerprint"] == identity(backbone)["fingerprint"]
        found = tree.flatten(loaded.params)
        assert found.keys() == wanted.keys()
        for path, leaf in found.items():
            jax.tree.map(np.testing.assert_array_equal, leaf, wanted[path])
            if where is not None:
                lies = sharding.shardings({path: leaf}, loaded.config, mesh)[path]
                assert jax.tree.map(lambda x: x.sharding, leaf) == lies, path


def test_a_kind_of_quantisation_that_is_none_is_refused():
    with pytest.raises(InputError, match="quantize 'int3' is unknown"):
        pj.load_backbone("tiny", quantize="int3")
    assert quantization.kind_of(pj.load_backbone("tiny", quantize="none").params) == "none"


# ------------------------------------------------------------------------------ what is read


class Counted:
    """A tensor of numbers in their order, and what is asked of it."""

    def __init__(self, shape, axes=()):
        self.array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        self.asked = 0
        self.largest = 0
        self.stored = StoredTensor(
            shape, self.array.dtype, lambda: self.part(()), part=self.part, axes=axes
        )

    def part(self, box):
        found = self.array[box]
        self.asked += found.size
        self.largest = max(self.largest, found.nbytes)
        return found


# What two neighbours of eight devices hold, and the share of the leaf that this is.
SHARES = {
    "fsdp": ({"fsdp": 8}, 1 / 4),
    "model": ({"model": 8}, 1 / 4),
    "both, beside each other": ({"fsdp": 4, "model": 2}, 1 / 4),
    "copies": ({"data": 8}, 1),
    "some of the copies": ({"data": 2, "fsdp": 4}, 1 / 2),
}


@pytest.mark.parametrize("axes", [(), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("case", SHARES)
def test_a_process_reads_its_share_once(monkeypatch, case, axes):
    monkeypatch.setattr(loading, "_PIECE", 4096)
    ways, share = SHARES[case]
    mesh = sharding.make_mesh(**({"data": 1} | ways))
    source = Counted((3, 32, 64), axes)
    spec = sharding.leaf_spec("mlp/wi/kernel", source.array.shape, CONFIG, mesh)
    everywhere = jax.NamedSharding(mesh, spec).devices_indices_map(source.array.shape)
    held = [bounded(everywhere[device], source.array.shape) for device in jax.devices()[2:4]]
    boxes = held[:1] if held[0] == held[1] else held
    parts = loading.read_boxes(source.stored, np.float32, boxes)
    for box, part in zip(boxes, parts, strict=True):
        np.testing.assert_array_equal(part, source.array[box])
    assert source.asked == share * source.array.size
    if share < 1:
        assert source.largest <= 4096


def test_parts_that_lie_apart_are_read_apart():
    source = Counted((40, 6))
    boxes = [(slice(0, 5), slice(0, 6)), (slice(35, 40), slice(0, 6))]
    parts = loading.read_boxes(source.stored, np.float16, boxes)
    for box, part in zip(boxes, parts, strict=True):
        assert part.dtype == np.float16
        np.testing.assert_array_equal(part, source.array[box].astype(np.float16))
    assert source.asked == 60


def test_the_whole_is_read_once_for_all_devices(mesh):
    source = Counted((8, 3))
    lies = sharding.replicated(mesh)
    array = loading.read_parts(source.stored, np.float32, lies)
    assert source.asked == 24
    assert array.sharding == lies
    assert len(array.addressable_shards) == 8
    np.testing.assert_array_equal(array, source.array)


@pytest.mark.parametrize("ways", [(2, 2, 2), (1, 8, 1), (8, 1, 1), (4, 1, 2), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("final", [("fsdp", "model"), ("model", "fsdp"), (None, "model")], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_the_way_to_where_a_leaf_lies(ways, final, rows):
    """Every step is one collective at most, and none makes the whole of what is split."""
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, ways, strict=True)))
    final = tuple(axis if axis and mesh.shape[axis] > 1 else None for axis in (None, *final))
    specs = redistribution.way(final, rows, mesh)
    assert specs[-1] == jax.P(*final)
    lies = [jax.NamedSharding(mesh, spec) for spec in specs]
    assert lies[0].shard_shape((8, 16, 32))[rows] == (8, 16, 32)[rows] // 8
    sizes = [math.prod(each.shard_shape((8, 16, 32))) for each in lies]
    # Gathered over the axes that split nothing in the end; then only moved.
    assert sizes[1:] == sizes[-1:] * len(sizes[1:])


@pytest.mark.parametrize("ways", [(2, 2, 2), (4, 1, 2)], ids=str)
def test_a_leaf_is_moved_without_being_made_whole(ways):
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, ways, strict=True)))
    array = np.arange(8 * 16 * 32, dtype=np.float32).reshape(8, 16, 32)
    final = (None, "fsdp" if ways[1] > 1 else None, "model")
    specs = redistribution.way(final, 2, mesh)
    first = jax.device_put(array, jax.NamedSharding(mesh, specs[0]))
    moved = redistribution.move(first, specs)
    assert moved.sharding == jax.NamedSharding(mesh, specs[-1])
    np.testing.assert_array_equal(moved, array)
    program = redistribution._mover(mesh, tuple(specs[1:])).lower(first).compile().as_text()
    assert "all-gather" in program
    assert "[8,16,32]" not in program


# What four processes with two devices each would read alone of a kernel [L, in, out], stored as it
# is or turned round.
ALONE = {
    "columns": ({"fsdp": 8}, (), 1 / 4),
    "rows turned round": ({"fsdp": 8}, (0, 2, 1), 1),
    "copies": ({"data": 8}, (), 1),
    "rows and columns": ({"fsdp": 2, "model": 4}, (), 1 / 2),
}


@pytest.mark.parametrize("case", ALONE)
def test_what_a_process_would_read_alone(case):
    ways, axes, share = ALONE[case]
    mesh = sharding.make_mesh(**({"data": 1} | ways))
    source = Counted((3, 32, 64), axes)
    spec = sharding.leaf_spec("mlp/wi/kernel", source.array.shape, CONFIG, mesh)
    lies = jax.NamedSharding(mesh, spec)
    process_of = {device: device.id // 2 for device in jax.devices()}
    assert redistribution.share_alone(source.stored, lies, process_of.get) == share


# ------------------------------------------------------------------------------ real processes

PROCESS = """
import json, sys
import jax, numpy as np
import peft_jax as pj
from peft_jax import sharding, tree
from peft_jax.backbones import formats, redistribution
from peft_jax.backbones.base import identity

folder, axes, address, number, count, exchange = sys.argv[1:]
if exchange == "True":
    redistribution._LEAST_BYTES = 2**16  # as the leaves of a large model
    redistribution._WITHOUT_LINKS = ()
if int(count) > 1:
    jax.distributed.initialize(address, int(count), int(number))
mesh = sharding.make_mesh(**json.loads(axes))
jax.block_until_ready(jax.numpy.ones(10) + 1)

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

def read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])  # rchar: what was asked of files

memory, bytes_read = peak(), read()
backbone = pj.load_backbone(folder, mesh=mesh)
jax.block_until_ready(backbone.params)
memory, bytes_read = peak() - memory, read() - bytes_read
held, size = 0, 0
for leaf in jax.tree.leaves(backbone.params):
    held += sum({str(s.index): s.data.nbytes for s in leaf.addressable_shards}.values())
    size += leaf.nbytes
stored, _ = formats.open_backbone(folder)
for path, leaf in tree.flatten(backbone.params).items():
    for shard in leaf.addressable_shards:
        np.testing.assert_array_equal(shard.data, stored.leaves[path].read_part(shard.index))
print(json.dumps({
    "memory": memory, "read": bytes_read, "held": held, "size": size,
    "fingerprint": identity(backbone)["fingerprint"],
}))
"""


def load_in_processes(folder, axes, processes, devices, exchange):
    """What each of some processes measures that load a backbone onto one mesh."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROCESS, str(folder), json.dumps(axes), address]
    started = [
        subprocess.Popen(
            [*command, str(number), str(processes), str(exchange)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    results = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        results.append(json.loads(out.splitlines()[-1]))
    return results


@pytest.fixture(scope="module")
def small_folders(tmp_path_factory):
    """T5 v1.1 small in float32, 308 MB, in our format and in Hugging Face's."""
    folder = tmp_path_factory.mktemp("small")
    backbone = pj.init_backbone(pj.backbone_config("t5_v1_1_small"), jax.random.key(0))
    native.write_backbone(folder / "native", backbone)
    hugging_face.write_backbone(folder / "hugging_face", backbone)
    t5x.write_backbone(folder / "t5x", backbone)
    return folder, identity(backbone)["fingerprint"]


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["native", "hugging_face", "t5x"])
def test_no_process_holds_the_model(small_folders, writer):
    """Four processes with two devices each: beside its quarter each holds a piece at a time."""
    folder, fingerprint = small_folders
    for measured in load_in_processes(folder / writer, {"fsdp": 4, "model": 2}, 4, 2, False):
        print(writer, measured)
        assert measured["fingerprint"] == fingerprint
        assert measured["held"] < 0.26 * measured["size"]
        # Of T5X a chunk of 64 MB is read whole.
        assert measured["memory"] < (0.75 if writer == "t5x" else 0.45) * measured["size"]
        assert measured["read"] < 1.02 * measured["size"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "axes"),
    [
        ("hugging_face", {"data": 1, "fsdp": 4, "model": 2}),
        ("native", {"data": 2, "fsdp": 4}),
        ("native", {"data": 8}),
    ],
)
def test_processes_read_a_model_once_between_them(small_folders, writer, axes):
    """Columns too, and what is copied to every device."""
    folder, fingerprint = small_folders
    for measured in load_in_processes(folder / writer, axes, 4, 2, True):
        print(writer, axes, measured)
        assert measured["fingerprint"] == fingerprint
        assert measured["read"] < 0.27 * measured["size"]


QUANTISED = """
import sys, jax
import peft_jax as pj
from peft_jax import quantization
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
jax.block_until_ready(jax.tree.leaves(quantization.quantize(jax.numpy.ones((64, 64)), "int8")))
before = peak()
backbone = pj.load_backbone(sys.argv[1], quantize="int8")
jax.block_until_ready(backbone.params)
print(peak() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(backbone.params)))
"""


@pytest.mark.slow
def test_a_quantised_model_is_never_there_in_full(tmp_path):
    """Beside what stays, only the leaf that is being quantised is in full precision."""
    pytest.importorskip("qwix")
    config = dataclasses.replace(pj.backbone_config("t5_v1_1_small"), vocab_size=512, d_ff=2048)
    backbone = pj.init_backbone(config, jax.random.key(0))
    hugging_face.write_backbone(tmp_path / "model", backbone)
    command = [sys.executable, "-c", QUANTISED, str(tmp_path / "model")]
    # With the compiler's optimisation, which the tests turn off: else nothing is fused.
    environment = os.environ | {"XLA_FLAGS": ""}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    grown, size = map(int, run.stdout.split())
    full = tree.size_in_bytes(backbone.params)
    print(grown, size, full)
    assert size < 0.27 * full
    assert grown < 0.9 * full  # of both together it is 1.25
