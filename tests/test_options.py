"""Options of a config.json: refused by name, let through, or known to change nothing."""

import pytest

from peft_jax.backbones.options import Options, count_labels, read_activation, write_activation
from peft_jax.errors import InputError

OPTIONS = Options(
    read=("hidden_size",), required={"position_embedding_type": ("absolute", None)}, harmless=("x",)
)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"hidden_size": 8, "position_embedding_type": "absolute"},
        {"position_embedding_type": None, "quantization_config": None, "pruned_heads": {}},
        {"a_note": "of someone", "_name_or_path": "here"},
    ],
)
def test_known_values_and_foreign_fields_pass(fields):
    OPTIONS.check(fields)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "position_embedding_type",
            "relative_key",
            "position_embedding_type 'relative_key' is not supported; it must be 'absolute'",
        ),
        ("quantization_config", {"bits": 4}, r"quantization_config {'bits': 4} .*must be None"),
        ("pruned_heads", {"0": [1]}, "pruned_heads"),
        ("add_cross_attention", True, "add_cross_attention True"),
    ],
)
def test_other_values_are_named(field, value, message):
    with pytest.raises(InputError, match=message):
        OPTIONS.check({"hidden_size": 8, field: value})


def test_a_field_that_is_read_is_left_to_its_reader():
    Options(read=("tie_encoder_decoder",)).check({"tie_encoder_decoder": True})


def test_unknown_names_are_those_of_no_table():
    names = ("hidden_size", "x", "position_embedding_type", "use_cache", "_private", "other")
    assert OPTIONS.unknown(names) == ["other"]


@pytest.mark.parametrize("ours", ["relu", "gelu", "gelu_tanh", "silu"])
def test_an_activation_is_read_as_it_was_written(ours):
    assert read_activation("hidden_act", write_activation(ours)) == ours


def test_an_unknown_activation_is_named():
    with pytest.raises(InputError, match="hidden_act 'mish' is not supported; one of relu, gelu"):
        read_activation("hidden_act", "mish")


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({}, 2),
        ({"num_labels": 4}, 4),
        ({"id2label": {"0": "no", "1": "yes", "2": "maybe"}, "num_labels": 7}, 3),
        ({"id2label": None, "num_labels": 5}, 5),
    ],
)
def test_labels_are_counted_as_transformers_does(fields, labels):
    assert count_labels(fields) == labels
