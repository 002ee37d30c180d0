"""The work of `python -m fqs_jax.sweep`: cells are listed, run or shown as its flags say."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fqs_jax.runtime import (
    buckets,
    cli,
    compiled_programs,
    config_flag,
    paths,
    processes,
    screen,
)
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.stderr import say
from fqs_jax.sweeps import cells as cells_lib
from fqs_jax.sweeps import children, fields, logs, measuring, overview, shared_stages, sheet
from fqs_jax.sweeps import results as results_lib
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.fields import Sweep


def main() -> None:
    """List, run or show the cells of the sweep that the flags name."""
    cli.require(workdir=flags.FLAGS.workdir)
    parts = sum((flags.FLAGS.list, flags.FLAGS.table, flags.FLAGS.cell is not None))
    if parts > 1:
        raise UserError("--list, --cell and --table exclude one another; give one")
    if parts and flags.FLAGS.jobs > 1:
        raise UserError("--jobs is for all cells; leave it out with --list, --cell or --table")
    root = paths.expand(flags.FLAGS.workdir)
    paths.check_workdir(root)
    sweep = fields.read(flags.FLAGS.config)
    cells = cells_lib.of(sweep, root)
    if not flags.FLAGS.table:
        measuring.check(sweep)
    if paths.is_bucket(root) and not flags.FLAGS.list:
        buckets.check_writable(root)
        # All cells have the same programs, and may run on many machines.
        os.environ.setdefault(compiled_programs.NAMED, f"{root}/{compiled_programs.FOLDER}")
    if flags.FLAGS.list:
        for cell in cells:
            print(f"{cell.number} {cell.command}")
    elif flags.FLAGS.cell is not None:
        if flags.FLAGS.cell >= len(cells):
            raise UserError(
                f"cell {flags.FLAGS.cell} does not exist; cells are numbered 0 to {len(cells) - 1}"
            )
        _run_cell(cells[flags.FLAGS.cell], cells)
    elif flags.FLAGS.table:
        _write_table(root, sweep, cells)
    else:
        failed = _run_all(cells)
        if len(failed) < len(cells):
            _write_table(root, sweep, cells)
        for line in failed:
            _note(line)
        if failed:
            raise UserError(
                f"{len(failed)} of {len(cells)} cells failed; run the same command again to retry them"
            )


def _run_cell(cell: Cell, cells: Sequence[Cell]) -> None:
    """Train and evaluate one of the cells, unless it is done."""
    if results_lib.is_stale(cell):
        _note(
            f"{cell} has a result of another command or benchmark; its stages resume from their checkpoints"
        )
    elif results_lib.read(cell):
        _note(f"{cell} is done: {cell.folder / results_lib.RESULT}")
        return
    for note in shared_stages.copy(cell, cells):
        _note(note)
    [end] = children.run([[sys.executable, *cell.arguments]])
    if end.code:
        if end.code < 0:
            _note(f"error: {cell}: the training program was ended by signal {-end.code}")
        processes.leave(end.code if end.code > 0 else 128 - end.code)
    measuring.evaluate(cell)


def _run_all(cells: Sequence[Cell]) -> list[str]:
    """Run every cell that is not done, each as its own process.

    Returns:
      One line for each cell that failed.
    """
    todo = [cell for cell in cells if not results_lib.read(cell)]
    if len(todo) < len(cells):
        _note(f"{len(cells) - len(todo)} of {len(cells)} cells are done")
    commands = [
        [sys.executable, "-m", "fqs_jax.sweep", *_sweep_flags(), f"--cell={cell.number}"]
        for cell in todo
    ]
    failed: list[str] = []

    def report_start(i: int) -> None:
        _note(f"{todo[i]} starts; its log is {kept[i].here}")

    def report_end(i: int, end: children.End) -> None:
        kept[i].keep()
        if not end.code:
            _note(f"{todo[i]} is done, {end.seconds:.0f} s")
            return
        failed.append(f"{todo[i]} failed, code {end.code}: {end.last_line} ({kept[i].place})")
        _note(failed[-1])

    with logs.of([cell.folder for cell in todo]) as kept:
        here = [log.here for log in kept]
        children.run(commands, here, flags.FLAGS.jobs, report_start, report_end)
    return failed


def _write_table(root: Path, sweep: Sweep, cells: Sequence[Cell]) -> None:
    results = [results_lib.read(cell) for cell in cells]
    if not any(results):
        raise UserError(f"no cell of this sweep is done in {root}; run it without --table first")
    command = " ".join(["python -m fqs_jax.sweep", *map(cli.quote, _sweep_flags())])
    found = overview.make(sweep, cells, results, command)
    sheet.write(root, found.sheet, found.notes, found.content, found.figure)
    screen.show(sheet.screen(found.sheet, str(root)), 160)
    for note in found.notes:
        print(printable(note))
    print(printable(str(root / f"{sheet.NAME}.md")))


def _sweep_flags() -> list[str]:
    """The flags that identify this sweep."""
    changes = config_flag.overrides()
    return [f"--config={config_flag.file()}", *changes, f"--workdir={flags.FLAGS.workdir}"]


def _note(line: str) -> None:
    say(printable(line))
