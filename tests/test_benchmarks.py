"""The benchmarks run on toy sizes; what they measure is not judged here."""

import json

import pytest

from benchmarks import flops, jobs, peer, peft_jax_side, report
from tests.families import quickly


@pytest.mark.slow
def test_a_step_costs_two_forward_passes_and_full_fine_tuning_three():
    ratios = flops.flop_ratios("t5_v1_1_small", 1)
    assert ratios["ia3"] <= 2.05
    assert ratios["lora"] <= 2.05
    assert 2.5 < ratios["full"] <= 3.1


@pytest.mark.slow
@pytest.mark.parametrize("job", quickly(jobs.SHAPES, tuple(jobs.SHAPES)[:1]))
def test_every_job_runs_and_repeats_itself(tmp_path, job):
    jobs.write_inputs(tmp_path, "toy")
    settings = {"folder": tmp_path, "job": job, "method": "lora", "dtype": "float32"}
    first = peft_jax_side.prepare(settings)[0]()
    assert first == peft_jax_side.prepare(settings)[0]()


def test_parity_stops_a_comparison_of_different_losses():
    case = jobs.cases(["toy"], ["float32"], ["train"])[0]
    assert peer.check_parity(case, [1.0, 2.0], [1.0, 2.00001]) < 1e-4
    with pytest.raises(SystemExit, match="results differ by"):
        peer.check_parity(case, [1.0, 2.0], [1.0, 2.1])
    with pytest.raises(SystemExit, match="results differ by"):
        peer.check_parity(case, [1.0, float("nan")], [1.0, 2.0])


@pytest.mark.oracle
def test_a_run_against_peft_ends_in_a_page_and_a_picture(tmp_path):
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package)
    path = tmp_path / "results.json"
    options = "--sizes toy --jobs tfew --dtypes float32 --rounds 1 --least-rounds 1 --seconds 0.01"
    peer.main([*options.split(), "--no-memory", "--json", str(path)])
    results = json.loads(path.read_text())
    assert results["cases"][0]["difference"] < 1e-4
    report.write(results, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| toy f32: T-Few step, (IA)³ |" in page
    assert "torch" in page
    assert (tmp_path / "benchmarks.png").stat().st_size > 5000
