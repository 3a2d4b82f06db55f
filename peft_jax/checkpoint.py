"""Checkpoints of a run through orbax, each of which proves what it holds before it is used.

A checkpoint is a tree of arrays (trainables, optimiser, step, random state; never the frozen
backbone) and JSON values (the data's position). Orbax writes it in the background, beside its place
and moved there when it is complete, from all processes and each array once.

What orbax does not see is damage inside an array's file: a flipped byte there is read as another
number. So a checkpoint's JSON also holds a checksum of every array's values, and of itself. They
are of the values and not of files: they are computed where the arrays lie, and hold on any mesh.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.errors import InputError

Tree = TypeVar("Tree")
Progress = dict[str, Any]
"""JSON values."""


class Damaged(Exception):
    """A checkpoint cannot be read, or does not hold what was saved."""


class Checkpoints:
    """The checkpoints in one folder, one per saved step.

    In a run of several processes all of them call every method, and the folder is one that all see.

    Args:
      folder: made where it is missing; one in a bucket ("gs://...") too.
      newest: so many newest checkpoints are kept.
      every: those of steps that this divides are kept for ever; 0: none.
      best: so many with the highest scores are kept.
      tell: is called with a sentence for each checkpoint that is passed over because it is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        newest: int = 2,
        every: int = 0,
        best: int = 0,
        tell: Callable[[str], None] = warnings.warn,
    ):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.WARNING)  # orbax reports every save there
        self._ocp = ocp
        self._keep = newest, every, best
        self._tell = tell
        self.scores: dict[int, float] = {}
        """Those that were saved with a score, by step."""
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Preserved(self._preserve),
            cleanup_tmp_directories=True,
            single_host_load_and_broadcast=jax.process_count() > 1,
        )
        place = str(folder) if "://" in str(folder) else Path(folder).resolve()
        self._manager = ocp.CheckpointManager(place, options=options)
        self._saved_at = time.monotonic()

    # ------------------------------------------------------------------ what there is
    def steps(self) -> list[int]:
        """The steps that are saved, the oldest first."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step that is saved, or None."""
        return self._manager.latest_step()

    def best(self) -> list[int]:
        """The steps that are saved with a score, the highest first; of equals the oldest."""
        return _ranked(self.steps(), self.scores)

    def seconds_since_save(self) -> float:
        """Since the last save, or since this was made."""
        return time.monotonic() - self._saved_at

    def _preserve(self, steps: list[int]) -> list[bool]:
        newest, every, best = self._keep
        kept = {*steps[-newest:], *_ranked(steps, self.scores)[:best]}
        return [step in kept or bool(every and step % every == 0) for step in steps]

    # ------------------------------------------------------------------ saving
    def save(self, step: int, tree: Any, progress: Progress, score: float | None = None) -> None:
        """Saves under a step; does nothing if that step is saved already.

        Returns as soon as the arrays may be donated; the rest is written in the background.

        Args:
          tree: of ``jax.Array``, those of random keys too.
          progress: JSON values, the same on every process.
          score: higher is better; None or NaN: none.

        Raises:
          InputError: this or the checkpoint before it could not be written (a full disk, say).
        """
        if step in self._manager.all_steps():
            return
        if score is not None and not math.isnan(score):
            self.scores[step] = float(score)
        arrays = _arrays(tree)
        told = {
            "progress": progress,
            "scores": {str(k): v for k, v in self.scores.items()},
            "arrays": {name: _description(x) for name, x in arrays.items()},
        }
        sums = jax.device_get({name: checksum(x) for name, x in arrays.items()})
        for name, value in sums.items():
            told["arrays"][name]["checksum"] = int(value)
        args = self._ocp.args
        try:
            self._manager.save(
                step,
                force=True,
                args=args.Composite(
                    state=args.StandardSave(arrays), progress=args.JsonSave(_signed(told))
                ),
            )
        except Exception as error:
            raise self._unwritten(error) from error
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Returns when everything is written. Raises InputError if it could not be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """The same, and nothing can be saved any more."""
        self.wait()
        self._manager.close()

    def _unwritten(self, error: Exception) -> InputError:
        return InputError(
            f"a checkpoint could not be written to {self._manager.directory}: {_in_words(error)}"
        )

    # ------------------------------------------------------------------ restoring
    def restore(self, like: Callable[[Progress], Tree]) -> tuple[Tree, Progress]:
        """The newest checkpoint that is whole.

        Damaged ones are passed over, told of, and moved aside under the name ``STEP.damaged``.

        Args:
          like: from a checkpoint's JSON values the tree that it is read into: arrays of the shapes
            and dtypes that were saved, on any mesh.

        Returns the tree, its arrays lying as those of ``like``, and the JSON values.

        Raises:
          InputError: there is no checkpoint, none is whole, or it is of another tree.
        """
        found: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                tree, told = self._read(step, like)
            except Damaged as error:
                found[step] = str(error)
                continue
            for bad, reason in sorted(found.items()):
                self._tell(
                    f"checkpoint {bad} in {self._manager.directory} is damaged ({reason}); "
                    f"checkpoint {step} is used instead"
                )
            self._move_aside(list(found))
            self.scores = {int(k): v for k, v in told["scores"].items()}
            return tree, told["progress"]
        directory = self._manager.directory
        if not found:
            raise InputError(f"no checkpoint to resume from in {directory}")
        reasons = "; ".join(f"{step}: {reason}" for step, reason in found.items())
        raise InputError(f"no checkpoint in {directory} is whole ({reasons}); start the run anew")

    def restore_step(self, step: int, like: Tree) -> tuple[Tree, Progress]:
        """The checkpoint of one step; see :meth:`restore`.

        Raises:
          InputError: there is none, it is damaged, or it is of another tree.
        """
        if step not in self._manager.all_steps():
            raise InputError(f"no checkpoint of step {step} in {self._manager.directory}")
        try:
            tree, told = self._read(step, lambda _: like)
        except Damaged as error:
            raise InputError(
                f"checkpoint {step} in {self._manager.directory} is damaged ({error})"
            ) from None
        return tree, told["progress"]

    def _read(self, step: int, like: Callable[[Progress], Tree]) -> tuple[Tree, dict[str, Any]]:
        self.wait()
        told = _agreed(lambda: self._read_json(step))
        wanted = like(told["progress"])
        arrays = _arrays(wanted)
        self._check_fits(step, told["arrays"], arrays)
        read = _agreed(lambda: self._read_arrays(step, arrays))
        sums = jax.device_get({name: checksum(x) for name, x in read.items()})
        wrong = [n for n, value in sums.items() if int(value) != told["arrays"][n]["checksum"]]
        if wrong:
            raise Damaged(f"the checksum of {wrong[0]} is wrong")
        return _with_arrays(wanted, read), told

    def _read_json(self, step: int) -> dict[str, Any]:
        path = self._manager.directory / str(step) / "progress"
        return _verified(self._ocp.JsonCheckpointHandler().restore(path))

    def _read_arrays(self, step: int, like: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        # By the handler and not by the manager: that waits for all processes, and one that cannot
        # read its part of a damaged file would leave the others waiting.
        wanted = {name: self._ocp.utils.to_shape_dtype_struct(x) for name, x in like.items()}
        return self._ocp.StandardCheckpointHandler().restore(
            self._manager.directory / str(step) / "state",
            args=self._ocp.args.StandardRestore(wanted),
        )

    def _check_fits(self, step: int, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name in sorted({*saved, *wanted}):
            there = {k: v for k, v in saved.get(name, {}).items() if k != "checksum"}
            here = _description(wanted[name]) if name in wanted else {}
            if there != here:
                raise InputError(
                    f"checkpoint {step} in {self._manager.directory} does not fit this run: "
                    f"{name} is {_shape_in_words(there)} there, and {_shape_in_words(here)} here"
                )

    def _move_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                old = self._manager.directory / str(step)
                new = self._manager.directory / f"{step}.damaged"
                if new.exists():
                    new.rmtree()
                old.rename(new)
        _together("peft_jax:damaged_checkpoints")
        self._manager.reload()


class _Preserved:
    """Orbax's protocol of a preservation policy, on steps alone.

    Orbax's own policy for the best reads each checkpoint's score from a file of its own when a
    folder is opened, and fails to open the folder when one of them is damaged.
    """

    def __init__(self, preserve: Callable[[list[int]], list[bool]]):
        self._preserve = preserve

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        return self._preserve([checkpoint.step for checkpoint in checkpoints])


def _ranked(steps: list[int], scores: Mapping[int, float]) -> list[int]:
    scored = [step for step in steps if step in scores]
    return sorted(scored, key=lambda step: (-scores[step], step))


# --------------------------------------------------------------------------------------------
# Checksums
# --------------------------------------------------------------------------------------------
@jax.jit
def checksum(x: jax.Array) -> jax.Array:
    """A uint32 of an array's values and their places, the same however the array lies on a mesh.

    It is the sum, modulo 2**32, of a hash of each element's bits and index (MurmurHash3's 32-bit
    finaliser, Appleby 2011, which is a bijection): a change of one 32-bit word is always seen, any
    other with a probability of 1 - 2**-32.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.dtypes.itemsize_bits(x.dtype)
    words = jax.lax.bitcast_convert_type(x, f"uint{min(bits, 32)}").astype(jnp.uint32)
    index, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        # Not the index of a flattened array: a sharded one would be gathered to be flattened.
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index += along * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words ^ _mix(index + np.uint32(1))), dtype=jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _signed(told: dict[str, Any]) -> dict[str, Any]:
    """With a digest of the JSON text that these values have once they were read again."""
    plain = json.loads(json.dumps(told))
    return {"content": plain, "sha256": _digest(plain)}


def _verified(signed: Any) -> dict[str, Any]:
    if not isinstance(signed, dict) or set(signed) != {"content", "sha256"}:
        raise Damaged("its JSON is not a checkpoint's")
    if _digest(signed["content"]) != signed["sha256"]:
        raise Damaged("the checksum of its JSON is wrong")
    return signed["content"]


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------
# Trees as plain arrays
# --------------------------------------------------------------------------------------------
def _arrays(tree: Any) -> dict[str, jax.Array]:
    """A tree's arrays by path; of a random key its data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            jax.random.key_data(x) if _is_key(x) else x
        )
        for path, x in leaves
    }


def _with_arrays(tree: Tree, arrays: Mapping[str, jax.Array]) -> Tree:
    """A tree with other arrays: the inverse of :func:`_arrays`."""

    def one(path, x):
        found = arrays[jax.tree_util.keystr(path, simple=True, separator=".")]
        return jax.random.wrap_key_data(found, impl=jax.random.key_impl(x)) if _is_key(x) else found

    return jax.tree_util.tree_map_with_path(one, tree)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _description(x: jax.Array) -> dict[str, Any]:
    return {"dtype": str(x.dtype), "shape": list(x.shape)}


def _shape_in_words(described: Mapping[str, Any]) -> str:
    if not described:
        return "missing"
    return f"{described['dtype']}{described['shape']}"


def _in_words(error: BaseException) -> str:
    """Why it came to an error: its first cause's kind and first line, of a long one both ends."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = str(error).strip().partition("\n")[0]
    if len(first) > 320:
        first = f"{first[:80]} ... {first[-240:]}"
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


# --------------------------------------------------------------------------------------------
# Several processes
# --------------------------------------------------------------------------------------------
Found = TypeVar("Found")


def _agreed(read: Callable[[], Found]) -> Found:
    """What ``read`` returns, where it does so on every process; raises Damaged on all otherwise."""
    found, reason = None, None
    with _one_error():
        try:
            found = read()
        except Damaged as error:
            reason = str(error)
        except Exception as error:  # of whatever kind: the bytes may be anything
            reason = _in_words(error)
        if reason is not None:
            gc.collect()
    if not _all(reason is None):
        raise Damaged(reason or "another process could not read it")
    return found  # type: ignore[return-value]


@contextlib.contextmanager
def _one_error():
    """Orbax reads all arrays at once. Where one fails, Python prints pages about the others."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _all(true: bool) -> bool:
    """Whether it is true on every process."""
    if jax.process_count() == 1:
        return true
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(true))))


def _together(name: str) -> None:
    """Returns when every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def first_process_says(true: bool) -> bool:
    """What the first process says, on every one: for decisions that hang on a clock."""
    if jax.process_count() == 1:
        return true
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(true)))
