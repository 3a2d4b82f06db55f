"""Folding an adapter into the kernels and taking it out again, exactly."""

from __future__ import annotations

from peft_jax import tree
from peft_jax.errors import InputError
from peft_jax.methods.base import Method
from peft_jax.tree import Params


def fold_in(params: Params, method: Method, adapter: Params) -> tuple[Params, Params]:
    """Plain parameters with an adapter folded in, and what :func:`unfold` takes it out with.

    A folded kernel costs nothing at inference, and is rounded once: subtracting the update again
    would not give the old kernel back. What is folded over is kept as it was instead.

    Args:
      params: a backbone's tree.
      method, adapter: as trained on that backbone.
    Returns:
      The folded tree, which shares every leaf that the adapter does not change; and those that it
      does change, as they were (arrays of the backbone: no copy while that is in memory too).

    Raises:
      InputError: no plain kernel can express the method, such as a soft prompt.
    """
    if method.fold is None:
        raise InputError(
            f"{method.spec['name']} cannot be folded: no plain kernel expresses it; keep the "
            "adapter beside the backbone"
        )
    folded = method.fold(params, adapter)
    now = tree.flatten(folded)
    return folded, tree.unflatten(
        {path: leaf for path, leaf in tree.flatten(params).items() if now.get(path) is not leaf}
    )


def unfold(folded: Params, kept: Params) -> Params:
    """The backbone's parameters before :func:`fold_in`, bit for bit.

    Raises:
      InputError: ``kept`` does not belong to that tree.
    """
    flat, old = tree.flatten(folded), tree.flatten(kept)
    for path, leaf in old.items():
        if path not in flat or flat[path].shape != leaf.shape:
            raise InputError(f"{path!r} was not folded into these parameters")
    return tree.unflatten({path: old.get(path, leaf) for path, leaf in flat.items()})
