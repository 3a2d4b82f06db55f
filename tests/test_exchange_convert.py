"""`peft-jax convert` between the formats of adapters."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import peft_jax as pj
from peft_jax import cli, tree
from peft_jax.backbones import abstract_backbone
from peft_jax.errors import InputError
from peft_jax.exchange.conversion import adapter_format, convert_adapter
from peft_jax.torch_files import read_torch, write_torch
from tests import oracle
from tests.families import FAMILIES
from tests.random_adapters import adapted, backbone_of
from tests.test_exchange_files import loralib_file
from tests.test_transformer import random_backbone

EXCHANGE = oracle.GOLDEN / "exchange"
LLAMA = str(oracle.GOLDEN / "decoders" / "llama")
V1_1 = str(oracle.GOLDEN / "t5" / "v1_1")


def size_of(path):
    return sum(p.stat().st_size for p in (path.iterdir() if path.is_dir() else [path]))


@pytest.fixture
def native(tmp_path):
    """An (IA)³ of the embedded backbone, in our own file."""
    backbone = pj.load_backbone("tiny")
    adapter = adapted(backbone, pj.ia3())[1]
    pj.save_adapter(tmp_path / "native", adapter, pj.ia3(), backbone)
    return tmp_path / "native"


# ------------------------------------------------------------------------- there and back


def test_an_adapter_goes_through_every_format_and_comes_back(native, tmp_path):
    def step(source, target, **options):
        read, written, notes = convert_adapter(source, tmp_path / target, **options)
        assert (read.parameters, read.method, notes) == (written.parameters, "ia3", ())
        assert written.size == size_of(written.path)
        assert adapter_format(tmp_path / target) == written.format
        return tmp_path / target

    folder = step(native, "peft")  # our own file says which backbone it is for
    assert adapter_format(folder) == "hugging_face"
    torch = step(folder, "tfew.pt", backbone="tiny")
    archive = step(torch, "a.npz", backbone="tiny")
    last = step(archive, "last", backbone="tiny")
    backbone = pj.load_backbone("tiny")
    adapter, method = pj.load_adapter(last, backbone)
    wanted, _ = pj.load_adapter(native, backbone)
    assert method.spec == pj.ia3().spec
    for path, leaf in tree.flatten(wanted).items():
        np.testing.assert_array_equal(leaf, tree.get(adapter, path), err_msg=path)


def test_a_name_is_enough_where_no_weights_are_needed(tmp_path, native):
    """And the adapter then fits any weights of that configuration."""
    config = FAMILIES["t5_v1_1"]
    outline = abstract_backbone(config, name="some_t5")
    adapter = adapted(backbone_of("t5_v1_1"), pj.ia3())[1]
    pj.save_adapter(tmp_path / "a", adapter, pj.ia3(), outline)
    convert_adapter(tmp_path / "a", tmp_path / "a.pt")
    assert sum(array.size for array in read_torch(tmp_path / "a.pt").values()) == pj.count(adapter)
    loaded, _ = pj.load_adapter(tmp_path / "a", backbone_of("t5_v1_1"))
    assert tree.flatten(loaded).keys() == tree.flatten(adapter).keys()
    with pytest.raises(InputError, match="was made for the backbone"):
        pj.load_adapter(tmp_path / "a", backbone_of("t5_v1_0"))


def test_the_command_prints_what_it_wrote_and_what_it_did_not_need(tmp_path, capsys):
    arguments = [str(EXCHANGE / "prompt_t5"), str(tmp_path / "p.npy"), "--backbone", V1_1]
    assert cli.main(["convert", *arguments]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("format hugging_face npy", "method prompt_tuning", "parameters 24 24"):
        assert words in shown
    assert "not needed rows 3 to 5 of prompt_embeddings, which PEFT never reads" in shown
    assert np.load(tmp_path / "p.npy").shape == (3, 8)


def test_loralib_s_files_need_their_alpha(tmp_path):
    config = dataclasses.replace(FAMILIES["roberta"], d_kv=8, attention_scale=8**-0.5)
    pj.save_backbone(tmp_path / "roberta", random_backbone(config))
    loralib_file(tmp_path / "a.bin", config, head=False)
    assert adapter_format(tmp_path / "a.bin") == "loralib"
    given = {"backbone": str(tmp_path / "roberta")}
    with pytest.raises(InputError, match=r"give its run's lora_alpha \(--alpha\)"):
        convert_adapter(tmp_path / "a.bin", tmp_path / "b", **given)
    convert_adapter(tmp_path / "a.bin", tmp_path / "b", "hugging_face", alpha=5, **given)
    fields = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"]) == (2, 5)
    assert fields["target_modules"] == ["query", "value"]


def test_backbones_are_still_converted(tmp_path, capsys):
    pj.save_backbone(tmp_path / "a", backbone_of("llama"))
    assert cli.main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert pj.load_backbone(tmp_path / "b").config.family == "llama"


# ------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOURCE", "OUT"], "does not say which backbone it is for"),
        (["SOURCE", "OUT", "--backbone", "llama_9"], "no checkpoint folder at llama_9"),
        (["SOURCE", "OUT", "--backbone", LLAMA, "--to", "t5x"], "not as 't5x'"),
        (["SOURCE", "OUT", "--backbone", LLAMA, "--to", "tfew"], "T-Few adapts T5s"),
        (["SOURCE", "OUT", "--backbone", LLAMA, "--dtype", "float16"], "--dtype is for backbones"),
        (["SOURCE", "OUT", "--backbone", LLAMA, "--alpha", "3"], "alpha is for loralib's"),
        (["SOURCE", "SOURCE", "--backbone", LLAMA], "holds"),
        (["SOURCE", "FULL", "--backbone", LLAMA], "is not empty"),
        (["SOURCE", "FULL", "--backbone", LLAMA, "--overwrite"], "holds no adapter"),
        (["SOURCE", "FULL", "--backbone", LLAMA, "--to", "npz"], "is a folder; npz is one file"),
        (["SOURCE", "FULL/note.npz", "--backbone", LLAMA], "note.npz exists"),
        (["tiny", "OUT", "--backbone", "tiny"], "--backbone is for adapters; tiny is none"),
        (["NOTHING", "OUT"], "no checkpoint folder at"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, capsys, arguments, message):
    shutil.copytree(EXCHANGE / "lora_llama", tmp_path / "SOURCE")
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "note.npz").write_text("mine")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    first, second, *rest = arguments
    places = [w if w == "tiny" else str(tmp_path / w) for w in (first, second)]
    assert cli.main(["convert", *places, *rest]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_torch_files_of_other_makers_are_named(tmp_path):
    write_torch(tmp_path / "a.pt", {"weight": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match="neither T-Few's tensors"):
        adapter_format(tmp_path / "a.pt")


def test_what_is_overwritten_is_replaced_whole(tmp_path):
    target = tmp_path / "a"
    for case in ("lora_llama", "adalora_llama"):
        convert_adapter(
            EXCHANGE / case, target, "hugging_face", backbone=LLAMA, overwrite=target.exists()
        )
    assert json.loads((target / "adapter_config.json").read_text())["peft_type"] == "ADALORA"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
