"""Checkpoints of one stage, written by Orbax: parameters and optimiser state as separate items.

A step's folder appears by a rename when it is whole, so a killed save leaves no half checkpoint; in a
bucket it counts as whole with its last object (runs/step_folders.py).
The third item, a small JSON object, holds the fingerprint of every array. Every restore compares
them, on any mesh. With several processes, all of them make the same calls.
"""

# Orbax's CheckpointManager could save, delete and clean up too, but it (0.12.8) fails our tests. Its
# check_for_errors does not report a save that failed in the background, so training continues without
# checkpoints until the next save. It frees the space of a failed save only when it is made again. It
# deletes checkpoints in place, and a kill then leaves half of one under the name of a step. With
# several processes, one that cannot write waits at a barrier for the others, which wait for its part.

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fqs_jax.model.decoder import Params
from fqs_jax.runs import damage, orbax_setup, step_folders
from fqs_jax.runs.damage import Damaged, together
from fqs_jax.runs.folders import appears, checkpoint, checkpoints, saved_steps
from fqs_jax.runtime import leases, paths
from fqs_jax.runtime.agreement import agreed, on_main
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.orbax_errors import reason
from fqs_jax.runtime.progress import reading
from fqs_jax.runtime.stderr import say

_SELDOM = 2.0  # seconds


class Checkpoints:
    """The checkpoints in a folder, by step.

    Args:
      folder: made by the first save.
      keep: number of newest steps that stay; older ones are deleted when a newer one is whole.

    Attributes:
      best: a step that stays as well. Set a new one when its save has begun.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self._folder, self._keep = paths.full(folder), keep
        self.best: int | None = None
        self._writer: ocp.AsyncCheckpointer | None = None
        self._saving: int | None = None  # the step that is being written
        self._place = self._folder  # the step's
        self._last: int | None = None  # the newest step, once something was saved
        self._reader = orbax_setup.reader()
        self._deleting: list[threading.Thread] = []
        self._asked = 0.0  # when a bucket was asked whether a save is whole

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, _: object
    ) -> None:
        try:
            self.wait()
        except UserError as error:
            if kind is None:
                raise
            if isinstance(value, UserError):  # one line says both
                if str(error) != str(value):
                    value.args = (f"{value}; and {error}",)
            else:  # which is raised
                say(f"error: {error}")
        finally:
            self._close_writer()
            self._reader.close()
            for thread in self._deleting:
                thread.join()

    # Saving --------------------

    def save(self, step: int, params: Params, optimizer: Any, progress: dict[str, Any]) -> None:
        """Save a step in the background. Saving a step again does nothing.

        The arrays may be donated as soon as this returns.

        Args:
          progress: a small JSON object.

        Raises:
          UserError: this save cannot begin, the one before it failed, or a later step exists.
        """
        self.wait()
        if self._writer is None:
            self._last = max(self._steps(), default=None)
        if step == self._last:
            return
        if self._last is not None and step < self._last:
            raise UserError(
                f"{self._folder} holds a step after {step} already; use another --workdir"
            )
        record = damage.record(progress, {"params": params, "optimizer": optimizer})
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            progress=ocp.args.JsonSave(record),
        )
        self._saving, self._place = step, step_folders.place(self._folder, step)
        try:
            if jax.process_index() == 0:
                step_folders.make_way(self._place)
            self._open_writer().save(self._place, args=args)
        except Exception as error:
            raise self._failed(error) from error
        self._last = step

    def check(self) -> None:
        """Check, without waiting, the save in the background. Cheap: call it every step.

        Raises:
          UserError: it failed. The checkpoints before it are untouched, and another save may be tried.
        """
        if self._writer is None or self._saving is None:
            return
        try:
            self._writer.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error
        if self._finished():
            self.wait()

    def wait(self) -> None:
        """Return when the save in the background is whole on disk, after which old steps are deleted.

        Raises:
          UserError: it failed, as in `check`.
        """
        if self._writer is None or self._saving is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._saving = None
        if jax.process_index() == 0:
            step_folders.sync(self._folder)  # the new name, before the old ones go
            for step, path in list(checkpoints(self._folder).items())[self._keep :]:
                if step != self.best:
                    self._delete(path)

    def _open_writer(self) -> ocp.AsyncCheckpointer:
        if self._writer is None:
            if jax.process_index() == 0:
                step_folders.prepare(self._folder)
            # Called in the thread of the save, when the step is written and has not got its name.
            settle = lambda: step_folders.settle(self._place)  # noqa: E731
            self._writer = orbax_setup.writer(settle, paths.is_bucket(self._folder))
        return self._writer

    def _finished(self) -> bool:
        """True if the save in the background is whole. In a bucket, which costs a request, seldom asked."""
        if paths.is_bucket(self._folder):
            now = time.monotonic()
            if now - self._asked < _SELDOM:
                return False
            self._asked = now
        return step_folders.exists(self._place)

    def _close_writer(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):  # of a failed save, which was reported
                self._writer.close()
        self._writer = self._saving = None

    def _failed(self, error: Exception) -> UserError:
        """Forget a failed save, free its space, and return the error that reports it."""
        step = self._saving
        self._close_writer()
        try:
            leases.check(self._folder)
        except UserError as lost:
            return lost
        if jax.process_index() == 0:
            with contextlib.suppress(UserError):  # the failure itself says more
                step_folders.delete_unfinished(self._folder)
        advice = "make room or give --workdir another place, and run the command again"
        if paths.is_bucket(self._folder):
            advice = "run the same command again to resume"
        return UserError(
            f"cannot save step {step} in {self._folder}: {reason(error)}; the checkpoints before it "
            f"are untouched: {advice}"
        )

    def _delete(self, path: Path) -> None:
        """Let a step no longer count, so that a kill leaves no half, and delete it in the background."""
        with contextlib.suppress(OSError, UserError):
            rest = step_folders.disown(path)
            thread = threading.Thread(target=rest)
            thread.start()
            self._deleting = [t for t in self._deleting if t.is_alive()] + [thread]

    # Restoring --------------------

    def restore(
        self, step: int, params: Params, optimizer: Any
    ) -> tuple[Params, Any, dict[str, Any]]:
        """The state of a step, with the shapes, types and placement of the two (abstract) trees.

        The mesh may differ from the one of the save. If the requested type of an array differs from
        the saved one, the array is first compared with its fingerprint and then converted.

        Raises:
          UserError: the step does not exist, is damaged, or does not fit the trees.
        """
        restored, progress = self._restore_or_refuse(
            step, False, params=params, optimizer=optimizer
        )
        return restored["params"], restored["optimizer"], progress

    def restore_params(
        self, step: int, params: Params, move_aside: bool = False
    ) -> tuple[Params, dict[str, Any]]:
        """The parameters and the progress, without the optimiser state; see `restore`.

        Args:
          move_aside: rename a damaged step to damaged_STEP before refusing it, so that its stage is
            no longer finished and can be trained again.
        """
        restored, progress = self._restore_or_refuse(step, move_aside, params=params)
        return restored["params"], progress

    def newest(
        self, params: Params, optimizer: Any
    ) -> tuple[int, Params, Any, dict[str, Any]] | None:
        """The step, state and progress of the newest intact checkpoint; None without any checkpoint.

        Newer ones, which are damaged, are set aside (renamed to damaged_STEP; in a bucket marked), and
        a line on stderr reports each. Nothing is set aside unless an intact one is found.

        Raises:
          UserError: all are damaged, or one does not fit the trees.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []
        for step in self._steps():
            try:
                restored, progress = self._restore(step, params=params, optimizer=optimizer)
            except Damaged as error:
                damaged.append((step, str(error)))
                continue
            for damaged_step, finding in damaged:
                self._move_aside(damaged_step, finding, used=step)
            return step, restored["params"], restored["optimizer"], progress
        if damaged:
            steps = ", ".join(f"{step} ({finding})" for step, finding in damaged)
            raise UserError(
                f"every checkpoint in {self._folder} is damaged: {steps}; remove that folder to begin "
                "the stage again"
            )
        return None

    def _restore_or_refuse(
        self, step: int, move_aside: bool, **trees: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.wait()
        try:
            return self._restore(step, **trees)
        except Damaged as error:
            if move_aside:
                self._move_aside(step, str(error))
            raise UserError(
                f"cannot restore step {step} of {self._folder}: {error}; train that stage again to "
                "resume from the checkpoint before it"
            ) from error

    def _restore(self, step: int, **trees: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Some items and the progress of a step, the same on all processes.

        Args:
          trees: an abstract tree for each item.

        Raises:
          Damaged: one of the processes finds damage; raised on all of them.
          UserError: the checkpoint does not fit the trees.
        """
        progress, described = together(lambda: self._read_record(step))
        stored = {}
        for item, tree in trees.items():
            if item not in described:
                raise Damaged(f"its progress does not describe the {item}")
            if difference := damage.misfit(described[item], tree):
                raise UserError(
                    f"cannot restore step {step} of {self._folder}: {item}/{difference}; use the "
                    "config that it was saved with, or another --workdir"
                )
            stored[item] = damage.with_types(described[item], tree)
        restored = together(lambda: self._read(step, stored))
        for item, tree in trees.items():
            if difference := damage.damage(described[item], restored[item]):
                raise Damaged(f"{item}: {difference}")
            restored[item] = jax.tree.map(_converted, restored[item], tree)
        return restored, progress

    def _read_record(self, step: int) -> tuple[dict[str, Any], dict[str, damage.Description]]:
        path = checkpoint(self._folder, step)
        if jax.process_count() > 1 and not appears(path):
            raise UserError(
                f"{path} does not appear on this host; put --workdir on a disk that all processes share"
            )
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return damage.open_record(self._read_items(step, args)["progress"])

    def _read(self, step: int, trees: dict[str, Any]) -> dict[str, Any]:
        items = {item: ocp.args.StandardRestore(tree) for item, tree in trees.items()}
        restored = self._read_items(step, ocp.args.Composite(**items))
        return {item: restored[item] for item in trees}

    def _read_items(self, step: int, args: ocp.args.Composite) -> Any:
        path = checkpoint(self._folder, step)
        with damage.reading(path), reading(path):
            return self._reader.restore(path, args=args)

    def _steps(self) -> list[int]:
        """All whole steps that process 0 sees, newest first."""
        return agreed(saved_steps(self._folder))

    def _move_aside(self, step: int, finding: str, used: int | None = None) -> None:
        """Rename a damaged step, and report it.

        Args:
          finding: the damage that was found.
          used: the step that is restored instead.
        """
        source = checkpoint(self._folder, step)

        def rename() -> None:
            now = step_folders.set_aside(source, finding)
            instead = "" if used is None else f", and step {used} is used instead"
            message = f"checkpoint {source} is damaged: {finding}; {now}{instead}"
            say(message)

        on_main(rename)


def _converted(array: jax.Array, like: Any) -> jax.Array:
    return array if array.dtype == like.dtype else array.astype(like.dtype)
