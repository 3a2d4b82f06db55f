"""Golden values of the optimisers, made by transformers' Adafactor and by T5X's.

    git clone https://github.com/google-research/t5x      # commit cc342d4
    python tests/golden/make_optimizers.py t5x

Hugging Face: `transformers.optimization.Adafactor` on every layer as its own torch tensor, and the
whole recipe of T-Few (clip_grad_norm_ at 1 as Lightning calls it, Adafactor, linear warm-up and
decay through LambdaLR). T5X: t5x/adafactor.py runs as it is, on stacked leaves, with the rules that
T5X gives to scanned layers; what it imports besides (Amos, the trainer) are stand-ins. Written to
optimizers.npz beside this file. Made with torch 2.13.0, transformers 5.23.0, jax 0.10.2.
"""

import importlib
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers.optimization import Adafactor, get_linear_schedule_with_warmup

HERE = Path(__file__).parent
STEPS = 6

# path: shape as we stack it, first value (a number or the scale of a normal), and the shape that
# T-Few or Hugging Face PEFT gives one layer.
LEAVES = {
    "ia3/encoder/layers/attention/key/ia3": ((3, 16), "ones", (16, 1)),
    "ia3/encoder/layers/mlp/ia3": ((3, 10), 1.0, (10,)),
    "lora/decoder/layers/attention/query/lora_a": ((2, 12, 4), 0.1, (12, 4)),
    "lora/decoder/layers/attention/query/lora_b": ((2, 4, 12), "zeros", (4, 12)),
    "compacter/decoder/layers/adapter/phm": ((2, 3, 4, 5), 1.0, (3, 4, 5)),
    "decoder/layers/gate": ((3,), 1.0, ()),
    "encoder/prompt": ((7, 16), 5.0, (7, 16)),
    "encoder/norm/scale": ((9,), "ones", (9,)),
}


def first_values(rng) -> dict[str, np.ndarray]:
    values = {}
    for path, (shape, how, _) in LEAVES.items():
        scale, offset = {"ones": (0.0, 1.0), "zeros": (0.0, 0.0)}.get(how, (how, 0.0))
        layers = np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
        # Layers of very different size, so that a scale taken over all of them would show.
        values[path] = (offset + scale * layers * rng.standard_normal(shape)).astype(np.float32)
    return values


def gradients(rng) -> dict[str, np.ndarray]:
    """[STEPS, *shape] per leaf; layers and steps differ in size by factors of ten."""
    result = {}
    for path, (shape, _, _) in LEAVES.items():
        size = 10.0 ** rng.uniform(-3, 0, (STEPS, shape[0], *[1] * (len(shape) - 1)))
        result[path] = (size * rng.standard_normal((STEPS, *shape))).astype(np.float32)
    return result


def hugging_face(values, given, learning_rate, clip_norm, warmup, **options):
    """Every leaf after every step, [STEPS, *shape]."""
    tensors = {}
    for path, (_, _, of_layer) in LEAVES.items():
        layers = values[path] if "layers" in path else values[path][None]
        tensors[path] = [torch.nn.Parameter(torch.tensor(x).reshape(of_layer)) for x in layers]
    flat = [x for layers in tensors.values() for x in layers]
    optimizer = Adafactor(flat, lr=learning_rate, relative_step=False, **options)
    schedule = None
    if warmup is not None:
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, STEPS)
    after = {path: [] for path in tensors}
    for step in range(STEPS):
        for path, layers in tensors.items():
            stacked = given[path][step] if "layers" in path else given[path][step][None]
            for x, gradient in zip(layers, stacked, strict=True):
                x.grad = torch.tensor(gradient).reshape(x.shape)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(flat, clip_norm)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        for path, layers in tensors.items():
            stacked = np.stack([x.detach().numpy() for x in layers])
            after[path].append(stacked.reshape(LEAVES[path][0]).copy())
    return {path: np.stack(steps) for path, steps in after.items()}


def import_t5x_adafactor(folder: str):
    for name in ("jestimator", "jestimator.amos", "jestimator.amos_helper", "t5x.state_utils"):
        sys.modules[name] = MagicMock()
    package, utils = types.ModuleType("t5x"), types.ModuleType("t5x.utils")
    package.__path__ = [str(Path(folder, "t5x"))]
    utils.flatten_dict_string_keys = lambda tree: flatten_dict(tree, sep="/")
    package.utils = utils
    sys.modules |= {"t5x": package, "t5x.utils": utils}
    return importlib.import_module("t5x.adafactor")


def t5x(module, values, given, learning_rate, shortest_factored, **options):
    """Every leaf after every step; stacked leaves by the rules for scanned layers."""
    batch, none = module.FactorDim.BATCH, module.FactorDim.NONE
    row, column = module.FactorDim.ROW, module.FactorDim.COLUMN
    rules = []
    for path, x in values.items():
        if "layers" in path:
            shape = x.shape
            factored = len(shape) > 2 and min(shape[-2:]) >= shortest_factored
            inner = [none] * (len(shape) - 1)
            if factored:
                inner[-2:] = row, column
            rules.append((path, (batch, *inner)))
    rules += [("prompt", None), (".*", module.HEURISTIC_RULE)]
    optimizer = module.Adafactor(
        learning_rate,
        min_dim_size_to_factor=shortest_factored,
        factor_map=module.HParamMap(rules),
        **options,
    )
    params = unflatten_dict(values, sep="/")
    state, after = optimizer.init_state(params), {path: [] for path in values}
    for step in range(STEPS):
        grads = unflatten_dict({path: given[path][step] for path in values}, sep="/")
        params, state = optimizer.apply_gradient(optimizer.hyper_params, params, state, grads)
        for path, x in flatten_dict(params, sep="/").items():
            after[path].append(np.asarray(x))
    return {path: np.stack(steps) for path, steps in after.items()}


def main(t5x_folder: str) -> None:
    rng = np.random.default_rng(0)
    values, given = first_values(rng), gradients(rng)
    recipe = {"learning_rate": 3e-3, "clip_norm": 1.0, "warmup": 0.3 * STEPS}
    plain = {"learning_rate": 3e-2, "clip_norm": None, "warmup": None}
    runs = {
        "tfew": hugging_face(values, given, **recipe),
        "scaled": hugging_face(values, given, **plain, scale_parameter=True),
        "unscaled": hugging_face(values, given, **plain, scale_parameter=False),
        "decayed": hugging_face(values, given, **plain, weight_decay=0.1),
    }
    module = import_t5x_adafactor(t5x_folder)
    shared = {"learning_rate": 3e-1, "shortest_factored": 4}
    unscaled = {"multiply_by_parameter_scale": False, "weight_decay_rate": 1e-2}
    # T5X never keeps an axis between the layers and the factored two.
    of_t5x = {path: x for path, x in values.items() if x.ndim < 4}
    runs["t5x"] = t5x(module, of_t5x, given, **shared)
    runs["t5x_decayed"] = t5x(module, of_t5x, given, **shared, **unscaled)
    arrays = {f"params:{k}": v for k, v in values.items()}
    arrays |= {f"gradients:{k}": v for k, v in given.items()}
    arrays |= {f"{run}:{k}": v for run, after in runs.items() for k, v in after.items()}
    np.savez_compressed(HERE / "optimizers.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
