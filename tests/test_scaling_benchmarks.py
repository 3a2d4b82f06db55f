"""The benchmarks of scale run on toy sizes and end in their sections of the page."""

import json

import numpy as np
import pytest

from benchmarks import depth, devices, gpu, jobs, qwix_lora, qwix_sides
from benchmarks import scaling_report as page

MACHINE = {"cpu": "a CPU", "cores": 1, "of": 4, "date": "2026-11-21"}


@pytest.mark.slow
def test_a_lora_of_qwix_learns_the_same_and_ends_in_a_table(tmp_path):
    pytest.importorskip("qwix")
    path = tmp_path / "qwix.json"
    options = f"--size toy --rounds 1 --seconds 0.01 --json {path}".split()
    results = qwix_lora.main(options)
    assert results["difference"] < 1e-5
    assert results["wall_seconds"].keys() == qwix_lora.VARIANTS.keys()
    assert "| peft_jax, remat none |" in page.against_qwix(json.loads(path.read_text()))


def test_relative_buckets_are_those_of_the_library():
    import jax

    import peft_jax as pj
    from peft_jax import transformer

    length = 40
    config = jobs.toy_config()
    backbone = pj.init_backbone(config, jax.random.key(0))
    table = backbone.params["encoder"]["relative_bias"]["embedding"]
    places = np.arange(length)[None]
    view = transformer._view(
        config, backbone.params, "encoder", places, places, np.ones((1, 1, length, length), bool)
    )
    buckets = qwix_sides.relative_buckets(
        length, config.relative_buckets, config.relative_max_distance
    )
    expected = np.moveaxis(np.asarray(table)[buckets], -1, 0)
    np.testing.assert_allclose(np.asarray(view.bias).squeeze(), expected)


@pytest.mark.slow
def test_forced_devices_compute_the_same_losses(tmp_path):
    path = tmp_path / "devices.json"
    results = devices.main(f"--size toy --rounds 1 --seconds 0.01 --json {path}".split())
    assert results is not None
    assert results["difference"] <= devices.TOLERANCE
    assert len(results["times"]) == len(devices.COUNTS) * len(devices.FORMS)
    assert page.forced_devices(json.loads(path.read_text())).count("\n| 8 |") == 1


@pytest.mark.slow
def test_a_scan_compiles_in_the_same_time_at_any_depth(tmp_path):
    path = tmp_path / "depth.json"
    depth.main(f"--size toy --depths 2 12 --repeats 1 --json {path}".split())
    results = json.loads(path.read_text())
    scanned, unrolled = (
        {d: sum(parts.values()) for d, parts in results["seconds"][form].items()}
        for form in depth.FORMS
    )
    assert scanned["12"] < 1.5 * scanned["2"]
    assert unrolled["12"] > 1.5 * unrolled["2"]
    assert "| 12+12 layers |" in page.compiling(results)


def test_a_plans_exchanges_are_listed_and_one_that_does_not_fit_says_so():
    sent = {"kind": "all-reduce", "group": 16, "count": 96, "bytes": 3 * 2**20, "overlapped": True}
    plan = {
        "axes": {"data": 2, "fsdp": 1, "model": 8}, "shape": {"batch": 64}, "remat": "full",
        "fits": True, "estimate": {"exchanges": [sent]},
    }  # fmt: skip
    held = {"versions": {"jax": "0"}, "plan": plan}
    small = held | {"plan": plan | {"fits": False, "estimate": None}}
    written = page.exchanges([("t0_3b v5e-16", held), ("t0_11b v5e-16", small)])
    label = "data 2 x fsdp 1 x model 8, batch 64, remat full"
    assert f"| t0_3b v5e-16: {label} | all-reduce | 16 | 96 | 3.0 | yes |" in written
    assert f"| t0_11b v5e-16: {label} | does not fit |" in written
    assert page.exchanges([]) == ""


# ------------------------------------------------------------------------------------------- GPU


def test_the_flops_that_a_step_needs_are_two_forward_passes():
    case = jobs.Case("toy", "rank", "ia3", "float32", jobs.TOY_SHAPES["rank"])
    forward = gpu.needed_flops(case)
    step = gpu.needed_flops(jobs.Case("toy", "tfew", "ia3", "float32", case.shape))
    assert forward is not None
    assert step is not None
    assert 1.8 < step / forward <= 2.1  # of so small a model the attention is a larger part
    assert gpu.needed_flops(jobs.Case("toy", "decode", "ia3", "float32", case.shape)) is None


def test_without_a_gpu_the_suite_says_so_and_so_does_the_page():
    with pytest.raises(SystemExit, match="jax sees no GPU here"):
        gpu.find_device("gpu")
    assert "Not measured" in page.WITHOUT_GPU


def test_utilisation_is_of_the_faster_product_and_the_ratio_of_rounds():
    result = {
        "case": {
            "size": "t5_v1_1_xl", "job": "train", "method": "ia3", "dtype": "bfloat16",
            "shape": {"inputs": 8, "input_length": 4, "choices": 1, "target_length": 2},
        },
        "needed_flops": 4e12,
        "seconds": {"peft": 0.03, "peft_jax": 0.01},
        "rounds": {"peft": [0.02, 0.03, 0.1], "peft_jax": [0.01, 0.01, 0.01]},
        "product_flops_per_second": {"peft": 8e14, "peft_jax": 7e14},
        "memory": {"peft_jax": {"extra": 2**30}},
        "versions": {"jax": "0"},
    }  # fmt: skip
    assert gpu.utilisation(result) == pytest.approx(0.5)
    assert gpu.ratio(result) == pytest.approx(3.0)
    written = page.on_gpu({"device": "a GPU", "machine": MACHINE, "cases": [result]})
    assert "| xl: train, ia3 | 10.0 ms | 800 examples/s | 50% | **3.00** | 1.0 GiB |" in written


@pytest.mark.slow
@pytest.mark.oracle
def test_the_gpu_suite_runs_where_no_gpu_is(tmp_path):
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package)
    path = tmp_path / "gpu.json"
    options = f"--device cpu --sizes toy --rounds 1 --seconds 0.01 --jobs train rank --json {path}"
    results = gpu.main(options.split())
    assert [one["case"]["job"] for one in results["cases"]] == ["train", "train", "rank"]
    assert all(one["difference"] < 5e-2 for one in results["cases"])
    assert "utilisation" in page.on_gpu(json.loads(path.read_text()))
