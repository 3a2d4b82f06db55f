"""A task into plain arrays: through seqio, onto disk, and on the real data."""

import json

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples, FewShotSampler, vocabulary_identity
from peft_jax.tasks.prompted import find_task
from tests.small_task import write_rows, write_task, write_vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("data") / "mine")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture
def options(folder, vocabulary):
    return {"backbone_vocabulary_path": vocabulary, "directory": folder}


@pytest.fixture
def t5_vocabulary(shared_data):
    return shared_data / "oracles" / "t5_vocab" / "spiece.model"


def test_arrays_hold_every_row_with_the_fewest_places(options, folder):
    from peft_jax.tasks.prepare import choice_examples

    examples = choice_examples("mine", "train", **options, max_input_length=40)
    rows = find_task("mine", directory=folder).prompted("train")
    assert examples.template_names == ("plain question", "some rows only", "three answers")
    assert examples.label.tolist() == [row.label for row in rows]
    assert examples.example.tolist() == [row.example for row in rows]
    assert examples.choice_mask.sum(axis=1).tolist() == [len(row.choices) for row in rows]
    lengths = (examples.encoder_input_tokens != 0).sum(axis=1)
    assert examples.encoder_input_tokens.shape[1] == lengths.max() == 40
    ends = examples.encoder_input_tokens[np.arange(len(rows)), lengths - 1]
    assert (ends == 1).all()
    assert (examples.choices != 0).any(axis=(0, 1)).all()
    rounded = choice_examples("mine", "train", **options, max_input_length=40, multiple=16)
    assert rounded.encoder_input_tokens.shape[1] == 48
    assert rounded.choices.shape[2] % 16 == 0


def test_prepare_writes_what_a_machine_without_tensorflow_reads(options, vocabulary, tmp_path):
    from peft_jax.tasks.prepare import prepare

    path = tmp_path / "mine.safetensors"
    written = prepare("mine", path, **options, shots=4, seed=1)
    read = ChoiceExamples.load(path, vocabulary_identity(vocabulary))
    assert read.num_examples == 4
    assert read.details == written.details
    assert (read.details["shots"], read.details["few_shot_seed"]) == (4, 1)
    next(FewShotSampler(read, 4, seed=0))
    with pytest.raises(InputError, match="exists"):
        prepare("mine", path, **options)
    assert prepare("mine", path, **options, overwrite=True).num_examples == 12


def test_another_split_may_be_drawn_from(vocabulary, tmp_path):
    from peft_jax.tasks.prepare import choice_examples

    folder = write_task(tmp_path / "mine")
    (folder / "train.jsonl").rename(folder / "train_full.jsonl")
    options = {"backbone_vocabulary_path": vocabulary, "directory": folder}
    drawn = choice_examples("mine", "train_full", **options, shots=2, seed=0)
    assert drawn.num_examples == 2
    by_class = {"shots": 2, "seed": 0, "few_shot_style": "per_class"}
    assert choice_examples("mine", "train_full", **options, **by_class).num_examples == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_choice_length": 4}, "the choice .* has .* tokens with EOS, the limit is 4"),
        ({"max_input_length": 1}, "max_input_length 1"),
        ({"multiple": 0}, "multiple 0"),
        ({"shots": 4}, "without a few-shot seed"),
        ({"shots": 40, "seed": 0}, "40 shots cannot be drawn"),
        ({"shots": 4, "seed": 0, "few_shot_style": "x"}, "few-shot style 'x'"),
        ({"backbone_vocabulary_path": "absent"}, "no vocabulary at"),
    ],
)
def test_requests_that_cannot_be_met(options, change, words):
    from peft_jax.tasks.prepare import choice_examples

    with pytest.raises(InputError, match=words):
        choice_examples("mine", "train", **options | change)


def test_rte_draws_as_tfew(shared_data, t5_vocabulary):
    from peft_jax.tasks.prepare import choice_examples

    examples = choice_examples(
        "rte", "train", backbone_vocabulary_path=t5_vocabulary, directory=shared_data,
        shots=32, seed=42,
    )  # fmt: skip
    file = shared_data / "tfew_few_shot" / "rte" / "32_shot" / "42_seed.jsonl"
    published = [json.loads(line) for line in file.read_text().splitlines()]
    assert examples.example_ids.tolist() == [row["idx"] for row in published]
    assert (len(examples), examples.num_templates) == (320, 10)
    yes_no = examples.template_names.index("can we infer")
    row = np.flatnonzero(examples.template == yes_no)[0]
    assert examples.choices[row, :, :2].tolist() == [[2163, 1], [465, 1]]  # Yes, No
    assert not examples.choices[row, :, 2:].any()


@pytest.mark.oracle
def test_tokens_equal_hugging_faces_t5(shared_data, t5_vocabulary, tmp_path):
    transformers = pytest.importorskip("transformers")
    from peft_jax.tasks.prepare import choice_examples

    (tmp_path / "spiece.model").symlink_to(t5_vocabulary)
    tokenizer = transformers.T5Tokenizer.from_pretrained(tmp_path)
    options = {"directory": shared_data, "shots": 32, "seed": 0}
    for task in ("rte", "copa", "wsc"):
        examples = choice_examples(
            task, "train", backbone_vocabulary_path=t5_vocabulary, max_input_length=64, **options
        )
        found = find_task(task, directory=shared_data)
        texts = {(r.example, r.template): r for r in found.prompted("train")}
        for i in range(len(examples)):
            text = texts[int(examples.example[i]), int(examples.template[i])]
            expected = tokenizer(text.input, truncation=True, max_length=64).input_ids
            got = examples.encoder_input_tokens[i]
            assert got[got != 0].tolist() == expected
            for choice, words in zip(examples.choices[i], text.choices, strict=True):
                assert choice[choice != 0].tolist() == tokenizer(words).input_ids


def test_banking77_as_a_users_folder(shared_data, t5_vocabulary, tmp_path):
    from peft_jax.tasks.prepare import choice_examples

    names = json.loads((shared_data / "banking77" / "categories.json").read_text())
    lines = (shared_data / "banking77" / "validation.jsonl").read_text().splitlines()[:40]
    rows = [json.loads(line) for line in lines] + [{"text": "x", "category": names[-1]}]
    for split in ("train", "validation"):
        write_rows(tmp_path, split, rows)
    (tmp_path / "categories.json").write_text(json.dumps(names))
    (tmp_path / "templates.yaml").write_text(
        """
templates:
  intent: !Template
    jinja: '{{text}} What is this about? ||| {{answer_choices[label]}}'
    answer_choices: '{{label_names | join("|||") | replace("_", " ")}}'
"""
    )
    options = {"backbone_vocabulary_path": t5_vocabulary, "directory": tmp_path}
    own = choice_examples("my_bank", "validation", **options)
    assert own.choices.shape[1] == 77
    assert own.choice_mask.all()
    assert own.label.tolist() == [names.index(row["category"]) for row in rows]
    # promptsource lists the intents in another order: the label follows the name.
    templates = shared_data / "promptsource_templates" / "banking77"
    published = choice_examples("my_bank", "validation", **options, templates=templates)
    first = published.subset(templates=[0])
    answers = [first.choices[i, first.label[i]] for i in range(len(first))]
    expected = [own.choices[i, own.label[i]] for i in range(len(own))]
    different = [
        i for i, (a, b) in enumerate(zip(answers, expected, strict=True))
        if a[a != 0].tolist() != b[b != 0].tolist()
    ]  # fmt: skip
    assert {rows[i]["category"] for i in different} <= {"Refund_not_showing_up"}
    assert (first.label != own.label).any()


def test_the_embedded_task_goes_the_same_way(vocabulary):
    from peft_jax.tasks.prepare import choice_examples

    examples = choice_examples(
        "embedded_entailment",
        "train",
        backbone_vocabulary_path=vocabulary,
        shots=8,
        seed=0,
        max_choice_length=128,
    )
    assert examples.num_examples == 8
    assert examples.num_templates >= 2
