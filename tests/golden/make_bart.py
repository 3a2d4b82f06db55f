"""What Hugging Face's BART computes, on small random models.

    pip install torch==2.13.0 transformers==5.23.0
    python -m tests.golden.make_bart

writes the variants of GOLDEN to bart/<variant>/ beside this file: config.json and model.safetensors
as `save_pretrained` writes them, and oracle.npz with a batch and what the model makes of it. The
same functions make the other variants while the tests run, where torch is installed.
"""

import copy
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.golden.make_bert import EXAMPLES, masks, randomise

HERE = Path(__file__).parent
CHOICES, CHOICE_LENGTH, GENERATED = 3, 4, 12
PAD, EOS, START = 1, 2, 2

# What a variant changes; every input and output is as long as the learned positions reach. The
# seeds are those with which greedy decoding does not only repeat itself.
SMALL = {
    "vocab_size": 24,
    "d_model": 8,
    "encoder_ffn_dim": 10,
    "decoder_ffn_dim": 10,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "max_position_embeddings": 16,
    # Of generate alone, which is compared without it.
    "forced_eos_token_id": None,
    "seed": 0,
}
WIDE = SMALL | {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": 3,
}
VARIANTS = {
    "bart": ("BartForConditionalGeneration", SMALL | {"scale_embedding": True, "seed": 25}),
    "bart_classifier": (
        "BartForSequenceClassification",
        SMALL | {"num_labels": 3, "encoder_layers": 1},
    ),
    "bart_long": (
        "BartForConditionalGeneration",
        WIDE | {"max_position_embeddings": 150, "activation_function": "gelu_new", "seed": 2},
    ),
    "bart_bare": ("BartModel", WIDE),
    "bart_regression": (
        "BartForSequenceClassification",
        WIDE | {"num_labels": 1, "scale_embedding": True, "activation_function": "relu"},
    ),
}
GOLDEN = ("bart", "bart_classifier")


def build(variant: str) -> torch.nn.Module:
    """The random model of a variant, the bias of its logits included."""
    architecture, fields = VARIANTS[variant]
    architecture, fields = getattr(transformers, architecture), dict(fields)
    seed = fields.pop("seed")
    return randomise(architecture(architecture.config_class(**fields)), seed)


def batch(variant: str) -> dict[str, np.ndarray]:
    """Inputs with every kind of mask, each ending in EOS, and outputs, one of them shorter."""
    config = build(variant).config
    rng = np.random.default_rng(len(variant))
    mask = masks(rng, config.max_position_embeddings)

    def tokens(*shape):
        return rng.integers(3, config.vocab_size, shape).astype(np.int32)

    inputs = tokens(*mask.shape)
    # What is masked is padding, but for the last example, where it is real tokens.
    inputs[:5] = np.where(mask[:5], inputs[:5], PAD)
    inputs[np.arange(EXAMPLES), mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)] = EOS
    outputs = tokens(*mask.shape)
    outputs[:, 0] = START
    outputs[1, -3:] = PAD
    choices = tokens(EXAMPLES, CHOICES, CHOICE_LENGTH)
    lengths = rng.integers(1, CHOICE_LENGTH + 1, (EXAMPLES, CHOICES, 1))
    place = np.arange(CHOICE_LENGTH)
    choices = np.where(place < lengths, choices, PAD)
    return {
        "encoder_input_tokens": inputs,
        "encoder_mask": mask,
        "decoder_input_tokens": outputs,
        "choices": np.where(place == lengths - 1, EOS, choices).astype(np.int32),
    }


def torch_inputs(model, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The batch under transformers' names; a classifier's decoder reads the input again."""
    found = {
        "input_ids": torch.as_tensor(arrays["encoder_input_tokens"]).long(),
        "attention_mask": torch.as_tensor(arrays["encoder_mask"]).long(),
    }
    if "Classification" not in type(model).__name__:
        found["decoder_input_ids"] = torch.as_tensor(arrays["decoder_input_tokens"]).long()
    return found


def outputs(model, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """encoded and hidden [B, S, D], and the head's result: logits [B, T, V] or classes [B, C]."""
    inputs = torch_inputs(model, arrays)
    result = model(**inputs)
    found = {"encoded": result.encoder_last_hidden_state}
    if "decoder_input_ids" in inputs:
        found["hidden"] = model.base_model(**inputs).last_hidden_state
    if "logits" in result:
        found["logits" if result.logits.ndim == 3 else "classes"] = result.logits
    return found


def cotangent(variant: str, model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Random factors of the head's result. They are 0 where padding would get a gradient: torch's
    embedding has none there (padding_idx). A classifier's decoder sees padding in front of EOS."""
    wanted = list(outputs(model, arrays).values())[-1]
    if wanted.ndim == 3:
        counted = (arrays["decoder_input_tokens"] != PAD)[..., None]
    else:
        tokens = arrays["encoder_input_tokens"]
        counted = [PAD not in row[: list(row).index(EOS)] for row in tokens]
        counted = np.asarray(counted)[:, None]
    draw = np.random.default_rng(len(variant) + 1).standard_normal(wanted.shape)
    return (draw * counted).astype(np.float32)


def outputs_and_gradients(model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """outputs, and grad/<parameter>: the gradient of sum(the last of them * cotangent). A bare
    model's parameters have the names that they have in one with a head; the bias of the logits,
    which is a buffer in transformers, has a gradient too.

    Computed in float64, so that the error of what is compared with it is its own.
    """
    model = copy.deepcopy(model).double()
    weights = dict(model.named_parameters(remove_duplicate=False))
    weights |= {name: b.requires_grad_() for name, b in model.named_buffers() if "bias" in name}
    found = outputs(model, arrays)
    (list(found.values())[-1] * torch.as_tensor(arrays["cotangent"])).sum().backward()
    prefix = "" if model.base_model is not model else f"{model.base_model_prefix}."
    gradients = {
        f"grad/{prefix}{name}": weight.grad.float().numpy()
        for name, weight in weights.items()
        if weight.grad is not None and name not in model.all_tied_weights_keys
    }
    return {name: array.detach().float().numpy() for name, array in found.items()} | gradients


@torch.no_grad()
def choice_scores(model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Minus the model's own loss, one input and one choice at a time: [B, C]."""
    inputs = torch_inputs(model, arrays)
    scores = np.zeros(arrays["choices"].shape[:2], np.float32)
    for b, c in np.ndindex(*scores.shape):
        choice = torch.as_tensor(arrays["choices"][b, c]).long()
        choice = choice[choice != PAD]
        scores[b, c] = -model(
            input_ids=inputs["input_ids"][b : b + 1],
            attention_mask=inputs["attention_mask"][b : b + 1],
            labels=choice[None],
        ).loss
    return scores


@torch.no_grad()
def generated(model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Greedy decoding, with a token as EOS that this random model does come to."""
    inputs = torch_inputs(model, arrays)
    del inputs["decoder_input_ids"]

    def run(eos: int | None) -> np.ndarray:
        config = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=GENERATED,
            eos_token_id=eos,
            pad_token_id=PAD,
            decoder_start_token_id=START,
            use_cache=False,
        )
        model.generation_config = config
        tokens = model.generate(**inputs, generation_config=config).numpy()[:, 1:]
        width = ((0, 0), (0, GENERATED - tokens.shape[1]))
        return np.pad(tokens, width, constant_values=PAD).astype(np.int32)

    free = run(None)
    ending = [t for t in np.unique(free) if t > 2 and 0 < (free == t).any(1).sum() < len(free)]
    eos = int(ending[0]) if ending else int(free[0, 2])
    return {"generated": run(eos), "eos_id": np.int32(eos)}


def write(variant: str, folder: Path) -> None:
    """A Hugging Face folder with oracle.npz in it."""
    model, arrays = build(variant), batch(variant)
    model.save_pretrained(folder)
    arrays["cotangent"] = cotangent(variant, model, arrays)
    arrays |= outputs_and_gradients(model, arrays)
    if "logits" in arrays:
        arrays |= {"choice_scores": choice_scores(model, arrays)} | generated(model, arrays)
    np.savez_compressed(folder / "oracle.npz", **arrays)


if __name__ == "__main__":
    for name in GOLDEN:
        target = HERE / "bart" / name
        target.mkdir(parents=True, exist_ok=True)
        write(name, target)
        (target / "generation_config.json").unlink(missing_ok=True)
