"""The benchmark of the data pipeline: its arithmetic, and a run of a moment."""

import itertools
import json

import pytest

from benchmarks import flops, pipeline, report


@pytest.mark.slow
def test_a_step_of_a_deeper_model_is_continued_from_two_depths(monkeypatch):
    """The FLOPs are linear in the depth: three layers from one and two are those compiled."""
    monkeypatch.setattr(pipeline, "BATCH", 2)
    one, two, three = (pipeline._compiled_flops("t5_v1_1_small", depth) for depth in (1, 2, 3))
    assert one + 2 * (two - one) == pytest.approx(three, rel=2e-3)
    forward = flops.flops(flops.lower_forward("t5_v1_1_small", 1))
    assert one > forward > 0


def test_ways_take_turns_and_packed_rows_count_their_texts(monkeypatch):
    clock = itertools.count(0, 0.25)
    monkeypatch.setattr(pipeline.time, "process_time", lambda: next(clock))
    drawn = []

    def batches(name, **more):
        while True:
            drawn.append(name)
            yield {"row": [0] * 8} | more

    found = pipeline.measure({"a": batches("a"), "b": batches("b", examples=3)}, 2, 1.0)
    assert [name for name, _ in itertools.groupby(drawn)] == ["a", "b"] * 3
    assert found == {"a": [3 * 8 / 1.0] * 2, "b": [3 * 3 / 1.0] * 2}


def test_the_section_divides_by_the_appetite():
    results = json.loads(pipeline.RESULTS.read_text())
    results["examples_per_second"] = {"prepared": [900.0, 1000.0, 1100.0]}
    results["appetite"] = {"t5_v1_1_xl": {"flops": 2e12, "examples_per_second": 200.0}}
    text = pipeline.markdown(results)
    assert "| prepared file | 1,000 | 900–1,100 | 5.0 |" in text
    assert "T5 xl 2.00 TFLOP an example, 200 examples/s" in text


def test_the_page_has_the_section():
    page = report.page(json.loads(report.RESULTS.read_text()))
    assert pipeline.section() in page
    assert pipeline.section(pipeline.RESULTS.with_name("none.json")) == ""


@pytest.mark.slow
def test_a_run_measures_every_way(monkeypatch, tmp_path):
    from peft_jax.tasks import embedded

    monkeypatch.setattr(embedded, "DEFAULT_COUNTS", {"train": 40, "validation": 4})
    monkeypatch.setattr(pipeline, "SIZES", ("t5_v1_1_small",))
    path = tmp_path / "results.json"
    results = pipeline.main(["--rounds", "1", "--seconds", "0.05", "--json", str(path)])
    assert results["examples_per_second"].keys() == pipeline.WAYS.keys()
    assert all(speed > 0 for speeds in results["examples_per_second"].values() for speed in speeds)
    assert json.loads(path.read_text()) == results
