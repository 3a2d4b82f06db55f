"""Tokenised examples for rank classification, as plain arrays: what training and scoring read.

A task is tokenised once, through seqio, on a machine that has it (``peft-jax prepare``, or
``peft_jax.tasks.prepare``); from then on it is one file of arrays that this module reads with numpy
and safetensors alone. A *row* is one example under one prompt template::

    row   example  template   encoder_input_tokens        choices
    0     0        0          Given ... Yes or no? </s>   Yes </s> | No </s>
    1     0        1          ... True or False? </s>     True </s> | False </s>
    2     1        0          ...

Short rows are filled with the backbone's ``pad_id`` (T5: 0). Choices end in EOS, which counts in
their length. What else a row holds is as the backbone's family reads it: T5's inputs end in EOS,
BERT's have their [CLS] and [SEP], a decoder's are the prompt in front of each choice. An input's
ids of -2 and below are rows that a method trains (see `peft_jax.markers`).
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from peft_jax import markers
from peft_jax.errors import InputError
from peft_jax.example_rows import ExampleRows, checked_places, length_groups, rows_of_examples
from peft_jax.ragged import Ragged, Records

_FORMAT = "peft_jax.choice_examples"
_VERSION = 1
_DTYPES = {
    "encoder_input_tokens": np.dtype(np.int32),
    "choices": np.dtype(np.int32),
    "choice_mask": np.dtype(np.bool_),
    "label": np.dtype(np.int32),
    "example": np.dtype(np.int32),
    "template": np.dtype(np.int32),
}
_OPTIONAL = {"encoder_token_types": np.dtype(np.int32)}
_MODEL_KEYS = ("encoder_input_tokens", "encoder_token_types", "choices", "choice_mask", "label")

Batch = dict[str, np.ndarray]


def vocabulary_identity(path: str | os.PathLike) -> str:
    """A SHA-256 (hex) over what decides the tokens: vocabularies of one identity give the same.

    Args:
        path: a Hugging Face folder or one of its vocabulary's files; of a T5 it is the digest of
            its spiece.model.

    Raises InputError if there is no vocabulary, or it cannot be read.
    """
    from peft_jax.tokenizer_files import find_tokenizer

    return find_tokenizer(path).identity


@dataclasses.dataclass(frozen=True, eq=False)
class ChoiceExamples(ExampleRows):
    """A split of a task under its templates, tokenised: R rows, S and T token places, C choices.

    Rows of one example need not stand together, and a template may skip an example.

    Attributes:
        task: the name of the task, e.g. "rte".
        split: the split that the rows come from, e.g. "train".
        template_names: the templates; ``template`` indexes this tuple.
        encoder_input_tokens: [R, S] int32.
        choices: [R, C, T] int32, the answer choices, all padding where a row has fewer than C.
        choice_mask: [R, C] bool, which choices exist.
        label: [R] int32, the correct choice.
        example: [R] int32, the example's position in its split, before any few-shot draw.
        template: [R] int32.
        vocabulary: the identity (see `vocabulary_identity`) of the vocabulary that made the tokens.
        details: how the rows were made (limits, shots, seed ...), JSON values only.
        pad_id: what fills the inputs and choices; never one of their tokens.
        encoder_token_types: [R, S] int32, 1 in the second text of a pair (BERT), 0 at padding; or
            None for a backbone that knows no types.
        keep: for each row a mapping of JSON values that its metric needs; () where none does.

    Raises InputError when the arrays do not fit together.
    """

    task: str
    split: str
    template_names: tuple[str, ...]
    encoder_input_tokens: np.ndarray
    choices: np.ndarray
    choice_mask: np.ndarray
    label: np.ndarray
    example: np.ndarray
    template: np.ndarray
    vocabulary: str
    details: dict = dataclasses.field(default_factory=dict)
    pad_id: int = 0
    encoder_token_types: np.ndarray | None = None
    keep: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self):
        problem = _first_problem(self)
        if problem:
            raise InputError(f"the examples of {self.task} ({self.split}): {problem}")

    def __len__(self) -> int:
        """The number of rows R."""
        return len(self.label)

    @property
    def input_length(self) -> int:
        """S, the places of an input."""
        return self.encoder_input_tokens.shape[1]

    @property
    def has_markers(self) -> bool:
        """Whether an input has the id of a row that a method trains."""
        return markers.is_soft(int(self.encoder_input_tokens.min()))

    def subset(
        self,
        examples: Sequence[int] | slice | None = None,
        templates: Sequence[int | str] | None = None,
    ) -> "ChoiceExamples":
        """The rows of some examples under some templates, in their present order.

        Args:
            examples: positions among `example_ids` (0 ... num_examples - 1), or a slice of them.
            templates: names or indices of templates; ``template`` is renumbered in this order.

        Raises InputError for a position, name or index that is not there, or if no row is left.
        """
        rows, names, template = self.select(examples, templates)
        taken: dict = {key: array[rows] for key, array in self._arrays().items()}
        if len(self.keep):
            taken["keep"] = tuple(self.keep[row] for row in rows)
        return dataclasses.replace(self, **taken | {"template_names": names, "template": template})

    def trimmed(self, multiple: int = 1) -> "ChoiceExamples":
        """The same rows with the fewest token places and choices that hold them all.

        Args:
            multiple: S and T are rounded up to a multiple of this.
        """
        pad, types = self.pad_id, self.encoder_token_types
        choice_places = _places_used(self.choices != pad, multiple)
        input_places = _places_used(self.encoder_input_tokens != pad, multiple)
        choice_count = int(self.choice_mask.sum(axis=1).max())
        return dataclasses.replace(
            self,
            encoder_input_tokens=_fit_last_axis(self.encoder_input_tokens, input_places, pad),
            encoder_token_types=None if types is None else _fit_last_axis(types, input_places, 0),
            choices=_fit_last_axis(self.choices[:, :choice_count], choice_places, pad),
            choice_mask=self.choice_mask[:, :choice_count],
        )

    def check_fits(self, vocab_size: int, soft_rows: int | None = None) -> None:
        """Raises InputError for a token beyond an embedding of ``vocab_size`` rows.

        Args:
            vocab_size: rows of the backbone's embedding.
            soft_rows: that a method has for markers (see `peft_jax.markers`); None: not known yet.
        """
        if soft_rows is not None:
            markers.check_rows([int(self.encoder_input_tokens.min())], soft_rows, self.task)
        largest = max(int(self.encoder_input_tokens.max()), int(self.choices.max()))
        if largest >= vocab_size:
            raise InputError(
                f"{self.task}: token {largest} does not fit the backbone's embedding of "
                f"{vocab_size} rows; its vocabulary belongs to another model"
            )

    def rows(self, index: np.ndarray) -> Batch:
        """The batch that a model reads: the rows at ``index`` [B], and ``row`` [B] int32 itself."""
        index = np.asarray(index, np.int32)
        arrays = self._arrays()
        return {key: arrays[key][index] for key in _MODEL_KEYS if key in arrays} | {"row": index}

    def save(self, path: str | os.PathLike) -> None:
        """Writes one safetensors file; an existing file is replaced only by a complete one.

        Raises InputError if the file cannot be written.
        """
        from safetensors.numpy import save

        # One key, because safetensors writes several in a random order and a file should be
        # the same, byte for byte, whenever it is made again.
        header = {
            "version": _VERSION,
            "task": self.task,
            "split": self.split,
            "template_names": list(self.template_names),
            "vocabulary": self.vocabulary,
            "details": self.details,
        }
        if self.pad_id:
            header["pad_id"] = self.pad_id
        metadata = {_FORMAT: json.dumps(header, sort_keys=True)}
        arrays = {key: np.ascontiguousarray(array) for key, array in self._arrays().items()}
        if len(self.keep):
            records = Records.of(self.keep).utf8
            arrays |= {"keep/utf8": records.values, "keep/offsets": records.offsets}
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(save(arrays, metadata))
            os.replace(partial, path)
        except OSError as error:
            raise InputError(f"examples cannot be written to {path}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike, vocabulary: str | None = None) -> "ChoiceExamples":
        """Reads what `save` wrote.

        Args:
            path: the file.
            vocabulary: the identity of the vocabulary that the backbone reads, if known.

        Raises InputError for a file that is missing, damaged, of another kind or a later version,
        or made with another vocabulary.
        """
        metadata, arrays = _read_safetensors(path)
        if _FORMAT not in metadata:
            raise InputError(
                f"{path} is not a file of prepared examples (its metadata has no {_FORMAT!r}): "
                "make one with `peft-jax prepare`"
            )
        try:
            header = json.loads(metadata[_FORMAT])
            version = header.pop("version")
            if version != _VERSION:
                raise InputError(
                    f"version {version} of the examples format, this release reads {_VERSION}"
                )
            header["template_names"] = tuple(header["template_names"])
            optional = {key: arrays[key] for key in _OPTIONAL if key in arrays}
            fields: dict = {**header, **{key: arrays[key] for key in _DTYPES}, **optional}
            if "keep/utf8" in arrays:
                records = Records(Ragged(arrays["keep/utf8"], arrays["keep/offsets"]))
                fields["keep"] = tuple(records)
            examples = cls(**fields)
        except InputError as error:
            raise InputError(f"{path} cannot be used: {error}; prepare it again") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path} is damaged: {type(error).__name__} {error}; prepare it again"
            ) from error
        if vocabulary is not None and examples.vocabulary != vocabulary:
            raise InputError(
                f"{path} was tokenised with another vocabulary (sha256 "
                f"{examples.vocabulary[:12]}...) than the backbone's ({vocabulary[:12]}...): "
                "prepare it again with the backbone's own vocabulary"
            )
        return examples

    def _arrays(self) -> Batch:
        """The arrays by name, without an optional one that is not there."""
        arrays = {key: getattr(self, key) for key in (*_DTYPES, *_OPTIONAL)}
        return {key: array for key, array in arrays.items() if array is not None}


class Rows(Protocol):
    """What is drawn from: `ChoiceExamples`, or `peft_jax.text_examples.TextExamples`."""

    @property
    def task(self) -> str:
        """The task's name."""
        ...

    @property
    def split(self) -> str:
        """The split that the rows come from."""
        ...

    @property
    def example(self) -> np.ndarray:
        """[R] int32, the example that a row belongs to."""
        ...

    @property
    def example_ids(self) -> np.ndarray:
        """The distinct values of ``example``, in order of appearance."""
        ...

    @property
    def num_examples(self) -> int:
        """The number of distinct examples."""
        ...

    def rows(self, index: np.ndarray) -> Batch:
        """The batch of some rows."""
        ...


class FewShotSampler:
    """Infinite training batches as T-Few draws them.

    Each epoch shuffles the examples and drops the last, partial batch; every time that an example
    is drawn, one of its templates is picked at random (T-Few, section 3.2, and the data module of
    github.com/r-three/t-few). Batch k is a pure function of (seed, k), so that a run resumed at
    ``state`` continues exactly; the random streams are numpy's, not torch's.

        sampler = FewShotSampler(examples, batch_size=8, seed=0)
        batch = next(sampler)       # encoder_input_tokens [8, S], choices [8, C, T], ...
        sampler.state               # {"epoch": 0, "position": 1}: JSON, and enough to go on

    Args:
        examples: what is drawn from.
        batch_size: B, over all processes.
        seed: of all draws.
        rows: the places of a batch that this process makes (`sharding.local_rows`); None: all. What
            is drawn does not depend on them.

    Raises InputError if a batch is larger than the number of examples (nothing would be left after
    the partial batch is dropped) or not positive.
    """

    def __init__(
        self,
        examples: Rows,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: at least 1 is needed")
        if batch_size > examples.num_examples:
            raise InputError(
                f"batch size {batch_size} is larger than the data: {examples.task} "
                f"({examples.split}) has {examples.num_examples} examples, and partial batches are "
                f"dropped; give a batch size of at most {examples.num_examples}"
            )
        if seed < 0:
            raise InputError(f"sampler seed {seed}: a seed is 0 or more")
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.places = checked_places(rows, batch_size)
        self.batches_per_epoch = examples.num_examples // batch_size
        self._rows_of = rows_of_examples(np.asarray(examples.example))
        self._epoch = functools.lru_cache(maxsize=1)(self._draw_epoch)
        self._next = 0

    def batch(self, k: int) -> Batch:
        """Batch k, counted from 0 over all epochs; see `ChoiceExamples.rows` for its keys."""
        epoch, position = divmod(k, self.batches_per_epoch)
        drawn = self._epoch(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        pick = np.random.default_rng([self.seed, epoch, position + 1])
        rows = np.array([pick.choice(self._rows_of[i]) for i in drawn])
        return self.examples.rows(rows[self.places])

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self._rows_of))

    @property
    def state(self) -> dict[str, int]:
        """Where the next batch stands: {"epoch", "position"}."""
        epoch, position = divmod(self._next, self.batches_per_epoch)
        return {"epoch": epoch, "position": position}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on from a `state`. Raises InputError if it cannot be one of this sampler."""
        epoch, position = state.get("epoch", -1), state.get("position", -1)
        if epoch < 0 or not 0 <= position < self.batches_per_epoch:
            raise InputError(
                f"the data position {state} does not fit {self.batches_per_epoch} batches an epoch:"
                " was the run started with other data or another batch size?"
            )
        self._next = epoch * self.batches_per_epoch + position

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.batch(self._next)
        self._next += 1
        return batch


def evaluation_batches(
    examples: ChoiceExamples, batch_size: int, rows: Sequence[int] | np.ndarray | None = None
) -> Iterator[Batch]:
    """All rows once, in batches of a few static shapes, short inputs first.

    Rows are sorted into at most three groups by the length of their input (a quarter, half and the
    whole of S), so that short inputs do not pay for the longest; a group too small to be worth a
    compiled shape of its own joins the next. The last batch of a group is filled up by repeating a
    row; ``weight`` [B] float32 is 1 for real rows and 0 for the filling, whose ``row`` is -1.

    Args:
        batch_size: B, over all processes.
        rows: the places of a batch that this process makes (`sharding.local_rows`); None: all.
            ``row`` and ``weight`` are the whole batch's all the same.

    Raises InputError if ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: at least 1 is needed")
    places = checked_places(rows, batch_size)
    tokens = examples.encoder_input_tokens
    longest = tokens.shape[1]
    lengths = longest - np.argmax(tokens[:, ::-1] != examples.pad_id, axis=1)
    for width, group in length_groups(lengths, longest, batch_size):
        for start in range(0, len(group), batch_size):
            real = group[start : start + batch_size]
            filling = batch_size - len(real)
            batch = examples.rows(np.concatenate([real, np.repeat(real[-1:], filling)])[places])
            for key in ("encoder_input_tokens", "encoder_token_types"):
                if key in batch:
                    batch[key] = batch[key][:, :width]
            batch["row"] = np.concatenate([real, np.full(filling, -1)]).astype(np.int32)
            batch["weight"] = (batch["row"] >= 0).astype(np.float32)
            yield batch


def _first_problem(examples: ChoiceExamples) -> str | None:
    """What is wrong with the arrays, in words; None if nothing is."""
    arrays = examples._arrays()
    for key, dtype in (_DTYPES | _OPTIONAL).items():
        if key in arrays and arrays[key].dtype != dtype:
            return f"{key} has dtype {arrays[key].dtype}, not {dtype}"
    rows = examples.label.shape[0] if examples.label.ndim == 1 else -1
    if rows < 1:
        return "no rows"
    mask, choices = examples.choice_mask, examples.choices
    shapes_fit = (
        examples.encoder_input_tokens.ndim == 2
        and choices.ndim == 3
        and mask.shape == choices.shape[:2]
        and all(array.shape[0] == rows for array in arrays.values())
        and examples.example.shape == examples.template.shape == (rows,)
        and arrays.get("encoder_token_types", examples.encoder_input_tokens).shape
        == examples.encoder_input_tokens.shape
    )
    if not shapes_fit:
        shapes = {key: array.shape for key, array in arrays.items()}
        return f"shapes that do not fit together: {shapes}"
    if not ((examples.label >= 0) & (examples.label < mask.shape[1])).all():
        return f"a label outside 0 to {mask.shape[1] - 1}"
    if not mask[np.arange(rows), examples.label].all():
        return "a label that points at a choice which is not there"
    if not ((choices != examples.pad_id).any(axis=2) == mask).all():
        return "choice_mask does not agree with the choices: a choice has tokens or is masked out"
    if not (examples.encoder_input_tokens != examples.pad_id).any(axis=1).all():
        return "a row whose input has no token"
    for key in ("encoder_input_tokens", "choices"):
        allowed = arrays[key] == examples.pad_id
        if key == "encoder_input_tokens":
            allowed |= arrays[key] <= markers.soft_id(0)
        if ((arrays[key] < 0) & ~allowed).any():
            return f"{key} has a negative token that is not the padding's {examples.pad_id}"
    if len(examples.keep) not in (0, rows):
        return f"{len(examples.keep)} records to keep for {rows} rows"
    if not ((examples.template >= 0) & (examples.template < examples.num_templates)).all():
        return f"a template index outside 0 to {examples.num_templates - 1}"
    return None


def _places_used(used_places: np.ndarray, multiple: int) -> int:
    """One past the last True over all rows, rounded up to a multiple."""
    used = int(np.flatnonzero(used_places.reshape(-1, used_places.shape[-1]).any(axis=0))[-1]) + 1
    return -(-used // multiple) * multiple


def _fit_last_axis(tokens: np.ndarray, length: int, pad_id: int) -> np.ndarray:
    """Cuts the last axis to ``length``, or fills it up with ``pad_id``."""
    pad = max(0, length - tokens.shape[-1])
    widths = [(0, 0)] * (tokens.ndim - 1) + [(0, pad)]
    return np.pad(tokens[..., :length], widths, constant_values=pad_id)


def _read_safetensors(path: str | os.PathLike) -> tuple[dict[str, str], Batch]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(
            f"no file of prepared examples at {path}: make one with `peft-jax prepare`"
        )
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in list(file.keys())}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {error}") from error
