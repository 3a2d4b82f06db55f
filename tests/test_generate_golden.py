"""Greedy decoding and beam search equal transformers' generate, token by token, in every family."""

import functools
import json

import numpy as np
import pytest

from peft_jax.decoding import Decoding, generate
from tests import oracle

FROZEN = {
    "t5": ("v1_0", "v1_1", "mt5"),
    "bart": ("bart",),
    "decoders": ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"),
}
LIVE = {
    "t5": ("v1_0_long", "v1_1_long"),
    "bart": ("bart_long",),
    "decoders": ("gpt2_long", "llama_long", "mistral_long", "qwen2_window", "gemma2_long"),
}
# A few compiled programs each; the others, and all cases of all, run with the slow tests.
QUICK = ("v1_1", "gpt2")
NOTHING = -1


def parameters(variants, *marks):
    return [
        pytest.param(subject, name, marks=marks, id=name)
        for subject, names in variants.items()
        for name in names
    ]


@functools.cache
def written(subject, variant):
    """Inputs, their mask, and a list of (case, {"tokens", "lengths", "scores"}) by transformers."""
    path = oracle.GOLDEN / "generate" / f"{variant}.npz"
    if path.exists():
        arrays = dict(np.load(path))
    else:
        arrays = oracle.live("make_generate").results(subject, variant)
    rows, found = len(arrays["tokens"]), []
    read = {"tokens": 0, "lengths": 0, "scores": 0}
    for case in json.loads(str(arrays["cases"])):
        n, wanted = case.get("sequences", 1), {}
        shapes = {"tokens": (rows, n, case["max_length"]), "lengths": (rows, n)}
        if case.get("beams", 1) > 1:
            shapes["scores"] = (rows, n)
        for name, shape in shapes.items():
            end = read[name] + int(np.prod(shape))
            wanted[name] = arrays[f"written/{name}"][read[name] : end].reshape(shape)
            read[name] = end
        found.append((case | {"eos_ids": tuple(case["eos_ids"])}, wanted))
    return arrays["tokens"], arrays["mask"], found


def assert_written(subject, variant, chosen):
    """Every chosen case gives transformers' tokens and scores, and padding behind the end."""
    backbone = oracle.model(subject, variant)[0]
    tokens, mask, cases = written(subject, variant)
    batch = {"encoder_input_tokens": tokens, "encoder_mask": mask}
    cases = [(case, wanted) for case, wanted in cases if chosen(case)]
    assert cases
    for case, wanted in cases:
        ours = generate(backbone, backbone.params, batch, Decoding(**case))
        np.testing.assert_array_equal(ours.lengths, wanted["lengths"], str(case))
        there = np.arange(case["max_length"]) < np.asarray(ours.lengths)[..., None]
        shown = np.where(there, ours.tokens, NOTHING)
        np.testing.assert_array_equal(shown, wanted["tokens"], str(case))
        assert (np.asarray(ours.tokens)[~there] == backbone.config.pad_id).all()
        if "scores" in wanted:
            np.testing.assert_allclose(ours.scores, wanted["scores"], 2e-5, err_msg=str(case))


def quick(case):
    """Every length penalty with 3 beams, n-grams with penalties, what is forced."""
    plain = set(case) == {"max_length", "eos_ids", "beams", "early_stopping", "length_penalty"}
    searched = plain and case["beams"] == 3 and case["early_stopping"] == "never"
    return searched or "first_token" in case or "repetition_penalty" in case


@pytest.mark.parametrize(
    ("subject", "variant"), [p for p in parameters(FROZEN) if p.values[1] in QUICK]
)
def test_equals_what_transformers_wrote(subject, variant):
    assert_written(subject, variant, quick)


@pytest.mark.parametrize(("subject", "variant"), parameters(FROZEN, pytest.mark.slow))
def test_equals_what_transformers_wrote_in_every_case(subject, variant):
    assert_written(subject, variant, lambda case: True)


@pytest.mark.parametrize(
    ("subject", "variant"), parameters(LIVE, pytest.mark.slow, pytest.mark.oracle)
)
def test_equals_what_transformers_writes_now(subject, variant):
    assert_written(subject, variant, lambda case: True)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize(("subject", "variant"), parameters(FROZEN))
def test_golden_files_are_what_the_installed_transformers_writes(subject, variant):
    fresh = oracle.live("make_generate").results(subject, variant)
    golden = np.load(oracle.GOLDEN / "generate" / f"{variant}.npz")
    assert set(fresh) == set(golden)
    for name, array in fresh.items():
        if name == "written/scores":
            np.testing.assert_allclose(array, golden[name], rtol=1e-5)
        else:
            np.testing.assert_array_equal(array, golden[name], name)


def test_the_golden_texts_end_and_do_not_end():
    ended = []
    for subject, names in FROZEN.items():
        for name in names:
            case, wanted = written(subject, name)[2][0]
            assert set(case) == {"max_length", "eos_ids"}
            ended.append(wanted["lengths"] < case["max_length"])
    assert sum(e.any() and not e.all() for e in ended) >= len(ended) - 2
