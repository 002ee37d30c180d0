"""Checkpoints of one stage, kept by Orbax: parameters and optimiser state as separate items.

A step's folder appears by a rename when it is whole, so a killed save leaves no half checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from fqs_jax.errors import UserError
from fqs_jax.model import Params

ITEMS = ("params", "optimizer", "progress")


class Checkpoints:
    """The checkpoints in a folder, by step.

    Args:
      folder: made if it does not exist.
      keep: how many newest ones stay.
    """

    def __init__(self, folder: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._folder = folder.resolve()
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=ITEMS)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()  # waits for a save under way

    def latest(self) -> int | None:
        """The newest whole step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, params: Params, optimizer: Any, progress: dict[str, Any]) -> None:
        """Save in the background; `progress` is a small JSON object. Saving a step again is a no-op."""
        if step == self.latest():
            return
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            progress=ocp.args.JsonSave(progress),
        )
        if not self._manager.save(step, args=args):
            raise UserError(
                f"{self._folder} holds a step after {step} already; use another --workdir"
            )

    def restore(
        self, step: int, params: Params, optimizer: Any
    ) -> tuple[Params, Any, dict[str, Any]]:
        """The state of a step, with the shapes, types and placement of the two (abstract) trees."""
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(params),
            optimizer=ocp.args.StandardRestore(optimizer),
            progress=ocp.args.JsonRestore(),
        )
        restored = self._restore(step, args)
        return restored.params, restored.optimizer, restored.progress

    def restore_params(self, step: int, params: Params) -> Params:
        """The parameters alone."""
        return self._restore(
            step, ocp.args.Composite(params=ocp.args.StandardRestore(params))
        ).params

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except (ValueError, KeyError, OSError) as error:
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise UserError(
                f"cannot restore step {step} of {self._folder}: {reason[:200]}; "
                "remove that step's folder to go on from the one before it"
            ) from error


def latest_step(folder: Path) -> int | None:
    """The newest whole step in a folder of checkpoints, without opening a manager; None if none."""
    if not folder.is_dir():
        return None
    return max(
        (int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit()), default=None
    )
