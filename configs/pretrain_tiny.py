"""The embedded backbone: the run that made the checkpoint in peft_jax/backbones/tiny."""

from peft_jax.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """Gives the shipped checkpoint again, up to the rounding of another processor.

    The vocabulary is the shipped one: it was trained on the embedded tasks' texts, as it is by
    default, and would change with every held-out task that is added or reworded.
    """
    return PretrainConfig(
        vocabulary="tiny", steps=6_000, batch_tokens=2_048, learning_rate=1e-3, seed=0
    )
