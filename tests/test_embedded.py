"""The embedded tasks: their rows, templates, vocabulary and mixture, and the shipped backbone."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from peft_jax.backbones import TINY
from peft_jax.errors import InputError
from peft_jax.tasks.embedded import TASKS, TEMPLATES, _cached_rows, rows
from peft_jax.tasks.embedded.mixture import INPUT_LENGTHS, Mixture
from peft_jax.tasks.prompts import load_templates
from tests.families import quickly

HELD_OUT = [name for name, task in TASKS.items() if task.held_out]
TRAINED = [name for name, task in TASKS.items() if not task.held_out]
VOCABULARY = TINY / "spiece.model"


def templates(name):
    return load_templates(TEMPLATES / f"{name}.yaml").values()


def content(row):
    return json.dumps({k: v for k, v in row.items() if k not in ("idx", "label")}, sort_keys=True)


def test_there_are_enough_tasks_of_both_kinds():
    assert len(TRAINED) >= 10
    assert len(HELD_OUT) >= 3
    assert {file.stem for file in TEMPLATES.glob("*.yaml")} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_always_the_same_and_a_small_draw_begins_a_large_one(name):
    first = rows(name, "train", 60)
    _cached_rows.cache_clear()
    assert rows(name, "train", 80)[:60] == first
    assert [row["idx"] for row in first] == list(range(60))


@pytest.mark.parametrize("name", quickly(TASKS, tuple(TASKS)[:3]))
def test_rows_are_distinct_and_no_validation_row_is_trained_on(name):
    train = {content(row) for row in rows(name, "train")}
    validation = {content(row) for row in rows(name, "validation")}
    assert len(train) == 4000
    assert len(validation) == 400
    assert not train & validation


@pytest.mark.parametrize("name", TASKS)
def test_labels_are_valid_and_roughly_balanced(name):
    found = rows(name, "train")
    labels = TASKS[name].labels
    classes = len(labels) if labels else sum(key.startswith("choice") for key in found[0])
    counts = Counter(row["label"] for row in found)
    assert sorted(counts) == list(range(classes))
    assert min(counts.values()) > 0.8 * len(found) / classes


@pytest.mark.parametrize("name", TASKS)
def test_every_template_asks_every_row_and_offers_its_answer(name):
    found = list(templates(name))
    assert 4 <= len(found) <= 8
    for template in found:
        for row in rows(name, "train", 100):
            rendered = template.render(row)
            assert rendered.choices[row["label"]] == rendered.target
            assert len(set(rendered.choices)) > 1
            assert "{" not in rendered.input
            assert "  " not in rendered.input


def test_a_changed_row_is_another_row():
    """The checksum that splits sees the whole content, so that a leak could be seen."""
    texts = [row["text"] for row in rows("review_sentiment", "train", 200)]
    assert len(set(texts)) > 150


@pytest.mark.parametrize("name", quickly(HELD_OUT, tuple(HELD_OUT)[:2]))
def test_held_out_templates_and_prompts_were_never_trained_on(name):
    trained = {template.jinja for other in TRAINED for template in templates(other)}
    assert not trained & {template.jinja for template in templates(name)}
    prompts = {
        template.render(row).input
        for other in TRAINED
        for template in templates(other)
        for row in rows(other, "train", 100)
    }
    for template in templates(name):
        assert not prompts & {template.render(row).input for row in rows(name, "validation", 100)}


@pytest.mark.parametrize(
    ("name", "split", "count", "message"),
    [
        ("entailmnt", "train", 1, "no embedded task is called 'entailmnt'"),
        ("entailment", "test", 1, "split 'test'"),
        ("comfort", "train", 10**4, "has only"),
    ],
)
def test_what_is_not_there_is_refused(name, split, count, message):
    with pytest.raises(InputError, match=message):
        rows(name, split, count)


# --------------------------------------------------------------------------------------------
# Vocabulary, mixture, backbone
# --------------------------------------------------------------------------------------------
def test_answer_words_are_single_pieces_and_any_text_can_be_encoded():
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARY))
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id()) == (0, 1, 2)
    for name in TASKS:
        for template in templates(name):
            for row in rows(name, "validation", 20):
                for choice in template.render(row).choices:
                    words = re.findall(r"[a-z]+|[^a-z\s]", choice.lower())
                    assert len(processor.encode(choice)) <= len(words) + 1  # a digit is two
    unknown = "Zoë's 7 quarks — 漢字!"
    assert processor.unk_id() not in processor.encode(unknown)
    assert processor.decode(processor.encode("the dog sleeps")) == "the dog sleeps"


def mixture(**fields):
    fields = {"few_shot_share": 0.3, "seed": 0} | fields
    return Mixture(
        VOCABULARY,
        ("kind_check", "news_topic"),
        rows_per_task=100,
        batch_tokens=1024,
        max_shots=6,
        **fields,
    )


def test_a_block_of_batches_is_a_function_of_seed_and_index():
    first, again = mixture().block(3, 200), mixture().block(3, 200)
    assert len(first) == len(again)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a["encoder_input_tokens"], b["encoder_input_tokens"])
        np.testing.assert_array_equal(a["decoder_target_tokens"], b["decoder_target_tokens"])
    others = [*mixture().block(4, 200), *mixture(seed=1).block(3, 200)]
    inputs = {batch["encoder_input_tokens"].tobytes() for batch in first}
    assert not inputs & {batch["encoder_input_tokens"].tobytes() for batch in others}


def test_batches_have_few_shapes_whole_targets_and_some_solved_examples():
    batches = mixture().block(0, 300)
    lengths = {batch["encoder_input_tokens"].shape[1] for batch in batches}
    assert lengths <= set(INPUT_LENGTHS)
    assert max(lengths) > 48  # the few-shot inputs
    for batch in batches:
        for tokens in batch.values():
            assert ((tokens == 1).sum(axis=1) == 1).all()  # one EOS, nothing cut off
    assert max(b["encoder_input_tokens"].shape[1] for b in mixture(few_shot_share=0).block(0)) <= 48


def test_a_held_out_task_cannot_be_mixed_in():
    with pytest.raises(InputError, match="held-out"):
        Mixture(VOCABULARY, ("entailment",), 10, 1024, 0.0, 6, 0)


def test_the_shipped_backbone_is_small_and_has_a_row_for_every_piece():
    import sentencepiece

    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 8 * 2**20
    config = json.loads((TINY / "config.json").read_text())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARY)).vocab_size()
    assert config["vocab_size"] >= pieces
    assert config["torch_dtype"] == "bfloat16"
