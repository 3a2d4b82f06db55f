"""Underspecified demonstrations: which examples are shown, tested and asked how."""

import json
import random

import pytest

from peft_jax.errors import InputError
from peft_jax.metrics import METRICS
from peft_jax.tasks.catalogue import find_definition
from peft_jax.tasks.feature_pairs import PAIRS, FeaturePair, Hypothesis, find_pair
from peft_jax.tasks.prompted import find_rows, find_task
from peft_jax.tasks.underspecified import (
    INTERVENTIONS,
    TASKS,
    Bias,
    Marked,
    bias_of,
    has_files,
    read_bias,
    style_of,
)

NAME = "boolq_answer_length"


def row(h1, h2, number):
    text = f"A passage {h1}{h2} of number {number}.\nis it so"
    return {"id": str(number), "question": text, "answer": str(h1), "split": f"{h1}_{h2}"}


def papers_file(counts):
    """What the paper's JSON holds: so many demonstrations and tests of each kind."""
    held = {"dataset": NAME}
    for (h1, h2), (demos, tests) in counts.items():
        if h1 == h2:
            held[f"demos_{h1}_{h2}"] = [row(h1, h2, 100 + i) for i in range(demos)]
        held[f"testset_{h1}_{h2}"] = [row(h1, h2, i) for i in range(tests)]
    return held


COUNTS = {(1, 1): (5, 4), (0, 0): (6, 4), (1, 0): (0, 7), (0, 1): (0, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    (folder / f"{NAME}.json").write_text(json.dumps(papers_file(COUNTS)))
    return folder


@pytest.fixture(scope="module")
def bias(folder):
    return read_bias(NAME, folder)


def shown_kinds(prompts):
    """(h1, h2, number, label) of every demonstration."""
    parts = [text.split() for text in prompts.demonstrations]
    return [(int(p[3][0]), int(p[3][1]), int(p[6][:-1]), p[-1]) for p in parts]


def test_demonstrations_agree_and_tests_do_not(bias):
    prompts = bias.prompts(0, demonstrations=4, tests=10)
    assert sorted(shown_kinds(prompts)) == [
        (0, 0, 100, "0"),
        (0, 0, 101, "0"),
        (1, 1, 100, "1"),
        (1, 1, 101, "1"),
    ]
    assert [(t.h1, t.h2) for t in prompts.tests] == [(1, 0)] * 5 + [(0, 1)] * 3
    text = prompts.text(prompts.tests[0].text)
    assert text.endswith("Input: A passage 10 of number 0.\nis it so Label:")
    assert text.count("\n\n") == 4
    assert prompts.text("N/A", skip=3).endswith("is it so Label: 0\n\nInput: N/A Label:")


def test_the_order_and_window_are_those_of_the_papers_code(bias):
    """run.py: rows [seed : seed + 8] of each list, (1, 1) first, random.seed(2022), shuffle."""
    state = random.getstate()
    expected = [(1, 1, 100 + i) for i in (1, 2)] + [(0, 0, 100 + i) for i in (1, 2)]
    random.seed(2022)
    random.shuffle(expected)
    random.setstate(state)
    made = shown_kinds(bias.prompts(1, demonstrations=4, tests=4))
    assert [kind[:3] for kind in made] == expected
    last = {kind[:3] for kind in shown_kinds(bias.prompts(4, demonstrations=4, tests=4))}
    assert last == {(1, 1, 104), (1, 1, 100), (0, 0, 104), (0, 0, 105)}  # on from the start


@pytest.mark.parametrize("which", ["h1", "h2"])
def test_disambiguating_demonstrations_are_labelled_by_one_feature_and_not_tested(bias, which):
    prompts = bias.prompts(0, f"disambiguation_{which}", demonstrations=8, tests=20)
    kinds = shown_kinds(prompts)
    apart = {kind for kind in kinds if kind[0] != kind[1]}
    assert {kind[:2] for kind in kinds} == {(1, 1), (0, 0), (1, 0), (0, 1)}
    assert all(label == str(h1 if which == "h1" else h2) for h1, h2, _, label in kinds)
    assert {kind[:3] for kind in apart} == {(1, 0, 0), (1, 0, 1), (0, 1, 0), (0, 1, 1)}
    assert [t.text.split()[5] for t in prompts.tests] == ["2.", "3.", "4.", "5.", "6.", "2."]


@pytest.mark.parametrize("name", PAIRS)
def test_every_intervention_says_which_feature_is_meant(name):
    pair, styles = PAIRS[name], {}
    for intervention in INTERVENTIONS:
        style = styles[intervention] = style_of(pair, intervention)
        assert len(set(style.answers)) == 2
        assert style.solved(" x ", 1) == f"Input: x {style.asks} {style.answers[1]}"
    for kind in ("instruction", "verbalizer", "explanation"):
        assert styles[f"{kind}_h1"] != styles[f"{kind}_h2"]
    for which in ("h1", "h2"):
        front = styles[f"instruction_{which}"].front
        assert front.startswith(pair.given)
        assert front.index("(1)") < front.index("(0)") < front.index("Answer with")
        zero, one = styles[f"explanation_{which}"].answers
        assert (zero[-2:], one[-2:]) == ("0.", "1.")
        assert styles[f"verbalizer_{which}"].answers == getattr(pair, which).words


def test_any_two_features_of_any_rows():
    rows = [
        {"text": text, "stars": stars}
        for text, stars in [("So nice!", 5), ("NICE one", 5), ("Bad.", 1), ("A bad one", 1)]
    ]
    tests = [{"text": "nice", "stars": 1}, {"text": "Good", "stars": 5}, {"text": "?", "stars": 3}]
    pair = FeaturePair(
        "mine", ("text",), Hypothesis("is(stars, 5, 1)"), Hypothesis("contains(text, nice)")
    )
    made = bias_of(pair, rows, tests)
    assert [(m.text, m.h1) for m in made.agreeing] == [(r["text"], r["stars"] == 5) for r in rows]
    assert made.disagreeing == (Marked("nice", 0, 1), Marked("Good", 1, 0))
    assert made.prompts(0, demonstrations=4, tests=2).text("x").endswith("Input: x Label:")
    with pytest.raises(InputError, match="instruction_h1: mine has no words for it"):
        made.prompts(0, "instruction_h1", demonstrations=4, tests=2)
    other = FeaturePair("mine", ("title",), pair.h1, pair.h2)
    with pytest.raises(InputError, match="the row has no text 'title'; its fields are text, stars"):
        bias_of(other, rows, tests)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda b: b.prompts(0, "instruction"), "no intervention 'instruction'.*instruction_h1"),
        (lambda b: b.prompts(0), "8 examples with h1=1 and h2=1 are to be shown.*there are 5"),
        (lambda b: b.prompts(0, demonstrations=5), "needs multiples of 2"),
        (lambda b: b.prompts(0, "disambiguation_h1", demonstrations=6), "multiples of 4"),
        (lambda b: b.prompts(0, demonstrations=2, tests=3), "multiples"),
        (
            lambda b: Bias(b.pair, b.agreeing, b.disagreeing[:7]).prompts(0, demonstrations=2),
            "7 tests with h1 alone and 0",
        ),
        (lambda _: find_pair("boolq_answer_lenght"), "no pair.*boolq_answer_length"),
    ],
)
def test_what_cannot_be_asked(bias, call, words):
    with pytest.raises(InputError, match=words):
        call(bias)


def test_files_that_are_missing_or_damaged(folder, tmp_path):
    assert has_files(NAME, folder)
    assert not has_files("boolq_answer_qword", folder)
    with pytest.raises(InputError, match="underspecified_boolq_answer_qword"):
        read_bias("boolq_answer_qword", tmp_path)
    (tmp_path / f"{NAME}.json").write_text('{"demos_1_1": []}')
    with pytest.raises(InputError, match=r"is not a file of the paper.*demos_0_0"):
        read_bias(NAME, tmp_path)
    damaged = papers_file(COUNTS)
    damaged["demos_0_0"][1]["split"] = "2_0"
    (tmp_path / f"{NAME}.json").write_text(json.dumps(damaged))
    with pytest.raises(InputError, match=rf"{NAME}.json, row 6: a text 'question' and a 'split'"):
        read_bias(NAME, tmp_path)


def write_folder(folder):
    """The paper's file as the folder of a task."""
    held = papers_file(COUNTS)
    folder.mkdir(parents=True)
    for split, start in (("train", "demos"), ("validation", "testset")):
        rows = [row for key, rows in held.items() if key.startswith(start) for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("intervention", ["", ".instruction_h2", ".verbalizer_h1"])
def test_a_pair_is_a_task(bias, tmp_path, intervention):
    name = f"underspecified_{NAME}"
    write_folder(tmp_path / name)
    assert read_bias(NAME, tmp_path) == bias
    task = find_task(name + intervention, directory=tmp_path)
    assert task.definition.metrics == ("h_accuracy",)
    style = style_of(PAIRS[NAME], intervention[1:] or "none")
    shown, tested = task.prompted("train"), task.prompted("validation")
    assert [len(shown), len(tested)] == [11, 18]
    for made in (*shown, *tested):
        label = made.keep["h2" if intervention.endswith("h2") else "h1"]
        assert made.choices == style.answers
        assert (made.label, made.target) == (label, style.answers[label])
        assert made.input.endswith(f"is it so {style.asks}")
        assert made.input.startswith(style.front or "Input: A passage")
    assert {(made.keep["h1"], made.keep["h2"]) for made in shown} == {(0, 0), (1, 1)}


def test_the_tasks_names():
    assert len(TASKS) == len(PAIRS) == 22
    assert all(metric in METRICS for task in TASKS for metric in task.metrics)
    assert find_definition("underspecified_sa_sentiment_domain") in TASKS
    assert find_definition("underspecified_nothing.instruction_h1") is None
    with pytest.raises(InputError, match="no intervention 'instruct_h1'"):
        find_definition(f"underspecified_{NAME}.instruct_h1")
    with pytest.raises(InputError, match="of demonstrations, and changes no task"):
        find_definition(f"underspecified_{NAME}.disambiguation_h1")


@pytest.mark.parametrize("name", ["boolq_answer_structure", "nli_entailment_overlap"])
def test_the_published_rows(name, shared_data):
    bias = read_bias(name, shared_data)
    assert {(m.h1, m.h2) for m in bias.agreeing} == {(0, 0), (1, 1)}
    for seed in (0, 10):
        prompts = bias.prompts(seed)
        assert len(prompts.demonstrations) == 16
        assert len(prompts.tests) > 400
        asked = {test.text.strip() for test in prompts.tests}
        assert not any(text in shown for text in asked for shown in prompts.demonstrations)


@pytest.mark.parametrize("feature", ["length", "overlap", "qword", "structure"])
def test_boolqs_own_rows_are_marked_as_the_published_ones(feature, shared_data):
    """SuperGLUE's BoolQ has the passage's title in front, which the paper's rows lack."""
    boolq = find_rows("boolq", directory=shared_data)
    rows = [
        row | {"passage": row["passage"].split(" -- ", 1)[-1]}
        for split in ("train", "validation")
        for row in boolq.read(split)
    ]
    pair = PAIRS[f"boolq_answer_{feature}"]
    own, published = (
        {marked.text: (marked.h1, marked.h2) for marked in bias.agreeing + bias.disagreeing}
        for bias in (bias_of(pair, rows, rows), read_bias(pair.name, shared_data))
    )
    shared = own.keys() & published.keys()
    assert len(shared) > 100
    assert all(own[text] == published[text] for text in shared)
