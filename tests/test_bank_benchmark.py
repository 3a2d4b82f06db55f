"""The benchmark of mixed batches runs on toy sizes; what it measures is not judged here."""

import json

import jax
import numpy as np
import pytest

from benchmarks import bank, bank_report, report
from peft_jax import layers


@pytest.mark.parametrize("ids", [[3, 0, 3, 1], [2, 2, 2, 2]])
def test_every_form_of_a_mixed_lora_is_what_the_layers_compute(ids):
    rng = np.random.default_rng(0)
    x, w, a, b = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((4, 5, 6), (6, 7), (4, 6, 2), (4, 2, 7))
    )
    ids = np.asarray(ids, np.int32)
    wanted = layers.linear({"kernel": w, "lora_a": a[ids], "lora_b": b[ids]}, x) - x @ w
    for name, form in bank.FORMS.items():
        found = jax.jit(form)(x, a, b, ids)
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=name)


def test_the_page_has_the_committed_results():
    page = report.page(json.loads(report.RESULTS.read_text()))
    results = json.loads(bank_report.RESULTS.read_text())
    section = bank_report.section()
    assert section
    assert section in page
    assert {result["method"] for result in results["methods"]} == set(bank.METHODS)
    assert [result["tasks"] for result in results["forms"]] == list(bank.TASKS)
    for name in bank_report.NAMES.values():
        assert f"| {name}, peft_jax |" in section
    assert "| LoRA r=8, PEFT |" in section


@pytest.mark.oracle
def test_a_run_against_peft(tmp_path):
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package)
    path = tmp_path / "bank.json"
    options = "--size toy --methods lora --tasks 8 --peer-tasks 8 --rounds 1 --seconds 0.01"
    bank.main([*options.split(), "--no-forms", "--json", str(path)])
    results = json.loads(path.read_text())
    assert results["methods"][0]["difference"] < bank.TOLERANCE
    assert "8 tasks mixed" in bank_report.section(path)
