"""Pretraining on plain text with seqio: the tasks ``span_corruption`` and ``prefix_lm``.

``register_pretraining("texts", vocabulary="spiece.model")`` adds both to ``seqio.TaskRegistry``,
over any folder of text (`peft_jax.tasks.documents`), in the form of T5's own
(c4_v220_span_corruption, c4_v220_prefix_lm of t5 0.9.4): tokenised, cut into chunks, made into
inputs and targets, EOS behind both. So do the preprocessors, which are called as those of
t5.data.preprocessors, without t5 and its requirements. The work is that of
`peft_jax.tasks.denoising`, in Python; what seqio's seed decides are its random numbers.
"""

import functools
import os
from collections.abc import Callable, Mapping

import numpy as np

from peft_jax.errors import InputError
from peft_jax.tasks import denoising
from peft_jax.tasks.documents import read_documents
from peft_jax.tasks.tensorflow_data import seqio, tf
from peft_jax.tasks.vocabularies import load_vocabulary

LONGEST_CHUNK = 65_536
"""Tokens of a document that are used in an epoch, at most."""

_Features = Mapping[str, seqio.Feature]
_Lengths = Mapping[str, int] | None


def register_pretraining(
    folder: str | os.PathLike,
    *,
    vocabulary: str | os.PathLike,
    prefix: str = "",
    seed: int = 0,
) -> list[str]:
    """Registers ``span_corruption`` and ``prefix_lm``; tasks registered before are replaced.

    Their rows have ``inputs`` and ``targets``, int32 with EOS. Splits are train and validation.

    Args:
        folder: of text.
        vocabulary: the backbone's: a Hugging Face folder or one of its vocabulary's files.
        prefix: of the names, e.g. "wiki_".
        seed: of the documents that are held out, where there is no file for validation.

    Returns the names. Raises InputError for a vocabulary that cannot be used; the folder is read
    when rows are asked for.
    """
    loaded = load_vocabulary(vocabulary)
    read = functools.cache(functools.partial(read_documents, folder, seed=seed))
    names = []
    for name, objective in (("span_corruption", span_corruption), ("prefix_lm", prefix_lm)):
        names.append(prefix + name)
        seqio.TaskRegistry.remove(names[-1])
        seqio.TaskRegistry.add_provider(
            names[-1], pretraining_task(names[-1], read, loaded, objective)
        )
    return names


def pretraining_task(
    name: str, read: Callable[[str], list[str]], vocabulary: seqio.Vocabulary, objective: Callable
) -> seqio.Task:
    """A seqio task, not registered.

    Args:
        read: split -> its texts.
        objective: `span_corruption`, `prefix_lm` or another preprocessor with their arguments.
    """

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # the texts are in memory: seqio's shuffle buffer does it
        return tf.data.Dataset.from_tensor_slices({"text": read(split)})

    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(
            dataset_fn, splits=("train", "validation"), caching_permitted=False
        ),
        preprocessors=[
            functools.partial(
                seqio.preprocessors.rekey, key_map={"inputs": None, "targets": "text"}
            ),
            seqio.preprocessors.tokenize,
            objective,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            key: seqio.Feature(vocabulary, add_eos=True) for key in ("inputs", "targets")
        },
        metric_fns=[],
    )


# --------------------------------------------------------------------------------------------
# Preprocessors
# --------------------------------------------------------------------------------------------
def span_corruption(
    dataset: tf.data.Dataset,
    sequence_length: _Lengths,
    output_features: _Features,
    mean_noise_span_length: float = denoising.MEAN_NOISE_SPAN_LENGTH,
    noise_density: float = denoising.NOISE_DENSITY,
    merge_examples_to_reduce_padding: bool = True,
) -> tf.data.Dataset:
    """``targets``, a text's tokens -> ``inputs`` with sentinels, ``targets`` of what they hide.

    Args:
        sequence_length: of both, with EOS. Inputs of 512 have targets of 114.
        merge_examples_to_reduce_padding: whether chunks are cut from 128 texts put together.

    Raises InputError without lengths, and for targets that are too short for the inputs.
    """
    inputs_length = _length(sequence_length, "inputs")
    spans = (noise_density, mean_noise_span_length)
    tokens_length, targets_length = denoising.random_spans_helper(inputs_length, *spans)
    if _length(sequence_length, "targets") < targets_length:
        raise InputError(
            f"span corruption of inputs of {inputs_length} tokens has targets of {targets_length}, "
            f"the length of targets is {_length(sequence_length, 'targets')}: raise it"
        )
    vocab_size = output_features["targets"].vocabulary.vocab_size
    dataset = select_random_chunk(dataset, output_features, max_length=LONGEST_CHUNK)
    if merge_examples_to_reduce_padding:
        dataset = reduce_concat_tokens(dataset)
    dataset = split_tokens(dataset, max_tokens_per_segment=tokens_length)

    def corrupt(tokens: np.ndarray, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return denoising.span_corruption(tokens, _rng(seed), vocab_size, *spans)

    return denoise(dataset, corrupt)


def prefix_lm(
    dataset: tf.data.Dataset, sequence_length: _Lengths, output_features: _Features
) -> tf.data.Dataset:
    """``targets``, a text's tokens -> ``inputs``, a prefix of a chunk, and ``targets``, the rest.

    Chunks are one token shorter than the inputs may be. No chunk holds two texts.

    Raises InputError without lengths.
    """
    length = _length(sequence_length, "inputs")
    dataset = select_random_chunk(dataset, output_features, max_length=LONGEST_CHUNK)
    room = int(output_features["inputs"].add_eos)
    dataset = split_tokens(dataset, max_tokens_per_segment=length - room)

    def divide(tokens: np.ndarray, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return denoising.prefix_lm(tokens, _rng(seed))

    return denoise(dataset, divide)


def denoise(
    dataset: tf.data.Dataset,
    make: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> tf.data.Dataset:
    """``targets`` [n] -> ``inputs``, ``targets`` as ``make`` (tokens, seed [2]) gives them."""

    @seqio.map_over_dataset(num_seeds=1)
    def map_example(features, seed):
        made = tf.numpy_function(make, [features["targets"], seed], (tf.int32, tf.int32))
        inputs, targets = (tf.ensure_shape(ids, [None]) for ids in made)
        return {"inputs": inputs, "targets": targets}

    return map_example(dataset)


def select_random_chunk(
    dataset: tf.data.Dataset,
    output_features: _Features,
    max_length: int,
    feature_key: str = "targets",
) -> tf.data.Dataset:
    """Of a text longer than ``max_length`` tokens one of the chunks of that length."""
    del output_features  # as t5 calls it

    @seqio.map_over_dataset(num_seeds=1)
    def choose(features, seed):
        tokens = features[feature_key]
        size = tf.size(tokens)
        chunks = (size + max_length - 1) // max_length
        drawn = tf.random.stateless_uniform([], seed, maxval=chunks, dtype=tf.int32)
        return {feature_key: tokens[drawn * max_length : (drawn + 1) * max_length]}

    return choose(_not_empty(dataset, feature_key))


def reduce_concat_tokens(
    dataset: tf.data.Dataset,
    feature_key: str = "targets",
    batch_size: int = denoising.DOCUMENTS_TOGETHER,
) -> tf.data.Dataset:
    """The tokens of ``batch_size`` texts, one directly behind the other, as one."""
    dataset = dataset.map(lambda x: {feature_key: x[feature_key]}).ragged_batch(batch_size)
    return dataset.map(lambda x: {feature_key: x[feature_key].flat_values})


def split_tokens(
    dataset: tf.data.Dataset, max_tokens_per_segment: int, feature_key: str = "targets"
) -> tf.data.Dataset:
    """Chunks of a text, in order; only its last one may be shorter."""
    length = max_tokens_per_segment

    def split(features):
        tokens = features[feature_key]
        starts = tf.data.Dataset.from_tensor_slices(tf.range(0, tf.size(tokens), length))
        return starts.map(lambda start: {feature_key: tokens[start : start + length]})

    return _not_empty(dataset, feature_key).flat_map(split)


def _not_empty(dataset: tf.data.Dataset, key: str) -> tf.data.Dataset:
    return dataset.filter(lambda features: tf.size(features[key]) > 0)


def _length(sequence_length: _Lengths, key: str) -> int:
    length = (sequence_length or {}).get(key)
    if length is None:
        raise InputError(f"pretraining tasks need the length of {key}: give sequence_length")
    return length


def _rng(seed: np.ndarray) -> np.random.Generator:
    return np.random.default_rng(np.asarray(seed, np.uint32).tolist())
