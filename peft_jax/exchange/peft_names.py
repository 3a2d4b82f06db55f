"""How PEFT names the tensors of an adapter: module, then what it adds to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peft_jax.exchange.modules import Names, missing

PREFIX = "base_model.model."


def modules_of(
    tensors: dict[str, np.ndarray], names: Names, suffixes: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """The tensors that end in one of the suffixes, by the projection they belong to; taken out.

    Raises:
      InputError: the backbone has no such projection.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in list(tensors):
        suffix = next((s for s in suffixes if name.endswith(f".{s}")), None)
        if suffix is None or not name.startswith(PREFIX):
            continue
        module = name.removeprefix(PREFIX).removesuffix(f".{suffix}")
        module = names.canonical(f"{module}.weight").removesuffix(".weight")
        if module not in names.linears:
            raise missing("module", module, names.linears, names.config)
        found.setdefault(module, {})[suffix] = tensors.pop(name)
    return found


def full_name(module: str, names: Names) -> str:
    """A projection's name in the class that the adapter is loaded onto."""
    return names.in_class(f"{module}.weight").removesuffix(".weight")
