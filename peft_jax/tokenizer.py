"""Tokenizers of Hugging Face folders, without transformers and without TensorFlow.

    tokenizer = load_tokenizer("path/to/llama")
    tokenizer.encode("Hello")              # the text's own tokens
    tokenizer.input_ids("Hello").ids       # as the model reads it: BOS in front
    tokenizer.target_ids("yes", after="Is it? Answer:")     # " yes", EOS

Text that looks like a special token is that token, as in transformers: "[MASK]" in a text for BERT
is the mask, "</s>" in one for T5 ends the sequence. Clean text from strangers before it comes here.

Tokens agree with those of transformers 5 (tests/test_tokenizer.py says on what), but for these of a
folder with a SentencePiece model and no tokenizer.json, where SentencePiece itself runs the model
(see `peft_jax.tokenizer_models`) and transformers converts it: characters that a unigram model
spells as bytes (mT5), which transformers makes unknown; white space and "▁" at the start of a text
for Llama 2, of which it loses one; Mistral, whose first word it writes without a space; BOS, which
Llama, Mistral and Gemma have here unless the folder says ``add_bos_token`` false; rare sequences of
combining accents under T5's normalisation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from peft_jax import markers
from peft_jax.errors import InputError
from peft_jax.tokenizer_files import ROLES, TokenizerFiles, find_tokenizer
from peft_jax.tokenizer_models import Model, Part, build_model

Kind = Literal["encoder_decoder", "decoder", "encoder"]
KINDS: tuple[Kind, ...] = ("encoder_decoder", "decoder", "encoder")

# Texts that no letter joins on to: what follows them is cut as it is in the middle of a text.
_ANCHORS = ("\n", ".", ":", "a")


class Tokens(NamedTuple):
    """Ids of an input, and for each the text that it belongs to (BERT's token types), all zeros
    where a family does not tell."""

    ids: list[int]
    types: list[int]


class Tokenizer:
    """What cuts text into a model's tokens; made by `load_tokenizer`.

    Attributes:
      files: where it came from and what the files say.
      identity: a SHA-256 (hex) over all that decides the tokens: two tokenizers of one identity
        give the same.
      vocab_size: one more than the largest id, added tokens included. An embedding may have more
        rows, and may lack those of tokens that were never used.
      pad_id, bos_id, eos_id, unk_id, cls_id, sep_id, mask_id: None where there is no such token.
    """

    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None

    def __init__(self, files: TokenizerFiles, model: Model, special_ids: dict[str, int | None]):
        self.files = files
        self.identity = files.identity
        self.vocab_size = model.size
        self._model = model
        for role in ROLES:
            setattr(self, f"{role}_id", special_ids[role])

    def __repr__(self) -> str:
        return f"Tokenizer({str(self.files.path)!r}, {self.vocab_size} tokens)"

    # ------------------------------------------------------------------ texts and ids
    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without those that its family puts around it.

        Raises InputError for a text that is no valid Unicode (half of a surrogate pair).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"a text cannot be tokenised: {error}: {text[:60]!r}") from None
        return self._model.encode(text)

    def encode_marked(self, text: str) -> list[int]:
        """:meth:`encode`, with the ids of trained rows where the text has markers.

        What stands beside a marker (see `peft_jax.markers`) is cut as it is beside a special token.
        """
        stretches, rows = markers.split(text)
        if not rows:
            return self.encode(text)
        special = (self.eos_id, self.sep_id, self.bos_id, self.cls_id, self.unk_id)
        for id in (id for id in special if id is not None):
            stand_in = self.token(id)
            if stand_in and stand_in not in text:
                ids = self.encode(stand_in.join(stretches))
                if ids.count(id) == len(rows):
                    given = iter(rows)
                    return [x for i in ids for x in (next(given) if i == id else [i])]
        raise InputError(
            f"the tokenizer in {self.files.path} has no special token to hold a marker's place"
        )

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of some tokens; rows of markers as markers.

        Args:
          skip_special: leave the special tokens out, and the markers.
        """
        pieces: list[str] = []
        stretch: list[int] = []
        for id in [*(int(id) for id in ids), None]:
            if id is not None and not markers.is_soft(id):
                stretch.append(id)
                continue
            if stretch or (id is None and not pieces):
                pieces.append(self._model.decode(stretch, skip_special))
            if id is not None and not skip_special:
                pieces.append(markers.marker(id))
            stretch = []
        return pieces[0] if len(pieces) == 1 else " ".join(piece.strip() for piece in pieces)

    def token(self, id: int) -> str | None:
        """How the vocabulary writes a token; None if it has no such id."""
        return markers.marker(id) if markers.is_soft(id) else self._model.id_to_token(id)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it; None if it has none."""
        return self._model.token_to_id(token)

    # ------------------------------------------------------------------ what a model reads
    def input_ids(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_length: int | None = None,
        side: Literal["right", "left"] = "right",
    ) -> Tokens:
        """One text or a pair, with the special tokens of the family around it.

        Args:
          max_length: of the ids, special tokens included; what is too long is cut and the special
            tokens stay. Of a pair the longer text is cut first (transformers' ``truncation=True``,
            strategy "longest_first").
          side: which end of a text is cut.

        Raises InputError if not even the special tokens fit.
        """
        texts = [self.encode_marked(each) for each in (text, pair) if each is not None]
        parts = self._model.template.single if pair is None else self._model.template.pair
        if max_length is not None:
            room = max_length - sum(part.text is None for part in parts)
            if room < 0:
                raise InputError(
                    f"max_length {max_length} is too short for the {max_length - room} special "
                    "tokens around a text"
                )
            lengths = _longest_first([len(ids) for ids in texts], room)
            texts = [_cut(ids, n, side) for ids, n in zip(texts, lengths, strict=True)]
        return _assemble(parts, texts)

    def prompt_ids(self, text: str, *, max_length: int | None = None) -> list[int]:
        """A text that the model is to go on from: BOS where the family has one, and no EOS.

        What is too long is cut at its start, behind BOS: the end stands next to the answer.
        """
        ids = self.encode_marked(text)
        start = [part.id for part in _before_text(self._model.template.single)]
        if max_length is not None:
            if max_length <= len(start):
                raise InputError(f"max_length {max_length} leaves no room for the prompt's text")
            ids = _cut(ids, max_length - len(start), "left")
        return start + ids

    def masked_ids(self, text: str, *, max_length: int | None = None) -> Tokens:
        """A text with the mask token in it once, as `input_ids`.

        What is too long is cut at the text's two ends, the longer side of the mask first, so that
        the mask and what stands next to it stay.

        Raises InputError if the vocabulary has no mask, or the text not exactly one.
        """
        ids, place = self._find_mask(text)
        front, back = ids[:place], ids[place + 1 :]
        parts = self._model.template.single
        if max_length is not None:
            room = max_length - sum(part.text is None for part in parts) - 1
            if room < 0:
                raise InputError(f"max_length {max_length} leaves no room for the mask")
            lengths = _longest_first([len(front), len(back)], room)
            front, back = _cut(front, lengths[0], "left"), _cut(back, lengths[1], "right")
        return _assemble(parts, [[*front, ids[place], *back]])

    def ids_at_mask(self, text: str, word: str) -> list[int]:
        """The tokens of a word in the place of a text's mask, with the space that the mask takes.

        RoBERTa's mask takes the space in front of it, so that "It is <mask>" asks for " warm".
        """
        ids, place = self._find_mask(text)
        front = text[: text.index(str(self.token(ids[place])))]
        joined = self.encode_marked(front + word)
        if len(joined) > place and joined[:place] == ids[:place]:
            return joined[place:]
        return self.encode(word)

    def _find_mask(self, text: str) -> tuple[list[int], int]:
        if self.mask_id is None:
            raise InputError(f"the tokenizer in {self.files.path} has no mask token")
        ids = self.encode_marked(text)
        if ids.count(self.mask_id) != 1:
            raise InputError(
                f"one mask token {self.token(self.mask_id)!r} is needed in a text, "
                f"{ids.count(self.mask_id)} are in {text[:60]!r}"
            )
        return ids, ids.index(self.mask_id)

    def target_ids(self, text: str, after: str | None = None) -> list[int]:
        """An answer that the model is to write: its tokens, and EOS.

        Args:
          text: the answer.
          after: the prompt that it follows, for a decoder; a space joins them unless the prompt
            ends in white space. Then the prompt's tokens and these are the tokens of the joined
            text, except where joining changes the prompt's own last token (one that ends in a space
            which would belong to the answer): there the answer's tokens are those of its text in
            the middle of another.

        BART's answers start with BOS, as its decoder was trained to write them.

        Raises InputError if the vocabulary has no EOS.
        """
        if self.eos_id is None:
            raise InputError(f"the tokenizer in {self.files.path} has no EOS to end an answer with")
        if self.files.family == "bart" and after is None:
            return self.input_ids(text).ids
        ids = self.encode(text) if not after else self._continuation(after, text)
        return [*ids, self.eos_id]

    def _continuation(self, prompt: str, text: str) -> list[int]:
        added = text if prompt[-1].isspace() else f" {text}"
        for start in (prompt, *_ANCHORS):
            alone, joined = self.encode_marked(start), self.encode_marked(start + added)
            if len(joined) > len(alone) and joined[: len(alone)] == alone:
                return joined[len(alone) :]
        return self.encode(text)


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, or of one of its files.

    Read are tokenizer.json, vocab.txt, vocab.json with merges.txt, and SentencePiece's models, with
    tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json beside them;
    see `peft_jax.tokenizer_files` for which goes first.

    Raises:
      InputError: there is none, or a file is damaged or not of a known family; the message says
        which file and what would do.
    """
    files = find_tokenizer(path)
    return Tokenizer(files, *build_model(files))


def kind_of(config: Any) -> Kind:
    """The kind of model that a `peft_jax.transformer.Config` describes."""
    if not config.decoder_layers:
        return "encoder"
    return "encoder_decoder" if config.encoder_layers else "decoder"


def row_ids(
    tokenizer: Tokenizer,
    kind: Kind,
    text: str,
    choices: Sequence[str],
    *,
    max_input_length: int | None = None,
) -> tuple[list[int], list[list[int]]]:
    """The ids of an input and of the answers to it, by the kind of model that reads them.

    ===================  ================================  =====================================
    kind                 input                             answer
    ===================  ================================  =====================================
    "encoder_decoder"    with the family's special tokens  on its own, with EOS
    "decoder"            BOS and the text                  what follows the text, with EOS
    "encoder"            with the family's special tokens  its tokens alone
    ===================  ================================  =====================================

    An input that is too long is cut: a decoder's at its start, the others' at their end.
    """
    if kind == "decoder":
        prompt = tokenizer.prompt_ids(text, max_length=max_input_length)
        return prompt, [tokenizer.target_ids(choice, after=text) for choice in choices]
    ids = tokenizer.input_ids(text, max_length=max_input_length).ids
    if kind == "encoder_decoder":
        return ids, [tokenizer.target_ids(choice) for choice in choices]
    if kind == "encoder":
        return ids, [tokenizer.encode(choice) for choice in choices]
    raise InputError(f"kind of model {kind!r} is unknown; one of {', '.join(KINDS)}")


def check_fits(ids: Sequence[int], vocab_size: int, what: str, soft_rows: int = 0) -> None:
    """Raises InputError for a token beyond an embedding of ``vocab_size`` rows.

    Args:
      what: whose tokens they are, for the message.
      soft_rows: that a method has for markers; the tokens may be theirs too.
    """
    markers.check_rows(ids, soft_rows, what)
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise InputError(
            f"{what}: token {largest} does not fit an embedding of {vocab_size} rows; the "
            "vocabulary belongs to another model"
        )


def _assemble(parts: Sequence[Part], texts: Sequence[list[int]]) -> Tokens:
    ids: list[int] = []
    types: list[int] = []
    for part in parts:
        piece = [part.id] if part.text is None else texts[part.text]
        ids += piece
        types += [part.type] * len(piece)
    return Tokens(ids, types)


def _before_text(parts: Sequence[Part]) -> list[Part]:
    return list(parts[: next(i for i, part in enumerate(parts) if part.text is not None)])


def _cut(ids: list[int], length: int, side: str) -> list[int]:
    """At most ``length`` of the ids, words cut from one side; markers stay where they are."""
    surplus = len(ids) - length
    if surplus <= 0:
        return ids
    words = [place for place, id in enumerate(ids) if not markers.is_soft(id)]
    if surplus > len(words):
        raise InputError(
            f"{length} places do not hold the {len(ids) - len(words)} rows of a text's markers; "
            "allow longer inputs"
        )
    gone = set(words[len(words) - surplus :] if side == "right" else words[:surplus])
    return [id for place, id in enumerate(ids) if place not in gone]


def _longest_first(lengths: list[int], room: int) -> list[int]:
    """How much of one or two texts is kept: the longer is cut down to the shorter, then both."""
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    short, long = sorted(lengths)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return [short, long] if lengths[0] <= lengths[1] else [long, short]
