"""Many tasks in one table, of a backbone by itself and of an adapter."""

import dataclasses
import json

import pytest

from peft_jax import experiment, report
from peft_jax.config import Experiment, TrainingConfig
from peft_jax.errors import InputError
from peft_jax.task_evaluation import evaluate_tasks, find_tasks
from tests.small_run import small_experiment
from tests.small_task import write_rows

QUIET = report.quiet_console()
PREMISES = ["There is snow", "There is ice", "There is sun", "There is sand"]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Experiment:
    """RTE and E2E in small beside the small run's own task."""
    config = small_experiment(tmp_path_factory.mktemp("run"))
    data = tmp_path_factory.mktemp("data")
    nli = [
        {"premise": text, "hypothesis": "It is cold", "label": i // 2, "idx": i}
        for i, text in enumerate(PREMISES)
    ]
    tables = [{"mr": f"name[{text}], area[north]", "refs": [text, "snow"]} for text in PREMISES]
    write_rows(data / "superglue_rte", "train", nli)
    write_rows(data / "superglue_rte", "validation", nli)
    write_rows(data / "e2e_nlg", "validation", tables)
    held = dataclasses.replace(config.data, directory=data, max_input_length=64)
    return dataclasses.replace(config, data=held)


def test_all_are_found_and_what_is_wanted_is_told(config):
    present, absent = find_tasks(["all"], config.data.directory)
    assert {"rte", "super_glue_rte", "e2e_nlg"} <= set(present)
    wanting = {task for tasks in absent.values() for task in tasks}
    assert "cb" in wanting
    assert not wanting & set(present)
    with pytest.raises(InputError, match="no tasks are named"):
        find_tasks([], None)
    with pytest.raises(
        InputError, match=r"no task is named 'super_glue_rt'; nearest: .*super_glue_rte"
    ):
        find_tasks(["super_glue_rt"], config.data.directory)
    assert set(find_tasks(["tfew_held_out"], None)[0]) >= {"rte", "cb", "anli_r1"}


@pytest.mark.slow
def test_one_table_and_no_task_twice(config, tmp_path):
    names = ("super_glue_rte", "e2e_nlg", "cb")
    done = evaluate_tasks(config, names, output=tmp_path / "out", console=QUIET)
    rte, e2e, cb = done
    assert (rte.metric, rte.examples, rte.templates) == ("accuracy", 4, 1)
    assert rte.score in (0, 25, 50, 75, 100)
    assert e2e.metric == "BLEU"
    assert e2e.examples == 4
    assert "superglue_cb" in cb.problem
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in lines] == list(names)
    assert (tmp_path / "out" / "tasks.png").stat().st_size > 5_000
    assert "super_glue_rte" in (tmp_path / "out" / "table.md").read_text()
    again = evaluate_tasks(config, names, output=tmp_path / "out", console=QUIET)
    assert [a.score for a in again] == [a.score for a in done]
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == len(lines)


@pytest.mark.slow
def test_several_tasks_train_an_adapter_that_is_evaluated_on_others(config, tmp_path):
    together = dataclasses.replace(
        config,
        task="super_glue_rte+taskless_super_glue_rte",
        data=dataclasses.replace(config.data, shots=None),
        training=TrainingConfig(steps=4, batch_size=4, checkpoint_every=2, log_every=2),
    )
    result = experiment.run(together, tmp_path / "run", console=QUIET)
    assert result["evaluation"]["metric"] == "average"
    assert set(result["evaluation"]["score_per_template"]) == {
        "super_glue_rte",
        "taskless_super_glue_rte",
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").open()]
    assert {line["task"] for line in lines} == {"super_glue_rte", "taskless_super_glue_rte"}
    (rte,) = evaluate_tasks(config, ["super_glue_rte"], adapter=tmp_path / "run", console=QUIET)
    assert rte.score == result["evaluation"]["score_per_template"]["super_glue_rte"]


def test_a_task_of_open_answers_is_trained_and_written(config, tmp_path):
    data = dataclasses.replace(
        config.data,
        directory=tmp_path / "rows.csv",
        input="{{text}}",
        target="{{answer}}",
        shots=4,
        dev_shots=2,
        max_target_length=8,
    )
    rows = [f"{text},{'cold' if i < 2 else 'warm'}" for i, text in enumerate(PREMISES)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,answer", *rows, *rows]))
    written = dataclasses.replace(
        config,
        task="mine",
        data=data,
        training=TrainingConfig(steps=2, batch_size=4, checkpoint_every=2, log_every=1),
    )
    result = experiment.run(written, tmp_path / "run", console=QUIET)
    assert result["answer"] == "text"
    assert result["evaluation"]["examples"] == 2
    assert result["training_examples"] == 4
    line = json.loads((tmp_path / "run" / "predictions.jsonl").open().readline())
    assert set(line) == {"example", "template", "prediction", "references"}
    assert line["references"] in (["cold"], ["warm"])
