"""promptsource's templates as tasks: names, renders, what is ranked, what is missing."""

import json
from pathlib import Path

import jinja2
import pytest

from peft_jax.errors import InputError
from peft_jax.tasks import p3, t0_table
from peft_jax.tasks.catalogue import find_definition, find_mixture
from peft_jax.tasks.prompted import find_task
from peft_jax.tasks.prompts import Template, _compiled, _prompt_environment, load_templates
from tests.golden.make_p3_renders import digest, only
from tests.golden.p3_rows import ROWS

DIGESTS = json.loads((Path(__file__).parent / "golden" / "p3_renders.json").read_text())
AG_NEWS = """
templates:
  1: !Template
    name: which one?
    jinja: '{{text}} Which? ||| {{answer_choices[label]}}'
    answer_choices: World ||| Sports ||| Business ||| Science
    metadata: !TemplateMetadata {original_task: true, metrics: [Accuracy]}
  2: !Template
    name: Write-it
    jinja: 'About {{answer_choices[label]}}: ||| {{text}}'
    answer_choices: World ||| Sports ||| Business ||| Science
    metadata: !TemplateMetadata {original_task: false, metrics: [Other]}
  3: !Template
    name: open
    jinja: 'Class {{label}} ||| {{text}}'
    answer_choices: null
    metadata: !TemplateMetadata {original_task: false, metrics: [BLEU, ROUGE]}
  4: !Template
    name: nothing
    jinja: '{{text}} ||| {% if label == 9 %}x{% endif %}'
    answer_choices: null
    metadata: !TemplateMetadata {original_task: false, metrics: [ROUGE]}
"""
OTHER = "templates: {1: {name: all, jinja: '{{the_text}} ||| {{label}}'}}"


@pytest.fixture
def data(tmp_path):
    """A data folder with a collection of three files and rows of two datasets."""
    collection = tmp_path / p3.COLLECTION
    for hub, text in {"ag_news": AG_NEWS, "anli": AG_NEWS, "some/where": OTHER}.items():
        (collection / hub).mkdir(parents=True)
        (collection / hub / "templates.yaml").write_text(text)
    for folder, row in {"ag_news": {"text": "A cup."}, "some_where": {"the-text": "B"}}.items():
        (tmp_path / folder).mkdir()
        lines = [json.dumps(row | {"label": label}) for label in (1, 3)]
        (tmp_path / folder / "train.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_renders_equal_promptsource_on_every_dataset(shared_data, monkeypatch):
    monkeypatch.setitem(_prompt_environment().filters, "choice", only)
    _compiled.cache_clear()
    checked = 0
    for hub, digests in DIGESTS.items():
        file = shared_data / "promptsource_templates" / hub / "templates.yaml"
        if not file.is_file():
            continue
        for name, template in load_templates(file).items():
            if name in digests:  # the others draw at random
                renders = [_as_promptsource(template, row) for row in ROWS[hub]]
                assert digest(renders) == digests[name], (hub, name)
                checked += 1
    _compiled.cache_clear()
    assert checked >= 135


def _as_promptsource(template, row):
    made = template.render(row)
    if made is not None:
        return [[made.input, made.target], made.choices and list(made.choices)]
    choices = Template("", "x ||| y", template.answer_choices).render(row).choices
    text = jinja2.Template(template.jinja).render(**row, answer_choices=choices)
    return [[part.strip() for part in text.split("|||")], choices and list(choices)]


@pytest.mark.parametrize(
    ("name", "found", "ranks"),
    [
        ("t0_ag_news_which_one_", "t0_ag_news_which_one_", [True]),
        ("ag_news_which_one_", "t0_ag_news_which_one_", [True]),
        ("ag_news_which_one__score_eval", "t0_ag_news_which_one_", [True]),
        ("t0_ag_news_WHICH_one", "t0_ag_news_which_one_", [True]),
        ("t0_ag_news_Write_it", "t0_ag_news_Write_it", [True]),
        ("t0_ag_news_open", "t0_ag_news_open", [False]),
        ("t0_ag_news", "t0_ag_news", [False] * 4),
        ("t0_ag_news_score_eval", "t0_ag_news_score_eval", [True]),
        ("t0_anli_r2_open", "t0_anli_r2_open", [False]),
        ("anli_open_r2", "t0_anli_r2_open", [False]),
        ("t0_anli_r3", "t0_anli_r3", [False] * 4),
        ("t0_some_where_all", "t0_some_where_all", [False]),
    ],
)
def test_names(name, found, ranks, data):
    definition = p3.resolve(name, data)
    assert definition.name == found
    assert [one.ranks for one in definition.formats] == ranks
    assert find_definition(name, data) == definition
    for alias in definition.aliases:
        assert p3.resolve(alias, data) == definition


@pytest.mark.parametrize("name", ["ag_news", "anli", "nothing_at_all", "ag_newsy", "t0_nothing"])
def test_other_names_are_left_to_others(name, data):
    assert p3.resolve(name, data) is None
    assert p3.resolve(name, None) is None


def test_a_ranked_template_takes_the_choice_that_it_prints(data):
    rows = find_task("ag_news_which_one_", directory=data).prompted("train")
    assert [(row.target, row.label, len(row.choices)) for row in rows] == [
        ("Sports", 1, 4),
        ("Science", 3, 4),
    ]


def test_training_writes_all_templates(data):
    task = find_task("t0_ag_news", directory=data)
    rows = task.prompted("train")
    assert len(rows) == 8
    assert {row.choices for row in rows} == {()}
    texts = {task.templates[row.template].name: row for row in rows}
    assert texts["which one?"][:2] == ("A cup. Which?", "Science")
    assert texts["nothing"].target == p3.NO_LABEL
    assert task.definition.metrics == ("exact_match", "rouge", "bleu")
    assert task.definition.max_input_length == 1024


def test_metrics_of_written_answers_are_promptsources(data):
    assert p3.resolve("t0_ag_news_open", data).metrics == ("bleu", "rouge")
    assert p3.resolve("t0_ag_news_which_one_", data).metrics == ("accuracy",)


def test_fields_with_hyphens_are_written_as_templates_write_them(data):
    rows = find_task("t0_some_where", directory=data).prompted("train")
    assert [(row.input, row.target) for row in rows] == [("B", "1"), ("B", "3")]


def test_a_target_that_is_no_choice_can_only_be_written(data):
    with pytest.raises(InputError, match=r"'A cup\.', which is none of its answer choices"):
        find_task("t0_ag_news_Write_it", directory=data).prompted("train")
    assert (
        len(p3.P3Format(Template("t", "{{a}} ||| b", "c ||| d"), False).render_all({"a": 1})) == 1
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("t0_ag_news_which_two", "has no template 'which_two'; nearest: which_one_"),
        (
            "t0_paws_labeled_final",
            "no promptsource_templates/paws/labeled_final/templates.yaml",
        ),
        ("t0_xsum_DOC_tldr", "has no promptsource_templates/xsum/templates.yaml"),
        ("t0_some_where_score_eval", "no template of .* has answer choices"),
    ],
)
def test_what_is_missing_is_told(name, words, data):
    with pytest.raises(InputError, match=words):
        p3.resolve(name, data)


def test_without_a_folder_the_templates_are_wanted():
    with pytest.raises(InputError, match=r"the data's folder \(--data.directory\) has no prompt"):
        p3.resolve("t0_gigaword", None)


def test_what_t_zero_leaves_out_is_not_trained_on(data):
    assert len(p3.LEFT_OUT) == 24
    folder = data / p3.COLLECTION / "gigaword"
    folder.mkdir()
    text = "templates: {1: {name: 'summarize:', jinja: 'a ||| b'}, 2: {name: s, jinja: 'a ||| b'}}"
    (folder / "templates.yaml").write_text(text)
    assert [one.name for one in p3.resolve("t0_gigaword", data).formats] == ["s"]
    assert p3.resolve("t0_gigaword_summarize_", data).formats[0].name == "summarize:"


def test_template_rates_count_the_templates_there(data, monkeypatch):
    entries = {entry.hub: entry for entry in t0_table.TRAINING}
    monkeypatch.setattr(t0_table, "TRAINING", (entries["ag_news"],))
    assert set(p3.template_rates("T0", data / p3.COLLECTION).values()) == {120_000}
    rates = p3.template_rates("T0++", data / p3.COLLECTION, tfew=True)
    assert rates["ag_news_which_one_"] == 120_000  # 500,000 / 4 templates is more
    monkeypatch.setattr(t0_table, "CAP", 100_000)
    assert set(p3.template_rates("T0", data / p3.COLLECTION).values()) == {25_000}


def test_mixtures_hold_the_stages():
    sizes = [len(find_mixture(name).tasks) for name in ("t0_train", "t0_plus", "t0_plus_plus")]
    assert sizes == [38, 48, 54]
    assert find_mixture("t0_train").caps["t0_amazon_polarity"] == 9 * (500_000 // 9)
    assert find_mixture("t0_tfew").caps["t0_glue_qqp"] == 6 * 83_333
    suite = find_mixture("tfew_held_out")
    assert suite.rate == "equal"
    assert len(suite.tasks) == 11
    assert all(find_definition(task) is not None for task in suite.tasks)
