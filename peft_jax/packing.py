"""Several texts in one row of a batch, so that short ones do not pay for the longest.

::

    packed = pack(examples, inputs=512, targets=128)  # a third of the rows, say
    sampler = FewShotSampler(packed, batch_size=8, seed=0)

A packed row is a unit like an example: samplers shuffle them, and what stands together stays
together. Texts of a row do not see each other (``*_segment_ids``), and count their places alone
(``*_positions``), so that the loss and its gradients are those of the texts one by one. Every text
is in exactly one row, whole.

Models with learned positions in an encoder cannot be packed, nor can soft prompts be shared by the
texts of a row; both are refused by the model (`peft_jax.transformer`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from peft_jax.errors import InputError
from peft_jax.example_rows import ExampleRows
from peft_jax.ragged import Ragged, places_of
from peft_jax.text_examples import Batch, BatchKind, TextExamples

Order = Literal["in_order", "first_fit_decreasing"]


@dataclasses.dataclass(frozen=True, eq=False)
class PackedExamples(ExampleRows):
    """Texts in N rows of fixed length; made by :func:`pack`.

    Attributes:
        task, split, vocabulary, pad_id, start_id: those of ``examples``.
        template_names: one, "packed".
        example: [N] int32, 0 to N - 1: every packed row is one.
        template: [N] int32, zeros.
        kind: "encoder_decoder", "decoder" or "prefix_decoder".
        examples: the texts.
        members: N rows of int64: the rows of ``examples`` that stand together, in their order.
        lengths: (S, T): of an encoder-decoder's inputs and targets; of a decoder, whose places are
            S + T, it is what was asked for.
    """

    task: str
    split: str
    template_names: tuple[str, ...]
    example: np.ndarray
    template: np.ndarray
    vocabulary: str
    pad_id: int
    start_id: int
    kind: BatchKind
    examples: TextExamples
    members: Ragged
    lengths: tuple[int, int]

    def __len__(self) -> int:
        """The number of packed rows N."""
        return len(self.members)

    @property
    def details(self) -> dict:
        """How the texts were made."""
        return self.examples.details

    @property
    def has_markers(self) -> bool:
        """Whether an input has the id of a row that a method trains."""
        return self.examples.has_markers

    def check_fits(self, vocab_size: int, soft_rows: int | None = None) -> None:
        """See `TextExamples.check_fits`."""
        self.examples.check_fits(vocab_size, soft_rows)

    @property
    def fill(self) -> float:
        """The share of all places that hold a token."""
        used = sum(int(sizes.sum()) for sizes in _sizes(self.examples))
        return used / (len(self) * sum(self.lengths))

    def rows(self, index: np.ndarray, *, lengths: tuple[int, int] | None = None) -> Batch:
        """The batch that a model is trained on: the packed rows at ``index`` [B].

        As `TextExamples.rows` gives them, each text behind the other in its row, and int32::

            encoder_segment_ids, encoder_positions  [B, S], of an encoder-decoder alone
            decoder_segment_ids, decoder_positions  [B, T] or [B, L]: 1, 2, ... and 0, 1, ...

        which are 0 at padding. seqio's packing makes the same keys.

        Args:
            lengths: those of the rows, which are fixed; what a sampler asks for.

        Raises InputError for other lengths.
        """
        if lengths not in (None, self.lengths):
            raise InputError(f"{self.task} is packed to {self.lengths}, not to {lengths}")
        index = np.asarray(index, np.int32)
        members = self.members.take(index)
        batch = self._pairs(members) if self.kind == "encoder_decoder" else self._sequences(members)
        return batch | {"row": index}

    def _pairs(self, members: Ragged) -> Batch:
        examples, batch = self.examples, {}
        for side, tokens, width in zip(
            ("encoder", "decoder"), (examples.inputs, examples.targets), self.lengths, strict=True
        ):
            row_lengths = tokens.lengths[members.values]
            layout = _Layout(members.offsets, row_lengths, width)
            ids = tokens.take(members.values).values
            if side == "encoder":
                batch["encoder_input_tokens"] = layout.filled(ids, self.pad_id)
            else:
                given = np.concatenate([ids[:0], ids[-1:], ids[:-1]])
                given[np.cumsum(row_lengths) - row_lengths] = self.start_id
                batch["decoder_input_tokens"] = layout.filled(given, self.pad_id)
                batch["decoder_target_tokens"] = layout.filled(ids, self.pad_id)
                batch["decoder_loss_weights"] = layout.filled(np.ones_like(ids), 0)
            batch |= layout.marks(side)
        return batch

    def _sequences(self, members: Ragged) -> Batch:
        inputs, targets = (t.take(members.values) for t in _tokens(self.examples))
        prompts, sizes = inputs.lengths, inputs.lengths + targets.lengths
        starts = np.cumsum(sizes) - sizes
        sequence = np.empty(sizes.sum(), np.int32)
        sequence[places_of(starts, prompts)] = inputs.values
        sequence[places_of(starts + prompts, targets.lengths)] = targets.values
        # Each sequence gives one place less than it has tokens: the last has nothing behind it.
        given = places_of(starts, sizes - 1)
        within = places_of(np.zeros_like(sizes), sizes - 1)
        prompt = np.repeat(prompts, sizes - 1)
        layout = _Layout(members.offsets, sizes - 1, sum(self.lengths))
        batch = {
            "decoder_input_tokens": layout.filled(sequence[given], self.pad_id),
            "decoder_target_tokens": layout.filled(sequence[given + 1], self.pad_id),
            "decoder_loss_weights": layout.filled(within >= prompt - 1, 0),
        }
        if self.kind == "prefix_decoder":
            batch["decoder_causal_attention"] = layout.filled(within < prompt, 0)
        return batch | layout.marks("decoder")


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the places of several texts a row stand in [B, width].

    Attributes:
        offsets: [B + 1]: the texts of row b are those from offsets[b] to offsets[b + 1].
        lengths: [M]: places of each text.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    width: int

    def filled(self, values: np.ndarray, fill: int) -> np.ndarray:
        """[B, width] int32 of values [sum of lengths]."""
        made = np.full(((len(self.offsets) - 1) * self.width), fill, np.int32)
        made[self._places()] = values
        return made.reshape(-1, self.width)

    def marks(self, side: str) -> Batch:
        """Segment ids and positions."""
        number = np.arange(len(self.lengths)) - self._of_row(self.offsets[:-1])
        within = places_of(np.zeros_like(self.lengths), self.lengths)
        return {
            f"{side}_segment_ids": self.filled(np.repeat(number + 1, self.lengths), 0),
            f"{side}_positions": self.filled(within, 0),
        }

    def _places(self) -> np.ndarray:
        """[sum of lengths] where each value stands, rows one behind the other."""
        behind = np.concatenate([[0], np.cumsum(self.lengths)])
        in_row = behind[:-1] - self._of_row(behind[self.offsets[:-1]])
        row = self._of_row(np.arange(len(self.offsets) - 1))
        return places_of(row * self.width + in_row, self.lengths)

    def _of_row(self, values: np.ndarray) -> np.ndarray:
        """[M] for each text what its row has in values [B]."""
        return np.repeat(values, np.diff(self.offsets))


# --------------------------------------------------------------------------------------------
# Which texts stand together
# --------------------------------------------------------------------------------------------
def pack(
    examples: TextExamples,
    inputs: int,
    targets: int,
    *,
    kind: BatchKind | None = None,
    order: Order = "first_fit_decreasing",
    window: int = 4096,
    seed: int | None = None,
) -> PackedExamples:
    """Puts texts together into rows of a fixed length.

    Args:
        inputs, targets: S and T of an encoder-decoder's rows. A decoder's rows have S + T places,
            whatever is prompt and whatever is answer in them.
        kind: "prefix_decoder" for a decoder that sees prompts both ways; None: that of the texts.
        order: "first_fit_decreasing": of each ``window`` of texts the longest first, into the first
            row with room (a decoder's rows: at most 11/9 of the fewest and one more, Johnson 1973);
            "in_order": the texts as they come, a new row where the next has no room, as seqio packs
            (whose window is the longer of S and T).
        window: texts that are looked at together; bounds the time for many texts.
        seed: texts are shuffled first, so that neighbours in the data do not stand together; None:
            they are not.

    Returns the rows, each text in one of them. Raises InputError for a text that is longer than a
    row, by its number, and for an order or kind that is none.
    """
    kind = examples._checked_kind(kind)
    if order not in ("in_order", "first_fit_decreasing"):
        raise InputError(f"order {order!r} of packing: 'in_order' or 'first_fit_decreasing'")
    if min(inputs, targets, window) < 1:
        raise InputError(f"inputs {inputs}, targets {targets}, window {window}: at least 1 each")
    room = np.array([inputs, targets] if kind == "encoder_decoder" else [inputs + targets])
    sizes = np.stack(_sizes(examples), axis=1)
    _check_room(examples, sizes, room)
    queue = np.arange(len(examples))
    if seed is not None:
        np.random.default_rng(seed).shuffle(queue)
    packed: list[list[int]] = []
    for start in range(0, len(queue), window):
        part = queue[start : start + window]
        if order == "in_order":
            packed += _in_order(part, sizes, room)
        else:
            longest = np.argsort(-(sizes[part] / room).max(axis=1), kind="stable")
            packed += _first_fit(part[longest], sizes, room)
    return PackedExamples(
        task=examples.task,
        split=examples.split,
        template_names=("packed",),
        example=np.arange(len(packed), dtype=np.int32),
        template=np.zeros(len(packed), np.int32),
        vocabulary=examples.vocabulary,
        pad_id=examples.pad_id,
        start_id=examples.start_id,
        kind=kind,
        examples=examples,
        members=Ragged.of(packed, np.int64),
        lengths=(inputs, targets),
    )


def _sizes(examples: TextExamples) -> list[np.ndarray]:
    """Places that each text takes: of inputs and targets, or of the whole sequence."""
    inputs, targets = (tokens.lengths for tokens in _tokens(examples))
    return [inputs, targets] if examples.kind == "encoder_decoder" else [inputs + targets - 1]


def _tokens(examples: TextExamples) -> tuple[Ragged, Ragged]:
    return examples.inputs, examples.targets


def _check_room(examples: TextExamples, sizes: np.ndarray, room: np.ndarray) -> None:
    too_long = np.flatnonzero((sizes > room).any(axis=1))
    if too_long.size:
        row = too_long[0]
        raise InputError(
            f"{examples.task} ({examples.split}): row {row} takes {sizes[row].tolist()} places and "
            f"packed rows have {room.tolist()} ({len(too_long)} rows are too long); texts are cut "
            "when they are prepared"
        )


def _in_order(queue: np.ndarray, sizes: np.ndarray, room: np.ndarray) -> list[list[int]]:
    packed: list[list[int]] = []
    left = [-1] * len(room)
    for row, size in zip(queue.tolist(), sizes[queue].tolist(), strict=True):
        left = [have - need for have, need in zip(left, size, strict=True)]
        if min(left) < 0:
            packed.append([])
            left = [have - need for have, need in zip(room.tolist(), size, strict=True)]
        packed[-1].append(row)
    return packed


def _first_fit(queue: np.ndarray, sizes: np.ndarray, room: np.ndarray) -> list[list[int]]:
    packed: list[list[int]] = []
    left = np.tile(room, (len(queue), 1))
    for row in queue.tolist():
        fits = (left[: len(packed) + 1] >= sizes[row]).all(axis=1)
        place = int(np.argmax(fits))
        if place == len(packed):
            packed.append([])
        packed[place].append(row)
        left[place] -= sizes[row]
    return packed
