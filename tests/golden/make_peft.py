"""What Hugging Face PEFT computes with (IA)³, LoRA and prompt tuning on the models of make_t5.py.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    python tests/golden/make_peft.py

writes peft_<method>_<variant>.npz beside this file. Adapter weights are random on every place;
merged weights are what `merge_and_unload` leaves in the model.
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.golden import make_t5  # noqa: E402

SEQ2SEQ = peft.TaskType.SEQ_2_SEQ_LM
PROMPT_LENGTH = 5


def ia3_config() -> peft.PeftConfig:
    return peft.IA3Config(
        task_type=SEQ2SEQ, target_modules=["k", "v", "wo"], feedforward_modules=["wo"]
    )


def lora_config(rslora: bool = False) -> peft.PeftConfig:
    return peft.LoraConfig(
        task_type=SEQ2SEQ, r=3, lora_alpha=7, target_modules=["q", "v"], use_rslora=rslora
    )


def prompt_config() -> peft.PeftConfig:
    # The default for an encoder-decoder would put the prompt before the decoder's inputs too.
    return peft.PromptTuningConfig(
        task_type=SEQ2SEQ, num_virtual_tokens=PROMPT_LENGTH, num_transformer_submodules=1
    )


CONFIGS = {
    "ia3": ia3_config,
    "lora": lora_config,
    "rslora": lambda: lora_config(rslora=True),
    "prompt_tuning": prompt_config,
}
GOLDEN = (
    ("ia3", "v1_0"),
    ("ia3", "v1_1"),
    ("lora", "v1_1"),
    ("rslora", "v1_0"),
    ("prompt_tuning", "v1_0"),
)


def adapted(method: str, variant: str) -> torch.nn.Module:
    """The model of a variant under a method whose weights are all random."""
    model = peft.get_peft_model(make_t5.build(variant), CONFIGS[method]()).eval()
    generator = torch.Generator().manual_seed(make_t5.VARIANTS[variant]["seed"])
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                noise = 0.4 * torch.randn(weight.shape, generator=generator)
                weight.copy_(1 + noise if method == "ia3" else noise)
    return model


def oracle(method: str, variant: str) -> dict[str, np.ndarray]:
    """adapter/<name>, logits and grad/<name> of make_t5, and merged/<name> of the targets."""
    model = adapted(method, variant)
    trainable = {name: w for name, w in model.named_parameters() if w.requires_grad}
    arrays = {f"adapter/{name}": w.detach().numpy().copy() for name, w in trainable.items()}
    arrays |= make_t5.logits_and_gradients(model, make_t5.batch(variant))
    if method == "prompt_tuning":
        return arrays
    targets = {name.split(".ia3_l")[0].split(".lora_")[0] for name in trainable}
    targets = {name.removeprefix("base_model.model.") + ".weight" for name in targets}
    merged = model.merge_and_unload().state_dict()
    return arrays | {f"merged/{name}": merged[name].numpy().copy() for name in sorted(targets)}


if __name__ == "__main__":
    for method, variant in GOLDEN:
        np.savez_compressed(HERE / f"peft_{method}_{variant}.npz", **oracle(method, variant))
