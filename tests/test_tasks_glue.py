"""GLUE in T5's form: its texts to the character, its sources, the tasks in others' words."""

import pytest

from peft_jax.tasks.catalogue import definitions, find_definition
from peft_jax.tasks.datasets import DATASETS as TABLE
from peft_jax.tasks.glue import MIXTURES, MNLI_MISMATCHED, TASKS
from peft_jax.tasks.transfers import TRANSFERS
from tests.t5_formats import DEFINITIONS, cases, golden, made_by, render


@pytest.mark.parametrize(("task", "row", "examples"), cases("glue", "taskless_glue"))
def test_texts_are_t5s(task, row, examples):
    assert [[made.input, made.target] for made in render(task, row)] == examples


@pytest.mark.parametrize("task", [t for t in TASKS if "_from_" not in t.name], ids=lambda t: t.name)
def test_fixed_answers_are_t5s_label_words_in_their_order(task):
    words = golden()["label_words"].get(task.name.removeprefix("taskless_"))
    made = made_by(task.name)
    if words is None:
        assert task.name.endswith("glue_stsb")
        assert {one.choices for one in made} == {None}
        assert made[2].keep == {"score": 0.3}  # as people gave it, not as T5 rounds it
    else:
        assert {one.choices for one in made} == {tuple(words)}


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("mrpc", {"Quality": "1", "#1 ID": "3", "#2 ID": "4", "#1 String": "a", "#2 String": "b"}),
        ("qqp", {"id": "7", "qid1": "1", "question1": "a", "question2": "b", "is_duplicate": "1"}),
        ("mnli", {"index": "7", "sentence1": "b", "sentence2": "a", "gold_label": "neutral"}),
        ("stsb", {"index": "7", "genre": "x", "sentence1": "a", "sentence2": "b", "score": "3.75"}),
        ("qnli", {"index": "7", "question": "a", "sentence": "b", "label": "not_entailment"}),
        ("rte", {"index": "7", "sentence1": "a", "sentence2": "b", "label": "not_entailment"}),
        ("wnli", {"index": "7", "sentence1": "a", "sentence2": "b", "label": "1"}),
    ],
)
def test_the_headers_of_glues_own_files_are_known(name, header, tmp_path):
    from peft_jax.tasks.sources import read_rows

    task = DEFINITIONS[f"glue_{name}"]
    names, others = list(header), [value.replace("7", "8") for value in header.values()]
    label = next(key for key in ("Quality", "is_duplicate", "gold_label", "score", "label")
                 if key in header)  # fmt: skip
    others[names.index(label)] = {"1": "0", "3.75": "1.0"}.get(header[label], "entailment")
    lines = ["\t".join(line) for line in (names, header.values(), others)]
    split = task.dataset.splits.get("validation", "validation")
    (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    rows = read_rows(task.dataset, "validation", tmp_path)
    first, second = task.dataset.fields[:2]
    assert {rows[0][first], rows[0][second]} == {"a", "b"}
    assert rows[0]["idx"] == (7 if "7" in header.values() else 0)
    (made,) = render(f"glue_{name}", rows[0])
    assert made.target == ("3.8" if name == "stsb" else task.dataset.labels[1])


def test_one_folder_of_mnli_has_two_validation_sets(tmp_path):
    from peft_jax.tasks.sources import read_rows

    for which in ("matched", "mismatched"):
        rows = [f'{{"premise": "{which}", "hypothesis": "h", "label": {n}}}\n' for n in (0, 1)]
        (tmp_path / f"validation_{which}.jsonl").write_text("".join(rows))
    datasets = {"matched": DEFINITIONS["glue_mnli"].dataset, "mismatched": MNLI_MISMATCHED}
    for which, dataset in datasets.items():
        assert read_rows(dataset, "validation", tmp_path)[0]["premise"] == which


def test_usual_names_find_the_tasks():
    assert find_definition("glue_mnli_matched_v002").name == "glue_mnli"
    assert find_definition("taskless_glue_sst2_v200").name == "taskless_glue_sst2"
    assert find_definition("glue_sst2").dataset is TABLE["sst2"]


def test_mixtures_hold_what_t5_trains_on():
    weights = golden()["weights"]["glue"]
    trained = {find_definition(name).name: n for name, n in weights.items() if n}
    for mixture in MIXTURES:
        assert list(mixture.tasks) == list(trained)
        assert mixture.cap is None or max(weights.values()) < mixture.cap
    for name, count in trained.items():
        sizes = DEFINITIONS[name].dataset.sizes
        assert not sizes or sizes["train"] == count


@pytest.mark.parametrize(("source", "target"), [("mrpc", "qqp"), ("qqp", "mrpc")])
def test_a_paraphrase_task_is_asked_in_the_words_of_the_other(source, target):
    for _, row, ((text, answer),) in cases(f"glue_{target}"):
        (made,) = render(f"glue_{target}_from_{source}", row)
        assert made.input == text
        assert made.choices == DEFINITIONS[f"glue_{source}"].dataset.labels
        words = {"mrpc": "equivalent", "qqp": "duplicate"}
        # What the prompt-tuning repository does to the answer, done to the question.
        assert made.target.replace(words[source], words[target]) == answer


def test_transfers_name_tasks_of_one_form():
    tasks = definitions()
    for transfer in TRANSFERS:
        source = tasks[transfer.source]
        assert all(tasks[target].metrics == source.metrics for target in transfer.targets)
    assert {len(transfer.targets) for transfer in TRANSFERS} == {1, 6}
