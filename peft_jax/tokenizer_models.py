"""From a tokenizer's files to what cuts text into ids: the `tokenizers` package, or SentencePiece.

Pipelines that a folder only names by its class (BERT's vocab.txt, GPT-2's vocab.json and
merges.txt) are put together here as the class does it. A SentencePiece model is run by the
SentencePiece package and not converted, since conversions differ from what the model was trained
with: transformers' lose a Llama's leading space and mT5's byte pieces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from peft_jax.errors import InputError
from peft_jax.tokenizer_files import ROLES, Added, TokenizerFiles

# A ModelProto's field normalizer_spec { add_dummy_prefix: false }; what stands behind a model's
# bytes overrides what they say (protobuf's rule for a message given twice).
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"

# Qwen's split into words; Yang et al. 2024, in the published tokenizer.json of every Qwen2.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_T5_SENTINELS = 100
_OWN_ROLES = ("pad", "bos", "eos", "unk")


class Part(NamedTuple):
    """A part of a model's input: a text's tokens (text 0 or 1), or a special token (text None)."""

    text: int | None
    id: int = -1
    type: int = 0


class Template(NamedTuple):
    """How a family writes one text, and a pair of them, between its special tokens."""

    single: tuple[Part, ...]
    pair: tuple[Part, ...]


class Model(Protocol):
    """What cuts text into ids and puts it together again, special tokens in the text included."""

    template: Template
    size: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...
    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, id: int) -> str | None: ...


def build_model(files: TokenizerFiles) -> tuple[Model, dict[str, int | None]]:
    """The model, and the ids of its special tokens by role ("pad", "bos" ...).

    Raises:
      InputError: a file is damaged, or says what cannot be.
    """
    make = {"sentencepiece": _SentencePiece.read}.get(files.source, _Tokenizers.read)
    model = make(files)
    ids: dict[str, int | None] = dict.fromkeys(ROLES)
    for role, token in {**files.default_tokens, **files.tokens}.items():
        ids[role] = None if token is None else model.token_to_id(token)
    if isinstance(model, _SentencePiece):
        for role, id in model.own_ids.items():
            if ids[role] is None and role not in files.tokens:
                ids[role] = id
    model.template = _template(files, ids, model)
    return model, ids


# --------------------------------------------------------------------------------------------
# Templates
# --------------------------------------------------------------------------------------------
def _template(files: TokenizerFiles, ids: dict[str, int | None], model: Model) -> Template:
    """tokenizer.json's own where it has one, else the family's."""
    if isinstance(model, _Tokenizers) and model.backend.post_processor is not None:
        return _probed(model)
    first, second = (Part(0),), (Part(1),)
    family = model.family if isinstance(model, _SentencePiece) else files.family
    if family == "bert":
        cls, sep = _special(files, ids, "cls"), _special(files, ids, "sep")
        pair = (*cls, Part(0), *sep, Part(1, type=1), *(part._replace(type=1) for part in sep))
        return Template((*cls, *first, *sep), pair)
    if family in ("roberta", "bart", "xlm-roberta"):
        cls, sep = _special(files, ids, "cls"), _special(files, ids, "sep")
        return Template((*cls, *first, *sep), (*cls, *first, *sep, *sep, *second, *sep))
    if family == "t5":
        eos = _special(files, ids, "eos")
        return Template((*first, *eos), (*first, *eos, *second, *eos))
    # A tokenizer.json without a post-processor adds nothing; the classes of Llama and Gemma do.
    starts = files.options.get("add_bos_token", files.source == "sentencepiece")
    bos = _special(files, ids, "bos") if starts else ()
    eos = _special(files, ids, "eos") if files.options.get("add_eos_token", False) else ()
    single = (*bos, *first, *eos)
    ends = (part._replace(type=1) for part in (*bos, Part(1), *eos))
    return Template(single, (*single, *ends))


def _special(files: TokenizerFiles, ids: dict[str, int | None], role: str) -> tuple[Part, ...]:
    id = ids[role]
    if id is None:
        token = files.tokens.get(role) or files.default_tokens.get(role)
        raise InputError(
            f"the tokenizer in {files.path} puts its {role} token"
            + (f" {token!r}" if token else "")
            + " around every text, but its vocabulary has none"
        )
    return (Part(None, id),)


def _probed(model: _Tokenizers) -> Template:
    """What a post-processor does, seen from what it makes of two texts."""
    probe = next((text for text in ("a", ".", "1", "一") if model.encode(text)), None)
    if probe is None:
        raise InputError("the tokenizer gives no token for the simplest of texts")

    def parts(encoding) -> tuple[Part, ...]:
        found: list[Part] = []
        rows = zip(encoding.sequence_ids, encoding.ids, encoding.type_ids, strict=True)
        for text, id, kind in rows:
            if text is None:
                found.append(Part(None, id, kind))
            elif not found or found[-1].text != text:
                found.append(Part(text, type=kind))
        return tuple(found)

    return Template(parts(model.backend.encode(probe)), parts(model.backend.encode(probe, probe)))


# --------------------------------------------------------------------------------------------
# The tokenizers package
# --------------------------------------------------------------------------------------------
class _Tokenizers:
    """tokenizer.json, WordPiece and byte-level BPE."""

    template: Template

    def __init__(self, backend: Any):
        self.backend = backend
        self.size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def read(cls, files: TokenizerFiles) -> _Tokenizers:
        build = {"json": _from_json, "wordpiece": _wordpiece, "byte_bpe": _byte_bpe}[files.source]
        try:
            backend = build(files)
        except InputError:
            raise
        except Exception as error:  # tokenizers has no error of its own
            names = " and ".join(map(str, files.files))
            raise InputError(f"{names} cannot be read as a tokenizer: {error}") from None
        backend.no_truncation()
        backend.no_padding()
        _add_tokens(backend, files)
        return cls(backend)

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_to_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        return self.backend.id_to_token(id)


def _from_json(files: TokenizerFiles) -> Any:
    """tokenizer.json as it stands, with those options of tokenizer_config.json that change it."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(files.files[0]))
    normalizer, options = backend.normalizer, files.options
    if isinstance(normalizer, tokenizers.normalizers.BertNormalizer):
        for option, field in (
            ("do_lower_case", "lowercase"),
            ("strip_accents", "strip_accents"),
            ("tokenize_chinese_chars", "handle_chinese_chars"),
        ):
            if option in options:
                setattr(normalizer, field, options[option])
        backend.normalizer = normalizer
    splitter = backend.pre_tokenizer
    prefix_space = options.get("add_prefix_space")
    if prefix_space is not None and isinstance(splitter, tokenizers.pre_tokenizers.ByteLevel):
        splitter.add_prefix_space = prefix_space
        backend.pre_tokenizer = splitter
    return backend


def _wordpiece(files: TokenizerFiles) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    with open(files.files[0], encoding="utf-8") as lines:
        vocabulary = {line.rstrip("\n"): id for id, line in enumerate(lines)}
    unknown = files.tokens.get("unk") or files.default_tokens.get("unk") or "[UNK]"
    if unknown not in vocabulary:
        raise InputError(f"{files.files[0]} has no line {unknown!r}, the unknown token")
    options = files.options
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _byte_bpe(files: TokenizerFiles) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary, merges = map(str, files.files)
    backend = Tokenizer(models.BPE.from_file(vocabulary, merges))
    prefix_space = bool(files.options.get("add_prefix_space", False))
    if files.family == "qwen2":
        backend.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_tokens(backend: Any, files: TokenizerFiles) -> None:
    """The tokens of the neighbouring files that are not yet found in text as they stand."""
    from tokenizers import AddedToken

    def flags(token: Any) -> dict[str, bool]:
        names = ("special", "normalized", "lstrip", "rstrip", "single_word")
        return {name: getattr(token, name) for name in names}

    held = {token.content: flags(token) for token in backend.get_added_tokens_decoder().values()}
    defaults = dict.fromkeys(files.default_tokens.values())
    known = [Added(t, special=True, lstrip=_eats_space(t, files)) for t in defaults]
    known = [token for token in known if backend.token_to_id(token.content) is not None]
    # tokenizer.json's own description goes before all but that of tokenizer_config.json.
    wanted = {
        token.content: token
        for token in reversed((*files.added, *known))
        if token.content not in held
        or (token.id is not None and held[token.content] != flags(token))
    }
    # All at once: each call indexes every added token anew, and Gemma has thousands.
    backend.add_tokens([AddedToken(t.content, **flags(t)) for t in reversed(wanted.values())])
    for token in files.added:
        _check_id(token, backend.token_to_id(token.content), files)


def _eats_space(token: str, files: TokenizerFiles) -> bool:
    """RoBERTa's mask stands for a word together with the space in front of it."""
    return token == "<mask>" and files.family in ("roberta", "bart", "xlm-roberta")


def _check_id(token: Added, id: int | None, files: TokenizerFiles) -> None:
    if token.id is not None and id != token.id:
        raise InputError(
            f"{files.path}: the token {token.content!r} has the id {id} in its vocabulary and "
            f"{token.id} in {files.neighbours[0].name if files.neighbours else 'its files'}"
        )


# --------------------------------------------------------------------------------------------
# SentencePiece
# --------------------------------------------------------------------------------------------
class _SentencePiece:
    """A SentencePiece model, with the special tokens cut out of the text before it.

    Only the start of a text gets the model's dummy prefix ("▁" in front of the first word), not
    what follows a special token; T5, XLM-RoBERTa and a Llama whose folder says ``legacy`` give it
    to every stretch of text, as they were trained.
    """

    template: Template

    def __init__(self, data: bytes, files: TokenizerFiles):
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        self._bare = sentencepiece.SentencePieceProcessor(model_proto=data + _NO_DUMMY_PREFIX)
        own = {kind: getattr(self.processor, f"{kind}_id")() for kind in _OWN_ROLES}
        self.family = files.family or ("t5" if own["bos"] < 0 else "llama")
        self._prefix_all = self.family in ("t5", "xlm-roberta") or files.options.get(
            "legacy", False
        )
        if files.options.get("add_prefix_space") is False:
            self.processor = self._bare
        self._has_prefix = self.processor.normalize("a") != "a"
        count = self.processor.get_piece_size()
        self._ids = _fairseq_ids(count) if self.family == "xlm-roberta" else list(range(count))
        self._pieces = {id: piece for piece, id in enumerate(self._ids)}
        self.own_ids = {role: self._ids[piece] for role, piece in own.items() if piece >= 0}
        self._added = self._all_added(files)
        self._contents = {id: content for content, (id, _) in self._added.items()}
        self._special = {id for id, token in self._added.values() if token.special}
        self._pattern = _pattern([token for _, token in self._added.values()])
        self.size = 1 + max(*self._pieces, *self._contents)

    @classmethod
    def read(cls, files: TokenizerFiles) -> _SentencePiece:
        (file,) = files.files
        try:
            return cls(file.read_bytes(), files)
        except InputError:
            raise
        except Exception as error:  # sentencepiece and the operating system have no common error
            raise InputError(
                f"{file} is not a SentencePiece model: {error} (Llama 3's tokenizer.model is none: "
                "its folder needs tokenizer.json)"
            ) from None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for match in self._pattern.finditer(text):
            ids += self._encode_stretch(text[start : match.start()], at_start=start == 0)
            found = match[0] if match[0] in self._added else match[0].strip()
            ids.append(self._added[found][0])
            start = match.end()
        return ids + self._encode_stretch(text[start:], at_start=start == 0)

    def _encode_stretch(self, text: str, at_start: bool) -> list[int]:
        processor = self.processor if at_start or self._prefix_all else self._bare
        return [self._ids[piece] for piece in processor.encode(text)] if text else []

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        if skip_special:
            ids = [id for id in ids if id not in self._special]
        # SentencePiece's own decoding would strip the space behind every special token.
        parts = bytearray()
        for place, id in enumerate(ids):
            piece = self._pieces.get(id, self.processor.unk_id())
            if id in self._contents:
                parts += self._contents[id].encode()
            elif self.processor.is_byte(piece):
                parts.append(int(self.processor.id_to_piece(piece)[1:-1], 16))
            else:
                text = self.processor.id_to_piece(piece).replace("▁", " ")
                starts = place == 0 and self._has_prefix and text.startswith(" ")
                parts += text[starts:].encode()
        return parts.decode(errors="replace")

    def token_to_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token][0]
        return self._piece_id(token)

    def id_to_token(self, id: int) -> str | None:
        if id in self._contents:
            return self._contents[id]
        return self.processor.id_to_piece(self._pieces[id]) if id in self._pieces else None

    def _piece_id(self, content: str) -> int | None:
        piece = self.processor.piece_to_id(content)  # the unknown piece where there is none
        return self._ids[piece] if self.processor.id_to_piece(piece) == content else None

    def _all_added(self, files: TokenizerFiles) -> dict[str, tuple[int, Added]]:
        """Content -> (id, token): the model's control pieces, T5's sentinels, the files' tokens."""
        found: dict[str, tuple[int, Added]] = {}
        for piece, id in enumerate(self._ids):
            if self.processor.is_control(piece) or self.processor.is_unknown(piece):
                content = self.processor.id_to_piece(piece)
                found[content] = (id, Added(content, special=True))
        following = 1 + max(self._pieces)
        tokens = {token.content: token for token in self._family_tokens(files, following)}
        tokens |= {token.content: token for token in files.added}
        for token in sorted(tokens.values(), key=lambda t: (t.id is None, t.id or 0)):
            known = found[token.content][0] if token.content in found else None
            place = self._piece_id(token.content) if known is None else known
            if place is None:
                place = following if token.id is None else token.id
            _check_id(token, place, files)
            following = max(following, place + 1)
            found[token.content] = (place, token)
        return found

    def _family_tokens(self, files: TokenizerFiles, following: int) -> list[Added]:
        """Tokens that a family has besides the model's pieces."""
        if self.family == "xlm-roberta":
            mask = Added("<mask>", following, special=True, lstrip=True)
            return [Added("<pad>", 1, special=True), mask]
        has_own = any(self._piece_id(f"{mark}<extra_id_0>") is not None for mark in ("", "▁"))
        if self.family != "t5" or has_own:
            return []
        count = int(files.options.get("extra_ids", _T5_SENTINELS))
        # The first sentinel has the last id, as T5's span corruption numbers them.
        last = following + count - 1
        return [Added(f"<extra_id_{i}>", last - i, special=True) for i in range(count)]


def _fairseq_ids(count: int) -> list[int]:
    """The ids of XLM-RoBERTa's pieces: <s> 0, <pad> 1, </s> 2, <unk> 3, the others one later."""
    return [3, 0, 2, *range(4, count + 1)]


def _pattern(tokens: Sequence[Added]) -> re.Pattern:
    """Finds the longest token at the first place where there is any, with the space it takes."""
    if not tokens:
        return re.compile(r"(?!)")
    alternatives = []
    for token in sorted(tokens, key=lambda t: -len(t.content)):
        text = re.escape(token.content)
        if token.single_word:
            text = rf"(?<!\w){text}(?!\w)"
        space = r"\s*"
        alternatives.append(
            (space if token.lstrip else "") + text + (space if token.rstrip else "")
        )
    # Most characters begin no token, and thousands of them are not to be tried at each.
    first = "".join(sorted({re.escape(token.content[0]) for token in tokens}))
    spaces = r"\s" if any(token.lstrip for token in tokens) else ""
    return re.compile(f"(?=[{first}{spaces}])(?:{'|'.join(alternatives)})")
