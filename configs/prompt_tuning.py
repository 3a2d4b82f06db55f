"""Prompt tuning as T-Few's baseline runs it: 100 rows before the encoder and the decoder."""

from peft_jax.configs.tfew_prompt_100 import config

__all__ = ["config"]
