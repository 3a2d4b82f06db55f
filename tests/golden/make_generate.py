"""What Hugging Face's generate writes, with small random models of every family that decodes.

    pip install torch==2.13.0 transformers==5.23.0
    python -m tests.golden.make_generate

writes generate/<variant>.npz beside this file for the models of GOLDEN, whose weights are those of
make_t5, make_bart and make_decoders: inputs, and for every case of `cases` the tokens, lengths and
(of a beam search) scores. The same functions make the other variants while the tests run, where
torch is installed.
"""

import importlib
import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
ROWS, INPUT_LENGTH, LENGTH = 4, 7, 10
NOTHING = -1  # behind the end

# Subject: the variants that are frozen, and those that are only made where torch is installed.
GOLDEN = {
    "t5": ("v1_0", "v1_1", "mt5"),
    "bart": ("bart",),
    "decoders": ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"),
}
LIVE = {
    "t5": ("v1_0_long", "v1_1_long"),
    "bart": ("bart_long",),
    "decoders": ("gpt2_long", "llama_long", "mistral_long", "qwen2_window", "gemma2_long"),
}

# transformers' names of the fields of our Decoding.
NAMES = {
    "max_length": "max_new_tokens",
    "min_length": "min_new_tokens",
    "sequences": "num_return_sequences",
    "beams": "num_beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "repetition_penalty": "repetition_penalty",
    "first_token": "forced_bos_token_id",
    "last_token": "forced_eos_token_id",
    "eos_ids": "eos_token_id",
}


def cases(eos: int, other: int) -> list[dict]:
    """Fields of Decoding, by case; ``eos`` and ``other`` are tokens that the model comes to."""
    found: list[dict] = [
        {},
        {"min_length": 4},
        {"no_repeat_ngram": 2},
        {"no_repeat_ngram": 3, "repetition_penalty": 1.4},
        {"repetition_penalty": 0.8},
        {"eos_ids": (eos, other)},
        {"eos_ids": ()},
        {"last_token": eos},
    ]
    for beams in (2, 3, 5):
        found += [
            {"beams": beams, "early_stopping": early, "length_penalty": penalty}
            for early in (False, True, "never")
            for penalty in (-1.0, 0.0, 1.0, 2.0)
        ]
    found += [
        {"beams": 4, "sequences": 4},
        {"beams": 4, "sequences": 2, "max_length": 3},
        {"beams": 3, "max_length": 1},
        {"beams": 3, "min_length": 4},
        {"beams": 4, "no_repeat_ngram": 2, "early_stopping": True},
        {"beams": 4, "no_repeat_ngram": 3, "repetition_penalty": 1.4},
        {"beams": 3, "sequences": 3, "eos_ids": (eos, other)},
        {"beams": 3, "sequences": 3, "eos_ids": ()},
        {"beams": 3, "last_token": eos, "early_stopping": "never", "length_penalty": 2.0},
    ]
    return [{"max_length": LENGTH, "eos_ids": (eos,)} | case for case in found]


def encoder_decoder_cases(eos: int, other: int) -> list[dict]:
    """transformers forces a first token only where nothing stands in front."""
    found = [{"first_token": other}, {"first_token": other, "last_token": eos, "beams": 3}]
    return [{"max_length": LENGTH, "eos_ids": (eos,)} | case for case in found]


def inputs_of(model, seed: int) -> dict[str, np.ndarray]:
    """Ragged inputs, padded on the right for an encoder and on the left for a decoder."""
    config = model.config
    rng = np.random.default_rng(seed)
    lengths = np.array([INPUT_LENGTH, INPUT_LENGTH - 3, INPUT_LENGTH - 1, 1])
    place = np.arange(INPUT_LENGTH)
    if not config.is_encoder_decoder:
        place = place[::-1]
    mask = place < lengths[:, None]
    tokens = rng.integers(3, config.vocab_size, (ROWS, INPUT_LENGTH))
    pad = 0 if config.pad_token_id is None else config.pad_token_id
    return {"tokens": np.where(mask, tokens, pad).astype(np.int32), "mask": mask}


def generate(model, inputs: dict[str, np.ndarray], case: dict) -> dict[str, np.ndarray]:
    """tokens [B, n, T] with NOTHING behind the end, lengths [B, n], and a beam search's scores.

    Where n-grams are forbidden every prompt of a decoder-only model is read without its padding,
    which transformers would take for n-grams too.
    """
    if model.config.is_encoder_decoder or "no_repeat_ngram" not in case:
        return _generate(model, inputs["tokens"], inputs["mask"], case)
    rows = [
        _generate(model, tokens[None, real], real[None, real], case)
        for tokens, real in zip(inputs["tokens"], inputs["mask"], strict=True)
    ]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@torch.no_grad()
def _generate(model, tokens: np.ndarray, mask: np.ndarray, case: dict) -> dict[str, np.ndarray]:
    pad = 0 if model.config.pad_token_id is None else model.config.pad_token_id
    options = {NAMES[name]: value for name, value in case.items()}
    eos = list(options.pop("eos_token_id"))
    settings = transformers.GenerationConfig(
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=eos or None,
        bos_token_id=getattr(model.config, "bos_token_id", None),
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        # transformers 5.23 sizes a T5's cache by the encoder's depth: a deeper decoder fails.
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    model.generation_config = transformers.GenerationConfig()  # what a checkpoint brings is another
    found = model.generate(
        input_ids=torch.as_tensor(tokens).long(),
        attention_mask=torch.as_tensor(mask).long(),
        generation_config=settings,
    )
    rows, front = len(tokens), 1 if model.config.is_encoder_decoder else tokens.shape[1]
    tokens = found.sequences[:, front:].numpy()
    t, n = case["max_length"], case.get("sequences", 1)
    # Cut where all texts have ended; filled with padding or EOS there and behind every other end.
    ended = np.isin(tokens, eos) if eos else np.zeros(tokens.shape, bool)
    lengths = np.where(ended.any(1), ended.argmax(1) + 1, tokens.shape[1])
    tokens = np.pad(tokens, ((0, 0), (0, t - tokens.shape[1])))
    tokens = np.where(np.arange(t) < lengths[:, None], tokens, NOTHING)
    result = {"tokens": tokens.reshape(rows, n, t), "lengths": lengths.reshape(rows, n)}
    if case.get("beams", 1) > 1:
        result["scores"] = found.sequences_scores.numpy().reshape(rows, n)
    return result


def endings(model, inputs: dict[str, np.ndarray]) -> tuple[int, int]:
    """Two tokens to end with, such that some greedy texts end by the first and others do not."""
    free = generate(model, inputs, {"max_length": LENGTH, "eos_ids": ()})["tokens"][:, 0]
    later = free[:, 2:]
    counts = {int(t): int((later == t).any(1).sum()) for t in np.unique(later)}
    order = sorted(counts, key=lambda t: (counts[t] in (0, len(free)), abs(counts[t] - 2), t))
    return order[0], order[1] if len(order) > 1 else (order[0] + 1) % model.config.vocab_size


def results(subject: str, variant: str) -> dict[str, np.ndarray]:
    """Inputs, the cases as JSON, and each array of all cases one after the other."""
    model = importlib.import_module(f"tests.golden.make_{subject}").build(variant).eval()
    inputs = inputs_of(model, seed=len(variant))
    ends = endings(model, inputs)
    wanted = cases(*ends)
    if model.config.is_encoder_decoder:
        wanted += encoder_decoder_cases(*ends)
    found: dict[str, list] = {"tokens": [], "lengths": [], "scores": []}
    for case in wanted:
        for name, array in generate(model, inputs, case).items():
            found[name].append(array.reshape(-1))
    kinds = {"tokens": np.int8, "lengths": np.int8, "scores": np.float32}
    packed = {
        f"written/{name}": np.concatenate(arrays).astype(kinds[name])
        for name, arrays in found.items()
    }
    return {**inputs, "cases": np.asarray(json.dumps(wanted)), **packed}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    (HERE / "generate").mkdir(exist_ok=True)
    for subject, variants in GOLDEN.items():
        for variant in variants:
            np.savez_compressed(HERE / "generate" / f"{variant}.npz", **results(subject, variant))
