"""What bottleneck adapters compute in torch, inside the models of make_t5.py and make_bert.py.

    pip install torch==2.13.0 transformers==5.23.0
    git clone https://github.com/r-three/t-few && git -C t-few checkout 114dece
    python -m tests.golden.make_adapters t-few

writes adapters_<case>.npz beside this file: adapter/<place>/<leaf>, stacked over layers, the
model's result with them, and grad/<place>/<leaf> of its inner product with the cotangent.

Compacter, the low-rank adapter and T-Few's adapter are the modules of the checkout, run as they
are; the low-rank one inside the residual connection that its authors' code (rabeehk/compacter) puts
around it, and that T-Few's copy lost. Houlsby's code is of TensorFlow 1 and AdapterHub's needs a
transformers of its own: their adapter is two torch layers here, and hooks put it where they do.
"""

import copy
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.golden import make_bert, make_t5

HERE = Path(__file__).parent

# Case: the model, the placement, the branches, and what make_module reads.
CASES = {
    "houlsby_t5": ("v1_1", "inner", ("attention", "mlp"), {"activation": "gelu_tanh"}),
    "houlsby_bert": ("bert", "inner", ("attention", "mlp"), {"activation": "gelu_tanh"}),
    "pfeiffer_t5": ("v1_0", "outer", ("mlp",), {"activation": "relu"}),
    "pfeiffer_bert": ("bert", "outer", ("attention", "mlp"), {"activation": "silu"}),
    "parallel_t5": ("v1_0", "parallel", ("attention", "mlp"), {"activation": "tanh", "scale": 3.0}),
    "parallel_bert": ("bert", "parallel", ("mlp",), {"activation": "gelu", "scale": 0.5}),
}
TFEW_CASES = {
    "tfew_adapter": ("v1_1", "inner", ("mlp",), {"kind": "normal"}),
    "compacter": ("v1_1", "inner", ("self_attention", "mlp"), {"kind": "compacter", "n": 4}),
    "compacter_plus_plus": (
        "v1_0",
        "inner",
        ("mlp",),
        {"kind": "compacter", "n": 2, "rank": 2, "share": True},
    ),
    "low_rank_adapter": ("v1_0", "inner", ("self_attention", "mlp"), {"kind": "lowrank"}),
}
BOTTLENECK = 4
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "tanh": nn.Tanh(),
}


# ---------------------------------------------------------------------------- adapters
class Bottleneck(nn.Module):
    """act(x down + b) up + b, times a scale."""

    def __init__(self, width: int, activation: str, scale: float = 1.0):
        super().__init__()
        self.down_proj = nn.Linear(width, BOTTLENECK)
        self.up_proj = nn.Linear(BOTTLENECK, width)
        self.activation = ACTIVATIONS[activation]
        self.scale = scale

    def forward(self, x):
        return self.scale * self.up_proj(self.activation(self.down_proj(x)))


class Residual(nn.Module):
    """What a module adds to its input."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x) - x


def tfew_module(checkout: Path, width: int, given: dict) -> nn.Module:
    """T-Few's own adapter of a kind, with the fields of its configuration file."""
    sys.path.insert(0, str(checkout / "src" / "models"))
    try:
        from AdapterVariants import Adapters
    finally:
        sys.path.pop(0)
    config = types.SimpleNamespace(
        adapter_reduction_factor=width // BOTTLENECK,
        adapter_non_linearity="relu" if given["kind"] == "normal" else "gelu_new",
        normal_adapter_residual=False,
        lowrank_adapter_w_init="glorot-uniform",
        lowrank_adapter_rank=1,
        compacter_hypercomplex_division=given.get("n"),
        compacter_learn_phm=True,
        compacter_hypercomplex_nonlinearity="glorot-uniform",
        compacter_shared_phm_rule=given.get("share", False),
        compacter_factorized_phm=True,
        compacter_shared_W_phm=False,
        compacter_factorized_phm_rule=False,
        compacter_phm_c_init="normal",
        compacter_phm_rank=given.get("rank", 1),
        compacter_phm_init_range=0.0001,
        compacter_kronecker_prod=False,
    )
    sizes = types.SimpleNamespace(hidden_size=width)
    if given["kind"] == "normal":
        return Adapters.Adapter(config, sizes)
    if given["kind"] == "lowrank":
        return Adapters.LowRankAdapter(config, sizes)
    return Residual(Adapters.HyperComplexAdapter(config, sizes))


def leaves(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of an adapter under our names and in our orientation."""
    module = getattr(module, "module", module)
    if hasattr(module, "down_proj"):
        parts = {"down": module.down_proj, "up": module.up_proj}
        weights = {name: part.weight for name, part in parts.items()}
        return weights | {f"{name}_bias": part.bias for name, part in parts.items()}
    found = {}
    for name, part in {"down": module.down_sampler, "up": module.up_sampler}.items():
        found |= {f"{name}_left": part.W_left, f"{name}_right": part.W_right}
        found[f"{name}_bias"] = part.b
        if not getattr(part, "shared_phm_rule", True):
            found[f"{name}_rules"] = part.phm_rule
    return found


def ours(name: str, array: np.ndarray) -> np.ndarray:
    """torch's Linear holds its weight transposed."""
    return array.T if name in ("down", "up") else array


# ---------------------------------------------------------------------------- places
def attach_t5(placement: str, layer: nn.Module, inside: nn.Module, adapter: nn.Module) -> None:
    """Puts an adapter on a sub-layer of transformers' T5: layer(x) = x + inside(norm(x))."""
    holder = layer if placement == "outer" else inside
    holder.adapter = adapter

    def hook(module, args, kwargs, out):
        result = out[0] if isinstance(out, tuple) else out
        read = result
        if placement == "parallel":
            read = args[0] if args else kwargs["hidden_states"]
        result = result + module.adapter(read)
        return (result, *out[1:]) if isinstance(out, tuple) else result

    holder.register_forward_hook(hook, with_kwargs=True)


def attach_bert(placement: str, output: nn.Module, adapter: nn.Module) -> None:
    """Puts an adapter on a BERT's output module: LayerNorm(dropout(dense(h)) + x)."""
    if placement == "outer":
        output.LayerNorm.adapter = adapter

        def behind(norm, args, out):
            total = args[0] + norm.adapter(out)
            return nn.functional.layer_norm(
                total, norm.normalized_shape, norm.weight, norm.bias, norm.eps
            )

        output.LayerNorm.register_forward_hook(behind)
        return
    output.dropout.adapter = adapter

    def keep(module, args):
        module.dropout.seen = args[1]

    def inside(module, args, out):
        return out + module.adapter(module.seen if placement == "parallel" else out)

    output.register_forward_pre_hook(keep)
    output.dropout.register_forward_hook(inside)


def places(model: nn.Module, branches: tuple[str, ...]) -> dict[str, list]:
    """Our path of a branch -> the arguments of attach_* between placement and adapter, by layer."""
    found: dict[str, list] = {}
    if not hasattr(model, "shared"):
        for layer in model.base_model.encoder.layer:
            if "attention" in branches:
                found.setdefault("encoder/layers/attention", []).append((layer.attention.output,))
            found.setdefault("encoder/layers/mlp", []).append((layer.output,))
        return found
    for stack in ("encoder", "decoder"):
        for block in getattr(model, stack).block:
            inside = {"mlp": (block.layer[-1], block.layer[-1].DenseReluDense)}
            own = "attention" if stack == "encoder" else "self_attention"
            if "attention" in branches or "self_attention" in branches:
                inside[own] = (block.layer[0], block.layer[0].SelfAttention)
            if "attention" in branches and stack == "decoder":
                inside["cross_attention"] = (block.layer[1], block.layer[1].EncDecAttention)
            for name, modules in inside.items():
                found.setdefault(f"{stack}/layers/{name}", []).append(modules)
    return found


# ---------------------------------------------------------------------------- results
def adapted(case: str, make: Callable[[int], nn.Module]) -> tuple[nn.Module, dict[str, list]]:
    """The model of a case with random adapters, and they by place."""
    variant, placement, branches, given = (CASES | TFEW_CASES)[case]
    model = (make_bert if variant == "bert" else make_t5).build(variant)
    model.requires_grad_(False)
    attach = attach_bert if variant == "bert" else attach_t5
    width = model.config.hidden_size
    found: dict[str, list] = {}
    if given.get("share"):
        n = given["n"]
        model.rules = nn.Parameter(torch.empty(n, n, n))
    for path, by_layer in places(model, branches).items():
        for arguments in by_layer:
            adapter = make(width)
            if given.get("share"):
                for part in (adapter.module.down_sampler, adapter.module.up_sampler):
                    part.set_phm_rule(phm_rule=model.rules)
            attach(placement, *arguments, adapter)
            found.setdefault(path, []).append(adapter)
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(0.6 * torch.randn(weight.shape, generator=generator))
    return model, found


def oracle(case: str, checkout: Path | None = None) -> dict[str, np.ndarray]:
    """adapter/<place>/<leaf>, result, cotangent, grad/<place>/<leaf>; in float64 like make_t5."""
    variant, _, _, given = (CASES | TFEW_CASES)[case]

    def make(width: int) -> nn.Module:
        if checkout is not None and "kind" in given:
            return tfew_module(checkout, width, given)
        return Bottleneck(width, **given)

    # Together, so that the copy's adapters are those of the copied model.
    model, found = copy.deepcopy(adapted(case, make))
    model = model.double()
    if variant == "bert":
        batch = make_bert.batch(variant)
        result = model.base_model(**make_bert.torch_inputs(batch)).last_hidden_state
    else:
        batch = make_t5.batch(variant)
        result = model(**make_t5.torch_inputs(batch), use_cache=False).logits
    cotangent = np.random.default_rng(len(case)).standard_normal(result.shape).astype(np.float32)
    (result * torch.as_tensor(cotangent)).sum().backward()
    arrays = {"result": result.detach().float().numpy(), "cotangent": cotangent}
    for path, modules in found.items():
        for name in leaves(modules[0]):
            weights = [leaves(module)[name] for module in modules]
            for kind, values in {"adapter": weights, "grad": [w.grad for w in weights]}.items():
                stacked = [ours(name, v.detach().float().numpy()) for v in values]
                arrays[f"{kind}/{path}/{name}"] = np.stack(stacked)
    if hasattr(model, "rules"):
        arrays["adapter/rules"] = model.rules.detach().float().numpy()
        arrays["grad/rules"] = model.rules.grad.float().numpy()
    return arrays


if __name__ == "__main__":
    for name in CASES:
        np.savez_compressed(HERE / f"adapters_{name}.npz", **oracle(name))
    for name in TFEW_CASES if len(sys.argv) > 1 else ():
        np.savez_compressed(HERE / f"adapters_{name}.npz", **oracle(name, Path(sys.argv[1])))
