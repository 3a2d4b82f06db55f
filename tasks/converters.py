"""seqio feature converters: what a model reads, with static shapes.

`RankClassificationFeatureConverter` gives all answer choices of an input; `EncDecFeatureConverter`,
seqio's own, gives the plain encoder-decoder batches of the same task (its correct choice as the
target). `choice_lengths` and `encdec_lengths` are the ``task_feature_lengths`` that they ask for.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping

from peft_jax.errors import InputError
from peft_jax.tasks.tensorflow_data import seqio, tf

FeatureConverter = seqio.FeatureConverter
EncDecFeatureConverter = seqio.EncDecFeatureConverter

__all__ = [
    "EncDecFeatureConverter",
    "RankClassificationFeatureConverter",
    "choice_lengths",
    "encdec_lengths",
    "input_errors",
    "refuse_long_choices",
]

_MARK = "peft_jax choice limit: "


class RankClassificationFeatureConverter(FeatureConverter):
    """Inputs and answer choices for rank classification.

    From a task whose rows hold ``inputs`` [s], ``choices`` [c, t], ``label``, ``example`` and
    ``template`` (see `peft_jax.tasks.registry`), with task_feature_lengths S and (C, T):

        encoder_input_tokens [S] int32, pad 0
        choices              [C, T] int32, pad 0
        choice_mask          [C] bool, which choices exist
        label, example, template [] int32

    Nothing is packed: every row keeps its own choices. Choices that do not fit are refused and not
    cut, by `refuse_long_choices` in the task itself.
    """

    _INT = tf.int32
    TASK_FEATURES: Mapping = {
        "inputs": FeatureConverter.FeatureSpec(dtype=_INT),
        "choices": FeatureConverter.FeatureSpec(dtype=_INT, rank=2),
        "label": FeatureConverter.FeatureSpec(dtype=_INT, rank=0),
        "example": FeatureConverter.FeatureSpec(dtype=_INT, rank=0),
        "template": FeatureConverter.FeatureSpec(dtype=_INT, rank=0),
    }
    MODEL_FEATURES: Mapping = {
        "encoder_input_tokens": FeatureConverter.FeatureSpec(dtype=_INT),
        "choices": FeatureConverter.FeatureSpec(dtype=_INT, rank=2),
        "choice_mask": FeatureConverter.FeatureSpec(dtype=tf.bool),
        "label": FeatureConverter.FeatureSpec(dtype=_INT, rank=0),
        "example": FeatureConverter.FeatureSpec(dtype=_INT, rank=0),
        "template": FeatureConverter.FeatureSpec(dtype=_INT, rank=0),
    }
    PACKING_FEATURE_DTYPES: Mapping = {}

    def __init__(self):
        # seqio checks lengths along one axis only; the padding below sets both statically.
        super().__init__(pack=False, apply_length_check=False)

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping
    ) -> tf.data.Dataset:
        lengths = {key: task_feature_lengths[key] for key in ("inputs", "choices")}
        ds = seqio.trim_and_pad_dataset(ds, lengths)
        return ds.map(self._convert_example, num_parallel_calls=tf.data.AUTOTUNE)

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        return {
            "encoder_input_tokens": features["inputs"],
            "choices": features["choices"],
            "choice_mask": tf.reduce_any(features["choices"] != 0, axis=-1),
            "label": features["label"],
            "example": features["example"],
            "template": features["template"],
        }

    def get_model_feature_lengths(self, task_feature_lengths: Mapping) -> Mapping:
        count, length = task_feature_lengths["choices"]
        scalars = dict.fromkeys(("label", "example", "template"), 1)
        return {
            "encoder_input_tokens": task_feature_lengths["inputs"],
            "choices": (count, length),
            "choice_mask": count,
        } | scalars


def choice_lengths(inputs: int, choices: int, choice_length: int) -> dict:
    """The ``task_feature_lengths`` of `RankClassificationFeatureConverter`: S, C and T."""
    # A scalar has no length, but seqio asks for every feature; None keeps it from slicing.
    scalars = dict.fromkeys(("label", "example", "template"))
    return {"inputs": inputs, "choices": (choices, choice_length)} | scalars


def encdec_lengths(inputs: int, targets: int) -> dict:
    """The ``task_feature_lengths`` of seqio's `EncDecFeatureConverter`."""
    return {"inputs": inputs, "targets": targets}


def refuse_long_choices(ds: tf.data.Dataset, sequence_length: Mapping | None) -> tf.data.Dataset:
    """A seqio preprocessor: stops at a choice that the limits (C, T) would cut.

    T-Few's loss and the length-normalised scores need whole choices with their EOS. The error that
    tf.data raises is turned into an InputError by `input_errors`.
    """
    limits = (sequence_length or {}).get("choices")
    if limits is None:
        return ds

    def check(features):
        choices, texts = features["choices"], features["choices_pretokenized"]
        lengths = tf.reduce_sum(tf.cast(choices != 0, tf.int32), axis=-1)
        longest = tf.argmax(lengths)
        number = tf.strings.as_string
        too_long = [_MARK, "the choice '", texts[longest], "' has ", number(lengths[longest])]
        too_long = tf.strings.join([*too_long, f" tokens with EOS, the limit is {limits[1]}"])
        too_many = [_MARK, "an example has ", number(tf.shape(choices)[0])]
        too_many = tf.strings.join([*too_many, f" choices, the limit is {limits[0]}"])
        fits = [
            tf.debugging.Assert(lengths[longest] <= limits[1], [too_long]),
            tf.debugging.Assert(tf.shape(choices)[0] <= limits[0], [too_many]),
        ]
        with tf.control_dependencies(fits):
            return features | {"choices": tf.identity(choices)}

    return ds.map(check, num_parallel_calls=tf.data.AUTOTUNE)


@contextlib.contextmanager
def input_errors(task: str) -> Iterator[None]:
    """Turns the refusal of a choice inside tf.data into an InputError that names the task."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        refusal = re.search(re.escape(_MARK) + r"(.*?limit is \d+)", error.message or "", re.S)
        if refusal is None:
            raise
        problem = re.sub(r"\\(['\"\\])", r"\1", refusal[1])  # TensorFlow escapes what it quotes
        problem = re.sub(r"(?s)'(.{60}).{20,}'", r"'\1...'", problem)
        raise InputError(
            f"task {task}: {problem}; choices are never cut: raise the limit or shorten the "
            "template's choices"
        ) from error
