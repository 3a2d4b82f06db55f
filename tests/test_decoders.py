"""GPT-2, Llama, Mistral, Qwen and Gemma against transformers, on models with random weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import losses, scoring, transformer, tree
from peft_jax.backbones import hugging_face
from tests import oracle
from tests.families import quickly

FROZEN = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")
LIVE = (
    *("gpt2_long", "llama_long", "llama_biases", "llama_dynamic", "mistral_long", "qwen2_window"),
    *("qwen3_long", "gemma", "gemma2_long", "gemma3_long"),
)
ALL = (*FROZEN, *(pytest.param(name, marks=pytest.mark.oracle) for name in LIVE))

over_all = pytest.mark.parametrize("variant", ALL)
over_frozen = pytest.mark.parametrize("variant", FROZEN)
# What compiles a program of its own for each: the others run with the slow tests.
SOME = ("gpt2", "gemma3")
over_some = pytest.mark.parametrize("variant", quickly(FROZEN, SOME))
over_some_and_live = pytest.mark.parametrize(
    "variant", [*quickly(FROZEN, SOME), *ALL[len(FROZEN) :]]
)


def decoder(variant):
    return oracle.model("decoders", variant)


def text(arrays):
    return {"decoder_input_tokens": arrays["decoder_input_tokens"]}


def prompts(arrays):
    return {"encoder_input_tokens": arrays["decoder_input_tokens"], "choices": arrays["choices"]}


def at_words(backbone, arrays, logits):
    """The logits with 0 at padding, as the oracle has them."""
    real = arrays["decoder_input_tokens"] != backbone.config.pad_id
    return np.where(real[:, :, None], logits, 0)


@over_all
def test_logits_and_gradients_of_every_parameter_equal_transformers(variant):
    backbone, wanted = decoder(variant)

    def loss(params):
        logits = backbone.logits(params, text(wanted))
        return oracle.inner_product(logits, wanted), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(backbone.params)
    assert logits.dtype == jnp.float32
    logits = at_words(backbone, wanted, logits)
    oracle.assert_close(logits, wanted["logits"], what="each text by itself")
    oracle.assert_close(logits, wanted["padded_logits"], what="padded")
    gradients = oracle.by_hugging_face_name(backbone, gradients)
    names = {name.removeprefix("grad/") for name in wanted if name.startswith("grad/")}
    assert names == set(gradients)
    for name in names:
        oracle.assert_close(gradients[name], wanted[f"grad/{name}"], what=name)


def assert_choices(backbone, wanted, log_probs):
    log_probs = np.where(wanted["choices"] != backbone.config.pad_id, log_probs, 0)
    oracle.assert_close(log_probs, wanted["choice_log_probs"])


over_choices = pytest.mark.parametrize(
    "variant",
    [
        *quickly(FROZEN, SOME),
        *(v for v in ALL[len(FROZEN) :] if v.values != ("llama_dynamic",)),
    ],
)


@over_choices
def test_choices_behind_a_shared_prompt_equal_transformers(variant):
    backbone, wanted = decoder(variant)
    score = jax.jit(lambda p: scoring.choice_log_probs(backbone.config, p, prompts(wanted)))
    assert_choices(backbone, wanted, score(backbone.params))


@over_some
def test_choices_through_the_cache_equal_transformers(variant):
    """Two tokens of every choice at once, and then the third."""
    backbone, wanted = decoder(variant)
    config = backbone.config
    targets = wanted["choices"].reshape(-1, wanted["choices"].shape[-1])

    @jax.jit
    def log_probs(params):
        context = transformer.context(config, params, prompts(wanted))
        inputs = transformer.shift_right(config, targets, context.start)
        cache = transformer.init_cache(config, *inputs.shape)
        step = jax.tree_util.Partial(transformer.decode_step, config, params, context)
        first, cache = step(inputs[:, :2], 0, cache)
        last, _ = step(inputs[:, 2:], 2, cache)
        logits = transformer.head(config, params, jnp.concatenate([first, last], axis=1))
        return losses.token_log_probs(logits, targets)

    found = log_probs(backbone.params).reshape(wanted["choices"].shape)
    assert_choices(backbone, wanted, found)


@over_some_and_live
def test_greedy_decoding_equals_generate(variant):
    backbone, wanted = decoder(variant)
    config = dataclasses.replace(backbone.config, eos_id=int(wanted["eos_id"]), extra_eos_ids=())
    backbone = dataclasses.replace(backbone, config=config)
    given = wanted["decoder_input_tokens"]
    lengths = (given != config.pad_id).sum(1)
    for side in ("as they are", "left", "right"):
        tokens = given
        if side != "as they are":
            tokens = np.full_like(given, config.pad_id)
            for row, real, length in zip(tokens, given, lengths, strict=True):
                place = slice(len(row) - length, None) if side == "left" else slice(length)
                row[place] = real[real != config.pad_id]
        batch = {"encoder_input_tokens": tokens}
        found = pj.greedy(backbone, backbone.params, batch, wanted["generated"].shape[1])
        np.testing.assert_array_equal(found, wanted["generated"], err_msg=side)
    ended = (wanted["generated"] == config.eos_id).any(1)
    assert ended.any()
    assert not ended.all()


@pytest.mark.slow
@over_some
def test_bfloat16_stays_within_its_rounding_of_float32(variant):
    backbone, wanted = decoder(variant)
    low = dataclasses.replace(backbone, params=tree.cast(backbone.params, jnp.bfloat16))
    # The same weights in float32: what remains is the rounding of the activations.
    exact = dataclasses.replace(backbone, params=tree.cast(low.params, jnp.float32))
    low = low.replace(activation_dtype="bfloat16")
    logits, close = (
        at_words(each, wanted, jax.jit(each.logits)(each.params, text(wanted)))
        for each in (exact, low)
    )
    assert np.linalg.norm(close - logits) < 3e-2 * np.linalg.norm(logits)


# ------------------------------------------------------------------------------ checkpoints


@over_frozen
@pytest.mark.parametrize("shards", [1, 3])
def test_what_is_written_is_read_back(tmp_path, variant, shards):
    backbone, _ = decoder(variant)
    limit = tree.size_in_bytes(backbone.params) // shards + 1 if shards > 1 else 2**30
    folder = hugging_face.write_backbone(tmp_path, backbone, limit)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards > 1)
    again = pj.load_backbone(folder, dropout=0.0)
    assert again.config == backbone.config
    assert tree.flatten(again.params).keys() == tree.flatten(backbone.params).keys()
    for path, leaf in tree.flatten(backbone.params).items():
        np.testing.assert_array_equal(tree.get(again.params, path), leaf, err_msg=path)


@over_frozen
def test_a_bare_model_is_the_model_where_the_head_is_tied(tmp_path, variant):
    """The files of LlamaModel and its like lack the prefix that the models with a head have."""
    from safetensors.numpy import load_file, save_file

    backbone, _ = decoder(variant)
    folder = hugging_face.write_backbone(tmp_path, backbone)
    tensors = load_file(folder / "model.safetensors")
    bare = {n.removeprefix("model.").removeprefix("transformer."): t for n, t in tensors.items()}
    assert bare.keys() != tensors.keys()
    save_file(bare, folder / "model.safetensors")
    again = pj.load_backbone(folder, dropout=0.0)
    assert again.config == backbone.config
    if not backbone.config.tied_head:
        del bare["lm_head.weight"]
        save_file(bare, folder / "model.safetensors")
        with pytest.raises(pj.InputError, match=r"tensor lm_head.weight is missing"):
            pj.load_backbone(folder)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "transformer.h.1.attn.masked_bias"),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("gemma3", "vision_tower.vision_model.embeddings.patch_embedding.weight"),
    ],
)
def test_tensors_that_no_model_reads_are_passed_over_and_others_are_not(tmp_path, variant, name):
    from safetensors.numpy import load_file, save_file

    folder = hugging_face.write_backbone(tmp_path, decoder(variant)[0])
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: np.ones(3, np.float32)}, folder / "model.safetensors")
    pj.load_backbone(folder)
    foreign = "model.layers.0.self_attn.sinks"
    save_file(tensors | {foreign: np.ones(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(pj.InputError, match=foreign):
        pj.load_backbone(folder)


@over_all
@pytest.mark.oracle
def test_transformers_rebuilds_what_is_written(tmp_path, variant):
    make = oracle.live("make_decoders")
    wanted = decoder(variant)[1]
    backbone = pj.load_backbone(oracle.model_folder("decoders", variant))
    folder = hugging_face.write_backbone(tmp_path, backbone)
    model = make.transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    )
    np.testing.assert_array_equal(make.padded_logits(model.eval(), wanted), wanted["padded_logits"])
    first = make.fields_of(variant)[0].to_dict()
    read = {*hugging_face.FAMILIES[backbone.config.family].OPTIONS[backbone.config.family].read}
    read -= {"max_window_layers"}  # what layer_types says
    again = model.config.to_dict()
    differ = {n: (first[n], again.get(n)) for n in read if n in first and first[n] != again.get(n)}
    assert not differ, differ


@over_all
def test_the_fields_of_transformers_4_say_the_same(tmp_path, variant):
    backbone, _ = decoder(variant)
    folder = hugging_face.write_backbone(tmp_path, backbone)
    fields = json.loads((folder / "config.json").read_text())
    names = [n for n in ("rope_parameters", "layer_types") if fields.pop(n, None) is not None]
    assert names or variant.startswith("gpt2")
    (folder / "config.json").write_text(json.dumps(fields))
    if variant == "qwen3_long":  # whose windows no field of the first transformers 4 can say
        assert pj.load_backbone(folder).config.local_layers == (1, 2)
        return
    assert pj.load_backbone(folder, dropout=0.0).config == backbone.config


# ------------------------------------------------------------------------------ classifiers


@pytest.mark.oracle
@pytest.mark.parametrize("variant", [*FROZEN, "gemma", "llama_biases"])
def test_classification_heads_equal_transformers_both_ways(tmp_path, variant):
    make = oracle.live("make_decoders")
    model = make.classifier(variant)
    model.save_pretrained(tmp_path / "theirs")
    backbone = pj.load_backbone(tmp_path / "theirs")
    config = backbone.config
    assert config.num_labels == 3
    assert not config.lm_head
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, config.vocab_size - 1, (4, 11))
    tokens[1, 7:] = tokens[2, :4] = tokens[3, 1:] = config.pad_id
    inputs = make.torch_inputs(tokens, config.pad_id)
    # transformers finds the last token by the padding, whatever the mask.
    inputs["input_ids"][inputs["attention_mask"] == 0] = model.config.pad_token_id

    def classes(model):
        with make.torch.no_grad():
            return model(**inputs).logits.numpy()

    found = backbone.classify(backbone.params, {"encoder_input_tokens": tokens})
    oracle.assert_close(found, classes(model))
    folder = pj.save_backbone(tmp_path / "ours", backbone)
    again = make.transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    )
    np.testing.assert_array_equal(classes(again.eval()), classes(model))
    assert pj.load_backbone(folder).config == config


# ------------------------------------------------------------------------------ golden files


@pytest.mark.oracle
@over_frozen
def test_golden_files_are_what_the_installed_transformers_computes(variant):
    make = oracle.live("make_decoders")
    golden = decoder(variant)[1]
    fresh = make.batch(variant)
    fresh |= make.results(variant, make.build(variant), fresh)
    assert fresh.keys() == golden.keys()
    for name, array in fresh.items():
        oracle.assert_close(golden[name], array, 1e-6, name)
