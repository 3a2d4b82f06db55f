"""Our own folder: what is written is read back as it was, and every way to be broken."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones import native
from peft_jax.errors import InputError
from peft_jax.rotary import Rope
from tests.test_transformer import CONFIG, V1_0, random_backbone

# A field of every kind that a configuration has: nested, tuples, optional numbers.
LLAMA = dataclasses.replace(
    CONFIG,
    family="llama",
    encoder_layers=0,
    positions="rotary",
    num_heads=4,
    num_kv_heads=2,
    window=5,
    local_layers=(0,),
    rope=Rope(theta=5e5, scaling="llama3", factor=8.0, original_positions=64),
    local_rope=Rope(),
    attention_scale=6**-0.5,
    extra_eos_ids=(3, 5),
    pad_id=-1,
)
CONFIGS = {"v1_1": CONFIG, "v1_0": V1_0, "llama": LLAMA}


def assert_same(one, two):
    one, two = tree.flatten(one.params), tree.flatten(two.params)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        assert leaf.dtype == two[path].dtype, path
        np.testing.assert_array_equal(leaf, two[path], err_msg=path)


# ------------------------------------------------------------------------------ the configuration


@pytest.mark.parametrize("name", [*pj.CONFIGS, *CONFIGS])
def test_every_configuration_survives_json(name):
    config = CONFIGS.get(name) or pj.CONFIGS[name]
    text = json.dumps(native.config_to_json(config))
    again = native.config_from_json(json.loads(text))
    assert again == config
    assert hash(again) == hash(config)


def test_a_field_that_an_older_release_did_not_write_has_its_default():
    fields = native.config_to_json(CONFIG)
    del fields["window"], fields["rope"]
    assert native.config_from_json(fields) == CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_modle": 4}, "unknown field 'd_modle', perhaps of a later release; nearest: d_model"),
        ({"d_model": "wide"}, "field 'd_model' is 'wide'; wanted int"),
        ({"d_model": 4.0}, "field 'd_model' is 4.0; wanted int"),
        ({"gated": 1}, "field 'gated' is 1; wanted bool"),
        ({"norm": "batch"}, "norm 'batch' is unknown"),
        ({"local_layers": 3}, "field 'local_layers' is 3; wanted tuple"),
        ({"local_layers": ["a"]}, "field 'local_layers' is 'a'; wanted int"),
        ({"rope": 3}, "field 'rope' is 3; wanted Rope"),
        ({"rope": {"thete": 1.0}}, "'rope' has the unknown field 'thete'.*nearest: theta"),
        ({"dropout": None}, "field 'dropout' is None; wanted float"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        native.config_from_json(native.config_to_json(LLAMA) | changes)


def test_a_missing_field_is_named():
    fields = native.config_to_json(CONFIG)
    del fields["d_kv"]
    with pytest.raises(InputError, match="lacks the field 'd_kv'"):
        native.config_from_json(fields)


# ------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shards", [1, 4])
def test_what_is_written_is_read_back(tmp_path, config, dtype, shards):
    backbone = random_backbone(config, dtype=dtype)
    size = tree.size_in_bytes(backbone.params)
    written, read = [], []
    native.write_backbone(
        tmp_path / "out", backbone, max_shard_bytes=size // shards, on_leaf=written.append
    )
    again = native.read_backbone(tmp_path / "out", on_leaf=read.append)
    assert (again.config, again.name, again.vocabulary) == (config, "random", None)
    assert_same(again, backbone)
    assert sorted(written) == sorted(read) == sorted(tree.flatten(backbone.params))
    files = list((tmp_path / "out").glob("params*.safetensors"))
    assert (len(files) > 1) == (shards > 1)
    assert (tmp_path / "out" / native.INDEX).exists() == (shards > 1)


def test_leaves_keep_their_own_dtypes_unless_one_is_asked_for(tmp_path):
    backbone = random_backbone()
    norms = {p: p.endswith("scale") for p in tree.flatten(backbone.params)}
    mixed = tree.map_with_path(
        lambda path, x: x if norms[path] else x.astype(jnp.bfloat16), backbone.params
    )
    native.write_backbone(tmp_path / "out", dataclasses.replace(backbone, params=mixed))
    for path, leaf in tree.flatten(native.read_backbone(tmp_path / "out").params).items():
        assert leaf.dtype == (jnp.float32 if norms[path] else jnp.bfloat16), path
    for path, leaf in tree.flatten(
        native.read_backbone(tmp_path / "out", "bfloat16").params
    ).items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, tree.get(mixed, path).astype(jnp.bfloat16))


def test_the_files_are_plain_safetensors_under_our_paths(tmp_path):
    backbone = random_backbone(dtype=jnp.bfloat16)
    native.write_backbone(tmp_path / "out", backbone)
    tensors = load_file(tmp_path / "out" / "params.safetensors")
    for path, leaf in tree.flatten(backbone.params).items():
        np.testing.assert_array_equal(tensors.pop(path), leaf)
    assert not tensors


def test_the_tokenizer_goes_with_the_backbone(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "spiece.model", "notes.txt"):
        (source / name).write_text(name)
    backbone = dataclasses.replace(random_backbone(), vocabulary=source / "spiece.model")
    native.write_backbone(tmp_path / "out", backbone)
    again = native.read_backbone(tmp_path / "out")
    assert again.vocabulary == (tmp_path / "out" / "spiece.model").resolve()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "tokenizer.json"
    assert not (tmp_path / "out" / "notes.txt").exists()
    (tmp_path / "out" / "spiece.model").unlink()
    with pytest.raises(InputError, match=r"names the vocabulary .*spiece.model: it is missing"):
        native.read_backbone(tmp_path / "out")


def test_a_folder_is_replaced_only_when_asked(tmp_path):
    one, two = random_backbone(seed=0), random_backbone(seed=1)
    native.write_backbone(tmp_path / "out", one, max_shard_bytes=1000)
    with pytest.raises(InputError, match="not empty"):
        native.write_backbone(tmp_path / "out", two)
    assert_same(native.read_backbone(tmp_path / "out"), one)
    native.write_backbone(tmp_path / "out", two, overwrite=True)
    assert_same(native.read_backbone(tmp_path / "out"), two)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "params.safetensors",
    ]


# ------------------------------------------------------------------------------ bad input


@pytest.fixture
def folder(tmp_path):
    native.write_backbone(tmp_path / "broken", random_backbone())
    return tmp_path / "broken"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "config.json has version 2 of the format; this release reads 1"),
        ({"format": "other"}, "format 'other'"),
        ({"config": []}, "lacks the object 'config'"),
        ({"config": {}}, "config.json: 'config' lacks the field 'family'"),
    ],
)
def test_a_wrong_header_is_named(folder, changes, message):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))
    with pytest.raises(InputError, match=message) as caught:
        native.read_backbone(folder)
    assert "broken" in str(caught.value)


PATH = "encoder/layers/attention/query/kernel"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({PATH: None}, f"leaf {PATH} is missing; nearest: "),
        ({PATH: np.ones((3, 2), np.float32)}, rf"leaf {PATH} has shape \(3, 2\); config.json asks"),
        ({PATH: np.ones((3, 24, 18), np.int32)}, f"leaf {PATH} holds int32"),
        ({"decoder/prompt": np.ones(3, np.float32)}, "leaf decoder/prompt is not part of this"),
    ],
)
def test_a_wrong_leaf_is_named(folder, changes, message):
    tensors = load_file(folder / "params.safetensors") | changes
    tensors = {path: array for path, array in tensors.items() if array is not None}
    save_file(tensors, folder / "params.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        native.read_backbone(folder)
    assert "broken" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"\xff"),
        ("config.json", b"[]"),
        ("params.safetensors", b"\x09" * 50),
        ("params.safetensors.index.json", b"{}"),
        ("params.safetensors.index.json", b'{"weight_map": {"a": "params-00009.safetensors"}}'),
    ],
)
def test_a_damaged_file_is_named(folder, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match="params-00009" if b"00009" in content else file):
        native.read_backbone(folder)


@pytest.mark.parametrize("file", ["config.json", "params.safetensors"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(InputError, match=file):
        native.read_backbone(folder)


# ------------------------------------------------------------------------------ memory

PEAK = """
import resource, sys, jax, jax.numpy as jnp
from peft_jax.backbones import native
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
jax.block_until_ready(jnp.ones(10) + 1)
before = peak()
backbone = native.read_backbone(sys.argv[1])
jax.block_until_ready(backbone.params)
native.write_backbone(sys.argv[1] + "_copy", backbone)
print(peak() - before, sum(x.nbytes for x in jax.tree.leaves(backbone.params)))
"""


@pytest.mark.slow
def test_reading_and_writing_hold_one_copy_of_the_model(tmp_path):
    """T5 v1.1 small in float32, 308 MB on disk, in a process of its own."""
    backbone = pj.init_backbone(pj.backbone_config("t5_v1_1_small"), jax.random.key(0))
    native.write_backbone(tmp_path / "out", backbone)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, size = map(int, run.stdout.split())
    assert grown < 1.1 * size
