"""seqio feature converters: what a model reads, with static shapes.

====================================  =========================================================
`RankClassificationFeatureConverter`  all answer choices of an input
`TextToTextFeatureConverter`          encoder-decoder batches: the answer, or the right choice
`DecoderFeatureConverter`             a decoder's: prompt and answer in one sequence
`PrefixDecoderFeatureConverter`       the same, for a decoder that sees the prompt both ways
====================================  =========================================================

`choice_lengths`, `encdec_lengths` and `decoder_lengths` are the ``task_feature_lengths`` that they
ask for. seqio's own converters fill up with 0 and start with 0. They are right for T5's vocabulary,
and `EncDecFeatureConverter` is kept for it; in GPT-2's and Llama's 0 is a token, so that these take
the ``pad_id`` of the backbone. seqio's padding and packing do the work all the same: tokens pass
them one higher than they are, and come out with what was padding made ``pad_id``.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping

from peft_jax.errors import InputError
from peft_jax.tasks.tensorflow_data import seqio, tf

FeatureConverter = seqio.FeatureConverter
EncDecFeatureConverter = seqio.EncDecFeatureConverter

__all__ = [
    "DecoderFeatureConverter",
    "EncDecFeatureConverter",
    "PrefixDecoderFeatureConverter",
    "RankClassificationFeatureConverter",
    "TextToTextFeatureConverter",
    "choice_lengths",
    "decoder_lengths",
    "encdec_lengths",
    "input_errors",
    "refuse_long_choices",
]

_INT = tf.int32
_Features = Mapping[str, tf.Tensor]
_MARK = "peft_jax choice limit: "


class _AnyFeatures(FeatureConverter):
    """A converter that takes what it needs of a task's features.

    seqio's refuse lengths of others, and its Evaluator gives those of all.
    """

    def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping) -> tf.data.Dataset:
        needed = {k: task_feature_lengths[k] for k in self.TASK_FEATURES}
        return super().__call__(ds, needed)


class RankClassificationFeatureConverter(_AnyFeatures):
    """Inputs and answer choices for rank classification.

    From a task whose rows hold ``inputs`` [s], ``choices`` [c, t], ``label``, ``example`` and
    ``template`` (see `peft_jax.tasks.registry`), with task_feature_lengths S and (C, T):

        encoder_input_tokens [S] int32, filled up with pad_id
        choices              [C, T] int32, filled up with pad_id
        choice_mask          [C] bool, which choices exist
        label, example, template [] int32

    Nothing is packed: every row keeps its own choices. Choices that do not fit are refused and not
    cut, by `refuse_long_choices` in the task itself.

    Args:
        pad_id: of the backbone (``config.pad_id``).
    """

    TASK_FEATURES: Mapping = {
        "inputs": FeatureConverter.FeatureSpec(dtype=_INT),
        "choices": FeatureConverter.FeatureSpec(dtype=_INT, rank=2),
        "label": FeatureConverter.FeatureSpec(dtype=_INT),
        "example": FeatureConverter.FeatureSpec(dtype=_INT),
        "template": FeatureConverter.FeatureSpec(dtype=_INT),
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

    def __init__(self, pad_id: int = 0):
        # seqio checks lengths along one axis only; the padding below sets both statically.
        super().__init__(pack=False, apply_length_check=False)
        self.pad_id = pad_id

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping
    ) -> tf.data.Dataset:
        lengths = {key: task_feature_lengths[key] for key in ("inputs", "choices")}
        ds = seqio.trim_and_pad_dataset(_raised(ds, lengths), lengths)
        return ds.map(self._convert_example, num_parallel_calls=tf.data.AUTOTUNE)

    def _convert_example(self, features: _Features) -> _Features:
        lowered = _lowered(features, ("inputs", "choices"), self.pad_id)
        return {
            "encoder_input_tokens": lowered["inputs"],
            "choices": lowered["choices"],
            "choice_mask": tf.reduce_any(features["choices"] != 0, axis=-1),
            **{key: features[key][0] for key in ("label", "example", "template")},
        }

    def get_model_feature_lengths(self, task_feature_lengths: Mapping) -> Mapping:
        count, length = task_feature_lengths["choices"]
        scalars = dict.fromkeys(("label", "example", "template"), 1)
        return {
            "encoder_input_tokens": task_feature_lengths["inputs"],
            "choices": (count, length),
            "choice_mask": count,
        } | scalars


class TextToTextFeatureConverter(_AnyFeatures, seqio.EncDecFeatureConverter):
    """seqio's `EncDecFeatureConverter` for any vocabulary.

        encoder_input_tokens  [S] int32, filled up with pad_id
        decoder_input_tokens  [T] int32, the targets one place later, start_id in front
        decoder_target_tokens [T] int32, filled up with pad_id
        decoder_loss_weights  [T] int32, 1 at every target
        and, packed, segment ids and positions of both, 0 at padding

    Args:
        pad_id, start_id: of the backbone (``config.pad_id``, ``config.decoder_start_id``).
        pack: whether several examples share a row.
    """

    _TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")

    def __init__(self, pad_id: int = 0, start_id: int = 0, *, pack: bool = True):
        super().__init__(pack=pack, bos_id=start_id + 1)
        self.pad_id = pad_id

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping
    ) -> tf.data.Dataset:
        ds = super()._convert_features(_raised(ds, ("inputs", "targets")), task_feature_lengths)
        return ds.map(self._lower, num_parallel_calls=tf.data.AUTOTUNE)

    def _lower(self, features: _Features) -> _Features:
        if self.pack:  # what seqio takes for the start of the padding's own segment
            used = tf.cast(features["decoder_segment_ids"] != 0, _INT)
            inputs = features["decoder_input_tokens"] * used
            features = {**features, "decoder_input_tokens": inputs}
        return _lowered(features, self._TOKENS, self.pad_id)


class DecoderFeatureConverter(_AnyFeatures):
    """Prompt and answer as one sequence, for decoder-only models; the loss is on the answer.

    From ``inputs`` [s] and ``targets`` [t], with task_feature_lengths S and T and L = S + T:

        decoder_input_tokens  [L] int32, the sequence without its last token
        decoder_target_tokens [L] int32, the sequence without its first
        decoder_loss_weights  [L] int32, 1 where the target is one of the answer's tokens
        and, packed, decoder_segment_ids and decoder_positions [L] int32, 0 at padding

    The sequence's first token, BOS or the prompt's own first, is never predicted, and nothing is
    put in front of it::

        inputs [0, 8, 5], targets [3, 2]     decoder_input_tokens  [0, 8, 5, 3, pad]
                                             decoder_target_tokens [8, 5, 3, 2, pad]
                                             decoder_loss_weights  [0, 0, 1, 1, 0]

    Args:
        pad_id: of the backbone (``config.pad_id``).
        pack: whether several examples share a row.
    """

    TASK_FEATURES: Mapping = {
        "inputs": FeatureConverter.FeatureSpec(dtype=_INT),
        "targets": FeatureConverter.FeatureSpec(dtype=_INT),
    }
    MODEL_FEATURES: Mapping = {
        "decoder_input_tokens": FeatureConverter.FeatureSpec(dtype=_INT),
        "decoder_target_tokens": FeatureConverter.FeatureSpec(dtype=_INT),
        "decoder_loss_weights": FeatureConverter.FeatureSpec(dtype=_INT),
    }
    PACKING_FEATURE_DTYPES: Mapping = {"decoder_segment_ids": _INT, "decoder_positions": _INT}

    def __init__(self, pad_id: int = 0, *, pack: bool = False):
        super().__init__(pack=pack)
        self.pad_id = pad_id

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping
    ) -> tf.data.Dataset:
        keys = tuple(self.MODEL_FEATURES)
        ds = ds.map(self._join, num_parallel_calls=tf.data.AUTOTUNE)
        # A row of two tokens or more is left; one alone predicts nothing.
        ds = ds.filter(lambda features: tf.size(features[keys[0]]) > 0)
        length = sum(task_feature_lengths[key] for key in self.TASK_FEATURES)
        ds = self._pack_or_pad(_raised(ds, keys), dict.fromkeys(keys, length))
        return ds.map(self._split, num_parallel_calls=tf.data.AUTOTUNE)

    def _join(self, features: _Features) -> _Features:
        prompt, answer = features["inputs"], features["targets"]
        sequence = tf.concat([prompt, answer], axis=0)
        places = tf.range(tf.maximum(tf.size(sequence) - 1, 0))
        joined = {
            "decoder_input_tokens": sequence[:-1],
            "decoder_target_tokens": sequence[1:],
            "decoder_loss_weights": tf.cast(places >= tf.size(prompt) - 1, _INT),
            "decoder_causal_attention": tf.cast(places < tf.size(prompt), _INT),
        }
        return {key: joined[key] for key in self.MODEL_FEATURES}

    def _split(self, features: _Features) -> _Features:
        tokens = ("decoder_input_tokens", "decoder_target_tokens")
        marks = [key for key in self.MODEL_FEATURES if key not in tokens]
        lowered = _lowered(_lowered(features, tokens, self.pad_id), marks, 0)
        made = {key: lowered[key] for key in self.MODEL_FEATURES}
        if self.pack:
            for kind in ("segment_ids", "positions"):
                made[f"decoder_{kind}"] = features[f"decoder_target_tokens_{kind}"]
        return made

    def get_model_feature_lengths(self, task_feature_lengths: Mapping) -> Mapping:
        length = sum(task_feature_lengths[key] for key in self.TASK_FEATURES)
        keys = [*self.MODEL_FEATURES, *(self.PACKING_FEATURE_DTYPES if self.pack else ())]
        return dict.fromkeys(keys, length)


class PrefixDecoderFeatureConverter(DecoderFeatureConverter):
    """`DecoderFeatureConverter` with ``decoder_causal_attention`` [L] int32, 1 at the prompt.

    The tokens where it is 1 are seen from the whole prompt, as in a prefix language model (Raffel
    et al. 2020, section 3.2.1; the feature of seqio's `PrefixLMFeatureConverter`).
    """

    MODEL_FEATURES: Mapping = {
        **DecoderFeatureConverter.MODEL_FEATURES,
        "decoder_causal_attention": FeatureConverter.FeatureSpec(dtype=_INT),
    }


def _raised(ds: tf.data.Dataset, keys: Iterable[str]) -> tf.data.Dataset:
    """Every value one higher, so that seqio's padding, 0, is none of them."""
    return ds.map(
        lambda features: {**features, **{key: features[key] + 1 for key in keys}},
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def _lowered(features: _Features, keys: Iterable[str], pad_id: int) -> dict[str, tf.Tensor]:
    """`_raised` undone, with ``pad_id`` where seqio has padded."""
    values = {key: features[key] for key in keys}
    return {
        **features,
        **{key: tf.where(value == 0, pad_id, value - 1) for key, value in values.items()},
    }


def choice_lengths(inputs: int, choices: int, choice_length: int) -> dict:
    """The ``task_feature_lengths`` of `RankClassificationFeatureConverter`: S, C and T."""
    numbers = dict.fromkeys(("label", "example", "template"), 1)
    return {"inputs": inputs, "choices": (choices, choice_length)} | numbers


def encdec_lengths(inputs: int, targets: int) -> dict:
    """The ``task_feature_lengths`` of `TextToTextFeatureConverter`, and of seqio's own."""
    return {"inputs": inputs, "targets": targets}


def decoder_lengths(prompt: int, answer: int) -> dict:
    """The ``task_feature_lengths`` of `DecoderFeatureConverter`: S and T."""
    return {"inputs": prompt, "targets": answer}


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
        lengths = tf.reduce_sum(tf.cast(choices >= 0, tf.int32), axis=-1)
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
