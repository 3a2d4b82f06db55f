"""What Hugging Face's GPT-2, Llama, Mistral, Qwen and Gemma compute, on small random models.

    pip install torch==2.13.0 transformers==5.23.0
    python -m tests.golden.make_decoders

writes the variants of GOLDEN to decoders/<variant>/ beside this file: config.json and
model.safetensors as `save_pretrained` writes them, and oracle.npz with a batch and what the model
makes of it. The same functions make the other variants while the tests run, where torch is
installed. Attention is transformers' eager one; padded rows are given the positions that generate
gives them.
"""

import copy
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
EXAMPLES, CHOICES, CHOICE_LENGTH, GENERATED = 5, 2, 3, 10

# What a variant changes; "length" is of the inputs. No two sizes of a model are equal, and windows
# and pretrained positions are shorter than the inputs.
SMALL = {
    "vocab_size": 26,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "length": 20,
}
WIDE = SMALL | {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "length": 160,
}
GPT2 = {
    "vocab_size": 26,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 40,
    "bos_token_id": 25,
    "eos_token_id": 25,
    "length": 20,
}
WINDOWED = {"sliding_window": 5}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 9}


def rope(kind: str = "default", theta: float = 100.0, **fields) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **fields}}


def ropes(full: dict, local: dict) -> dict:
    full, local = (each["rope_parameters"] for each in (full, local))
    return {"rope_parameters": {"full_attention": full, "sliding_attention": local}}


LLAMA_3 = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}

VARIANTS = {
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", SMALL | rope("llama3", **LLAMA_3)),
    "mistral": ("Mistral", SMALL | rope() | WINDOWED | {"num_key_value_heads": 4}),
    "qwen2": ("Qwen2", SMALL | rope() | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", SMALL | rope("yarn", **YARN) | {"num_key_value_heads": 1}),
    "gemma2": ("Gemma2", SMALL | rope() | WINDOWED | ALTERNATING | CAPS),
    "gemma3": (
        "Gemma3Text",
        SMALL | ropes(rope("linear", 400.0, factor=8.0), rope()) | WINDOWED | ALTERNATING,
    ),
    "gpt2_long": (
        "GPT2",
        GPT2
        | {"vocab_size": 96, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_inner": 40, "length": 160}
        | {"n_positions": 200, "activation_function": "relu", "scale_attn_weights": False}
        | {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    ),
    "llama_long": ("Llama", WIDE | rope(theta=500000.0) | {"rms_norm_eps": 1e-3}),
    "llama_biases": (
        "Llama",
        SMALL
        | rope("linear", factor=4.0)
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
        | {"num_key_value_heads": 4, "hidden_act": "gelu", "pad_token_id": 0},
    ),
    "llama_dynamic": (
        "Llama",
        SMALL | rope("dynamic", factor=4.0) | {"max_position_embeddings": 16},
    ),
    "mistral_long": ("Mistral", WIDE | rope() | {"sliding_window": 130}),
    "qwen2_window": (
        "Qwen2",
        SMALL
        | {"head_dim": 2, "num_hidden_layers": 3, "use_sliding_window": True}
        | {"sliding_window": 6, "max_window_layers": 1, "eos_token_id": [1, 3]},
    ),
    "qwen3_long": (
        "Qwen3",
        WIDE
        | rope("yarn", theta=10000.0, truncate=False, attention_factor=0.9, **YARN)
        | {"attention_bias": True, "tie_word_embeddings": True, "use_sliding_window": True}
        | {"sliding_window": 33}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    "gemma": ("Gemma", SMALL | rope() | {"num_key_value_heads": 1}),
    "gemma2_long": ("Gemma2", WIDE | CAPS | {"sliding_window": 130, "attention_bias": True}),
    "gemma3_long": (
        "Gemma3Text",
        WIDE
        | {"num_hidden_layers": 7, "sliding_window": 33, "final_logit_softcapping": 4.0}
        | {"attention_bias": True, "tie_word_embeddings": False},
    ),
}
# With which greedy decoding does not only repeat itself, and some texts end and others do not.
SEEDS = {
    "gpt2": 1,
    "mistral": 1,
    "qwen2": 2,
    "qwen3": 9,
    "gemma2": 1,
    "gemma3": 2,
    "gpt2_long": 1,
    "llama_long": 4,
    "llama_biases": 9,
    "qwen2_window": 9,
    "qwen3_long": 1,
    "gemma": 6,
    "gemma2_long": 3,
    "gemma3_long": 3,
}
GOLDEN = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")


def fields_of(variant: str) -> tuple[transformers.PreTrainedConfig, int, int]:
    """The configuration of a variant, the length of its inputs, and its seed."""
    kind, fields = VARIANTS[variant]
    fields = copy.deepcopy(fields)
    length = fields.pop("length")
    return getattr(transformers, f"{kind}Config")(**fields), length, SEEDS.get(variant, 0)


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with every weight random: no norm is the identity, and no bias is zero."""
    generator = torch.Generator().manual_seed(seed)
    offset = 0.5 if model.config.model_type.startswith("gemma") else -0.5  # their norms add 1
    with torch.no_grad():
        for name, weight in model.named_parameters():
            draw = torch.randn(weight.shape, generator=generator)
            if name.endswith("bias"):
                weight.copy_(0.3 * draw)
            elif weight.ndim == 1:
                weight.copy_(torch.rand(weight.shape, generator=generator) - offset)
            elif "wte" in name or "embed" in name:
                weight.copy_(0.1 * draw)  # a tied head would else repeat the last token
            else:  # a Conv1D of GPT-2 is [in, out]
                conv = "c_" in name
                weight.copy_(draw * weight.shape[0 if conv else 1] ** -0.5)
    return model.eval()


def build(variant: str) -> torch.nn.Module:
    """The random model of a variant."""
    config, _, seed = fields_of(variant)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return randomise(model, seed)


def classifier(variant: str, labels: int = 3) -> torch.nn.Module:
    """A random model with a classification head, which needs a padding token in transformers."""
    config, _, seed = fields_of(variant)
    config.num_labels = labels
    if config.pad_token_id is None:
        config.pad_token_id = config.eos_token_id
    model = transformers.AutoModelForSequenceClassification.from_config(
        config, attn_implementation="eager"
    )
    return randomise(model, seed)


def pad_id(config: transformers.PreTrainedConfig) -> int:
    """What fills our batches: -1 where no token is for it."""
    return -1 if config.pad_token_id is None else config.pad_token_id


def batch(variant: str) -> dict[str, np.ndarray]:
    """Inputs: whole, padded on the right, on the left, on both sides, one token; and choices."""
    config, length, seed = fields_of(variant)
    rng = np.random.default_rng(seed + 1)
    pad = pad_id(config)
    mask = np.ones((EXAMPLES, length), bool)
    mask[1, length - length // 3 :] = False
    mask[2, : length // 4] = False
    mask[3, : length // 5] = mask[3, length - length // 5 :] = False
    mask[4, 1:] = False
    if variant == "llama_dynamic":  # whose frequencies depend on the longest text of a batch
        mask[:] = True

    def tokens(*shape):
        # 0 is a word where it is not padding.
        return rng.integers(pad + 1, config.vocab_size, shape).astype(np.int32)

    choices = tokens(EXAMPLES, CHOICES, CHOICE_LENGTH)
    lengths = rng.integers(1, CHOICE_LENGTH + 1, (EXAMPLES, CHOICES, 1))
    signs = rng.integers(-1, 2, (EXAMPLES, length, config.vocab_size)).astype(np.int8)
    return {
        "decoder_input_tokens": np.where(mask, tokens(EXAMPLES, length), pad).astype(np.int32),
        "choices": np.where(np.arange(CHOICE_LENGTH) < lengths, choices, pad).astype(np.int32),
        "cotangent": signs * mask[:, :, None],
    }


def torch_inputs(tokens: np.ndarray, pad: int) -> dict[str, torch.Tensor]:
    """Tokens [B, T] under transformers' names, with the positions that generate gives them."""
    mask = torch.as_tensor(tokens != pad)
    return {
        "input_ids": torch.as_tensor(np.where(tokens == pad, 0, tokens)).long(),
        "attention_mask": mask.long(),
        "position_ids": torch.clamp(mask.long().cumsum(1) - 1, min=0),
    }


def logits_and_gradients(model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """logits (0 at padding), and grad/<parameter>: the gradient of sum(logits * cotangent).

    Computed in float64, so that the error of what is compared with it is its own; transformers'
    norms, softmax and angles remain float32. Every text is by itself, without its padding: in
    float64 transformers' eager attention gives NaN where a place sees nothing.
    """
    model = copy.deepcopy(model).double()
    tokens = arrays["decoder_input_tokens"]
    found = np.zeros(arrays["cotangent"].shape, np.float32)
    for row, real in enumerate(tokens != pad_id(model.config)):
        text = torch.as_tensor(tokens[row, real]).long()[None]
        logits = model(text, use_cache=False).logits[0]
        (logits * torch.as_tensor(arrays["cotangent"][row, real])).sum().backward()
        found[row, real] = logits.detach().numpy()
    gradients = {
        f"grad/{name}": weight.grad.float().numpy()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    return {"logits": found, **gradients}


@torch.no_grad()
def padded_logits(model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The logits of all texts together as they are padded, in float32; 0 at padding."""
    inputs = torch_inputs(arrays["decoder_input_tokens"], pad_id(model.config))
    logits = copy.deepcopy(model)(**inputs, use_cache=False).logits
    return torch.where(inputs["attention_mask"][:, :, None] == 1, logits, 0).numpy()


@torch.no_grad()
def choice_log_probs(model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Log-probability of every token of every choice behind its prompt, each pair by itself.

    [B, C, T], 0 at padding.
    """
    pad, model = pad_id(model.config), copy.deepcopy(model).double()
    found = np.zeros(arrays["choices"].shape, np.float32)
    for b, c in np.ndindex(*found.shape[:2]):
        prompt, choice = arrays["decoder_input_tokens"][b], arrays["choices"][b, c]
        prompt, choice = prompt[prompt != pad], choice[choice != pad]
        text = torch.as_tensor(np.concatenate([prompt, choice])).long()[None]
        log_probs = torch.log_softmax(model(text, use_cache=False).logits[0], dim=-1)
        at = np.arange(len(choice)) + len(prompt) - 1
        found[b, c, : len(choice)] = log_probs[at, choice].numpy()
    return found


@torch.no_grad()
def generated(model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Greedy decoding, with a token as EOS that this random model does come to.

    Prompts are moved to the right, as generate wants them.
    """
    pad = pad_id(model.config)
    prompts = np.full_like(arrays["decoder_input_tokens"], pad)
    for row, tokens in zip(prompts, arrays["decoder_input_tokens"], strict=True):
        real = tokens[tokens != pad]
        row[len(row) - len(real) :] = real
    inputs = torch_inputs(prompts, pad)
    del inputs["position_ids"]

    def run(eos: int | None) -> np.ndarray:
        config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=GENERATED, eos_token_id=eos, pad_token_id=0
        )
        tokens = copy.deepcopy(model).generate(**inputs, generation_config=config)
        tokens = tokens.numpy()[:, prompts.shape[1] :].astype(np.int32)
        tokens = np.pad(tokens, ((0, 0), (0, GENERATED - tokens.shape[1])))
        ended = np.cumsum(tokens == eos, axis=1) - (tokens == eos) > 0
        return np.where(ended, pad, tokens)

    free = run(None)
    ending = [t for t in np.unique(free) if 0 < (free == t).any(1).sum() < len(free)]
    eos = int(ending[-1]) if ending else int(free[0, 2])
    return {"generated": run(eos), "eos_id": np.int32(eos)}


def results(variant: str, model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything that the model makes of the batch."""
    found = logits_and_gradients(model, arrays) | generated(model, arrays)
    found["padded_logits"] = padded_logits(model, arrays)
    if variant != "llama_dynamic":
        found["choice_log_probs"] = choice_log_probs(model, arrays)
    return found


def write(variant: str, folder: Path) -> None:
    """A Hugging Face folder with oracle.npz in it."""
    model, arrays = build(variant), batch(variant)
    model.save_pretrained(folder)
    np.savez_compressed(folder / "oracle.npz", **arrays, **results(variant, model, arrays))


if __name__ == "__main__":
    for name in GOLDEN:
        target = HERE / "decoders" / name
        target.mkdir(parents=True, exist_ok=True)
        write(name, target)
        (target / "generation_config.json").unlink(missing_ok=True)
