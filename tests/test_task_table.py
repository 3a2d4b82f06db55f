"""The list of tasks and the examples of one: every task is there, and what is shown is read."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from peft_jax import task_table
from peft_jax.backbones import TINY
from peft_jax.cli import main
from peft_jax.errors import InputError
from peft_jax.task_preview import previews, print_previews, token_pieces
from peft_jax.tasks import catalogue, embedded
from peft_jax.tasks.prompted import find_task
from peft_jax.tokenizer import load_tokenizer
from tests.golden.make_tokenizers import SAMPLE

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[1] / "docs" / "tasks.md"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY)


# --------------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------------
def test_every_task_is_listed_once():
    names = [row.name for row in task_table.rows()]
    every = [f"embedded_{name}" for name in embedded.TASKS] + list(catalogue.offered())
    assert sorted(names) == sorted(every)
    assert len(set(names)) == len(names)


def test_a_row_says_what_the_definition_says():
    row = {row.name: row for row in task_table.rows()}
    assert row["rte"].source == "TFDS, hub super_glue/rte; files superglue_rte/"
    assert row["embedded_complaint"].splits == "train 4,000, validation 400"
    assert row["embedded_complaint"].prompts == "5"
    assert row["xsum"].splits == "train 204,045, validation 11,332, test 11,334"
    assert row["e2e_nlg"].metrics == "e2e"
    assert row["anli_r1"].splits.startswith("train 16,946, validation 1,000")


def test_sizes_are_those_of_our_splits():
    """A dataset that evaluates on another split of its source shows that split's size."""
    for task in catalogue.definitions().values():
        shown = task_table._splits(task)
        for split, name in task.dataset.splits.items():
            if name in task.dataset.sizes:
                assert f"{split} {task.dataset.sizes[name]:,}" in shown


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["rte"], {"rte"}),
        (["T-Few"], {"rte", "cb", "copa", "boolq"}),
        (["embedded_comfort", "embedded_comp"], {"embedded_comfort", "embedded_comparison"}),
    ],
)
def test_tasks_are_chosen_by_name_beginning_or_group(asked, found):
    assert found <= {row.name for row in task_table.rows(asked)}


def test_tasks_whose_names_are_made_on_demand_are_described(shared_data):
    (row,) = task_table.rows(["t0_ag_news_classify"], shared_data)
    assert row.present == ("train", "validation")
    assert "classify" in row.about


def test_a_directory_says_what_is_there_and_what_is_wanted(tmp_path):
    folder = tmp_path / "superglue_rte"
    folder.mkdir()
    (folder / "dev.jsonl").write_text(json.dumps({"premise": "a", "hypothesis": "b", "label": 0}))
    rte, cb, own = task_table.rows(["rte", "cb", "embedded_complaint"], tmp_path)
    assert (rte.present, rte.wanted, rte.prompts) == (("validation",), "", "3")
    assert (cb.present, cb.wanted.split()[0]) == ((), "superglue_cb/train.jsonl")
    assert own.present == ("train", "validation")


def test_names_that_are_not_there(capsys):
    assert main(["tasks", "rtee"]) == 2
    assert "no task is named 'rtee'; nearest: rte" in capsys.readouterr().err
    assert main(["tasks", "--directory", "/nowhere/at/all"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_the_command_prints_tasks_and_mixtures(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["tasks", "rte", "t0_train", "--directory", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"rte +TFDS, hub super_glue/rte.*absent", shown)
    assert "rte wanted: superglue_rte/train.jsonl" in shown
    assert re.search(r"t0_train +38 +by examples", shown)
    assert "rte: promptsource's templates of the original task" in " ".join(shown.split())


def test_the_page_has_the_tables_that_the_code_makes(capsys):
    assert main(["tasks", "--markdown"]) == 0
    assert capsys.readouterr().out == task_table.markdown()
    _, _, tables = DOCS.read_text(encoding="utf-8").partition("\n## All tasks\n\n")
    assert tables == task_table.markdown(), "run: peft-jax tasks --markdown"


def test_the_list_loads_no_tensorflow():
    code = (
        "import sys; from peft_jax import task_table, task_preview; task_table.rows();"
        "print([name for name in ('tensorflow', 'seqio', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------------------------
def test_examples_are_shown_as_they_are_read(tokenizer):
    task = find_task("embedded_entailment")
    shown = list(previews(task, "validation", examples=3))
    assert [p.row.example for p in shown] == [0, 1, 2]
    assert [p.template for p in shown] == [t.name for t in task.templates[:3]]
    rows = {(r.example, r.template): r for r in task.prompted("validation")}
    for preview in shown:
        assert preview.row == rows[preview.row.example, preview.row.template]
        ids = [id for _, id in preview.input]
        assert ids == tokenizer.input_ids(preview.row.input).ids
        assert "".join(piece for piece, _ in preview.input) == tokenizer.decode(ids)
        assert preview.answers == [len(tokenizer.target_ids(c)) for c in preview.row.choices]
        assert preview.cut == []


def test_what_is_cut_is_shown_between_what_is_read(tokenizer):
    task = find_task("embedded_entailment")
    (whole,) = previews(task, "validation", examples=1)
    (cut,) = previews(task, "validation", examples=1, max_input_length=9)
    ids = [id for _, id in cut.input]
    assert ids == tokenizer.input_ids(whole.row.input, max_length=9).ids
    assert cut.cut_at == 8  # before EOS
    pieces = [piece for piece, _ in cut.input]
    assert [*pieces[:8], *cut.cut, pieces[8]] == [piece for piece, _ in whole.input]
    assert cut.cut_tokens == len(cut.cut) == len(whole.input) - 9


def test_a_decoders_input_is_cut_at_its_start(monkeypatch):
    task = find_task("embedded_entailment")
    monkeypatch.setattr("peft_jax.task_preview.kind_of", lambda config: "decoder")
    (whole,) = previews(task, "validation", examples=1)
    (cut,) = previews(task, "validation", examples=1, max_input_length=9)
    assert cut.cut_at == len(whole.input) - 9 - cut.cut_tokens
    assert cut.input == whole.input[-9:]


def test_one_template_by_name_or_number():
    task = find_task("embedded_entailment")
    name = task.templates[2].name
    for wanted in (name, "2"):
        shown = list(previews(task, "validation", examples=2, template=wanted))
        assert [p.template for p in shown] == [name, name]
    with pytest.raises(InputError, match=r"no template 'beleive'; nearest: believe.*0 to 5"):
        list(previews(task, "validation", template="beleive"))


def test_an_example_to_which_a_template_does_not_apply_gives_way(tmp_path):
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"input": "{{ text if text == 't3' else '' }}", "choices": ("no", "yes")}
    task = find_task("mine", directory=tmp_path, own=own | {"held_out": "none"})
    (shown,) = previews(task, "train", examples=1)
    assert (shown.row.input, shown.row.example) == ("t3", 3)


LONG = "The children found 12 red apples, and none was sour. " * 3


@pytest.mark.parametrize("text", ["Who is it? 1 2", "a\nb  c", "", "née 日本", LONG])
def test_pieces_are_the_text(tokenizer, text):
    ids = tokenizer.input_ids(text).ids
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize("family", ["bert", "gemma", "gpt2", "llama2", "llama3", "roberta"])
def test_pieces_are_the_text_of_every_family(family):
    tokenizer = load_tokenizer(GOLDEN / "tokenizers" / family)
    for text in SAMPLE:
        ids = tokenizer.input_ids(text).ids
        assert "".join(token_pieces(tokenizer, ids)) == tokenizer.decode(ids)


class Bytes:
    """A tokenizer of single bytes, as byte-level vocabularies fall back to."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")

    def token(self, id):
        return chr(id)


def test_a_letter_of_several_tokens_is_shown_with_its_last():
    ids = list("aé日".encode()) * 5
    assert token_pieces(Bytes(), ids) == ["a", "", "é", "", "", "日"] * 5
    assert token_pieces(Bytes(), ids[:5])[-3:] == ["é", "", "\ufffd"]  # cut inside a letter


def printed(task, split, width=100, colour=None, **options):
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=colour, force_terminal=colour is not None)
    print_previews(console, task, split, list(previews(task, split, **options)))
    return out.getvalue()


def test_boundaries_are_seen_with_and_without_colours():
    task = find_task("embedded_entailment")
    plain = printed(task, "validation", examples=1)
    assert "evidence│:│" in plain
    assert "✓ Yes  2 tokens" in plain
    coloured = printed(task, "validation", examples=1, colour="truecolor")
    assert "│" not in coloured
    assert coloured.count("\x1b[30;48;2;") > 10
    cut = printed(task, "validation", examples=1, max_input_length=9)
    assert re.search(r"9 of \d+ tokens: \d+ are cut", cut)


def test_open_answers_are_shown_with_their_references(tmp_path):
    rows = [{"q": "what", "refs": ["first answer", "second [b] answer"]}] * 2
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"input": "{{q}}", "references": "refs", "held_out": "none"}
    task = find_task("mine", directory=tmp_path, own=own)
    shown = printed(task, "train", examples=1)
    assert re.search(r"target +first answer +\d+ tokens", shown)
    assert re.search(r"references +first answer", shown)
    assert "second [b] answer" in shown


def test_show_reads_a_csv_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    file = tmp_path / "tweets.csv"
    file.write_text("text,label\nbad,yes\ngood,no\nworse,yes\nbroken\nfine,no\n")
    flags = ["--directory", str(file), "--input", "{{text}} A complaint?", "--choices", "no", "yes"]
    command = ["tasks", "show", "tweets", *flags, "--split", "train"]
    assert main(command) == 2
    assert "tweets.csv:5: 1 columns, but the header names 2" in capsys.readouterr().err
    assert main([*command, "--on-bad-row", "skip"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"skipped 1 of 5 rows of {file}: {file}:5: 1 columns" in shown
    assert "2 of 4 rows of train are held out" in shown
    assert shown.startswith("tweets train, 2 examples, 1 prompt, accuracy")


def test_show_says_which_files_are_wanted(tmp_path, capsys):
    assert main(["tasks", "show", "rte", "--directory", str(tmp_path)]) == 2
    assert "wanted is superglue_rte/train.jsonl (or .json" in capsys.readouterr().err
