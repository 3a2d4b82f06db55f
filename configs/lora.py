"""LoRA of rank 4 on every projection: T-Few's LoRA baseline, without its norms."""

import dataclasses

from peft_jax.config import Experiment, LoraConfig
from peft_jax.configs import tfew


def config() -> Experiment:
    # alpha 1: the released code scales the update by 1 / rank.
    targets = ("attention/(query|key|value|out)", "mlp/(wi|wi_0|wi_1|wo)")
    return dataclasses.replace(
        tfew.config(), method=("lora",), lora=LoraConfig(rank=4, alpha=1.0, targets=targets)
    )
