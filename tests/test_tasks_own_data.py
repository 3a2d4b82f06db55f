"""Somebody's own data: two lines of configuration make a task; what is wrong with them is told."""

import csv
import json
from pathlib import Path

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.files import READERS
from peft_jax.tasks.own_data import own_task, resolve
from peft_jax.tasks.own_prompt import needed_fields
from peft_jax.tasks.own_settings import KEYS
from peft_jax.tasks.row_report import RowReport
from peft_jax.tasks.sources import find_source, read_rows

ROWS = [
    {"text": "It broke at once.", "label": "yes"},
    {"text": "Thanks, all is well.", "label": "no"},
    {"text": "Where is my order?", "label": "yes"},
    {"text": "A lovely day.", "label": "no"},
]
TWO_LINES = 'input: "{{text}} Is this a complaint?"\nchoices: [no, yes]\n'


def write(folder, configuration=TWO_LINES, rows=ROWS, file="train.jsonl"):
    folder.mkdir(exist_ok=True, parents=True)
    if configuration is not None:
        (folder / "task.yaml").write_text(configuration)
    if file.endswith(".csv"):
        with open(folder / file, "w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def examples(definition, directory, split="train", report=None):
    """(input, target or right choice, choices) of a split under each prompt."""
    dataset, folder = find_source(definition.dataset, directory)
    made = []
    for row in read_rows(dataset, split, folder, report):
        for prompt in definition.formats:
            for rendered in prompt.render_all(row):
                if rendered.choices is None:
                    made.append((rendered.input, rendered.target, rendered.references))
                else:
                    label = rendered.keep.get("label", row.get("label"))
                    made.append((rendered.input, rendered.choices[label], rendered.choices))
    return made


def every(definition, directory):
    """All of train, held-out rows too."""
    return examples(definition, directory) + examples(definition, directory, "validation")


def test_two_lines_make_a_task(tmp_path):
    write(tmp_path / "complaints")
    task = resolve("complaints", tmp_path)
    assert set(every(task, tmp_path)) == {
        (f"{row['text']} Is this a complaint?", row["label"], ("no", "yes")) for row in ROWS
    }
    assert task.metrics == ("accuracy",)
    assert task.dataset.labels == ("no", "yes")
    assert task.dataset.fields == ("text",)
    assert task.dataset.shots == 0  # training takes all rows


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_csv_and_two_flags_make_one(tmp_path, place):
    rows = [{"Tweet text": row["text"], "Label": row["label"] == "yes"} for row in ROWS]
    write(tmp_path, None, rows, "tweets.csv")
    directory = tmp_path if place == "folder" else tmp_path / "tweets.csv"
    given = {"input": '{{row["Tweet text"]}} A complaint?', "choices": ("no", "yes")}
    task = own_task(directory, "tweets", **given)
    assert ("It broke at once. A complaint?", "yes", ("no", "yes")) in every(task, directory)
    assert len(every(task, directory)) == 4
    assert task.dataset.fields == ("Tweet text",)


def test_a_text_is_written_without_choices(tmp_path):
    rows = [{"article": f"long {i}", "short": f"s{i}"} for i in range(4)]
    write(tmp_path, 'input: "Summarise: {{article}}"\ntarget: "{{short}}"\n', rows)
    task = own_task(tmp_path, "news")
    assert ("Summarise: long 2", "s2", ("s2",)) in every(task, tmp_path)
    assert task.metrics == ("rouge", "exact_match")


@pytest.mark.parametrize("written", ["refs", "'{{refs}}'", "['{{refs[0]}}', '{{refs[1]}}']"])
def test_several_texts_may_be_right(tmp_path, written):
    rows = [{"q": f"q{i}", "refs": [f"a{i}", f"b{i}"]} for i in range(3)]
    write(tmp_path, f'input: "{{{{q}}}}"\nreferences: {written}\n', rows)
    assert ("q1", "a1", ("a1", "b1")) in every(own_task(tmp_path, "x"), tmp_path)


@pytest.mark.parametrize("written", ["options", "'{{options}}'", "'{{ options | list }}'"])
@pytest.mark.parametrize("label", ["answer", "'{{answer}}'"])
@pytest.mark.parametrize("by_text", [True, False])
def test_choices_may_differ_from_row_to_row(tmp_path, written, label, by_text):
    """Two, three and four options, told by text or by number; one holds promptsource's mark."""
    rows = [
        {"q": f"q{n}", "options": (options := [f"{n} ||| {i}" for i in range(n)]),
         "answer": options[n - 1] if by_text else n - 1}
        for n in (2, 3, 4)
    ]  # fmt: skip
    write(tmp_path, f'input: "{{{{q}}}}"\nchoices: {written}\nlabel: {label}\n', rows)
    found = {text: (right, len(c)) for text, right, c in every(own_task(tmp_path, "x"), tmp_path)}
    assert found == {f"q{n}": (f"{n} ||| {n - 1}", n) for n in (2, 3, 4)}


def test_choices_may_stand_in_columns(tmp_path):
    rows = [
        {"q": "q2", "a": "x", "b": "y", "c": "", "label": 1},
        {"q": "q3", "a": "x", "b": "y", "c": "z", "label": 2},
    ]
    text = 'input: "{{q}}"\nchoices: ["{{a}}", "{{b}}", "{{c}}"]\n'
    write(tmp_path, text, rows, "train.csv")
    found = {e[0]: e[1:] for e in every(own_task(tmp_path, "x"), tmp_path)}
    assert found == {"q2": ("y", ("x", "y")), "q3": ("z", ("x", "y", "z"))}


def test_a_label_may_be_computed(tmp_path):
    rows = [{"text": f"t{stars}", "stars": stars} for stars in (1, 2, 4, 5)]
    text = TWO_LINES + 'label: "{{ (stars | int < 3) | int }}"\n'
    write(tmp_path, text, rows, "train.csv")
    task = own_task(tmp_path, "x")
    found = {text.split()[0]: right for text, right, _ in every(task, tmp_path)}
    assert found == {"t1": "yes", "t2": "yes", "t4": "no", "t5": "no"}
    assert task.dataset.labels == ("no", "yes")  # so that draws can be balanced
    assert task.dataset.fields == ("text", "stars")


def test_labels_may_have_other_names_in_the_data(tmp_path):
    rows = [row | {"label": {"yes": "neg", "no": "pos"}[row["label"]]} for row in ROWS]
    write(tmp_path, TWO_LINES, rows)
    with pytest.raises(InputError, match=r"'label' is 'neg'.*none of the choices.*labels: \["):
        own_task(tmp_path, "x")
    write(tmp_path, TWO_LINES + "labels: [pos, neg]\n", rows)
    assert {e[1] for e in every(own_task(tmp_path, "x"), tmp_path) if "broke" in e[0]} == {"yes"}


def test_prompts_share_what_is_above_them(tmp_path):
    text = (
        "choices: [no, yes]\nprompts:\n"
        '  a: {input: "{{text}} A complaint?"}\n'
        '  b: {input: "{{text}} True or false: a complaint.", choices: [false, true]}\n'
    )
    write(tmp_path, text)
    found = every(own_task(tmp_path, "x"), tmp_path)
    assert len(found) == 8
    assert {choices for _, _, choices in found} == {("no", "yes"), ("false", "true")}
    assert all(right in ("yes", "true") for text, right, _ in found if "broke" in text)


def test_flags_go_before_the_file(tmp_path):
    write(tmp_path, TWO_LINES + "held_out: none\n", file="all.jsonl")
    task = own_task(tmp_path, "x", input="{{text}} Bad?", choices=None)
    assert examples(task, tmp_path)[0] == ("It broke at once. Bad?", "yes", ("no", "yes"))
    with pytest.raises(InputError, match=r"validation\.jsonl does not exist"):
        examples(task, tmp_path, "validation")
    written = own_task(tmp_path, "x", target="So: {{label}}")
    text = "It broke at once. Is this a complaint?"
    assert examples(written, tmp_path)[0] == (text, "So: yes", ("So: yes",))


def test_files_may_be_named(tmp_path):
    write(tmp_path, None, file="y2020.jsonl")
    more = "splits: {train: y2020.jsonl, validation: y2021.csv}\n"
    write(tmp_path, TWO_LINES + more, ROWS[:2], "y2021.csv")
    task = own_task(tmp_path, "x")
    assert len(examples(task, tmp_path)) == 4
    assert len(examples(task, tmp_path, "validation")) == 2


def test_a_share_is_held_out_and_told(tmp_path):
    rows = [{"text": f"t{i % 40}", "label": "no" if i % 4 else "yes"} for i in range(80)]
    write(tmp_path, TWO_LINES + "held_out: 0.2\nseed: 3\n", rows)
    report = RowReport()
    task = own_task(tmp_path, "x")
    train = {e[0] for e in examples(task, tmp_path, "train", report)}
    held = {e[0] for e in examples(task, tmp_path, "validation", report)}
    assert not train & held
    assert len(train) == 32
    assert len(held) == 8
    assert report.lines() == [
        "x has no file for validation: 16 of 80 rows of train are held out for it, and not trained "
        "on (held_out 0.2 of each class, seed 3)"
    ]


def test_a_blank_input_leaves_a_row_out(tmp_path):
    write(tmp_path, "input: \"{{text if 'order' not in text}}\"\nchoices: [no, yes]\n")
    assert len(every(own_task(tmp_path, "x"), tmp_path)) == 3


def test_a_masked_model_has_its_mask_where_it_is_written(tmp_path):
    write(tmp_path, 'input: "{{text}} {{mask}}, I complain."\nchoices: [no, yes]\n')
    task = own_task(tmp_path, "x")
    dataset, folder = find_source(task.dataset, tmp_path)
    row = read_rows(dataset, "train", folder)[0]
    with_mask = row | {"mask": "[MASK]"}
    assert with_mask.where == row.where
    assert task.formats[0].render_all(with_mask)[0].input.endswith(" [MASK], I complain.")


def test_a_head_has_no_use_for_choices_of_each_row(tmp_path):
    from peft_jax.backbones import TINY
    from peft_jax.tasks.encoders import label_examples

    rows = [{"q": "x", "options": ["a", "b"], "label": i % 2} for i in range(4)]
    write(tmp_path, 'input: "{{q}}"\nchoices: options\n', rows)
    with pytest.raises(InputError, match="has no classes that all of its rows share"):
        label_examples("x", "train", backbone_vocabulary_path=TINY, directory=tmp_path)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{{a}} {{b.c}} {{ d[0] | upper }}", ["a", "b", "d"]),
        ("{{a if b else c}} {% if d %}{{e}}{% endif %}", []),
        ("{{a is defined}} {{b | default('x')}} {{c}}", ["c"]),
        ("{% for x in items %}{{x}}{{y}}{% endfor %}", ["items", "y"]),
        ('{{row["two words"]}} {{answer_choices[0]}}', ["two words"]),
        ("{% set x = 1 %}{{x}}", []),
    ],
)
def test_fields_that_a_template_needs(text, names):
    assert sorted(needed_fields(text)) == sorted(names)


IN = 'input: "{{text}}"\n'


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        ("[1", r"task\.yaml is not YAML"),
        ("input: {{text}} Bad?\nchoices: [a, b]", r"not YAML.*must stand in .quotes."),
        ("input: {{text}}\nchoices: [a, b]", r"task\.yaml.*must stand in .quotes."),
        ("just words", r"task\.yaml must hold lines"),
        (IN + "choises: [a, b]", r"task\.yaml: there is no key 'choises'; nearest: choices"),
        (IN, r"task\.yaml: give choices .* or target"),
        ("choices: [a, b]", r"there is no input"),
        ("input: text\nchoices: [a, b]", r"input: 'text' is the same for every row"),
        (IN + "target: label", r"target: 'label' is the same for every row"),
        (IN + "choices: [a]", r"choices: the rows have no field 'a'"),
        (IN + "choices: [a, a]", r"choices has 'a' twice"),
        (IN + "choices: {a: b}", r"choices must be a list of texts"),
        (IN + "choices:", r"choices must be a text"),
        (IN + "choices: [no, yes]\nlabels: [a, b, c]", r"2 choices \(no, yes\), but 3 labels"),
        (IN + "choices: [no, yes]\nreferences: text", r"references are for open answers"),
        (
            "input: '{{txt}}'\nchoices: [no, yes]",
            r"input: the rows have no field 'txt'; nearest: t",
        ),
        ("input: '{{text'\nchoices: [no, yes]", r"input: jinja2 cannot parse '{{text'.*line 1"),
        ("input: '{{text | uper}}'\nchoices: [no, yes]", r"cannot parse.*No filter named 'uper'"),
        (IN + "choices: [no, yes]\nlabel: lable", r"label: the rows have no field 'lable'.*label"),
        (IN + "choices: [no, yes]\nmetrics: acuracy", r"no metric is named 'acuracy'; .*accuracy"),
        (IN + "choices: [no, yes]\nheld_out: 2", r"held_out must be between 0 and 1, or none.*'2'"),
        (IN + "choices: [no, yes]\nseed: x", r"seed must be a whole number, not 'x'"),
        (IN + "choices: [no, yes]\nname: other", r"is task 'other', and 'mine' was asked for"),
        (IN + "choices: [no, yes]\nsplits: x", r"splits must be a mapping"),
        (IN + "choices: [no, yes]\nsplits: {trian: x}", r"'trian' is no split; nearest: train"),
        (IN + "choices: [no, yes]\nsplits: {train: x.csv}", r"train: there is no file .*x\.csv"),
        (IN + "prompts: {a: {target: '{{text}}'}}", r"either input or prompts"),
        ("prompts: {a: {target: '{{text}}'}}", r"prompt 'a': there is no input"),
        ("prompts: {a: {inputs: x}}", r"prompt 'a': there is no key 'inputs'; nearest: input"),
        ("prompts: {a: x}", r"prompt 'a' must be a mapping"),
        (
            "prompts: {a: {input: '{{text}}', target: '{{label}}'}, "
            "b: {input: '{{text}}', choices: [no, yes]}}",
            r"all prompts must have choices, or none",
        ),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, configuration, words):
    write(tmp_path, configuration)
    with pytest.raises(InputError, match=words) as caught:
        own_task(tmp_path, "mine")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input": "{{txt}}", "choices": ("a", "b")}, r"--data\.input: input: .*no field 'txt'"),
        ({"input": "{{text}}"}, r"--data\.input: give choices"),
        ({"choices": ("a", "b")}, r"there is no input: .*--data\.input"),
        ({"input": "{{text}}", "lable": "x"}, r"--data\.lable: there is no key 'lable'"),
    ],
)
def test_flags_that_cannot_be_used(tmp_path, given, words):
    write(tmp_path, None)
    with pytest.raises(InputError, match=words):
        own_task(tmp_path, "mine", **given)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="neither a folder nor a file"):
        own_task(tmp_path / "nowhere", "x")
    (tmp_path / "task.yaml").write_text(TWO_LINES)
    with pytest.raises(InputError, match=r"no file train\.jsonl .*there: none"):
        own_task(tmp_path, "x")
    write(tmp_path, file="a.jsonl")
    write(tmp_path, file="b.jsonl")
    with pytest.raises(InputError, match=r"there: a\.jsonl, b\.jsonl; say which is which"):
        own_task(tmp_path, "x")
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"train\.jsonl is empty"):
        own_task(tmp_path, "x")
    assert resolve("x", None) is None
    assert resolve("x", tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"q": "q", "options": ["a", "b"], "label": "c"}, r"label: 'c' is none of.*0 'a', 1 'b'"),
        ({"q": "q", "options": ["a", "b"], "label": 2}, r"label: 2 is none of the row's choices"),
        ({"q": "q", "options": 3, "label": 0}, r"choices: 'options' is int, not a list"),
        ({"q": "q", "options": ["a", "", "b"], "label": 0}, r"choice 1 of 3 is blank"),
    ],
)
def test_a_row_that_a_prompt_cannot_use_is_named(tmp_path, row, words):
    """The place is the one that the row was read from: with file and line."""
    from peft_jax.tasks.prompted import PromptedTask

    good = [{"q": f"{i}", "options": ["a", "b"], "label": i % 2} for i in range(4)]
    write(tmp_path, 'input: "{{q}}"\nchoices: options\nheld_out: none\n', [*good, row])
    task = own_task(tmp_path, "x")
    for report, skipped in ((RowReport(), None), (RowReport("skip"), 1)):
        rows = read_rows(task.dataset, "train", tmp_path, report)
        prompted = PromptedTask("x", task.dataset, task.formats, lambda _, r=rows: r, None, task,
                                report)  # fmt: skip
        if skipped is None:
            with pytest.raises(InputError, match=r"train\.jsonl:5: .*" + words):
                prompted.prompted("train")
        else:
            assert len(prompted.prompted("train")) == 4
            (line,) = report.lines()
            assert line.startswith("skipped 1 of 5 prompts of x train: ")


def test_a_prompt_that_no_row_fits_is_an_error_even_where_bad_rows_are_skipped(tmp_path):
    """The other prompt's rows would hide it; rows that both refuse have one line together."""
    from peft_jax.tasks.prompted import find_task

    text = "choices: [no, yes]\nheld_out: none\nprompts:\n"
    text += "  a: {input: \"{{text[99 if 'order' in text else 0].upper()}}\"}\n"
    write(tmp_path, text + "  b: {input: \"{{text[99 if 'order' in text else 3].upper()}}\"}\n")
    task = find_task("x", directory=tmp_path, on_bad_row="skip")
    assert len(task.prompted("train")) == 6
    (line,) = task.report.lines()
    assert line.startswith("skipped 2 of 8 prompts of x train: ")
    assert "train.jsonl:3: " in line
    write(tmp_path, text + '  b: {input: "{{text + 1}}"}\n')
    with pytest.raises(InputError, match=r"none of the 4 prompts of x train under 'b' can be used"):
        find_task("x", directory=tmp_path, on_bad_row="skip").prompted("train")


def test_the_page_explains_every_line():
    page = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text(encoding="utf-8")
    _, _, table = page.partition("## Lines of task.yaml")
    assert all(f"`{key}`" in table for key in KEYS)
    assert all(f"`.{ending}`" in page for ending in READERS)


@pytest.mark.parametrize("number", range(4))
def test_the_pages_configurations_can_be_used(tmp_path, number):
    page = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text(encoding="utf-8")
    written = page.split("```yaml\n")[2 + number].partition("```")[0]
    row = {"options": ["x", "y"], "answer_key": "B", "simplifications": ["a", "b"],
           "a": "x", "b": "y", "c": "", "d": "", "correct": "2"}  # fmt: skip
    texts = ("question", "sentence", "text")
    labels = ["no", "yes"] * 2
    rows = [row | dict.fromkeys(texts, f"{i}") | {"label": y} for i, y in enumerate(labels)]
    write(tmp_path, written, rows)
    found = every(own_task(tmp_path, "x"), tmp_path)
    right = [("y", ("x", "y")), ("y", ("x", "y")), ("a", ("a", "b")), ("no", ("no", "yes"))]
    assert right[number] in {entry[1:] for entry in found}


def test_nothing_in_a_template_is_run(tmp_path):
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    write(tmp_path, f'input: "{{{{text}}}} {attack}"\nchoices: [no, yes]\n')
    with pytest.raises(InputError, match="SecurityError"):
        every(own_task(tmp_path, "x"), tmp_path)
