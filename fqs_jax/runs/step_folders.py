"""The folder of a checkpoint: when it counts as whole, how it is set aside and deleted.

On a disk each of these is a rename. In a bucket, where nothing is renamed, an object decides: with
`folders.COMMITTED`, which is written last and deleted first, the checkpoint counts; with `folders.DAMAGED`
it no longer does.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from fqs_jax.runs.folders import COMMITTED, DAMAGED, free_name, is_whole
from fqs_jax.runtime import agreement, buckets, files, leases, paths
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.orbax_errors import reason

_UNFINISHED = "*.orbax-checkpoint-tmp"  # what Orbax calls a step that is being written
_DELETED = "deleted_"


def prepare(folder: Path) -> None:
    """Make the folder of checkpoints, and remove what killed runs have left in it."""
    files.make_folder(folder)
    delete_unfinished(folder)


def place(folder: Path, step: int) -> Path:
    """The folder that a step is to be saved in; see `folders.checkpoints`. All processes must call this."""
    if not paths.is_bucket(folder):
        return folder / str(step)
    number = leases.number(folder)  # which process 0 alone knows
    return folder / "-".join(
        map(str, [step, *agreement.agreed([] if number is None else [number])])
    )


def exists(step: Path) -> bool:
    """True if a save that has begun has ended well."""
    return is_whole(step) if paths.is_bucket(step) else step.is_dir()


def settle(step: Path) -> None:
    """Make a step that is written, and does not count yet, survive a power cut.

    TensorStore has synced the arrays, but Orbax neither its own files nor any folder. In a bucket all is
    safe, but another run may have taken the folder over meanwhile.

    Raises:
      UserError: it has.
    """
    if paths.is_bucket(step):
        leases.check(step)
    else:
        files.sync_tree(step.with_name(_UNFINISHED.replace("*", step.name)))


def sync(folder: Path) -> None:
    """Make the names in the folder of checkpoints survive a power cut."""
    if not paths.is_bucket(folder):
        files.sync_folder(folder)


def disown(step: Path) -> Callable[[], object]:
    """Let a step no longer count; what is returned deletes it, which may take long.

    Raises:
      OSError, UserError: it still counts.
    """
    if paths.is_bucket(step):
        leases.check(step)
        buckets.delete(step / COMMITTED)
        return lambda: _delete_objects(step)
    target = step.with_name(f"{_DELETED}{step.name}")
    step.rename(target)
    return lambda: shutil.rmtree(target, ignore_errors=True)


def _delete_objects(step: Path) -> None:
    """Delete a checkpoint that does not count; if that fails, the next run does it (`prepare`)."""
    with contextlib.suppress(UserError):
        buckets.delete(step)


def delete_unfinished(folder: Path) -> None:
    """Delete what no save has finished and no deletion has ended.

    In a bucket this keeps damaged checkpoints until their step is about to be saved again (`make_way`).
    """
    if paths.is_bucket(folder):
        for step in files.entries(folder):
            if not is_whole(step) and not (step / DAMAGED).exists():
                leases.check(folder)
                buckets.delete(step)
        return
    for pattern in (_UNFINISHED, f"{_DELETED}*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def make_way(step: Path) -> None:
    """Delete a damaged checkpoint of a step that is about to be saved again, in a bucket."""
    if paths.is_bucket(step) and (step / DAMAGED).exists():
        leases.check(step)
        buckets.delete(step, (COMMITTED,))


def set_aside(step: Path, finding: str) -> str:
    """Let a damaged step no longer count, and keep it for whoever wants to look at it.

    Returns:
      Where it is now, for a message.

    Raises:
      UserError: that is not possible.
    """
    if paths.is_bucket(step):
        files.write_text(step / DAMAGED, f"{finding}\n")
        return f"it does not count any more, as its object {DAMAGED} says"
    target = free_name(step.with_name(f"damaged_{step.name}"))
    try:
        step.rename(target)
    except OSError as error:
        raise UserError(f"cannot rename {step}, which is damaged: {reason(error)}") from error
    return f"it is now {target.name}"
