"""promptsource's template format: agreement with promptsource, errors, nothing executed."""

import hashlib
import json
from pathlib import Path

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.datasets import DATASETS
from peft_jax.tasks.prompts import (
    MAX_FIELD_LENGTH,
    Rendered,
    Template,
    load_templates,
    template_slugs,
)
from peft_jax.tasks.sources import find_source, read_rows

GOLDEN = json.loads((Path(__file__).parent / "golden" / "promptsource_renders.json").read_text())
NLI = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 1}
FILE = """
templates:
  key-b: !Template
    name: b
    id: key-b
    jinja: '{{premise}} So {{hypothesis}}? ||| {{answer_choices[label]}}'
    answer_choices: Yes ||| No
    metadata: !TemplateMetadata {original_task: true}
    reference: ''
  key-a: !Template
    name: a
    jinja: '{{premise}} ||| {{hypothesis}}'
    answer_choices: null
    metadata: !TemplateMetadata {original_task: null}
"""


@pytest.mark.parametrize("name", DATASETS)
def test_renders_equal_promptsource(name, shared_data):
    dataset, folder = find_source(name, shared_data)
    rows = read_rows(dataset, "validation", folder)[: GOLDEN["rows"]]
    templates = load_templates(shared_data / "promptsource_templates" / dataset.templates)
    assert list(templates) == list(GOLDEN["digests"][name])
    for template in templates.values():
        rendered = [template.render(row) for row in rows]
        # promptsource prints a template that does not apply as one empty part.
        texts = [
            [[r.input, r.target], list(r.choices)] if r else [[""], _choices(template, row)]
            for r, row in zip(rendered, rows, strict=True)
        ]
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        assert digest == GOLDEN["digests"][name][template.name], template.name


def _choices(template, row):
    always = Template("", "x ||| y", template.answer_choices)
    return list(always.render(row).choices)


def test_a_file_is_read_sorted_with_its_marks(tmp_path):
    (tmp_path / "templates.yaml").write_text(FILE)
    templates = load_templates(tmp_path)
    assert load_templates(tmp_path / "templates.yaml") == templates
    assert list(templates) == ["a", "b"]
    assert [t.original_task for t in templates.values()] == [False, True]
    assert templates["b"].render(NLI) == Rendered("It rains. So It is wet.?", "No", ("Yes", "No"))
    assert templates["a"].render(NLI) == Rendered("It rains.", "It is wet.", None)


@pytest.mark.parametrize(
    ("jinja", "rendered"),
    [
        ("{% if label == 0 %}{{premise}} ||| x{% endif %}", None),
        (" \n ||| x", None),
        ("no separator", None),
        ("  {{premise}}\n|||\n {{hypothesis}} ", ("It rains.", "It is wet.", None)),
        ("{{premise}} |||", ("It rains.", "", None)),
        ("{{piped}} ||| {{piped}}", ("a ||| b", "a ||| b", None)),
        ("{{[3, 1, 3, 1, 2] | most_frequent}} ||| x", ("[3, 1]", "x", None)),
        ("{{zip('ab', 'cd') | list}} ||| x", ("[('a', 'c'), ('b', 'd')]", "x", None)),
        ("{% if absent is defined %}x{% else %}y{% endif %} ||| z", ("y", "z", None)),
    ],
)
def test_render(jinja, rendered):
    made = Template("t", jinja).render(NLI | {"piped": "a ||| b"})
    assert made == (rendered and Rendered(*rendered))


def test_a_separator_inside_a_choice_does_not_split():
    template = Template("t", "{{premise}} ||| {{answer_choices[0]}}", "{{piped}} ||| x")
    rendered = template.render(NLI | {"piped": "a|||b"})
    assert rendered == Rendered("It rains.", "a|||b", ("a|||b", "x"))


def test_long_fields_are_cut_as_promptsource_cuts_them():
    text = "word " * 1000
    rendered = Template("t", "{{premise}} ||| x", "{{premise}} ||| y").render({"premise": text})
    assert len(rendered.input) <= MAX_FIELD_LENGTH
    assert rendered.input.endswith("word...")
    assert rendered.choices[0] == text.strip()


def test_choice_draws_the_same_for_the_same_row():
    template = Template("t", "{{range(1000) | list | choice}} ||| x")
    draws = {template.render({"idx": i}).input for i in range(20)}
    assert template.render({"idx": 3}) == template.render({"idx": 3})
    assert len(draws) > 10


@pytest.mark.parametrize(
    ("jinja", "choices", "words"),
    [
        ("{{premis}} ||| x", None, "unknown field 'premis'"),
        ("{% if premis %}a{% endif %} ||| x", None, "unknown field 'premis'"),
        ("{{premise}} ||| x", "{{choice1}} ||| b", "unknown field 'choice1'"),
        ("{{premise.absent}} ||| x", None, "no attribute 'absent'"),
        (
            "{{premise}} ||| {{answer_choices[7]}}",
            "a ||| b",
            r"no element 7 \(it offers 2 answer choices\)",
        ),
        ("a ||| b ||| c", None, "2 times, not once"),
        ("{{premise.upper(3)}} ||| x", None, "TypeError"),
        ("{{premise.__class__.__mro__}} ||| x", None, "SecurityError"),
    ],
)
def test_what_a_template_cannot_do_with_a_row(jinja, choices, words):
    template = Template("my prompt", jinja, choices, file="templates.yaml")
    with pytest.raises(InputError, match=words) as error:
        template.render(NLI)
    assert "templates.yaml: template 'my prompt'" in str(error.value)
    assert "premise, hypothesis, label" in str(error.value)


def test_a_row_may_not_bring_answer_choices():
    with pytest.raises(InputError, match="answer_choices"):
        Template("t", "a ||| b").render({"answer_choices": ["x"]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("templates: [", "not a YAML file"),
        ("a: 1", "no mapping `templates:`"),
        ("templates: {}", "no mapping `templates:`"),
        ("templates: {a: text}", "not a mapping"),
        ("templates: {a: {name: x}}", "`jinja` is not a text"),
        ("templates: {a: {jinja: x, answer_choices: [yes, no]}}", "`answer_choices` is not a text"),
        ("templates: {a: {jinja: '{{x'}}", "cannot parse"),
        ("templates: {a: {jinja: '{{x | nofilter}}'}}", "No filter named"),
        ("templates: {a: {name: n, jinja: x}, b: {name: n, jinja: x}}", "two templates named 'n'"),
    ],
)
def test_files_that_are_not_templates(tmp_path, text, words):
    (tmp_path / "templates.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        load_templates(tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no templates at"):
        load_templates(tmp_path / "templates.yaml")


def test_yaml_tags_that_run_code_are_refused(tmp_path):
    flag = tmp_path / "ran"
    tag = (
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{flag}']]"
    )
    (tmp_path / "templates.yaml").write_text(f"templates:\n  a: {tag}\n")
    with pytest.raises(InputError, match="not a YAML file of templates"):
        load_templates(tmp_path)
    assert not flag.exists()


def test_slugs_differ():
    names = ["can we infer", "Can we infer?", "…why?", "?", "!", "template"]
    slugs = template_slugs(names)
    assert slugs["can we infer"] == "can_we_infer"
    assert len(set(slugs.values())) == len(names)
    assert all(slug.replace("_", "").isalnum() and slug.isascii() for slug in slugs.values())
