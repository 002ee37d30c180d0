"""A trace of some steps: what host and devices did when, for Perfetto, Chrome and TensorBoard."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fqs_jax.runtime import paths, processes
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.notes import note

_STEPS = re.compile(r"([1-9][0-9]{0,8}):([1-9][0-9]{0,8})")
NAME = "training step"  # of a step's event in the trace


class Steps(NamedTuple):
    """Steps of each stage to trace, counted from 1, both included."""

    first: int
    last: int


def parsed(given: str, root: Path, longest: int) -> Steps | None:
    """The steps that --profile_steps names; None if it is empty.

    Args:
      root: the working directory, which gets the trace.
      longest: the most steps that a stage of this command takes.

    Raises:
      UserError: they are none, no stage takes them, or the working directory is in a bucket.
    """
    if not given:
        return None
    shown = f"--profile_steps={printable(given, 40)}"
    match = _STEPS.fullmatch(given)
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(f"{shown}: give the first and the last step, counted from 1, such as 10:12")
    steps = Steps(int(match[1]), int(match[2]))
    if steps.first > longest:
        raise UserError(f"{shown}: no stage of this command takes more than {longest} steps")
    if paths.is_bucket(root):
        raise UserError(f"{shown} writes no files in a bucket, where {root} is; leave it out")
    return steps


class Profiler:
    """Traces the steps of a stage that are asked for. Only process 0 does.

    What goes wrong ends the trace with a note, and never training.

    Args:
      steps: None = none.
      folder: gets plugins/profile/MOMENT/HOST.trace.json.gz.
    """

    def __init__(self, steps: Steps | None, folder: Path):
        self._steps = steps if processes.is_main() else None
        self._folder, self._tracing = folder, False

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The context in which a step, counted from 1, is started; its trace begins with the first."""
        steps = self._steps
        if steps is None or not steps.first <= number <= steps.last:
            yield
            return
        self._start()
        with jax.profiler.StepTraceAnnotation(NAME, step_num=number):
            yield

    def done(self, number: int, values: Any) -> None:
        """End the trace after its last step.

        Args:
          values: results of the step, which are waited for.
        """
        if self._tracing and self._steps is not None and number == self._steps.last:
            jax.block_until_ready(values)
            self._stop()

    def _start(self) -> None:
        if self._tracing:
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python would be most of the file
        try:
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._tracing = True
        except Exception as error:
            self._give_up(error)

    def _stop(self) -> None:
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            newest = max(self._folder.glob("plugins/profile/*/*.trace.json.gz"))
            note(f"a trace of training steps is in {newest}: open it at ui.perfetto.dev")
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._steps = None
        reason = printable(str(error) or type(error).__name__, 200)
        note(f"--profile_steps ends here, training goes on: {reason}")
