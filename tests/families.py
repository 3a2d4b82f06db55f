"""A tiny configuration of every family, for the laws that hold over all of them.

No two sizes of a configuration are equal, so that a shape says which array it is; every option that
a family has is on.
"""

import dataclasses

import pytest

from peft_jax.rotary import Rope
from peft_jax.transformer import Config
from tests.test_transformer import CONFIG, V1_0

_PLAIN = {"vocab_size": 57, "d_model": 24, "d_ff": 40, "dropout": 0.0, "final_dropout": False}
_BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "norm": "layer", "gated": False}
_LEARNED = {"positions": "learned", "max_positions": 20, "attention_scale": 6**-0.5}
_HEADS = {"num_heads": 3, "d_kv": 6}

BERT = Config(
    "bert",
    **_PLAIN,
    **_BIASES,
    **_LEARNED,
    **_HEADS,
    encoder_layers=3,
    decoder_layers=0,
    activation="gelu",
    norm_position="post",
    embedding_norm=True,
    token_types=2,
    tied_head=True,
    head_bias=True,
    head_transform=True,
    pooler=True,
)
ROBERTA = dataclasses.replace(
    BERT,
    family="roberta",
    token_types=1,
    pooler=False,
    classifier_dense=True,
    count_positions=True,
    position_offset=2,
    pad_id=1,
    eos_id=2,
)
BART = Config(
    "bart",
    **_PLAIN,
    **_BIASES,
    **_LEARNED,
    **_HEADS,
    encoder_layers=3,
    decoder_layers=2,
    activation="gelu",
    norm_position="post",
    embedding_norm=True,
    embedding_scale=24**0.5,
    tied_head=True,
    head_bias=True,
    classifier_dense=True,
    position_offset=2,
    pad_id=1,
    eos_id=2,
    decoder_start_id=2,
)
GPT2 = Config(
    "gpt2",
    **_PLAIN,
    **_BIASES,
    **_LEARNED,
    **_HEADS,
    encoder_layers=0,
    decoder_layers=3,
    tied_head=True,
    count_positions=True,
    classifier_bias=False,
    pad_id=-1,
    eos_id=56,
)
LLAMA = Config(
    "llama",
    **_PLAIN,
    encoder_layers=0,
    decoder_layers=3,
    num_heads=4,
    num_kv_heads=2,
    d_kv=6,
    attention_scale=6**-0.5,
    activation="silu",
    positions="rotary",
    rope=Rope(10000.0),
    count_positions=True,
    classifier_bias=False,
    pad_id=-1,
    eos_id=2,
)
MISTRAL = dataclasses.replace(LLAMA, family="mistral", window=5, local_layers=(0, 1, 2))
QWEN2 = dataclasses.replace(LLAMA, family="qwen2", qkv_bias=True, tied_head=True)
QWEN3 = dataclasses.replace(LLAMA, family="qwen3", qk_norm=True, num_kv_heads=1)
GEMMA2 = dataclasses.replace(
    LLAMA,
    family="gemma2",
    activation="gelu_tanh",
    norm_position="sandwich",
    norm_unit_offset=True,
    embedding_scale=24**0.5,
    tied_head=True,
    attention_softcap=5.0,
    logit_softcap=3.0,
    window=5,
    local_layers=(0, 2),
    pad_id=0,
    eos_id=1,
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    family="gemma3_text",
    attention_softcap=None,
    logit_softcap=None,
    qk_norm=True,
    rope=Rope(1e6, "linear", 8.0),
    local_rope=Rope(10000.0),
)

FAMILIES = {
    "t5_v1_0": V1_0,
    "t5_v1_1": CONFIG,
    "bert": BERT,
    "roberta": ROBERTA,
    "bart": BART,
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
}
DECODERS = {name: config for name, config in FAMILIES.items() if config.kind == "decoder"}

# Together they have every option of all families; the others run with the slow tests.
QUICK = ("t5_v1_1", "bert", "gpt2", "gemma3")


def quickly(names, quick=QUICK):
    """The names as parameters, those that are not quick marked slow."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


over_families = pytest.mark.parametrize("family", quickly(FAMILIES))
over_decoders = pytest.mark.parametrize("family", quickly(DECODERS))
