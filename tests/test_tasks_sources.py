"""Rows of the datasets, from folders of files and from TFDS; every way a file can be wrong."""

import gzip
import json
import re
import sys
import types

import pytest

from peft_jax.errors import InputError
from peft_jax.tasks.datasets import Dataset, find_dataset
from peft_jax.tasks.held_out import HeldOut, held_out_positions
from peft_jax.tasks.row_report import RowReport
from peft_jax.tasks.sources import find_source, read_rows, split_files, splits_of, stream_rows

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


@pytest.mark.parametrize("name", SIZES)
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
    with pytest.raises(InputError, match=r"give --data.directory with a folder"):
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


# --------------------------------------------------------------------------------------------
# Layouts
# --------------------------------------------------------------------------------------------
TEXT = Dataset(name="mine", fields=("text",), label_field=None)
HUB = Dataset(
    name="mine", fields=("text",), label_field=None, hub="owner_set/small", tfds="set/one"
)


def lay_out(folder, files):
    """JSONL files of one row each (their number), as paths below a folder."""
    for number, name in enumerate(files):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"text": str(number)}).encode()
        file.write_bytes(gzip.compress(line) if name.endswith(".gz") else line)


def texts(dataset, split, directory):
    _, folder = find_source(dataset, directory)
    return [row["text"] for row in read_rows(dataset, split, folder)]


@pytest.mark.parametrize(
    "name",
    [
        "train.jsonl",
        "train.jsonl.gz",
        "Train.jsonl",
        "training.jsonl",
        "data/train.jsonl",
        "small/train.jsonl",
        "train/anything.jsonl",
        "train-00000-of-00001.jsonl",
        "data/train-00000-of-00001-a1b2c3d4e5f6a7b8.jsonl",
        "train.00000-of-00001.jsonl.gz",
        "small/train/0000.jsonl",
    ],
)
@pytest.mark.parametrize(
    "folder", ["mine", "owner_set/small", "owner_set__small", "owner_set___small", "set_one", "."]
)
def test_a_split_is_found_in_every_usual_place(tmp_path, folder, name):
    lay_out(tmp_path / folder, [name])
    assert texts(HUB, "train", tmp_path) == ["0"]


@pytest.mark.parametrize(
    "name", ["validation", "dev", "valid", "val", "development", "data/dev", "validation/0"]
)
def test_validation_has_other_names(tmp_path, name):
    lay_out(tmp_path, [f"{name}.jsonl", "train.jsonl", "test.jsonl"])
    assert texts(TEXT, "validation", tmp_path) == ["0"]
    assert splits_of(TEXT, tmp_path) == ("train", "validation", "test")


def test_the_sources_own_split_names_go_first(tmp_path):
    anli = Dataset(
        name="anli_r1", fields=("text",), label_field=None,
        splits={"train": "train_r1", "validation": "test_r1", "matched": "validation_matched"},
    )  # fmt: skip
    lay_out(tmp_path, ["train.jsonl", "train_r1.jsonl", "validation.jsonl", "dev_matched.jsonl"])
    assert texts(anli, "train", tmp_path) == ["1"]
    assert texts(anli, "validation", tmp_path) == ["2"]
    assert texts(anli, "matched", tmp_path) == ["3"]
    assert splits_of(anli, tmp_path) == ("train", "validation", "matched")


def test_shards_are_read_in_order_of_their_numbers(tmp_path):
    lay_out(tmp_path, [f"train-{i}.jsonl" for i in range(11)])
    assert texts(TEXT, "train", tmp_path) == [str(i) for i in range(11)]
    rows = list(stream_rows(TEXT, "train", tmp_path))
    assert [row["idx"] for row in rows] == list(range(11))
    assert rows[10].where == f"{tmp_path / 'train-10.jsonl'}:1"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"], r"shard 1 is missing"),
        (["train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"], r"several copies"),
        (["train.jsonl", "train.csv"], r"train more than once \(train\.csv, train\.jsonl\)"),
        (["train.jsonl", "train.jsonl.gz"], r"more than once"),
        (["train.jsonl", "train-0.jsonl"], r"more than once"),
        (["train/a.jsonl", "train/b.csv"], r"several kinds: csv, jsonl"),
    ],
)
def test_a_split_that_is_there_in_part_or_twice(tmp_path, files, words):
    lay_out(tmp_path, files)
    with pytest.raises(InputError, match=words):
        split_files(TEXT, tmp_path, "train")


def test_what_is_missing_is_said_with_where_it_is_had(tmp_path):
    dataset = Dataset(name="set", fields=(), folder="sets/one", download="see example.org/one")
    with pytest.raises(InputError, match=r"wanted is sets/one/train\.jsonl.*see example\.org/one"):
        find_source(dataset, tmp_path)
    with pytest.raises(InputError, match=r"set is not in TFDS.*see example\.org/one"):
        find_source(dataset, None)
    lay_out(tmp_path / "sets/one", ["train.jsonl", ".hidden.jsonl"])
    words = r"validation\.jsonl does not exist.*dev.*there: train\.jsonl; see example\.org/one"
    with pytest.raises(InputError, match=words):
        split_files(dataset, tmp_path / "sets/one", "validation")


def test_one_file_is_train(tmp_path):
    lay_out(tmp_path, ["any.jsonl"])
    file = tmp_path / "any.jsonl"
    assert texts(TEXT, "train", file) == ["0"]
    with pytest.raises(InputError, match=f"{file} is one file, all of it train.*for validation"):
        texts(TEXT, "validation", file)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(InputError, match=f"{tmp_path} cannot be read: Permission denied"):
        split_files(TEXT, tmp_path, "train")


# --------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("name", "labels", "indices"),
    [
        ("rte", ["entailment", "1", " 0 "], [0, 1, 0]),
        ("wic", ["True", "false", "1"], [1, 0, 1]),
        ("mine", ["2", "0", "1"], [2, 0, 1]),
        ("mine", ["b", "a", "b"], [1, 0, 1]),
        ("mine", ["true", "false", "true"], [1, 0, 1]),
    ],
)
def test_labels_that_a_table_wrote_as_text(tmp_path, ending, name, labels, indices):
    known = find_dataset(name)
    fields = known.fields if known else ("text",)
    mark = {"csv": ",", "tsv": "\t"}[ending]
    lines = [mark.join([*fields, "label"])]
    lines += [mark.join([*("x" for _ in fields), label]) for label in labels]
    (tmp_path / f"train.{ending}").write_text("\n".join(lines))
    dataset, folder = find_source(name, tmp_path)
    assert [row["label"] for row in read_rows(dataset, "train", folder)] == indices


def test_integer_labels_are_read_by_the_names_that_a_parquet_file_stores(tmp_path):
    """A copy whose labels are numbered in another order means the same classes."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    names = ["not_entailment", "entailment"]  # rte: the other way round
    features = {"info": {"features": {"label": {"names": names}}}}
    table = pa.Table.from_pylist([row | {"label": n} for n, row in enumerate(GOOD)])
    stored = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    write_table(stored, tmp_path / "train.parquet")
    dataset, folder = find_source("rte", tmp_path)
    assert [row["label"] for row in read_rows(dataset, "train", folder)] == [1, 0]
    own, folder = find_source("mine", tmp_path)
    assert own.labels == tuple(names)


def nested(row):
    return [{"text": text, "label": text in row["right"]} for text in row["texts"]]


NESTED = Dataset(name="nested", fields=("text",), labels=("no", "yes"), expand=nested)


def test_a_row_may_hold_several(tmp_path):
    write(tmp_path, [{"texts": ["a", "b"], "right": ["b"]}, {"texts": ["c"], "right": ["c"]}])
    rows = read_rows(NESTED, "train", tmp_path)
    assert [(r["text"], r["label"], r["idx"]) for r in rows] == [
        ("a", 0, 0),
        ("b", 1, 1),
        ("c", 1, 2),
    ]
    assert [row.where[-2:] for row in rows] == [":1", ":1", ":2"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"texts": ["a"]}, r":2: the row is not laid out as nested's are \(KeyError: 'right'\)"),
        ({"texts": 3, "right": []}, r":2: the row is not laid out .*TypeError.*texts, right"),
        ({"texts": [None], "right": []}, r":2: field 'text' of nested is missing or null"),
    ],
)
def test_a_row_that_cannot_be_unpacked(tmp_path, row, words):
    write(tmp_path, [{"texts": ["a", "b"], "right": ["b"]}, row])
    with pytest.raises(InputError, match=words):
        read_rows(NESTED, "train", tmp_path)


def test_a_row_of_wrong_types_is_named(tmp_path):
    row = {"text": "a b", "span1_text": "a", "span2_text": "b", "span1_index": "x",
           "span2_index": 1, "label": 0}  # fmt: skip
    write(tmp_path, [row])
    with pytest.raises(InputError, match=r"train\.jsonl:1: the row is not laid out as wsc's"):
        read_rows(find_dataset("wsc"), "train", tmp_path)


# --------------------------------------------------------------------------------------------
# Bad rows that are skipped
# --------------------------------------------------------------------------------------------
def test_bad_rows_are_skipped_if_asked_for_and_counted(tmp_path):
    bad = ["{not json", {"premise": "x", "label": 0}, GOOD[0] | {"label": "maybe"}]
    write(tmp_path, [GOOD[0], *bad, GOOD[1]])
    report = RowReport("skip")
    rows = read_rows(find_dataset("rte"), "train", tmp_path, report)
    assert [row["label"] for row in rows] == [0, 1]
    assert [row["idx"] for row in rows] == [0, 4]  # places in the file
    file = re.escape(str(tmp_path / "train.jsonl"))
    (line,) = report.lines()
    assert re.fullmatch(rf"skipped 3 of 5 rows of {file}: {file}:2: not JSON: .*", line)
    assert report.skipped == 3
    read_rows(find_dataset("rte"), "train", tmp_path, report)  # again: not counted twice
    assert report.lines() == [line]


def test_rows_that_are_all_bad_are_an_error_even_so(tmp_path):
    write(tmp_path, [{"premise": "x", "label": 0}] * 3)
    with pytest.raises(InputError, match=r"none of the 3 rows of .*:1: field 'hypothesis'"):
        read_rows(find_dataset("rte"), "train", tmp_path, RowReport("skip"))


def test_a_file_that_is_cut_off_is_an_error_even_so(tmp_path):
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in GOOD * 99).encode())
    (tmp_path / "train.jsonl.gz").write_bytes(data[:-20])
    with pytest.raises(InputError, match=r"train\.jsonl\.gz cannot be read"):
        read_rows(find_dataset("rte"), "train", tmp_path, RowReport("skip"))


def test_another_word_for_bad_rows():
    with pytest.raises(InputError, match="'ignore' is not known: give 'error' or 'skip'"):
        RowReport("ignore")


# --------------------------------------------------------------------------------------------
# Rows that are held out
# --------------------------------------------------------------------------------------------
OWN = Dataset(name="own", fields=("text",), labels=("a", "b"), held_out=HeldOut(0.2, 1))


def test_a_part_of_train_stands_for_validation(tmp_path):
    rows = [{"text": f"t{i % 50}", "label": int(i % 50 < 10)} for i in range(100)]
    write(tmp_path, rows)
    train, held = (read_rows(OWN, split, tmp_path) for split in ("train", "validation"))
    assert len(train) == 80
    assert sorted(row["idx"] for row in train + held) == list(range(100))
    assert not {row["text"] for row in train} & {row["text"] for row in held}
    assert sum(row["label"] for row in held) == 4  # a fifth of each class; each row stands twice
    assert [row["idx"] for row in train] == sorted(row["idx"] for row in train)
    write(tmp_path, rows[9:11], "validation")
    assert len(read_rows(OWN, "validation", tmp_path)) == 2
    assert len(read_rows(OWN, "train", tmp_path)) == 100


def test_what_is_held_out_does_not_hang_on_the_files_order():
    rows = [{"text": str(i), "label": i % 2} for i in range(60)]

    def held(rows, seed=0):
        positions = held_out_positions(rows, ("text",), HeldOut(0.1, seed))
        return {rows[position]["text"] for position in positions}

    assert len(held(rows)) == 6
    assert held(rows) == held(rows[::-1])
    assert held(rows) != held(rows, seed=1)
    more = [*rows, {"text": "new", "label": 0}]
    assert len(held(rows) ^ held(more)) <= 2


@pytest.mark.parametrize(
    ("labels", "count"), [([0, 1], 1), ([0, 0, 1], 1), ([0] * 5 + [1] * 5, 2), ([None] * 40, 4)]
)
def test_small_data_keep_rows_on_both_sides(labels, count):
    rows = [{"text": str(i), "label": label} for i, label in enumerate(labels)]
    assert len(held_out_positions(rows, (), HeldOut(0.1))) == count


def test_shares_and_rows_that_cannot_be_split():
    for share in (0, 1, -1, 2):
        with pytest.raises(InputError, match="between 0 and 1"):
            HeldOut(share)
    with pytest.raises(InputError, match="2 rows of one content cannot be split"):
        held_out_positions([{"text": "x", "idx": 0}, {"text": "x", "idx": 1}], (), HeldOut())


# --------------------------------------------------------------------------------------------
# TFDS
# --------------------------------------------------------------------------------------------
def test_nested_rows_of_tfds_under_the_sources_split(monkeypatch):
    import numpy as np

    asked = []

    def load(name, split, **_):
        asked.append((name, split))
        index = [(0, 1, 0), (0, 0, 1), (0, 0, 0)]
        return [
            {
                "idx": {"answer": np.int32(a), "paragraph": np.int32(p), "question": np.int32(q)},
                "text": f"{p}{q}{a}".encode(),
                "all": np.array([b"x", b"\xc3\xa9"], object),
                "deep": {"list": [np.int64(1), b"y"]},
            }
            for p, q, a in index
        ]

    fake_tfds(monkeypatch, load)
    dataset = Dataset(
        name="multi", fields=("text",), label_field=None, tfds="super_glue/multirc",
        splits={"validation": "test_r1"},
    )  # fmt: skip
    rows = read_rows(dataset, "validation", None)
    assert asked == [("super_glue/multirc", "test_r1")]
    assert [row["text"] for row in rows] == ["000", "001", "010"]
    assert rows[0]["all"] == ["x", "é"]
    assert rows[0]["deep"] == {"list": [1, "y"]}


def test_bad_rows_of_tfds_are_named_and_skipped(monkeypatch):
    rows = [{"premise": b"a", "hypothesis": b"b", "label": label, "idx": i}
            for i, label in enumerate((0, 1, 7))]  # fmt: skip
    fake_tfds(monkeypatch, lambda *_, **__: rows)
    words = r"TFDS super_glue/rte \(train\), row 3: field 'label' is 7"
    with pytest.raises(InputError, match=words):
        read_rows(find_dataset("rte"), "train", None)
    report = RowReport("skip")
    assert len(read_rows(find_dataset("rte"), "train", None, report)) == 2
    assert re.match(r"skipped 1 of 3 rows of TFDS.*" + words, report.lines()[0])
