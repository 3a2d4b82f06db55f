"""PEFT's folders: the same logits as peft, read and written, and nothing is dropped."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peft_jax as pj
from peft_jax import transformer, tree
from peft_jax.backbones.base import abstract_backbone
from peft_jax.errors import InputError
from peft_jax.exchange import load_peft, peft_config, read_peft, save_peft
from peft_jax.exchange.hugging_face import to_peft
from peft_jax.exchange.modules import our_targets, their_targets
from tests import oracle, random_adapters
from tests.families import FAMILIES, over_families, quickly

FROZEN = {
    "ia3_t5": "t5/v1_1",
    "ia3_bert": "bert/bert",
    "ia3_gpt2": "decoders/gpt2",
    "lora_gpt2": "decoders/gpt2",
    "lora_llama": "decoders/llama",
    "dora_t5": "t5/v1_1",
    "adalora_llama": "decoders/llama",
    "vera_bert": "bert/bert",
    "norms_gpt2": "decoders/gpt2",
    "prompt_t5": "t5/v1_1",
    "prefix_t5": "t5/v1_1",
    "head_bert": "bert/bert_classifier",
}
# What only a peft that is installed can say: every other method on every other family.
LIVE = (
    *("ia3_mt5", "ia3_bart", "ia3_llama", "ia3_layers", "lora_t5", "lora_bart", "lora_gpt2_all"),
    *("lora_bert", "lora_layers", "dora_gpt2", "dora_llama", "pissa_t5", "adalora_t5"),
    *(
        "adalora_gpt2",
        "adalora_pruned",
        "vera_t5",
        "vera_llama",
        "norms_t5",
        "norms_bart",
        "norms_llama",
    ),
    *("norms_gemma", "prompt_bart", "prompt_gpt2", "prompt_llama", "prompt_gemma2"),
    *("prompt_gemma3", "prompt_bert", "prompt_roberta", "p_tuning_t5", "p_tuning_gpt2"),
    *("prefix_bart", "prefix_gpt2", "prefix_mlp", "prefix_llama", "head_roberta", "head_bart"),
    *("head_t5", "head_gpt2", "head_llama"),
)


def frozen(case):
    return oracle.GOLDEN / "exchange" / case


@functools.cache
def backbone_of(case):
    if case in FROZEN:
        return pj.load_backbone(oracle.GOLDEN / FROZEN[case], dropout=0.0)
    return pj.load_backbone(oracle.live("make_exchange").cases()[case].folder, dropout=0.0)


def answers(backbone, adapter, method, batch):
    return computed(backbone, pj.merge(backbone.params, method.bind(adapter)), batch)


def computed(backbone, params, batch):
    function = transformer.classify if "classifier" in params else transformer.logits
    return np.asarray(jax.jit(functools.partial(function, backbone.config))(params, batch))


def assert_answers_are_peft_s(case, folder):
    """The adapter of a folder gives the logits that peft computed."""
    backbone, arrays = backbone_of(case), dict(np.load(folder / "oracle.npz"))
    read, wanted = read_peft(folder, backbone), arrays.pop("logits")
    found = answers(backbone, read.adapter, read.method, arrays)
    if backbone.config.kind == "encoder" and wanted.ndim == 3:
        found, wanted = found[arrays["encoder_mask"]], wanted[arrays["encoder_mask"]]
    oracle.assert_close(found, wanted, 1e-5, case)
    if wanted.ndim == 2 and not backbone.config.num_labels:
        return  # without it there is no head
    without = computed(backbone, backbone.params, arrays)
    if without.shape != wanted.shape:
        without = without[arrays["encoder_mask"]]
    assert np.abs(without - wanted).max() > 0.05 * np.abs(wanted).max()


def same_trees(one, two):
    one, two = tree.flatten(one), tree.flatten(two)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[path], err_msg=path)


# ------------------------------------------------------------------------- against peft


@pytest.mark.parametrize(
    "case", quickly(FROZEN, ("ia3_bert", "lora_gpt2", "lora_llama", "dora_t5", "prefix_t5"))
)
def test_a_folder_of_peft_s_gives_its_logits(case):
    assert_answers_are_peft_s(case, frozen(case))


@pytest.mark.parametrize("case", FROZEN)
def test_a_folder_of_peft_s_is_written_back_as_it_was(case, tmp_path):
    backbone = backbone_of(case)
    read = read_peft(frozen(case), backbone)
    save_peft(tmp_path / "again", read.adapter, read.method, backbone)
    ours = load_file(tmp_path / "again" / "adapter_model.safetensors")
    theirs = load_file(frozen(case) / "adapter_model.safetensors")
    if case.startswith("prompt"):  # without the rows that are never read
        theirs = {name: array[: len(ours[name])] for name, array in theirs.items()}
    if case == "prefix_t5":
        assert read.notes == ("columns 24 to 47 of prompt_embeddings, which PEFT never reads",)
        theirs = {name: array[:, :24] for name, array in theirs.items()}
        ours = {name: array[:, :24] for name, array in ours.items()}
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        # Where layers of a module differ in alpha or rank, B has the difference in it.
        if case != "lora_llama" or not re.search(r"(k|v)_proj", name):
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
    adapter, method = load_peft(tmp_path / "again", backbone)
    same_trees(adapter, read.adapter)
    assert method.spec == read.method.spec


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("case", LIVE)
def test_live_folders_of_peft_s_give_its_logits(case):
    assert_answers_are_peft_s(case, oracle.live("make_exchange").made(case))


@pytest.mark.oracle
@pytest.mark.parametrize(
    "case",
    [*FROZEN, *(pytest.param(case, marks=pytest.mark.slow) for case in LIVE)],
)
def test_peft_loads_what_we_write_and_gives_the_same_logits(case, tmp_path):
    make = oracle.live("make_exchange")
    folder = frozen(case) if case in FROZEN else make.made(case)
    backbone, arrays = backbone_of(case), dict(np.load(folder / "oracle.npz"))
    adapter, method = load_peft(folder, backbone)
    save_peft(tmp_path / "ours", adapter, method, backbone)
    wanted = arrays.pop("logits")
    found = make.logits(make.load(case, tmp_path / "ours"), arrays)
    oracle.assert_close(found, wanted, 3e-6, case)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("case", FROZEN)
def test_golden_files_are_what_the_installed_peft_writes(case):
    make = oracle.live("make_exchange")
    fresh, golden = (dict(np.load(f / "oracle.npz")) for f in (make.made(case), frozen(case)))
    assert fresh.keys() == golden.keys()
    for name, array in fresh.items():
        oracle.assert_close(golden[name], array, 1e-6, name)


OURS = {
    # What PEFT says in another way: on a part of a fused projection, with constants, from encoders.
    "ia3_part": (pj.ia3("attention/key"), "decoders/gpt2"),
    "lora_part": (pj.lora(2, alpha=3, targets=("attention/(query|value)", "wi")), "decoders/gpt2"),
    "rslora_part": (pj.lora(2, alpha=3, rslora=True), "decoders/gpt2"),
    "dora_part": (pj.dora(2, alpha=3), "decoders/gpt2"),
    "pissa": (pj.lora(2, init="pissa"), "decoders/llama"),
    "dora_pissa": (pj.dora(2, alpha=3, init="pissa"), "decoders/llama"),
    "freeze_a": (pj.lora(2, freeze_a=True), "decoders/llama"),
    "layers": (pj.lora(2, layers=(1,), targets="encoder/.*/(query|wo)"), "t5/mt5"),
    "two": (
        pj.compose(pj.lora(2, targets="query"), pj.lora(3, alpha=5, targets="value")),
        "decoders/llama",
    ),
    "prompts": (pj.compose(pj.prompt_tuning(2), pj.prompt_tuning(1)), "t5/v1_1"),
    "p_tuning": (pj.p_tuning(3), "decoders/llama"),
    "prefix_mlp": (pj.prefix_tuning(3, reparameterization="mlp", hidden=4), "decoders/llama"),
    "prefix_one_layer": (pj.prefix_tuning(3, where=("decoder",), places=True), "t5/mt5"),
    "adalora_layers": (pj.adalora(3, 2, layers=(0,)), "decoders/llama"),
}


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name", [n if n == "dora_part" else pytest.param(n, marks=pytest.mark.slow) for n in OURS]
)
def test_what_peft_says_in_another_way_gives_our_logits_there(name, tmp_path):
    make = oracle.live("make_exchange")
    method, model = OURS[name]
    backbone = pj.load_backbone(oracle.GOLDEN / model, dropout=0.0)
    adapter = randomised(method.init(jax.random.key(0), backbone))
    save_peft(tmp_path / "ours", adapter, method, backbone)
    case = next(c for c in make.cases().values() if c.model == model)
    batch = make.batch(case)
    import peft

    loaded = peft.PeftModel.from_pretrained(make.base(case), tmp_path / "ours").eval()
    found = make.logits(loaded, batch)
    oracle.assert_close(found, answers(backbone, adapter, method, batch), 1e-5, name)
    again, its_method = load_peft(tmp_path / "ours", backbone)
    oracle.assert_close(answers(backbone, again, its_method, batch), found, 1e-5, name)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("subject", "variant"),
    [("bert", "minilm"), ("bert", "roberta_bare"), ("bart", "bart")],
)
def test_bare_models_have_peft_s_names(subject, variant):
    peft = oracle.live("make_exchange").peft
    model = oracle.live(f"make_{subject}").build(variant)
    config = peft.LoraConfig(r=2, target_modules="all-linear")
    wanted = peft.get_peft_model_state_dict(peft.get_peft_model(model, config))
    backbone, _ = oracle.model(subject, variant)
    modules = "attention/.*|mlp/.*|pooler" if backbone.config.pooler else "attention/.*|mlp/.*"
    adapter = pj.lora(2, targets=f"({modules})").init(jax.random.key(0), backbone)
    _, tensors = to_peft(adapter, pj.lora(2, targets=f"({modules})"), backbone)
    assert {n: a.shape for n, a in tensors.items()} == {n: a.shape for n, a in wanted.items()}


@pytest.mark.oracle
def test_every_field_of_the_installed_peft_is_known():
    peft = oracle.live("make_exchange").peft
    for kind, tables in peft_config.FIELDS.items():
        cls = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        fields = {field.name for field in dataclasses.fields(cls)}
        assert not fields - set().union(*tables, peft_config._HARMLESS), kind


def randomised(stored):
    trained, fixed = tree.split_fixed(stored)
    leaves, structure = jax.tree.flatten(trained)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return tree.join(jax.tree.unflatten(structure, moved), fixed)


def random_adapter(method, family):
    backbone = random_adapters.backbone_of(family)
    return backbone, random_adapters.adapted(backbone, method)[1]


# ------------------------------------------------------------------------- names


@over_families
@pytest.mark.parametrize(
    "method",
    [pj.ia3(), pj.lora(2, targets=("attention/(query|value)", "mlp/w.*")), pj.norm_tuning()],
    ids=lambda method: method.spec["name"],
)
def test_every_family_goes_there_and_back(family, method, tmp_path):
    backbone, adapter = random_adapter(method, family)
    save_peft(tmp_path / "a", adapter, method, backbone)
    again, its_method = load_peft(tmp_path / "a", backbone)
    if family != "gpt2":  # its fused projection adapts queries, keys and values together
        same_trees(again, adapter)
    shapes = jax.eval_shape(its_method.init, jax.random.key(0), backbone)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, shapes)


def test_an_abstract_backbone_is_enough(tmp_path):
    config = FAMILIES["t5_v1_1"]
    backbone, adapter = random_adapter(pj.lora(2), "t5_v1_1")
    for each in (backbone, abstract_backbone(config)):
        save_peft(tmp_path / "a", adapter, pj.lora(2), each, overwrite=True)
        same_trees(load_peft(tmp_path / "a", each)[0], adapter)


def test_targets_are_as_short_as_they_can_be():
    there = [
        f"{s}/layers/{a}/{p}"
        for s, a in (
            ("encoder", "attention"),
            ("decoder", "self_attention"),
            ("decoder", "cross_attention"),
        )
        for p in ("query", "key")
    ]
    assert our_targets([p for p in there if p.endswith("query")], there) == ("attention/query",)
    assert our_targets(there, there) == ("attention/query", "attention/key")
    assert our_targets(there[:1], there) == ("encoder/layers/attention/query",)
    assert our_targets([there[4]], there) == ("cross_attention/query",)
    tensors = [f"h.{i}.{m}.weight" for i in range(12) for m in ("a.q", "a.k", "m.q")]
    assert their_targets([f"h.{i}.a.q" for i in range(12)], tensors) == ["a.q"]
    assert their_targets([f"h.{i}.a.k" for i in range(12)], tensors) == ["k"]
    assert their_targets(["h.1.a.k"], tensors) == ["1.a.k"]  # and not 11's
    assert set(their_targets(["h.1.a.q", "h.1.m.q", "h.2.a.k"], tensors)) == {
        *("1.a.q", "1.m.q", "2.a.k"),
    }


# ------------------------------------------------------------------------- errors


@pytest.fixture
def llama():
    return pj.load_backbone(oracle.GOLDEN / "decoders" / "llama", dropout=0.0)


def changed(tmp_path, case="lora_llama", fields=(), tensors=()):
    """A copy of a golden folder with some fields and tensors replaced; None takes one away."""
    folder = shutil.copytree(frozen(case), tmp_path / "changed")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(fields)))
    held = load_file(folder / "adapter_model.safetensors") | dict(tensors)
    held = {name: array for name, array in held.items() if array is not None}
    save_file(held, folder / "adapter_model.safetensors")
    return folder


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported; one of IA3, LORA"),
        ({"bias": "all"}, "bias 'all' of a LORA is not supported"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens \[1\] of a LORA"),
        ({"something_new": 3}, "something_new 3 of a LORA is not supported: it is unknown"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora' changes the backbone's own"),
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
        ({"r": 9}, r"lora_A has shape \(3, 8\); wanted \(9, 8\)"),
        ({"trainable_token_indices": [4]}, "trainable_token_indices"),
    ],
)
def test_fields_that_are_not_known_are_refused(tmp_path, llama, fields, message):
    with pytest.raises(InputError, match=message):
        load_peft(changed(tmp_path, fields=fields), llama)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: None}, r"q_proj.lora_A is missing"),
        ({A: np.zeros((3, 9), np.float32)}, r"q_proj.lora_A has shape \(3, 9\)"),
        ({"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}, "1 tensors are left"),
        ({A.replace("layers.0", "layers.7"): np.zeros((3, 8), np.float32)}, "'model.layers.7"),
        ({A.replace("q_proj", "qkv"): np.zeros((3, 8), np.float32)}, "is none of this llama's"),
        ({A.replace("lora_A.", "lora_embedding_A."): np.zeros(3, np.float32)}, "left over"),
    ],
)
def test_tensors_without_a_place_are_refused(tmp_path, llama, tensors, message):
    with pytest.raises(InputError, match=message):
        load_peft(changed(tmp_path, tensors=tensors), llama)


@pytest.mark.parametrize("kind", ["LORA", "IA3", "LN_TUNING", "PROMPT_TUNING", "ADALORA"])
def test_a_folder_without_tensors_is_refused(tmp_path, llama, kind):
    fields = {"peft_type": kind, "num_virtual_tokens": 2, "init_r": 2}
    if kind != "ADALORA":
        del fields["init_r"]
    if kind != "PROMPT_TUNING":
        del fields["num_virtual_tokens"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"there is no tensor of a|is missing|no target is given"):
        load_peft(tmp_path, llama)


def test_another_backbone_is_refused(llama):
    with pytest.raises(InputError, match="is none of this llama's"):
        load_peft(frozen("lora_gpt2"), llama)
    with pytest.raises(InputError, match="has shape"):
        load_peft(frozen("lora_llama"), random_adapters.backbone_of("llama"))


def test_folders_that_are_none(tmp_path, llama):
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        load_peft(tmp_path, llama)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        load_peft(tmp_path, llama)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match=r"neither adapter_model\.safetensors"):
        load_peft(tmp_path, llama)


def test_a_torch_file_is_read_too(tmp_path, llama):
    from peft_jax.torch_files import write_torch

    folder = changed(tmp_path)
    write_torch(folder / "adapter_model.bin", load_file(folder / "adapter_model.safetensors"))
    (folder / "adapter_model.safetensors").unlink()
    same_trees(load_peft(folder, llama)[0], load_peft(frozen("lora_llama"), llama)[0])


@pytest.mark.parametrize(
    ("method", "family", "message"),
    [
        (pj.bitfit(), "t5_v1_1", "PEFT has no method like 'bitfit'"),
        (pj.compose(pj.ia3(), pj.lora(2)), "llama", "holds one method; this adapter has ia3 and"),
        (pj.compose(pj.ia3(), pj.ia3("wo")), "t5_v1_1", "scales either what decoder.block.0"),
        (pj.prompt_tuning(2, where="both"), "t5_v1_1", "this adapter has 'decoder/prompt'"),
        (pj.prefix_tuning(2), "t5_v1_1", "decoder's self-attention alone; this adapter has 'dec"),
        (pj.prefix_tuning(2, where=("decoder",)), "t5_v1_1", r"prefix_tuning\(places=True\)"),
        (pj.prefix_tuning(2, where=("decoder",)), "bart", "layers 0 and 1 of an encoder-decoder"),
        (pj.vera(2), "gpt2", "all of the fused projection transformer.h.0.attn.c_attn"),
        (pj.adalora(2, 1), "gpt2", "one lora_A and lora_E for all of transformer.h.0"),
        (
            pj.compose(pj.lora(2, targets="query"), pj.lora(2, targets="key", rslora=True)),
            "llama",
            r"one rslora; the composed methods have \[False, True\]",
        ),
        (pj.compose(pj.prompt_tuning(2), pj.classification_head(3)), "bert", "a prompt beside"),
        (pj.classification_head(3), "bert", "head alone"),
    ],
)
def test_what_peft_cannot_say_is_refused(tmp_path, method, family, message):
    backbone, adapter = random_adapter(method, family)
    with pytest.raises(InputError, match=message):
        save_peft(tmp_path / "a", adapter, method, backbone)
    assert not (tmp_path / "a").exists()


def test_a_folder_in_use_is_not_overwritten(tmp_path, llama):
    adapter, method = load_peft(frozen("lora_llama"), llama)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        save_peft(tmp_path, adapter, method, llama)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_a_tree_of_another_method_is_refused(llama):
    adapter, _ = load_peft(frozen("lora_llama"), llama)
    with pytest.raises(InputError, match="but the backbone wants"):
        to_peft(adapter, pj.ia3(), llama)
