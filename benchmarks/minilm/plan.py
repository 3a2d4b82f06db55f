"""What is run: the datasets, the methods, the schedule, and the learning rates with their search.

A method is a line of ``METHODS``; everything else (runs, table, picture) follows from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

WIDTH = 384  # the model's
SEEDS = 5
BATCH = 16

# Both sides: AdamW, a linear rise over a tenth of the steps, then a linear fall to zero.
WARMUP = 0.1
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
HEAD_STD = 0.02  # BERT's initialisation of a new head

LORA_RANK = 8
LORA_ALPHA = 16.0


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Rows to read and how long to train on them."""

    label: str
    parts: tuple[tuple[str, ...], ...]
    """The fields of each segment, joined by a space; two segments make a pair."""
    labels: tuple[Any, ...]
    steps: int
    lengths: tuple[int, ...]
    """A batch is padded to the first that holds its longest example; the last one cuts."""
    evaluation_rows: int | None = None
    """The first so many of the validation split; None: all."""

    @property
    def limit(self) -> int:
        """Tokens of an example, specials included."""
        return self.lengths[-1]


# Two cores of a CPU train some 3,000 tokens a second: lengths and steps are what lets 160 runs end
# within the hour. Three lengths a dataset, since each is a program to compile.
DATASETS = {
    "sst2": Dataset("SST-2", (("sentence",),), (0, 1), 64, (24, 32, 64)),
    "ag_news": Dataset(
        "AG News", (("title", "description"),), (0, 1, 2, 3), 32, (48, 64, 96), evaluation_rows=500
    ),
    "superglue_rte": Dataset(
        "RTE", (("premise",), ("hypothesis",)), ("entailment", "not_entailment"), 16,
        (48, 80, 128),
    ),
    "superglue_cb": Dataset(
        "CB", (("premise",), ("hypothesis",)), ("entailment", "contradiction", "neutral"), 32,
        (64, 96, 128),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A method on both sides; the classification head is trained with each of them."""

    label: str
    learning_rate: float
    """The best of ``search`` on held-out training rows."""
    search: tuple[float, ...]
    ours: dict[str, Any]
    """What ``peft_jax.methods.from_spec`` makes the method from."""
    peer: tuple[str, Any] | None
    """("LoraConfig" or another of peft's, its arguments), ("parameters", a regular expression for
    the names of torch parameters that are trained), or None where the peer has no such method."""


_FEED_FORWARD = r".*layer\.\d+\.output\.dense"

METHODS = {
    "full": Tuning(
        "full fine-tuning", 2e-4, (1e-4, 2e-4, 4e-4), {"name": "full"}, ("parameters", "")
    ),
    "lora": Tuning(
        f"LoRA r={LORA_RANK}",
        5e-3,
        (2e-3, 5e-3, 1e-2),
        {"name": "lora", "rank": LORA_RANK, "alpha": LORA_ALPHA},
        (
            "LoraConfig",
            {"r": LORA_RANK, "lora_alpha": LORA_ALPHA, "target_modules": ["query", "value"]},
        ),
    ),
    # By default peft would also scale what the attention's output projection reads, which the
    # paper does not.
    "ia3": Tuning(
        "(IA)³",
        5e-2,
        (1e-2, 2e-2, 5e-2, 1e-1),
        {"name": "ia3"},
        (
            "IA3Config",
            {
                "target_modules": rf".*self\.(key|value)|{_FEED_FORWARD}",
                "feedforward_modules": _FEED_FORWARD,
            },
        ),
    ),
    "bitfit": Tuning(
        "BitFit", 5e-3, (2e-3, 5e-3, 1e-2), {"name": "bitfit"}, ("parameters", r"\.bias$")
    ),
}

SIDES = ("peer", "ours")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its evaluation, on one side."""

    side: str
    dataset: str
    method: str
    seed: int
    learning_rate: float
    steps: int
    dropout: float = 0.0
    held_out: bool = False
    """Whether every fifth training row is kept for evaluation, in place of the validation split."""


def warmup(steps: int) -> int:
    """Steps of the rise."""
    return round(WARMUP * steps)


def runs(
    datasets: list[str], methods: list[str], seeds: range, sides: list[str], dropout: float = 0.0
) -> Iterator[Run]:
    """The study, the sides in turn so that whatever else the machine does falls on both."""
    for dataset in datasets:
        for seed in seeds:
            for method in methods:
                for side in sides:
                    if side == "ours" or METHODS[method].peer is not None:
                        rate = METHODS[method].learning_rate
                        steps = DATASETS[dataset].steps
                        yield Run(side, dataset, method, seed, rate, steps, dropout)


# RTE stays at chance in so few steps, whatever the learning rate: it has no say.
SEARCHED = ("sst2", "ag_news", "superglue_cb")


def search(methods: list[str], side: str) -> Iterator[Run]:
    """One run for each learning rate, on a seed that the study does not use."""
    for dataset in SEARCHED:
        for method in methods:
            for rate in METHODS[method].search:
                steps = DATASETS[dataset].steps
                yield Run(side, dataset, method, SEEDS, rate, steps, held_out=True)


def search_scores(lines: list[dict[str, Any]]) -> dict[str, dict[float, float]]:
    """Method -> learning rate -> accuracy on held-out rows, the mean over the datasets."""
    scores: dict[str, dict[float, list[float]]] = {}
    for line in lines:
        rates = scores.setdefault(line["run"]["method"], {})
        rates.setdefault(line["run"]["learning_rate"], []).append(line["result"]["accuracy"])
    return {
        method: {rate: sum(found) / len(found) for rate, found in sorted(rates.items())}
        for method, rates in scores.items()
    }
