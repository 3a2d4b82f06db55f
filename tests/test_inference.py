"""Answers to a text, from backbones with different kinds of vocabulary."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax.errors import InputError
from peft_jax.inference import predict_text
from peft_jax.tokenizer import load_tokenizer
from tests.small_run import write_small_backbone

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
TEXT, CHOICES = "she reads a book about the world", ("history", "the lazy dog", "yes")


def decoder_folder(folder: Path, vocab_size: int | None = None) -> Path:
    """A random GPT-2 with a tokenizer, as a Hugging Face folder."""
    size = load_tokenizer(GOLDEN / "gpt2").vocab_size if vocab_size is None else vocab_size
    config = pj.Config(
        "gpt2", size, 16, 32, 2, 8, 0, 2, activation="gelu_tanh", gated=False, norm="layer",
        qkv_bias=True, out_bias=True, mlp_bias=True, positions="learned", max_positions=64,
        count_positions=True, attention_scale=8**-0.5, norm_epsilon=1e-5, tied_head=True,
        pad_id=-1, eos_id=0, decoder_start_id=0,
    )  # fmt: skip
    backbone = pj.init_backbone(config, jax.random.key(0))
    pj.save_backbone(folder, backbone)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / "gpt2" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return decoder_folder(tmp_path_factory.mktemp("gpt2"))


def saved_adapter(backbone_folder: Path, folder: Path) -> Path:
    backbone = pj.load_backbone(backbone_folder)
    method = pj.lora(2, targets=".*attention/(query|value)")
    adapter = jax.tree.map(lambda x: x + 0.1, method.init(jax.random.key(1), backbone))
    return pj.save_adapter(folder / "adapter.safetensors", adapter, method, backbone)


@pytest.mark.slow
def test_a_decoders_choices_follow_the_prompt(decoder, tmp_path):
    backbone = pj.load_backbone(decoder)
    assert backbone.vocabulary == decoder.resolve()
    adapter_file = saved_adapter(decoder, tmp_path)
    adapter, method = pj.load_adapter(adapter_file, backbone)
    params = pj.merge(backbone.params, method.bind(adapter))
    tokenizer = load_tokenizer(decoder)
    expected = {}
    for choice in CHOICES:
        ids = [*tokenizer.encode(f"{TEXT} {choice}"), tokenizer.eos_id]
        start = len(tokenizer.encode(TEXT))
        batch = {"decoder_input_tokens": np.asarray([ids[:-1]], np.int32)}
        log_probs = jax.nn.log_softmax(np.asarray(backbone.logits(params, batch))[0])
        answer = [log_probs[i - 1, ids[i]] for i in range(start, len(ids))]
        expected[choice] = np.mean(answer)
    answers = predict_text(adapter_file, str(decoder), TEXT, CHOICES)
    assert [choice for choice, _ in answers] == sorted(expected, key=expected.get, reverse=True)
    for choice, score in answers:
        assert score == pytest.approx(expected[choice], abs=1e-4)


@pytest.mark.parametrize(
    "kind", ["decoder", pytest.param("encoder_decoder", marks=pytest.mark.slow)]
)
def test_an_answer_is_written_as_text(kind, decoder, tmp_path):
    folder = decoder if kind == "decoder" else write_small_backbone(tmp_path / "backbone")
    ((answer, score),) = predict_text(
        saved_adapter(folder, tmp_path),
        str(folder),
        "There is snow",
        decoding=pj.Decoding(max_length=6),
    )
    assert score is None
    assert isinstance(answer, str)
    assert answer == answer.strip()


def test_a_vocabulary_that_does_not_fit_the_embedding(tmp_path):
    folder = decoder_folder(tmp_path / "gpt2", vocab_size=100)
    adapter = saved_adapter(folder, tmp_path)
    with pytest.raises(InputError, match="does not fit an embedding of 100 rows"):
        predict_text(adapter, str(folder), TEXT, CHOICES)


def test_a_backbone_without_a_vocabulary(tmp_path):
    folder = decoder_folder(tmp_path / "gpt2")
    adapter = saved_adapter(folder, tmp_path)
    (folder / "vocab.json").unlink()
    with pytest.raises(InputError, match="no vocabulary to read text with"):
        predict_text(adapter, str(folder), TEXT, CHOICES)


def test_a_saved_folder_takes_its_tokenizer_along(decoder, tmp_path):
    backbone = pj.load_backbone(decoder)
    again = pj.load_backbone(pj.save_backbone(tmp_path / "copy", backbone))
    assert load_tokenizer(again.vocabulary).identity == load_tokenizer(decoder).identity
    pj.save_backbone(tmp_path / "copy", again)
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["model_type"] == "gpt2"
