"""What lies in a tokenizer's folder: the files of Hugging Face, read as they say, nothing built.

::

    tokenizer.json                                  everything, for the `tokenizers` package
    vocab.txt                                       WordPiece (BERT)
    vocab.json, merges.txt                          byte-level BPE (GPT-2, RoBERTa, BART, Qwen)
    spiece.model, tokenizer.model,
    sentencepiece.bpe.model                         SentencePiece (T5, mT5; Llama 2, Mistral, Gemma;
                                                    XLM-RoBERTa)
    tokenizer_config.json, special_tokens_map.json,
    added_tokens.json, config.json                  its class, options and special tokens

Where there are several, the first of this list decides, as in transformers, except that a T5's
spiece.model goes before its tokenizer.json: it is what T5 was trained with and what seqio reads,
and the conversion loses mT5's byte pieces. A file instead of a folder is read with its neighbours.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_jax.errors import InputError

ROLES = ("pad", "bos", "eos", "unk", "cls", "sep", "mask")

JSON = "tokenizer.json"
WORDPIECE = "vocab.txt"
BYTE_BPE = ("vocab.json", "merges.txt")
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")

# Which of a family's pipelines a class of transformers is, and a model whose folder names no class.
_FAMILY_OF_CLASS = {
    "BertTokenizer": "bert",
    "DistilBertTokenizer": "bert",
    "ElectraTokenizer": "bert",
    "RobertaTokenizer": "roberta",
    "BartTokenizer": "bart",
    "XLMRobertaTokenizer": "xlm-roberta",
    "GPT2Tokenizer": "gpt2",
    "Qwen2Tokenizer": "qwen2",
    "LlamaTokenizer": "llama",
    "GemmaTokenizer": "gemma",
    "T5Tokenizer": "t5",
    "MT5Tokenizer": "t5",
}
_FAMILY_OF_MODEL = {
    **dict.fromkeys(("bert", "distilbert", "electra"), "bert"),
    **dict.fromkeys(("llama", "mistral", "mixtral"), "llama"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "gemma"),
    **dict.fromkeys(("qwen2", "qwen3"), "qwen2"),
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5", "switch_transformers"), "t5"),
    **{name: name for name in ("roberta", "bart", "gpt2", "xlm-roberta")},
}
_GENERIC_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
_FAMILIES_OF_SOURCE = {
    "wordpiece": ("bert",),
    "byte_bpe": ("gpt2", "roberta", "bart", "qwen2"),
    "sentencepiece": ("t5", "llama", "gemma", "xlm-roberta"),
}

# The special tokens that a class has where its folder names none, in the order of ROLES.
_DEFAULT_TOKENS: dict[str, dict[str, str]] = {
    family: {role: token for role, token in zip(ROLES, tokens, strict=True) if token}
    for family, tokens in {
        "bert": ("[PAD]", "", "", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "roberta": ("<pad>", "<s>", "</s>", "<unk>", "<s>", "</s>", "<mask>"),
        "bart": ("<pad>", "<s>", "</s>", "<unk>", "<s>", "</s>", "<mask>"),
        "xlm-roberta": ("<pad>", "<s>", "</s>", "<unk>", "<s>", "</s>", "<mask>"),
        "gpt2": ("", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", "", ""),
        "qwen2": ("<|endoftext|>", "", "<|endoftext|>", "<|endoftext|>", "", "", ""),
        "llama": ("", "<s>", "</s>", "<unk>", "", "", ""),
        "gemma": ("<pad>", "<bos>", "<eos>", "<unk>", "", "", "<mask>"),
        "t5": ("<pad>", "", "</s>", "<unk>", "", "", ""),
    }.items()
}
_OPTIONS = {
    "bert": ("do_lower_case", "strip_accents", "tokenize_chinese_chars"),
    "llama": ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"),
    "t5": ("extra_ids",),
    "gemma": ("add_bos_token", "add_eos_token"),
    **dict.fromkeys(("gpt2", "qwen2"), ("add_bos_token", "add_eos_token", "add_prefix_space")),
    **dict.fromkeys(("roberta", "bart"), ("add_prefix_space",)),
}
_SENTINEL = re.compile(r"<extra_id_\d+>")


@dataclasses.dataclass(frozen=True)
class Added:
    """A token that is found in the text as it stands, before the vocabulary's own pieces.

    Attributes:
      content: the text.
      id: where the files say one.
      special: whether decoding may leave it out.
      normalized: whether it is looked for in the normalised text.
      lstrip, rstrip: whether it takes the white space in front of it, behind it.
      single_word: whether it must stand alone between non-word characters.
    """

    content: str
    id: int | None = None
    special: bool = False
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizerFiles:
    """A tokenizer as its files describe it.

    Attributes:
      path: the folder or the file that was given.
      source: "json", "wordpiece", "byte_bpe" or "sentencepiece".
      files: those that hold the pieces.
      neighbours: those that were read besides.
      family: "bert", "gpt2", "llama" ...: whose pipeline and special tokens; None if unknown.
      model_type: of config.json, or "".
      options: of the family, where tokenizer_config.json sets them.
      tokens: role ("pad", "bos" ...) -> the token that the files give it; None where they say none.
      default_tokens: the same, of the family, to be used where the vocabulary has them.
      added: the added tokens, those of the roles included.
    """

    path: Path
    source: str
    files: tuple[Path, ...]
    neighbours: tuple[Path, ...]
    family: str | None
    model_type: str
    options: Mapping[str, Any]
    tokens: Mapping[str, str | None]
    default_tokens: Mapping[str, str]
    added: tuple[Added, ...]

    @property
    def is_plain_t5(self) -> bool:
        """A T5's SentencePiece model and nothing beside it that would change a token."""
        known = {"<pad>", "</s>", "<unk>"}
        only_known = all(a.content in known or _SENTINEL.fullmatch(a.content) for a in self.added)
        return self.source == "sentencepiece" and self.family in ("t5", None) and only_known

    @property
    def location(self) -> Path:
        """What to keep as a backbone's vocabulary: a plain T5's one file, or the folder."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return (self.files[0] if self.is_plain_t5 else folder).resolve()

    @functools.cached_property
    def identity(self) -> str:
        """A SHA-256 (hex) over all that decides the tokens; a plain T5's is that of its one file.

        Settings that change no token (a chat template, the length limit) do not take part.
        """
        if self.is_plain_t5:
            return _digest(self.files[0])
        described = {
            "files": [_digest(file) for file in self.files],
            "source": self.source,
            "family": self.family,
            "options": dict(self.options),
            "tokens": dict(self.tokens),
            "added": [list(vars(added).values()) for added in self.added],
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def find_tokenizer(path: str | os.PathLike) -> TokenizerFiles:
    """The tokenizer of a folder, or of one of its files.

    Raises:
      InputError: there is none, a file cannot be read, or its class is none that can be built from
        what is there.
    """
    path = Path(path)
    source, files = _source(path)
    folder = path if path.is_dir() else path.parent
    config, class_config = _read(folder / "config.json"), _read(folder / "tokenizer_config.json")
    model_type = config.get("model_type") or ""
    class_name = class_config.get("tokenizer_class") or config.get("tokenizer_class") or ""
    class_name = class_name.removesuffix("Fast")
    family = _family(class_name, model_type)
    spiece = folder / SENTENCEPIECE[0]
    if path.is_dir() and source == "json" and family == "t5" and spiece.is_file():
        source, files = "sentencepiece", (spiece,)
    _check_family(source, files, family, class_name or model_type)
    family = family or ("bert" if source == "wordpiece" else None)
    tokens, added, neighbours = _special_tokens(folder, class_config, source)
    options = {
        key: class_config[key] for key in _OPTIONS.get(family or "", ()) if key in class_config
    }
    defaults = {} if class_name in _GENERIC_CLASSES else _DEFAULT_TOKENS.get(family or "", {})
    return TokenizerFiles(
        path=path,
        source=source,
        files=files,
        neighbours=neighbours,
        family=family,
        model_type=model_type,
        options=options,
        tokens=tokens,
        default_tokens={role: token for role, token in defaults.items() if role not in tokens},
        added=added,
    )


def vocabulary_in(folder: str | os.PathLike) -> Path | None:
    """What a backbone from this folder keeps as its vocabulary; None where there is none.

    A plain T5's spiece.model, or the folder. Whether it can be read is found when it is.
    """
    folder = Path(folder)
    names = (JSON, WORDPIECE, BYTE_BPE[0], *SENTENCEPIECE)
    if not any((folder / name).is_file() for name in names):
        return None
    try:
        return find_tokenizer(folder).location
    except InputError:
        return folder.resolve()


def _source(path: Path) -> tuple[str, tuple[Path, ...]]:
    """Which kind of vocabulary, and its files."""
    if path.is_dir():
        if (path / JSON).is_file():
            return "json", (path / JSON,)
        if (path / WORDPIECE).is_file():
            return "wordpiece", (path / WORDPIECE,)
        if all((path / name).is_file() for name in BYTE_BPE):
            return "byte_bpe", tuple(path / name for name in BYTE_BPE)
        for name in SENTENCEPIECE:
            if (path / name).is_file():
                return "sentencepiece", (path / name,)
        looked_for = ", ".join((JSON, WORDPIECE, " with ".join(BYTE_BPE), *SENTENCEPIECE))
        raise InputError(f"no tokenizer in {path}: looked for {looked_for}")
    if not path.is_file():
        raise InputError(f"no vocabulary at {path}: give a Hugging Face folder or one of its files")
    if path.name in BYTE_BPE:
        files = tuple(path.parent / name for name in BYTE_BPE)
        for file in files:
            if not file.is_file():
                raise InputError(f"{path} is one half of a vocabulary; {file} does not exist")
        return "byte_bpe", files
    kinds = {".json": "json", ".txt": "wordpiece", ".model": "sentencepiece"}
    if path.suffix not in kinds:
        raise InputError(
            f"{path} is no vocabulary by its name: give {JSON}, {WORDPIECE}, {BYTE_BPE[0]} or a "
            "SentencePiece .model"
        )
    return kinds[path.suffix], (path,)


def _family(class_name: str, model_type: str) -> str | None:
    if class_name and class_name not in _GENERIC_CLASSES:
        family = _FAMILY_OF_CLASS.get(class_name)
    else:
        family = _FAMILY_OF_MODEL.get(model_type)
    # BART's folders name RoBERTa's class, whose tokens it shares; its decoder is its own.
    return "bart" if family == "roberta" and model_type == "bart" else family


def _check_family(source: str, files, family: str | None, named: str) -> None:
    """Refuses a class that would read these files in a way of its own."""
    possible = _FAMILIES_OF_SOURCE.get(source)
    if possible is None or family in possible:
        return
    if not named and source != "byte_bpe":  # the file itself tells enough
        return
    what = f"is one of {named!r}" if named else "has no config.json that says of which model"
    raise InputError(
        f"the vocabulary {files[0].name} in {files[0].parent} {what}; such a file is read for the "
        f"tokenizers of {', '.join(possible)}. A {JSON} is read whatever the model"
    )


# --------------------------------------------------------------------------------------------
# Special and added tokens
# --------------------------------------------------------------------------------------------
def _special_tokens(
    folder: Path, class_config: dict, source: str
) -> tuple[dict[str, str | None], tuple[Added, ...], tuple[Path, ...]]:
    """(tokens by role, added tokens, the files they were read from), as transformers reads them.

    tokenizer_config.json goes alone where it lists its added tokens, as new folders do; in old ones
    special_tokens_map.json and added_tokens.json add to it.
    """
    names = ["tokenizer_config.json"]
    fields = dict(class_config)
    found: dict[str, Added] = {}
    listed = class_config.get("added_tokens_decoder")
    if listed is not None:
        for number, entry in listed.items():
            _put(found, _added(entry, id=int(number)))
    else:
        names += ["special_tokens_map.json", "added_tokens.json"]
        fields |= _read(folder / names[1])
    tokens: dict[str, str | None] = {}
    special: dict[str, Added] = {}
    for role in ROLES:
        entry = fields.get(f"{role}_token")
        if f"{role}_token" in fields:
            token = None if entry is None else _added(entry, special=True)
            tokens[role] = None if token is None else token.content
            if token is not None:
                special.setdefault(token.content, token)
    extra = fields.get("extra_special_tokens") or fields.get("additional_special_tokens") or []
    for entry in extra.values() if isinstance(extra, dict) else extra:
        token = _added(entry, special=True)
        special.setdefault(token.content, token)
    if listed is None:
        for content, number in _read(folder / names[2]).items():
            is_special = content in special
            _put(found, Added(content, number, is_special, normalized=not is_special))
        if source != "json" and (folder / JSON).is_file():
            names.append(JSON)
            for entry in _read(folder / JSON).get("added_tokens") or []:
                _put(found, _added(entry, id=entry["id"]))
    for token in special.values():
        _put(found, token)
    added = sorted(found.values(), key=lambda a: (a.id is None, a.id or 0))
    existing = tuple(folder / name for name in names if (folder / name).is_file())
    return tokens, tuple(added), existing


def _put(found: dict[str, Added], token: Added) -> None:
    """The first mention decides how a token is matched; any mention makes it special."""
    held = found.setdefault(token.content, token)
    if token.special and not held.special:
        found[token.content] = dataclasses.replace(held, special=True)


def _added(entry: str | dict, **fields: Any) -> Added:
    if isinstance(entry, str):
        return Added(entry, **fields)
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise InputError(f"a special token is neither a text nor a mapping with `content`: {entry}")
    flags = ("special", "normalized", "lstrip", "rstrip", "single_word")
    given = {key: bool(entry[key]) for key in flags if key in entry}
    return Added(entry["content"], **{**given, **fields})


def _read(file: Path) -> dict[str, Any]:
    """A JSON mapping; an absent file is an empty one."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} does not hold a JSON mapping")
    return content


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"vocabulary {file} cannot be read: {error.strerror}") from error
