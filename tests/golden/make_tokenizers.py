"""Writes tokenizers/: small tokenizers of every family, and what transformers makes of texts.

    python tests/golden/make_tokenizers.py

Run with transformers 5.23.0, tokenizers 0.23.3 and sentencepiece 0.2.3. The vocabularies are
trained here, on the sample itself and a few sentences more. tests/test_tokenizer.py reads the
folders, and makes them and others anew where transformers is installed.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent / "tokenizers"

SAMPLE = [
    "Hello, world! It's 12:30, isn't it?  Two  spaces and   three.",
    "naïve café — “quoted” … Ångström",
    "e\u0301te\u0301 n\u0303 o\u0308 combining: a\u0323 and e\u0302",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.",
    "我能吞下玻璃而不伤身体。日本語のテキスト、カタカナ。한국어 문장입니다.",
    "مرحبا بالعالم، كيف الحال؟",
    "שלום עולם, מה שלומך?",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "👩\u200d👩\u200d👧\u200d👦 family 👍🏽 and 🏳️\u200d🌈 flags 🇩🇪",
    "tab\there\nnew line\r\nwindows\n\n\nthree",
    "trailing ",
    "  two leading",
    " leading",
    "\n newline first",
    "control\x00char\x07bell\x1bescape \u200bzero\u200dwidth\ufeffbom \u00a0nbsp\u3000ideographic",
    "unknown \U0001f9ff \U00010348 ꙮ ﷽ ﬁ ligature Ⅷ ½ ™ ㍿ \u2028 sep",
    "a</s>b <s> c<unk> d <pad>e <mask> f [MASK] g [CLS]h [SEP] <|endoftext|>i <bos> j <eos>",
    "<extra_id_0> fill <extra_id_99>in <extra_id_100> <|im_start|>user\nhi<|im_end|>",
    "price $1,234.56 100% 3.14159 2024-01-02",
    "CamelCase snake_case UPPER lower x=f(y)+[1,2]; don't DON'T we'll I'VE",
    "",
    " ",
    "\n",
    "▁already ▁marked",
    "</s>",
    "a </s>",
    "</s> a",
    "a  </s>  b",
]
PAIRS = [
    ("A man is eating.", "Nobody eats anything at all here."),
    ("He reads a book about the history of the world.", "He reads."),
    ("", "only the second"),
    ("only the first", ""),
]
LENGTHS = (5, 6, 7, 8, 11, 14, 40)
"""Limits that a pair is cut to."""

CORPUS = [
    *(text for text in SAMPLE if "<" not in text for _ in range(20)),
    *[
        "the quick brown fox jumps over the lazy dog and runs away from the bear in the woods",
        "does it follow that the answer is yes or no? true or false? positive or negative?",
        "she sells sea shells by the sea shore while he reads a book about the world's history",
    ]
    * 50,
]


def write_json(file: Path, content) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------
# Folders, as the models are published
# --------------------------------------------------------------------------------------------
def bert(folder: Path, lower: bool = True) -> None:
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer(lowercase=lower, strip_accents=None)
    trained.train_from_iterator(CORPUS, vocab_size=420, show_progress=False)
    trained.save_model(str(folder))
    write_json(folder / "config.json", {"model_type": "bert"})
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
    write_json(folder / "tokenizer_config.json", config)


def bert_cased(folder: Path) -> None:
    bert(folder, lower=False)


def byte_bpe(folder: Path, special: list[str], size: int = 420) -> None:
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, size, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))


def gpt2(folder: Path) -> None:
    byte_bpe(folder, ["<|endoftext|>"])
    write_json(folder / "config.json", {"model_type": "gpt2"})


def roberta(folder: Path, model: str = "roberta") -> None:
    byte_bpe(folder, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    write_json(folder / "config.json", {"model_type": model})
    mask = {
        "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False,
        "single_word": False,
    }  # fmt: skip
    names = {f"{role}_token": "<s>" for role in ("bos", "cls")}
    names |= {f"{role}_token": "</s>" for role in ("eos", "sep")}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": mask}
    write_json(folder / "special_tokens_map.json", names)


def bart(folder: Path) -> None:
    roberta(folder, "bart")


def qwen2(folder: Path) -> None:
    byte_bpe(folder, [])
    size = len(json.loads((folder / "vocab.json").read_text()))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    added = {str(size + i): {"content": t, "special": True, **flags} for i, t in enumerate(names)}
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "bos_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "config.json", {"model_type": "qwen3"})


def llama3(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    begin = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[begin],
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "config.json", {"model_type": "llama"})


def sentencepiece_model(file: Path, **options) -> None:
    import sentencepiece

    made = io.BytesIO()  # a file would keep its path on this machine
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=made,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    file.write_bytes(made.getvalue())


LLAMA2 = {
    "model_type": "bpe", "vocab_size": 620, "byte_fallback": True, "unk_id": 0, "bos_id": 1,
    "eos_id": 2, "pad_id": -1, "normalization_rule_name": "identity", "split_digits": True,
    "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
}  # fmt: skip


def llama2(folder: Path) -> None:
    sentencepiece_model(folder / "tokenizer.model", **LLAMA2)
    config = {"add_bos_token": True, "add_eos_token": False, "legacy": False}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **config})
    write_json(folder / "config.json", {"model_type": "llama"})


def mistral(folder: Path) -> None:
    """tokenizer.json as converted by transformers before its version 5: a normaliser adds the ▁."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    sentencepiece_model(folder / "tokenizer.model", **LLAMA2)
    vocabulary, merges = pieces_and_merges(folder / "tokenizer.model")
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, **names}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "config.json", {"model_type": "mistral"})


def gemma(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    options = LLAMA2 | {
        "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "add_dummy_prefix": False,
        "eos_piece": "<eos>", "bos_piece": "<bos>",
        "user_defined_symbols": ["<mask>", "<start_of_turn>", "\n", "\n\n", "▁▁", "▁▁▁", "\t"],
    }  # fmt: skip
    sentencepiece_model(folder / "tokenizer.model", **options)
    vocabulary, merges = pieces_and_merges(folder / "tokenizer.model")
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {f"{role}_token": f"<{role}>" for role in ("pad", "eos", "bos", "unk")}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", **names})
    write_json(folder / "config.json", {"model_type": "gemma2"})


def pieces_and_merges(model: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A SentencePiece BPE model as the `tokenizers` package wants it."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = []
    for piece, rank in vocabulary.items():
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        found = [(a, b) for a, b in splits if a in vocabulary and b in vocabulary]
        merges += [(rank, vocabulary[a], vocabulary[b], a, b) for a, b in found]
    return vocabulary, [(a, b) for *_, a, b in sorted(merges)]


T5 = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def t5(folder: Path) -> None:
    sentencepiece_model(folder / "spiece.model", vocab_size=500, **T5)
    write_json(folder / "config.json", {"model_type": "t5"})


def mt5(folder: Path) -> None:
    sentinels = [f"▁<extra_id_{i}>" for i in reversed(range(100))]
    options = {"byte_fallback": True, "user_defined_symbols": sentinels}
    sentencepiece_model(folder / "spiece.model", vocab_size=900, **T5, **options)
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "config.json", {"model_type": "mt5"})


def xlm_roberta(folder: Path) -> None:
    options = {"model_type": "unigram", "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    sentencepiece_model(folder / "sentencepiece.bpe.model", vocab_size=500, **options)
    write_json(folder / "config.json", {"model_type": "xlm-roberta"})


FOLDERS: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        bert, bert_cased, gpt2, roberta, bart, qwen2, llama3, llama2, mistral, gemma, t5, mt5,
        xlm_roberta,
    )
}  # fmt: skip
FROZEN = ("bert", "gpt2", "roberta", "qwen2", "llama3", "llama2", "gemma")
"""Those whose vocabulary is small: SentencePiece's own normalisation alone takes 240 kB."""


# --------------------------------------------------------------------------------------------
# What transformers makes of them
# --------------------------------------------------------------------------------------------
def load(folder: Path):
    """transformers' own tokenizer for a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def expected(folder: Path) -> dict:
    """What transformers makes of the sample, as plain JSON values."""
    tokenizer = load(folder)

    def both(*texts, **options):
        # As a batch: a lone pair whose second text is empty is taken for a single text.
        made = tokenizer(*([text] for text in texts), return_token_type_ids=True, **options)
        return [made["input_ids"][0], made["token_type_ids"][0]]

    roles = ("pad", "bos", "eos", "unk", "cls", "sep", "mask")
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SAMPLE]
    cut = {"truncation": True}
    cut_right = [[both(*pair, **cut, max_length=n) for n in LENGTHS] for pair in PAIRS]
    cut_single = [both(SAMPLE[0], **cut, max_length=n) for n in LENGTHS]
    tokenizer.truncation_side = "left"
    return {
        "ids": {role: getattr(tokenizer, f"{role}_token_id") for role in roles},
        "size": len(tokenizer),
        "plain": plain,
        "single": [both(text) for text in SAMPLE],
        "decoded": [tokenizer.decode(ids) for ids in plain],
        "decoded_without": [tokenizer.decode(i, skip_special_tokens=True) for i in plain],
        "pairs": [both(*pair) for pair in PAIRS],
        "cut": cut_right,
        "cut_single": cut_single,
        "cut_left": [[both(*pair, **cut, max_length=n) for n in LENGTHS] for pair in PAIRS],
    }


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    for name in FROZEN:
        folder = HERE / name
        folder.mkdir(parents=True)
        FOLDERS[name](folder)
        if name == "gemma":  # tokenizer.json holds it all
            (folder / "tokenizer.model").unlink()
        file = folder / "expected.json"
        file.write_text(json.dumps(expected(folder), ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
