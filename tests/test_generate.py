"""Greedy decoding: equal to the full pass token by token, and to transformers' generate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import transformer
from tests import oracle
from tests.test_transformer import CONFIG, V1_0, adapted, random_backbone, random_batch

METHODS = {
    "frozen": (),
    "ia3 and lora": (pj.ia3(), pj.lora(2)),
    "encoder prompt": (pj.prompt_tuning(3),),
    "both prompts": (pj.prompt_tuning(3, where="both"), pj.ia3()),
}


def by_full_passes(backbone, params, batch, length):
    """The definition: the whole sequence is decoded again for every token."""
    config = backbone.config
    rows = len(batch["encoder_input_tokens"])
    tokens = np.full((rows, length), config.pad_id, np.int32)
    done = np.zeros(rows, bool)
    for step in range(length):
        inputs = transformer.shift_right(config, jnp.asarray(tokens))
        logits = backbone.logits(params, {**batch, "decoder_input_tokens": inputs})
        best = np.asarray(jnp.argmax(logits[:, step], axis=-1))
        tokens[:, step] = np.where(done, config.pad_id, best)
        done |= tokens[:, step] == config.eos_id
    return tokens


@pytest.mark.parametrize("config", [CONFIG, V1_0], ids=["v1_1", "v1_0"])
@pytest.mark.parametrize("name", METHODS)
def test_the_cache_equals_full_passes(config, name):
    backbone = random_backbone(config)
    params = backbone.params
    if METHODS[name]:
        method, stored = adapted(backbone, *METHODS[name])
        params = pj.merge(params, method.bind(stored))
    batch = random_batch(config)
    del batch["decoder_input_tokens"]
    tokens = pj.greedy(backbone, params, batch, 9)
    np.testing.assert_array_equal(tokens, by_full_passes(backbone, params, batch, 9))


@pytest.mark.parametrize("variant", oracle.T5)
def test_agrees_with_transformers(variant):
    backbone, arrays = oracle.t5(variant)
    config = dataclasses.replace(backbone.config, eos_id=int(arrays["eos_id"]))
    backbone = dataclasses.replace(backbone, config=config)
    batch = {k: arrays[k] for k in ("encoder_input_tokens", "encoder_mask")}
    wanted = arrays["generated"]
    tokens = np.asarray(pj.greedy(backbone, backbone.params, batch, wanted.shape[1]))
    np.testing.assert_array_equal(tokens, wanted)
    assert (wanted == config.eos_id).any(), "no row ends, so nothing is learnt about the end"


def test_the_golden_rows_end_and_do_not_end():
    rows = [oracle.t5(variant)[1] for variant in oracle.FROZEN]
    ended = np.concatenate([(r["generated"] == r["eos_id"]).any(axis=1) for r in rows])
    assert ended.any()
    assert not ended.all()


def test_nothing_stands_behind_the_end():
    backbone = random_backbone()
    batch = random_batch()
    first = np.asarray(pj.greedy(backbone, backbone.params, batch, 6))[:, 2]
    config = dataclasses.replace(backbone.config, eos_id=int(first[0]))
    ended = dataclasses.replace(backbone, config=config)
    row = np.asarray(pj.greedy(ended, backbone.params, batch, 6))[0]
    end = int(np.argmax(row == config.eos_id))
    assert row[end] == config.eos_id
    assert (row[end + 1 :] == config.pad_id).all()


def test_another_adapter_compiles_nothing():
    from peft_jax.generate import _greedy

    backbone, batch = random_backbone(), random_batch()
    before = _greedy._cache_size()
    results = []
    for seed in range(3):
        method, stored = adapted(backbone, pj.ia3(), seed=seed)
        results.append(
            pj.greedy(backbone, pj.merge(backbone.params, method.bind(stored)), batch, 5)
        )
    assert _greedy._cache_size() == before + 1
    assert any(not np.array_equal(results[0], other) for other in results[1:])


def test_low_precision_decodes(capsys):
    backbone = random_backbone(dtype="bfloat16").replace(activation_dtype="bfloat16")
    tokens = pj.greedy(backbone, backbone.params, random_batch(), 4)
    assert tokens.dtype == jnp.int32
    assert int(jax.device_get(tokens).max()) < CONFIG.vocab_size


def test_bad_length():
    backbone = random_backbone()
    with pytest.raises(pj.InputError, match="max_length 0"):
        pj.greedy(backbone, backbone.params, random_batch(), 0)
