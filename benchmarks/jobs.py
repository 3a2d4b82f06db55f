"""The jobs that both libraries run: the same weights, the same adapter, the same batches.

A *case* is one model size, one precision, one method and one job. Everything a worker needs is
written into a folder once (:func:`write_inputs`), so that neither library draws a number itself.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

# Both optimisers: decoupled weight decay, everything else at the libraries' common default.
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01

LORA_RANK = 8
VOCABULARY_START = 3  # no padding, EOS or unknown token in the random batches


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a batch: inputs, their length, choices of an input, length of a target."""

    inputs: int
    input_length: int
    choices: int
    target_length: int


@dataclasses.dataclass(frozen=True)
class Case:
    """What is run; ``shape`` is (B, S, C, T)."""

    size: str
    """A named configuration of peft_jax, such as "t5_v1_1_small"; or "toy"."""
    job: str
    """train | tfew | rank | decode."""
    method: str
    """ia3 | lora."""
    dtype: str
    """float32 | bfloat16."""
    shape: Shape

    @property
    def name(self) -> str:
        return f"{self.size} {self.job} {self.method} {self.dtype}"


SHAPES = {
    "train": Shape(8, 128, 1, 8),
    "tfew": Shape(8, 128, 4, 8),
    "rank": Shape(32, 128, 4, 8),
    "decode": Shape(8, 128, 1, 32),
}
TOY_SHAPES = {job: Shape(2, 8, min(s.choices, 2), 4) for job, s in SHAPES.items()}

# The methods that each job is timed with.
JOBS = [
    ("train", "ia3"),
    ("train", "lora"),
    ("tfew", "ia3"),
    ("rank", "ia3"),
    ("decode", "lora"),
]


def shapes(size: str) -> dict[str, Shape]:
    """Shape of every job's batch."""
    return TOY_SHAPES if size == "toy" else SHAPES


def cases(sizes: list[str], dtypes: list[str], jobs: list[str]) -> list[Case]:
    """Every case of these sizes, precisions and jobs, the cheap ones first."""
    return [
        Case(size, job, method, dtype, shapes(size)[job])
        for size in sizes
        for dtype in dtypes
        for job, method in JOBS
        if job in jobs
    ]


def toy_config():
    """Two layers, for the smoke test."""
    from peft_jax.transformer import Config

    return Config(
        family="t5", vocab_size=64, d_model=32, d_ff=48, num_heads=4, d_kv=8,
        encoder_layers=2, decoder_layers=2, dropout=0.0,
    )  # fmt: skip


def write_inputs(
    folder: Path,
    size: str,
    sizes_of_jobs: dict[str, Shape] | None = None,
    dtype: str = "float32",
) -> None:
    """A random backbone as a Hugging Face folder, LoRA factors and the batches' tokens as .npz.

    LoRA's B starts at zero in both libraries; only A is drawn, under the name of its module in the
    Hugging Face model, one array a layer.
    """
    import jax

    import peft_jax as pj
    from peft_jax.backbones.t5 import hugging_face_rules

    config = toy_config() if size == "toy" else pj.backbone_config(size)
    backbone = pj.init_backbone(
        dataclasses.replace(config, dropout=0.0), jax.random.key(0), name=size
    )
    if dtype != "float32":
        cast = jax.tree.map(lambda x: x.astype(dtype), backbone.params)
        backbone = dataclasses.replace(backbone, params=cast)
    pj.save_backbone(folder / "model", backbone)

    rng = np.random.default_rng(0)
    factors = {}
    for rule in hugging_face_rules(config):
        module = rule.ours.removesuffix("/kernel")
        if not module.endswith(("attention/query", "attention/value")):
            continue
        bound = config.d_model**-0.5
        shape = (LORA_RANK, config.d_model)
        for _, name in rule.names(config.encoder_layers):
            factors[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    np.savez(folder / "lora.npz", **factors)

    def tokens(*dims: int) -> np.ndarray:
        return rng.integers(VOCABULARY_START, config.vocab_size, dims, dtype=np.int32)

    for job, shape in (sizes_of_jobs or shapes(size)).items():
        np.savez(
            folder / f"{job}.npz",
            inputs=tokens(shape.inputs, shape.input_length),
            choices=tokens(shape.inputs, shape.choices, shape.target_length),
            label=rng.integers(0, shape.choices, shape.inputs, dtype=np.int32),
        )
