"""Table-to-text: the linearisations against the public code, the official files, all copies."""

import json
from pathlib import Path

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks import table_files
from peft_jax.tasks import table_to_text as tables
from peft_jax.tasks.prompted import find_task

GOLDEN = json.loads(
    (Path(__file__).parent / "golden" / "table_to_text.json").read_text(encoding="utf-8")
)
READERS = {"webnlg": table_files.webnlg, "dart": table_files.dart}
FILES = {"webnlg": "train.json", "dart": "dart-v1.1.1-full-train.json"}
TASKS = {task.name: task for task in tables.TASKS}


def rendered(task, row):
    (form,) = TASKS[task].formats
    (made,) = form.render_all(row)
    return made


@pytest.fixture(params=sorted(FILES))
def golden_rows(request, tmp_path):
    file = tmp_path / FILES[request.param]
    file.write_text(json.dumps(GOLDEN[request.param]), encoding="utf-8")
    return request.param, READERS[request.param](tmp_path, "train")


def test_training_texts_are_those_of_prefix_tuning(golden_rows):
    name, rows = golden_rows
    task = {"webnlg": "web_nlg", "dart": "dart"}[name]
    begin, end = GOLDEN["begin"], GOLDEN["end"]
    texts = [rendered(task, row) for row in rows]
    joined = [f"{made.input} {begin} {made.target} {end}" for made in texts]
    # They begin with one or two spaces, which the inputs of this package do not.
    assert joined == [text.strip() for text in GOLDEN["prefix_tuning"][name]]


def test_training_texts_are_those_of_lora(golden_rows):
    name, rows = golden_rows
    task = {"webnlg": "web_nlg_lora", "dart": "dart_lora"}[name]
    texts = [rendered(task, row) for row in rows]
    assert [(made.input, made.target) for made in texts] == [
        (line["context"], line["completion"]) for line in GOLDEN["lora"][name]
    ]
    if name == "webnlg":
        seen = [row["category"] in table_files.SEEN_CATEGORIES for row in rows]
        assert seen == [line["cate"] for line in GOLDEN["lora"][name]]


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_evaluation_row_has_every_reference(name, tmp_path):
    # The entries twice: inputs that are equal are one, with the texts of both.
    content = json.loads(json.dumps(GOLDEN[name]))
    if name == "webnlg":
        entries = content["entries"]
        content["entries"] = [
            {str(i + 1): next(iter(entry.values()))} for i, entry in enumerate(entries * 2)
        ]
        counts = [4, 4]
    else:
        content, counts = content * 2, [2, 4]
    (tmp_path / "dev.json").write_text(json.dumps(content), encoding="utf-8")
    rows = READERS[name](tmp_path, "validation")
    assert [len(row["references"]) for row in rows] == counts
    form = TASKS[{"webnlg": "web_nlg", "dart": "dart"}[name]].formats[0]
    for row in rows:
        (made,) = form.render_all(row)
        assert made.references == tuple(row["references"])
        assert made.target == made.references[0]
    assert READERS[name](tmp_path, "train") is None


XML = """<?xml version="1.0"?>
<benchmark><entries>
<entry category="{}" eid="Id1" size="2">
  <originaltripleset><otriple>A | b | C</otriple></originaltripleset>
  <modifiedtripleset>
    <mtriple>A_x | isB | C, D</mtriple><mtriple>A_x | f | 3</mtriple>
  </modifiedtripleset>
  <lex comment="good" lid="Id1">A x is the B of C &amp; D.</lex>
  <lex comment="toFix" lid="Id2">A x of C.</lex>
</entry>
</entries></benchmark>
"""


def test_xml_files_of_the_challenge(tmp_path):
    for place, category in (("train/2triples/a.xml", "Airport"), ("test/b.xml", "Politician")):
        file = tmp_path / place
        file.parent.mkdir(parents=True)
        file.write_text(XML.format(category), encoding="utf-8")
    (train,) = table_files.webnlg(tmp_path, "train")
    assert train["triples"] == [["A_x", "isB", "C, D"], ["A_x", "f", "3"]]
    assert train["references"] == ["A x is the B of C & D."]  # the other one is to fix
    (test,) = table_files.webnlg(tmp_path, "test")
    assert len(test["references"]) == 2
    assert table_files.webnlg(tmp_path, "test_unseen") == [test]
    assert table_files.webnlg(tmp_path, "test_seen") == []
    assert table_files.webnlg(tmp_path, "validation") is None


def test_e2e_csv_is_grouped_by_input(tmp_path):
    lines = ["mr,ref", '"name[A], near[B]",One.', "name[C],Two.", '"name[A], near[B]","Three, 3."']
    for name in ("trainset.csv", "devset.csv"):
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    train = table_files.e2e(tmp_path, "train")
    assert [row["references"] for row in train] == [["One."], ["Two."], ["Three, 3."]]
    validation = table_files.e2e(tmp_path, "validation")
    assert [row["references"] for row in validation] == [["One.", "Three, 3."], ["Two."]]
    assert {row["meaning_representation"] for row in validation} == {"name[A], near[B]", "name[C]"}


def test_converted_files_make_the_same_task(tmp_path):
    data = tmp_path / "data"
    published = data / "webnlg_2017"
    published.mkdir(parents=True)
    for split in ("train", "dev"):
        (published / f"{split}.json").write_text(json.dumps(GOLDEN["webnlg"]), encoding="utf-8")
    task = find_task("web_nlg", directory=data)
    begin, end = GOLDEN["begin"], GOLDEN["end"]
    assert [f"  {row.input} {begin} {row.target} {end}" for row in task.prompted("train")] == (
        GOLDEN["prefix_tuning"]["webnlg"]
    )
    assert [len(row.references) for row in task.prompted("validation")] == [2, 2]
    assert table_files.published("web_nlg").splits(published) == ("train", "validation")
    assert table_files.published("e2e_nlg").splits(published) == ()


def test_slots_of_e2e():
    meaning = (
        "name[The Mill], eatType[coffee shop], priceRange[£20-25], customer rating[5 out of 5], "
        "familyFriendly[yes], food[Fast food]"
    )
    # The strings of the prefix-tuning repository's e2e_data for these slots.
    assert tables.linearise_meaning(meaning) == (
        "name : The Mill | Type : coffee shop | price : £ 20 - 25 | customer rating : 5 out of 5 | "
        "family friendly : yes | food : Fast food"
    )
    assert tables.linearise_meaning("priceRange[less than £20]") == "price : less than £ 20"


TRIPLES = [["A", "isB", "C"], ["A", "d", "E"]]
COPIES = {
    "shared train": {
        "modifiedtripleset": ["A | isB | C", "A | d | E"],
        "lex": "T.",
        "comment": "good",
    },
    "shared validation": {"modifiedtripleset": ["A | isB | C", "A | d | E"], "refs": ["T."]},
    "hub": {
        "modified_triple_sets": {"mtriple_set": [["A | isB | C", "A | d | E"]]},
        "lex": {"text": ["T."], "comment": ["good"]},
    },
    "gem": {"input": ["A | isB | C", "A | d | E"], "references": [], "target": "T."},
    "dicts": {
        "modifiedtripleset": [
            dict(zip(("subject", "property", "object"), triple, strict=True)) for triple in TRIPLES
        ],
        "lex": "T.",
    },
}


@pytest.mark.parametrize("copy", sorted(COPIES))
def test_every_copy_of_webnlg_says_the_same(copy):
    (row,) = tables.webnlg_rows(COPIES[copy])
    assert row["triples"] == TRIPLES
    assert row["references"] == ["T."]
    assert rendered("web_nlg", row).input == "| A : isB : C | A : d : E"
    assert rendered("web_nlg_seq2seq", row).input == (
        "translate Graph to English: A : isB : C | A : d : E"
    )


def test_every_reference_is_trained_on(tmp_path):
    row = {"tripleset": TRIPLES, "annotations": {"text": ["T.", "U."], "source": ["s", "s"]}}
    for split in ("train", "validation"):
        file = tmp_path / "dart" / f"{split}-00000-of-00001.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    task = find_task("dart", directory=tmp_path)
    rows = task.prompted("train")
    assert [(made.target, made.references, made.example) for made in rows] == [
        ("T.", ("T.",), 0),
        ("U.", ("U.",), 1),
    ]
    (made,) = task.prompted("validation")
    assert made.references == ("T.", "U.")


def test_copies_of_dart_and_e2e():
    hub = {"tripleset": TRIPLES, "annotations": {"source": ["s"] * 2, "text": ["T.", "U."]}}
    assert tables.dart_rows(hub)[0]["references"] == ["T.", "U."]
    for row in ({"mr": "name[A]", "ref": "T."}, {"mr": "name[A]", "refs": ["T."]}):
        (made,) = tables.e2e_rows(row)
        assert rendered("e2e_nlg", made).references == ("T.",)
    made = {"meaning_representation": "name[A]", "human_reference": "T."}
    assert tables.e2e_rows(made)[0]["references"] == ["T."]


def test_a_text_that_is_to_be_fixed_is_not_trained_on():
    assert tables.webnlg_rows(COPIES["shared train"] | {"comment": "toFix"}) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tables.linearise_meaning("a restaurant"), "no meaning representation"),
        (lambda: tables.linearise_meaning("name[A], and more"), "no meaning representation"),
        (lambda: table_files.split_triple("A | b", "f.xml"), r"f.xml: triple 'A \| b' is not"),
        (lambda: tables.webnlg_rows({"modifiedtripleset": [["A", "b"]]}), "is not subject"),
    ],
)
def test_what_is_no_table_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize(
    ("reader", "file", "content", "words"),
    [
        (table_files.e2e, "devset.csv", "a,b\n1,2", "columns mr and ref"),
        (table_files.webnlg, "dev.json", "{}", "no list `entries`"),
        (table_files.webnlg, "dev.json", '{"entries": [{"1": {}}]}', "entry 1 is not in"),
        (table_files.webnlg, "dev.json", "{", "no JSON file"),
        (table_files.dart, "dart-v1.1.1-full-dev.json", '[{"tripleset": []}]', "entry 0"),
        (table_files.webnlg, "dev/a.xml", "<benchmark>", "no XML file"),
        (table_files.webnlg, "dev/a.xml", "<b><entry/></b>", "entry 1: a category and modified"),
    ],
)
def test_a_broken_file_is_named(reader, file, content, words, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words) as error:
        reader(tmp_path, "validation")
    assert str(tmp_path / file) in str(error.value)


def test_names_and_decoding_are_valid():
    from peft_jax.decoding import Decoding

    for task in tables.TASKS:
        Decoding(**task.decoding)
        assert len(task.formats) == 1
    assert TASKS["e2e_nlg"].decoding["beams"] == 5
    assert TASKS["web_nlg_lora"].decoding["beams"] == 10


@pytest.mark.parametrize(
    ("name", "train", "validation"), [("e2e_nlg", 2000, 630), ("web_nlg", 1992, 872)]
)
def test_real_files(name, train, validation, shared_data):
    task = find_task(name, directory=shared_data)
    rows = task.prompted("train")
    assert len(rows) == train  # of WebNLG's 2,000, 8 are marked as to be fixed
    assert all(row.references == (row.target,) and not row.choices for row in rows)
    rows = task.prompted("validation")
    assert len(rows) == validation
    assert max(len(row.references) for row in rows) > 1
    # Nothing of a value is lost on the way, only spaces.
    for row, (_, raw) in zip(rows, task.rows("validation"), strict=True):
        values = [v for t in raw.get("triples", ()) for v in t] or [
            value for _, value in tables.meaning_slots(raw["meaning_representation"])
        ]
        squeezed = "".join(row.input.split())
        assert all("".join(value.split()) in squeezed for value in values)


def test_all_rows_are_trained_on_by_default():
    from peft_jax.tasks import generation, ppt, summarization

    modules = (tables, summarization, generation)
    datasets = [task.dataset for module in modules for task in module.TASKS]
    assert {dataset.shots for dataset in datasets} == {0}
    assert {task.dataset.shots for task in ppt.PRETEXT_TASKS} == {0}
