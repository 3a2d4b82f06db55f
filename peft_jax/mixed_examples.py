"""Several tasks as one: what a run trains on together, and evaluates one by one."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from peft_jax.errors import InputError
from peft_jax.evaluation import Evaluation, Spread, TextEvaluation, spread
from peft_jax.examples import ChoiceExamples, FewShotSampler
from peft_jax.mixtures import MixtureSampler
from peft_jax.packing import pack
from peft_jax.text_examples import TextExamples

Examples = ChoiceExamples | TextExamples
Sampler = FewShotSampler | MixtureSampler
Templates = Literal["random", "all"]


@dataclasses.dataclass(frozen=True, eq=False)
class MixedExamples:
    """The rows of several tasks, and how often each is drawn.

    Attributes:
      task: the mixture's name.
      parts: the tasks' own, all of choices or all of texts.
      mixing: arguments of `MixtureSampler`: rates, cap, caps.
    """

    task: str
    parts: tuple[Examples, ...]
    mixing: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_examples(self) -> int:
        """Distinct examples of all tasks."""
        return sum(part.num_examples for part in self.parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def has_markers(self) -> bool:
        """Whether an input has the id of a row that a method trains."""
        return any(part.has_markers for part in self.parts)


def parts_of(examples: Examples | MixedExamples) -> tuple[Examples, ...]:
    """The tasks of a mixture, or the one task."""
    return examples.parts if isinstance(examples, MixedExamples) else (examples,)


def digest(examples: Examples | MixedExamples) -> list[Any]:
    """A few numbers (JSON) that differ between most rows that are not the same.

    Of a large file only some rows are read.
    """
    return [
        [part.task, part.split, len(part), part.num_examples, _checksum(part)]
        for part in parts_of(examples)
    ]


def _checksum(examples: Examples) -> int:
    """CRC-32 of up to 1,000 rows, spread over all."""
    rows = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), 1000)).astype(int))
    found = 0
    for name, array in sorted(examples.rows(rows).items()):
        found = zlib.crc32(np.ascontiguousarray(array).tobytes(), zlib.crc32(name.encode(), found))
    return found


def are_written(examples: Examples | MixedExamples) -> bool:
    """Whether the answers are texts; else they are choices or classes."""
    return isinstance(parts_of(examples)[0], TextExamples)


def make_sampler(
    examples: Examples | MixedExamples,
    batch_size: int,
    seed: int,
    *,
    templates: Templates = "random",
    packed: bool = False,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Sampler:
    """Training batches, a function of (seed, number of the batch) alone.

    Args:
      templates: "random": an epoch has every example once, under a template drawn at random; "all":
        under each of its templates.
      packed: several texts stand in a row, of as many tokens as the longest may have.
      rows: the places of a batch that this process makes (``sharding.local_rows``); None: all.

    Raises:
      InputError: choices are to be packed; and see the samplers.
    """
    if packed:
        return _packed_sampler(examples, batch_size, seed, rows)
    if isinstance(examples, MixedExamples):
        options = {"templates": templates, "rows": rows, **examples.mixing}
        return MixtureSampler(examples.parts, batch_size, seed, **options)
    if templates == "all":
        return MixtureSampler([examples], batch_size, seed, templates=templates, rows=rows)
    return FewShotSampler(examples, batch_size, seed, rows)


def _packed_sampler(
    examples: Examples | MixedExamples,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | np.ndarray | None,
) -> MixtureSampler:
    texts = [part for part in parts_of(examples) if isinstance(part, TextExamples)]
    if not texts:
        raise InputError(
            f"data.pack: {examples.task} ranks answer choices, each row its own; packing is for "
            "texts that are written (--answer text)"
        )
    # One width for all tasks: rows of several stand in one batch.
    width = tuple(
        max(part.details.get(key, length) for part, length in zip(texts, lengths, strict=True))
        for key, lengths in zip(
            ("max_input_length", "max_target_length"),
            zip(*(part.lengths for part in texts), strict=True),
            strict=True,
        )
    )
    packed = [pack(part, *width, seed=seed) for part in texts]
    mixing = examples.mixing if isinstance(examples, MixedExamples) else {}
    return MixtureSampler(packed, batch_size, seed, rows=rows, **mixing)


@dataclasses.dataclass(frozen=True, eq=False)
class MixedEvaluation:
    """The evaluations of several tasks; their mean is what papers report of a benchmark.

    Attributes:
      task: the mixture's name.
      parts: of its tasks, at least one.
    """

    task: str
    parts: Sequence[Evaluation | TextEvaluation]

    @property
    def reported(self) -> tuple[str, Spread]:
        """The mean over the tasks of the figure that is reported of each."""
        scores = [part.reported[1].median for part in self.parts]
        return "average", Spread(float(np.mean(scores)), spread(scores).iqr)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the tasks' metrics have to say."""
        return tuple(dict.fromkeys(note for part in self.parts for note in part.notes))

    def summary(self, draws: int | None = None) -> dict[str, Any]:
        """The figures as JSON values; ``tasks`` has those of each, with intervals."""
        name, score = self.reported
        tasks = [part.summary(draws) for part in self.parts]
        scores = {one["task"]: one["score"] for one in tasks}
        return {
            "task": self.task,
            "split": "/".join(dict.fromkeys(one["split"] for one in tasks)),
            "examples": sum(one["examples"] for one in tasks),
            "rows": sum(one["rows"] for one in tasks),
            "metric": name,
            "score": score.median,
            "score_iqr": score.iqr,
            "score_of": "mean over tasks",
            "interval_95": None,
            "score_per_template": scores,
            "figures": {name: dataclasses.asdict(score)},
            "figures_per_template": {task: {name: value} for task, value in scores.items()},
            "tasks": tasks,
        }

    def write(self, path: Path) -> None:
        """The lines of all tasks' predictions, each with its task."""
        with open(path, "w", encoding="utf-8") as file:
            for part in self.parts:
                own = path.with_name(f".{path.name}.part")
                part.write(own)
                for line in own.read_text(encoding="utf-8").splitlines():
                    kept = {"task": part.examples.task} | json.loads(line)
                    file.write(json.dumps(kept, ensure_ascii=False) + "\n")
                own.unlink()


def mix(task: str, parts: Sequence[Examples], **mixing: Any) -> MixedExamples:
    """A mixture; raises InputError where some tasks rank and others write."""
    kinds = {type(part) for part in parts}
    if len(kinds) > 1:
        ranked = next(p.task for p in parts if isinstance(p, ChoiceExamples))
        written = next(p.task for p in parts if isinstance(p, TextExamples))
        raise InputError(
            f"{task}: {ranked} has choices and {written} has open answers: train them with "
            "--answer text"
        )
    return MixedExamples(task, tuple(parts), mixing)
