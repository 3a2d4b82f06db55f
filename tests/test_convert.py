"""Conversion between the formats: there and back bit by bit, whole or not at all."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import peft_jax as pj
from peft_jax import cli, convert, tree
from peft_jax.backbones import formats, hugging_face, native, t5x
from peft_jax.errors import InputError
from tests import oracle
from tests.small_run import write_small_backbone
from tests.test_t5x import WRITTEN, same_but_for_run_fields
from tests.test_transformer import random_backbone


def hugging_face_folder(folder, config=WRITTEN["v1_1"], dtype=jnp.float32):
    return pj.save_backbone(folder, random_backbone(config, dtype=dtype))


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def assert_same_tensors(one, two):
    one, two = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.dtype == two[name].dtype, name
        np.testing.assert_array_equal(array, two[name], err_msg=name)


# ------------------------------------------------------------------------------ which format


def test_formats_are_told_apart(tmp_path):
    backbone = random_backbone(WRITTEN["v1_1"])
    pj.save_backbone(tmp_path / "hf", backbone)
    native.write_backbone(tmp_path / "ours", backbone)
    t5x.write_backbone(tmp_path / "t5x", backbone)
    assert formats.checkpoint_format(tmp_path / "hf") == "hugging_face"
    assert formats.checkpoint_format(tmp_path / "ours") == "native"
    assert formats.checkpoint_format(tmp_path / "t5x") == "t5x"
    assert formats.checkpoint_format(oracle.GOLDEN / "t5x" / "v1_0" / "checkpoint_5") == "t5x"
    for name in ("hf", "ours", "t5x"):
        loaded = pj.load_backbone(tmp_path / name)
        assert same_but_for_run_fields(loaded.config, backbone.config)
        for path, leaf in tree.flatten(loaded.params).items():
            np.testing.assert_array_equal(leaf, tree.get(backbone.params, path), err_msg=path)


@pytest.mark.parametrize(
    "file",
    [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "adapter.safetensors",
    ],
)
def test_an_adapter_is_no_backbone(tmp_path, file):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text("{}")
    for use in (pj.load_backbone, lambda path: convert.convert(path, tmp_path / "out")):
        with pytest.raises(
            InputError, match=r"is an adapter or a part of one \(.*, not a backbone"
        ):
            use(tmp_path)


@pytest.mark.parametrize("file", ["prompt.npy", "adapter.safetensors", "finish.pt"])
def test_a_file_of_an_adapter_is_no_backbone(tmp_path, file):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(InputError, match="is an adapter"):
        pj.load_backbone(tmp_path / file)


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(InputError, match="no checkpoint folder at"):
        convert.convert(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(InputError, match=r"is no checkpoint of a backbone: it has no config.json"):
        convert.convert(tmp_path, tmp_path / "out")


# ------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("config", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scanned", [False, True])
def test_hugging_face_to_t5x_to_ours_and_back(tmp_path, config, dtype, scanned):
    source = hugging_face_folder(tmp_path / "source", config, dtype)
    # T5X's own form of one layout, and that of orbax of the other
    convert.convert(source, tmp_path / "checkpoint_3", scanned=scanned, orbax=not scanned)
    convert.convert(tmp_path / "checkpoint_3", tmp_path / "ours")
    convert.convert(tmp_path / "ours", tmp_path / "back")
    assert_same_tensors(source, tmp_path / "back")
    assert files_of(source)["config.json"] == files_of(tmp_path / "back")["config.json"]


# The folders that transformers itself wrote, of every family.
FOLDERS = sorted(p.parent for p in oracle.GOLDEN.glob("*/*/model.safetensors"))


@pytest.mark.parametrize("source", FOLDERS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_any_family_survives_our_folder(tmp_path, source):
    convert.convert(source, tmp_path / "ours")
    convert.convert(tmp_path / "ours", tmp_path / "back")
    direct = hugging_face.write_backbone(tmp_path / "direct", formats.read_backbone(source))
    assert files_of(direct) == files_of(tmp_path / "back")


@pytest.mark.parametrize("to", [None, "t5x"])
def test_leaves_keep_their_own_dtype_unless_one_is_asked_for(tmp_path, to):
    source = hugging_face_folder(tmp_path / "source", dtype=jnp.bfloat16)
    kept, _ = convert.convert(source, tmp_path / "kept", to)[::-1]
    wide, _ = convert.convert(source, tmp_path / "wide", to, dtype="float32")[::-1]
    assert (kept.dtype, wide.dtype) == ("bfloat16", "float32")
    backbone = formats.read_backbone(tmp_path / "wide")
    wanted = formats.read_backbone(source)
    for path, leaf in tree.flatten(backbone.params).items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, tree.get(wanted.params, path))


def test_mixed_tensors_of_hugging_face_are_all_held_exactly(tmp_path):
    source = hugging_face_folder(tmp_path / "source", dtype=jnp.bfloat16)
    tensors = load_file(source / "model.safetensors")
    tensors["shared.weight"] = np.full_like(tensors["shared.weight"], 1 / 3, np.float32)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    convert.convert(source, tmp_path / "ours")
    held = native.read_backbone(tmp_path / "ours").params["token_embedder"]["embedding"]
    np.testing.assert_array_equal(held, np.float32(1 / 3))


def test_the_summary_says_what_was_read_and_written(tmp_path):
    source = write_small_backbone(tmp_path / "source")
    read, written = convert.convert(source, tmp_path / "out", console=Console(quiet=True))
    backbone = pj.load_backbone(source)
    assert read == convert.Summary(
        path=source,
        format="hugging_face",
        family="t5",
        parameters=tree.count(backbone.params),
        dtype="float32",
        size=sum(p.stat().st_size for p in source.iterdir()),
        files=len(list(source.iterdir())),
    )
    assert (written.format, written.files) == ("native", 3)
    assert written.parameters == read.parameters
    assert (
        pj.load_backbone(tmp_path / "out").vocabulary == (tmp_path / "out/spiece.model").resolve()
    )


# ------------------------------------------------------------------------------ whole or not at all


def test_nothing_is_overwritten_unasked(tmp_path):
    source = hugging_face_folder(tmp_path / "source")
    other = hugging_face_folder(tmp_path / "other", WRITTEN["v1_0"])
    before = files_of(other)
    with pytest.raises(InputError, match=r"not empty.*--overwrite"):
        convert.convert(source, other)
    assert files_of(other) == before
    convert.convert(source, other, overwrite=True)
    assert formats.checkpoint_format(other) == "native"
    assert set(files_of(other)) == {"config.json", "params.safetensors"}


def test_only_a_backbone_is_overwritten(tmp_path):
    source = hugging_face_folder(tmp_path / "source")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"home is not overwritten: .* is no checkpoint"):
        convert.convert(source, tmp_path / "home", overwrite=True)
    assert files_of(tmp_path / "home") == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("target", ["source", "."])
def test_a_source_is_not_replaced_by_itself(tmp_path, target):
    source = hugging_face_folder(tmp_path / "source")
    before = files_of(source)
    with pytest.raises(InputError, match=r"holds .*source itself"):
        convert.convert(source, tmp_path / target, overwrite=True)
    assert files_of(source) == before


@pytest.mark.parametrize("to", formats.FORMATS)
@pytest.mark.parametrize("before", [False, True])
def test_a_conversion_that_fails_leaves_what_was_there(tmp_path, monkeypatch, to, before):
    source = hugging_face_folder(tmp_path / "source")
    target = tmp_path / "target"
    if before:
        native.write_backbone(target, random_backbone(WRITTEN["v1_0"]))
    held = files_of(target) if before else None

    def fail(*_, **__):
        raise OSError("no space left on device")

    # Each writer's last step.
    monkeypatch.setattr(hugging_face, "_write_vocabulary", fail)
    monkeypatch.setattr(native, "copy_vocabulary", fail)
    monkeypatch.setattr(t5x, "copy_vocabulary", fail)
    with pytest.raises(OSError, match="no space left"):
        convert.convert(source, target, to, overwrite=before)
    assert (files_of(target) if target.exists() else None) == held
    assert {p.name for p in tmp_path.iterdir()} == {"source", *(["target"] if before else [])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onnx"}, "format 'onnx' is unknown; one of hugging_face, native, t5x"),
        ({"to": "native", "scanned": True}, "scanned is a layout of T5X"),
        ({"to": "native", "orbax": True}, "orbax is a layout of T5X"),
        ({"config": "t5_v1_1_base"}, "says its own configuration"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    source = hugging_face_folder(tmp_path / "source")
    with pytest.raises(InputError, match=message):
        convert.convert(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ the command line


def test_the_command(tmp_path, capsys):
    source = hugging_face_folder(tmp_path / "source")
    assert cli.main(["convert", str(source), str(tmp_path / "ours"), "--dtype", "bfloat16"]) == 0
    shown = capsys.readouterr().out
    count = f"{tree.count(random_backbone(WRITTEN['v1_1']).params):,}"
    assert all(word in shown for word in ("hugging_face", "native", "t5", count, "bfloat16"))
    assert cli.main(["convert", str(source), str(tmp_path / "ours")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["convert", str(source), str(tmp_path / "ours"), "--overwrite"]) == 0
    assert native.read_backbone(tmp_path / "ours").params["lm_head"]["kernel"].dtype == jnp.float32


def test_the_command_takes_what_a_t5x_checkpoint_lacks(tmp_path, capsys):
    folder = t5x.write_backbone(tmp_path / "checkpoint_3", random_backbone(WRITTEN["v1_1"]))
    (folder / "model_config.gin").unlink()
    command = ["convert", str(folder), str(tmp_path / "out"), "--to", "hugging_face"]
    assert cli.main(command) == 2
    assert "--backbone-config" in capsys.readouterr().err
    assert cli.main([*command, "--backbone-config", "t5_v1_1_base"]) == 0
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["feed_forward_proj"] == "gated-gelu"


def test_the_embedded_backbone_has_a_name(tmp_path):
    convert.convert("tiny", tmp_path / "out")
    again, tiny = pj.load_backbone(tmp_path / "out"), pj.load_backbone("tiny")
    assert again.config == tiny.config
    assert again.name == "tiny"
    assert dataclasses.asdict(again.config) == dataclasses.asdict(tiny.config)


# ------------------------------------------------------------------------------ memory

PEAK = """
import resource, sys, jax, jax.numpy as jnp
from peft_jax.convert import convert
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
jax.block_until_ready(jnp.ones(10) + 1)
import flax, tensorstore
before = peak()
convert(*sys.argv[1:])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["native", "t5x"])
def test_a_conversion_holds_about_one_copy_of_the_model(tmp_path, to):
    """T5 v1.1 small in float32, 308 MB, in a process of its own."""
    backbone = pj.init_backbone(pj.backbone_config("t5_v1_1_small"), jax.random.key(0))
    source = pj.save_backbone(tmp_path / "source", backbone)
    command = [sys.executable, "-c", PEAK, str(source), str(tmp_path / "out"), to]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1.6 * tree.size_in_bytes(backbone.params)
