"""Values in gin files: as people write them, and as T5X writes the ones that were used."""

import importlib
import re
from pathlib import Path

import pytest

import peft_jax
import peft_jax.configs
from peft_jax.backbones.gin_files import read_gin
from peft_jax.errors import InputError
from peft_jax.optimizers import OptimizerConfig

WRITTEN = """
from __gin__ import dynamic_registration
import seqio
include 'models/base.gin'  # what is not here

DROPOUT_RATE = 0.1  # a rate
ALSO = %DROPOUT_RATE
NAME = 'a # b'
MODEL = @models.EncoderDecoderModel()
network.Transformer.config = @network.T5Config()
network.T5Config:
  emb_dim = 768
  dropout_rate = %ALSO
  mlp_activations = ('gelu',
                     'linear')
  logits_via_embedding = False
  missing = %gin.REQUIRED
scope/dense.MlpBlock.intermediate_dim = 2048
"""

# As gin's config_str() prints it: headings, long values on a line of their own.
PRINTED = r"""
# Macros:
# ==============================================================================
MIXTURE_OR_TASK_NAME = \
    'a_task_with_a_long_name'

# Parameters for network.T5Config:
# ==============================================================================
network.T5Config.dropout_rate = 0.0
network.T5Config.mlp_activations = ('gelu', 'linear')
"""


def test_what_people_write(tmp_path):
    (tmp_path / "a.gin").write_text(WRITTEN)
    assert read_gin(tmp_path / "a.gin") == {
        "DROPOUT_RATE": 0.1,
        "ALSO": 0.1,
        "NAME": "a # b",
        "T5Config.emb_dim": 768,
        "T5Config.dropout_rate": 0.1,
        "T5Config.mlp_activations": ("gelu", "linear"),
        "T5Config.logits_via_embedding": False,
        "MlpBlock.intermediate_dim": 2048,
    }


def test_what_gin_prints(tmp_path):
    (tmp_path / "a.gin").write_text(PRINTED)
    assert read_gin(tmp_path / "a.gin") == {
        "MIXTURE_OR_TASK_NAME": "a_task_with_a_long_name",
        "T5Config.dropout_rate": 0.0,
        "T5Config.mlp_activations": ("gelu", "linear"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\n\nB = (1,\n2", r"a.gin, line 3: .* does not end"),
        ("a = 1\nwhat is this\n", "a.gin, line 2: 'what is this' is no statement"),
    ],
)
def test_what_is_no_gin_is_named(tmp_path, text, message):
    (tmp_path / "a.gin").write_text(text)
    with pytest.raises(InputError, match=message):
        read_gin(tmp_path / "a.gin")


def test_a_macro_of_itself_has_no_value(tmp_path):
    (tmp_path / "a.gin").write_text("A = %B\nB = %A\nC = 1\n")
    assert read_gin(tmp_path / "a.gin") == {"C": 1}


OUR_GIN = sorted((Path(peft_jax.configs.__file__).parent / "t5x").glob("*.gin"))


@pytest.mark.parametrize("file", OUR_GIN, ids=lambda file: file.stem)
def test_what_our_files_for_t5x_name_is_there(file):
    """T5X itself runs them in tests/test_t5x_bridge.py, where it is installed."""
    values = read_gin(file)
    text = file.read_text()
    for module in re.findall(r"^from peft_jax import (\w+)", text, re.MULTILINE):
        if module == "t5x_bridge":  # imports T5X: its source says what is in it
            source = (Path(peft_jax.__file__).parent / "t5x_bridge.py").read_text()
            known = set(re.findall(r"^(?:def|class) (\w+)", source, re.MULTILINE))
        else:
            known = set(dir(importlib.import_module(f"peft_jax.{module}")))
        named = set(re.findall(rf"\b{module}\.(\w+)", text))
        assert named
        assert named <= known, file
    if "OptimizerConfig.name" in values:
        prefix = "OptimizerConfig."
        given = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        OptimizerConfig(**given, total_steps=100)
    assert values or "include" in text
