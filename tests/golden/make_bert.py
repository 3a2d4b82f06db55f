"""What Hugging Face's BERT and RoBERTa compute, on small random models.

    pip install torch==2.13.0 transformers==5.23.0
    python -m tests.golden.make_bert

writes the variants of GOLDEN to bert/<variant>/ beside this file: config.json and model.safetensors
as `save_pretrained` writes them, and oracle.npz with a batch and what the model makes of it. The
same functions make the other variants while the tests run, where torch is installed.
"""

import copy
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
EXAMPLES = 6

# What a variant changes; every input is as long as the learned positions reach.
SMALL = {
    "vocab_size": 24,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 12,
    "eos_token_id": None,
}
ROBERTA = SMALL | {"max_position_embeddings": 14, "type_vocab_size": 1, "eos_token_id": 2}
WIDE = SMALL | {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 300,
}
VARIANTS = {
    "bert": ("BertForPreTraining", SMALL),
    "bert_classifier": (
        "BertForSequenceClassification",
        SMALL | {"num_labels": 3, "hidden_act": "relu", "num_hidden_layers": 1},
    ),
    "roberta": ("RobertaForMaskedLM", ROBERTA),
    "roberta_classifier": (
        "RobertaForSequenceClassification",
        ROBERTA | {"num_labels": 2, "layer_norm_eps": 1e-3, "num_hidden_layers": 1},
    ),
    "bert_long": ("BertForMaskedLM", WIDE | {"hidden_act": "gelu_new", "type_vocab_size": 3}),
    "bert_regression": ("BertForSequenceClassification", WIDE | {"num_labels": 1}),
    "minilm": ("BertModel", WIDE | {"num_attention_heads": 8, "num_hidden_layers": 6}),
    "roberta_long": (
        "RobertaForMaskedLM",
        WIDE | {"layer_norm_eps": 1e-5, "type_vocab_size": 1, "pad_token_id": 1},
    ),
    "roberta_silu": (
        "RobertaForSequenceClassification",
        WIDE | {"hidden_act": "silu", "num_labels": 4, "max_position_embeddings": 40},
    ),
    "roberta_bare": ("RobertaModel", WIDE | {"max_position_embeddings": 40}),
    "roberta_pad_3": ("RobertaForMaskedLM", ROBERTA | {"pad_token_id": 3}),
    "xlm_roberta": ("XLMRobertaForMaskedLM", ROBERTA),
}
GOLDEN = ("bert", "bert_classifier", "roberta", "roberta_classifier")


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with every weight random: no norm is the identity, no bias and no row is zero."""
    generator = torch.Generator().manual_seed(seed)
    buffers = {name: b for name, b in model.named_buffers() if "bias" in name}
    with torch.no_grad():
        for name, weight in (*model.named_parameters(), *buffers.items()):
            draw = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                # Large biases would make all tokens alike, and their attention's gradients vanish.
                norm = name.endswith("weight")
                weight.copy_(0.5 + draw.abs() if norm else 0.2 * draw)
            elif "embed" in name or "shared" in name or name in buffers:
                weight.copy_(draw)
            else:
                weight.copy_(draw * weight.shape[1] ** -0.5)
    return model.eval()


def build(variant: str) -> torch.nn.Module:
    """The random model of a variant."""
    architecture, fields = VARIANTS[variant]
    architecture = getattr(transformers, architecture)
    return randomise(architecture(architecture.config_class(**fields)), seed=len(variant))


def masks(rng: np.random.Generator, length: int) -> np.ndarray:
    """Of each example: whole, ragged, padded on the left, with holes, one token, holes again."""
    mask = np.ones((EXAMPLES, length), bool)
    mask[1, length - length // 3 :] = False
    mask[2, : length // 4] = False
    mask[3] = rng.random(length) < 0.6
    mask[4, 1:] = False
    mask[5] = rng.random(length) < 0.6
    mask[3:, 0] = True
    return mask


def batch(variant: str) -> dict[str, np.ndarray]:
    """Inputs with every kind of mask, as long as the model reads; two types of tokens."""
    config = build(variant).config
    rng = np.random.default_rng(len(variant))
    pad, length = config.pad_token_id, config.max_position_embeddings
    length -= 0 if config.model_type == "bert" else pad + 1
    mask = masks(rng, length)
    tokens = rng.integers(4, config.vocab_size, mask.shape)
    # What is masked is padding, but for the last example, where it is real tokens.
    tokens[:5] = np.where(mask[:5], tokens[:5], pad)
    types = rng.integers(0, config.type_vocab_size, mask.shape)
    return {
        "encoder_input_tokens": tokens.astype(np.int32),
        "encoder_mask": mask,
        "encoder_token_types": types.astype(np.int32),
    }


def torch_inputs(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The batch under transformers' names."""
    return {
        "input_ids": torch.as_tensor(arrays["encoder_input_tokens"]).long(),
        "attention_mask": torch.as_tensor(arrays["encoder_mask"]).long(),
        "token_type_ids": torch.as_tensor(arrays["encoder_token_types"]).long(),
    }


def outputs(model, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """hidden [B, S, D], and the head's result: logits [B, S, V] or classes [B, labels]."""
    result = model(**torch_inputs(arrays))
    found = {"hidden": model.base_model(**torch_inputs(arrays)).last_hidden_state}
    if "prediction_logits" in result:
        found["logits"] = result.prediction_logits
    elif "logits" in result:
        found["logits" if result.logits.ndim == 3 else "classes"] = result.logits
    return found


def cotangent(variant: str, model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Random factors of the head's result, 0 at padding: torch's embeddings have no gradient there
    (padding_idx), but the states of padding would have one."""
    wanted = list(outputs(model, arrays).values())[-1]
    real = arrays["encoder_input_tokens"] != model.config.pad_token_id
    real = real[..., None] if wanted.ndim == 3 else real[:, :1]
    draw = np.random.default_rng(len(variant) + 1).standard_normal(wanted.shape)
    return (draw * real).astype(np.float32)


def outputs_and_gradients(model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """outputs, and grad/<parameter>: the gradient of sum(the last of them * cotangent). A bare
    model's parameters have the names that they have in one with a head.

    Computed in float64, so that the error of what is compared with it is its own.
    """
    model = copy.deepcopy(model).double()
    found = outputs(model, arrays)
    (list(found.values())[-1] * torch.as_tensor(arrays["cotangent"])).sum().backward()
    prefix = "" if model.base_model is not model else f"{model.base_model_prefix}."
    gradients = {
        f"grad/{prefix}{name}": weight.grad.float().numpy()
        for name, weight in model.named_parameters(remove_duplicate=False)
        if weight.grad is not None and name not in model.all_tied_weights_keys
    }
    return {name: array.detach().float().numpy() for name, array in found.items()} | gradients


def write(variant: str, folder: Path) -> None:
    """A Hugging Face folder with oracle.npz in it."""
    model, arrays = build(variant), batch(variant)
    model.save_pretrained(folder)
    arrays["cotangent"] = cotangent(variant, model, arrays)
    np.savez_compressed(folder / "oracle.npz", **arrays, **outputs_and_gradients(model, arrays))


if __name__ == "__main__":
    for name in GOLDEN:
        target = HERE / "bert" / name
        target.mkdir(parents=True, exist_ok=True)
        write(name, target)
