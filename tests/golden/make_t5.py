"""What Hugging Face's T5 computes, on small random models.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/golden/make_t5.py

writes the variants of GOLDEN to t5/<variant>/ beside this file: config.json and model.safetensors
as `save_pretrained` writes them, and oracle.npz with a batch and what the model makes of it; and
position_buckets.npz. The same functions make the other variants while the tests run, where torch
is installed.
"""

import copy
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
EXAMPLES, DECODER_LENGTH, CHOICES, CHOICE_LENGTH = 5, 6, 3, 4

# What a variant changes; "length" is of the encoder's inputs. Heads * d_kv differs from d_model in
# all but one of them; the seeds are those with which greedy decoding does not only repeat itself.
SMALL = {
    "vocab_size": 24,
    "d_model": 8,
    "d_ff": 10,
    "num_heads": 3,
    "d_kv": 4,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "decoder_start_token_id": 0,
    "length": 9,
    "seed": 8,
}
WIDE = SMALL | {"vocab_size": 96, "d_model": 32, "d_ff": 40, "num_heads": 3, "d_kv": 12}
VARIANTS = {
    "v1_0": SMALL | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    "v1_1": SMALL
    | {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_layers": 1,
        "num_decoder_layers": 2,
        "length": 150,
        "seed": 24,
    },
    "mt5": SMALL
    | {
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 7,
        "relative_attention_max_distance": 10,
        "length": 30,
        "seed": 3,
    },
    "v1_0_long": WIDE | {"num_layers": 3, "num_decoder_layers": 1, "length": 300, "seed": 4},
    "v1_0_square": WIDE | {"num_heads": 4, "d_kv": 8, "feed_forward_proj": "gelu"},
    "v1_1_long": WIDE
    | {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_layers": 1,
        "num_decoder_layers": 4,
        "relative_attention_num_buckets": 33,
        "length": 300,
        "seed": 1,
    },
    "v1_1_silu": WIDE
    | {
        "feed_forward_proj": "gated-silu",
        "tie_word_embeddings": False,
        "relative_attention_num_buckets": 13,
        "relative_attention_max_distance": 40,
        "length": 60,
    },
    "mt5_long": WIDE | {"feed_forward_proj": "gated-gelu", "length": 200},
}
GOLDEN = ("v1_0", "v1_1", "mt5")


def build(variant: str) -> torch.nn.Module:
    """The random model of a variant: no norm weight is one, and the head has its own weights
    unless it is tied."""
    fields = dict(VARIANTS[variant])
    del fields["length"]
    generator = torch.Generator().manual_seed(fields.pop("seed"))
    kind = "MT5" if variant.startswith("mt5") else "T5"
    config = getattr(transformers, f"{kind}Config")(**fields)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    if variant.startswith(("v1_1", "mt5")):
        # transformers 5 ties every T5 as it is made; a checkpoint with its own head is untied.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:
                weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
                continue
            # The head is scaled down: logits of a random model would saturate the softmax.
            width = 1 if name.startswith("shared") or "bias" in name else weight.shape[1]
            weight.copy_(torch.randn(weight.shape, generator=generator) * width**-0.5)
    return model


def batch(variant: str) -> dict[str, np.ndarray]:
    """Inputs with every kind of mask: whole, ragged, padded on the left, with holes, one token."""
    fields = VARIANTS[variant]
    rng = np.random.default_rng(fields["seed"])
    vocabulary, length = fields["vocab_size"], fields["length"]
    mask = np.ones((EXAMPLES, length), bool)
    mask[1, length - length // 3 :] = False
    mask[2, : length // 4] = False
    mask[3] = rng.random(length) < 0.6
    mask[4, 1:] = False

    def tokens(*shape):
        return rng.integers(2, vocabulary, shape).astype(np.int32)

    choices = tokens(EXAMPLES, CHOICES, CHOICE_LENGTH)
    lengths = rng.integers(1, CHOICE_LENGTH + 1, (EXAMPLES, CHOICES, 1))
    position = np.arange(CHOICE_LENGTH)
    choices = np.where(position < lengths, choices, 0)
    choices = np.where(position == lengths - 1, 1, choices).astype(np.int32)
    decoder = tokens(EXAMPLES, DECODER_LENGTH)
    decoder[:, 0] = 0
    return {
        "encoder_input_tokens": tokens(EXAMPLES, length) * mask,
        "encoder_mask": mask,
        "decoder_input_tokens": decoder,
        "choices": choices,
        "cotangent": rng.standard_normal((EXAMPLES, DECODER_LENGTH, vocabulary)).astype(np.float32),
    }


def torch_inputs(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The batch under transformers' names."""
    return {
        "input_ids": torch.as_tensor(arrays["encoder_input_tokens"]).long(),
        "attention_mask": torch.as_tensor(arrays["encoder_mask"]).long(),
        "decoder_input_ids": torch.as_tensor(arrays["decoder_input_tokens"]).long(),
    }


def logits_and_gradients(model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """logits, and grad/<parameter>: the gradient of sum(logits * cotangent) by each parameter.

    Computed in float64, so that the error of what is compared with it is its own.
    """
    model = copy.deepcopy(model).double()
    logits = model(**torch_inputs(arrays), use_cache=False).logits
    (logits * torch.as_tensor(arrays["cotangent"])).sum().backward()
    gradients = {
        f"grad/{name}": weight.grad.float().numpy()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    return {"logits": logits.detach().float().numpy(), **gradients}


@torch.no_grad()
def choice_scores(model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Minus the model's own loss, one input and one choice at a time: [B, C]."""
    inputs = torch_inputs(arrays)
    scores = np.zeros(arrays["choices"].shape[:2], np.float32)
    for b, c in np.ndindex(*scores.shape):
        choice = torch.as_tensor(arrays["choices"][b, c]).long()
        labels = torch.where(choice == 0, -100, choice)[None]
        scores[b, c] = -model(
            input_ids=inputs["input_ids"][b : b + 1],
            attention_mask=inputs["attention_mask"][b : b + 1],
            labels=labels,
        ).loss
    return scores


@torch.no_grad()
def generated(model, arrays: dict[str, np.ndarray], length: int = 12) -> dict[str, np.ndarray]:
    """Greedy decoding, with a token as EOS that this random model does come to."""
    inputs = torch_inputs(arrays)
    del inputs["decoder_input_ids"]

    def run(eos: int | None) -> np.ndarray:
        config = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=eos,
            pad_token_id=0,
            decoder_start_token_id=0,
            # transformers 5.23 sizes the cache by the encoder's depth: a deeper decoder fails.
            use_cache=False,
        )
        tokens = model.generate(**inputs, generation_config=config).numpy()[:, 1:]
        return np.pad(tokens, ((0, 0), (0, length - tokens.shape[1]))).astype(np.int32)

    free = run(None)
    ending = [t for t in np.unique(free) if t > 0 and 0 < (free == t).any(1).sum() < len(free)]
    eos = int(ending[0]) if ending else int(free[0, 2])
    return {"generated": run(eos), "eos_id": np.int32(eos)}


def position_buckets() -> dict[str, np.ndarray]:
    """T5Attention's bucket of key - query = -1000 .. 1000, by direction, buckets and distance."""
    attention = transformers.models.t5.modeling_t5.T5Attention
    distance = torch.arange(-1000, 1001)
    return {
        f"{direction}/{buckets}/{far}": attention._relative_position_bucket(
            distance, direction == "both", buckets, far
        )
        .numpy()
        .astype(np.int16)
        for direction in ("both", "back")
        for buckets, far in ((32, 128), (33, 128), (7, 20), (13, 40), (4, 8), (64, 256))
    }


def write(variant: str, folder: Path) -> None:
    """A Hugging Face folder with oracle.npz in it."""
    model, arrays = build(variant), batch(variant)
    model.save_pretrained(folder)
    arrays |= logits_and_gradients(model, arrays)
    arrays |= {"choice_scores": choice_scores(model, arrays)} | generated(model, arrays)
    np.savez_compressed(folder / "oracle.npz", **arrays)


if __name__ == "__main__":
    np.savez_compressed(HERE / "position_buckets.npz", **position_buckets())
    for name in GOLDEN:
        target = HERE / "t5" / name
        target.mkdir(parents=True, exist_ok=True)
        write(name, target)
        (target / "generation_config.json").unlink(missing_ok=True)
