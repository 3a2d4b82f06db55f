"""The list of methods: every one is in it, and what it says is what happens."""

from pathlib import Path

import jax
import pytest

import peft_jax as pj
from peft_jax.cli import main
from peft_jax.methods import METHODS, table
from tests.random_adapters import adapted, backbone_of

DOCS = Path(__file__).parents[1] / "docs" / "methods.md"


@pytest.fixture(scope="module")
def found():
    return {row.name: row for row in table.rows()}


def test_every_method_is_listed_with_its_count(found):
    assert found.keys() == METHODS.keys()
    counts = {
        "ia3": 540_672,
        "lora": 4_718_592,
        "norm_tuning": 249_856,
        "tfew_adapter": 12_934_144,
        "prompt_tuning": 20 * 2_048,
        "full": 2_849_757_184,
    }
    assert {name: found[name].parameters for name in counts} == counts


def test_places_are_modules_of_a_t5(found):
    assert found["ia3"].places == "attention/key, attention/value, mlp"
    assert found["rank_one_scaling"].places == "mlp, attention"
    assert found["tfew_adapter"].places == "norms, mlp_adapter/inner"
    assert found["full"].places == found["said"].places == "everywhere"


def test_it_says_which_methods_fold(found):
    folds = {name: row.folds for name, row in found.items()}
    assert folds["bitfit"] == "where biases are"
    for name, answer in {"lora": "yes", "ia3": "yes", "tfew_adapter": "no", "warp": "no"}.items():
        assert folds[name] == answer
    for name in METHODS:
        given = table._GIVEN.get(name, {}) | table._FITTING.get(name, {})
        assert (METHODS[name](**given).fold is None) <= (folds[name] == "no")


def test_what_is_said_to_go_into_a_bank_does(found):
    backbone = backbone_of()
    for name in ("full", "lora", "tfew_adapter"):
        given = {"reduction_factor": 6} if name == "tfew_adapter" else {}
        method, stored = adapted(backbone, METHODS[name](**given))

        def banked(stored, method=method):
            return pj.merge(backbone.params, pj.bank([(method, stored)]))

        assert found[name].banked
        jax.eval_shape(banked, stored)


def test_pefts_folders_are_named_where_they_are_written(found):
    assert {name for name, row in found.items() if row.exchanged} >= {"ia3", "lora", "norm_tuning"}
    assert not found["compacter"].exchanged


def test_a_method_is_described_by_its_factory(capsys):
    assert main(["methods", "lora"]) == 0
    shown = capsys.readouterr().out
    assert "4,718,592" in shown
    assert "pj.lora(rank=8, alpha=None" in shown
    assert "rslora: scale by alpha / sqrt(rank)" in shown
    assert "compacter" not in shown


def test_a_name_that_is_not_there_is_named(capsys):
    assert main(["methods", "loar"]) == 2
    assert "no method is named 'loar'; nearest: lora" in capsys.readouterr().err


def test_the_page_has_the_tables_that_the_code_makes(capsys):
    assert main(["methods", "--markdown"]) == 0
    methods, baselines = capsys.readouterr().out.split("\n\n")
    assert methods + "\n" == table.markdown()
    page = DOCS.read_text()
    assert methods in page, "run: peft-jax methods --markdown"
    assert baselines.strip() in page, "run: peft-jax methods --markdown"
