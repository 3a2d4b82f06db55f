"""Features of texts, by name; those of the paper against its published rows."""

import inspect

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks import text_features
from peft_jax.tasks.feature_pairs import PAIRS
from peft_jax.tasks.prompted import find_rows
from peft_jax.tasks.text_features import FEATURES, find_feature


@pytest.mark.parametrize(
    ("feature", "row", "value"),
    [
        ("longer(t, 2)", {"t": "one two  three"}, True),
        ("longer(t, 3)", {"t": "one two\nthree "}, False),
        ("shorter(t, 3)", {"t": "one two"}, True),
        ("shorter(t, 2)", {"t": "one two"}, False),
        ("capitals(t)", {"t": "I am NOT here."}, True),
        ("capitals(t)", {"t": "A 401K, I said"}, True),
        ("capitals(t)", {"t": "I am McAdams, plan B"}, False),
        ("exclaims(t)", {"t": "Great! "}, True),
        ("exclaims(t)", {"t": "Great."}, False),
        ("exclaims(t)", {"t": "Great?"}, None),
        ("exclaims(t)", {"t": ""}, None),
        ("contains(t, nice)", {"t": "Nice, really"}, True),
        ("contains(t, nice)", {"t": "nicer"}, False),
        ("contains(t, same as)", {"t": "is it the same  as that"}, True),
        ("negates(t)", {"t": "He won't go"}, True),
        ("negates(t)", {"t": 'He won\N{RIGHT SINGLE QUOTATION MARK}t, "no".'}, True),
        ("affirms(t)", {"t": "a notable knot"}, True),
        ("affirms(t)", {"t": "It is not."}, False),
        ("asks_be(t)", {"t": "Was it so"}, True),
        ("asks_be(t)", {"t": "does it so"}, False),
        ("asks_be(t)", {"t": "are they"}, None),
        ("asks_be(t)", {"t": " "}, None),
        ("shorter_than(a, b)", {"a": "x y", "b": "x y z"}, True),
        ("shorter_than(a, b)", {"a": "x y", "b": "xxx yyy"}, False),
        ("all_in(a, b)", {"a": "the Cat sat", "b": "The mat: the cat sat there"}, True),
        ("all_in(a, b)", {"a": "the cat sat.", "b": "the cat sat there"}, False),
        ("mostly_in(a, b)", {"a": "is the red rose sold", "b": "Red rose"}, True),
        ("mostly_in(a, b)", {"a": "is the red rose", "b": "red"}, False),
        ("mostly_in(a, b)", {"a": "is it the same as that", "b": "no"}, True),
        ("equals(l, 1)", {"l": 1}, True),
        ("equals(l, 1)", {"l": "2"}, False),
        ("equals(l, 1)", {"l": True}, True),
        ("is(g, fiction, government)", {"g": "fiction"}, True),
        ("is(g, fiction, government)", {"g": "government"}, False),
        ("is(g, fiction, government)", {"g": "telephone"}, None),
        ("at_least(a, b, 0.5)", {"a": 0.1, "b": 0.5}, True),
        ("at_least(a, 0.5)", {"a": 0.49}, False),
        ("rather(a, b, 0.5)", {"a": 1, "b": 0.0}, True),
        ("rather(a, b, 0.5)", {"a": 0.0, "b": 0.7}, False),
        ("rather(a, b, 0.5)", {"a": 0.6, "b": 0.7}, None),
        ("rather(a, b, 0.5)", {"a": 0.0, "b": 0.0}, None),
    ],
)
def test_features_of_rows(feature, row, value):
    assert find_feature(feature)(row) is value


def test_a_feature_says_what_it_reads():
    feature = find_feature(" contains( question ,same as)")
    assert (feature.text, feature.fields) == ("contains(question, same as)", ("question",))
    assert feature.about.startswith("Whether a word")
    assert all(inspect.getdoc(kind.function) for kind in FEATURES.values())


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ("longer", r"no feature: write name\(field"),
        ("longest(t, 3)", "no feature 'longest'.*longer"),
        ("longer(t)", r"write longer\(FIELD, WHOLE NUMBER\)"),
        ("longer(t, 3, 4)", r"write longer\(FIELD, WHOLE NUMBER\)"),
        ("longer(t, 3.5)", r"write longer\(FIELD, WHOLE NUMBER\)"),
        ("contains(t, )", r"write contains\(FIELD, WORD\)"),
        ("at_least(0.5)", r"write at_least\(FIELD, ..., NUMBER\)"),
    ],
)
def test_features_that_are_none(feature, words):
    with pytest.raises(InputError, match=words):
        find_feature(feature)


@pytest.mark.parametrize("row", [{"x": "one"}, {"t": 5, "x": "one"}])
def test_a_row_without_the_field(row):
    with pytest.raises(InputError, match=r"feature longer\(t, 3\): field 't'.*fields are"):
        find_feature("longer(t, 3)")(row)


def stored_fields(pair, text):
    """The fields that the paper's files join; the last is the last line."""
    if len(pair.fields) == 1:
        return {pair.fields[0]: text}
    front, _, last = text.strip().rpartition("\n")
    return dict(zip(pair.fields, (front, last), strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "boolq_answer_length",
        "boolq_answer_overlap",
        "boolq_answer_qword",
        "boolq_answer_structure",
        "nli_entailment_overlap",
    ],
)
def test_the_rules_agree_with_every_published_row(name, shared_data):
    pair = PAIRS[name]
    feature = find_feature(pair.h2.feature)
    task = find_rows(f"underspecified_{name}", directory=shared_data)
    rows = [row for split in ("train", "validation") for row in task.read(split)]
    assert len(rows) > 1000
    said = [feature(stored_fields(pair, row["question"])) for row in rows]
    assert said == [row["split"][2] == "1" for row in rows]


def test_every_feature_of_the_table_is_one():
    for pair in PAIRS.values():
        for hypothesis in (pair.h1, pair.h2):
            assert find_feature(hypothesis.feature).text == hypothesis.feature
    assert len(PAIRS) == 22
    assert text_features.BE_FORMS.isdisjoint(text_features.DO_FORMS)
