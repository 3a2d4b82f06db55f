"""The offline cache: what seqio reads from it is what the task makes itself."""

import json

import numpy as np
import pytest

from peft_jax.errors import InputError
from tests.small_task import write_task, write_vocabulary

S, C, T = 24, 4, 12


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def ranking(vocabulary, tmp_path_factory):
    """The names of a task with two or three choices, under three templates and under each."""
    from peft_jax.tasks.registry import register

    folder = write_task(tmp_path_factory.mktemp("data") / "cached-task")
    return register("cached-task", vocabulary=vocabulary, directory=folder)


@pytest.fixture(scope="module")
def writing(vocabulary):
    """The name of a task whose answers are written, with none to two references."""
    import seqio

    from peft_jax.tasks.datasets import Dataset
    from peft_jax.tasks.prompted import PromptedTask
    from peft_jax.tasks.prompts import Rendered, TextFormat
    from peft_jax.tasks.registry import seqio_task
    from peft_jax.tasks.vocabularies import load_vocabulary

    def render(row):
        return Rendered(row["text"], f"warm {row['n']}", references=("sun",) * (row["n"] % 3))

    rows = [{"text": "There is snow " * (n + 1), "n": n} for n in range(9)]
    formats = (TextFormat("plain", render),)
    task = PromptedTask("written", Dataset("written", ("text",), label_field=None), formats,
                        lambda split: rows)  # fmt: skip
    seqio.TaskRegistry.remove("written")
    made = seqio_task("written", task, load_vocabulary(vocabulary))
    seqio.TaskRegistry.add_provider("written", made)
    return "written"


@pytest.fixture
def cache(tmp_path):
    """A folder in which seqio looks for caches."""
    import seqio

    before = seqio.get_global_cache_dirs()
    seqio.set_global_cache_dirs([str(tmp_path)])
    yield tmp_path
    seqio.set_global_cache_dirs(before)
    for name in ("cached_task", "cached_task_plain_question", "written"):
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.get(name)._cache_dir = None
            seqio.TaskRegistry.get(name)._stats = {}


def features(name, split="train", **options):
    """A task's rows as it gives them, in a fixed order."""
    import seqio

    task = seqio.get_mixture_or_task(name)
    lengths = {"inputs": S, "targets": T, "choices": (C, T)}
    lengths = {key: lengths.get(key) for key in task.output_features}
    ds = task.get_dataset(lengths, split, shuffle=False, **options)
    rows = list(ds.as_numpy_iterator())
    return sorted(
        rows, key=lambda row: numbers(row) if "example" in row else row["inputs"].tolist()
    )


def numbers(row):
    """(example, template) of a row."""
    return row["example"].item(), row["template"].item()


def assert_same_rows(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert np.asarray(value).dtype == np.asarray(other[key]).dtype
            np.testing.assert_array_equal(value, other[key], err_msg=key)


@pytest.mark.parametrize(
    "shards", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, None))]
)
def test_ranking_rows_come_back_with_their_choices(ranking, cache, shards):
    from peft_jax.tasks.cache import cache_task

    (folder,) = cache_task(ranking[0], cache, shards=shards)
    for split in ("train", "validation"):
        cached = features(ranking[0], split, use_cached=True)
        assert cached[0]["choices"].ndim == 2
        assert_same_rows(cached, features(ranking[0], split))
    names = sorted(path.name for path in folder.iterdir())
    files = [name for name in names if "tfrecord" in name]
    assert len(files) == 2 * (shards or 16)
    assert sorted(set(names) - set(files)) == [
        "COMPLETED", "info.train.json", "info.validation.json", "peft_jax.json",
        "stats.train.json", "stats.validation.json",
    ]  # fmt: skip


def test_batches_for_ranking_are_the_same_from_the_cache(ranking, cache):
    import seqio

    from peft_jax.tasks.cache import cache_task
    from peft_jax.tasks.converters import RankClassificationFeatureConverter, choice_lengths

    cache_task(ranking[1], cache, ["train"], shards=2)

    def batches(use_cached):
        ds = seqio.get_dataset(
            ranking[1],
            choice_lengths(S, C, T),
            RankClassificationFeatureConverter(),
            dataset_split="train",
            use_cached=use_cached,
            verbose=False,
        )
        return sorted(ds.as_numpy_iterator(), key=lambda row: row["example"])

    assert_same_rows(batches(True), batches(False))


def test_texts_come_back_with_their_references(writing, cache):
    from peft_jax.tasks.cache import cache_task

    cache_task(writing, cache, ["train"], shards=2)
    cached = features(writing, use_cached=True)
    assert {len(row["references"]) for row in cached} == {1, 2}
    assert_same_rows(cached, features(writing))


def test_a_mixture_reads_the_caches_of_its_tasks(ranking, cache):
    import seqio

    from peft_jax.tasks.cache import cache_task

    names = ranking[1:]
    seqio.MixtureRegistry.remove("cached_mixture")
    seqio.MixtureRegistry.add("cached_mixture", names, default_rate=seqio.mixing_rate_num_examples)
    folders = cache_task("cached_mixture", cache, ["train"], shards=2)
    assert [folder.name for folder in folders] == sorted(names)
    mixture = seqio.get_mixture_or_task("cached_mixture")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {name: len(features(name)) for name in names}
    lengths = {"inputs": S, "targets": T, "choices": (C, T)}
    lengths |= dict.fromkeys(("label", "example", "template"), 1)
    drawn = mixture.get_dataset(lengths, "train", use_cached=True, shuffle=True, seed=1)
    known = {numbers(row): row for row in features(ranking[0])}
    rows = list(drawn.take(60).as_numpy_iterator())
    for row in rows:
        own = known[numbers(row)]
        for key in ("inputs", "targets", "choices", "label"):
            np.testing.assert_array_equal(row[key], own[key])
    assert len({numbers(row)[1] for row in rows}) == 3


def test_files_are_those_of_seqio(ranking, cache):
    """Examples, info and stats, against seqio's own functions on the same rows."""
    import seqio
    import tensorflow as tf

    from peft_jax.tasks.cache import cache_task, stored_rows, to_example

    (folder,) = cache_task(ranking[0], cache, ["train"], shards=3)
    task = seqio.get_mixture_or_task(ranking[0])
    ds = task.preprocess_precache(task.source.get_dataset(split="train", shuffle=False), seed=0)
    for tensors, row in zip(ds, stored_rows(ds).as_numpy_iterator(), strict=True):
        assert to_example(row) == seqio.dict_to_tfexample(tensors)
    info = json.loads((folder / "info.train.json").read_text())
    assert (info["num_shards"], info["seqio_version"]) == (3, seqio.__version__)
    assert info["features"]["choices"] == {"shape": [None, None], "dtype": "int32"}
    assert info["features"]["inputs"] == {"shape": [None], "dtype": "int32"}
    assert info["features"]["label"]["dtype"] == "int32"
    assert info["features"]["inputs_pretokenized"] == {"shape": [], "dtype": "string"}
    stats = json.loads((folder / "stats.train.json").read_text())
    lengths = [len(row["inputs"]) for row in ds.as_numpy_iterator()]
    assert stats["examples"] == len(lengths) == 30
    assert stats["inputs_tokens"] == sum(lengths)
    assert stats["inputs_max_tokens"] == max(lengths)
    assert task.get_cached_stats("train") == stats
    shards = [sum(1 for _ in tf.data.TFRecordDataset(str(path))) for path in folder.glob("train.*")]
    assert sorted(shards) == [10, 10, 10]


@pytest.mark.parametrize(
    ("hosts", "use_cached"), [(2, True), (2, False), pytest.param(5, True, marks=pytest.mark.slow)]
)
def test_hosts_read_disjoint_parts_that_are_the_whole(ranking, cache, hosts, use_cached):
    import seqio

    from peft_jax.tasks.cache import cache_task

    if use_cached:
        cache_task(ranking[0], cache, ["train"], shards=3)
    found = [
        numbers(row)
        for host in range(hosts)
        for row in features(
            ranking[0], use_cached=use_cached, shard_info=seqio.ShardInfo(host, hosts)
        )
    ]
    assert len(found) == len(set(found)) == 30


@pytest.mark.parametrize("use_cached", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_saved_position_is_resumed(ranking, cache, use_cached):
    import seqio
    import tensorflow as tf

    from peft_jax.tasks.cache import cache_task
    from peft_jax.tasks.converters import RankClassificationFeatureConverter, choice_lengths

    if use_cached:
        cache_task(ranking[0], cache, ["train"], shards=2)

    def iterator():
        ds = seqio.get_dataset(
            ranking[0],
            choice_lengths(S, C, T),
            RankClassificationFeatureConverter(),
            dataset_split="train",
            shuffle=True,
            seed=3,
            num_epochs=None,
            use_cached=use_cached,
            verbose=False,
        )
        return iter(ds.batch(4))

    def take(batches, count):
        return [next(batches)["example"].numpy().tolist() for _ in range(count)]

    batches = iterator()
    take(batches, 9)
    path = tf.train.Checkpoint(batches).write(str(cache / "position"))
    expected = take(batches, 5)
    resumed = iterator()
    tf.train.Checkpoint(resumed).read(path)
    assert take(resumed, 5) == expected
    assert take(iterator(), 5) != expected


# --------------------------------------------------------------------------------------------
# Runs that stop, and what cannot be cached
# --------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on(ranking, cache, monkeypatch):
    from peft_jax.tasks import cache as module

    made, to_example = [], module.to_example

    def stop(row):
        made.append(row)
        if len(made) == 40:  # of the second split; the first has 30 rows
            raise KeyboardInterrupt
        return to_example(row)

    monkeypatch.setattr(module, "to_example", stop)
    folder = cache / ranking[0]
    with pytest.raises(KeyboardInterrupt):
        module.cache_task(ranking[0], cache, ["train", "validation"], shards=2)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "info.train.json", "peft_jax.json", "stats.train.json",
        "train.tfrecord-00000-of-00002", "train.tfrecord-00001-of-00002",
    }  # fmt: skip
    before = {name: (folder / name).stat().st_mtime_ns for name in names}
    module.cache_task(ranking[0], cache, ["train", "validation"], shards=2)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert all(after[name] == before[name] for name in names - {"peft_jax.json"})
    assert "COMPLETED" in after
    assert_same_rows(
        features(ranking[0], "validation", use_cached=True), features(ranking[0], "validation")
    )


def test_a_source_of_several_files_is_gone_on_with_at_the_file(vocabulary, cache, monkeypatch):
    import seqio
    import tensorflow as tf

    from peft_jax.tasks import cache as module
    from peft_jax.tasks.vocabularies import load_vocabulary

    for part in range(3):
        lines = [f"There is snow {'and more of it ' * (part + i)}\n" for i in range(4)]
        (cache / f"lines-{part}.txt").write_text("".join(lines))
    feature = {"inputs": seqio.Feature(load_vocabulary(vocabulary))}
    task = seqio.Task(
        "lines",
        seqio.TextLineDataSource({"train": str(cache / "lines-*.txt")}),
        feature,
        preprocessors=[
            lambda ds: ds.map(lambda line: {"inputs": line}),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
    )
    calls = []
    source_rows = module._source_rows

    def rows(task, split, source, sources):
        calls.append(source)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return source_rows(task, split, source, sources)

    monkeypatch.setattr(module, "_source_rows", rows)
    with pytest.raises(KeyboardInterrupt):
        module.cache_task(task, cache, shards=5)
    module.cache_task(task, cache, shards=5)
    assert calls == [0, 1, 1, 2]
    assert len(list((cache / "lines").glob("train.tfrecord-*-of-00006"))) == 6

    def found(**options):
        ds = task.get_dataset({"inputs": S}, "train", shuffle=False, **options)
        return sorted(row["inputs"].tolist() for row in ds.as_numpy_iterator())

    assert found(use_cached=True) == found()
    assert task.get_cached_stats("train")["examples"] == 12
    assert tf.io.gfile.exists(str(cache / "lines" / "COMPLETED"))


def test_a_cache_of_another_vocabulary_is_refused_and_overwritten(vocabulary, ranking, cache):
    import seqio

    from peft_jax.tasks.cache import cache_task

    (folder,) = cache_task(ranking[1], cache, ["train"], shards=1)
    task = seqio.get_mixture_or_task(ranking[1])
    more = dict(task.output_features)
    more["inputs"] = seqio.Feature(seqio.SentencePieceVocabulary(str(vocabulary), extra_ids=7))
    other = seqio.Task(
        ranking[1], task.source, more, preprocessors=task._preprocessor_constructor_args
    )
    with pytest.raises(InputError, match="another vocabulary"):
        cache_task(other, cache, ["train"])
    note = (folder / "peft_jax.json").read_text()
    assert str(vocabulary) not in note
    cache_task(other, cache, ["train"], shards=1, overwrite=True)
    assert (folder / "peft_jax.json").read_text() != note
    (folder / "peft_jax.json").unlink()
    with pytest.raises(InputError, match="not from here"):
        cache_task(other, cache, ["train"])


def test_the_function_of_the_command_line(vocabulary, cache, tmp_path_factory):
    from peft_jax.tasks.cache import prepare_seqio

    folder = write_task(tmp_path_factory.mktemp("data") / "cached-task")
    made = prepare_seqio(
        "cached-task",
        cache,
        splits=["validation"],
        backbone_vocabulary_path=vocabulary,
        directory=folder,
        shards=1,
    )
    assert made == cache / "cached_task"
    cached = features("cached_task", "validation", use_cached=True)
    assert_same_rows(cached, features("cached_task", "validation"))


def test_what_cannot_be_cached(ranking, cache):
    import seqio
    import tensorflow as tf

    from peft_jax.tasks.cache import cache_task

    def ragged_but_dense(split, shuffle_files, seed=None):
        def rows():
            yield {"inputs": np.zeros((2, 3), np.int32)}
            yield {"inputs": np.zeros((2, 4), np.int32)}

        spec = {"inputs": tf.TensorSpec([None, None], tf.int32)}
        return tf.data.Dataset.from_generator(rows, output_signature=spec)

    def task(*preprocessors):
        feature = seqio.Feature(seqio.PassThroughVocabulary(10), add_eos=False, rank=2)
        source = seqio.FunctionDataSource(ragged_but_dense, splits=["train"])
        return seqio.Task("dense", source, {"inputs": feature}, preprocessors=preprocessors)

    with pytest.raises(InputError, match="no task or mixture 'nothing'"):
        cache_task("nothing", cache)
    with pytest.raises(InputError, match="no CacheDatasetPlaceholder"):
        cache_task(task(), cache)
    with pytest.raises(InputError, match="no split 'test'"):
        cache_task(ranking[0], cache, ["test"])
    with pytest.raises(InputError, match="shards 0"):
        cache_task(ranking[0], cache, shards=0)
    with pytest.raises(InputError, match=r"inputs has the shape \[2, 4\]"):
        cache_task(task(seqio.CacheDatasetPlaceholder()), cache)
    assert not list((cache / "dense").glob("*tfrecord*"))


def test_a_folder_of_something_else_is_left_alone(ranking, cache):
    from peft_jax.tasks.cache import cache_task

    (cache / ranking[0]).mkdir()
    own = cache / ranking[0] / "train.jsonl"
    own.write_text("rows of somebody's own")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds train\.jsonl, which is no part of a cache"):
            cache_task(ranking[0], cache, overwrite=overwrite)
    assert [path.name for path in own.parent.iterdir()] == ["train.jsonl"]
