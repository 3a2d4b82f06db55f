"""LoRA in torch files of loralib's: ``lora_A`` [rank, in] and ``lora_B`` [out, rank] of a module.

loralib (microsoft/LoRA) saves the factors of a model by its own names, and beside them whatever
else was trained, such as a classification head. Its scale, alpha / rank, is not in the file.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.exchange.hugging_face import Imported, check_shapes
from peft_jax.exchange.modules import Linear, Names, Part, composed, missing
from peft_jax.exchange.peft_low_rank import Factors, lora_parts
from peft_jax.methods import Method, classification_head
from peft_jax.torch_files import read_torch
from peft_jax.tree import Params


def load_loralib(path: str | Path, backbone: Backbone, alpha: float) -> tuple[Params, Method]:
    """Reads a LoRA that ``loralib.lora_state_dict`` and ``torch.save`` wrote.

    A fused projection (a GPT-2's ``c_attn``) has factors for queries and values, one behind the
    other, as the published ones (``enable_lora=[True, False, True]``), or for all three.

    Args:
      path: the ``.bin`` or ``.pt`` file; it is read without torch, and nothing in it is executed.
      backbone: that it was made for; an abstract one is enough.
      alpha: of the run that made it (``lora_alpha``), for the scale alpha / rank.

    Raises:
      InputError: the file is damaged, or a tensor has no place in the backbone, or not its shape.
    """
    read = read_loralib(path, backbone, alpha)
    return read.adapter, read.method


def read_loralib(path: str | Path, backbone: Backbone, alpha: float) -> Imported:
    """As :func:`load_loralib`."""
    names = Names(backbone.config)
    found: dict[str, dict[str, np.ndarray]] = {}
    head = {}
    try:
        for name, array in read_torch(path).items():
            module, _, kind = name.rpartition(".")
            linear = names.canonical(f"{module}.weight").removesuffix(".weight")
            if kind in ("lora_A", "lora_B") and linear in names.linears:
                found.setdefault(linear, {})[kind] = array.astype(np.float32)
            elif (rule := names.head.get(re.sub(r"^module\.", "", name))) is not None:
                array = array.astype(np.float32)
                head[rule.ours] = jnp.asarray(array.T if rule.transpose else array)
            else:
                raise missing("tensor", name, [*names.linears, *names.head], backbone.config)
        factors: dict[Part, Factors] = {}
        for module, held in found.items():
            factors |= _factors(module, held, names.linears[module], alpha)
        spec = {"name": "lora", "dropout": 0.0, "rslora": False, "init": "uniform"}
        parts = lora_parts(factors, spec, backbone)
        if head:
            labels = head.get("classifier/out/kernel", np.zeros((0, 1))).shape[-1]
            parts.append((classification_head(labels), tree.unflatten(head)))
        adapter, method = composed(parts)
        check_shapes(adapter, method, backbone)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return Imported(adapter, method)


def _factors(
    name: str, held: dict[str, np.ndarray], linear: Linear, alpha: float
) -> dict[Part, Factors]:
    for kind in ("lora_A", "lora_B"):
        if kind not in held:
            raise InputError(f"tensor {name}.{kind} is missing")
    a, b = held["lora_A"], held["lora_B"]
    # Of three fused parts, the published runs adapt the first and the last.
    count = b.shape[0] // linear.outputs
    chosen = linear.parts[::2] if (len(linear.parts), count) == (3, 2) else linear.parts
    rank = b.shape[1]
    shapes = (rank * len(chosen), linear.inputs), (linear.outputs * len(chosen), rank)
    if (a.shape, b.shape) != shapes:
        raise InputError(
            f"{name} has lora_A {a.shape} and lora_B {b.shape}; wanted {shapes[0]} and {shapes[1]}"
        )
    pairs = zip(np.split(a, len(chosen)), np.split(b, len(chosen)), strict=True)
    return {
        part: Factors(own_a.T, own_b.T, alpha)
        for part, (own_a, own_b) in zip(chosen, pairs, strict=True)
    }
