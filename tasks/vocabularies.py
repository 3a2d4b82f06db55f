"""Vocabularies for seqio: T5's own, or any tokenizer of a Hugging Face folder.

A plain T5 goes through seqio's `SentencePieceVocabulary`, whose operations run inside TensorFlow's
graph: the tokens that T5X makes, special strings in a text taken as text. Everything else, and
texts with markers in them (`peft_jax.markers`), goes through `peft_jax.tokenizer`, in Python, which
takes "[MASK]" or "</s>" in a text for that token.

`tokenize_rows` is the seqio preprocessor for the latter: what stands around an input, and whether
an answer begins a text or follows a prompt, depends on the kind of model (`tokenizer.row_ids`).
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from peft_jax.errors import InputError
from peft_jax.tasks.tensorflow_data import seqio, tf
from peft_jax.tokenizer import KINDS, Kind, Tokenizer, load_tokenizer, row_ids
from peft_jax.tokenizer_files import find_tokenizer

PAD = -1
"""Fills the choices of a row in a task: no token of any vocabulary."""


class HuggingFaceVocabulary(seqio.Vocabulary):
    """A `peft_jax.tokenizer.Tokenizer` as a seqio vocabulary.

    ``encode`` and ``encode_tf`` give a text's own tokens, without special ones around it. Two are
    equal if their tokenizers' identities are. Padding is ``pad_id``, or -1 where the family has no
    token for it; seqio's own feature converters pad with 0 and are right for few of these: use
    those of `peft_jax.tasks.converters`.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self._path = os.fspath(path)
        self._identity = self.tokenizer.identity

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; loaded once for a path, and again where this value was unpickled."""
        return _tokenizer(self._path)

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.tokenizer.eos_id

    @property
    def unk_id(self) -> int | None:
        return self.tokenizer.unk_id

    @property
    def pad_id(self) -> int:
        return -1 if self.tokenizer.pad_id is None else self.tokenizer.pad_id

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """A scalar to [t] int32; [n] strings to a ragged [n, t]."""
        if s.shape.rank == 0:
            ids = tf.numpy_function(lambda text: _int32(self._encode(text.decode())), [s], tf.int32)
            return tf.ensure_shape(ids, [None])

        def encode_all(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return _flat([self._encode(text.decode()) for text in texts])

        flat, lengths = tf.numpy_function(encode_all, [s], (tf.int32, tf.int32))
        return _ragged(flat, lengths)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """[t] ids to a scalar, [n, t] to [n] strings; padding is passed over."""

        def decode_all(rows: np.ndarray) -> np.ndarray:
            kept = (
                row[(row != -1) & (row != self.pad_id)] for row in rows.reshape(-1, rows.shape[-1])
            )
            texts = [self._decode(row.tolist()).encode() for row in kept]
            return np.array(texts, object).reshape(rows.shape[:-1])

        texts = tf.numpy_function(decode_all, [ids], tf.string)
        return tf.ensure_shape(texts, ids.shape[:-1])

    def __eq__(self, other) -> bool:
        if not isinstance(other, HuggingFaceVocabulary):
            return False
        return self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __str__(self) -> str:
        return f"HuggingFaceVocabulary(path={self._path}, sha256={self._identity})"


def load_vocabulary(
    path: str | os.PathLike, kind: Kind = "encoder_decoder", *, marked: bool = False
) -> seqio.Vocabulary:
    """The vocabulary of a backbone, as seqio wants it.

    Args:
        path: a Hugging Face folder or one of its vocabulary's files.
        kind: of the model that will read the tokens.
        marked: whether the texts have markers in them (`peft_jax.markers`), which TensorFlow's
            operations do not know.

    Raises InputError if there is no vocabulary, it cannot be read, or ``kind`` is unknown.
    """
    if kind not in KINDS:
        raise InputError(f"kind of model {kind!r} is unknown; one of {', '.join(KINDS)}")
    return _load_vocabulary(os.fspath(Path(path).resolve()), kind, marked)


@functools.lru_cache(maxsize=8)
def _load_vocabulary(path: str, kind: Kind, marked: bool) -> seqio.Vocabulary:
    files = find_tokenizer(path)
    tokenizer = _tokenizer(path)  # says what is wrong with the files, if anything is
    as_t5 = files.is_plain_t5 and tokenizer.pad_id == 0 and (tokenizer.eos_id or 0) > 0
    if not as_t5 or kind != "encoder_decoder" or marked:
        return HuggingFaceVocabulary(path)
    file = os.fspath(files.files[0])
    pieces = seqio.SentencePieceVocabulary(file).vocab_size
    return seqio.SentencePieceVocabulary(file, extra_ids=tokenizer.vocab_size - pieces)


_tokenizer = functools.lru_cache(maxsize=8)(load_tokenizer)


def tokenize_rows(vocabulary: HuggingFaceVocabulary, kind: Kind) -> Callable:
    """A seqio preprocessor: rows of texts into ids, as ``row_ids`` makes them for a kind of model.

    ``inputs`` [s] int32 are cut to the length that is asked for, ``targets`` [t] int32 and every
    choice, [c, t'] int32 padded with -1, end in EOS (rows of open answers have no ``choices``); the
    texts stay beside them as
    ``<name>_pretokenized``.

    Raises InputError if the vocabulary has no EOS to end an answer with.
    """
    tokenizer = vocabulary.tokenizer
    tokenizer.target_ids("")

    def tokenize(ds: tf.data.Dataset, sequence_length: Mapping | None) -> tf.data.Dataset:
        limit = (sequence_length or {}).get("inputs")

        def ids_of(text: bytes, target: bytes, choices: Sequence = ()) -> tuple[np.ndarray, ...]:
            answers = [answer.decode() for answer in (target, *choices)]
            ids, (target_ids, *choice_ids) = row_ids(
                tokenizer, kind, text.decode(), answers, max_input_length=limit
            )
            return _int32(ids), _int32(target_ids), *_flat(choice_ids)

        def convert(features: dict) -> dict:
            names = [key for key in ("inputs", "targets", "choices") if key in features]
            texts = {key: features[key] for key in names}
            inputs, targets, flat, lengths = tf.numpy_function(
                ids_of, list(texts.values()), (tf.int32,) * 4
            )
            ids = {
                "inputs": tf.ensure_shape(inputs, [None]),
                "targets": tf.ensure_shape(targets, [None]),
            }
            if "choices" in texts:
                ids["choices"] = _ragged(flat, lengths).to_tensor(PAD)
            return features | ids | {f"{key}_pretokenized": text for key, text in texts.items()}

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    return tokenize


def _int32(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)


def _flat(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids one behind the other, and their lengths."""
    return _int32([id for row in rows for id in row]), _int32([len(row) for row in rows])


def _ragged(flat: tf.Tensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    flat, lengths = tf.ensure_shape(flat, [None]), tf.ensure_shape(lengths, [None])
    return tf.RaggedTensor.from_row_lengths(flat, lengths)
