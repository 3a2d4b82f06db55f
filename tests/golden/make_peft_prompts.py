"""What Hugging Face PEFT computes with prefix tuning and P-tuning on small random models.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    python -m tests.golden.make_peft_prompts

writes peft_<case>.npz beside this file: adapter/<tensor>, logits, and grad/<tensor>, the gradient
of sum(logits * cotangent) with the cotangent of the model's own script. Every text is by itself,
in float64. The models are those of make_t5.py and make_decoders.py. Widths of keys and values are
given where they are not d_model: PEFT's own guess crashes there.
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.golden import make_decoders, make_t5  # noqa: E402

LENGTH, HIDDEN = 4, 7
TEXT, PAIR = {"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_2_SEQ_LM"}


def _prefix(**fields) -> peft.PeftConfig:
    return peft.PrefixTuningConfig(num_virtual_tokens=LENGTH, **fields)


def _t5_prefix(d_kv: int) -> peft.PeftConfig:
    # PEFT counts the encoder's layers where nothing is said, and trains what no layer reads. With a
    # decoder that is deeper than the encoder transformers fails (see make_t5.generated).
    return _prefix(**PAIR, num_layers=1, token_dim=3 * d_kv, num_attention_heads=3)


def _p_tuning(kind: str, **fields) -> peft.PeftConfig:
    return peft.PromptEncoderConfig(
        num_virtual_tokens=LENGTH,
        encoder_reparameterization_type=kind,
        encoder_hidden_size=HIDDEN,
        **fields,
    )


# PEFT's default for an encoder-decoder would put a prompt before the decoder's inputs too.
ONE = PAIR | {"num_transformer_submodules": 1}
CASES = {
    "prefix_gpt2": ("gpt2", lambda: _prefix(**TEXT)),
    "prefix_mlp_gpt2": (
        "gpt2",
        lambda: _prefix(**TEXT, prefix_projection=True, encoder_hidden_size=HIDDEN),
    ),
    "prefix_llama": ("llama", lambda: _prefix(**TEXT, token_dim=12, num_attention_heads=2)),
    "prefix_qwen3": ("qwen3", lambda: _prefix(**TEXT, token_dim=6, num_attention_heads=1)),
    "prefix_v1_0": ("v1_0", lambda: _t5_prefix(4)),
    "prefix_v1_0_long": ("v1_0_long", lambda: _t5_prefix(12)),
    "prefix_v1_0_square": ("v1_0_square", lambda: _prefix(**PAIR, num_layers=1)),
    "p_tuning_mlp_gpt2": ("gpt2", lambda: _p_tuning("MLP", **TEXT)),
    "p_tuning_lstm_v1_0": ("v1_0", lambda: _p_tuning("LSTM", **ONE, encoder_num_layers=2)),
    "p_tuning_lstm_llama": ("llama", lambda: _p_tuning("LSTM", **TEXT, encoder_num_layers=1)),
    "p_tuning_mlp_v1_0": ("v1_0", lambda: _p_tuning("MLP", **ONE)),
}
GOLDEN = ("prefix_gpt2", "prefix_llama", "prefix_v1_0", "p_tuning_mlp_gpt2", "p_tuning_lstm_v1_0")


def adapted(case: str) -> torch.nn.Module:
    """The model of a case in float64 under a method whose weights are all random."""
    variant, config = CASES[case]
    source = make_t5 if variant in make_t5.VARIANTS else make_decoders
    model = peft.get_peft_model(source.build(variant), config()).double().eval()
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(0.6 * torch.randn(weight.shape, generator=generator).float())
    return model


def oracle(case: str) -> dict[str, np.ndarray]:
    """See the head of this file; logits are 0 at padding."""
    variant = CASES[case][0]
    model = adapted(case)
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    arrays = {f"adapter/{name}": w.detach().float().numpy() for name, w in trained.items()}
    if variant in make_t5.VARIANTS:
        arrays["logits"] = _seq2seq_logits(model, make_t5.batch(variant))
    else:
        arrays["logits"] = _text_logits(model, make_decoders.batch(variant))
    arrays["saved"] = model.get_prompt_embedding_to_save("default").float().numpy()
    return arrays | {f"grad/{name}": w.grad.float().numpy() for name, w in trained.items()}


def _seq2seq_logits(model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    inputs = make_t5.torch_inputs(arrays)
    rows = range(len(arrays["encoder_mask"]))
    return _backward(arrays, [_one(model, inputs, row) for row in rows])


def _one(model, inputs: dict[str, torch.Tensor], row: int) -> torch.Tensor:
    given = {name: x[row : row + 1] for name, x in inputs.items()}
    logits = model(**given).logits[0]
    return logits[len(logits) - given["decoder_input_ids"].shape[1] :]


def _backward(arrays: dict[str, np.ndarray], rows: list[torch.Tensor]) -> np.ndarray:
    logits = torch.stack(rows)
    (logits * torch.as_tensor(arrays["cotangent"])).sum().backward()
    return logits.detach().float().numpy()


def _text_logits(model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    tokens = arrays["decoder_input_tokens"]
    pad = make_decoders.pad_id(model.config)
    found = torch.zeros(arrays["cotangent"].shape, dtype=torch.float64)
    for row, real in enumerate(tokens != pad):
        text = torch.as_tensor(tokens[row, real]).long()[None]
        logits = model(input_ids=text, attention_mask=torch.ones_like(text)).logits[0]
        found[row, torch.as_tensor(real)] = logits[len(logits) - text.shape[1] :]
    return _backward(arrays, list(found))


if __name__ == "__main__":
    for name in GOLDEN:
        np.savez_compressed(HERE / f"peft_{name}.npz", **oracle(name))
