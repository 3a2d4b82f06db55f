"""Texts and token sequences that end a text, over the borders of tokens."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax.decoding import cut_text, stopping
from peft_jax.tokenizer import load_tokenizer
from tests import oracle
from tests.random_adapters import backbone_of
from tests.test_generate import inputs_of

TOKENIZERS = ("gpt2", "llama2", "llama3", "gemma", "qwen2", "roberta")
SAMPLE = "Stop here, naïve Fuß! ¿Qué? 停止 สวัสดี 👩‍🚀 \n\tand\u00a0so  on..."


class Spelled:
    """A tokenizer of pieces as they are given."""

    def __init__(self, pieces):
        self.pieces, self.vocab_size = pieces, len(pieces)

    def encode(self, text):
        return [self.pieces.index(letter) for letter in text]

    def decode(self, ids, *, skip_special=False):
        return "".join(self.pieces[i] for i in ids)

    def token(self, id):
        return self.pieces[id]


def run(stops, tokens):
    """Whether a text has ended behind every token of [N, T]: [N, T] bool."""
    states, ended = stops.first(len(tokens)), []
    for place in range(tokens.shape[1]):
        states = stops.next(states, jnp.asarray(tokens[:, place]))
        ended.append(np.asarray(stops.reached(states)))
    return np.stack(ended, axis=1)


@pytest.mark.parametrize("stop", [("ab",), ("aba",), ("b", "aab"), ("abab", "ba"), ("é",)])
def test_a_text_is_found_wherever_it_lies(stop):
    pieces = ["", "a", "b", "ab", "ba", "aab", "bab", "aé", "éb"]
    stops = stopping.find_stops(stop, (), len(pieces) + 2, Spelled(pieces))
    tokens = np.random.default_rng(0).integers(0, len(pieces) + 2, (300, 6))
    found = run(stops, tokens)
    for row, ended in zip(tokens, found, strict=True):
        texts = itertools.accumulate(pieces[i] if i < len(pieces) else "" for i in row)
        assert list(ended) == [any(word in text for word in stop) for text in texts]
    assert found.any()
    assert not found.all()


@pytest.mark.parametrize("sequences", [((3,),), ((1, 2), (2, 2, 1)), ((1, 1, 2), (1, 2))])
def test_a_sequence_of_tokens_is_found(sequences):
    stops = stopping.find_stops((), sequences, 5, None)
    tokens = np.random.default_rng(1).integers(0, 5, (200, 6))
    found = run(stops, tokens)
    for row, ended in zip(tokens.tolist(), found, strict=True):
        there = [
            any(tuple(row[i : i + len(s)]) == s for s in sequences for i in range(end - len(s) + 1))
            for end in range(1, 7)
        ]
        assert list(ended) == there


def test_texts_and_sequences_together():
    pieces = ["a", "b", "c"]
    stops = stopping.find_stops(("bb",), ((2, 0),), 3, Spelled(pieces))
    tokens = np.array([[0, 1, 1], [2, 0, 1], [1, 2, 1]])
    np.testing.assert_array_equal(run(stops, tokens)[:, -1], [True, True, False])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_spellings_join_to_the_text(name):
    tokenizer = load_tokenizer(oracle.GOLDEN / "tokenizers" / name)
    spellings = stopping.spellings(tokenizer, tokenizer.vocab_size + 3)
    ids = tokenizer.encode(f"a {SAMPLE}")
    text = tokenizer.decode(ids)
    joined = b"".join(spellings[i] for i in ids).decode()
    assert joined in (text, f" {text}")
    assert spellings[-3:] == (b"", b"", b"")
    assert any(len(s) == 1 and s[0] > 127 for s in spellings), "no token of part of a character"


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_equals_the_criterion_of_transformers(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = oracle.GOLDEN / "tokenizers" / name
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours, stop = load_tokenizer(folder), ("th", "e s", ".\n")
    criterion = transformers.StopStringCriteria(theirs, list(stop))
    stops = stopping.find_stops(stop, (), ours.vocab_size, ours)
    rng = np.random.default_rng(0)
    plain = [i for i in range(ours.vocab_size) if stopping.spellings(ours, ours.vocab_size)[i]]
    tokens = rng.choice(plain, (400, 8))
    # Texts are rare in random tokens: most rows are pieces of them.
    short = [i for i in plain if ours.decode([i]).strip() in ("t", "h", "e", "s", ".", "the", "")]
    tokens[100:] = rng.choice(short, (300, 8))
    found = run(stops, tokens)
    for end in range(8):
        told = criterion(torch.as_tensor(tokens[:, : end + 1]), None).numpy()
        # transformers' looks only for texts that the last token completes.
        before = found[:, end - 1] if end else np.zeros(len(tokens), bool)
        np.testing.assert_array_equal(found[~before, end], told[~before])
    assert found[:, -1].mean() > 0.1


# ------------------------------------------------------------------------------ texts


@pytest.mark.parametrize("family", ["t5_v1_1", "gpt2"])
def test_generation_ends_with_the_token_that_completes_it(family):
    backbone, batch = backbone_of(family).replace(eos_id=-1), inputs_of(family)
    free = np.asarray(pj.greedy(backbone, backbone.params, batch, 6))
    ends = (tuple(int(t) for t in free[0, 2:4]), (int(free[1, 1]),))
    decoding = pj.Decoding(max_length=6, stop_tokens=ends)
    written = pj.generate(backbone, backbone.params, batch, decoding)
    for row, (tokens, length) in enumerate(
        zip(np.asarray(written.tokens)[:, 0], np.asarray(written.lengths)[:, 0], strict=True)
    ):
        np.testing.assert_array_equal(tokens[:length], free[row, :length])
        assert (tokens[length:] == backbone.config.pad_id).all()
        text = free[row].tolist()
        wanted = [i + len(e) for e in ends for i in range(6) if tuple(text[i : i + len(e)]) == e]
        assert length == min([*wanted, 6])
    assert int(written.lengths.min()) < 6


@pytest.mark.parametrize(
    "decoding",
    [{}, pytest.param({"beams": 3, "sequences": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_tiny_model_stops_at_a_text(decoding):
    backbone = pj.load_backbone("tiny")
    tokenizer = load_tokenizer(backbone.vocabulary)
    ids = tokenizer.input_ids("Is it raining? yes or no").ids
    batch = {"encoder_input_tokens": np.asarray([ids], np.int32)}
    forced = tokenizer.encode("maybe the")[0]
    common = {"max_length": 12, "min_length": 8, "first_token": forced} | decoding
    free = pj.generate(backbone, backbone.params, batch, pj.Decoding(**common))
    text = tokenizer.decode(np.asarray(free.tokens)[0, 0, :8].tolist())
    stop = text[len(text) // 2 :][:2]
    written = pj.generate(
        backbone, backbone.params, batch, pj.Decoding(**common, stop=(stop, "never there"))
    )
    for tokens, length in zip(written.tokens[0], written.lengths[0].tolist(), strict=True):
        whole = tokenizer.decode(np.asarray(tokens[:length]).tolist())
        before = tokenizer.decode(np.asarray(tokens[: length - 1]).tolist())
        assert stop not in before
        assert stop in whole or tokens[length - 1] == backbone.config.eos_id or length == 12
    assert int(written.lengths.min()) < 12


def test_a_text_needs_a_vocabulary():
    backbone = backbone_of("t5_v1_1")
    with pytest.raises(pj.InputError, match="tokenizer="):
        pj.generate(backbone, backbone.params, inputs_of("t5_v1_1"), pj.Decoding(stop=("x",)))


def test_texts_are_cut_before_the_first_end():
    assert cut_text("one. two; three.", (";", ".")) == "one"
    assert cut_text("one", (";",)) == "one"
    assert cut_text("one", ()) == "one"
