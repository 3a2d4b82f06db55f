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
from peft_jax.ensembles import combine_scores, ensemble_scores, vote_texts
from peft_jax.errors import InputError
from peft_jax.exchange import load_peft, load_tfew, save_peft, save_tfew
from peft_jax.fisher import fisher_information
from peft_jax.methods import (
    Method,
    adalora,
    arithmetic,
    bank,
    bitfit,
    classification_head,
    clear_in_bank,
    compacter,
    compacter_plus_plus,
    compose,
    count,
    describe,
    dora,
    eject,
    fish_mask,
    fit_prefix,
    fold_in,
    full,
    houlsby_adapter,
    ia3,
    lora,
    low_rank_adapter,
    merge,
    multitask,
    norm_tuning,
    p_tuning,
    parallel_adapter,
    partial,
    pfeiffer_adapter,
    prefix_tuning,
    prompt_tuning,
    rank_one_scaling,
    replace_in_bank,
    said,
    split_tasks,
    tfew_adapter,
    top_layers,
    unfold,
    vera,
    vocabulary_rows,
    warp,
    with_information,
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
    "adalora",
    "arithmetic",
    "backbone_config",
    "bank",
    "bitfit",
    "classification_head",
    "clear_in_bank",
    "combine_scores",
    "compacter",
    "compacter_plus_plus",
    "compose",
    "count",
    "describe",
    "dora",
    "eject",
    "ensemble_scores",
    "fish_mask",
    "fisher_information",
    "fit_prefix",
    "fold",
    "fold_in",
    "full",
    "generate",
    "greedy",
    "houlsby_adapter",
    "ia3",
    "init_backbone",
    "load_adapter",
    "load_backbone",
    "load_peft",
    "load_tfew",
    "lora",
    "low_rank_adapter",
    "make_train_step",
    "merge",
    "multitask",
    "norm_tuning",
    "p_tuning",
    "parallel_adapter",
    "partial",
    "pfeiffer_adapter",
    "prefix_tuning",
    "prompt_tuning",
    "rank_one_scaling",
    "replace_in_bank",
    "said",
    "save_adapter",
    "save_backbone",
    "save_peft",
    "save_tfew",
    "score_choices",
    "slots",
    "split_tasks",
    "tfew_adapter",
    "top_layers",
    "unfold",
    "vera",
    "vocabulary_rows",
    "vote_texts",
    "warp",
    "with_information",
]
