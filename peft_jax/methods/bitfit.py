"""BitFit: training the biases alone (Ben Zaken et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from peft_jax import tree
from peft_jax.backbones.base import Backbone, Slot, slots
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, make_method
from peft_jax.methods.merging import fold_leaves, merge
from peft_jax.tree import Params


def bitfit(targets: str | Sequence[str] | None = None) -> Method:
    """Float32 biases: copies of those that the checkpoint has, zeros where a projection has none.

    Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning", trains every bias of a
    BERT, the norms' included. Where a family has none (T5), Liu et al. 2022 add them to the
    projections; the function is unchanged at the start either way.

    Args:
      targets: regular expressions on the ends of the paths of modules (projections, and norms with
        a bias). None means every bias that the backbone has, and one for every projection in its
        layers that has none; a classification head is left to ``classification_head``.

    Folding gives plain parameters where the checkpoint has the biases, and raises InputError where
    they were added: no checkpoint of the family could hold them.
    """
    targets = (targets,) if isinstance(targets, str) else targets and tuple(targets)

    def init(key: jax.Array, backbone: Backbone) -> Params:
        del key  # starts at the backbone, or at zero
        own = tree.flatten(backbone.params)
        return tree.unflatten(
            {
                path: jnp.zeros(slot.shape, jnp.float32)
                if slot.kind == "bias"
                # A true copy: the step donates the stored tree.
                else jnp.array(own[path], jnp.float32, copy=True)
                for path, slot in _places(backbone, targets).items()
            }
        )

    def bind(stored: Params) -> Params:
        return tree.map_with_path(lambda _, leaf: leaf, stored)

    def fold(frozen: Params, stored: Params) -> Params:
        own = tree.flatten(frozen)
        added = [path for path in tree.flatten(stored) if path not in own]
        if added:
            raise InputError(
                f"{added[0]!r} cannot be folded: the backbone's projection has no bias, and a "
                "plain checkpoint no place for it; keep the adapter beside the backbone"
            )
        return fold_leaves(merge(frozen, bind(stored)))

    spec = {"name": "bitfit", "targets": targets and list(targets)}
    return make_method(init, bind, spec, foldable=True)._replace(fold=fold)


def _places(backbone: Backbone, targets: Sequence[str] | None) -> dict[str, Slot]:
    """The biases to train: path -> slot.

    Raises:
      InputError: a target matches no module that has or may have a bias.
    """
    own = tree.flatten(backbone.params)
    modules = {
        path.removesuffix("/bias"): (path, slot)
        for path, slot in slots(backbone.config).items()
        # A head that an adapter brings is none of the backbone's.
        if path.endswith("/bias") and (path in own or slot.kind == "bias")
    }
    if targets is None:
        chosen = [
            module
            for module, (path, _) in modules.items()
            if not module.startswith("classifier/") and (path in own or "/layers/" in module)
        ]
    else:
        chosen = tree.match(targets, modules)
    return dict(modules[module] for module in chosen)
