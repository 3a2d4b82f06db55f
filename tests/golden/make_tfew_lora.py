"""What T-Few's released code computes with its two forms of LoRA, on models of make_t5.py.

    git clone https://github.com/r-three/t-few            # commit 114dece
    python -m tests.golden.make_tfew_lora t-few

src/models/lora.py runs as it is, with the options of configs/lora.json and lora_scaling.json.
Written to tfew_<form>_v1_1.npz beside this file: random factors on every place, the logits and
gradients with them, and the deviation that the code draws its first factors with. Made with torch
2.13.0 and transformers 5.23.0.
"""

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from tests.golden import make_t5

HERE = Path(__file__).parent
PLACES = {
    "lora_modules": ".*SelfAttention|.*EncDecAttention|.*DenseReluDense",
    "lora_layers": "q|k|v|o|w.*",
}
FORMS = {
    "lora": {"lora_rank": 4, "lora_init_scale": 0.01, "lora_scaling_rank": 0},
    "lora_scaling": {"lora_rank": 0, "lora_init_scale": 0.0, "lora_scaling_rank": 1},
}
VARIANT = "v1_1"


def oracle(folder: str, form: str) -> dict[str, np.ndarray]:
    """adapter/<name>, logits, grad/<name>, and start/<name>: the deviation and mean at first."""
    spec = importlib.util.spec_from_file_location("lora", Path(folder, "src", "models", "lora.py"))
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    torch.manual_seed(0)
    model = code.modify_with_lora(make_t5.build(VARIANT), SimpleNamespace(**FORMS[form], **PLACES))
    generator = torch.Generator().manual_seed(1)
    arrays = {}
    for name, weight in model.named_parameters():
        weight.requires_grad = re.fullmatch(".*lora_[ab].*", name) is not None
        if weight.requires_grad:
            deviation = weight.std() if weight.numel() > 1 else torch.zeros(())
            start = [deviation.item(), weight.mean().item()]
            arrays[f"start/{name}"] = np.array(start, np.float32)
            center = 1 if "multi" in name else 0
            weight.data = center + 0.3 * torch.randn(weight.shape, generator=generator)
            arrays[f"adapter/{name}"] = weight.detach().numpy().copy()
    return arrays | make_t5.logits_and_gradients(model, make_t5.batch(VARIANT))


if __name__ == "__main__":
    for form in FORMS:
        np.savez_compressed(HERE / f"tfew_{form}_{VARIANT}.npz", **oracle(sys.argv[1], form))
