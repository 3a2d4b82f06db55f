"""Makes denoising.json: what t5.data.preprocessors of t5 0.9.4 makes of made-up tokens.

Run where t5 0.9.4 is installed (pip install --no-deps t5==0.9.4, with seqio, gin-config, babel)::

    python tests/golden/make_denoising.py
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf
from t5.data import preprocessors

VOCAB_SIZE = 1_000
LENGTHS = [*range(8, 40), 64, 100, 114, 128, 256, 511, 512, 513, 1024, 2048]
SPANS = [(0.15, 3.0), (0.5, 3.0), (0.15, 1.0), (0.3, 8.0)]


class Vocabulary:
    """All that the preprocessors read of a vocabulary."""

    vocab_size = VOCAB_SIZE


def helper() -> list[dict]:
    """Lengths of chunks and targets."""
    return [
        {
            "spans": [density, mean],
            "inputs_length": length,
            "lengths": preprocessors.random_spans_helper(
                inputs_length=length,
                noise_density=density,
                mean_noise_span_length=mean,
                extra_tokens_per_span_inputs=1,
                extra_tokens_per_span_targets=1,
            ),
        }
        for density, mean in SPANS
        for length in LENGTHS
    ]


def mask(length: int, density: float, mean: float, seed: int) -> np.ndarray:
    """A mask of the published code."""
    seeds = tf.constant([[seed, 1], [seed, 2]], tf.int32)
    return preprocessors.random_spans_noise_mask(length, density, seeds, mean).numpy()


def counts() -> list[dict]:
    """How many tokens are noise, and in how many spans, for every length."""
    made = []
    for density, mean in SPANS[:2]:
        masks = [mask(length, density, mean, length) for length in range(1, 120)]
        made.append(
            {
                "spans": [density, mean],
                "noise": [int(m.sum()) for m in masks],
                "runs": [int((m & ~np.r_[False, m[:-1]]).sum()) for m in masks],
            }
        )
    return made


def corrupted() -> list[dict]:
    """Inputs and targets under masks, of all kinds: also ones that begin with noise."""
    rng = np.random.default_rng(0)
    masks = [mask(40, 0.15, 3.0, 0), mask(33, 0.5, 3.0, 1), mask(1, 0.15, 3.0, 2)]
    masks += [rng.random(20) < 0.4 for _ in range(4)] + [np.ones(5, bool), np.zeros(5, bool)]
    made = []
    for noise in masks:
        tokens = rng.integers(2, 800, len(noise))
        arguments = (tf.constant(tokens, tf.int32), tf.constant(noise), Vocabulary, None)
        made.append(
            {
                "tokens": tokens.tolist(),
                "mask": noise.astype(int).tolist(),
                "inputs": preprocessors.noise_span_to_unique_sentinel(*arguments).numpy().tolist(),
                "targets": preprocessors.nonnoise_span_to_unique_sentinel(*arguments)
                .numpy()
                .tolist(),
            }
        )
    return made


def chunks() -> dict:
    """Documents put together and cut."""
    rng = np.random.default_rng(1)
    documents = [rng.integers(2, 800, n).tolist() for n in rng.integers(0, 9, 40)]
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"targets": tokens} for tokens in documents),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )
    dataset = preprocessors.select_random_chunk(dataset, {}, max_length=65_536)  # no empty ones
    dataset = preprocessors.reduce_concat_tokens(dataset, batch_size=16)
    dataset = preprocessors.split_tokens(dataset, max_tokens_per_segment=7)
    made = [row["targets"].tolist() for row in dataset.as_numpy_iterator()]
    return {"documents": documents, "together": 16, "length": 7, "chunks": made}


def main() -> None:
    made = {
        "vocab_size": VOCAB_SIZE,
        "helper": helper(),
        "counts": counts(),
        "corrupted": corrupted(),
        "chunks": chunks(),
    }
    target = Path(__file__).with_name("denoising.json")
    target.write_text(json.dumps(made) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
