"""Sweep: `python -m fqs_jax.sweep --config=configs/sweeps/thinking.py --workdir=W`.

Trains and evaluates every cell (a variant with a seed) that is not done, then writes W/results.md, .json and
.png. The same command resumes a sweep. `--cell=N` runs one cell, for several machines that share W
(docs/sweeps.md).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from fqs_jax.runtime import cli, processes
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import cells as cells_lib
from fqs_jax.sweeps import children
from fqs_jax.sweeps import results as results_lib
from fqs_jax.sweeps.cells import Cell

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the cells and the table.")
_LIST = flags.DEFINE_bool("list", False, "Print the cells, one line each, and stop.")
_CELL = flags.DEFINE_integer("cell", None, "Run only this cell, and write no table.", 0)
_TABLE = flags.DEFINE_bool(
    "table", False, "Train nothing: write the table of the cells that are done."
)
_JOBS = flags.DEFINE_integer("jobs", 1, "Cells that run at once on this machine.", 1)
LOG = "log.txt"  # in a cell's folder


def define_flags() -> None:
    """Define the flag of the config, which reads the file and its overrides on the command line."""
    default = "configs/sweeps/thinking.py"
    config_flags.DEFINE_config_file("config", default, "Sweep.", lock_config=True)


def main(_: Sequence[str]) -> None:
    cli.require(workdir=_WORKDIR.value)
    if sum((_LIST.value, _TABLE.value, _CELL.value is not None)) > 1:
        raise UserError("--list, --cell and --table exclude one another; give one")
    root = Path(_WORKDIR.value)
    cells = cells_lib.read(flags.FLAGS.config, root)
    if _LIST.value:
        for cell in cells:
            print(f"{cell.number} {cell.command}")
    elif _CELL.value is not None:
        if _CELL.value >= len(cells):
            raise UserError(
                f"cell {_CELL.value} does not exist; cells are numbered 0 to {len(cells) - 1}"
            )
        _run_cell(cells[_CELL.value])
    elif _TABLE.value:
        _write_table(root, cells)
    else:
        failed = _run_all(cells)
        if len(failed) < len(cells):
            _write_table(root, cells)
        for line in failed:
            _note(line)
        if failed:
            raise UserError(
                f"{len(failed)} of {len(cells)} cells failed; run the same command again to retry them"
            )


def _run_cell(cell: Cell) -> None:
    """Train and evaluate one cell, unless it is done."""
    if results_lib.is_stale(cell):
        _note(f"{cell} has a result of another command; its stages resume from their checkpoints")
    elif results_lib.read(cell):
        _note(f"{cell} is done: {cell.folder / results_lib.RESULT}")
        return
    [end] = children.run([[sys.executable, *cell.arguments]])
    if end.code:
        if end.code < 0:
            _note(f"error: {cell}: the training program was ended by signal {-end.code}")
        processes.leave(end.code if end.code > 0 else 128 - end.code)
    results_lib.evaluate(cell)


def _run_all(cells: Sequence[Cell]) -> list[str]:
    """Run every cell that is not done, each as its own process.

    Returns:
      One line for each cell that failed.
    """
    todo = [cell for cell in cells if not results_lib.read(cell)]
    if len(todo) < len(cells):
        _note(f"{len(cells) - len(todo)} of {len(cells)} cells are done")
    commands, logs = [], []
    for cell in todo:
        cell.folder.mkdir(parents=True, exist_ok=True)
        commands.append(
            [sys.executable, "-m", "fqs_jax.sweep", *_sweep_flags(), f"--cell={cell.number}"]
        )
        logs.append(cell.folder / LOG)
    failed: list[str] = []

    def report_start(i: int) -> None:
        _note(f"{todo[i]} starts; its log is {logs[i]}")

    def report_end(i: int, end: children.End) -> None:
        if not end.code:
            _note(f"{todo[i]} is done, {end.seconds:.0f} s")
            return
        failed.append(f"{todo[i]} failed, code {end.code}: {end.last_line} ({logs[i]})")
        _note(failed[-1])

    children.run(commands, logs, _JOBS.value, report_start, report_end)
    return failed


def _write_table(root: Path, cells: Sequence[Cell]) -> None:
    from fqs_jax.sweeps import table as table_lib  # matplotlib takes most of a second to import

    results = [results_lib.read(cell) for cell in cells]
    if not any(results):
        raise UserError(f"no cell of this sweep is done in {root}; run it without --table first")
    show_once = tuple(flags.FLAGS.config.get("show_once", ()))
    table = results_lib.lines(cells, results, show_once)
    command = shlex.join(["python", "-m", "fqs_jax.sweep", *_sweep_flags()])
    notes = results_lib.about(cells, results, show_once, command)
    table_lib.write(root, table, cells, results, notes, command)
    Console(width=160).print(table_lib.screen(table, str(root)))
    for note in notes:
        print(note)
    print(root / f"{table_lib.NAME}.md")


def _sweep_flags() -> list[str]:
    """The flags that identify this sweep."""
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    return [f"--config={file}", *cli.config_overrides(), f"--workdir={_WORKDIR.value}"]


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main, define_flags)
