"""T0's datasets and T-Few's suite: numbers of the public code, fields, splits."""

import json
from pathlib import Path

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks import t0_table
from peft_jax.tasks.catalogue import find_definition
from peft_jax.tasks.prompted import find_task
from peft_jax.tasks.prompts import load_templates
from peft_jax.tasks.t0_table import HELD_OUT, TRAINING, in_mixture, p3_slug
from tests.golden.p3_rows import ROWS

RATES = json.loads((Path(__file__).parent / "golden" / "t0_rates.json").read_text())
_CB = "must be true"
ROUND = """
templates:
  a: !Template
    name: does it
    jinja: '{{premise}} So {{hypothesis}}? ||| {{answer_choices[label]}}'
    answer_choices: Yes ||| Maybe ||| No
    metadata: !TemplateMetadata {original_task: true}
"""


@pytest.mark.parametrize(
    ("mixture", "stage", "tfew"),
    [
        ("t0_train", "T0", False),
        ("t0+_train", "T0+", False),
        ("t0++_train", "T0++", False),
        ("tfew", "T0", True),
    ],
)
def test_mixtures_are_those_of_the_public_code(mixture, stage, tfew):
    entries = {e.hub: [e.prompts, e.prompts * e.cap(tfew=tfew)] for e in in_mixture(stage)}
    assert entries == RATES[mixture]


def test_tfew_cuts_where_t_zero_does_not():
    (qqp,) = (entry for entry in TRAINING if entry.hub == "glue/qqp")
    assert (qqp.cap(), qqp.cap(tfew=True)) == (363_846, 83_333)
    (gigaword,) = (entry for entry in TRAINING if entry.hub == "gigaword")
    assert gigaword.cap() == gigaword.cap(tfew=True) == 55_555


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("super_glue/rte_GPT-3 style", "super_glue_rte_GPT_3_style"),
        ("cnn_dailymail/3.0.0", "cnn_dailymail_3.0.0"),
        ("super_glue/copa_…why? C1 or C2", "super_glue_copa__why_C1_or_C2"),
    ],
)
def test_names_are_t_zeros(text, slug):
    assert p3_slug(text) == slug


@pytest.mark.parametrize("entry", TRAINING, ids=lambda entry: entry.name)
def test_fields_are_those_that_rows_have(entry):
    dataset = t0_table.DATASETS[entry.name]
    for position, row in enumerate(ROWS[entry.hub]):
        rows = dataset.expand(dict(row)) if dataset.expand else [row]
        (normal,) = (dataset.normalise(one, position, "a row") for one in rows)
        assert set(entry.fields.split()) <= set(normal)
        if entry.labels:
            assert normal["label"] == int(row["label"])


def test_the_suite_is_the_papers():
    shots = {entry.column: entry.shots for entry in HELD_OUT}
    assert list(shots) == [
        *("COPA", "H-Swag", "StoryCloze", "Winogrande", "WSC", "WiC", "RTE", "CB"),
        *("ANLI R1", "ANLI R2", "ANLI R3"),
    ]
    assert list(shots.values()) == [32, 20, 70, 50, 32, 32, 32, 32, 50, 50, 50]
    for entry in HELD_OUT:
        definition = find_definition(entry.task)
        assert definition.name == entry.task
        assert find_definition(entry.tfew).name == entry.task
        dataset = definition.dataset
        assert (dataset.shots, dataset.per_class) == (entry.shots, False)
        assert dataset.templates == entry.hub
        assert dataset.splits.get("train", "train") == entry.train
        assert dataset.splits.get("validation", "validation") == entry.evaluation


@pytest.mark.parametrize("entry", HELD_OUT, ids=lambda entry: entry.task)
def test_the_suites_templates_are_those_of_the_original_task(entry, shared_data):
    file = shared_data / "promptsource_templates" / entry.hub / "templates.yaml"
    if not file.is_file():
        pytest.skip(f"no templates of {entry.hub} there")
    templates = list(load_templates(file).values())
    of_the_task = [i for i, template in enumerate(templates) if template.original_task]
    assert tuple(of_the_task)[: len(entry.templates)] == entry.templates
    assert len(of_the_task) == len(entry.templates) or entry.task == "copa"
    row = {"premise": "p", "hypothesis": "h", "question": "cause", "choice1": "1", "choice2": "2"}
    if entry.task == "cb":  # the choices stand in the order of the labels
        for label, word in enumerate(("Yes", "No", "Maybe")):
            (made,) = (
                t.render(row | {"label": label}) for t in templates if t.name == "must be true"
            )
            assert made.target == made.choices[label] == word


def test_orders_of_choices_differ_between_cb_and_anli():
    choices = {entry.task: entry.choices for entry in HELD_OUT}
    assert choices["cb"] == ("entailment", "contradiction", "neutral")
    assert choices["anli_r1"] == ("entailment", "neutral", "contradiction")
    assert t0_table.DATASETS["anli_r3"].labels == choices["anli_r3"]


def _normal(name, row):
    dataset = t0_table.DATASETS[name]
    return dataset.normalise(dataset.expand(row)[0], 0, "a row")


def test_rows_are_made_as_the_templates_read_them():
    story = {f"input_sentence_{i}": "s" for i in range(1, 5)}
    story |= {"sentence_quiz1": "a", "sentence_quiz2": "b", "answer_right_ending": 2}
    assert _normal("story_cloze", story)["label"] == 1
    options = {"sentence": "s", "option1": "a", "option2": "b", "answer": "1"}
    assert _normal("winogrande", options)["label"] == 0
    trec = {"text": "t", "label-coarse": 3, "label-fine": 7}
    assert _normal("trec", trec)["fine_label"] == 7
    news = {"title": "A", "description": "B", "label": 2}
    assert _normal("ag_news", news)["text"] == "A B"
    with pytest.raises(InputError, match="'label' of winogrande"):  # a hidden test set
        _normal("winogrande", options | {"answer": ""})


def test_anli_trains_and_is_scored_on_its_rounds(tmp_path):
    folder = tmp_path / "anli"
    folder.mkdir()
    templates = tmp_path / "promptsource_templates" / "anli"
    templates.mkdir(parents=True)
    (templates / "templates.yaml").write_text(ROUND)
    for split in ("train_r2", "dev_r2", "test_r2"):
        lines = [
            json.dumps({"premise": split, "hypothesis": "h", "label": label, "uid": "u"})
            for label in range(3)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    task = find_task("anli-r2", directory=tmp_path)
    assert [row.target for row in task.prompted("train")] == ["Yes", "Maybe", "No"]
    assert task.prompted("train")[0].input == "train_r2 So h?"
    assert task.prompted("validation")[0].input == "test_r2 So h?"
    assert task.prompted("dev")[0].input == "dev_r2 So h?"
