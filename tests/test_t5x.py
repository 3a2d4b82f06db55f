"""T5X checkpoints: every layout that is in use, written back, the real ones, and every way to be
broken."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones import t5x, t5x_config, t5x_files
from peft_jax.backbones.base import RUN_FIELDS
from peft_jax.errors import InputError
from tests import oracle
from tests.golden import make_t5x
from tests.test_transformer import CONFIG, random_backbone, random_batch

GOLDEN = {"v1_1": "checkpoint_3", "v1_0": "checkpoint_5"}


def hugging_face_folder(variant):
    return oracle.GOLDEN / "t5" / variant


def tensors_of(variant):
    return make_t5x.tensors_of(hugging_face_folder(variant))


def golden(variant):
    return oracle.GOLDEN / "t5x" / variant / GOLDEN[variant]


def assert_same(one, two):
    one, two = tree.flatten(one.params), tree.flatten(two.params)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        assert leaf.dtype == two[path].dtype, path
        np.testing.assert_array_equal(leaf, two[path], err_msg=path)


def same_but_for_run_fields(one, two):
    return dataclasses.replace(one, **{name: getattr(two, name) for name in RUN_FIELDS}) == two


# ------------------------------------------------------------------------------ golden files


@pytest.mark.parametrize("variant", GOLDEN)
def test_a_golden_checkpoint_is_the_model_that_transformers_has(variant):
    """Partitioned and inline arrays, an optimizer's states (v1_1); OCDBT, tied head (v1_0)."""
    backbone = pj.load_backbone(golden(variant), dropout=0.0)
    assert backbone.name == GOLDEN[variant]
    wanted, arrays = oracle.t5(variant)
    assert same_but_for_run_fields(backbone.config, wanted.config)
    assert_same(backbone, wanted)
    oracle.assert_close(backbone.logits(backbone.params, arrays), arrays["logits"])


LAYOUTS = {
    "t5": lambda tensors, heads: tensors,
    "layers with a bias each": lambda tensors, heads: make_t5x.bias_per_layer(tensors),
    "scalable_t5": lambda tensors, heads: make_t5x.split_heads(
        make_t5x.bias_per_layer(tensors), heads
    ),
    "scanned, heads joined": lambda tensors, heads: make_t5x.scanned(
        make_t5x.bias_per_layer(tensors)
    ),
    "scanned scalable_t5": lambda tensors, heads: make_t5x.scanned(
        make_t5x.split_heads(make_t5x.bias_per_layer(tensors), heads)
    ),
}
WRITERS = {
    "inline": lambda folder, tensors: make_t5x.write_native(folder, tensors, 0, {}),
    "zarr": lambda folder, tensors: make_t5x.write_native(folder, tensors, 0),
    "ocdbt": lambda folder, tensors: make_t5x.write_ocdbt(folder, tensors, 0),
    "placeholders": lambda folder, tensors: make_t5x.write_placeholders(folder, tensors, 0),
}


def with_gin(folder, variant):
    (folder / "model_config.gin").write_text(make_t5x.gin_of(hugging_face_folder(variant)))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("variant", ["v1_0", "v1_1", "mt5"])
def test_every_layout_gives_the_same_model(tmp_path, layout, writer, variant):
    tensors = LAYOUTS[layout](tensors_of(variant), 3)
    folder = with_gin(WRITERS[writer](tmp_path / "checkpoint_0", tensors), variant)
    backbone = t5x.read_backbone(folder)
    wanted = oracle.t5(variant)[0]
    config = dataclasses.replace(wanted.config, family="t5")  # gin does not say mt5
    assert same_but_for_run_fields(backbone.config, config)
    assert_same(backbone, wanted)


def test_one_file_may_hold_all_arrays(tmp_path):
    folder = make_t5x.write_native(tmp_path, tensors_of("v1_1"), 0, {})
    assert_same(t5x.read_backbone(with_gin(folder, "v1_1") / "checkpoint"), oracle.t5("v1_1")[0])


def test_what_the_installed_orbax_writes_is_read(tmp_path):
    import orbax.checkpoint as ocp

    tensors = tensors_of("v1_1")
    state = {"target": make_t5x.nested(tensors), "state": {"step": np.int32(3)}}
    for name, ocdbt in (("checkpoint_1", True), ("checkpoint_2", False)):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as writer:
            writer.save((tmp_path / name / "state").resolve(), state)
        folder = with_gin(tmp_path / name, "v1_1")
        assert (folder / "state" / "manifest.ocdbt").exists() == ocdbt
        assert_same(t5x.read_backbone(folder), oracle.t5("v1_1")[0])


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("wanted", [None, jnp.float32, jnp.bfloat16])
def test_bfloat16_leaves(tmp_path, writer, wanted):
    tensors = {n: a.astype(jnp.bfloat16) for n, a in tensors_of("v1_1").items()}
    folder = with_gin(WRITERS[writer](tmp_path / "checkpoint_0", tensors), "v1_1")
    backbone = t5x.read_backbone(folder, wanted)
    again = oracle.by_hugging_face_name(backbone, backbone.params)
    for name, array in again.items():
        assert array.dtype == (wanted or jnp.bfloat16)
        array = array.T if make_t5x.is_transposed(name) else array
        np.testing.assert_array_equal(array, tensors[make_t5x.t5x_name(name)].astype(array.dtype))


def test_the_vocabulary_beside_the_arrays_is_found(tmp_path):
    folder = shutil.copytree(golden("v1_0"), tmp_path / "checkpoint_5")
    (folder / "spiece.model").write_bytes(b"a vocabulary")
    backbone = t5x.read_backbone(folder)
    assert backbone.vocabulary is not None
    t5x.write_backbone(tmp_path / "checkpoint_6", backbone)
    assert (tmp_path / "checkpoint_6" / "spiece.model").read_bytes() == b"a vocabulary"


# ------------------------------------------------------------------------------ the configuration


def checkpoint_without_gin(tmp_path, variant="v1_1"):
    return make_t5x.write_native(tmp_path / "plain", tensors_of(variant), 0, {})


def test_a_published_model_is_known_by_its_sizes():
    for name, config in pj.CONFIGS.items():
        if config.family not in ("t5", "mt5"):
            continue
        sizes = {field: getattr(config, field) for field in t5x_config.SIZES}
        assert t5x_config.find_config(Path("checkpoint_0"), sizes) == config, name


def test_a_named_configuration_gives_what_shapes_do_not_tell(tmp_path):
    folder = checkpoint_without_gin(tmp_path)
    with pytest.raises(InputError, match=r"no published model has these sizes \(vocab_size 24"):
        pj.load_backbone(folder)
    backbone = pj.load_backbone(folder, config="t5_v1_1_small", dropout=0.0)
    wanted, arrays = oracle.t5("v1_1")
    assert same_but_for_run_fields(backbone.config, wanted.config)
    oracle.assert_close(backbone.logits(backbone.params, arrays), arrays["logits"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t5_base", "its gated is True, there it is False"),
        ("t5_v1_1_bas", "no T5 is named 't5_v1_1_bas'; nearest: t5_v1_1_base"),
    ],
)
def test_a_wrong_name_is_said(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        pj.load_backbone(checkpoint_without_gin(tmp_path), config=name)


def test_another_format_needs_no_name():
    with pytest.raises(InputError, match=r"says its own configuration; 't5_v1_1_base' can only"):
        pj.load_backbone(hugging_face_folder("v1_1"), config="t5_v1_1_base")


GIN = """
network.T5Config:
  dropout_rate = 0.05
  mlp_activations = ('silu', 'linear')
  num_heads = 3
layers.RelativePositionBiases.max_distance = 20
"""


@pytest.mark.parametrize("place", ["plain/model_config.gin", "plain/config.gin", "plain"])
def test_a_gin_file_tells_the_rest(tmp_path, place):
    folder = checkpoint_without_gin(tmp_path)
    if place == "plain":  # as T5X has it: in the folder above the checkpoint's
        folder = folder.rename(tmp_path / "checkpoint_7")
        place = "config.gin"
    (tmp_path / place).write_text(GIN)
    config = t5x.read_backbone(folder).config
    assert (config.activation, config.dropout, config.relative_max_distance) == ("silu", 0.05, 20)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_heads = 3", "num_heads = 4", "model_config.gin says num_heads 4; .* say 3"),
        ("('silu', 'linear')", "('silu',)", "says gated False; .* say True"),
        ("('silu', 'linear')", "('linear', 'silu')", "activations .* are not supported"),
        ("0.05", "'high'", "model_config.gin has a value of the wrong type"),
        ("0.05", "1.5", "dropout 1.5"),
        ("max_distance", "PEFT_JAX_FAMILY = 'bert'\n#", "family 'bert' is none of t5, mt5"),
    ],
)
def test_a_gin_file_that_does_not_fit_is_named(tmp_path, old, new, message):
    folder = checkpoint_without_gin(tmp_path)
    text = GIN.replace("layers.RelativePositionBiases." + old, new).replace(old, new)
    (folder / "model_config.gin").write_text(text)
    with pytest.raises(InputError, match=message):
        t5x.read_backbone(folder)


def test_a_name_may_not_contradict_the_gin_file(tmp_path):
    folder = checkpoint_without_gin(tmp_path)
    (folder / "model_config.gin").write_text(GIN)
    with pytest.raises(InputError, match="its activation is silu, there it is gelu_tanh"):
        t5x.read_backbone(folder, named="t5_v1_1_base")


# ------------------------------------------------------------------------------ writing

SMALL = {field: getattr(CONFIG, field) for field in t5x_config.SIZES} | {"dropout": 0.0}
WRITTEN = {
    "v1_1": dataclasses.replace(pj.CONFIGS["t5_v1_1_base"], **SMALL),
    "v1_0": dataclasses.replace(
        pj.CONFIGS["t5_base"], **SMALL | {"gated": False, "tied_head": True}
    ),
    "mt5, silu": dataclasses.replace(
        pj.CONFIGS["mt5_base"],
        **SMALL | {"activation": "silu", "relative_buckets": 7, "eos_id": 3},
    ),
}


# What only T5X's own formats can hold.
LAYER_BIASES = dataclasses.replace(WRITTEN["v1_1"], relative_per_layer=True)


@pytest.mark.parametrize("config", [*WRITTEN.values(), LAYER_BIASES], ids=[*WRITTEN, "umt5"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scanned", [False, True])
def test_what_is_written_is_read_back(tmp_path, config, dtype, scanned):
    backbone = random_backbone(config, dtype=dtype)
    written, read = [], []
    folder = t5x.write_backbone(
        tmp_path / "checkpoint_9", backbone, scanned=scanned, step=9, on_leaf=written.append
    )
    again = t5x.read_backbone(folder, on_leaf=read.append)
    assert again.config == config
    assert_same(again, backbone)
    assert sorted(written) == sorted(read) == sorted(tree.flatten(backbone.params))
    state = msgpack.unpackb((folder / "checkpoint").read_bytes(), strict_map_key=False)
    assert state["version"] == 3
    step = state["optimizer"]["state"]["step"]
    assert np.frombuffer(msgpack.unpackb(step.data)[2], np.int32) == [9]


def test_the_names_and_arrays_are_those_of_t5x(tmp_path):
    """Against the golden script, which knows nothing of the table that is tested."""
    backbone = oracle.t5("v1_1")[0]
    plain = t5x_files.open_checkpoint(t5x.write_backbone(tmp_path / "a", backbone))
    apart = t5x_files.open_checkpoint(t5x.write_backbone(tmp_path / "b", backbone, scanned=True))
    tensors = tensors_of("v1_1")
    for stored, wanted in ((plain, tensors), (apart, LAYOUTS["scanned scalable_t5"](tensors, 3))):
        assert stored.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(stored[name].read(), array, err_msg=name)


def test_large_arrays_are_written_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(t5x_files, "_CHUNK", 1000)
    backbone = random_backbone(WRITTEN["v1_1"])
    folder = t5x.write_backbone(tmp_path / "checkpoint_0", backbone)
    assert len(list((folder / "target.token_embedder.embedding").iterdir())) > 5
    assert_same(t5x.read_backbone(folder), backbone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, "activation is 'gelu', in T5X it is one of relu, gelu_tanh, silu"),
        ({"norm_epsilon": 1e-5}, "norm_epsilon is 1e-05, in T5X it is 1e-06"),
        ({"tied_head": True}, "scale_head is False, in T5X it is True"),
        ({"scale_head": True}, "scale_head is True, in T5X it is False"),
        ({"decoder_start_id": 2}, "decoder_start_id is 2, in T5X it is 0"),
        ({"family": "llama"}, "are T5s .*, not a llama"),
    ],
)
def test_what_t5x_cannot_say_is_not_written(tmp_path, changes, message):
    backbone = random_backbone(dataclasses.replace(WRITTEN["v1_1"], **changes))
    with pytest.raises(InputError, match=message):
        t5x.write_backbone(tmp_path / "out", backbone)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_replaced_only_when_asked(tmp_path):
    one, two = (random_backbone(WRITTEN["v1_1"], seed=seed) for seed in (0, 1))
    t5x.write_backbone(tmp_path / "out", one)
    with pytest.raises(InputError, match="not empty"):
        t5x.write_backbone(tmp_path / "out", two)
    assert_same(t5x.read_backbone(tmp_path / "out"), one)
    t5x.write_backbone(tmp_path / "out", two, overwrite=True)
    assert_same(t5x.read_backbone(tmp_path / "out"), two)


# ------------------------------------------------------------------------------ bad input

QUERY = "encoder/layers_0/attention/query/kernel"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({QUERY: None}, f"tensor {QUERY} is missing; nearest: "),
        ({"token_embedder/embedding": None}, "tensor token_embedder/embedding is missing"),
        ({"encoder/encoder_norm/scale": None}, "tensor encoder/encoder_norm/scale is missing"),
        ({"decoder/layers_0/mlp/wo/kernel": None}, "decoder/layers_0/mlp/wo/kernel is missing"),
        ({QUERY: np.ones((8, 13), np.float32)}, "has 3 heads, which do not divide 13 units"),
        ({QUERY: np.ones(8, np.float32)}, r"has shape \(8,\); wanted one of 2 or 3 axes"),
        (
            {"decoder/layers_1/mlp/wo/kernel": np.ones((10, 9), np.float32)},
            r"decoder/layers_1/mlp/wo/kernel has shape \(10, 9\); the other tensors ask for",
        ),
        ({QUERY: np.ones((8, 12), np.uint16)}, f"tensor {QUERY} holds uint16"),
        ({"encoder/prompt/prompt": np.ones((5, 8), np.float32)}, "encoder/prompt/prompt is not"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path, changes, message):
    tensors = {n: a for n, a in (tensors_of("v1_1") | changes).items() if a is not None}
    folder = with_gin(make_t5x.write_native(tmp_path / "broken", tensors, 0, {}), "v1_1")
    with pytest.raises(InputError, match=message) as caught:
        t5x.read_backbone(folder)
    assert "broken" in str(caught.value)


@pytest.mark.parametrize("layout", ["layers with a bias each", "scanned scalable_t5"])
def test_biases_that_differ_between_layers_are_read_as_such(tmp_path, layout):
    tensors = LAYOUTS[layout](tensors_of("v1_1"), 3)
    for name in tensors:
        if name.startswith("decoder/") and "relpos_bias" in name and "layers_0" not in name:
            tensors[name] = tensors[name].copy()
            tensors[name][0, -1] += 1
    folder = with_gin(make_t5x.write_native(tmp_path / "umt5", tensors, 0, {}), "v1_1")
    backbone = t5x.read_backbone(folder)
    assert backbone.config.relative_per_layer
    for stack in ("encoder", "decoder"):
        assert "relative_bias" not in backbone.params[stack]
        found = backbone.params[stack]["layers"]["relative_bias"]["embedding"]
        for layer, table in enumerate(found):
            name = f"{stack}/layers_{layer}/relpos_bias/rel_embedding"
            if name in tensors:
                np.testing.assert_array_equal(table, tensors[name].T)
            else:
                held = tensors[f"{stack}/{stack}/relpos_bias/rel_embedding"]
                np.testing.assert_array_equal(table, held[:, layer].T)


def without_array(folder):
    shutil.rmtree(folder / "target.token_embedder.embedding")


def without_chunk(folder):
    (folder / "target.token_embedder.embedding" / "1.0").unlink()


def with_short_chunk(folder):
    chunk = folder / "target.token_embedder.embedding" / "1.0"
    chunk.write_bytes(chunk.read_bytes()[:40])


def with_broken_header(folder):
    (folder / "target.token_embedder.embedding" / ".zarray").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_array, "array target.token_embedder.embedding is missing"),
        (without_chunk, "embedding lacks some of its chunks; the folder was not copied whole"),
        (with_short_chunk, "array target.token_embedder.embedding is damaged"),
        (with_broken_header, "array target.token_embedder.embedding is missing or damaged"),
    ],
)
def test_a_damaged_array_is_named(tmp_path, damage, message):
    shutil.copytree(golden("v1_1").parent, tmp_path / "broken")
    folder = tmp_path / "broken" / "checkpoint_3"
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        t5x.read_backbone(folder)
    assert "broken" in str(caught.value)


@pytest.mark.parametrize("file", ["manifest.ocdbt", "d/*"])
@pytest.mark.parametrize("content", [b"", b"\x09" * 50, None])
def test_a_damaged_database_is_named(tmp_path, file, content):
    folder = shutil.copytree(golden("v1_0"), tmp_path / "broken")
    for path in (folder / "state").glob(file):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    with pytest.raises(InputError, match="broken"):
        t5x.read_backbone(folder)


def index(**tree):
    return msgpack.packb(tree)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable T5X checkpoint"),
        (b"\x83\xa7", "not a readable T5X checkpoint"),
        (index(version=3, optimizer={"state": {}}), "its tree has no 'target'"),
        (index(version=3, optimizer={"target": {}}), "its tree has no 'target'"),
        (index(version=3, optimizer={"target": {"a": 3}}), "a is a int, which is no tensor"),
        (b'model_checkpoint_path: "model.ckpt-0"', "a checkpoint of TensorFlow"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, content, message):
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(InputError, match=message):
        pj.load_backbone(tmp_path)


def test_a_folder_of_checkpoints_is_no_checkpoint(tmp_path):
    for step in (9, 10):
        shutil.copytree(golden("v1_0"), tmp_path / f"checkpoint_{step}")
    with pytest.raises(InputError, match=r"holds T5X checkpoints.*such as .*checkpoint_10"):
        pj.load_backbone(tmp_path)
    with pytest.raises(InputError, match=r"has no file 'checkpoint'; it holds checkpoint_"):
        t5x.read_backbone(tmp_path)


# ------------------------------------------------------------------------------ real checkpoints


@pytest.mark.oracle
def test_the_published_tiny_checkpoint_against_transformers(shared_data):
    """prompt-tuning's test_t5_1_1_tiny, whose gin file says 4 buckets up to a distance of 8."""
    make = oracle.live("make_t5")
    folder = shared_data / "oracles" / "prompt_tuning" / "test_data"
    backbone = pj.load_backbone(
        folder / "test_t5_1_1_tiny" / "checkpoint_3",
        config="t5_v1_1_base",
        dropout=0.0,
        relative_max_distance=8,
    )
    embedding = np.load(folder / "tiny_embeddings_32128x4.npy")
    np.testing.assert_array_equal(backbone.params["token_embedder"]["embedding"], embedding)
    # transformers' model is filled by the golden script's table, not by ours.
    config = make.transformers.T5Config(
        vocab_size=32128,
        d_model=4,
        d_ff=8,
        num_heads=2,
        d_kv=2,
        num_layers=2,
        num_decoder_layers=2,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=4,
        relative_attention_max_distance=8,
        tie_word_embeddings=False,
    )
    model = make.transformers.T5ForConditionalGeneration(config).eval()
    model.lm_head.weight = make.torch.nn.Parameter(make.torch.empty(32128, 4))
    stored = t5x_files.open_checkpoint(folder / "test_t5_1_1_tiny" / "checkpoint_3")
    with make.torch.no_grad():
        for name, weight in model.named_parameters():
            array = stored.pop(make_t5x.t5x_name(name)).read()
            array = array.T if make_t5x.is_transposed(name) else array
            weight.copy_(make.torch.from_numpy(array.copy()))
    assert not stored
    batch = random_batch(backbone.config, source=40, target=20)
    batch["encoder_mask"] = batch["encoder_input_tokens"] != 0
    with make.torch.no_grad():
        logits = model(**make.torch_inputs(batch)).logits.numpy()
    oracle.assert_close(backbone.logits(backbone.params, batch), logits)


@pytest.mark.parametrize("kind", ["adafactor_t5x", "adafactor_orbax"])
def test_what_t5x_wrote_gives_what_t5x_computed(shared_data, kind):
    folder = shared_data / "oracles" / "t5x_tiny"
    run = {"dropout": 0.0, "config": "t5_v1_1_base"}
    backbone = pj.load_backbone(folder / kind / "checkpoint_3", **run)
    held = dict(np.load(folder / "adafactor_io.npz"))
    log_probs = jax.nn.log_softmax(backbone.logits(backbone.params, held))
    of_targets = jnp.take_along_axis(log_probs, held["decoder_target_tokens"][..., None], -1)[
        ..., 0
    ]
    scores = (of_targets * held["decoder_loss_weights"]).sum(1)
    np.testing.assert_allclose(scores, held["score"], rtol=1e-5)


def test_what_t5x_wrote_of_a_scanned_network(shared_data, tmp_path):
    """Every value, a relative bias of each layer among them; and the same ones written back."""
    folder = shared_data / "oracles" / "t5x_tiny" / "scalable_t5x" / "checkpoint_0"
    tensors = {name: tensor.read() for name, tensor in t5x_files.open_checkpoint(folder).items()}
    backbone = pj.load_backbone(folder, config="t5_v1_1_base")
    kernel = backbone.params["decoder"]["layers"]["cross_attention"]["out"]["kernel"]
    held = tensors["decoder/decoder/encoder_decoder_attention/out/kernel"]  # [H, L, K, D]
    for layer in range(3):
        np.testing.assert_array_equal(kernel[layer], held[:, layer].reshape(16, 16))
    for orbax in (False, True):
        place = tmp_path / f"checkpoint_{int(orbax)}"
        t5x.write_backbone(place, backbone, scanned=True, orbax=orbax)
        again = t5x_files.open_checkpoint(place)
        assert again.keys() == tensors.keys()
        for name, array in tensors.items():
            np.testing.assert_array_equal(again[name].read(), array, err_msg=name)
        assert t5x.read_config(place).relative_per_layer
