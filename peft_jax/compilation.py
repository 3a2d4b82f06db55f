"""Compiled programs are kept on disk, and what compiling took is told.

The cache is jax's own persistent compilation cache; here is only where it lies, how large it may
become, and who turns it off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import threading
import weakref
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from peft_jax.errors import InputError

# A program that took less to compile is made again: reading one back costs milliseconds too.
LEAST_SECONDS = 0.5

# Our own folder is cut down to this when a command starts; a folder that was named never is.
LIMIT_BYTES = 4 * 2**30


# --------------------------------------------------------------------------------------------
# The persistent cache
# --------------------------------------------------------------------------------------------
def user_folder() -> Path:
    """Where compiled programs are kept by default: in the user's cache, a folder for each CPU.

    XLA writes instructions of this machine's CPU into what it compiles for a CPU, and a home folder
    may be shared by several kinds of machines.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "peft_jax" / "compiled" / _cpu()


def _cpu() -> str:
    """A short name of this machine's instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = ("flags", "Features")
    features = next((line for line in lines if line.startswith(named)), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def enable_cache(where: str = "auto") -> str | None:
    """Turns jax's persistent compilation cache on, or off, for this process.

    Args:
      where: "auto": :func:`user_folder`, unless the environment has chosen
        (``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE``); "off"; or a folder, which
        may be gs://. Several processes may share one.

    Returns:
      The folder, or None where nothing is kept.

    Raises:
      InputError: a folder was named that cannot be written to.
    """
    if where == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if where == "auto":
        if not jax.config.values["jax_enable_compilation_cache"]:
            return None
        if chosen:
            _repair(chosen)
            return chosen
        folder = user_folder()
        try:
            _open_folder(folder, 0o700)  # who writes there, runs code in this user's processes
            prune(folder, LIMIT_BYTES)
        except OSError:  # a home that is read-only or full: compiling works without a cache
            return None
        where = str(folder)
    elif "://" not in where:
        try:
            _open_folder(Path(where))
        except OSError as error:
            raise InputError(
                f"compilation cache {where}: {error.strerror or error}; give a folder that can be "
                "written to, or off"
            ) from None
    _repair(where)
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", where)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return where


def _open_folder(folder: Path, mode: int = 0o777) -> None:
    folder.mkdir(mode, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "cannot be written to")


def _repair(where: str) -> None:
    """:func:`drop_unfinished` of a folder on a file system, once in a process."""
    if "://" not in where and where not in _repaired:
        _repaired.add(where)
        with contextlib.suppress(OSError):  # read-only, or not there yet
            drop_unfinished(Path(where))


_repaired: set[str] = set()


def drop_unfinished(folder: Path) -> list[str]:
    """Deletes the programs that a killed process left half written; returns their names.

    jax writes an entry in place, warns of one that it cannot read, and never writes it again: the
    program would be compiled in every run from then on. An entry is looked at once.
    """
    checked = folder / ".checked"
    since = checked.stat().st_mtime_ns if checked.exists() else 0
    checked.touch()
    dropped = []
    for path in folder.glob("*-cache"):
        try:
            whole = path.stat().st_mtime_ns < since or _is_whole(path.read_bytes())
        except FileNotFoundError:
            continue
        if not whole:
            path.unlink(missing_ok=True)
            dropped.append(path.name)
    return dropped


def _is_whole(entry: bytes) -> bool:
    """Whether an entry's compressed stream has its end; jax compresses with zstd if it can."""
    if entry[:4] == b"\x28\xb5\x2f\xfd":
        try:
            import zstandard
        except ImportError:
            return True
        stream = zstandard.ZstdDecompressor().decompressobj()
        errors: type[Exception] = zstandard.ZstdError
    else:
        stream, errors = zlib.decompressobj(), zlib.error
    try:
        stream.decompress(entry)
    except errors:
        return False
    return getattr(stream, "eof", True)  # an old zstandard does not say


def prune(folder: Path, limit: int) -> int:
    """Deletes the programs used longest ago until what is kept fits in ``limit`` bytes.

    Returns the bytes deleted. A program that another process deletes meanwhile is no error.
    """
    kept: list[tuple[float, int, Path]] = []
    for path in folder.glob("*-cache"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        kept.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in kept)
    deleted = 0
    for _, size, path in sorted(kept):
        if total - deleted <= limit:
            break
        path.unlink(missing_ok=True)
        deleted += size
    return deleted


# --------------------------------------------------------------------------------------------
# What compiling took
# --------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Program:
    """One compiled program; times in seconds."""

    name: str
    """The function's, as jax names it: ``jit(step)``."""
    compile: float
    """In XLA, or reading it from the cache."""
    cached: bool
    """Whether it was read from the cache."""


class CompileTimes:
    """Records every program that this process traces and compiles from now on.

    jax tells when it traces, lowers and compiles (``jax.monitoring``). Tracing one function may
    contain another's: the seconds are those of the wall, each counted once. Ends with
    :meth:`close`, or when nobody holds it.
    """

    def __init__(self) -> None:
        self.programs: list[Program] = []
        self._spans: dict[str, list[tuple[float, float]]] = {name: [] for name in _SPANS.values()}
        self._hit = threading.local()
        _listen()
        _active.add(self)

    def close(self) -> None:
        _active.discard(self)

    def __enter__(self) -> CompileTimes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seconds(self, part: str | None = None) -> float:
        """Of "trace", "lower" or "compile"; None: of all three."""
        parts = self._spans if part is None else [part]
        return _union(span for name in parts for span in self._spans[name])

    def slowest(self, number: int = 5) -> list[Program]:
        """Those that took XLA the longest."""
        return sorted(self.programs, key=lambda p: -p.compile)[:number]

    def report(self) -> dict[str, Any]:
        """What a run's result.json holds: seconds by part, programs, and the slowest of them."""
        return {
            "programs": len(self.programs),
            "read_from_cache": sum(p.cached for p in self.programs),
            "seconds": {part: round(self.seconds(part), 3) for part in self._spans},
            "slowest": [dataclasses.asdict(p) for p in self.slowest()],
        }

    def _hit_cache(self) -> None:
        self._hit.now = True

    def _finished(self, part: str, start: float, end: float, name: str) -> None:
        self._spans[part].append((start, end))
        if part == "compile":
            cached = getattr(self._hit, "now", False)  # told just before, by the same thread
            self._hit.now = False
            self.programs.append(Program(name, round(end - start, 3), cached))


def summary(report: Mapping[str, Any]) -> str:
    """One line on :meth:`CompileTimes.report`."""
    seconds, cached = report["seconds"], report["read_from_cache"]
    parts = ", ".join(f"{part} {taken:.1f}" for part, taken in seconds.items())
    read = f"; {cached} read from the cache" if cached else ""
    slow = [p for p in report["slowest"] if p["compile"] >= 1.0 and not p["cached"]]
    longest = f"; longest {slow[0]['name']} {slow[0]['compile']:.1f} s" if slow else ""
    return (
        f"compiled {report['programs']} programs in {sum(seconds.values()):.1f} s "
        f"({parts}){read}{longest}"
    )


_SPANS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
_active: weakref.WeakSet[CompileTimes] = weakref.WeakSet()
_listening: list[str] = []


def _listen() -> None:
    """Registers with jax, once: it hands every event to all reports that are open."""
    if _listening:
        return
    _listening.append("registered")

    def span(event: str, start_time: float, end_time: float, **named: str | int) -> None:
        if event in _SPANS:
            name = str(named.get("fun_name", ""))
            for times in list(_active):
                times._finished(_SPANS[event], start_time, end_time, name)

    def told(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            for times in list(_active):
                times._hit_cache()

    jax.monitoring.register_event_time_span_listener(span)
    jax.monitoring.register_event_listener(told)


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """The length of a union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
