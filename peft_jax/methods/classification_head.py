"""A classification or regression head, trained beside a method and saved in its adapter."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from peft_jax import transformer, tree
from peft_jax.backbones.base import Backbone
from peft_jax.errors import InputError
from peft_jax.methods.base import Method, make_method
from peft_jax.tree import Params


def classification_head(labels: int = 2, std: float = 0.02) -> Method:
    """The head that ``transformer.classify`` reads, as leaves of its own.

    Compose it with what adapts the backbone: ``compose(lora(8), classification_head(2))``. Its form
    is the family's, as transformers' ``...ForSequenceClassification`` has it: a tanh layer
    (``dense``) in a RoBERTa, a BART, a T5 and a BERT without pooler, and an output projection
    (``out``), without bias in decoder-only models.

    A backbone that was loaded with a trained head of as many labels starts from that one.

    Args:
      labels: classes; 1 for regression.
      std: of the kernels' initial values; biases start at zero (Devlin et al. 2019).
    """
    if not isinstance(labels, int) or labels < 1:
        raise InputError(f"labels {labels!r} must be a whole number of at least 1")
    if not std >= 0:
        raise InputError(f"std {std!r} must be at least 0")

    def init(key: jax.Array, backbone: Backbone) -> Params:
        config = backbone.config
        if config.num_labels not in (0, labels):
            raise InputError(
                f"labels {labels} do not fit the backbone's own head of {config.num_labels} labels"
            )
        if config.num_labels:
            own = backbone.params["classifier"]
            return {"classifier": jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), own)}
        spec = tree.map_with_path(
            lambda path, s: s._replace(std=std if path.endswith("/kernel") else 0.0),
            {"classifier": transformer.classifier_spec(config, labels)},
        )
        return transformer.draw(key, spec)

    def bind(stored: Params) -> Params:
        return tree.map_with_path(lambda _, leaf: leaf, stored)

    spec = {"name": "classification_head", "labels": labels, "std": std}
    return make_method(init, bind, spec, foldable=True)
