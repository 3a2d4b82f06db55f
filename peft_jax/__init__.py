"""Parameter-efficient fine-tuning in pure JAX.

A frozen backbone is one pytree; a method owns a small trainable pytree; pure functions merge the
two. Start with::

    import jax, peft_jax as pj

    backbone = pj.load_backbone("tiny")
    method = pj.compose(pj.ia3(), pj.lora(rank=4, targets="attention/(query|value)"))
    adapter = method.init(jax.random.key(0), backbone)
    params = pj.merge(backbone.params, method.bind(adapter))
    logits = backbone.logits(params, batch)

Only jax, optax and NumPy are imported here; seqio and TensorFlow, orbax, flax and matplotlib are
imported where they are used.
"""

from peft_jax._version import __version__
from peft_jax.adapter import load_adapter, save_adapter
from peft_jax.backbones import (
    CONFIGS,
    Backbone,
    abstract_backbone,
    backbone_config,
    init_backbone,
    load_backbone,
    save_backbone,
    slots,
)
from peft_jax.decoding import Decoding, Generated, generate, greedy
from peft_jax.errors import InputError
from peft_jax.methods import (
    Method,
    bank,
    bitfit,
    classification_head,
    compose,
    count,
    describe,
    full,
    ia3,
    lora,
    merge,
    prompt_tuning,
)
from peft_jax.methods import fold_leaves as fold
from peft_jax.scoring import score_choices
from peft_jax.train import make_train_step
from peft_jax.transformer import Config

__all__ = [
    "CONFIGS",
    "Backbone",
    "Config",
    "Decoding",
    "Generated",
    "InputError",
    "Method",
    "__version__",
    "abstract_backbone",
    "backbone_config",
    "bank",
    "bitfit",
    "classification_head",
    "compose",
    "count",
    "describe",
    "fold",
    "full",
    "generate",
    "greedy",
    "ia3",
    "init_backbone",
    "load_adapter",
    "load_backbone",
    "lora",
    "make_train_step",
    "merge",
    "prompt_tuning",
    "save_adapter",
    "save_backbone",
    "score_choices",
    "slots",
]
