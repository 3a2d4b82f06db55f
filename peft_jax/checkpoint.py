"""Checkpoints of a run through orbax: trainables, optimiser, step, random state, data position."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

from peft_jax.errors import InputError
from peft_jax.train import TrainState


class Checkpoints:
    """The checkpoints of one run's folder, one per saved step, the newest few kept.

    A checkpoint holds the train state and a small dict of JSON values (the data position). The
    frozen backbone is never in it. Saving runs in the background; a checkpoint that is listed is
    complete.
    """

    def __init__(self, folder: Path, keep: int = 2):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.WARNING)  # orbax reports every save there
        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(Path(folder).resolve(), options=options)

    def latest(self) -> int | None:
        """The newest step that is saved, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Saves the state under its step; does nothing if that step is saved already."""
        args = self._ocp.args
        step = int(state.step)
        if step == self.latest():
            return
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(_as_tree(state)), progress=args.JsonSave(progress)
            ),
        )

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, with the shapes and shardings of ``state``.

        Raises:
          InputError: there is none, or it does not fit.
        """
        args = self._ocp.args
        step = self._newest()
        wanted = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, _as_tree(state))
        try:
            found = self._manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(wanted), progress=args.JsonRestore()
                ),
            )
        except (ValueError, KeyError) as error:
            raise InputError(
                f"checkpoint {step} in {self._manager.directory} does not fit this run: {error}"
            ) from None
        return _from_tree(found["state"]), dict(found["progress"])

    def progress(self) -> dict[str, Any]:
        """The newest checkpoint's JSON values alone. Raises InputError if there is none."""
        args = self._ocp.args
        found = self._manager.restore(
            self._newest(), args=args.Composite(progress=args.JsonRestore())
        )
        return dict(found["progress"])

    def _newest(self) -> int:
        step = self.latest()
        if step is None:
            raise InputError(f"no checkpoint to resume from in {self._manager.directory}")
        return step

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _as_tree(state: TrainState) -> dict[str, Any]:
    """Plain arrays: a typed random key is stored as its data."""
    saved = {
        "step": state.step,
        "trainable": state.trainable,
        "opt_state": state.opt_state,
        "key": jax.random.key_data(state.key),
    }
    return saved | {"fixed": state.fixed} if state.fixed else saved


def _from_tree(saved: dict[str, Any]) -> TrainState:
    return TrainState(
        saved["step"],
        saved["trainable"],
        saved["opt_state"],
        jax.random.wrap_key_data(saved["key"]),
        saved.get("fixed", {}),
    )
