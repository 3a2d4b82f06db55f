"""Executables that were compiled without the slice, and loaded on it.

jax's persistent cache is of no help there: a machine without TPUs has no TPU client, and what a
compile-only client makes is not written to it. The executable itself can be written, and loaded by
a job on the slice that has the same jax, jaxlib and libtpu, in the same topology.
"""

from __future__ import annotations

import json
import pickle
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from peft_jax.errors import InputError
from peft_jax.plan.topology import Topology
from peft_jax.sharding import Axes

_PACKAGES = ("jax", "jaxlib", "libtpu")


def versions() -> dict[str, str]:
    """Of what an executable depends on; "" for what is not installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def save_executable(
    folder: Path, name: str, compiled: Any, topology: Topology | None, axes: Axes
) -> Path:
    """Writes ``NAME.executable`` and, beside it, what it was made for: ``NAME.json``.

    Args:
      compiled: a ``jax.stages.Compiled``.
      topology: what it was compiled for; None: the devices of this machine.
    """
    from jax.experimental import serialize_executable

    folder.mkdir(parents=True, exist_ok=True)
    payload, in_tree, out_tree = serialize_executable.serialize(compiled)
    path = folder / f"{name}.executable"
    path.write_bytes(pickle.dumps((payload, in_tree, out_tree)))
    made_for = {
        "topology": None if topology is None else topology.name,
        "mesh": axes._asdict(),
        "versions": versions(),
    }
    (folder / f"{name}.json").write_text(json.dumps(made_for, indent=2) + "\n")
    return path


def load_executable(folder: str | Path, name: str, mesh: jax.sharding.Mesh) -> Any:
    """The function that :func:`save_executable` wrote, ready to be called on this machine.

    A file is code: load only what you have written yourself.

    Args:
      mesh: of the same sizes, over the same number of devices, in the order in which
        ``sharding.make_mesh`` lays them.

    Raises:
      InputError: no such file, or one that was made by other versions or for another mesh.
    """
    from jax.experimental import serialize_executable

    folder = Path(folder)
    about, path = folder / f"{name}.json", folder / f"{name}.executable"
    if not about.is_file() or not path.is_file():
        raise InputError(f"{folder} holds no executable of {name!r}; peft-jax plan --save makes it")
    made_for = json.loads(about.read_text())
    here = versions()
    for package, version in made_for["versions"].items():
        if here[package] != version:
            raise InputError(
                f"{path} was compiled by {package} {version}; here is {here[package] or 'none'}. "
                "An executable runs with the versions that made it alone"
            )
    sizes = {axis: mesh.shape[axis] for axis in made_for["mesh"]}
    if sizes != made_for["mesh"]:
        raise InputError(f"{path} was compiled for the mesh {made_for['mesh']}, not for {sizes}")
    payload, in_tree, out_tree = pickle.loads(path.read_bytes())
    devices = list(mesh.devices.flat)
    return serialize_executable.deserialize_and_load(
        payload, in_tree, out_tree, backend=devices[0].client, execution_devices=devices
    )
