"""What PEFT computes with LoRA's relatives, on the models of make_t5.py and make_decoders.py.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    python -m tests.golden.make_peft_low_rank

writes peft_<method>_<variant>.npz for GOLDEN, and peft_rank_allocation.npz, beside this file.
Adapter weights are random on every place; merged weights are what `merge_and_unload` leaves in the
model.
"""

from pathlib import Path

import numpy as np
import peft
import torch

from tests.golden import make_decoders, make_t5

HERE = Path(__file__).parent


def targets(variant: str, *names: str) -> list[str]:
    """Our names as the variant's modules have them."""
    llama = {"query": "q_proj", "value": "v_proj", "wo": "down_proj", "wi_1": "up_proj"}
    t5 = {"query": "q", "value": "v", "wo": "wo", "wi_1": "wi_1"}
    return [(t5 if variant in make_t5.VARIANTS else llama)[name] for name in names]


def patterns(variant: str) -> dict:
    """Ranks and alphas that differ by module; the first that matches counts."""
    query, wo = targets(variant, "query", "wo")
    return {"rank_pattern": {query: 2, wo: 4}, "alpha_pattern": {wo: 5}}


CONFIGS = {
    "dora": lambda v: peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets(v, "query", "wo"), use_dora=True
    ),
    "pissa": lambda v: peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets(v, "value", "wo"), init_lora_weights="pissa"
    ),
    "lora_patterns": lambda v: peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets(v, "query", "value", "wo"), **patterns(v)
    ),
    "vera": lambda v: peft.VeraConfig(r=5, target_modules=targets(v, "query", "value", "wo")),
    "adalora": lambda v: peft.AdaLoraConfig(
        init_r=3, target_r=2, lora_alpha=7, total_step=9, target_modules=targets(v, "value", "wo")
    ),
}
GOLDEN = (
    ("dora", "v1_0"),
    ("pissa", "v1_1"),
    ("lora_patterns", "llama"),
    ("vera", "v1_0"),
    ("adalora", "llama"),
)


def models(variant: str):
    """The script that makes a variant's model."""
    return make_t5 if variant in make_t5.VARIANTS else make_decoders


def adapted(method: str, variant: str) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """The model under a method whose weights are all random, and the method's constants."""
    model = peft.get_peft_model(models(variant).build(variant), CONFIGS[method](variant)).eval()
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    constants = {n: b for n, b in buffers.items() if n.startswith("base_model.vera_")}
    constants |= trained if method == "pissa" else {}
    constants = {f"fixed/{name}": w.detach().numpy().copy() for name, w in constants.items()}
    generator = torch.Generator().manual_seed(len(variant))
    with torch.no_grad():
        for name, weight in trained.items():
            noise = 0.4 * torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + noise if "magnitude" in name else noise)
    return model, constants


def oracle(method: str, variant: str) -> dict[str, np.ndarray]:
    """adapter/<name>, fixed/<name>, logits, grad/<name>, and merged/<name> of the targets."""
    model, arrays = adapted(method, variant)
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    arrays |= {f"adapter/{name}": w.detach().numpy().copy() for name, w in trained.items()}
    script = models(variant)
    arrays |= script.logits_and_gradients(model, script.batch(variant))
    places = {name.split(".lora_")[0].split(".vera_")[0] for name in trained}
    places = {name.removeprefix("base_model.model.") + ".weight" for name in places}
    merged = model.merge_and_unload().state_dict()
    return arrays | {f"merged/{name}": merged[name].numpy().copy() for name in sorted(places)}


# ---------------------------------------------------------------------------- rank allocation

STEPS = 14
ALLOCATION = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2, "total_step": STEPS}


def allocation() -> dict[str, np.ndarray]:
    """AdaLoRA's factors after every step of SGD with given gradients, and the regulariser.

    <key>/<matrix>/<factor>: "start", "gradient" [STEPS, ...], "after" [STEPS, ...] and
    "orthogonality" (the gradient of its loss at the start), with budget [STEPS].
    """
    shapes = {"first": (6, 5), "second": (7, 4), "third": (5, 8)}
    model = torch.nn.ModuleDict({n: torch.nn.Linear(*s) for n, s in shapes.items()})
    config = peft.AdaLoraConfig(**ALLOCATION, target_modules=list(shapes))
    generator = torch.Generator().manual_seed(0)
    model = peft.get_peft_model(model, config)
    trained = {
        n.removeprefix("base_model.model.").replace(".default", "").replace(".", "/"): w
        for n, w in model.named_parameters()
        if w.requires_grad
    }
    for weight in trained.values():
        weight.data = 0.5 * torch.randn(weight.shape, generator=generator)
    found = {f"start/{name}": w.detach().numpy().copy() for name, w in trained.items()}
    norms = []
    for name, weight in trained.items():
        if not name.endswith("lora_E"):
            gram = weight @ weight.T if name.endswith("lora_A") else weight.T @ weight
            norms.append(torch.norm(gram - torch.eye(len(gram)), p="fro"))
    loss = sum(norms) / len(norms)
    loss.backward()
    found["orthogonality_loss"] = loss.detach().numpy()
    for name, weight in trained.items():
        if weight.grad is not None:
            found[f"orthogonality/{name}"] = weight.grad.numpy().copy()
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    after = {name: [] for name in trained}
    gradients = {name: [] for name in trained}
    for step in range(1, STEPS + 1):
        for name, weight in trained.items():
            weight.grad = torch.randn(weight.shape, generator=generator)
            gradients[name].append(weight.grad.numpy().copy())
        optimizer.step()
        model.base_model.update_and_allocate(step)
        for name, weight in trained.items():
            after[name].append(weight.detach().numpy().copy())
    found |= {f"gradient/{name}": np.stack(g) for name, g in gradients.items()}
    budgets = [model.base_model.rankallocator.budget_schedule(k)[0] for k in range(1, STEPS + 1)]
    found["budget"] = np.array(budgets)
    return found | {f"after/{name}": np.stack(a) for name, a in after.items()}


if __name__ == "__main__":
    np.savez_compressed(HERE / "peft_rank_allocation.npz", **allocation())
    for method, variant in GOLDEN:
        np.savez_compressed(HERE / f"peft_{method}_{variant}.npz", **oracle(method, variant))
