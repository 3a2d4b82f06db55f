"""Hugging Face folders: every layout that is in use, written back, and every way to be broken."""

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
from peft_jax.backbones import hugging_face
from peft_jax.errors import InputError
from peft_jax.torch_files import write_torch
from tests import oracle
from tests.test_transformer import CONFIG, V1_0, random_backbone, random_batch


def golden(variant):
    """config.json and the tensors as transformers 5 wrote them."""
    folder = oracle.GOLDEN / "t5" / variant
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def write(folder, config, tensors, file="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def shard(folder, config, tensors, parts=3):
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        write(folder, config, {n: tensors[n] for n in names[part::parts]}, file)
        weight_map |= dict.fromkeys(names[part::parts], file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def version_4(config, tied):
    """The fields as transformers 4 wrote them, and as the published checkpoints have them."""
    config = {k: v for k, v in config.items() if k != "scale_decoder_outputs"}
    return config | {"tie_word_embeddings": tied, "transformers_version": "4.23.1"}


def logits_of(backbone, variant):
    arrays = oracle.t5(variant)[1]
    return backbone.logits(backbone.params, arrays)


# ------------------------------------------------------------------------------ reading


def as_single(folder, config, tensors):
    return write(folder, config, tensors)


def as_torch(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_torch(folder / "pytorch_model.bin", tensors)
    return folder


def layouts():
    """Every one of them on some variant; with the slow tests each on all."""
    for i, variant in enumerate(oracle.FROZEN):
        for j, layout in enumerate((as_single, shard, as_torch)):
            for version in (4, 5):
                quick = i == 0 and (version == 5 or j == 0)
                marks = () if quick else pytest.mark.slow
                yield pytest.param(layout, variant, version, marks=marks)


@pytest.mark.parametrize(("layout", "variant", "version"), layouts())
def test_every_layout_gives_the_same_model(tmp_path, layout, variant, version):
    config, tensors = golden(variant)
    if version == 4:
        config = version_4(config, variant == "v1_0")
    backbone = pj.load_backbone(layout(tmp_path / variant, config, tensors), dropout=0.0)
    assert backbone.name == variant
    assert backbone.vocabulary is None
    np.testing.assert_array_equal(
        logits_of(backbone, variant), logits_of(oracle.t5(variant)[0], variant)
    )


@pytest.mark.parametrize("copy", ["lm_head.weight", "encoder.embed_tokens.weight"])
@pytest.mark.parametrize("fields", ["as they are", "absent"])
def test_a_tied_model_may_hold_copies_of_its_embedding(tmp_path, copy, fields):
    config, tensors = golden("v1_0")
    if fields == "absent":  # as in the first published T5s
        del config["tie_word_embeddings"], config["scale_decoder_outputs"]
    tensors[copy] = tensors["shared.weight"].copy()
    backbone = pj.load_backbone(write(tmp_path / "t5", config, tensors))
    assert backbone.config.tied_head
    assert backbone.config.scale_head
    assert "lm_head" not in backbone.params
    np.testing.assert_array_equal(
        logits_of(backbone, "v1_0"), logits_of(oracle.t5("v1_0")[0], "v1_0")
    )


def test_an_embedding_may_be_stored_under_its_second_name_alone(tmp_path):
    config, tensors = golden("v1_0")
    tensors["decoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    backbone = pj.load_backbone(write(tmp_path / "t5", config, tensors))
    np.testing.assert_array_equal(
        logits_of(backbone, "v1_0"), logits_of(oracle.t5("v1_0")[0], "v1_0")
    )


def test_a_table_that_no_t5_reads_is_passed_over(tmp_path):
    """The first published files have a relative bias of the cross-attention."""
    config, tensors = golden("v1_0")
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors[name] = np.ones((8, 3), np.float32)
    pj.load_backbone(write(tmp_path / "t5", config, tensors))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_weights_are_cast_as_they_are_read(tmp_path, stored, wanted):
    config, tensors = golden("v1_1")
    held = {name: array.astype(jnp.dtype(stored)) for name, array in tensors.items()}
    backbone = pj.load_backbone(write(tmp_path / "t5", config, held), dtype=wanted)
    assert all(leaf.dtype == wanted for leaf in jax.tree.leaves(backbone.params))
    named = oracle.by_hugging_face_name(backbone, backbone.params)
    for name, array in held.items():
        np.testing.assert_array_equal(named[name], array.astype(wanted), err_msg=name)


def test_the_vocabulary_beside_the_weights_is_found(tmp_path):
    folder = write(tmp_path / "t5", *golden("v1_1"))
    (folder / "spiece.model").write_bytes(b"a vocabulary")
    backbone = pj.load_backbone(folder)
    assert backbone.vocabulary == (folder / "spiece.model").resolve()
    copy = pj.save_backbone(tmp_path / "copy", backbone)
    assert (copy / "spiece.model").read_bytes() == b"a vocabulary"


def test_mt5_has_its_own_defaults(tmp_path):
    config, tensors = golden("mt5")
    del config["feed_forward_proj"], config["tie_word_embeddings"]
    backbone = pj.load_backbone(write(tmp_path / "mt5", config, tensors))
    assert backbone.config == pj.load_backbone(oracle.GOLDEN / "t5" / "mt5").config


# ------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("config", [CONFIG, V1_0], ids=["v1_1", "v1_0"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_what_is_written_is_read_back(tmp_path, config, dtype, shards):
    backbone = random_backbone(config, dtype=dtype)
    limit = tree.size_in_bytes(backbone.params) // shards + 1 if shards > 1 else 2**30
    folder = hugging_face.write_backbone(tmp_path / "out", backbone, limit)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards > 1)
    assert not list(folder.glob("*.partial"))
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1  # who may read config.json may read the weights
    again = pj.load_backbone(folder, dtype=dtype, dropout=0.0)
    assert again.config == backbone.config
    assert tree.flatten(again.params).keys() == tree.flatten(backbone.params).keys()
    for path, leaf in tree.flatten(backbone.params).items():
        np.testing.assert_array_equal(tree.get(again.params, path), leaf, err_msg=path)


@pytest.mark.parametrize("first", [1, 3])
def test_an_earlier_model_in_the_folder_is_not_read_in_place_of_the_new_one(tmp_path, first):
    one, two = random_backbone(seed=0), random_backbone(seed=1)
    size = tree.size_in_bytes(one.params)
    for backbone, shards in ((one, first), (two, 4 - first)):
        hugging_face.write_backbone(tmp_path, backbone, 2 * size if shards == 1 else size // shards)
    again = pj.load_backbone(tmp_path)
    embedding = again.params["token_embedder"]["embedding"]
    np.testing.assert_array_equal(embedding, two.params["token_embedder"]["embedding"])


@pytest.mark.oracle
@pytest.mark.parametrize("family", ["t5", "mt5"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", [1, 3])
def test_transformers_loads_what_is_written(tmp_path, family, tied, shards):
    import dataclasses

    if family == "mt5" and tied:
        pytest.skip("no mT5 has a tied head")
    make = oracle.live("make_t5")
    config = dataclasses.replace(V1_0 if tied else CONFIG, family=family)
    backbone = random_backbone(config)
    limit = tree.size_in_bytes(backbone.params) // shards if shards > 1 else 2**30
    folder = hugging_face.write_backbone(tmp_path, backbone, limit)
    model = make.transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch = random_batch(config)
    batch["encoder_mask"] = batch["encoder_input_tokens"] != 0
    with make.torch.no_grad():
        logits = model(**make.torch_inputs(batch)).logits.numpy()
    oracle.assert_close(logits, backbone.logits(backbone.params, batch))


# ------------------------------------------------------------------------------ bad input

QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"


def without(name):
    def change(config, tensors):
        del tensors[name]

    return change


def with_tensor(name, shape):
    def change(config, tensors):
        tensors[name] = np.ones(shape, np.float32)

    return change


def with_field(**fields):
    return lambda config, tensors: config.update(fields)


def without_field(name):
    return lambda config, tensors: config.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(QUERY), f"tensor {QUERY} is missing"),
        (without("shared.weight"), "tensor shared.weight is missing"),
        (with_tensor("encoder.block.0.adapter.weight", (2, 2)), "encoder.block.0.adapter.weight"),
        (with_tensor(QUERY, (12, 9)), r"SelfAttention.q.weight has shape \(12, 9\).*\(12, 8\)"),
        (
            with_tensor("decoder.embed_tokens.weight", (24, 8)),
            "decoder.embed_tokens.weight differs",
        ),
        (with_field(num_layers=5), r"encoder.block.[1-4].* is missing"),
        (with_field(d_ff=11), r"has shape .*config.json asks for"),
        (with_field(model_type="bort"), "model_type 'bort' is not supported; one of t5, mt5"),
        (without_field("model_type"), "model_type None"),
        (with_field(feed_forward_proj="gated-mish"), "feed_forward_proj 'gated-mish'"),
        (with_field(feed_forward_proj=3), "wrong type"),
        (with_field(dense_act_fn="relu"), "dense_act_fn 'relu' contradicts feed_forward_proj 'gat"),
        (with_field(is_gated_act=False), "is_gated_act False contradicts feed_forward_proj"),
        (with_field(is_decoder=True), "is_decoder True is not supported"),
        (with_field(d_model="wide"), "wrong type"),
        (without_field("d_kv"), "lacks the field 'd_kv'"),
        (with_field(num_heads=0), "num_heads 0"),
    ],
)
def test_a_wrong_tensor_or_field_is_named(tmp_path, change, message):
    config, tensors = golden("v1_1")
    change(config, tensors)
    folder = write(tmp_path / "broken", config, tensors)
    with pytest.raises(InputError, match=message) as caught:
        pj.load_backbone(folder)
    assert "broken" in str(caught.value)


def test_a_head_that_the_config_promises_is_named(tmp_path):
    config, tensors = golden("v1_1")
    del tensors["lm_head.weight"]
    folder = write(tmp_path / "broken", version_4(config, False), tensors)
    with pytest.raises(InputError, match=r"broken: tensor lm_head.weight is missing"):
        pj.load_backbone(folder)


def damage(tmp_path, file, content):
    folder = shard(tmp_path / "broken", *golden("v1_1"))
    (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b"[]"),
        ("model.safetensors.index.json", b"{"),
        ("model.safetensors.index.json", b"{}"),
        ("model-00002-of-00003.safetensors", b""),
        ("model-00002-of-00003.safetensors", b"\x09" * 50),
        ("pytorch_model.bin", b"PK"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, content):
    folder = damage(tmp_path, file, content)
    if file.endswith(".bin"):
        for safe in folder.glob("*.safetensors*"):
            safe.unlink()
    with pytest.raises(InputError, match=file):
        pj.load_backbone(folder)


def test_a_truncated_file_is_named(tmp_path):
    folder = write(tmp_path / "broken", *golden("v1_1"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"model.safetensors is not a readable"):
        pj.load_backbone(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "no config.json"),
        ("model-00002-of-00003.safetensors", "model-00002.*missing, but the index names it"),
        ("*", "no checkpoint folder at"),
        ("model*", "no weights: expected model.safetensors"),
    ],
)
def test_a_missing_file_is_named(tmp_path, file, message):
    folder = shard(tmp_path / "broken", *golden("v1_1"))
    for path in folder.glob(file):
        path.unlink()
    if file == "*":
        folder.rmdir()
    with pytest.raises(InputError, match=message):
        pj.load_backbone(folder)


def test_a_configuration_alone_has_no_weights():
    with pytest.raises(InputError, match="names a configuration"):
        pj.load_backbone("t0_3b")
    with pytest.raises(InputError, match="no backbone is named 't5_v1_1_smal'; nearest: t5_v1_1_s"):
        pj.backbone_config("t5_v1_1_smal")


# ------------------------------------------------------------------------------ memory

PEAK = """
import resource, sys, jax, jax.numpy as jnp
import peft_jax as pj
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
jax.block_until_ready(jnp.ones(10) + 1)
before = peak()
backbone = pj.load_backbone(sys.argv[1], dtype=sys.argv[2])
jax.block_until_ready(backbone.params)
print(peak() - before, sum(x.nbytes for x in jax.tree.leaves(backbone.params)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_about_one_copy_of_the_model(tmp_path, dtype):
    """T5 v1.1 small in float32, 308 MB on disk, in a process of its own."""
    backbone = pj.init_backbone(pj.backbone_config("t5_v1_1_small"), jax.random.key(0))
    hugging_face.write_backbone(tmp_path, backbone)
    command = [sys.executable, "-c", PEAK, str(tmp_path), dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, size = map(int, run.stdout.split())
    # The largest tensor, the embedding, is for a moment there as it lies in the file as well.
    embedding = 32128 * 512 * 4
    assert grown < 1.6 * size + (embedding if dtype == "bfloat16" else 0)
