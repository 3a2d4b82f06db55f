"""Rows of the datasets, from JSONL folders and from TFDS; every way a file can be wrong."""

import json
import sys
import types

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.datasets import DATASETS, find_dataset
from peft_jax.tasks.sources import find_source, read_rows

SIZES = {  # train, validation
    "rte": (2490, 277), "cb": (250, 56), "copa": (400, 100), "wic": (2000, 638),
    "wsc": (554, 104), "boolq": (2000, 1000), "sst2": (2000, 872),
}  # fmt: skip
GOOD = [
    {"premise": "a", "hypothesis": "b", "label": "entailment"},
    {"premise": "c", "hypothesis": "d", "label": 1},
]


def write(folder, rows, split="train"):
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", DATASETS)
def test_real_files_are_read_whole(name, shared_data):
    dataset, folder = find_source(name, shared_data)
    for split, size in zip(("train", "validation"), SIZES[name], strict=True):
        rows = read_rows(dataset, split, folder)
        assert len(rows) == size
        assert {row["label"] for row in rows} == set(range(len(dataset.labels)))
        assert all(type(row["label"]) is int and type(row["idx"]) is int for row in rows)


@pytest.mark.parametrize("place", ["superglue_rte", "rte", "."])
def test_a_folder_is_found_by_any_of_its_names(tmp_path, place):
    write(tmp_path / place, GOOD)
    dataset, folder = find_source("rte", tmp_path)
    assert [row["label"] for row in read_rows(dataset, "train", folder)] == [0, 1]


def test_wsc_spans_are_repaired():
    row = {
        "text": "The bag was full. It fell.",
        "target": {
            "span1_index": 0, "span1_text": "the bag.", "span2_index": 4, "span2_text": "it",
        },
        "label": True,
        "idx": 7,
    }  # fmt: skip
    row = find_dataset("wsc.fixed").normalise(row, 0, "here")
    assert (row["span1_text"], row["span2_text"], row["label"]) == ("The bag", "It", 1)
    assert "target" not in row


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "train.jsonl is empty"),
        (["", "  "], "train.jsonl is empty"),
        (GOOD[:1] * 3, "one label only"),
        ([*GOOD, "{not json"], r"train.jsonl:3: not JSON"),
        ([*GOOD, "[1]"], r"train.jsonl:3: a JSON object is needed"),
        ([*GOOD, "", {"premise": "x", "label": 0}], r"train.jsonl:4: field 'hypothesis'.*missing"),
        ([*GOOD, {"premise": "x", "hypothesis": "y"}], r"train.jsonl:3: field 'label'.*missing"),
        ([*GOOD, GOOD[0] | {"label": "maybe"}], r"train.jsonl:3: field 'label' is 'maybe'"),
        ([*GOOD, GOOD[0] | {"label": 2}], r"train.jsonl:3: field 'label' is 2"),
        ([*GOOD, GOOD[0] | {"label": 0.5}], r"train.jsonl:3: field 'label' is 0.5"),
        ([*GOOD, GOOD[0] | {"label": -1}], r"train.jsonl:3: the row has no label"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, rows, words):
    write(tmp_path / "rte", rows)
    dataset, folder = find_source("rte", tmp_path)
    with pytest.raises(InputError, match=words):
        read_rows(dataset, "train", folder)


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"premise": "\xff"}\n')
    with pytest.raises(InputError, match="not UTF-8"):
        read_rows(*find_source("rte", tmp_path)[:1], "train", tmp_path)


def test_places_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        find_source("rte", tmp_path / "nowhere")
    with pytest.raises(InputError, match="no data files for task 'rte'"):
        find_source("rte", tmp_path)
    with pytest.raises(InputError, match="'mine' is not known"):
        find_source("mine", None)
    write(tmp_path / "rte", GOOD)
    dataset, folder = find_source("rte", tmp_path)
    with pytest.raises(InputError, match=r"validation.jsonl does not exist.*train.jsonl"):
        read_rows(dataset, "validation", folder)


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["b", "a", "b"], None, [1, 0, 1]),
        (["b", "a", "b"], ["b", "a"], [0, 1, 0]),
        ([0, 2, 1], None, [0, 2, 1]),
        ([True, False, True], None, [1, 0, 1]),
    ],
)
def test_a_users_folder_says_its_own_labels(tmp_path, labels, names, indices):
    write(tmp_path / "mine", [{"text": str(i), "label": label} for i, label in enumerate(labels)])
    if names:
        (tmp_path / "mine" / "labels.json").write_text(json.dumps(names))
    dataset, folder = find_source("mine", tmp_path)
    assert [row["label"] for row in read_rows(dataset, "train", folder)] == indices


@pytest.mark.parametrize("content", ["{", '{"a": 1}', '["a"]', '["a", "a"]', "[1, 2]"])
def test_a_users_label_file_that_cannot_be_used(tmp_path, content):
    write(tmp_path / "mine", [{"text": "x", "label": "a"}])
    (tmp_path / "mine" / "labels.json").write_text(content)
    with pytest.raises(InputError, match=r"labels.json"):
        find_source("mine", tmp_path)


def test_a_users_rows_all_have_the_fields_of_the_first(tmp_path):
    write(tmp_path / "mine", [{"text": "x", "label": 0}, {"test": "y", "label": 1}])
    dataset, folder = find_source("mine", tmp_path)
    with pytest.raises(InputError, match=r"train.jsonl:2: field 'text'"):
        read_rows(dataset, "train", folder)


def test_a_users_folder_without_labels(tmp_path):
    write(tmp_path / "mine", [{"text": "x", "target": "y"}])
    with pytest.raises(InputError, match=r"train.jsonl:1: field 'label' is missing"):
        find_source("mine", tmp_path)


def test_a_users_folder_for_evaluation_only(tmp_path):
    write(tmp_path, [{"text": "x", "label": "b"}, {"text": "y", "label": "a"}], "validation")
    dataset, folder = find_source("mine", tmp_path)
    assert [row["label"] for row in read_rows(dataset, "validation", folder)] == [1, 0]


def fake_tfds(monkeypatch, load):
    module = types.ModuleType("tensorflow_datasets")
    module.load, module.as_numpy = load, lambda rows: rows
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)


def test_rows_from_tfds(monkeypatch):
    import numpy as np

    asked = []

    def load(name, split, **_):
        asked.append((name, split))
        return [
            {
                "premise": b"caf\xc3\xa9",
                "hypothesis": b"b",
                "label": np.int64(i),
                "idx": np.int32(i),
            }
            for i in (1, 0)  # as TFDS stores them: shuffled
        ]

    fake_tfds(monkeypatch, load)
    dataset, folder = find_source("rte", None)
    rows = read_rows(dataset, "validation", folder)
    assert asked == [("super_glue/rte", "validation")]
    assert [row["label"] for row in rows] == [row["idx"] for row in rows] == [0, 1]
    assert rows[0]["premise"] == "café"
    assert type(rows[1]["idx"]) is int


def test_tfds_that_cannot_be_reached(monkeypatch):
    def load(*_, **__):
        raise ConnectionError("no network")

    fake_tfds(monkeypatch, load)
    dataset, folder = find_source("rte", None)
    with pytest.raises(InputError, match=r"super_glue/rte.*no network.*--data.directory"):
        read_rows(dataset, "train", folder)
