"""Norm tuning: training the scales and biases of the norms alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax import transformer, tree
from peft_jax.backbones.base import Backbone
from peft_jax.methods.base import Method, make_method
from peft_jax.transformer import Config
from peft_jax.tree import Params


def norm_tuning(targets: str | Sequence[str] | None = None) -> Method:
    """Float32 copies of every norm's scale, and of its bias where it has one.

    Unchanged at the start, and folds. It is the baseline "LayerNorm" of Liu et al. 2022, section
    3.3 (Houlsby et al. 2019, section 3.5, try it too). A T5 of L layers in either stack has
    (5 L + 2) d_model: 249,856 on T0-3B.

    Args:
      targets: regular expressions on the ends of the paths of norms, such as ``mlp_norm`` or
        ``decoder/.*``. None means every norm of the stacks: of the embeddings, in front of the
        branches and behind them, of queries and keys, and the final one. The norm in front of a
        masked-LM's head is part of that head, and trained where it is named (``head_norm``).

    Raises:
      InputError: a target matches no norm.
    """
    targets = (targets,) if isinstance(targets, str) else targets and tuple(targets)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # starts at the backbone
        return tree.unflatten(norm_copies(backbone, targets))

    def bind(stored: Params) -> Params:
        return tree.map_with_path(lambda _, leaf: leaf, stored)

    spec = {"name": "norm_tuning", "targets": targets and list(targets)}
    return make_method(init, bind, spec, foldable=True)


def norm_copies(backbone: Backbone, targets: Sequence[str] | None = None) -> dict[str, jax.Array]:
    """Path -> float32 copy of the leaves of the norms that ``targets`` name, or of all."""
    own = tree.flatten(backbone.params)
    chosen = _norms(backbone.config)
    if targets is None:
        chosen = [module for module in chosen if module != "head_norm"]
    else:
        chosen = tree.match(targets, chosen)
    # True copies: the step donates the stored tree.
    return {
        path: jnp.array(own[path], jnp.float32, copy=True)
        for path in own
        if path.rpartition("/")[0] in chosen
    }


def _norms(config: Config) -> list[str]:
    """The paths of all norms of a backbone."""
    modules = (path.rpartition("/")[0] for path in tree.flatten(transformer.specification(config)))
    return [module for module in dict.fromkeys(modules) if module.endswith("norm")]
