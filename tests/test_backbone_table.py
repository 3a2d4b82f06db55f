"""The list of backbones: every family is in it, with counts and with checks that exist."""

from pathlib import Path

import pytest

from peft_jax.backbones import CONFIGS, table
from peft_jax.backbones.families import FAMILIES
from peft_jax.cli import main
from peft_jax.errors import InputError

DOCS = Path(__file__).parents[1] / "docs" / "backbones.md"


def test_every_named_configuration_is_listed_with_its_count():
    found = {row.name: row for row in table.rows()}
    assert found.keys() == CONFIGS.keys()
    assert found["t0_3b"].parameters == 2_849_757_184
    assert found["gpt2"].parameters == 124_439_808
    assert found["llama_3_8b"].parameters == 8_030_261_248
    assert found["llama_3_8b"].heads == "32/8"
    assert found["bart_base"].layers == "6+6"


def test_every_family_says_what_was_checked():
    assert {config.family for config in CONFIGS.values()} == set(table.CHECKED)
    assert set(table.CHECKED) <= set(FAMILIES)


@pytest.mark.parametrize(
    ("wanted", "names"), [("bert", 13), ("llama_3_1", 3), ("qwen3", 6), ("gpt2_xl", 1)]
)
def test_a_family_or_the_beginning_of_a_name_chooses(wanted, names):
    assert len(table.rows([wanted])) == names


def test_a_name_that_is_not_there_is_named(capsys):
    with pytest.raises(InputError, match="no backbone or family is named 'lama_2'; nearest: llama"):
        table.rows(["lama_2"])
    assert main(["backbones", "lama_2"]) == 2
    assert "nearest: llama_2" in capsys.readouterr().err


def test_the_page_has_the_table_that_the_code_makes(capsys):
    assert main(["backbones", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed == table.markdown()
    assert printed in DOCS.read_text(), "run: peft-jax backbones --markdown"
