"""Which format a checkpoint has, and reading any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax.sharding import Mesh

from peft_jax.backbones import hugging_face, loading, native, t5x, t5x_files
from peft_jax.backbones.base import Backbone
from peft_jax.backbones.loading import StoredBackbone
from peft_jax.errors import InputError
from peft_jax.paths import as_path, exists
from peft_jax.tensor_files import open_tensors
from peft_jax.transformer import Config

Format = Literal["hugging_face", "native", "t5x"]
FORMATS: tuple[Format, ...] = get_args(Format)

# What says that a folder, or a file, is an adapter, and whose.
_ADAPTER_FILES = {
    "adapter_config.json": "PEFT",
    "adapter_model.safetensors": "PEFT",
    "adapter_model.bin": "PEFT",
    "adapter.safetensors": "peft_jax",
}


def checkpoint_format(path: str | Path) -> Format:
    """Which of the formats the backbone at ``path`` has.

    Raises:
      InputError: there is none, or an adapter.
    """
    path = as_path(path)
    if not exists(path):
        raise InputError(f"no checkpoint folder at {path}")
    if native.is_native(path):
        return "native"
    _refuse_adapter(path)
    if (path / hugging_face.CONFIG).is_file():
        return "hugging_face"
    if t5x_files.is_t5x(path):
        return "t5x"
    steps = [each for each in path.glob("checkpoint_*") if t5x_files.is_t5x(each)]
    if steps:
        newest = max(steps, key=lambda each: (len(each.name), each.name))
        raise InputError(f"{path} holds T5X checkpoints; give one of them, such as {newest}")
    raise InputError(
        f"{path} is no checkpoint of a backbone: it has no {hugging_face.CONFIG} (Hugging Face's "
        "or ours), and no file 'checkpoint' or folder 'state' (T5X's)"
    )


def _refuse_adapter(path: Path) -> None:
    whose = next((w for name, w in _ADAPTER_FILES.items() if (path / name).is_file()), None)
    if path.is_file() and path.suffix in (".safetensors", ".npy", ".pt", ".bin"):
        whose = "one file"
    if whose is not None:
        raise InputError(f"{path} is an adapter or a part of one ({whose}), not a backbone")


def read_config(path: str | Path, named: str | None = None) -> Config:
    """The configuration of the backbone at ``path``, without reading its parameters."""
    path = as_path(path)
    found = checkpoint_format(path)
    if found == "t5x":
        return t5x.read_config(path, named)
    if found == "native":
        return native.read_config(path)
    return hugging_face.open_checkpoint(path)[0]


def read_backbone(
    path: str | Path,
    dtype: Any = None,
    named: str | None = None,
    on_leaf: Callable[[str], None] = lambda path: None,
    *,
    mesh: Mesh | None = None,
    quantize: str | None = None,
) -> Backbone:
    """The backbone at ``path``, whatever its format.

    Args:
      path: a folder, local or in a bucket (gs://).
      dtype: of the parameters; None keeps what is stored.
      named: the configuration that a T5X checkpoint takes what its shapes do not tell from.
      on_leaf: called with the path of every leaf that is read.
      mesh: over which the parameters are split; None puts them on the default device.
      quantize: "int8" or "nf4": the kernels of the layers are quantised one by one.

    Raises:
      InputError: what is there cannot be read, or ``named`` is given for another format.
    """
    stored, dtype = open_backbone(path, dtype, named)
    return loading.read(stored, dtype, mesh, on_leaf, quantize)


def open_backbone(
    path: str | Path, dtype: Any = None, named: str | None = None
) -> tuple[StoredBackbone, Any]:
    """What is stored, and the dtype to read it in; None keeps each leaf's own."""
    path = as_path(path)
    kind = checkpoint_format(path)
    if kind == "t5x":
        return t5x.open_backbone(path, named), dtype
    if named is not None:
        raise InputError(
            f"{path} says its own configuration; {named!r} can only be given for a checkpoint of "
            "T5X, which keeps none"
        )
    if kind == "native":
        return native.open_backbone(path), dtype
    return hugging_face.open_backbone(path), _stored_dtype(path) if dtype is None else dtype


def _stored_dtype(folder: Path) -> Any:
    """The narrowest dtype that holds every tensor of a Hugging Face folder."""
    index = folder / hugging_face.INDEX
    files = [folder / hugging_face.WEIGHTS]
    if not files[0].is_file():
        files = []
        if index.is_file():
            weight_map = json.loads(index.read_bytes()).get("weight_map", {})
            files = [folder / name for name in set(weight_map.values())]
    found = {each.dtype for file in files for each in open_tensors(file).values()}
    floating = [dtype for dtype in found if jnp.issubdtype(dtype, jnp.floating)]
    # Torch's own files are read as float32, which holds what they have.
    return jnp.result_type(*floating) if floating else jnp.float32
