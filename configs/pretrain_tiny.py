"""The embedded backbone: the run that made the checkpoint in peft_jax/backbones/tiny."""

from peft_jax.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """Gives the shipped checkpoint again, up to the rounding of another processor."""
    return PretrainConfig(steps=6_000, batch_tokens=2_048, learning_rate=1e-3, seed=0)
