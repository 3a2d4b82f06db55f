"""Trained rows of the token embedding: which they are, what they change, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import methods, transformer, tree
from peft_jax.errors import InputError
from tests import oracle
from tests.random_adapters import abstract_init, assert_same_trees, backbone_of
from tests.small_task import write_vocabulary
from tests.test_transformer import CONFIG, random_batch

IDS = (7, 3, 56)


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """A backbone with a vocabulary, and that vocabulary."""
    import sentencepiece

    path = write_vocabulary(tmp_path_factory.mktemp("vocabulary"))
    embedding = np.random.default_rng(0).standard_normal((97, 24)).astype(np.float32)
    params = backbone_of().params | {"token_embedder": {"embedding": jnp.asarray(embedding)}}
    backbone = pj.Backbone(params, dataclasses.replace(CONFIG, vocab_size=97), "worded", path)
    return backbone, sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_are_copied_in_float32_and_the_initial_function_is_the_backbones(dtype):
    backbone, method = backbone_of(dtype=dtype), pj.vocabulary_rows(ids=IDS)
    stored = method.init(jax.random.key(0), backbone)
    embedding = np.asarray(backbone.params["token_embedder"]["embedding"])
    rows = stored["token_embedder"]["rows"]
    assert rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, embedding[list(IDS)].astype(np.float32))
    np.testing.assert_array_equal(stored["token_embedder"]["fixed"]["ids"], IDS)
    assert_same_trees(pj.merge(backbone.params, method.bind(stored)), backbone.params)


def test_the_count_is_tokens_times_width():
    backbone = pj.abstract_backbone(pj.backbone_config("t0_3b"), jnp.bfloat16)
    stored = abstract_init(pj.vocabulary_rows(ids=range(32_100, 32_128)), backbone)
    assert pj.count(stored) == 28 * 2048


def random_rows(backbone, method):
    stored = method.init(jax.random.key(0), backbone)
    rows = np.random.default_rng(0).standard_normal((len(IDS), 24)).astype(np.float32)
    stored["token_embedder"]["rows"] = jnp.asarray(rows)
    return stored, rows


def test_only_the_named_rows_are_replaced():
    backbone, method = backbone_of(), pj.vocabulary_rows(ids=IDS)
    stored, rows = random_rows(backbone, method)
    merged = pj.merge(backbone.params, method.bind(stored))
    wanted = np.array(backbone.params["token_embedder"]["embedding"])
    wanted[list(IDS)] = rows
    np.testing.assert_array_equal(merged["token_embedder"]["embedding"], wanted)
    assert_same_trees({**merged, "token_embedder": 0}, {**backbone.params, "token_embedder": 0})
    assert_same_trees(method.fold(backbone.params, stored), merged)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1_1", "v1_0"])
def test_gradients_are_the_rows_of_the_embeddings_own(version):
    """v1.0's head is tied: what predicts a token trains its row too."""
    backbone, method = backbone_of(version), pj.vocabulary_rows(ids=IDS)
    stored, _ = random_rows(backbone, method)
    trained, fixed = tree.split_fixed(stored)
    logits = functools.partial(transformer.logits, backbone.config)
    batch = random_batch()
    batch["encoder_input_tokens"][0, :2] = IDS[:2]
    cotangent = np.random.default_rng(0).standard_normal((3, 7, 57)).astype(np.float32)

    @jax.jit
    def gradients(trained):
        def merge(trained):
            return pj.merge(backbone.params, method.bind(tree.join(trained, fixed)))

        def loss(params):
            return jnp.sum(cotangent * logits(params, batch))

        return jax.grad(lambda t: loss(merge(t)))(trained), jax.grad(loss)(merge(trained))

    ours, full = gradients(trained)
    wanted = full["token_embedder"]["embedding"][jnp.asarray(IDS)]
    assert wanted[0].any()
    assert bool(wanted[2].any()) == (version == "v1_0" or IDS[2] in batch["encoder_input_tokens"])
    oracle.assert_close(ours["token_embedder"]["rows"], wanted, 1e-5)


def test_tokens_are_looked_up_in_the_vocabulary(worded):
    backbone, vocabulary = worded
    piece = vocabulary.id_to_piece(20)
    whole = next(
        vocabulary.id_to_piece(i)[1:]
        for i in range(3, vocabulary.vocab_size())
        if vocabulary.id_to_piece(i).startswith("▁")
        and vocabulary.encode(vocabulary.id_to_piece(i)[1:]) == [i]
        and vocabulary.piece_to_id(vocabulary.id_to_piece(i)[1:]) == vocabulary.unk_id()
    )
    method = pj.vocabulary_rows([piece, whole], ids=[96])
    stored = method.init(jax.random.key(0), backbone)
    wanted = [20, vocabulary.piece_to_id(f"▁{whole}"), 96]
    np.testing.assert_array_equal(stored["token_embedder"]["fixed"]["ids"], wanted)
    # One token by itself needs no list.
    (alone,) = pj.vocabulary_rows(piece).init(jax.random.key(0), backbone)["token_embedder"]["rows"]
    np.testing.assert_array_equal(alone, stored["token_embedder"]["rows"][0])


def test_the_spec_and_the_file_make_the_same_again(worded, tmp_path):
    backbone, vocabulary = worded
    method, stored = pj.vocabulary_rows(vocabulary.id_to_piece(9), [3]), None
    stored = method.init(jax.random.key(0), backbone)
    stored["token_embedder"]["rows"] += 1
    pj.save_adapter(tmp_path, stored, method, backbone)
    loaded, again = pj.load_adapter(tmp_path, backbone)
    assert_same_trees(loaded, stored)
    assert again.spec == method.spec == methods.from_spec(method.spec).spec


def test_two_methods_lie_side_by_side():
    backbone = backbone_of()
    method = pj.compose(pj.vocabulary_rows(ids=IDS), pj.ia3())
    merged = pj.merge(backbone.params, method.bind(method.init(jax.random.key(0), backbone)))
    np.testing.assert_array_equal(
        merged["token_embedder"]["embedding"], backbone.params["token_embedder"]["embedding"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs tokens or ids"),
        ({"ids": 3}, "ids 3 must be a list of token numbers"),
        ({"ids": [-1]}, "must be a list of token numbers"),
        ({"ids": ["3"]}, "must be a list of token numbers"),
        ({"ids": [97]}, "'id 97': the embedding has the rows 0 to 96 and is never resized"),
        ({"ids": [3, 4, 3]}, "'id 3': the row 3 is given twice"),
        ({"tokens": ["snow and ice"]}, "'snow and ice' is not a token .* [0-9]+ token"),
        ({"tokens": ["世"]}, "'世' is not a token of this vocabulary"),
    ],
)
def test_errors(worded, arguments, message):
    with pytest.raises(InputError, match=message):
        pj.vocabulary_rows(**arguments).init(jax.random.key(0), worded[0])


def test_tokens_need_a_vocabulary():
    with pytest.raises(InputError, match="has no vocabulary to look tokens up in; give their ids"):
        pj.vocabulary_rows("yes").init(jax.random.key(0), backbone_of())
