"""A run's figures over time: ``metrics.jsonl``, and the same for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

from peft_jax.files import replace_file


class MetricsLog:
    """Appends lines ``{"step": k, name: value, ...}``.

    Args:
      folder: of the run.
      after_step: lines of later steps are dropped first: a resumed run makes them again, and the
        file ends up as if it had never stopped.
      writes: False in all processes of a run but one: nothing is written, and no file touched.
    """

    def __init__(self, folder: Path, after_step: int = 0, *, writes: bool = True):
        self._writes = writes
        self._path = folder / "metrics.jsonl"
        self._tensorboard_folder = folder / "tensorboard"
        self._after = after_step
        self._held: set[tuple[int, frozenset[str]]] = set()
        if writes and self._path.exists():
            kept = [
                line
                for line in self._path.read_text().splitlines(keepends=True)
                if _step(line) <= after_step
            ]
            self._held = {(_step(line), _names(line)) for line in kept}
            with replace_file(self._path) as new:
                new.write_text("".join(kept))

    def __enter__(self) -> MetricsLog:
        if not self._writes:
            return self
        from tensorboardX import SummaryWriter

        self._file = open(self._path, "a", encoding="utf-8")
        self._writer = SummaryWriter(str(self._tensorboard_folder), purge_step=self._after + 1)
        return self

    def __exit__(self, *_) -> None:
        if not self._writes:
            return
        self._file.close()
        self._writer.close()

    def write(self, step: int, **figures: float) -> None:
        """One line; flushed, so that a run that dies has its log.

        A run that was killed after its last step evaluates again: what the file holds of a step
        already is not written twice.
        """
        if not self._writes or (step, frozenset(figures)) in self._held:
            return
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)


def _names(line: str) -> frozenset[str]:
    return frozenset(json.loads(line)) - {"step"}


def _step(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return 2**62  # the unfinished last line of a run that died
