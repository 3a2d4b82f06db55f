"""Where the rows of a prompt stand among the tokens that a stack reads."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from peft_jax.errors import InputError
from peft_jax.transformer import Config
from peft_jax.tree import Params

Placement = Literal["front", "after_first", "suffix", "markers"]
PLACEMENTS: tuple[Placement, ...] = ("front", "after_first", "suffix", "markers")
# What ``soft_places`` says of a row, see ``transformer.place_soft_tokens``.
_CODES = {"after_first": 1, "suffix": 2}


def check_placement(placement: str) -> None:
    """Raises InputError unless rows can be placed so."""
    if placement not in PLACEMENTS:
        raise InputError(f"placement {placement!r} is unknown; one of {', '.join(PLACEMENTS)}")


def check_stack(placement: str, stack: str, config: Config) -> None:
    """Raises InputError for rows among the tokens of a decoder that reads no input."""
    if placement != "front" and stack != config.input_stack:
        raise InputError(
            f"placement {placement!r} is for the stack that reads the input, the "
            f"{config.input_stack}; in the {stack} a prompt stands in front"
        )


def row_name(placement: str) -> str:
    """The leaf of a stack that holds rows placed so."""
    return "prompt" if placement == "front" else "soft_tokens"


def marker_rows(bound: Params) -> int:
    """How many rows a method's bound leaves have for markers; works on abstract trees too."""
    found = [stack["soft_tokens"] for name, stack in bound.items() if "soft_tokens" in stack]
    return found[0].shape[-2] if found else 0


def placed(rows: jax.Array, placement: str) -> Params:
    """A stack's leaves for rows [P, D]."""
    leaves: Params = {row_name(placement): rows}
    if placement in _CODES:
        leaves["soft_places"] = jnp.full(rows.shape[0], _CODES[placement], jnp.int32)
    return leaves
