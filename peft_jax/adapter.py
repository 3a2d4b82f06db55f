"""The adapter file: a method's stored tree, with what is needed to use it, in one safetensors file.

The file's metadata names the method (so that loading makes it again), the backbone that it was
made for, and the versions that wrote it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import tree
from peft_jax._version import __version__
from peft_jax.backbones.base import Backbone, identity
from peft_jax.errors import InputError
from peft_jax.files import replace_file
from peft_jax.methods import Method, from_spec
from peft_jax.transformer import Config
from peft_jax.tree import Params

FILE = "adapter.safetensors"
# An adapter saved before a field existed was made for a backbone with its default.
_FIELD_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Config)
    if field.default is not dataclasses.MISSING
}
FORMAT = "peft_jax.adapter"
"""Name of the header among a file's metadata."""
_VERSION = 1


def adapter_path(path: str | Path) -> Path:
    """The file itself: ``path``, or ``adapter.safetensors`` in the folder ``path``."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE


def save_adapter(
    path: str | Path,
    adapter: Params,
    method: Method,
    backbone: Backbone,
    details: dict[str, Any] | None = None,
) -> Path:
    """Writes ``adapter.safetensors`` into a folder, or to a path of that ending; returns its path.

    Args:
      adapter: the stored tree.
      method: that it belongs to.
      backbone: that it was trained on; its identity is remembered.
      details: anything else to remember (task, result), as JSON values.
    """
    from safetensors.numpy import save

    arrays = {p: np.ascontiguousarray(leaf) for p, leaf in tree.flatten(adapter).items()}
    header = json.dumps(make_header(method, backbone, details), sort_keys=True)
    path = adapter_path(path)
    with replace_file(path) as new:
        new.write_bytes(save(arrays, {FORMAT: header}))
    return path


def make_header(
    method: Method, backbone: Backbone, details: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a file keeps beside the stored tree: version, method, backbone, versions, details."""
    return {
        "version": _VERSION,
        "method": method.spec,
        "backbone": identity(backbone),
        "versions": {"peft_jax": __version__, "jax": jax.__version__},
        "details": details or {},
    }


def read_header(path: str | Path) -> dict[str, Any]:
    """The metadata of an adapter file: version, method, backbone, versions, details."""
    from safetensors import SafetensorError, safe_open

    path = adapter_path(path)
    if not path.is_file():
        raise InputError(f"no adapter at {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from None
    if FORMAT not in metadata:
        raise InputError(f"{path} is not an adapter of peft_jax: its metadata has no {FORMAT!r}")
    return parse_header(path, metadata[FORMAT])


def parse_header(path: Path, text: str) -> dict[str, Any]:
    """The header that a file holds as JSON; InputError for one of another version."""
    header = json.loads(text)
    if header["version"] != _VERSION:
        raise InputError(
            f"{path} has version {header['version']} of the adapter format; this release reads "
            f"{_VERSION}"
        )
    return header


def load_adapter(
    path: str | Path, backbone: Backbone, *, any_weights: bool = False
) -> tuple[Params, Method]:
    """Reads an adapter for a backbone: the stored tree and its method.

    Args:
      path: the file, or the folder (a run's folder, say) that holds it.
      backbone: must be the one that the adapter was made for.
      any_weights: accept a backbone of the same configuration with other weights.

    Raises:
      InputError: no such file, a damaged one, or an adapter made for another backbone; the message
        names the first difference.
    """
    from safetensors.numpy import load

    header = read_header(path)
    path = adapter_path(path)
    return restore(path, header, load(path.read_bytes()), backbone, any_weights=any_weights)


def restore(
    path: Path,
    header: dict[str, Any],
    arrays: dict[str, np.ndarray],
    backbone: Backbone,
    *,
    any_weights: bool = False,
) -> tuple[Params, Method]:
    """The stored tree and the method of a file's header and arrays, checked against a backbone."""
    _check_backbone(path, header["backbone"], identity(backbone), any_weights)
    method = from_spec(header["method"])
    adapter = tree.unflatten({p: jnp.asarray(a) for p, a in arrays.items()})
    expected = tree.flatten(jax.eval_shape(method.init, jax.random.key(0), backbone))
    held = tree.flatten(adapter)
    wrong = [p for p in {**expected, **held} if _shape(expected, p) != _shape(held, p)]
    if wrong:
        raise InputError(
            f"{path} does not hold what its method needs: {wrong[0]!r} has shape "
            f"{_shape(held, wrong[0])} in the file and {_shape(expected, wrong[0])} in the method"
        )
    return adapter, method


def _shape(flat: dict[str, Any], path: str) -> tuple[int, ...] | None:
    return tuple(flat[path].shape) if path in flat else None


def _check_backbone(path: Path, made_for: dict, given: dict, any_weights: bool) -> None:
    saved = json.loads(json.dumps(_FIELD_DEFAULTS)) | made_for["config"]
    for field, value in json.loads(json.dumps(given["config"])).items():
        if saved.get(field) != value:
            raise InputError(
                f"{path} was made for the backbone {made_for['name']!r}, whose {field} is "
                f"{saved.get(field)}; {given['name']!r} has {value}"
            )
    # One that came from another library's file knows the configuration alone.
    prints = {made_for["fingerprint"], given["fingerprint"]} - {None}
    if not any_weights and len(prints) > 1:
        raise InputError(
            f"{path} was made for the backbone {made_for['name']!r}; {given['name']!r} has the "
            "same configuration but other weights (any_weights=True accepts them)"
        )
