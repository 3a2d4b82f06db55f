"""Decoding options on the command line of `peft-jax predict`."""

import jax
import pytest

import peft_jax as pj
from peft_jax import cli
from peft_jax.inference import predict_text

TEXT = "Is it raining? yes or no"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    backbone, method = pj.load_backbone("tiny"), pj.ia3()
    pj.save_adapter(path, method.init(jax.random.key(0), backbone), method, backbone)
    return path


def predict(adapter, capsys, *flags):
    code = cli.main(["predict", "--adapter", str(adapter), "--text", TEXT, *flags])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_flags_reach_the_decoding(adapter, capsys):
    flags = ["--beams", "3", "--sequences", "2", "--max-length", "6", "--early-stopping", "never"]
    code, out, _ = predict(adapter, capsys, *flags)
    assert code == 0
    decoding = pj.Decoding(beams=3, sequences=2, max_length=6, early_stopping="never")
    wanted = predict_text(adapter, "tiny", TEXT, decoding=decoding)
    assert out.splitlines() == [f"{score:9.4f}  {text}" for text, score in wanted]
    assert wanted[0][1] >= wanted[1][1]


def test_a_seed_decides_the_samples(adapter, capsys):
    flags = ["--temperature", "2.0", "--sequences", "3", "--max-length", "6", "--min-length", "4"]
    outs = [predict(adapter, capsys, *flags, *seed)[1] for seed in ((), ("--seed", "0"))]
    assert outs[0] == outs[1]
    assert predict(adapter, capsys, *flags, "--seed", "1")[1] != outs[0]


def test_the_text_ends_before_what_stops_it(adapter):
    decoding = pj.Decoding(max_length=12, min_length=10)
    ((whole, _),) = predict_text(adapter, "tiny", TEXT, decoding=decoding)
    stop = whole[4:6]
    stopping = pj.Decoding(max_length=12, min_length=10, stop=(stop,))
    ((cut, _),) = predict_text(adapter, "tiny", TEXT, decoding=stopping)
    assert cut == whole[: whole.find(stop)].strip()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "0.5", "--beams", "3"], "temperature 0.5 samples, and beams 3 search"),
        (["--top-p", "1.5"], "top_p 1.5 must lie in (0, 1]"),
        (["--seed", "3"], "seed 3: nothing is drawn"),
        (["--choices", "a", "b", "--beams", "3"], "beams: choices and classes are ranked"),
        (["--first-token", "100000"], "first_token: token 100000 is not in a vocabulary"),
    ],
    ids=str,
)
def test_contradictions_are_one_message_and_exit_code_2(adapter, capsys, flags, message):
    code, _, err = predict(adapter, capsys, *flags)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
