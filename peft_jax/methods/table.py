"""Which methods there are: formula, place, size, and what can be done with each.

Everything is asked of the code: formulas of the factories' docstrings, counts of ``init`` on
shapes, and the last columns by doing it on a small backbone of shapes.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from peft_jax import tree
from peft_jax.backbones.base import Backbone, abstract_backbone
from peft_jax.backbones.families import CONFIGS
from peft_jax.errors import InputError
from peft_jax.methods import METHODS, Method, bank, count, merge
from peft_jax.transformer import Config

COUNTED_ON = "t0_3b"

# What nothing can be counted without, and no default says.
_GIVEN: dict[str, dict[str, Any]] = {
    "partial": {"targets": "norm/scale"},
    "vocabulary_rows": {"ids": (1,)},
}
_SMALL = Config("t5", 57, 64, 96, 2, 32, 2, 2, dropout=0.0)
# The same with biases, which a T5 has none of.
_BIASED = Config(
    "gpt2", 57, 64, 96, 2, 32, 0, 2, norm="layer", gated=False, qkv_bias=True, out_bias=True,
    mlp_bias=True, positions="learned", max_positions=32,
)  # fmt: skip
# Sizes that fit them, where the defaults are those of large models.
_FITTING: dict[str, dict[str, Any]] = {
    "compacter": {"reduction_factor": 8},
    "compacter_plus_plus": {"reduction_factor": 8},
    "said": {"dimension": 500},
    "fish_mask": {"choice": "random", "share": 0.1},
    "top_layers": {"count": 1},
}


class Row(NamedTuple):
    """A method with its defaults.

    Attributes:
      name: of the factory, ``pj.<name>``.
      formula: the first sentence of its docstring.
      places: the modules of an encoder-decoder model that its leaves lie in, by default.
      parameters: trained on T0-3B.
      folds: "yes", "no", or "where biases are": whether plain kernels can express it.
      banked: whether a batch can pick it by input.
      exchanged: whether Hugging Face PEFT's folders are written and read.
    """

    name: str
    formula: str
    places: str
    parameters: int
    folds: str
    banked: bool
    exchanged: bool


def rows(names: Sequence[str] = ()) -> list[Row]:
    """The methods of these names, or all.

    Raises:
      InputError: there is none of a name.
    """
    for name in names:
        if name not in METHODS:
            raise InputError(f"no method is named {name!r}; {tree.nearest(name, METHODS)}")
    return [_row(name) for name in names or METHODS]


def description(name: str) -> str:
    """How a factory is called, and what its docstring says."""
    signature = inspect.signature(METHODS[name])
    arguments = ", ".join(
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in signature.parameters.values()
    )
    return f"pj.{name}({arguments})\n\n{inspect.cleandoc(METHODS[name].__doc__ or '')}"


@functools.cache
def _row(name: str) -> Row:
    from peft_jax.exchange import hugging_face

    method = METHODS[name](**_GIVEN.get(name, {}))
    stored = _shapes(method, abstract_backbone(CONFIGS[COUNTED_ON]))
    small = METHODS[name](**_GIVEN.get(name, {}) | _FITTING.get(name, {}))
    return Row(
        name,
        _first_sentence(METHODS[name]),
        _places(small),
        count(stored),
        _folds(small),
        _banked(small),
        name in hugging_face.WRITERS,
    )


def _shapes(method: Method, backbone: Backbone) -> Any:
    return jax.eval_shape(method.init, jax.random.key(0), backbone)


def _first_sentence(factory) -> str:
    text = " ".join(inspect.cleandoc(factory.__doc__).partition("\n\n")[0].split())
    return text.removesuffix(".").replace("``", "`")


def _places(method: Method) -> str:
    """Where a T5 reads the leaves: ``attention/query, attention/value``, without stacks."""
    backbone = abstract_backbone(_SMALL)
    bound = jax.eval_shape(method.bind, _shapes(method, backbone))
    modules = dict.fromkeys(_module(path) for path in tree.flatten(bound))
    for whole, parts in _WHOLE.items():
        if modules.keys() >= set(parts):
            modules = {whole: None} | {m: None for m in modules if m not in parts}
    return "everywhere" if modules.keys() >= _EVERYTHING else ", ".join(modules)


_WHOLE = {
    "attention": [f"attention/{name}" for name in ("query", "key", "value", "out")],
    "mlp": [f"mlp/{name}" for name in ("wi_0", "wi_1", "wo")],
    "head": ["lm_head"],
}
_EVERYTHING = {"attention", "mlp", "norms", "token_embedder"}


def _module(path: str) -> str:
    """The module of a leaf; the stacks and their attentions alike, and all norms in one."""
    module, _, leaf = path.rpartition("/")
    module = re.sub(r"^(encoder|decoder)(/layers)?(/|$)", "", module)
    module = re.sub(r"(self|cross)_attention", "attention", module)
    if re.search(r"norm$", module):
        return "norms"
    if "_adapter/" in module:
        return module.rpartition("/")[0]  # without the activation
    return module or leaf


def _folds(method: Method) -> str:
    if method.fold is None:
        return "no"
    for config, answer in ((_SMALL, "yes"), (_BIASED, "where biases are")):
        backbone = abstract_backbone(config)
        try:
            jax.eval_shape(method.fold, backbone.params, _shapes(method, backbone))
        except InputError:
            continue
        return answer
    return "no"


def _banked(method: Method) -> bool:
    backbone = abstract_backbone(_SMALL)

    def in_a_bank(params, stored):
        return merge(params, bank([(method, stored)] * 2))

    try:
        jax.eval_shape(in_a_bank, backbone.params, _shapes(method, backbone))
    except InputError:
        return False
    return True


def markdown() -> str:
    """The table of docs/methods.md: a line for each method."""
    lines = [
        "| `pj.` | what | where | trained on T0-3B | folds | bank | PEFT's folders |",
        "|---|---|---|--:|---|---|---|",
    ]
    for row in rows():
        yes = ("yes" if value else "no" for value in (row.banked, row.exchanged))
        cells = (f"`{row.name}`", row.formula, row.places, f"{row.parameters:,}", row.folds, *yes)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
