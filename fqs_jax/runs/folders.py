"""The folders of a working directory W, and what they hold.

W/source/            config.json and tokenizer of the initial model, as a Hugging Face folder
                     without weights; origin.json names the place of the weights
W/commands.txt       the commands that trained its stages, in order
W/evaluation.json    the last comparison of all stages; W/report.html shows it
W/stage_N/run.json   the stage row and the config that the stage was started with
W/stage_N/checkpoints/STEP/
W/stage_N/metrics.jsonl; in a bucket metrics.jsonl/000000-1.jsonl and so on
W/stage_N/teacher/   the teacher's scores of the training rows, for an NTP or distillation stage;
                     teacher_last/ for a student of last positions
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import ml_collections

from fqs_jax.curriculum import numbers
from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.runs import older_records
from fqs_jax.runtime import agreement, buckets, files, inputs, local_copies, paths
from fqs_jax.runtime.errors import UserError, printable

ITEMS = ("params", "optimizer", "progress")  # of a checkpoint, each a folder in it
SCORES = {"all": "teacher", "last": "teacher_last"}  # of a teacher, at these positions
COMMITTED, DAMAGED = "commit_success.txt", "damaged.txt"  # in a bucket; the first is Orbax's
REPAIR = (
    "restore the file, or remove it and train the stage with the same command to write it again"
)
_PAUSE = 0.3  # seconds between two looks
_NUMBER = re.compile("(0|[1-9][0-9]*)()")  # as this program writes numbers into names
_OF_A_LEASE = re.compile("(0|[1-9][0-9]*)(?:-([1-9][0-9]*))?")
_STAGE = re.compile("stage_(0|[1-9][0-9]*)")


def source_folder(root: Path) -> Path:
    """W/source of the working directory `root`."""
    return root / "source"


def is_workdir(root: Path) -> bool:
    """True for the folder of a working directory; one in a bucket must be readable.

    Raises:
      UserError: it is not.
    """
    file = source_folder(root) / "config.json"
    if not paths.is_bucket(root):
        return file.exists()
    with buckets.explained("read", root):
        if file.exists():
            return True
        buckets.check_readable(root)  # what may not be read seems not to exist
        return False


def local_source(root: Path) -> Path:
    """W/source for libraries that read files of this machine only: a copy of one in a bucket."""
    return local_copies.of(source_folder(root))


def stage_folder(root: Path, number: int) -> Path:
    """W/stage_N of the working directory `root`."""
    return root / f"stage_{number}"


def checkpoint_folder(root: Path, number: int) -> Path:
    """W/stage_N/checkpoints of the working directory `root`."""
    return stage_folder(root, number) / "checkpoints"


def read_run(root: Path, number: int) -> tuple[Stage, ml_collections.ConfigDict]:
    """The stage row and the config that a stage of the working directory was started with.

    Raises:
      UserError: its run.json is missing or cannot be read.
    """
    path = stage_folder(root, number) / "run.json"
    try:
        run = older_records.completed(read_record(path))
        stage = stage_lib.from_fields(run["stage"], "stage")
        if stage.number != number:
            raise UserError(f"stage.number is {stage.number}")
        config = ml_collections.ConfigDict(run["config"])
        numbers.check_complete(config, "config.")
    except (UserError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no record of stage {number}: {printable(str(error), 300)}; {REPAIR}"
        ) from error
    return stage, config


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a run.json with its parts, unchecked: stage, config, made_from.

    Raises:
      UserError: the file is missing, cannot be read, or lacks one of them.
    """
    run = inputs.read_json(path)
    for part in ("stage", "config", "made_from"):
        if not isinstance(run.get(part), dict):
            raise UserError(f"it has no object {part!r}")
    return run


def existing_stages(root: Path) -> list[Stage]:
    """The stages of a working directory that have a checkpoint, by number."""
    found = [n for n in stage_numbers(root) if (stage_folder(root, n) / "run.json").exists()]
    saved = [n for n in found if latest_step(checkpoint_folder(root, n)) is not None]
    return [read_run(root, n)[0] for n in saved]


def stage_numbers(root: Path) -> list[int]:
    """The numbers of all stages that have a folder in a working directory, whatever is in it."""
    found = ((_STAGE.fullmatch(path.name), path) for path in files.entries(root))
    return sorted(int(name[1]) for name, path in found if name and path.is_dir())


def saved_step(root: Path, number: int) -> int | None:
    """The newest saved step of a stage; None without one. All processes get the answer of process 0."""
    step = latest_step(checkpoint_folder(root, number))
    return next(iter(agreement.agreed([] if step is None else [step])), None)


def latest_step(folder: Path) -> int | None:
    """The newest whole step in a folder of checkpoints, without opening it; None without one."""
    return max(saved_steps(folder), default=None)


def saved_steps(folder: Path) -> list[int]:
    """The whole steps in a folder of checkpoints, newest first; empty if there is no such folder.

    A folder without any item of a checkpoint is ignored.
    """
    return list(checkpoints(folder))


def checkpoints(folder: Path) -> dict[int, Path]:
    """The folder of each whole checkpoint by its step, newest first.

    On a disk its name is the step. In a bucket, where a run that lost its lease in the middle of a save may
    still have writes on their way, the number of the lease follows: no run writes into the folder of another.
    """
    if not folder.is_dir():
        return {}
    pattern = _OF_A_LEASE if paths.is_bucket(folder) else _NUMBER
    found = sorted(
        (int(match[1]), int(match[2] or 0), path)
        for path in folder.iterdir()
        if (match := pattern.fullmatch(path.name)) and is_whole(path)
    )
    by_step = {step: path for step, _, path in found}  # of several of one step the last one
    return dict(reversed(by_step.items()))


def checkpoint(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of a step, which may not exist."""
    own = folder / str(step)
    return checkpoints(folder).get(step, own) if paths.is_bucket(folder) else own


def is_whole(step: Path) -> bool:
    """True if the folder of a checkpoint counts as one.

    In a bucket, where a save does not end with a rename, it ends with the object COMMITTED; a checkpoint that
    was found damaged has the object DAMAGED.
    """
    if not paths.is_bucket(step):
        return any((step / item).exists() for item in ITEMS)
    try:
        names = {path.name for path in step.iterdir()}
    except FileNotFoundError:
        return False
    return COMMITTED in names and DAMAGED not in names


def set_aside(folder: Path) -> list[str]:
    """The names of checkpoints in a folder that were found damaged, and that no longer count."""
    if not paths.is_bucket(folder):
        return sorted(path.name for path in folder.glob("damaged_*"))
    return sorted(path.name for path in files.entries(folder) if (path / DAMAGED).exists())


def appears(folder: Path, seconds: float = 90.0) -> bool:
    """True as soon as a folder exists here; False if it does not within some seconds.

    Network disks may show up to a minute late what another host made.
    """
    deadline = time.monotonic() + seconds
    while not folder.is_dir():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)
    return True


def free_name(path: Path) -> Path:
    """The path itself, or the first of path_2, path_3, ... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free
