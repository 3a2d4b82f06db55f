"""T-Few's baseline "BitFit": biases and norms, 1,331,200 parameters on T0-3B.

The paper says 300 steps, its code's configuration 1,000. Its pattern for the layers names the
feed-forward's output "w_o", which matches nothing: that projection gets no bias.
"""

from peft_jax.config import Experiment
from peft_jax.configs.tfew import baseline


def config() -> Experiment:
    return baseline(
        "bitfit",
        "norm_tuning",
        steps=1000,
        learning_rate=3e-4,
        bitfit={"targets": ("attention/(query|key|value|out)", "mlp/(wi|wi_0|wi_1)")},
    )
