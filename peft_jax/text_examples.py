"""Tokenised examples of text-to-text tasks: inputs, and the texts that a model is to write.

What `peft_jax.examples` is for rank classification, this is for generation: a file that is made
once, through seqio or by a `TextWriter`, and then read with numpy alone. Rows are as long as they
are (`Ragged`), the file is mapped and not read, so that one of many gigabytes takes no memory::

    row  example  template  inputs               targets            references     keep
    0    0        0         summarize: ... </s>  A storm hit ... 1  ("A storm ...", ...)  {}
    1    1        0         summarize: ... </s>  Shares ... </s>    ("Shares ...",)       {}

What a row's tokens hold is as the kind of model reads them (`peft_jax.tokenizer.row_ids`): an
encoder-decoder's inputs and targets stand alone, a decoder's target goes on from its input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from peft_jax import markers
from peft_jax.errors import InputError
from peft_jax.example_rows import ExampleRows, checked_places, length_groups, round_up
from peft_jax.ragged import Ragged, Records, Texts, encode_record
from peft_jax.tensor_files import StoredTensor, open_with_metadata, write_tensors

_FORMAT = "peft_jax.text_examples"
_VERSION = 1
# In this order in a file, so that every array stands at a multiple of its items' size.
_COLUMNS: dict[str, np.dtype] = {
    "inputs/offsets": np.dtype(np.int64),
    "targets/offsets": np.dtype(np.int64),
    "references/offsets": np.dtype(np.int64),
    "references/text_offsets": np.dtype(np.int64),
    "keep/offsets": np.dtype(np.int64),
    "inputs/values": np.dtype(np.int32),
    "targets/values": np.dtype(np.int32),
    "example": np.dtype(np.int32),
    "template": np.dtype(np.int32),
    "label": np.dtype(np.int32),
    "references/utf8": np.dtype(np.uint8),
    "keep/utf8": np.dtype(np.uint8),
}

TextKind = Literal["encoder_decoder", "decoder"]
BatchKind = Literal["encoder_decoder", "decoder", "prefix_decoder"]
Batch = dict[str, np.ndarray]


class TextRow(NamedTuple):
    """A row to be stored.

    Attributes:
        inputs: ids as the model reads them, at least one for an encoder.
        targets: ids, EOS included; at least one.
        example: the example's position in its split.
        template: index of the template.
        label: the class, where the targets are one's name; -1: no classes.
        references: all texts that are right, for metrics; () where none is asked.
        keep: JSON values that a metric needs.
    """

    inputs: Sequence[int] | np.ndarray
    targets: Sequence[int] | np.ndarray
    example: int
    template: int = 0
    label: int = -1
    references: Sequence[str] = ()
    keep: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class TextExamples(ExampleRows):
    """A split of a text-to-text task under its templates, tokenised: R rows of any length.

    Attributes:
        task, split, template_names, example, template, vocabulary, details, pad_id: as
            `peft_jax.examples.ChoiceExamples` has them.
        inputs: R rows of int32.
        targets: R rows of int32, EOS included.
        label: [R] int32, the class that a row's target names; -1 where there are no classes.
        references: for each row a tuple of all texts that are right.
        keep: for each row a mapping of JSON values that its metric needs.
        kind: of the models that the tokens are for, "encoder_decoder" or "decoder".
        start_id: what the decoder of an encoder-decoder model starts with
            (``config.decoder_start_id``).
        multiple: S and T of batches are rounded up to a multiple of this.

    Raises InputError when the arrays do not fit together.
    """

    task: str
    split: str
    template_names: tuple[str, ...]
    inputs: Ragged
    targets: Ragged
    example: np.ndarray
    template: np.ndarray
    label: np.ndarray
    references: Texts
    keep: Records
    vocabulary: str
    details: dict = dataclasses.field(default_factory=dict)
    kind: TextKind = "encoder_decoder"
    pad_id: int = 0
    start_id: int = 0
    multiple: int = 1

    def __post_init__(self):
        problem = _first_problem(self)
        if problem:
            raise InputError(f"the examples of {self.task} ({self.split}): {problem}")

    @classmethod
    def from_rows(cls, rows: Iterable[TextRow], **fields) -> TextExamples:
        """Examples in memory.

        Args:
            fields: task, split, template_names, vocabulary, and those of the others that are not
                as by default.

        Raises InputError for a row that cannot be used, by its number.
        """
        columns = _Columns(fields["task"], fields.get("kind", "encoder_decoder"),
                           fields.get("pad_id", 0))  # fmt: skip
        chunks: dict[str, list[bytes]] = {name: [] for name in _COLUMNS}
        for row in rows:
            for name, data in columns.add(row):
                chunks[name].append(data)
        arrays = {
            name: np.frombuffer(b"".join(chunks[name]), dtype) for name, dtype in _COLUMNS.items()
        }
        return cls(**fields, **_from_columns(columns.with_starts(arrays)))

    def __len__(self) -> int:
        """The number of rows R."""
        return len(self.example)

    # ------------------------------------------------------------------ what the rows hold
    @functools.cached_property
    def lengths(self) -> tuple[int, int]:
        """(S, T): the longest input's and the longest target's tokens, rounded up."""
        return (
            round_up(int(self.inputs.lengths.max()), self.multiple),
            round_up(int(self.targets.lengths.max()), self.multiple),
        )

    @property
    def input_length(self) -> int:
        """S, the places of an input."""
        return self.lengths[0]

    @functools.cached_property
    def token_range(self) -> tuple[int, int]:
        """The smallest and the largest id of all rows (a pass over all of them)."""
        values = [tokens.values for tokens in (self.inputs, self.targets) if len(tokens.values)]
        return min(int(v.min()) for v in values), max(int(v.max()) for v in values)

    @property
    def has_markers(self) -> bool:
        """Whether an input has the id of a row that a method trains."""
        return markers.is_soft(self.token_range[0])

    def check_fits(self, vocab_size: int, soft_rows: int | None = None) -> None:
        """Raises InputError for a token beyond an embedding of ``vocab_size`` rows.

        Args:
            vocab_size: rows of the backbone's embedding.
            soft_rows: that a method has for markers (see `peft_jax.markers`); None: not known yet.
        """
        smallest, largest = self.token_range
        if soft_rows is not None:
            markers.check_rows([smallest], soft_rows, self.task)
        if largest >= vocab_size:
            raise InputError(
                f"{self.task}: token {largest} does not fit the backbone's embedding of "
                f"{vocab_size} rows; its vocabulary belongs to another model"
            )

    def subset(
        self,
        examples: Sequence[int] | slice | None = None,
        templates: Sequence[int | str] | None = None,
    ) -> TextExamples:
        """The rows of some examples under some templates, in their present order, copied.

        Args:
            examples: positions among `example_ids` (0 ... num_examples - 1), or a slice of them.
            templates: names or indices of templates; ``template`` is renumbered in this order.

        Raises InputError for a position, name or index that is not there, or if no row is left.
        """
        rows, names, template = self.select(examples, templates)
        taken: dict[str, Any] = {
            key: getattr(self, key).take(rows)
            for key in ("inputs", "targets", "references", "keep")
        }
        taken |= {key: np.asarray(getattr(self, key)[rows]) for key in ("example", "label")}
        return dataclasses.replace(self, template_names=names, template=template, **taken)

    def trimmed(self, multiple: int = 1) -> TextExamples:
        """The same rows, with S and T rounded up to another multiple; nothing is copied."""
        return dataclasses.replace(self, multiple=multiple)

    # ------------------------------------------------------------------ batches
    def rows(
        self,
        index: np.ndarray,
        *,
        kind: BatchKind | None = None,
        lengths: tuple[int, int] | None = None,
    ) -> Batch:
        """The batch that a model is trained on: the rows at ``index`` [B], and ``row`` [B] int32.

        Of an encoder-decoder model, as seqio's `EncDecFeatureConverter` makes it::

            encoder_input_tokens  [B, S] int32, filled up with pad_id
            decoder_input_tokens  [B, T] int32, the targets one place later, start_id in front
            decoder_target_tokens [B, T] int32, filled up with pad_id
            decoder_loss_weights  [B, T] int32, 1 at every target

        Of a decoder-only model, prompt and answer as one sequence of at most L + 1 = S + T + 1
        tokens, as `peft_jax.tasks.converters.DecoderFeatureConverter` makes it::

            decoder_input_tokens  [B, L] int32, the sequence without its last token
            decoder_target_tokens [B, L] int32, the sequence without its first
            decoder_loss_weights  [B, L] int32, 1 where the target is one of the answer's tokens
            decoder_causal_attention [B, L] int32, 1 at the prompt, for "prefix_decoder" alone

        Args:
            kind: "prefix_decoder" for a decoder that sees the prompt both ways; None: `kind`.
            lengths: (S, T); None: `lengths`, the same for every batch.

        Raises InputError for a kind that the tokens are not for, and for a row that does not fit.
        """
        index = np.asarray(index, np.int32)
        kind = self._checked_kind(kind)
        inputs, targets = self._checked_lengths(index, lengths)
        if kind == "encoder_decoder":
            batch = self._pairs(index, inputs, targets)
        else:
            batch = self._sequences(index, inputs + targets, kind == "prefix_decoder")
        return batch | {"row": index}

    def prompts(self, index: np.ndarray, length: int | None = None) -> Batch:
        """What a text is generated from: ``encoder_input_tokens`` [B, S] int32, and ``row`` [B].

        Args:
            length: S; None: that of `lengths`.
        """
        index = np.asarray(index, np.int32)
        limits = None if length is None else (length, self.lengths[1])
        length, _ = self._checked_lengths(index, limits)
        return {
            "encoder_input_tokens": self.inputs.padded(index, length, self.pad_id),
            "row": index,
        }

    def _pairs(self, index: np.ndarray, inputs: int, targets: int) -> Batch:
        wanted = self.targets.padded(index, targets, self.pad_id)
        real = np.arange(targets) < _row_lengths(self.targets, index)[:, None]
        given = np.full_like(wanted, self.start_id)
        given[:, 1:] = wanted[:, :-1]
        return {
            "encoder_input_tokens": self.inputs.padded(index, inputs, self.pad_id),
            "decoder_input_tokens": given,
            "decoder_target_tokens": wanted,
            "decoder_loss_weights": real.astype(np.int32),
        }

    def _sequences(self, index: np.ndarray, length: int, prefix: bool) -> Batch:
        prompts = _row_lengths(self.inputs, index)
        last = prompts + _row_lengths(self.targets, index) - 1
        sequence = np.full((len(index), length + 1), self.pad_id, np.int32)
        self.inputs.write_into(sequence, index)
        self.targets.write_into(sequence, index, prompts)
        places = np.arange(length)
        real = places < last[:, None]
        batch = {
            "decoder_input_tokens": np.where(real, sequence[:, :-1], self.pad_id),
            "decoder_target_tokens": sequence[:, 1:],
            "decoder_loss_weights": (real & (places >= prompts[:, None] - 1)).astype(np.int32),
        }
        if prefix:
            # The converter's: cut with the inputs, where a prompt has no answer behind it.
            seen = real & (places < prompts[:, None])
            batch["decoder_causal_attention"] = seen.astype(np.int32)
        return batch

    def _checked_kind(self, kind: BatchKind | None) -> BatchKind:
        kind = kind or self.kind
        if kind != self.kind and (self.kind, kind) != ("decoder", "prefix_decoder"):
            raise InputError(
                f"{self.task} ({self.split}) was tokenised for a model of kind {self.kind!r} and "
                f"is asked for by one of kind {kind!r}: prepare it again for that kind"
            )
        return kind

    def _checked_lengths(
        self, index: np.ndarray, lengths: tuple[int, int] | None
    ) -> tuple[int, int]:
        if lengths is None:
            return self.lengths
        for name, tokens, limit in zip(
            ("an input", "a target"), (self.inputs, self.targets), lengths, strict=True
        ):
            longest = int(np.argmax(_row_lengths(tokens, index))) if len(index) else 0
            length = len(tokens[index[longest]]) if len(index) else 0
            if length > limit:
                raise InputError(
                    f"{self.task} ({self.split}): {name} of {length} tokens (row {index[longest]}) "
                    f"does not fit into {limit}; texts are cut when they are prepared"
                )
        return lengths

    # ------------------------------------------------------------------ the file
    def save(self, path: str | os.PathLike) -> None:
        """Writes one safetensors file; an existing file is replaced only by a complete one.

        Raises InputError if the file cannot be written.
        """
        _write(Path(path), _to_columns(self), _header(self))

    @classmethod
    def load(cls, path: str | os.PathLike, vocabulary: str | None = None) -> TextExamples:
        """What `save` or a `TextWriter` wrote; mapped, so that a row is read when it is asked for.

        Args:
            path: the file. It must stay as it is while the examples are used; a file that replaces
                it does them no harm.
            vocabulary: the identity of the vocabulary that the backbone reads, if known.

        Raises InputError for a file that is missing, damaged, of another kind or a later version,
        or made with another vocabulary.
        """
        if not Path(path).is_file():
            raise InputError(
                f"no file of prepared examples at {path}: make one with `peft-jax prepare`"
            )
        metadata, stored = open_with_metadata(Path(path))
        if _FORMAT not in metadata:
            raise InputError(
                f"{path} is not a file of prepared texts (its metadata has no {_FORMAT!r}): "
                "make one with `peft-jax prepare`"
            )
        try:
            header = json.loads(metadata[_FORMAT])
            version = header.pop("version")
            if version != _VERSION:
                raise InputError(
                    f"version {version} of the texts' format, this release reads {_VERSION}"
                )
            token_range = tuple(header.pop("token_range"))
            header["template_names"] = tuple(header["template_names"])
            arrays = {name: _mapped(stored[name]) for name in _COLUMNS}
            examples = cls(**header, **_from_columns(arrays))
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
        examples.__dict__["token_range"] = token_range  # so that nobody has to read all rows
        return examples


class TextWriter:
    """Writes a file of `TextExamples` row by row: nothing of it stays in memory.

    The file is there whole when the block is left, and not at all if the block raises::

        with TextWriter("train.safetensors", task="xsum", split="train", ...) as writer:
            for row in rows:
                writer.add(row)
        examples = TextExamples.load("train.safetensors")

    Args:
        path: the file; replaced if it exists.
        fields: as for `TextExamples.from_rows`; ``details`` may be changed until the end
            (``writer.details``), say to count what was left out.

    Raises InputError for a row that cannot be used, by its number, for a file that cannot be
    written, and where there is no row.
    """

    def __init__(self, path: str | os.PathLike, **fields):
        self.path = Path(path)
        self.fields = fields
        self.details: dict[str, Any] = fields.setdefault("details", {})
        self._columns = _Columns(
            fields["task"], fields.get("kind", "encoder_decoder"), fields.get("pad_id", 0)
        )

    def __enter__(self) -> TextWriter:
        # Each column grows in a file of its own: where one ends in the whole is known at the end.
        self._folder = self.path.with_name(f".{self.path.name}.{os.getpid()}.columns")
        self._open = contextlib.ExitStack()
        try:
            self._folder.mkdir(parents=True)
            self._files = {
                name: self._open.enter_context(self._file(name).open("wb")) for name in _COLUMNS
            }
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return self

    def add(self, row: TextRow) -> None:
        """Appends a row."""
        try:
            for name, data in self._columns.add(row):
                self._files[name].write(data)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def __len__(self) -> int:
        """The number of rows so far."""
        return self._columns.rows

    def __exit__(self, kind, *_) -> None:
        try:
            self._open.close()
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        arrays: dict[str, np.ndarray] = {
            name: np.memmap(self._file(name), dtype, "r")
            if self._file(name).stat().st_size
            else np.empty(0, dtype)
            for name, dtype in _COLUMNS.items()
        }
        arrays = self._columns.with_starts(arrays)
        examples = TextExamples(**self.fields, **_from_columns(arrays))
        examples.__dict__["token_range"] = self._columns.token_range
        _write(self.path, arrays, _header(examples))

    def _file(self, name: str) -> Path:
        return self._folder / name.replace("/", ".")


def is_text_file(path: str | os.PathLike) -> bool:
    """Whether a file of prepared examples holds texts; False where nothing can be read."""
    if not Path(path).is_file():
        return False
    try:
        return _FORMAT in open_with_metadata(Path(path))[0]
    except (InputError, OSError, ValueError):
        return False


def text_batches(
    examples: TextExamples,
    batch_size: int,
    *,
    targets: bool = False,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    """All rows once, in batches of a few static shapes, short inputs first.

    Rows are sorted into at most three groups by the length of their input (a quarter, half and the
    whole of S), so that short inputs do not pay for the longest; a group too small to be worth a
    compiled shape of its own joins the next. The last batch of a group is filled up by repeating a
    row; ``weight`` [B] float32 is 1 for real rows and 0 for the filling, whose ``row`` is -1, and
    whose loss weights are 0.

    Args:
        batch_size: B, over all processes.
        targets: batches as of `TextExamples.rows`, and not as of `TextExamples.prompts`.
        rows: the places of a batch that this process makes (`sharding.local_rows`); None: all.
            ``row`` and ``weight`` are the whole batch's all the same.

    Raises InputError if ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: at least 1 is needed")
    places = checked_places(rows, batch_size)
    lengths, longest = examples.inputs.lengths, examples.lengths[0]
    for width, group in length_groups(lengths, longest, batch_size, examples.multiple):
        for start in range(0, len(group), batch_size):
            real = group[start : start + batch_size]
            filling = batch_size - len(real)
            row = np.concatenate([real, np.full(filling, -1)]).astype(np.int32)
            index = np.concatenate([real, np.repeat(real[-1:], filling)])[places]
            if targets:
                batch = examples.rows(index, lengths=(width, examples.lengths[1]))
                batch["decoder_loss_weights"][row[places] < 0] = 0
            else:
                batch = examples.prompts(index, width)
            batch["row"], batch["weight"] = row, (row >= 0).astype(np.float32)
            yield batch


# --------------------------------------------------------------------------------------------
# Columns of a file
# --------------------------------------------------------------------------------------------
class _Columns:
    """Rows as bytes of a file's columns, and what must be known of all rows at the end."""

    def __init__(self, task: str, kind: str, pad_id: int):
        self.rows = 0
        self.token_range = (2**31 - 1, -(2**31))
        self._task, self._kind, self._pad_id = task, kind, pad_id
        self._ends = dict.fromkeys((name for name in _COLUMNS if "offsets" in name), 0)

    def add(self, row: TextRow) -> Iterator[tuple[str, bytes]]:
        """(column, bytes to append) of a row."""
        try:
            inputs, targets = (np.asarray(ids, np.int32) for ids in (row.inputs, row.targets))
            texts = [text.encode() for text in row.references]
            keep = encode_record(row.keep)
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InputError(f"{self._task}: row {self.rows}: {error}") from error
        self._check(inputs, targets)
        yield "inputs/values", inputs.tobytes()
        yield "targets/values", targets.tobytes()
        yield "references/utf8", b"".join(texts)
        yield "keep/utf8", keep
        for name in ("example", "template", "label"):
            yield name, np.int32(getattr(row, name)).tobytes()
        for text in texts:
            yield self._end("references/text_offsets", len(text))
        yield self._end("inputs/offsets", len(inputs))
        yield self._end("targets/offsets", len(targets))
        yield self._end("references/offsets", len(texts))
        yield self._end("keep/offsets", len(keep))
        self.rows += 1

    def with_starts(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns, with the 0 that offsets begin with; these alone are copied."""
        return {
            name: np.concatenate([[0], array]).astype(np.int64) if name in self._ends else array
            for name, array in arrays.items()
        }

    def _end(self, name: str, length: int) -> tuple[str, bytes]:
        self._ends[name] += length
        return name, self._ends[name].to_bytes(8, "little")

    def _check(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        where = f"{self._task}: row {self.rows}"
        if inputs.ndim != 1 or targets.ndim != 1:
            raise InputError(f"{where}: ids of shapes {inputs.shape} and {targets.shape}, not 1-D")
        if not len(targets) or not (len(inputs) or self._kind == "decoder"):
            raise InputError(f"{where} has no {'input' if len(targets) else 'target'} token")
        for name, ids in (("inputs", inputs), ("targets", targets)):
            if not len(ids):
                continue
            low, high = int(ids.min()), int(ids.max())
            bad = low < 0 and not (name == "inputs" and markers.is_soft(low))
            if bad or (ids == self._pad_id).any() or (ids == -1).any():
                raise InputError(
                    f"{where}: {name} have a token {low if bad else self._pad_id}, which is "
                    "padding or none of a vocabulary"
                )
            least, most = self.token_range
            self.token_range = min(least, low), max(most, high)


def _from_columns(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields of `TextExamples` that columns hold."""
    fields = {
        name: Ragged(arrays[f"{name}/values"], arrays[f"{name}/offsets"])
        for name in ("inputs", "targets")
    }
    texts = Ragged(arrays["references/utf8"], arrays["references/text_offsets"])
    return fields | {
        "references": Texts(texts, arrays["references/offsets"]),
        "keep": Records(Ragged(arrays["keep/utf8"], arrays["keep/offsets"])),
        **{name: arrays[name] for name in ("example", "template", "label")},
    }


def _to_columns(examples: TextExamples) -> dict[str, np.ndarray]:
    references, keep = examples.references, examples.keep.utf8
    arrays = {
        f"{name}/{part}": getattr(getattr(examples, name), part)
        for name in ("inputs", "targets")
        for part in ("values", "offsets")
    }
    arrays |= {
        "references/utf8": references.utf8.values,
        "references/text_offsets": references.utf8.offsets,
        "references/offsets": references.offsets,
        "keep/utf8": keep.values,
        "keep/offsets": keep.offsets,
        **{name: getattr(examples, name) for name in ("example", "template", "label")},
    }
    return {name: arrays[name] for name in _COLUMNS}


_HEADER = (
    "task", "split", "template_names", "vocabulary", "details", "kind", "pad_id", "start_id",
    "multiple", "token_range",
)  # fmt: skip


def _header(examples: TextExamples) -> dict[str, str]:
    header = {"version": _VERSION} | {name: getattr(examples, name) for name in _HEADER}
    return {_FORMAT: json.dumps(header, sort_keys=True)}


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    try:
        write_tensors(path, {name: arrays[name] for name in _COLUMNS}, metadata)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"examples cannot be written to {path}: {error.strerror}")


def _first_problem(examples: TextExamples) -> str | None:
    """What is wrong with the arrays, in words; None if nothing is."""
    if examples.kind not in ("encoder_decoder", "decoder"):
        return f"kind {examples.kind!r}: 'encoder_decoder' or 'decoder'"
    if examples.multiple < 1:
        return f"multiple {examples.multiple}: at least 1 is needed"
    for name, array in _to_columns(examples).items():
        if array.dtype != _COLUMNS[name]:
            return f"{name} has dtype {array.dtype}, not {_COLUMNS[name]}"
    parts = {n: getattr(examples, n) for n in ("inputs", "targets", "references", "keep")}
    for name, part in parts.items():
        if problem := part.problem():
            return f"{name} has {problem}"
    numbers = {n: getattr(examples, n) for n in ("example", "template", "label")}
    rows = len(examples.inputs)
    if not rows:
        return "no rows"
    sizes = {n: len(part) for n, part in parts.items()} | {n: a.shape for n, a in numbers.items()}
    if any(size not in (rows, (rows,)) for size in sizes.values()):
        return f"sizes that do not fit together: {sizes}"
    if not (examples.targets.lengths > 0).all():
        return "a row whose target has no token"
    if examples.kind == "encoder_decoder" and not (examples.inputs.lengths > 0).all():
        return "a row whose input has no token"
    if not ((examples.template >= 0) & (examples.template < examples.num_templates)).all():
        return f"a template index outside 0 to {examples.num_templates - 1}"
    return None


def _row_lengths(tokens: Ragged, rows: np.ndarray) -> np.ndarray:
    """[B] the lengths of some rows."""
    return tokens.offsets[rows + 1] - tokens.offsets[rows]


def _mapped(tensor: StoredTensor) -> np.ndarray:
    if tensor.map is None:
        raise InputError("its format cannot be mapped")
    return tensor.map()
