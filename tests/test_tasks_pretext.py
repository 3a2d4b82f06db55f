"""PPT's pretext tasks: the classes, what an option may be, and texts as the published code's."""

import collections
import json
import re
from pathlib import Path

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.tasks import ppt, pretext
from peft_jax.tasks.prompted import find_task

GOLDEN = json.loads((Path(__file__).parent / "golden" / "ppt.json").read_text(encoding="utf-8"))
TASKS = {task.name: task for task in ppt.TASKS}
# Documents whose sentences say where they stand: "d3 s5 ...".
DOCUMENTS = [
    [f"d{d} s{s} " + " ".join(f"w{d}x{s}x{w}" for w in range(5)) for s in range(5 + d % 9)]
    for d in range(120)
]


def place(text):
    document, sentence = re.match(r"d(\d+) s(\d+)", text).groups()
    return int(document), int(sentence)


def rendered(task, row):
    (form,) = TASKS[task].formats
    (made,) = form.render_all(row)
    assert made.target == made.choices[made.keep["label"]]
    return made


# --------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------
def test_pairs_are_of_their_class():
    rows = pretext.pretext_rows("ppt_next_sentence", DOCUMENTS)
    assert len(rows) == sum(map(len, DOCUMENTS))
    for row in rows:
        (d, s), (other, t) = place(row["first"]), place(row["second"])
        found = (
            pretext.OTHER_DOCUMENT
            if d != other
            else pretext.ADJACENT
            if abs(s - t) == 1
            else pretext.SAME_DOCUMENT
        )
        assert found == row["label"]
        assert (d, s) != (other, t)
    counts = collections.Counter(row["label"] for row in rows)
    spread = (len(rows) * 2 / 9) ** 0.5
    assert all(abs(counts[k] - len(rows) / 3) < 4 * spread for k in range(3))


@pytest.mark.parametrize("task", ["ppt_multiple_choice", "ppt_unified"])
def test_one_option_is_a_neighbour(task):
    rows = pretext.pretext_rows(task, DOCUMENTS)
    sizes = collections.Counter()
    for row in rows:
        d, s = place(row["query"])
        places = [place(option) for option in row["options"]]
        beside = [i for i, at in enumerate(places) if at in ((d, s - 1), (d, s + 1))]
        assert beside == [row["label"]]
        assert (d, s) not in places
        own = sum(other == d for other, _ in places)
        others = collections.Counter(other for other, _ in places if other != d)
        options = (
            pretext.SIX_OPTIONS
            if task == "ppt_multiple_choice"
            else pretext.UNIFIED_OPTIONS[len(places)]
        )
        assert own == 1 + options.same_document
        assert sorted(others.values()) == sorted(n for n in options.other_documents if n)
        sizes[len(places)] += 1
    labels = collections.Counter(row["label"] for row in rows)
    if task == "ppt_multiple_choice":
        assert set(sizes) == {6}
        spread = (len(rows) * 5 / 36) ** 0.5
        assert all(abs(labels[k] - len(rows) / 6) < 4 * spread for k in range(6))
    else:
        assert set(sizes) == set(range(2, 17))


def test_the_table_of_options_is_the_published_one():
    assert list(pretext.UNIFIED_OPTIONS) == list(range(2, 17))
    assert pretext.SIX_OPTIONS.total == 6
    for total, options in pretext.UNIFIED_OPTIONS.items():
        # They fit into 768 tokens with a prompt of 100, the question and EOS.
        assert options.query_limit + total * (options.option_limit + 3) <= 768 - 100 - 8
    assert pretext.UNIFIED_OPTIONS[7].same_document == 2


def test_a_row_is_a_function_of_documents_seed_and_index():
    rows = pretext.pretext_rows("ppt_unified", DOCUMENTS)
    assert rows == pretext.pretext_rows("ppt_unified", DOCUMENTS)
    other = pretext.pretext_rows("ppt_unified", DOCUMENTS, seed=1)
    assert [row["options"] for row in other] != [row["options"] for row in rows]
    some = pretext.pretext_rows("ppt_unified", DOCUMENTS, limit=50)
    by_index = {row["idx"]: row for row in rows}
    assert len(some) == 50
    assert all(by_index[row["idx"]] == row for row in some)
    assert some[:10] == pretext.pretext_rows("ppt_unified", DOCUMENTS, limit=10)


def test_pairs_of_very_different_lengths_are_left_out():
    documents = [[*units[:4], " ".join([f"d{d} s4"] * 400)] for d, units in enumerate(DOCUMENTS)]
    short = [["d0 s0 a", *units[1:]] for units in documents[:1]] + documents[1:]
    rows = pretext.pretext_rows("ppt_next_sentence", short)
    assert len(rows) < sum(map(len, short))
    for row in rows:
        lengths = len(row["first"].split()), len(row["second"].split())
        assert max(lengths) <= 100 * min(lengths)
        assert sum(lengths) * 4 // 3 <= pretext.PAIR_LIMIT + 4


def test_limits_are_kept_by_words_and_by_tokens():
    assert pretext.cut_words("a b c d", 4) == "a b c"
    assert pretext.cut_words("a  b", 4) == "a  b"

    class Letters:
        def encode(self, text):
            return list(text.encode())

        def decode(self, ids):
            return bytes(ids).decode()

    cut = pretext.cut_tokens(Letters())
    rows = pretext.pretext_rows("ppt_multiple_choice", DOCUMENTS, cut=cut)
    assert max(len(option) for row in rows for option in row["options"]) <= 86
    assert cut("abc", 2) == "ab"


@pytest.mark.parametrize(
    ("task", "documents", "words"),
    [
        ("ppt_cb", DOCUMENTS, "made from no text; one of ppt_next_sentence"),
        ("ppt_unified", DOCUMENTS[:4], "needs 5 documents of 5 sentences and more .* there are 4"),
        ("ppt_next_sentence", [["a"] * 4] * 9, "there are 0"),
    ],
)
def test_too_little_text_is_refused(task, documents, words):
    with pytest.raises(InputError, match=words):
        pretext.pretext_rows(task, documents)


# --------------------------------------------------------------------------------------------
# Single sentences
# --------------------------------------------------------------------------------------------
def test_only_sure_labels_stay():
    sentences = ["terrible .96", "terrible .94", "good .51", "good .49", "great .71", "great .69"]

    def label(texts):
        made = np.full((len(texts), 5), 0.0)
        for row, text in zip(made, texts, strict=True):
            word, score = text.split()
            row[pretext.DEGREES.index(word)] = float(score)
        return made

    rows = pretext.labelled_rows(sentences, label, batch=4)
    assert [row["sentence"] for row in rows] == sentences[::2]
    assert [row["label"] for row in rows] == [0, 3, 4]
    assert [r for row in rows for r in pretext.sure_rows(row)] == rows
    unsure = {"text": "x", "label": "terrible", "score": 0.95}
    assert pretext.sure_rows(unsure) == []
    assert pretext.sure_rows({"text": "x", "label": 4}) == [{"sentence": "x", "label": 4}]
    with pytest.raises(InputError, match=r"\(6, 2\) probabilities for 6 sentences of 5 classes"):
        pretext.labelled_rows(sentences, lambda texts: np.zeros((len(texts), 2)))


def test_balanced_labels():
    rows = [{"label": k, "n": n} for n, k in enumerate([0, 1, 0, 0, 1, 2])]
    assert [row["n"] for row in pretext.balance(rows, 3)] == [0, 1, 5]
    assert pretext.balance(rows, 4) == []


# --------------------------------------------------------------------------------------------
# Texts
# --------------------------------------------------------------------------------------------
def test_pair_texts_are_the_published_codes():
    for made in GOLDEN["next_sentence"]:
        first, second = made["text"].split(" <extra_id_0> ")
        word = made["target"].split()[1]
        row = {"first": first, "second": second, "label": pretext.PAIR_WORDS.index(word)}
        ours = rendered("ppt_next_sentence", row)
        assert (ours.input, ours.target) == (made["text"], made["target"])


@pytest.mark.parametrize("task", ["multiple_choice", "unified"])
def test_multiple_choice_texts_are_the_published_codes(task):
    for made in GOLDEN[task]:
        letter = made["target"][len("<extra_id_0>")]
        query, listed = made["text"].removesuffix("? The correct one is <extra_id_0>").split("?", 1)
        options = re.split(r"\.?[A-P]\. ", listed.removesuffix("."))[1:]
        row = {"query": query, "options": options, "label": pretext.LETTERS.index(letter)}
        ours = rendered(f"ppt_{task}", row)
        assert ours.input == made["text"]
        # The published code's letter is a piece without a space, which no text has there.
        assert ours.target.replace(" ", "") == made["target"].replace(" ", "")
        assert len(ours.choices) == len(options)


def test_single_sentence_texts_are_the_published_codes():
    for label, made in enumerate(GOLDEN["single_sentence"]):
        ours = rendered("ppt_single_sentence", {"sentence": "some words here", "label": label})
        assert (ours.input, ours.target) == (made["text"], made["target"])


@pytest.mark.parametrize("form", ["soft", "hybrid", "unified"])
@pytest.mark.parametrize("name", sorted(GOLDEN["downstream"]))
def test_few_shot_texts_are_the_published_codes(name, form):
    task = f"ppt_{name.lower()}" + ("" if form == "soft" else f"_{form}")
    for row, made in zip(GOLDEN["rows"][name], GOLDEN["downstream"][name][form], strict=True):
        label = int(row["label"]) if name == "SST2" else row["label"]
        row = TASKS[task].dataset.normalise({**row, "label": label}, 0, "golden")
        ours = rendered(task, row)
        assert ours.input == made["text"]
        assert ours.target.replace(" ", "") == made["target"].replace(" ", "")


# --------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", sorted(pretext.MAKERS))
def test_written_files_are_the_task(task, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    lines = [json.dumps({"text": "\n".join(units)}) + "\n" for units in DOCUMENTS]
    (text / "all.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = pretext.write(task, text, tmp_path / task)
    found = find_task(task, directory=tmp_path)
    rows = {split: found.prompted(split) for split in ("train", "validation")}
    assert counts == {split: len(made) for split, made in rows.items()}
    assert all(row.target == row.choices[row.label] for made in rows.values() for row in made)
    direct = pretext.read_pretext(task, text, "train")
    assert [row["idx"] for row in direct] == [row["idx"] for _, row in found.rows("train")]
    documents = {
        split: {d for row in made for d in re.findall(r"d(\d+) s", row.input)}
        for split, made in rows.items()
    }
    assert len(documents["validation"]) == 6
    assert documents["train"].isdisjoint(documents["validation"])


@pytest.mark.parametrize("layout", ["splits", "one file", "a file each"])
@pytest.mark.parametrize("task", sorted(pretext.MAKERS))
def test_texts_themselves_are_the_task(task, layout, tmp_path):
    texts = ["\n".join(units) for units in DOCUMENTS]
    if layout == "a file each":
        for number, text in enumerate(texts):
            (tmp_path / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    else:
        splits = {"train": texts[:60], "validation": texts[60:]}
        for split, own in (splits if layout == "splits" else {"all": texts}).items():
            lines = [json.dumps({"text": text}) + "\n" for text in [*own, "Too short."]]
            (tmp_path / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    found = find_task(task, directory=tmp_path)
    for split in ("train", "validation"):
        rows = [dict(row) for _, row in found.rows(split)]
        assert rows == pretext.read_pretext(task, tmp_path, split)


def test_no_text_is_in_both_splits(shared_data, tmp_path):
    source = shared_data / "pretrain_text" / "validation.jsonl"
    (tmp_path / "text.jsonl").write_bytes(source.read_bytes())
    made = {
        split: pretext.read_pretext("ppt_multiple_choice", tmp_path, split)
        for split in ("train", "validation")
    }
    texts = {
        split: {text for row in rows for text in (row["query"], *row["options"])}
        for split, rows in made.items()
    }
    both = texts["train"] & texts["validation"]
    assert len(texts["validation"]) > 100
    # Sentences such as "said he ." stand in several documents.
    assert all(len(text.split()) < 12 for text in both)
