"""Which backbones there are: families, sizes, parameters, and what was checked of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from peft_jax import tree
from peft_jax.backbones.base import abstract_backbone
from peft_jax.backbones.families import CONFIGS
from peft_jax.errors import InputError
from peft_jax.transformer import Config

_TEXT = ("logits", "gradients", "greedy and beam search")

CHECKED: dict[str, tuple[str, ...]] = {
    "t5": (*_TEXT, "choices"),
    "mt5": (*_TEXT, "choices"),
    "bert": ("logits", "gradients", "classes", "MiniLM's embeddings"),
    "roberta": ("logits", "gradients", "classes"),
    "xlm-roberta": ("logits", "gradients", "classes"),
    "bart": (*_TEXT, "classes"),
    **dict.fromkeys(
        ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _TEXT
    ),
}
"""By family: what is held against transformers in tests/, on random models and in float32."""

_KINDS = {
    "encoder_decoder": "encoder-decoder",
    "encoder": "encoder",
    "decoder": "decoder",
}


class Row(NamedTuple):
    """A named configuration; ``parameters`` counts tied ones once."""

    name: str
    family: str
    kind: str
    layers: str
    d_model: int
    heads: str
    parameters: int


def rows(names: Sequence[str] = ()) -> list[Row]:
    """The named configurations whose name or family starts as one of ``names`` says; all if empty.

    Raises:
      InputError: one of them matches nothing.
    """
    for wanted in names:
        if not any(_matches(wanted, name, config) for name, config in CONFIGS.items()):
            families = dict.fromkeys(config.family for config in CONFIGS.values())
            raise InputError(
                f"no backbone or family is named {wanted!r}; {tree.nearest(wanted, CONFIGS)}; "
                f"families: {', '.join(families)}"
            )
    return [
        _row(name, config)
        for name, config in CONFIGS.items()
        if not names or any(_matches(wanted, name, config) for wanted in names)
    ]


def _matches(wanted: str, name: str, config: Config) -> bool:
    return name.startswith(wanted) or config.family == wanted


def _row(name: str, config: Config) -> Row:
    depths = (config.encoder_layers, config.decoder_layers)
    shared = f"{config.num_heads}/{config.kv_heads}"
    return Row(
        name,
        config.family,
        _KINDS[config.kind],
        "+".join(str(depth) for depth in depths if depth),
        config.d_model,
        shared if config.kv_heads != config.num_heads else str(config.num_heads),
        tree.count(abstract_backbone(config).params),
    )


def markdown() -> str:
    """The table of docs/backbones.md: a line for each family, with its sizes."""
    lines = [
        "| family | kind | named configurations: parameters | agrees with transformers in |",
        "|---|---|---|---|",
    ]
    found = rows()
    for family in dict.fromkeys(row.family for row in found):
        own = [row for row in found if row.family == family]
        sizes = ", ".join(f"`{row.name}` {row.parameters:,}" for row in own)
        lines.append(f"| {family} | {own[0].kind} | {sizes} | {', '.join(CHECKED[family])} |")
    return "\n".join(lines) + "\n"
