"""Metrics elsewhere too: TensorBoard, Weights & Biases, Prometheus. metrics.jsonl is always written.

Whatever goes wrong elsewhere ends the logging there with one note, and never training.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fqs_jax.runs import best
from fqs_jax.runs.prometheus_file import PrometheusFile
from fqs_jax.runtime import paths, processes
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.notes import note

NAMES = ("tensorboard", "wandb", "prometheus")
_LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Logger(Protocol):
    """A place that gets the rows of metrics.jsonl."""

    def step(self, row: Mapping[str, Any]) -> None:
        """Take the row of a step."""

    def close(self) -> None:
        """No row follows."""


def check(names: Sequence[str], root: Path) -> None:
    """Refuse, before anything runs, what cannot log.

    Raises:
      UserError: a name is unknown, its library is missing, or the working directory is in a bucket.
    """
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"--also_log={printable(name, 40)}: choose from {', '.join(NAMES)}, comma-separated"
            )
        if library := _LIBRARIES.get(name):
            try:
                importlib.import_module(library)
            except ImportError as error:
                raise UserError(
                    f"--also_log={name}: {error}; pip install {library}, or leave it out"
                ) from error
        if name != "wandb" and paths.is_bucket(root):
            raise UserError(
                f"--also_log={name} writes no files in a bucket, where {root} is; leave it out"
            )


def open_all(names: Sequence[str], folder: Path, stage: str, first_step: int = 0) -> AlsoLog:
    """The loggers of a stage; none but in process 0.

    Args:
      names: of `NAMES`.
      folder: of the stage.
      stage: its name in the logs.
      first_step: the step that the stage resumes from.
    """
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: _TensorBoard(folder / "tensorboard", first_step),
        "wandb": lambda: _Wandb(folder, stage),
        "prometheus": lambda: PrometheusFile(folder / "metrics.prom", stage),
    }
    opened: dict[str, Logger] = {}
    for name in names if processes.is_main() else ():
        try:
            opened[name] = makers[name]()
        except Exception as error:
            _note_end(name, error)
    return AlsoLog(opened)


class AlsoLog:
    """Several loggers, of which one that fails is left out from then on."""

    def __init__(self, loggers: Mapping[str, Logger]):
        self._loggers = dict(loggers)

    def __enter__(self) -> AlsoLog:
        return self

    def __exit__(self, *_: object) -> None:
        for name, logger in self._loggers.items():
            try:
                logger.close()
            except Exception as error:
                _note_end(name, error)

    def step(self, row: Mapping[str, Any]) -> None:
        """Hand a row to all of them."""
        for name, logger in list(self._loggers.items()):
            try:
                logger.step(row)
            except Exception as error:
                del self._loggers[name]
                _note_end(name, error)

    def held_out(self, row: Mapping[str, Any]) -> None:
        """Hand them the losses of a row on held-out text, as held_out/FIELD."""
        self.step({"step": row["step"], **best.losses(row)})


class _TensorBoard:
    """A new event file in a folder; TensorBoard draws all of them as one curve.

    Args:
      first_step: what earlier files have after it is hidden.
    """

    def __init__(self, folder: Path, first_step: int):
        library = importlib.import_module("tensorboardX")
        # Files are read in the order of their names, which begin with the second of the start.
        name = f".{first_step:09d}"
        self._file = library.SummaryWriter(
            str(folder), purge_step=first_step + 1, filename_suffix=name
        )

    def step(self, row: Mapping[str, Any]) -> None:
        """Write the numbers; those that were not finite are left out."""
        numbers = {key: value for key, value in row.items() if key not in ("step", "time")}
        spent = {f"time/{key}": value for key, value in row.get("time", {}).items() if key != "at"}
        for name, value in {**numbers, **spent}.items():
            if value is not None:
                self._file.add_scalar(name, value, row["step"])
        self._file.flush()  # a kill loses no row

    def close(self) -> None:
        self._file.close()


class _Wandb:
    """A run of Weights & Biases at every start; WANDB_MODE=offline and its other variables count."""

    def __init__(self, folder: Path, stage: str):
        wandb = importlib.import_module("wandb")
        project = folder.parent.name or "fqs_jax"
        place = None if paths.is_bucket(folder) else str(folder)  # None: its own choice
        self._run = wandb.init(project=project, name=stage, group=stage, dir=place)

    def step(self, row: Mapping[str, Any]) -> None:
        self._run.log(dict(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _note_end(name: str, error: Exception) -> None:
    reason = printable(str(error) or type(error).__name__, 200)
    note(f"--also_log={name} ends here, training goes on: {reason}", once=f"also_log {name}")
