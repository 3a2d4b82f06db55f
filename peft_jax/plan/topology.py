"""Slices of TPU pods that are not there, as devices to compile for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from peft_jax.errors import InputError
from peft_jax.plan.chips import Chip, find_chip

# What libtpu reads when it is loaded. The compiler's threads have small stacks, which deep nests of
# fusions overflow; several processes may compile at once, since no device is used.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
_STACK = "--fibers_default_thread_stack_size=4194304"


class Topology(NamedTuple):
    """A slice.

    Attributes:
      name: as the compiler names it, such as "v5e:4x4".
      chip: what it is made of.
      shape: chips along each dimension of the torus.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total

    def is_ring(self, dimension: int) -> bool:
        """Whether the last chip along a dimension is linked with the first."""
        size = self.shape[dimension]
        return size > 2 and size % self.chip.wraps == 0


# Cloud's slices by the number of chips. v5e and v6e are squares, or two squares side by side.
_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16)}
_FLAT[256] = (16, 16)
_SOLID = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4)}
_SOLID |= {128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16)}


def parse_topology(name: str) -> Topology:
    """The slice that a name means.

    Args:
      name: the compiler's, "v5e:4x4", or Cloud's, "v5e-16", "v4-64". Cloud counts chips of v5e and
        v6e and TensorCores, two a chip, of v4 and v5p: "v5p-128" has 64 chips.

    Raises:
      InputError: neither, or a slice that does not exist.
    """
    by_shape = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", name)
    by_count = re.fullmatch(r"([a-z0-9]+)-(\d+)", name)
    if by_shape:
        chip = find_chip(by_shape[1])
        shape = tuple(int(size) for size in by_shape[2].split("x"))
    elif by_count:
        chip = find_chip(by_count[1])
        shape = _cloud_shape(name, chip, int(by_count[2]))
    else:
        raise InputError(
            f"topology {name!r} is not understood; give the compiler's name, such as v5e:4x4, or "
            "Cloud's, such as v5e-16"
        )
    if len(shape) != chip.dimensions or min(shape) < 1:
        example = "x".join(["4"] * chip.dimensions)
        raise InputError(f"topology {name!r}: {chip.name} needs a shape such as {example}")
    return Topology(f"{chip.name}:{'x'.join(map(str, shape))}", chip, shape)


def _cloud_shape(name: str, chip: Chip, count: int) -> tuple[int, ...]:
    known = _FLAT if chip.dimensions == 2 else _SOLID
    chips, rest = divmod(count, chip.cores)
    if rest or chips not in known:
        sizes = ", ".join(f"{chip.name}-{n * chip.cores}" for n in known)
        raise InputError(f"topology {name!r} is not a slice that Cloud has; one of {sizes}")
    return known[chips]


def prepare_environment() -> None:
    """Sets what the compiler reads when it is loaded; nothing that the user has set is changed.

    Must run before the process has asked for any device: the CPU is then the only one it has.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    arguments = os.environ.get("LIBTPU_INIT_ARGS", "")
    if "stack_size" not in arguments:
        os.environ["LIBTPU_INIT_ARGS"] = f"{arguments} {_STACK}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_platforms", "cpu")


def open_devices(topology: Topology) -> Sequence[Any]:
    """The slice's devices, for ``sharding.make_mesh``. Programs can be compiled for them, not run.

    Call :func:`prepare_environment` first.

    Raises:
      InputError: the compiler is not installed, or knows no such slice.
    """
    from jax.experimental import topologies

    prepare_environment()
    given: dict[str, Any] = {}
    if topology.chip.name == "v4":
        # As on Cloud: the two cores of a chip are one device.
        given["chip_config_name"] = "megacore"
    # A host has four chips or fewer; the compiler assumes 2x2.
    if topology.shape[0] < 2 or topology.shape[1] < 2:
        given["chips_per_host_bounds"] = [*(min(2, n) for n in topology.shape), 1][:3]
    try:
        found = topologies.get_topology_desc(topology.name, "tpu", **given)
    except Exception as error:
        if "libtpu" in str(error) and "lockfile" not in str(error):
            raise InputError(
                f"the TPU compiler is not installed; pip install libtpu ({error})"
            ) from None
        raise InputError(f"topology {topology.name}: {str(error).splitlines()[0]}") from None
    return found.devices
