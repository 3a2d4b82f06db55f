"""What Hugging Face PEFT's add_weighted_adapter makes of three LoRAs and of three (IA)³ adapters.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    python tests/golden/make_peft_arithmetic.py

writes peft_arithmetic.npz beside this file, on the T5 v1.1 of make_t5.py:

- lora/<name>/<tensor>, ia3/<name>/<tensor>: the adapters, all weights random
- <combination>/<tensor>: what PEFT makes of them with WEIGHTS and OPTIONS
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch
from peft.utils import merge_utils

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.golden import make_t5  # noqa: E402

VARIANT = "v1_1"
TARGETS = r"decoder.*SelfAttention\.(q|v)"
NAMES = ["one", "two", "three"]
RANK, ALPHAS = 3, (7, 3, 5)
WEIGHTS = [0.7, -0.4, 1.3]
IA3_WEIGHTS = [0.2, 0.5, 0.3]
DENSITY = 0.4
OPTIONS = {
    "linear": {},
    "cat": {},
    "svd": {"svd_rank": 4},
    "ties": {"density": DENSITY},
    "ties frequency": {"density": DENSITY, "majority_sign_method": "frequency"},
    "ties_svd": {"density": DENSITY, "svd_rank": 4},
    "dare_linear": {"density": DENSITY},
    "dare_ties": {"density": DENSITY},
    "dare_linear_svd": {"density": DENSITY, "svd_rank": 4},
    "dare_ties_svd": {"density": DENSITY, "svd_rank": 4},
    "magnitude_prune": {"density": DENSITY},
    "magnitude_prune_svd": {"density": DENSITY, "svd_rank": 4},
}


def kept(shape: tuple[int, ...], adapter: int) -> np.ndarray:
    """The entries that random pruning keeps of an adapter's tensor: the same in every run."""
    return np.random.default_rng([adapter, *shape]).random(shape) < DENSITY


class Draws:
    """In the place of PEFT's random pruning, which is called for one adapter after the other."""

    def __init__(self):
        self.calls = 0

    def __call__(self, tensor, density, rescale):
        assert rescale
        mask = torch.from_numpy(kept(tuple(tensor.shape), self.calls % len(WEIGHTS)))
        self.calls += 1
        return tensor * mask / density


def _several(config, around: float) -> peft.PeftModel:
    model = peft.get_peft_model(make_t5.build(VARIANT), config(0), adapter_name=NAMES[0]).eval()
    for i in range(1, len(NAMES)):
        model.add_adapter(NAMES[i], config(i))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                weight.copy_(around + 0.4 * torch.randn(weight.shape, generator=generator))
    return model


def _tensors(model: peft.PeftModel, adapter: str) -> dict[str, np.ndarray]:
    """Module and factor -> tensor of an adapter, under transformers' module names."""
    found = {}
    for name, weight in model.named_parameters():
        parts = name.removeprefix("base_model.model.").split(".")
        if adapter in parts and ("lora_" in name or "ia3_" in name):
            parts.remove(adapter)
            kind = next(part for part in parts if part.startswith(("lora_", "ia3_")))
            module = ".".join(parts[: parts.index(kind)])
            found[f"{module}/{kind}"] = weight.detach().numpy().copy()
    return found


def lora() -> dict[str, np.ndarray]:
    def config(i: int) -> peft.LoraConfig:
        return peft.LoraConfig(r=RANK, lora_alpha=ALPHAS[i], target_modules=TARGETS)

    model = _several(config, 0.0)
    arrays = {f"lora/{i}/{n}": x for i in NAMES for n, x in _tensors(model, i).items()}
    for label, options in OPTIONS.items():
        merge_utils.random_pruning, own = Draws(), merge_utils.random_pruning
        try:
            model.base_model.add_weighted_adapter(
                NAMES, WEIGHTS, label.replace(" ", "_"), label.split()[0], **options
            )
        finally:
            merge_utils.random_pruning = own
        arrays |= {f"{label}/{n}": x for n, x in _tensors(model, label.replace(" ", "_")).items()}
        model.base_model.delete_adapter(label.replace(" ", "_"))
    return arrays


def ia3() -> dict[str, np.ndarray]:
    def config(i: int) -> peft.IA3Config:
        del i
        return peft.IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])

    model = _several(config, 1.0)
    model.base_model.add_weighted_adapter(NAMES, IA3_WEIGHTS, "sum")
    arrays = {f"ia3/{i}/{n}": x for i in NAMES for n, x in _tensors(model, i).items()}
    return arrays | {f"ia3_sum/{n}": x for n, x in _tensors(model, "sum").items()}


def oracle() -> dict[str, np.ndarray]:
    return lora() | ia3()


if __name__ == "__main__":
    np.savez_compressed(HERE / "peft_arithmetic.npz", **oracle())
