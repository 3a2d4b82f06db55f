"""NumPy's files: a prompt as one ``.npy`` array, and any adapter as an ``.npz`` archive."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax.adapter import FORMAT, make_header, parse_header, restore
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.exchange.hugging_face import check_shapes
from peft_jax.files import replace_file
from peft_jax.methods import Method, prompt_tuning
from peft_jax.tree import Params


# --------------------------------------------------------------------------------------------
# Prompts
# --------------------------------------------------------------------------------------------
def load_npy(path: str | Path, backbone: Backbone) -> tuple[Params, Method]:
    """Reads a prompt [length, d_model] as google-research/prompt-tuning keeps it.

    Args:
      path: the ``.npy`` file, of any floating dtype.
      backbone: whose input it stands in front of; an abstract one is enough.

    Raises:
      InputError: the file is damaged, or no such array.
    """
    path = Path(path)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"prompt file {path} cannot be read as .npy: {error}") from None
    width, stack = backbone.config.d_model, backbone.config.input_stack
    floating = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
    if not floating or array.ndim != 2 or array.shape[1] != width or not len(array):
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"prompt file {path} holds {what}; wanted floats [length, {width}]")
    method = prompt_tuning(len(array), init="random")
    return {stack: {"prompt": jnp.asarray(array, jnp.float32)}}, method


def save_npy(path: str | Path, adapter: Params, method: Method, backbone: Backbone) -> Path:
    """Writes a prompt in front of the input, whatever made it, as one array [length, d_model].

    Raises:
      InputError: the adapter is anything else.
    """
    check_shapes(adapter, method, backbone)
    bound = tree.flatten(method.bind(adapter))
    place = f"{backbone.config.input_stack}/prompt"
    foreign = sorted(set(bound) - {place})
    if foreign:
        raise InputError(
            f"an .npy file holds a prompt in front of the input; this adapter has {foreign[0]!r}"
        )
    with replace_file(path) as new, new.open("wb") as file:
        np.save(file, np.asarray(bound[place], np.float32))
    return Path(path)


# --------------------------------------------------------------------------------------------
# Archives
# --------------------------------------------------------------------------------------------
def save_npz(
    path: str | Path,
    adapter: Params,
    method: Method,
    backbone: Backbone,
    details: dict[str, Any] | None = None,
) -> Path:
    """Writes any adapter as an ``.npz`` archive: its arrays by path, and one of text.

    ``numpy.load`` reads it without this package. The text, ``peft_jax.adapter``, is JSON: what
    ``adapter.safetensors`` has in its header.
    """
    check_shapes(adapter, method, backbone)
    header = json.dumps(make_header(method, backbone, details), sort_keys=True)
    arrays = {p: np.asarray(leaf) for p, leaf in tree.flatten(adapter).items()}
    with replace_file(path) as new, new.open("wb") as file:
        # The type is narrower than the function: names need not be Python's.
        np.savez(file, **{FORMAT: np.array(header)}, **arrays)  # type: ignore[arg-type]
    return Path(path)


def read_npz_header(path: str | Path) -> dict[str, Any]:
    """What an archive knows of its method and backbone; InputError for another file."""
    return parse_header(Path(path), str(_open(Path(path))[FORMAT][()]))


def load_npz(
    path: str | Path, backbone: Backbone, *, any_weights: bool = False
) -> tuple[Params, Method]:
    """Reads what :func:`save_npz` wrote, checked as ``load_adapter`` checks.

    Raises:
      InputError: no such file, a damaged one, or an adapter made for another backbone.
    """
    path = Path(path)
    arrays = _open(path)
    header = parse_header(path, str(arrays.pop(FORMAT)[()]))
    return restore(path, header, arrays, backbone, any_weights=any_weights)


def _open(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as .npz: {error}") from None
    if FORMAT not in arrays:
        raise InputError(f"{path} is not an adapter of peft_jax: it has no array {FORMAT!r}")
    return arrays
