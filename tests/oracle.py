"""What transformers and peft compute: frozen under golden/, or made now where they are installed.

The scripts in golden/ say how; a test takes both kinds by the same name.
"""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import tree
from peft_jax.backbones import hugging_face

GOLDEN = Path(__file__).parent / "golden"

FROZEN = ("v1_0", "v1_1", "mt5")
LIVE = ("v1_0_long", "v1_0_square", "v1_1_long", "v1_1_silu", "mt5_long")
T5 = (*FROZEN, *(pytest.param(name, marks=pytest.mark.oracle) for name in LIVE))


def live(script: str):
    """A script of golden/ as a module; skips where torch, transformers or peft is missing."""
    for package in (
        "torch",
        "transformers",
        *(("peft",) if script.startswith("make_peft") else ()),
    ):
        pytest.importorskip(package)
    import importlib

    import torch

    torch.set_num_threads(2)
    return importlib.import_module(f"tests.golden.{script}")


@functools.cache
def model_folder(subject: str, variant: str) -> Path:
    """A variant of golden/make_<subject>.py: a Hugging Face folder with oracle.npz in it."""
    folder = GOLDEN / subject / variant
    if not folder.is_dir():
        folder = Path(tempfile.mkdtemp(prefix=f"{subject}_oracle_"))
        live(f"make_{subject}").write(variant, folder)
    return folder


def model(subject: str, variant: str) -> tuple[pj.Backbone, dict[str, np.ndarray]]:
    """Our backbone of a variant, and what transformers computes with the same weights."""
    folder = model_folder(subject, variant)
    return pj.load_backbone(folder, dropout=0.0), dict(np.load(folder / "oracle.npz"))


def t5(variant: str) -> tuple[pj.Backbone, dict[str, np.ndarray]]:
    """A variant of make_t5."""
    return model("t5", variant)


def by_hugging_face_name(backbone: pj.Backbone, leaves: dict) -> dict[str, np.ndarray]:
    """A tree like the backbone's parameters as transformers' tensors."""
    config = backbone.config
    leaves = tree.unflatten({path: np.asarray(leaf) for path, leaf in tree.flatten(leaves).items()})
    places: dict[str, list] = {}
    for rule in hugging_face.FAMILIES[config.family].hugging_face_rules(config):
        for layer, name in rule.names(config.depth(rule.ours)):
            places.setdefault(name, []).append((rule, layer))
    return {name: hugging_face._tensor(leaves, parts) for name, parts in places.items()}


def inner_product(logits: jax.Array, arrays: dict[str, np.ndarray]) -> jax.Array:
    """The scalar whose gradients the oracle holds."""
    return (logits * arrays["cotangent"]).sum()


def assert_gradients_close(backbone: pj.Backbone, gradients: dict, wanted: dict) -> None:
    """Every parameter's gradient equals wanted["grad/<transformers' name>"], each within 1e-5.

    A key's bias moves all logits of a softmax alike: its gradient is 0 but for rounding, and is
    compared on the scale of the query's. What transformers has no gradient of must be 0 here.
    """
    named = by_hugging_face_name(backbone, gradients)
    names = {name.removeprefix("grad/") for name in wanted if name.startswith("grad/")}
    assert names <= set(named), names - set(named)
    for name, gradient in named.items():
        if name not in names:
            assert not gradient.any(), name
            continue
        held = wanted[f"grad/{name}"]
        beside = re.sub(r"\b(key|k_proj)\.bias", lambda m: f"{_QUERY[m[1]]}.bias", name)
        scale = max(1e-30, np.abs(wanted[f"grad/{beside}"]).max())
        assert_close(gradient / scale, held / scale, 1e-5, name, at_least=beside != name)


_QUERY = {"key": "query", "k_proj": "q_proj"}


def assert_close(
    actual, wanted, tolerance: float = 1e-5, what: str = "", at_least: float = 0.0
) -> None:
    """Equal within ``tolerance`` of the largest entry of ``wanted``, or of ``at_least``."""
    actual, wanted = np.asarray(actual, np.float64), np.asarray(wanted, np.float64)
    assert actual.shape == wanted.shape, (what, actual.shape, wanted.shape)
    largest = max(np.abs(wanted).max(), at_least)
    error = np.abs(actual - wanted).max()
    assert error <= tolerance * largest, f"{what}: {error / max(largest, 1e-30):.2e} relative"
