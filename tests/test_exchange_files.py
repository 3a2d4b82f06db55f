"""T-Few's, loralib's and NumPy's files: what they hold, there and back, and what is refused."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones import abstract_backbone, backbone_config
from peft_jax.errors import InputError
from peft_jax.exchange import (
    load_loralib,
    load_npy,
    load_npz,
    load_tfew,
    save_npy,
    save_npz,
    save_tfew,
)
from peft_jax.torch_files import read_torch, write_torch
from tests import oracle
from tests.families import FAMILIES
from tests.random_adapters import adapted, backbone_of

T5 = FAMILIES["t5_v1_1"]
EVERY = ("attention/(query|key|value|out)", "mlp/w.*")


@pytest.fixture(scope="module")
def t5():
    return backbone_of("t5_v1_1")


@pytest.fixture(scope="module")
def t0_3b():
    return abstract_backbone(backbone_config("t0_3b"), name="t0_3b")


def same_trees(one, two):
    one, two = tree.flatten(one), tree.flatten(two)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[path], err_msg=path)


# ------------------------------------------------------------------------- T-Few


def test_the_published_file_of_t0_3b_comes_back_byte_for_byte(shared_data, t0_3b, tmp_path):
    path = shared_data / "oracles" / "tfew_ia3" / "t03b_ia3_finish.pt"
    adapter, method = load_tfew(path, t0_3b)
    assert method.spec == pj.ia3().spec
    assert pj.count(adapter) == 540_672
    save_tfew(tmp_path / "again.pt", adapter, method, t0_3b)
    published, ours = read_torch(path), read_torch(tmp_path / "again.pt")
    assert list(ours) == list(published)
    assert len(ours) == 192
    manifest = json.loads((path.parent / "manifest.json").read_text())
    text = json.dumps(manifest)
    for name, array in ours.items():
        assert array.shape == published[name].shape
        assert array.tobytes() == published[name].tobytes()
        assert hashlib.sha256(array.tobytes()).hexdigest() in text, name


def test_every_vector_of_t_few_s_finds_its_layer(t0_3b, tmp_path):
    """Each tensor's number is in it: stack, layer, sub-layer."""
    tensors = {}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        for layer in range(24):
            number = 1000 * (stack == "decoder") + layer
            for sub, name in enumerate(("SelfAttention", "EncDecAttention")[:last]):
                for i, projection in enumerate("kv"):
                    key = f"{stack}.block.{layer}.layer.{sub}.{name}.{projection}.multi_lora_b"
                    tensors[key] = np.full((2048, 1), number + 100 * (2 * sub + i), np.float32)
            key = f"{stack}.block.{layer}.layer.{last}.DenseReluDense.wi_1.multi_lora_b"
            tensors[key] = np.full((5120, 1), number + 900, np.float32)
    write_torch(tmp_path / "a.pt", tensors)
    flat = tree.flatten(load_tfew(tmp_path / "a.pt", t0_3b)[0])
    for path, wanted in {
        "encoder/layers/attention/key/ia3": 0,
        "encoder/layers/attention/value/ia3": 100,
        "encoder/layers/mlp/ia3": 900,
        "decoder/layers/self_attention/key/ia3": 1000,
        "decoder/layers/self_attention/value/ia3": 1100,
        "decoder/layers/cross_attention/key/ia3": 1200,
        "decoder/layers/cross_attention/value/ia3": 1300,
        "decoder/layers/mlp/ia3": 1900,
    }.items():
        np.testing.assert_array_equal(flat.pop(path)[:, 0], wanted + np.arange(24))
    assert not flat


TFEW = {
    "ia3": pj.ia3(),
    "ia3_layers": pj.ia3(("attention/query", "mlp/wo"), layers=(0,)),
    "lora": pj.compose(pj.lora(4, alpha=1, init="tfew", targets=EVERY), pj.norm_tuning()),
    "scaling": pj.rank_one_scaling(),
}


@pytest.mark.parametrize("name", TFEW)
def test_methods_of_t_few_s_go_there_and_back(name, t5, tmp_path):
    method = TFEW[name]
    adapter = adapted(t5, method)[1]
    save_tfew(tmp_path / "a.pt", adapter, method, t5)
    again, its_method = load_tfew(tmp_path / "a.pt", t5)
    same_trees(again, adapter)
    tensors = read_torch(tmp_path / "a.pt")
    save_tfew(tmp_path / "b.pt", again, its_method, t5)
    same_trees(read_torch(tmp_path / "b.pt"), tensors)


def test_a_lora_of_another_scale_has_it_in_its_b(t5, tmp_path):
    method = pj.lora(4, alpha=6, rslora=True)
    adapter = adapted(t5, method)[1]
    save_tfew(tmp_path / "a.pt", adapter, method, t5)
    again, its_method = load_tfew(tmp_path / "a.pt", t5)
    assert its_method.spec["alpha"] == 1
    for path, leaf in tree.flatten(method.bind(adapter)).items():
        other = tree.get(its_method.bind(again), path)
        np.testing.assert_allclose(leaf, other, rtol=1e-6, err_msg=path)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["ia3", "lora", "scaling"])
def test_t_few_s_formulas_on_transformers_t5_give_our_logits(kind, tmp_path):
    """LoRALinear's forward (r-three/t-few, src/models/lora.py), written as weights."""
    make = oracle.live("make_t5")
    torch, model = make.torch, make.build("v1_1")
    generator = torch.Generator().manual_seed(5)
    backbone, arrays = oracle.t5("v1_1")
    tensors = {}

    def drawn(*shape):
        return 1 + 0.4 * torch.randn(shape, generator=generator)

    with torch.no_grad():
        for name, module in model.named_modules():
            words = name.split(".")
            if not isinstance(module, torch.nn.Linear) or words[-1] == "lm_head":
                continue
            rows, columns = module.weight.shape
            if kind == "ia3" and words[-1] in ("k", "v", "wi_1"):
                tensors[f"{name}.multi_lora_b"] = b = drawn(rows, 1)
                module.weight *= b
            elif kind == "scaling":
                tensors[f"{name}.multi_lora_a"] = a = drawn(1, columns)
                tensors[f"{name}.multi_lora_b"] = b = drawn(rows, 1)
                module.weight *= b @ a
            elif kind == "lora":
                tensors[f"{name}.lora_a"] = a = 0.3 * drawn(3, columns)
                tensors[f"{name}.lora_b"] = b = 0.3 * drawn(rows, 3)
                module.weight += b @ a / 3
        logits = model(**make.torch_inputs(arrays)).logits.numpy()
    torch.save(tensors, tmp_path / "a.pt")
    adapter, method = load_tfew(tmp_path / "a.pt", backbone)
    params = pj.merge(backbone.params, method.bind(adapter))
    oracle.assert_close(backbone.logits(params, arrays), logits, 1e-5)


K = "encoder.block.0.layer.0.SelfAttention.k"
# d_model 24 and inner 18 of the small T5
GOOD = {f"encoder.block.{i}.layer.0.SelfAttention.k.multi_lora_b": (0, 1) for i in range(3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{K}.multi_lora_b": np.ones((7, 1))}, r"multi_lora_b has shape \(7, 1\); wanted"),
        ({f"{K}.multi_lora_b": np.ones((7, 2))}, "scales with rank 2"),
        ({f"{K}.multi_lora_c": np.ones((7, 1))}, r"k\.multi_lora_c' is none of this t5's"),
        ({"encoder.block.9.layer.0.SelfAttention.k.multi_lora_b": np.ones((7, 1))}, "none of this"),
        ({f"{K.replace('.k', '.q')}.multi_lora_a": np.ones((1, 7))}, "but no multi_lora_b"),
        ({f"{K.replace('.k', '.q')}.lora_a": np.ones((2, 7))}, "q.lora_b is missing"),
        ({"prompt": np.ones((2, 2))}, "'prompt' is none of this t5's"),
    ],
)
def test_tensors_that_are_none_of_t_few_s_are_refused(t5, tmp_path, change, message):
    save_tfew(tmp_path / "a.pt", adapted(t5, pj.ia3())[1], pj.ia3(), t5)
    write_torch(tmp_path / "a.pt", read_torch(tmp_path / "a.pt") | change)
    with pytest.raises(InputError, match=message):
        load_tfew(tmp_path / "a.pt", t5)


@pytest.mark.parametrize(
    ("method", "family", "message"),
    [
        (pj.prompt_tuning(3), "t5_v1_1", "no method like 'prompt_tuning'; they have ia3, lora"),
        (pj.lora(2, dropout=0.1), "t5_v1_1", "T-Few's LoRA has no dropout"),
        (pj.ia3(), "t5_v1_0", "a gated feed-forward alone"),
        (pj.ia3(inputs="out"), "t5_v1_1", "scales what a projection computes"),
        (pj.compose(pj.ia3(), pj.rank_one_scaling("key")), "t5_v1_1", "two methods meet at"),
        (pj.ia3(), "bert", "T-Few adapts T5s; the backbone is a bert"),
    ],
)
def test_what_t_few_s_files_cannot_say_is_refused(method, family, message, tmp_path):
    backbone = backbone_of(family)
    adapter = adapted(backbone, method)[1]
    with pytest.raises(InputError, match=message):
        save_tfew(tmp_path / "a.pt", adapter, method, backbone)
    assert not (tmp_path / "a.pt").exists()


# ------------------------------------------------------------------------- loralib


def loralib_file(path, config, rank=2, parts=2, head=True):
    """A file as loralib and torch.save write it for a RoBERTa or a GPT-2 of this configuration."""
    rng = np.random.default_rng(0)
    d, inner = config.d_model, config.num_heads * config.d_kv
    tensors = {}
    for i in range(config.encoder_layers or config.decoder_layers):
        if config.family == "gpt2":
            name = f"transformer.h.{i}.attn.c_attn"
            tensors[f"{name}.lora_A"] = rng.standard_normal((rank * parts, d))
            tensors[f"{name}.lora_B"] = rng.standard_normal((inner * parts, rank))
            continue
        for projection in ("query", "value"):
            name = f"roberta.encoder.layer.{i}.attention.self.{projection}"
            tensors[f"{name}.lora_A"] = rng.standard_normal((rank, d))
            tensors[f"{name}.lora_B"] = rng.standard_normal((inner, rank))
    if head and config.family == "roberta":
        for name, width in (("dense", d), ("out_proj", 3)):
            tensors[f"classifier.{name}.weight"] = rng.standard_normal((width, d))
            tensors[f"classifier.{name}.bias"] = rng.standard_normal(width)
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    write_torch(path, tensors)
    return tensors


def test_a_roberta_of_loralib_s_with_its_head(tmp_path):
    backbone = backbone_of("roberta")
    tensors = loralib_file(tmp_path / "a.bin", backbone.config)
    adapter, method = load_loralib(tmp_path / "a.bin", backbone, alpha=6)
    lora, head = method.spec["methods"]
    assert (lora["rank"], lora["alpha"], lora["targets"]) == (
        *(2, 6),
        ["attention/query", "attention/value"],
    )
    assert (head["name"], head["labels"]) == ("classification_head", 3)
    np.testing.assert_array_equal(
        adapter["classification_head"]["classifier"]["out"]["kernel"],
        tensors["classifier.out_proj.weight"].T,
    )
    folded = pj.compose(pj.lora(**{k: v for k, v in lora.items() if k != "name"})).fold(
        backbone.params, adapter["lora"]
    )
    for projection in ("query", "value"):
        path = f"encoder/layers/attention/{projection}/kernel"
        name = f"roberta.encoder.layer.1.attention.self.{projection}"
        update = 6 / 2 * tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"]
        own = np.asarray(tree.get(backbone.params, path)[1])
        np.testing.assert_allclose(tree.get(folded, path)[1], own + update.T, atol=1e-5)


@pytest.mark.parametrize(("parts", "adapted_parts"), [(2, "query value"), (3, "query key value")])
def test_a_gpt2_of_loralib_s_has_factors_for_parts_of_its_fused_projection(
    tmp_path, parts, adapted_parts
):
    backbone = backbone_of("gpt2")
    tensors = loralib_file(tmp_path / "a.bin", backbone.config, parts=parts)
    adapter, method = load_loralib(tmp_path / "a.bin", backbone, alpha=32)
    folded = method.fold(backbone.params, adapter)
    name, width = "transformer.h.2.attn.c_attn", backbone.config.num_heads * backbone.config.d_kv
    for part in ("query", "key", "value"):
        path = f"decoder/layers/self_attention/{part}/kernel"
        wanted = np.asarray(tree.get(backbone.params, path)[2])
        if part in adapted_parts.split():
            i = adapted_parts.split().index(part)
            a = tensors[f"{name}.lora_A"][2 * i : 2 * i + 2]
            b = tensors[f"{name}.lora_B"][width * i : width * (i + 1)]
            wanted = wanted + 16 * (b @ a).T
        np.testing.assert_allclose(tree.get(folded, path)[2], wanted, atol=1e-4)


def test_loralib_s_tensors_without_a_place_are_refused(tmp_path):
    backbone = backbone_of("roberta")
    tensors = loralib_file(tmp_path / "a.bin", backbone.config)
    key = "roberta.encoder.layer.0.attention.self.query.lora_A"
    for change, message in (
        ({"roberta.pooler.dense.weight": np.ones((2, 2))}, "is none of this roberta's"),
        ({key: np.ones((2, 5), np.float32)}, r"query has lora_A \(2, 5\)"),
        ({key: None}, "query.lora_A is missing"),
    ):
        held = {n: a for n, a in (tensors | change).items() if a is not None}
        write_torch(tmp_path / "b.bin", held)
        with pytest.raises(InputError, match=message):
            load_loralib(tmp_path / "b.bin", backbone, alpha=1)


# ------------------------------------------------------------------------- NumPy


@pytest.mark.parametrize("name", ["sst2", "rte", "mrpc"])
def test_published_prompts_come_back_byte_for_byte(shared_data, tmp_path, name):
    folder = shared_data / "oracles" / "prompt_tuning" / "t5_1_1_lm100k_base"
    backbone = abstract_backbone(backbone_config("t5_lm_base"))
    adapter, method = load_npy(folder / f"{name}.npy", backbone)
    assert method.spec["length"] == 100
    save_npy(tmp_path / "a.npy", adapter, method, backbone)
    assert np.load(tmp_path / "a.npy").tobytes() == np.load(folder / f"{name}.npy").tobytes()


def test_a_prompt_may_be_float64(tmp_path, t5):
    rows = np.random.default_rng(0).standard_normal((5, T5.d_model))
    np.save(tmp_path / "a.npy", rows)
    adapter, method = load_npy(tmp_path / "a.npy", t5)
    assert adapter["encoder"]["prompt"].dtype == jnp.float32
    np.testing.assert_array_equal(adapter["encoder"]["prompt"], rows.astype(np.float32))
    bound = method.bind(adapter)
    assert jax.tree.map(jnp.shape, bound) == {"encoder": {"prompt": (5, T5.d_model)}}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 7)), r"holds float64 \(5, 7\); wanted floats \[length, "),
        (np.zeros((5, T5.d_model), np.int32), "holds int32"),
        (np.zeros(T5.d_model), "wanted floats"),
        (np.zeros((0, T5.d_model)), "wanted floats"),
        (np.array([{}], object), "cannot be read as .npy"),
    ],
)
def test_arrays_that_are_no_prompt_are_refused(tmp_path, t5, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        load_npy(tmp_path / "a.npy", t5)


def test_an_npy_file_holds_prompts_alone(tmp_path, t5):
    for method in (pj.ia3(), pj.prompt_tuning(2, where="both")):
        adapter = adapted(t5, method)[1]
        with pytest.raises(InputError, match=r"holds a prompt in front of the input; this .* has"):
            save_npy(tmp_path / "a.npy", adapter, method, t5)


@pytest.mark.parametrize(
    "method",
    [pj.ia3(), pj.compose(pj.lora(2), pj.prompt_tuning(2)), pj.vera(3)],
    ids=lambda m: m.spec["name"],
)
def test_any_adapter_goes_into_an_archive(tmp_path, t5, method):
    adapter = adapted(t5, method)[1]
    save_npz(tmp_path / "a.npz", adapter, method, t5, {"task": "rte"})
    again, its_method = load_npz(tmp_path / "a.npz", t5)
    same_trees(again, adapter)
    assert its_method.spec == method.spec
    assert set(np.load(tmp_path / "a.npz").files) == {"peft_jax.adapter", *tree.flatten(adapter)}


def test_an_archive_is_checked_as_an_adapter_file_is(tmp_path, t5):
    save_npz(tmp_path / "a.npz", adapted(t5, pj.ia3())[1], pj.ia3(), t5)
    with pytest.raises(InputError, match="was made for the backbone"):
        load_npz(tmp_path / "a.npz", backbone_of("t5_v1_0"))
    np.savez(tmp_path / "b.npz", a=np.zeros(3))
    with pytest.raises(InputError, match=r"no array 'peft_jax\.adapter'"):
        load_npz(tmp_path / "b.npz", t5)
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    for path in (tmp_path / "c.npz", tmp_path / "none.npz"):
        with pytest.raises(InputError, match=r"cannot be read as \.npz"):
            load_npz(path, t5)
