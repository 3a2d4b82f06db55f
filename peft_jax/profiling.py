"""Where a run's time goes: a step's parts on the clock, and a trace of a few steps.

The trace is jax's own profiler's, read by TensorBoard's profile plugin and by XProf.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from peft_jax.errors import InputError

PARTS = ("data", "compute", "logging", "saving")
"""Of a training loop. *data*: making a batch and handing it to the devices. *compute*: starting a
step, and waiting for the devices. *logging*: fetching figures, and writing them. *saving*:
checkpoints, as long as they stop the loop."""


class StepTimes:
    """The wall's time of a loop, by part::

        times = StepTimes()
        with times("data"):
            batch = next(batches)

    Steps run on the devices while the host makes the next batch: *data* is the host's time, and
    only where *compute* comes near nothing did the devices wait for it. Nothing is synchronised
    for the measurement.
    """

    def __init__(self) -> None:
        self._open = dict.fromkeys(PARTS, 0.0)
        self._total = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """What runs inside is counted as one of :data:`PARTS`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._open[part] += time.perf_counter() - start

    def restart(self) -> None:
        """Forgets what was counted: a process's first step compiles."""
        self._open = dict.fromkeys(PARTS, 0.0)
        self._total = dict.fromkeys(PARTS, 0.0)

    def take(self, steps: int) -> dict[str, float]:
        """Seconds a step of each part since the last call, which ``steps`` steps have passed."""
        taken, self._open = self._open, dict.fromkeys(PARTS, 0.0)
        for part, seconds in taken.items():
            self._total[part] += seconds
        return {f"{part}_seconds": seconds / max(steps, 1) for part, seconds in taken.items()}

    def totals(self) -> dict[str, float]:
        """Seconds of each part since the start."""
        return {part: self._total[part] + self._open[part] for part in PARTS}


def split_line(totals: Mapping[str, float], steps: int) -> str:
    """One line on :meth:`StepTimes.totals` of so many steps."""
    whole = sum(totals.values())
    if not steps or not whole:
        return "no step was timed"
    shares = ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in totals.items())
    return f"a step took {1e3 * whole / steps:,.1f} ms: {shares}"


# --------------------------------------------------------------------------------------------
# A trace
# --------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Profile:
    """Which steps are traced, and where to.

    Attributes:
      folder: where TensorBoard looks; each process of several writes a folder inside it.
      steps: so many.
      skip: steps of this process before them; the first compiles, and is no step like the others.
    """

    folder: Path
    steps: int = 5
    skip: int = 2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.skip < 0:
            raise InputError(
                f"a profile of {self.steps} steps after {self.skip}: give at least 1 step, and a "
                "number of steps to skip that is not negative"
            )


class Tracer:
    """Starts and ends a profile's trace in a loop; without a profile it does nothing.

    ::

        with Tracer(profile) as tracer:
            for number, batch in enumerate(batches):
                with tracer.step(number):
                    state, metrics = step(state, frozen, batch)
                tracer.done(metrics)
    """

    def __init__(self, profile: Profile | None = None):
        self._profile = profile
        self._made = 0
        self._running = False
        self.written: Path | None = None
        """The folder of the trace, once it is written."""

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step; the trace shows it as step ``number``."""
        profile = self._profile
        if profile is None:
            yield
            return
        if self._made == profile.skip and not self.written:
            self._start(profile)
        if not self._running:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def done(self, result: object) -> bool:
        """After a step, with what it returned; True if the trace was written now."""
        self._made += 1
        profile = self._profile
        if profile is None or self._made < profile.skip + profile.steps or not self._running:
            # The steps before the first traced one must be over when it starts.
            if profile is not None and self._made == profile.skip:
                jax.block_until_ready(result)
            return False
        jax.block_until_ready(result)
        self._stop()
        return True

    def _start(self, profile: Profile) -> None:
        folder = profile.folder
        if jax.process_count() > 1:
            # Two processes of one machine would write files of one name.
            folder = folder / f"process_{jax.process_index()}"
        options = jax.profiler.ProfileOptions()
        # Every Python call in the trace slows the host several times, and hides what is looked for.
        options.python_tracer_level = 0
        jax.profiler.start_trace(str(folder), profiler_options=options)
        self._running, self._folder = True, folder

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        self.written = self._folder


# --------------------------------------------------------------------------------------------
# What a trace says, without TensorBoard
# --------------------------------------------------------------------------------------------
def longest_operations(folder: Path, number: int = 10) -> list[tuple[str, float, int]]:
    """(name, seconds, times run) of the operations that took the devices the longest in a trace.

    Args:
      folder: as :attr:`Tracer.written`.

    Raises:
      InputError: there is no trace in the folder.
    """
    paths = sorted(Path(folder).rglob("*.xplane.pb"))
    if not paths:
        raise InputError(f"{folder} holds no trace (*.xplane.pb); write one with --profile")
    spent: dict[str, list[float]] = {}
    for line in _operation_lines(jax.profiler.ProfileData.from_file(str(paths[-1]))):
        for event in line.events:
            if "::" in event.name or event.name.startswith("end: "):
                continue  # the runtime's own bookkeeping on a CPU
            spent.setdefault(event.name, []).append(event.duration_ns * 1e-9)
    ranked = sorted(spent.items(), key=lambda item: -sum(item[1]))[:number]
    return [(name, sum(seconds), len(seconds)) for name, seconds in ranked]


def _operation_lines(trace):
    """The lines of XLA's operations: of every device, or of the CPU's threads."""
    devices = [plane for plane in trace.planes if plane.name.startswith("/device:")]
    for plane in devices or [p for p in trace.planes if p.name == "/host:CPU"]:
        for line in plane.lines:
            wanted = ("XLA Ops", "Stream") if devices else ("tf_XLA",)
            if line.name.startswith(wanted):
                yield line
