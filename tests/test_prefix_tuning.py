"""Prefixes: against Hugging Face PEFT, against the text that they were computed of, and counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peft_jax as pj
from peft_jax import transformer, tree
from peft_jax.backbones import abstract_backbone, backbone_config
from peft_jax.errors import InputError
from peft_jax.methods.eject import eject
from peft_jax.methods.prefix_tuning import fit_prefix, prefix_tuning, text_prefix
from tests import oracle
from tests.families import quickly
from tests.random_adapters import (
    abstract_init,
    adapted,
    assert_same_trees,
    backbone_of,
    compiled_logits,
)
from tests.test_transformer import random_batch

SELF = "decoder/layers/self_attention"
CROSS = "decoder/layers/cross_attention"
ENCODER = "encoder/layers/attention"
EMBEDDING = "prompt_encoder.default.embedding.weight"


# --------------------------------------------------------------------------------------------
# Hugging Face PEFT
# --------------------------------------------------------------------------------------------
def peft_case(case):
    """Its arrays, our backbone and batch, and the file's tensors by name."""
    file = oracle.GOLDEN / f"peft_{case}.npz"
    script = oracle.live("make_peft_prompts") if not file.exists() else None
    arrays = script.oracle(case) if script else dict(np.load(file))
    variant = case.removeprefix("prefix_").removeprefix("mlp_")
    subject = "t5" if variant.startswith("v1") else "decoders"
    backbone, batch = oracle.model(subject, variant)
    return arrays, backbone, batch


def direct_from_peft(tensor, config):
    """[P, L * 2 * heads * K] as PEFT has it, layer by layer, keys before values."""
    rows = np.asarray(tensor).reshape(len(tensor), config.decoder_layers, 2, -1)
    key, value = rows.transpose(2, 1, 0, 3)
    return tree.unflatten({f"{SELF}/prefix_key": key, f"{SELF}/prefix_value": value})


def mlp_from_peft(arrays, prefix, config):
    """The MLP's tensors: PEFT's last layer holds all layers' keys and values side by side."""
    head = f"{prefix}prompt_encoder.default."

    def split(x):  # [L * 2 * W, ...] -> keys and values [L, W, ...]
        return x.reshape(config.decoder_layers, 2, -1, *x.shape[1:]).swapaxes(0, 1)

    kernels, biases = (split(arrays[f"{head}transform.2.{n}"]) for n in ("weight", "bias"))
    mlp = {
        "embedding": arrays[f"{head}embedding.weight"],
        "hidden": {
            "kernel": arrays[f"{head}transform.0.weight"].T,
            "bias": arrays[f"{head}transform.0.bias"],
        },
    }
    for name, kernel, bias in zip(("key", "value"), kernels, biases, strict=True):
        mlp[name] = {"kernel": kernel.swapaxes(1, 2), "bias": bias}
    return tree.unflatten({f"{SELF}/prefix_mlp": mlp})


def assert_as_peft(method, backbone, batch, stored, arrays, gradients):
    """Logits and gradients of a stored tree, against an oracle of make_peft_prompts."""
    assert jax.tree.map(np.shape, stored) == jax.tree.map(np.shape, abstract_init(method, backbone))
    real = np.ones(arrays["logits"].shape[:2], bool)
    if backbone.config.kind == "decoder":
        real = batch["decoder_input_tokens"] != backbone.config.pad_id

    def loss(stored):
        logits = backbone.logits(pj.merge(backbone.params, method.bind(stored)), batch)
        logits = jnp.where(real[..., None], logits, 0)
        return (logits * batch["cotangent"]).sum(), logits

    made, logits = jax.jit(jax.grad(loss, has_aux=True))(stored)
    oracle.assert_close(logits, arrays["logits"])
    wanted = tree.flatten(gradients)
    scale = max(np.abs(x).max() for x in wanted.values())
    for path, gradient in tree.flatten(made).items():
        oracle.assert_close(gradient, wanted[path], 1e-5, path, at_least=0.01 * scale)


LIVE = ["prefix_qwen3", "prefix_v1_0_long", "prefix_v1_0_square"]


@pytest.mark.parametrize(
    "case",
    [
        "prefix_gpt2",
        "prefix_llama",
        "prefix_v1_0",
        *(pytest.param(case, marks=pytest.mark.oracle) for case in LIVE),
    ],
)
def test_a_decoder_prefix_equals_peft(case):
    arrays, backbone, batch = peft_case(case)
    method = prefix_tuning(4, ("decoder",), places=backbone.config.positions == "relative")
    stored, gradients = (
        direct_from_peft(arrays[f"{kind}/{EMBEDDING}"], backbone.config)
        for kind in ("adapter", "grad")
    )
    assert_as_peft(method, backbone, batch, stored, arrays, gradients)


@pytest.mark.oracle
def test_a_prefix_behind_an_mlp_equals_peft():
    arrays, backbone, batch = peft_case("prefix_mlp_gpt2")
    method = prefix_tuning(4, reparameterization="mlp", hidden=7)
    stored, gradients = (
        mlp_from_peft(arrays, kind, backbone.config) for kind in ("adapter/", "grad/")
    )
    assert_as_peft(method, backbone, batch, stored, arrays, gradients)
    _, direct = eject(method, stored)
    wanted = direct_from_peft(arrays["saved"], backbone.config)
    jax.tree.map(lambda a, b: oracle.assert_close(a, b, 1e-6), direct, wanted)


@pytest.mark.oracle
def test_golden_files_are_what_the_installed_peft_computes():
    script = oracle.live("make_peft_prompts")
    for case in script.GOLDEN:
        golden = np.load(oracle.GOLDEN / f"peft_{case}.npz")
        for name, fresh in script.oracle(case).items():
            oracle.assert_close(fresh, golden[name], 1e-6, f"{case} {name}")


class Worded:
    """Stands for a tokenizer: words are numbers."""

    def encode(self, text):
        return [int(word) for word in text.split()]


# --------------------------------------------------------------------------------------------
# T-Few's code
# --------------------------------------------------------------------------------------------
MODULES = {"encoder": ENCODER, "decoder": SELF, "cross": CROSS}


def mlps_from_tfew(arrays, kind):
    """The stored tree that its tensors under ``kind`` are."""
    stored = {}
    for group, module in MODULES.items():

        def tensor(name, group=group):
            return arrays[f"{kind}/{group}/prefix_{name}"]

        kernels, biases = (
            np.split(tensor(f"mlp.2.{name}"), 2, axis=1) for name in ("weight", "bias")
        )
        stored[f"{module}/prefix_mlp"] = {
            "embedding": tensor("emb.weight"),
            "hidden": {"kernel": tensor("mlp.0.weight").T, "bias": tensor("mlp.0.bias")},
            "key": {"kernel": kernels[0].swapaxes(1, 2), "bias": biases[0]},
            "value": {"kernel": kernels[1].swapaxes(1, 2), "bias": biases[1]},
        }
    return tree.unflatten(stored)


def test_prefixes_of_a_text_and_their_fit_equal_tfew(monkeypatch, tmp_path):
    arrays = dict(np.load(oracle.GOLDEN / "tfew_prefix.npz"))
    backbone, batch = oracle.t5("v1_1")
    monkeypatch.setattr("peft_jax.tokenizer.load_tokenizer", lambda path: Worded())
    worded = pj.Backbone(backbone.params, backbone.config, "worded", tmp_path)
    lengths = {"encoder": 2, "decoder": 3, "cross": 2}
    target = text_prefix(worded, lengths, {"encoder": "7 3", "decoder": "9 4 5"})
    for group, module in MODULES.items():
        for leaf in ("key", "value"):
            made = tree.get(target, f"{module}/prefix_{leaf}")
            oracle.assert_close(made, arrays[f"target/{group}/{leaf}"])
    method = prefix_tuning(2, decoder_length=3, reparameterization="mlp", hidden=6, places=True)
    start, fitted = (mlps_from_tfew(arrays, kind) for kind in ("start", "fitted"))
    made, losses = fit_prefix(method, start, target, 20, optax.sgd(0.02))
    oracle.assert_close(losses, arrays["losses"], 1e-5)
    jax.tree.map(lambda a, b: oracle.assert_close(a, b, 1e-5), made, fitted)
    params = pj.merge(backbone.params, method.bind(fitted))
    oracle.assert_close(compiled_logits(backbone.config)(params, batch, None), arrays["logits"])


# --------------------------------------------------------------------------------------------
# A text's own keys and values
# --------------------------------------------------------------------------------------------
@pytest.fixture
def worded(monkeypatch, tmp_path):
    """Backbones of families, with a vocabulary in which words are numbers."""
    monkeypatch.setattr("peft_jax.tokenizer.load_tokenizer", lambda path: Worded())

    def make(family):
        backbone = backbone_of(family)
        return pj.Backbone(backbone.params, backbone.config, family, tmp_path)

    return make


@pytest.mark.parametrize("family", quickly(["gpt2", "qwen3", "llama"], ("gpt2", "qwen3")))
def test_reading_behind_a_texts_prefix_is_reading_behind_the_text(worded, family):
    backbone = worded(family)
    method = prefix_tuning(4, init="text", text="7 3 9 4")
    params = pj.merge(backbone.params, method.bind(method.init(jax.random.key(0), backbone)))
    tokens = np.asarray([[5, 11, 2, 8, 6], [3, 4, 12, 13, 9]], np.int32)
    whole = np.concatenate([np.tile([[7, 3, 9, 4]], (2, 1)), tokens], axis=1).astype(np.int32)
    run = compiled_logits(backbone.config)
    wanted = run(backbone.params, {"decoder_input_tokens": whole}, None)[:, 4:]
    oracle.assert_close(run(params, {"decoder_input_tokens": tokens}, None), wanted, 1e-5)
    # The text is repeated, or cut.
    for length, text in ((4, "7 3 9 4 5"), (6, "7 3 9 4 7 3")):
        cut = prefix_tuning(length, init="text", text="7 3 9 4").init(jax.random.key(0), backbone)
        same = prefix_tuning(length, init="text", text=text).init(jax.random.key(1), backbone)
        assert_same_trees(cut, same)


def test_texts_prefixes_of_an_encoder_decoder_are_what_its_layers_compute(worded):
    backbone = worded("v1_1")
    config, params = backbone.config, backbone.params
    method = prefix_tuning(3, init="text", text="7 0 9", target_text="5 1", decoder_length=2)
    found = tree.flatten(method.init(jax.random.key(0), backbone))
    sets = {ENCODER: 3, SELF: 2, CROSS: 3}
    inner = config.kv_heads * config.d_kv
    assert {path: x.shape for path, x in found.items()} == {
        f"{module}/{leaf}": (config.depth(module), rows, inner)
        for module, rows in sets.items()
        for leaf in ("prefix_key", "prefix_value")
    }
    # The first layers read the embeddings alone; the last of the sets reads the encoder's result.
    embedding = params["token_embedder"]["embedding"]
    encoded = transformer.encode(
        config,
        params,
        {"encoder_input_tokens": np.asarray([[7, 0, 9]]), "encoder_mask": np.ones((1, 3), bool)},
    )

    def first(x, stack, norm, attention, leaf):
        own = params[stack]["layers"]
        if norm:
            x = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + config.norm_epsilon)
            x = x * own[norm]["scale"][0]
        return x @ own[attention][leaf]["kernel"][0]

    for leaf in ("key", "value"):
        wanted = first(
            embedding[np.asarray([7, 0, 9])], "encoder", "attention_norm", "attention", leaf
        )
        oracle.assert_close(found[f"{ENCODER}/prefix_{leaf}"][0], wanted, 1e-5)
        target = embedding[np.asarray([5, 1])]
        wanted = first(target, "decoder", "self_attention_norm", "self_attention", leaf)
        oracle.assert_close(found[f"{SELF}/prefix_{leaf}"][0], wanted, 1e-5)
        wanted = first(encoded.hidden[0], "decoder", None, "cross_attention", leaf)
        oracle.assert_close(found[f"{CROSS}/prefix_{leaf}"][0], wanted, 1e-5)
    # Sets that are asked for alone are the same.
    for name, module in (("encoder", ENCODER), ("cross", CROSS)):
        alone = prefix_tuning(3, (name,), init="text", text="7 0 9")
        alone = tree.flatten(alone.init(jax.random.key(0), backbone))
        assert {path.rpartition("/")[0] for path in alone} == {module}
        for path, leaf in alone.items():
            oracle.assert_close(leaf, found[path], 1e-6)


@pytest.mark.slow
def test_an_mlp_is_fitted_to_a_texts_prefix(worded):
    backbone = worded("v1_1")
    lengths = {"encoder": 2, "decoder": 2, "cross": 2}
    target = text_prefix(backbone, lengths, {"encoder": "7 5", "decoder": "6 9"})
    drawn = prefix_tuning(2, reparameterization="mlp", hidden=32)
    stored, losses = fit_prefix(drawn, drawn.init(jax.random.key(0), backbone), target, 300)
    leaves = len(tree.flatten(target))
    layers = sum(len(x) for x in tree.flatten(target).values())
    assert losses[0] > 0.5 * layers
    made = tree.flatten(drawn.bind(stored))
    error = sum(
        float(jnp.sum((made[p] - x) ** 2) / jnp.sum(x**2)) for p, x in tree.flatten(target).items()
    )
    assert error < 0.02 * leaves
    with pytest.raises(InputError, match="are not the prefix's"):
        fit_prefix(drawn, stored, {"encoder": target["encoder"]})
    direct = prefix_tuning(2)
    with pytest.raises(InputError, match="has no MLP to fit"):
        fit_prefix(direct, target, target)


@pytest.mark.slow
def test_a_factory_fits_its_mlp_itself(worded):
    backbone = worded("gpt2")
    method = prefix_tuning(
        2, init="text", text="7 5", reparameterization="mlp", hidden=32, fit_steps=200
    )
    made = tree.flatten(method.bind(method.init(jax.random.key(0), backbone)))
    target = text_prefix(backbone, {"decoder": 2}, {"encoder": "7 5", "decoder": ""})
    for path, x in tree.flatten(target).items():
        assert jnp.sum((made[path] - x) ** 2) < 0.05 * jnp.sum(x**2), path


# --------------------------------------------------------------------------------------------
# Laws
# --------------------------------------------------------------------------------------------
METHODS = {
    "direct": (),
    "mlp": {"reparameterization": "mlp", "hidden": 5},
    "shared mlp": {"reparameterization": "mlp", "hidden": 5, "shared": True},
}


@pytest.mark.parametrize("name", METHODS)
def test_ejecting_keeps_the_bound_leaves(name):
    backbone = backbone_of("v1_1")
    made, stored = adapted(backbone, prefix_tuning(3, places=True, **dict(METHODS[name])))
    if name == "direct":
        with pytest.raises(InputError, match="'prefix_tuning' has no network to drop"):
            eject(made, stored)
        return
    direct, leaves = eject(made, stored)
    assert direct.spec["reparameterization"] == "none"
    assert_same_trees(direct.bind(leaves), made.bind(stored))
    shapes = jax.tree.map(jnp.shape, abstract_init(direct, backbone))
    assert jax.tree.map(jnp.shape, leaves) == shapes
    both = pj.compose(pj.ia3(), made)
    stored = {"ia3": abstract_init(pj.ia3(), backbone), "prefix_tuning": stored}
    stored["ia3"] = jax.tree.map(lambda x: jnp.full(x.shape, 2.0), stored["ia3"])
    composed, kept = eject(both, stored)
    assert_same_trees(composed.bind(kept), both.bind(stored))


def test_a_shared_set_serves_self_and_cross_attention():
    backbone = backbone_of("v1_1")
    method = prefix_tuning(3, shared=True)
    stored = method.init(jax.random.key(0), backbone)
    config = backbone.config
    assert pj.count(stored) == 3 * config.decoder_layers * 2 * config.inner
    bound = method.bind(stored)["decoder"]["layers"]
    assert_same_trees(bound["self_attention"], bound["cross_attention"])


@pytest.mark.slow
@pytest.mark.parametrize("where", ["encoder", "decoder", "cross"])
def test_every_set_is_read_and_alone(where):
    backbone = backbone_of("v1_1")
    run = compiled_logits(backbone.config)
    plain = run(backbone.params, random_batch(), None)
    method, stored = adapted(backbone, prefix_tuning(3, (where,)), noise=1.0)
    assert {p.rpartition("/")[0] for p in tree.flatten(stored)} == {
        {"encoder": ENCODER, "decoder": SELF, "cross": CROSS}[where]
    }
    changed = run(pj.merge(backbone.params, method.bind(stored)), random_batch(), None)
    assert np.abs(changed - plain).max() > 0.01
    # Keys that no query is near are not read: what is left is the frozen function.
    placed = adapted(backbone, prefix_tuning(3, (where,), places=True), noise=1.0)[0]
    if where == "cross":
        assert_same_trees(placed.bind(stored), method.bind(stored))
    else:
        other = run(pj.merge(backbone.params, placed.bind(stored)), random_batch(), None)
        assert np.abs(other - changed).max() > 1e-4


def test_initial_values():
    backbone = backbone_of("gpt2")

    def values(**options):
        stored = prefix_tuning(400, **options).init(jax.random.key(0), backbone)
        return np.concatenate([np.ravel(x) for x in tree.flatten(stored).values()])

    uniform, normal = values(init="uniform"), values(std=0.5)
    assert uniform.min() >= 0
    assert uniform.max() <= 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    assert normal.mean() == pytest.approx(0, abs=0.01)
    assert normal.std() == pytest.approx(0.5, rel=0.02)
    mlp = prefix_tuning(400, init="uniform", reparameterization="mlp").init(
        jax.random.key(0), backbone
    )
    mlp = mlp["decoder"]["layers"]["self_attention"]["prefix_mlp"]
    assert mlp["embedding"].min() >= 0
    assert np.abs(mlp["key"]["kernel"]).max() <= 512**-0.5
    assert np.abs(mlp["hidden"]["bias"]).max() <= 24**-0.5


@pytest.mark.parametrize(
    ("method", "backbone", "count"),
    [
        (prefix_tuning(5), "gpt2_medium", 245_760),
        (prefix_tuning(10), "gpt2_medium", 491_520),
        (prefix_tuning(5), "gpt2_large", 460_800),
        (prefix_tuning(5, reparameterization="mlp"), "gpt2_medium", 25_744_896),
        (prefix_tuning(100), "bart_large", 7_372_800),
        (prefix_tuning(200), "bart_large", 14_745_600),
        (prefix_tuning(10), "t5_lm_xl", 2_949_120),
        (prefix_tuning(10), "t5_lm_base", 552_960),
        # T-Few's: two tokens in each of three sets.
        (prefix_tuning(2, places=True), "t0_3b", 589_824),
        (prefix_tuning(6, shared=True), "t5_lm_base", 6 * 12 * 2 * 768),
        (prefix_tuning(6, ("decoder",), places=True), "t5_small", 6 * 6 * 2 * 512),
        (prefix_tuning(4), "llama_3_8b", 4 * 32 * 2 * 8 * 128),
    ],
)
def test_counts(method, backbone, count):
    backbone = abstract_backbone(backbone_config(backbone))
    assert pj.count(abstract_init(method, backbone)) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length 0 must be a whole number of at least 1"),
        ({"decoder_length": 0}, "decoder_length 0 must be"),
        ({"hidden": 2.5}, "hidden 2.5 must be"),
        ({"where": "encoder"}, "where 'encoder' must be a list of sets"),
        ({"where": ("encoder", "crossed")}, r"where \['encoder', 'crossed'\] must name each set"),
        ({"where": ("cross", "cross")}, "must name each set once"),
        ({"init": "zeros"}, "init 'zeros' is unknown; one of normal, uniform, text"),
        ({"reparameterization": "lstm"}, "reparameterization 'lstm' is unknown"),
        ({"std": -1.0}, "std -1.0 must be at least 0"),
        ({"init": "text"}, "init 'text' needs the argument text="),
        ({"text": "a"}, "a text is given, but init is 'normal'"),
        ({"shared": True, "where": ("cross",)}, "leave out where and decoder_length"),
        ({"shared": True, "init": "text", "text": "a"}, "compute different keys of a text"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        prefix_tuning(**{"length": 3, **arguments})


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("gpt2", {"where": ("cross",)}, "'cross': a gpt2 has no such attention; it has 'decoder'"),
        ("bert", {"where": ("decoder",)}, "a bert has no such attention; it has 'encoder'"),
        ("gpt2", {"shared": True}, "a gpt2 has no cross-attention to share"),
        ("llama", {"places": True}, "a llama has no relative bias"),
        ("v1_1", {"init": "text", "text": "a"}, r"target_text=\.\.\. for the decoder's prefix"),
        ("gpt2", {"init": "text", "text": "a"}, "has no vocabulary: no tokens of the text 'a'"),
    ],
)
def test_prefixes_that_a_backbone_has_no_place_for_are_refused(family, arguments, message):
    with pytest.raises(InputError, match=message):
        prefix_tuning(3, **arguments).init(jax.random.key(0), backbone_of(family))
