"""Tasks as text: which templates, which rows, which labels."""

import dataclasses
import json

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.datasets import DATASETS
from peft_jax.tasks.draws import Draw
from peft_jax.tasks.prompted import find_task
from tests.small_task import write_rows, write_task

TEMPLATE = """
  {name}: !Template
    jinja: '{{{{text}}}} ||| {target}'
    answer_choices: '{choices}'
"""


def user_task(tmp_path, labels, choices, names=None, target="{{answer_choices[label]}}"):
    write_rows(tmp_path, "train", [{"text": f"row {i}", "label": x} for i, x in enumerate(labels)])
    templates = [
        TEMPLATE.format(name=f"t{i}", choices=c, target=target) for i, c in enumerate(choices)
    ]
    (tmp_path / "templates.yaml").write_text("templates:" + "".join(templates))
    if names:
        (tmp_path / "labels.json").write_text(json.dumps(names))
    return find_task("mine", directory=tmp_path)


def test_a_users_folder(tmp_path):
    task = find_task("mine", directory=write_task(tmp_path / "mine"))
    assert [t.name for t in task.templates] == ["plain question", "some rows only", "three answers"]
    rows = task.prompted("train")
    assert len(rows) == 12 + 6 + 12
    assert rows[1] == ("There is snow", "cold", ("cold", "warm"), 0, 0, 1, ("cold",), {})
    assert [(r.example, r.template) for r in rows[3:5]] == [(1, 0), (1, 2)]


@pytest.mark.parametrize("name", [*DATASETS, "wsc.fixed"])
def test_tfew_templates_of_every_dataset(name, shared_data):
    numbers = {"rte": 10, "cb": 15, "copa": 8, "wic": 10, "wsc": 10, "boolq": 10, "sst2": 5}
    task = find_task(name, directory=shared_data)
    assert len(task.templates) == numbers[task.dataset.name]
    names = [template.name for template in task.templates]
    assert names == sorted(names)
    assert "promptsource_templates" in task.templates[0].file


@pytest.mark.parametrize("name", DATASETS)
def test_own_templates_serve_where_no_others_are(name, shared_data, tmp_path):
    folder = shared_data / DATASETS[name].folder
    link = tmp_path / DATASETS[name].folder
    link.symlink_to(folder)
    task = find_task(name, directory=tmp_path)
    rows = task.prompted("validation")
    assert len(task.templates) == 3
    assert len(rows) == 3 * len(task.rows("validation"))
    assert all(row.target == row.choices[row.label] for row in rows)
    assert all(len(set(row.choices)) == len(row.choices) for row in rows)


def test_templates_by_path(shared_data, tmp_path):
    collection = shared_data / "promptsource_templates"
    inside = collection / "super_glue" / "rte"
    tasks = [
        find_task("rte", directory=shared_data, templates=path)
        for path in (collection, inside, inside / "templates.yaml")
    ]
    assert tasks[0].templates == tasks[1].templates == tasks[2].templates
    with pytest.raises(InputError, match="no templates at"):
        find_task("rte", directory=shared_data, templates=tmp_path / "absent.yaml")


def test_few_shot_keeps_the_positions_of_its_rows(tmp_path):
    folder = write_task(tmp_path / "mine")
    task = find_task("mine", directory=folder, draw=Draw(2, 0, "per_class"))
    everything = {
        (r.example, r.template): r for r in find_task("mine", directory=folder).prompted("train")
    }
    drawn = task.prompted("train")
    assert len({row.example for row in drawn}) == 4
    assert all(everything[row.example, row.template] == row for row in drawn)
    assert len({row.example for row in task.prompted("validation")}) == 7


def test_labels_follow_their_names_whatever_the_order_of_the_choices(tmp_path):
    task = user_task(
        tmp_path,
        ["lost_card", "top_up", "Refund"],
        [
            "refund ||| top up ||| lost card",
            "A ||| B ||| C",
            '{{label_names | join("|||") | replace("_", " ")}}',
        ],
        names=["top_up", "lost_card", "Refund"],
    )
    answers = [row.target for row in task.prompted("train")]
    assert answers == [
        "lost card",
        "B",
        "lost card",
        "top up",
        "A",
        "top up",
        "refund",
        "C",
        "Refund",
    ]
    assert all(row.target == row.choices[row.label] for row in task.prompted("train"))


def test_classes_that_share_an_answer_are_one_choice(tmp_path):
    task = user_task(tmp_path, [0, 1, 2], ["Yes ||| No ||| No"])
    rows = task.prompted("train")
    assert [(row.choices, row.label) for row in rows] == [(("Yes", "No"), i) for i in (0, 1, 1)]


@pytest.mark.parametrize(
    ("labels", "choices", "target", "words"),
    [
        ([0, 1, 2], "Yes ||| No", "", "'t0' offers 2 answer choices, but example 2 of mine has"),
        ([0, 1, 2], "Yes ||| No", "{{answer_choices[label]}}", "it offers 2 answer choices"),
        ([0, 1], "Yes ||| Yes", "", "one answer choice only"),
        ([0, 1], "{{missing}} ||| No", "", "unknown field 'missing'"),
    ],
)
def test_templates_that_do_not_fit_the_rows(tmp_path, labels, choices, target, words):
    with pytest.raises(InputError, match=words):
        user_task(tmp_path, labels, [choices], target=target).prompted("train")


def test_a_draw_does_not_share_what_was_rendered_before_it(tmp_path):
    task = find_task("mine", directory=write_task(tmp_path / "mine"))
    task.prompted("train")
    drawn = dataclasses.replace(task, draw=Draw(4, 0))
    assert len({row.example for row in drawn.prompted("train")}) == 4


def test_folders_without_usable_templates(tmp_path):
    write_rows(tmp_path, "train", [{"text": "a", "label": 0}])
    with pytest.raises(InputError, match="no templates for task 'mine'"):
        find_task("mine", directory=tmp_path)
    (tmp_path / "templates.yaml").write_text("templates: {a: {jinja: '{{text}} ||| x'}}")
    with pytest.raises(InputError, match="no template with answer_choices"):
        find_task("mine", directory=tmp_path)


def test_embedded_tasks():
    from peft_jax.tasks.embedded import TASKS, rows

    task = find_task("embedded_entailment")
    assert [row for _, row in task.rows("validation")] == rows("entailment", "validation")
    assert len(task.templates) >= 2
    assert set(TASKS) >= {"entailment"}
    with pytest.raises(InputError, match="no embedded task 'embedded_nothing'"):
        find_task("embedded_nothing")


@pytest.mark.parametrize("inside", [True, False])
def test_a_name_that_is_no_tasks_is_told_with_the_nearest(inside, tmp_path):
    with pytest.raises(
        InputError, match=r"no task is named 'super_glue_boolk'; .*super_glue_boolq"
    ):
        find_task("super_glue_boolk", directory=tmp_path if inside else None)


def test_a_file_without_a_good_row_says_what_is_wrong_with_the_first(tmp_path):
    (tmp_path / "mine.csv").write_text("text,label\na,1,3\n")
    own = {"input": "{{text}}", "choices": ("no", "yes")}
    with pytest.raises(InputError, match=r"mine.csv:2: .*columns"):
        find_task("mine", directory=tmp_path / "mine.csv", own=own)


def test_a_task_of_tokens_has_no_rows(tmp_path):
    with pytest.raises(InputError, match="span_corruption is made of the tokens of a text"):
        find_task("span_corruption", directory=tmp_path)
