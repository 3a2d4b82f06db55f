"""Golden values of FISH masks and SAID, made by the released code of T-Few.

    git clone https://github.com/r-three/t-few            # commit 114dece
    python tests/golden/make_tfew_subset.py t-few

src/models/fishmask.py and src/models/intrinsic.py run as they are; the CUDA extension that the
second imports and does not need on a CPU is a stand-in. Written to fish_mask.npz and said.npz
beside this file. Made with torch 2.13.0.
"""

import importlib
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

HERE = Path(__file__).parent
# For each the next power of two of the sum of the sizes is 64: with 40 dimensions the code pads the
# vector to 64 and cuts nothing off.
SHAPES = {"embedding": (41, 20), "linear": (17, 30), "norm": (45,)}
DIMENSIONS = 40


def import_tfew(folder: str, name: str):
    """src.models.NAME of a checkout, without the packages' own __init__ files."""
    for package in ("src", "src.models"):
        module = types.ModuleType(package)
        module.__path__ = [str(Path(folder, *package.split(".")))]
        sys.modules[package] = module
    stand_in = types.ModuleType("src.models.fwh_cuda")
    stand_in.fast_walsh_hadamard_transform = None
    sys.modules["src.models.fwh_cuda"] = stand_in
    return importlib.import_module(f"src.models.{name}")


class Parameters(torch.nn.Module):
    """Random parameters of the shapes above."""

    def __init__(self):
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))


def fish_mask(folder: str) -> dict[str, np.ndarray]:
    """Masks at three shares from the gradients of five examples."""
    code = import_tfew(folder, "fishmask")
    examples, saved = 5, {}
    model = Parameters()
    scales = {name: 10.0**i for i, name in enumerate(SHAPES)}  # leaves of unequal information
    gradients = {n: torch.randn(examples, *s) * scales[n] for n, s in SHAPES.items()}
    for share in (0.3, 0.05, 0.01):
        with tempfile.TemporaryDirectory() as out:
            config = SimpleNamespace(
                fishmask_mode="create", num_shot=examples, fishmask_keep_ratio=share, exp_dir=out
            )
            module = SimpleNamespace(model=model, config=config)
            for parameter in model.parameters():
                vars(parameter).pop("stored_grad", None)
            for i in range(examples):
                for name, parameter in model.named_parameters():
                    parameter.grad = gradients[name][i].clone()
                code.fishmask_plugin_on_optimizer_step(module)
            code.fishmask_plugin_on_end(module)
            masks = torch.load(Path(out, "mask.bin"))
        saved |= {f"mask/{share}/{name}": mask.numpy() for name, mask in masks.items()}
    return saved | {f"gradient/{name}": g.numpy() for name, g in gradients.items()}


def said(folder: str) -> dict[str, np.ndarray]:
    """Parameters before and after a move, with the random parts that were drawn."""
    code = import_tfew(folder, "intrinsic")
    model = Parameters()
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    # The code counts the factors, and one more, among the dimensions.
    dimensions = DIMENSIONS + len(SHAPES) + 1
    moved = code.IntrinsicDimensionLight(model, dimensions, said=True, device="cpu")
    with torch.no_grad():
        moved.intrinsic_parameter.normal_()
        moved.intrinsic_parameter_said.uniform_(0.5, 2)
    saved = {
        "vector": moved.intrinsic_parameter.detach().numpy(),
        "scales": moved.intrinsic_parameter_said.detach().numpy(),
    }
    for name, (signs, permutation, gaussian, _, size) in moved.projection_params.items():
        assert size == 64
        saved[f"{name}/signs"] = signs.numpy()
        saved[f"{name}/permutation"] = permutation.numpy()
        saved[f"{name}/gaussian"] = gaussian.numpy()
        saved[f"{name}/before"] = before[name]
    # What the code takes for a parameter may be any attribute.
    for name in SHAPES:
        initial = getattr(model, name).data
        del model._parameters[name]
        setattr(model, name, initial)
    moved(model)
    return saved | {f"{name}/after": getattr(model, name).detach().numpy() for name in SHAPES}


if __name__ == "__main__":
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what the code draws its permutations from
    np.savez_compressed(HERE / "fish_mask.npz", **fish_mask(sys.argv[1]))
    np.savez_compressed(HERE / "said.npz", **said(sys.argv[1]))
