"""Where the rows of a soft prompt come from, and what no prompt can be made of."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import transformer, tree
from peft_jax.errors import InputError
from peft_jax.methods.texts import read_embedding
from peft_jax.tokenizer import load_tokenizer
from tests import oracle
from tests.families import quickly
from tests.random_adapters import backbone_of, compiled_logits
from tests.small_task import write_vocabulary
from tests.test_transformer import CONFIG


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """A backbone with a vocabulary, and that vocabulary."""
    import sentencepiece

    path = write_vocabulary(tmp_path_factory.mktemp("vocabulary"))
    embedding = np.random.default_rng(0).standard_normal((97, 24)).astype(np.float32)
    params = backbone_of().params | {"token_embedder": {"embedding": jnp.asarray(embedding)}}
    backbone = pj.Backbone(params, dataclasses.replace(CONFIG, vocab_size=97), "worded", path)
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return backbone, vocabulary


def prompt_rows(method, backbone, seed=0, stack="encoder"):
    return np.asarray(method.init(jax.random.key(seed), backbone)[stack]["prompt"])


def token_ids(rows, backbone):
    """The token of each row; fails unless every row is an embedding."""
    embedding = np.asarray(backbone.params["token_embedder"]["embedding"], np.float32)
    equal = (rows[:, None] == embedding).all(-1)
    assert (equal.sum(1) == 1).all()
    return equal.argmax(1)


@pytest.mark.parametrize(
    ("where", "stacks"),
    [("encoder", ["encoder"]), ("decoder", ["decoder"]), ("both", ["encoder", "decoder"])],
)
def test_where_a_prompt_stands(where, stacks):
    method = pj.prompt_tuning(4, where=where)
    stored = tree.flatten(method.init(jax.random.key(0), backbone_of()))
    assert {path: x.shape for path, x in stored.items()} == {f"{s}/prompt": (4, 24) for s in stacks}
    assert len({np.asarray(x).tobytes() for x in stored.values()}) == len(stacks)


def test_random_prompts_are_uniform_within_a_half():
    rows = prompt_rows(pj.prompt_tuning(400, "random"), backbone_of())
    assert np.abs(rows).max() <= 0.5
    assert np.abs(rows).max() > 0.499
    assert abs(rows.mean()) < 5 / math.sqrt(12 * rows.size)
    assert rows.var() == pytest.approx(1 / 12, rel=5 * math.sqrt(0.8 / rows.size))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_vocabulary_prompts_are_embeddings_without_repetition(dtype):
    backbone = backbone_of(dtype=dtype)
    rows = prompt_rows(pj.prompt_tuning(20), backbone)
    assert rows.dtype == np.float32
    ids = token_ids(rows, backbone)
    assert len(set(ids)) == 20
    assert sorted(ids) != list(ids)
    every = token_ids(prompt_rows(pj.prompt_tuning(57), backbone), backbone)
    assert sorted(every) == list(range(57))


def test_vocabulary_prompts_keep_to_their_range():
    backbone = backbone_of()
    rows = prompt_rows(pj.prompt_tuning(5, vocabulary_range=(3, 8)), backbone)
    assert sorted(token_ids(rows, backbone)) == [3, 4, 5, 6, 7]
    # More rows than tokens: some repeat.
    rows = prompt_rows(pj.prompt_tuning(40, vocabulary_range=(3, 8)), backbone)
    assert set(token_ids(rows, backbone)) == {3, 4, 5, 6, 7}
    # The end of the range is cut to the vocabulary, its start is not.
    rows = prompt_rows(pj.prompt_tuning(40, vocabulary_range=(55, 5000)), backbone)
    assert set(token_ids(rows, backbone)) == {55, 56}


def test_label_prompts_are_the_means_of_the_labels_tokens(worded):
    backbone, vocabulary = worded
    labels = ("cold weather", "warm")
    embedding = np.asarray(backbone.params["token_embedder"]["embedding"], np.float64)
    encoded = [vocabulary.encode(label) for label in labels]
    assert len(encoded[0]) > 1
    wanted = [embedding[ids].mean(0) for ids in encoded]
    rows = prompt_rows(pj.prompt_tuning(6, "labels", labels=labels), backbone)
    oracle.assert_close(rows[:2], wanted, 1e-6)
    assert len(set(token_ids(rows[2:], backbone))) == 4
    only = prompt_rows(pj.prompt_tuning(2, "labels", labels=labels), backbone)
    oracle.assert_close(only, wanted, 1e-6)


def test_text_prompts_repeat_or_cut_the_text(worded):
    backbone, vocabulary = worded
    text = "There is warm weather"
    ids = vocabulary.encode(text)
    assert len(ids) > 2
    for length in (2, len(ids), 2 * len(ids) + 1):
        rows = prompt_rows(pj.prompt_tuning(length, "text", text=text), backbone)
        assert list(token_ids(rows, backbone)) == [ids[i % len(ids)] for i in range(length)]


def test_file_prompts_are_the_files_rows(tmp_path):
    array = np.random.default_rng(0).normal(size=(3, 24))
    np.save(tmp_path / "prompt.npy", array)
    rows = prompt_rows(pj.prompt_tuning(3, "file", file=tmp_path / "prompt.npy"), backbone_of())
    np.testing.assert_array_equal(rows, array.astype(np.float32))


def test_files_that_are_no_prompt_are_named(tmp_path):
    def init(name, length=3):
        method = pj.prompt_tuning(length, "file", file=tmp_path / name)
        method.init(jax.random.key(0), backbone_of())

    np.save(tmp_path / "wide.npy", np.zeros((3, 25)))
    (tmp_path / "text.npy").write_text("three rows")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    with pytest.raises(InputError, match=r"wide\.npy has shape \(3, 25\); wanted \(3, 24\)"):
        init("wide.npy")
    for name in ("text.npy", "objects.npy", "absent.npy"):
        with pytest.raises(InputError, match=rf"{name} cannot be read as \.npy"):
            init(name)


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama2"])
def test_any_tokenizer_of_a_folder_gives_a_prompts_words(worded, name):
    folder = Path(__file__).parent / "golden" / "tokenizers" / name
    tokenizer = load_tokenizer(folder)
    backbone, _ = worded
    embedding = jnp.arange(tokenizer.vocab_size * 24.0).reshape(-1, 24)
    params = backbone.params | {"token_embedder": {"embedding": embedding}}
    config = dataclasses.replace(backbone.config, vocab_size=tokenizer.vocab_size)
    large = pj.Backbone(params, config, name, folder)
    ids = tokenizer.encode("the lazy dog")
    rows = prompt_rows(pj.prompt_tuning(len(ids), "text", text="the lazy dog"), large)
    assert token_ids(rows, large).tolist() == ids
    small = dataclasses.replace(backbone, vocabulary=folder)
    with pytest.raises(InputError, match="does not fit an embedding of 97 rows"):
        prompt_rows(pj.prompt_tuning(3, "text", text="the lazy dog"), small)


def test_prompts_of_words_need_a_vocabulary_and_words(worded):
    for method in (
        pj.prompt_tuning(2, "text", text="warm"),
        pj.prompt_tuning(2, "labels", labels=["a"]),
    ):
        with pytest.raises(InputError, match="'random' has no vocabulary"):
            method.init(jax.random.key(0), backbone_of())
    with pytest.raises(InputError, match="text '  ' has no tokens"):
        pj.prompt_tuning(2, "text", text="  ").init(jax.random.key(0), worded[0])


@pytest.mark.parametrize("span", [(57, 60), (8, 8), (8, 3), (-1, 5)])
def test_an_empty_vocabulary_range_is_refused(span):
    with pytest.raises(InputError, match=r"vocabulary_range .* is empty in a vocabulary of 57"):
        pj.prompt_tuning(2, vocabulary_range=span).init(jax.random.key(0), backbone_of())


# --------------------------------------------------------------------------------------------
# Where rows stand
# --------------------------------------------------------------------------------------------
WORDS = (41, 43, 47)


def read_as_words(family, placement):
    """A backbone, and bound leaves whose rows are the embeddings of WORDS."""
    backbone = backbone_of(family)
    method = pj.prompt_tuning(len(WORDS), placement=placement, vocabulary_range=(0, 50))
    rows = read_embedding(backbone)[jnp.asarray(WORDS)]
    stack = backbone.config.input_stack
    name = "prompt" if placement == "front" else "soft_tokens"
    return backbone, pj.merge(backbone.params, method.bind({stack: {name: rows}}))


def with_words(tokens, placement, pad):
    """The tokens with WORDS among them, and the places where the tokens are now."""
    rows, places = [], []
    width = tokens.shape[1] + len(WORDS)
    for given in tokens:
        real = np.flatnonzero(given != pad)
        at = {"front": 0, "after_first": real[0] + 1, "suffix": real[-1] + 1}[placement]
        rows.append([*given[:at], *WORDS, *given[at:]])
        places.append([i for i in range(width) if not at <= i < at + len(WORDS)])
    return np.asarray(rows, np.int32), np.asarray(places)


PLACED = [
    (family, placement)
    for family in ("v1_1", "bert", "bart", "roberta")
    for placement in ("front", "after_first", "suffix")
]
PLACED_QUICKLY = [("v1_1", "suffix"), ("bert", "after_first")]


@pytest.mark.parametrize(
    ("family", "placement"),
    [p if p in PLACED_QUICKLY else pytest.param(*p, marks=pytest.mark.slow) for p in PLACED],
)
def test_rows_that_are_embeddings_read_as_words_at_their_place(family, placement):
    backbone, params = read_as_words(family, placement)
    pad = backbone.config.pad_id
    tokens = np.asarray([[5, 9, 2, 8, 6], [7, 3, 4, pad, pad], [2, pad, pad, pad, pad]], np.int32)
    words, places = with_words(tokens, placement, pad)
    batch = {"decoder_input_tokens": np.asarray([[2, 5], [2, 6], [2, 7]], np.int32)}
    run = compiled_logits(backbone.config)
    placed = run(params, batch | {"encoder_input_tokens": tokens}, None)
    plain = run(backbone.params, batch | {"encoder_input_tokens": words}, None)
    if backbone.config.kind == "encoder":
        plain = np.take_along_axis(np.asarray(plain), places[..., None], axis=1)
        real = tokens != pad
        placed, plain = np.asarray(placed)[real], plain[real]
    oracle.assert_close(placed, plain, 1e-5)


@pytest.mark.parametrize("placement", quickly(["front", "after_first", "suffix"], ("suffix",)))
def test_rows_stand_between_a_decoders_input_and_its_answers(placement):
    backbone, params = read_as_words("gpt2", placement)
    tokens = np.asarray([[5, 9, 2, 8], [7, 3, -1, -1]], np.int32)
    batch = {
        "choices": np.asarray([[[4, 56], [9, 56]], [[3, 56], [8, 56]]], np.int32),
        "choice_mask": np.ones((2, 2), bool),
    }
    words, _ = with_words(tokens, placement, -1)
    placed = pj.score_choices(backbone, params, batch | {"encoder_input_tokens": tokens})
    plain = pj.score_choices(backbone, backbone.params, batch | {"encoder_input_tokens": words})
    oracle.assert_close(placed, plain, 1e-5)


def test_every_layer_reads_its_own_rows():
    """Two layers, each run by itself with its rows in front, are the stack that has both."""
    backbone = backbone_of("v1_1")
    config, params = backbone.config, backbone.params
    method = pj.prompt_tuning(3, "random", per_layer=True)
    stored = method.init(jax.random.key(0), backbone)
    deep = stored["encoder"]["layers"]["prompt"]
    assert deep.shape == (config.encoder_layers, 3, config.d_model)
    assert len({row.tobytes() for row in np.asarray(deep).reshape(-1, config.d_model)}) == 3 * len(
        deep
    )
    batch = {"encoder_input_tokens": np.asarray([[5, 9, 2, 8]], np.int32)}
    whole = transformer.encode(config, pj.merge(params, method.bind(stored)), batch)

    one = dataclasses.replace(config, encoder_layers=1)
    norm = params["encoder"]["final_norm"]
    states = read_embedding(backbone)[batch["encoder_input_tokens"][0]]
    for i, rows in enumerate(deep):
        layer = jax.tree.map(lambda x, i=i: x[i : i + 1], params["encoder"]["layers"])
        stack = {**params["encoder"], "layers": layer, "prompt": jnp.concatenate([rows, states])}
        if i + 1 < len(deep):
            del stack["final_norm"]
        else:
            stack["final_norm"] = norm
        nothing = {"encoder_input_tokens": np.zeros((1, 0), np.int32)}
        states = transformer.encode(one, {**params, "encoder": stack}, nothing).hidden[0, 3:]
    oracle.assert_close(whole.hidden[0, 3:], states, 1e-5)


def test_deep_prompts_are_counted_and_stand_in_front():
    backbone = pj.abstract_backbone(pj.backbone_config("t5_lm_base"))
    method = pj.prompt_tuning(20, per_layer=True)
    assert pj.count(jax.eval_shape(method.init, jax.random.key(0), backbone)) == 12 * 20 * 768
    with pytest.raises(InputError, match=r"rows of each layer stand in front, not at .* 'suffix'"):
        pj.prompt_tuning(3, per_layer=True, placement="suffix")


def test_places_that_a_stack_does_not_have_are_refused():
    with pytest.raises(InputError, match="placement 'behind' is unknown; one of front, after_fir"):
        pj.prompt_tuning(3, placement="behind")
    method = pj.prompt_tuning(3, placement="after_first", where="both")
    with pytest.raises(InputError, match="'after_first' is for the stack that reads the input"):
        method.init(jax.random.key(0), backbone_of())
    for family, where in (("gpt2", "encoder"), ("bert", "decoder")):
        method = pj.prompt_tuning(3, where=where, per_layer=True)
        with pytest.raises(InputError, match=rf"where '{where}': a {family} has no such stack"):
            method.init(jax.random.key(0), backbone_of(family))


def test_specs_from_before_placements_are_read():
    old = pj.prompt_tuning(3).spec
    del old["placement"], old["per_layer"]
    assert pj.methods.from_spec(old).spec == pj.prompt_tuning(3).spec
