"""Prompt tuning: trained rows among the embedded tokens (Lester et al. 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.prompt_places import (
    Placement,
    check_placement,
    check_stack,
    placed,
    row_name,
)
from peft_jax.methods.texts import drawn_rows, read_embedding, token_ids
from peft_jax.transformer import Config
from peft_jax.tree import Params

INITS = ("random", "vocabulary", "labels", "text", "file")
WHERE = ("input", "encoder", "decoder", "both")


def prompt_tuning(
    length: int = 20,
    init: Literal["random", "vocabulary", "labels", "text", "file"] = "vocabulary",
    where: Literal["input", "encoder", "decoder", "both"] = "input",
    *,
    labels: tuple[str, ...] = (),
    text: str = "",
    file: str | Path | None = None,
    vocabulary_range: tuple[int, int] = (0, 5000),
    placement: Placement = "front",
    per_layer: bool = False,
) -> Method:
    """A soft prompt P [length, d_model], read as if its rows were embedded tokens.

    An encoder prompt takes part in relative positions and cross-attention; a decoder prompt stands
    before the start token and its own outputs are dropped. T-Few's baseline has both. Trained are
    length * d_model parameters per stack, times its layers with ``per_layer``. The function changes
    at the start.

    Args:
      length: number of rows.
      init: where the rows come from (Lester et al., section 3.2). "random": uniform in [-0.5, 0.5];
        "vocabulary": embeddings of tokens drawn without replacement from ``vocabulary_range``;
        "labels": the mean embedding of each class label's tokens (at most ``length`` labels), the
        remaining rows drawn from the vocabulary; "text": the embeddings of a text's tokens,
        repeated or cut to the length;
        "file": a ``.npy`` array [length, d_model].
      where: "input", the stack that reads the input; or by name "encoder", "decoder" or "both"
        (two independent prompts).
      labels: of the init of that name.
      text: of the init of that name.
      file: of the init of that name.
      vocabulary_range: first and one past the last token id to draw from. The published
        vocabularies are sorted by frequency; T-Few draws from (3, 5003).
      placement: "front" of the input; "after_first", behind its first token ([CLS], BOS); "suffix",
        behind its last one (EOS included); or "markers", where a template or text says ``<soft>``
        or ``<soft 3>`` (hybrid prompts, PPT).
      per_layer: whether each layer has rows of its own, which take the place of what the layer
        below made of the prompt (T5X's prompt-tuning, "per-layer prompts"); at the front alone.
    """
    if length < 1:
        raise InputError(f"length {length} must be at least 1")
    if init not in INITS:
        raise InputError(f"init {init!r} is unknown; one of {', '.join(INITS)}")
    if where not in WHERE:
        raise InputError(f"where {where!r} is unknown; one of {', '.join(WHERE)}")
    given = {"labels": tuple(labels), "text": text, "file": file}
    if init in given and not given[init]:
        raise InputError(f"init {init!r} needs the argument {init}=...")
    if init == "labels" and len(labels) > length:
        raise InputError(f"{len(labels)} labels do not fit a prompt of length {length}")
    check_placement(placement)
    if per_layer and placement != "front":
        raise InputError(
            f"per_layer: rows of each layer stand in front, not at placement {placement!r}"
        )

    def rows(key: jax.Array, backbone: Backbone) -> jax.Array:
        width = backbone.config.d_model
        if init == "random":
            return jax.random.uniform(key, (length, width), jnp.float32, -0.5, 0.5)
        if init == "file":
            return _from_file(Path(str(file)), (length, width))
        embedding = read_embedding(backbone)
        if init == "text":
            (ids,) = token_ids([text], backbone)
            return embedding[np.resize(ids, length)].astype(jnp.float32)
        drawn = drawn_rows(key, backbone, length, vocabulary_range)
        if init == "vocabulary":
            return drawn
        encoded = token_ids(labels, backbone, "label")
        means = [embedding[ids].astype(jnp.float32).mean(0) for ids in encoded]
        return jnp.concatenate([jnp.stack(means), drawn[len(means) :]])

    def of_stack(key: jax.Array, backbone: Backbone, stack: str) -> Params:
        check_stack(placement, stack, backbone.config)
        if not per_layer:
            return {row_name(placement): rows(key, backbone)}
        keys = jax.random.split(key, backbone.config.depth(f"{stack}/"))
        return {"layers": {"prompt": jnp.stack([rows(k, backbone) for k in keys])}}

    def init_tree(key: jax.Array, backbone: Backbone) -> Params:
        config = backbone.config
        named = ("encoder", "decoder") if where == "both" else (where,)
        stacks = [stack_of(name, config) for name in named]
        keys = jax.random.split(key, len(stacks))
        return {s: of_stack(k, backbone, s) for s, k in zip(stacks, keys, strict=True)}

    def bind_stack(leaves: Params) -> Params:
        if not per_layer:
            return placed(leaves[row_name(placement)], placement)
        # The first layer's rows hold the places that every layer then fills with its own.
        deep = leaves["layers"]["prompt"]
        return {"prompt": deep[0], "layers": {"prompt": deep}}

    def bind(stored: Params) -> Params:
        return {stack: bind_stack(leaves) for stack, leaves in stored.items()}

    spec = {
        "name": "prompt_tuning",
        "length": length,
        "init": init,
        "where": where,
        "labels": list(labels),
        "text": text,
        "file": None if file is None else str(file),
        "vocabulary_range": list(vocabulary_range),
        "placement": placement,
        "per_layer": per_layer,
    }
    return make_method(init_tree, bind, spec, foldable=False)


def stack_of(where: str, config: Config) -> str:
    """The stack that "input", "encoder" or "decoder" means; InputError if there is none."""
    stack = config.input_stack if where == "input" else where
    if not config.depth(f"{stack}/"):
        raise InputError(
            f"where {where!r}: a {config.family} has no such stack; it has the {config.input_stack}"
        )
    return stack


def _from_file(path: Path, shape: tuple[int, int]) -> jax.Array:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"prompt file {path} cannot be read as .npy: {error}") from None
    if array.shape != shape:
        raise InputError(f"prompt file {path} has shape {array.shape}; wanted {shape}")
    return jnp.asarray(array, jnp.float32)
