"""Configuration classes of the methods: from signatures and docstrings to flags and files."""

import dataclasses
import inspect
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from peft_jax import cli, config, method_config
from peft_jax.errors import InputError
from peft_jax.method_config import CLASSES, arguments
from peft_jax.methods import METHODS
from tests.families import quickly

# What nothing can be trained without, and no default says.
NEEDED = {"partial": {"targets": ("norm/scale",)}, "vocabulary_rows": {"ids": (1,)}}


def example(
    size: int,
    targets: str | Sequence[str] = "mlp",
    file: str | Path | None = None,
    pairs: Sequence[tuple[str, int]] = (),
    layers: Sequence[int] | None = None,
    kind: Literal["a", "b"] = "a",
    counts: Mapping[str, int] | None = None,
):
    """One sentence
    over two lines.

    More words.

    Args:
      size: of ``it``, see
        :func:`there`.
      targets, file: both: of these
        two.
      kind: m, a letter.

    Raises:
      InputError: never.
    """


def test_a_class_has_the_signatures_fields_types_and_defaults():
    made = method_config.config_class("some_method", example)
    assert made.__name__ == "SomeMethodConfig"
    assert {f.name: f.type for f in dataclasses.fields(made)} == {
        "size": int,
        "targets": tuple[str, ...],
        "file": Path | None,
        "pairs": tuple[tuple[str, int], ...],
        "layers": tuple[int, ...] | None,
        "kind": Literal["a", "b"],
    }
    assert made() == made((), ("mlp",), None, (), None, "a")


def test_help_texts_are_the_docstrings():
    assert method_config.argument_texts(example) == {
        "size": "Of it, see there.",
        "targets": "Both: of these two.",
        "file": "Both: of these two.",
        "kind": "m, a letter.",
    }
    text = method_config.config_class("x", example).__doc__
    assert text.startswith("One sentence over two lines.\n\nArgs:\n    size: Of it")


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_of_every_method_has_a_field_and_a_help_text(name):
    fields = [field.name for field in dataclasses.fields(CLASSES[name])]
    hints = typing.get_type_hints(METHODS[name])
    flags = [
        p for p in inspect.signature(METHODS[name]).parameters if "Mapping" not in str(hints[p])
    ]
    assert fields == flags
    assert set(fields) <= method_config.argument_texts(METHODS[name]).keys()


@pytest.mark.parametrize("name", CLASSES)
def test_the_fields_make_the_method_that_the_factory_makes(name):
    given = NEEDED.get(name, {})
    described = config.Experiment(method=(name,), **{name: arguments(name, **given)})
    assert config.make_method(described).spec == METHODS[name](**given).spec


@pytest.mark.parametrize("name", quickly(CLASSES, ("lora", "prefix_tuning", "fish_mask")))
def test_every_method_is_chosen_and_set_by_flags(name):
    flags = ["--output", "x", "--method", name]
    if name == "houlsby_adapter":
        flags += ["--houlsby_adapter.bottleneck", "7", "--houlsby-adapter.layers", "0", "1"]
    given = cli._parse(cli.Train, "train", flags, experiment=config.Experiment())
    seen = given.experiment
    assert type(seen) is config.Experiment
    assert seen.method == (name,)
    wanted = {"bottleneck": 7, "layers": (0, 1)} if name == "houlsby_adapter" else {}
    assert getattr(seen, name) == arguments(name, **wanted)


def test_help_shows_the_chosen_methods_alone(capsys):
    for chosen in (("lora", "compacter"), ("ia3",)):
        with pytest.raises(SystemExit):
            cli.main(["train", "--method", *chosen, "--help"])
        shown = capsys.readouterr().out
        for name in CLASSES:
            here = f"--{name.replace('_', '-')}." in shown
            assert here == (name in chosen and bool(dataclasses.fields(CLASSES[name])))
    assert "Indices of the layers to train" in shown


def test_a_flag_of_a_method_that_is_not_chosen_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--output", "x", "--method", "ia3", "--lora.rank", "4"])
    assert left.value.code == 2
    assert "--lora.rank" in capsys.readouterr().err


def test_a_file_holds_the_chosen_methods_and_reads_back(tmp_path):
    given = config.Experiment(
        method=("lora", "prompt_tuning"),
        lora=arguments("lora", rank=3, rank_pattern=(("mlp/.*", 2),)),
        prompt_tuning=arguments("prompt_tuning", init="file", file=Path("p.npy")),
    )
    file = tmp_path / "config.json"
    file.write_text(config.to_json(given))
    assert {"lora", "prompt_tuning"} == CLASSES.keys() & json.loads(file.read_text()).keys()
    again = config.from_json(file)
    assert again == given
    assert again.prompt_tuning.file == Path("p.npy")
    assert config.first_difference(given, json.loads(file.read_text())) is None


# A run's config.json of release 0.3, when there were four methods; unchanged fields left out.
OLD = {
    "task": "embedded_complaint",
    "method": ["lora"],
    "ia3": {"targets": ["attention/(key|value)", "mlp"], "layers": None},
    "lora": {
        "rank": 4,
        "alpha": 1.0,
        "targets": ["attention/query"],
        "layers": None,
        "dropout": 0.0,
        "rslora": False,
    },
    "bitfit": {"targets": None},
    "prompt_tuning": {
        "length": 20,
        "init": "vocabulary",
        "where": "input",
        "labels": [],
        "text": "",
        "file": None,
        "vocabulary_range": [0, 5000],
    },
}


def test_an_older_releases_file_is_read_and_resumed(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(OLD))
    loaded = config.from_json(file)
    assert loaded.lora == config.LoraConfig(4, 1.0, ("attention/query",))
    assert config.first_difference(loaded, OLD) is None
    changed = dataclasses.replace(loaded, lora=arguments("lora", rank=5))
    assert config.first_difference(changed, OLD) == ("lora.rank is 5, the run was started with 4")
    assert "unknown here" in config.first_difference(loaded, OLD | {"nonsense": 1})


def test_a_method_or_field_that_is_not_there_is_named():
    with pytest.raises(InputError, match="no method is named 'loar'; nearest: lora"):
        arguments("loar")
    with pytest.raises(InputError, match="lora has no field 'rnk'; nearest: rank"):
        arguments("lora", rnk=3)
    with pytest.raises(InputError, match="method 'loar' is unknown; nearest: lora"):
        config.make_method(config.Experiment(method=("loar",)))
    with pytest.raises(InputError, match="method is empty"):
        config.make_method(config.Experiment(method=()))
