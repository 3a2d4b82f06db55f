"""Backbones: named configurations, checkpoints, and the places where methods attach."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from peft_jax import tree
from peft_jax.backbones.base import (
    Backbone,
    Slot,
    abstract_backbone,
    check_slots,
    find_modules,
    identity,
    init_backbone,
    slots,
)
from peft_jax.backbones.families import CONFIGS
from peft_jax.errors import InputError
from peft_jax.paths import as_path
from peft_jax.transformer import Config

__all__ = [
    "CONFIGS",
    "Backbone",
    "Slot",
    "abstract_backbone",
    "backbone_config",
    "backbone_outline",
    "check_slots",
    "find_modules",
    "identity",
    "init_backbone",
    "load_backbone",
    "save_backbone",
    "slots",
]

TINY = Path(__file__).parent / "tiny"
"""The embedded backbone: a tiny T5 v1.1 in Hugging Face format, trained by this project."""


def backbone_config(name: str) -> Config:
    """The configuration of a published model, such as "t5_v1_1_small" or "t0_11b"."""
    if name not in CONFIGS:
        raise InputError(f"no backbone is named {name!r}; {tree.nearest(name, CONFIGS)}")
    return CONFIGS[name]


def load_backbone(
    source: str | Path,
    dtype: Any = None,
    *,
    config: str | None = None,
    mesh: Mesh | None = None,
    quantize: str | None = None,
    **run: Any,
) -> Backbone:
    """Loads a frozen backbone.

    Args:
      source: "tiny" for the embedded one, or a folder: a Hugging Face checkpoint, one of T5X, or
        what ``peft-jax convert`` wrote, which loads fastest. It may lie in a bucket
        ("gs://...", see ``paths``).
      dtype: of the frozen weights; None means bfloat16 on an accelerator, float32 on a CPU.
      config: for a T5X checkpoint, which keeps none: the named configuration of a model of the same
        kind, such as "t5_v1_1_base". Not needed where the sizes are those of a published model, or
        where a gin file stands beside it.
      mesh: over which the weights are split, as ``sharding.leaf_spec`` says; every process reads
        only what its devices hold, so that the model is never whole on a host. None: all of it on
        the default device.
      quantize: "int8" or "nf4": the kernels of the layers are quantised one by one as they are
        read (see ``quantization.quantize``), and the full-precision model is never there. None, or
        "none": as they are.
      **run: fields of :class:`~peft_jax.transformer.Config` to change, such as ``dropout=0.0`` or
        ``remat="full"``.

    Raises:
      InputError: what is there cannot be read; the message says what, where, and what would do.
    """
    from peft_jax.backbones import formats

    if str(source) in CONFIGS and not Path(source).exists():
        raise InputError(
            f"{source!r} names a configuration; its weights are not part of this package. Give "
            "the path of a checkpoint, or use init_backbone for random weights"
        )
    accelerated = jax.default_backend() != "cpu"
    if dtype is None:
        dtype = jnp.bfloat16 if accelerated else jnp.float32
    folder = TINY if str(source) == "tiny" else as_path(source)
    quantize = None if quantize == "none" else quantize
    backbone = formats.read_backbone(folder, dtype, config, mesh=mesh, quantize=quantize)
    run = {"activation_dtype": "bfloat16" if accelerated else "float32"} | run
    return backbone.replace(**run)


def backbone_outline(source: str | Path) -> Backbone:
    """What :func:`load_backbone` would load, without its weights: for preparing data.

    Raises:
      InputError: as :func:`load_backbone`; or there is no vocabulary.
    """
    from peft_jax.backbones import formats, native

    folder = TINY if str(source) == "tiny" else as_path(source)
    config = formats.read_config(folder)
    vocabulary = native.local_vocabulary(folder)
    if vocabulary is None:
        raise InputError(
            f"backbone {str(source)!r} has no vocabulary: {folder} holds no tokenizer.json, "
            "vocab.txt, vocab.json or SentencePiece model"
        )
    outline = abstract_backbone(config, name=folder.name)
    return dataclasses.replace(outline, vocabulary=vocabulary)


def save_backbone(folder: str | Path, backbone: Backbone) -> Path:
    """Writes a backbone as a Hugging Face folder; see ``hugging_face.write_backbone``."""
    from peft_jax.backbones import hugging_face

    return hugging_face.write_backbone(folder, backbone)
