"""The work of `python -m fqs_jax.sweep`: cells are listed, run or shown as its flags say."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from fqs_jax.runtime import cli, config_flag, paths, processes, screen
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.sweeps import cells as cells_lib
from fqs_jax.sweeps import children, choosing, measuring
from fqs_jax.sweeps import results as results_lib
from fqs_jax.sweeps import table as table_lib
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.choosing import Choice

LOG = "log.txt"  # in a cell's folder


def main() -> None:
    """List, run or show the cells of the sweep that the flags name."""
    cli.require(workdir=flags.FLAGS.workdir)
    if sum((flags.FLAGS.list, flags.FLAGS.table, flags.FLAGS.cell is not None)) > 1:
        raise UserError("--list, --cell and --table exclude one another; give one")
    root = Path(flags.FLAGS.workdir)
    paths.check_workdir(root)
    cells = cells_lib.read(flags.FLAGS.config, root)
    if flags.FLAGS.list:
        for cell in cells:
            print(f"{cell.number} {cell.command}")
    elif flags.FLAGS.cell is not None:
        if flags.FLAGS.cell >= len(cells):
            raise UserError(
                f"cell {flags.FLAGS.cell} does not exist; cells are numbered 0 to {len(cells) - 1}"
            )
        _run_cell(cells[flags.FLAGS.cell])
    elif flags.FLAGS.table:
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
    measuring.evaluate(cell)


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

    children.run(commands, logs, flags.FLAGS.jobs, report_start, report_end)
    return failed


def _write_table(root: Path, cells: Sequence[Cell]) -> None:
    results = [results_lib.read(cell) for cell in cells]
    if not any(results):
        raise UserError(f"no cell of this sweep is done in {root}; run it without --table first")
    show_once = tuple(flags.FLAGS.config.get("show_once", ()))
    choices = choosing.choose(cells, list(map(results_lib.score, cells, results)))
    edges = [name for name, choice in choices.items() if choice.is_at_edge]
    shown = choosing.shown(cells, results, choices)
    kept, kept_results = [cell for cell, _ in shown], [result for _, result in shown]
    table = results_lib.lines(kept, kept_results, show_once, edges)
    command = " ".join(["python -m fqs_jax.sweep", *map(cli.quote, _sweep_flags())])
    notes = [
        *results_lib.about(cells, results, command),
        *choosing.notes(choices),
        *results_lib.unlike(kept, kept_results, show_once),
    ]
    more = {
        "brackets": list(map(choosing.as_json, choices.values())),
        "lines_not_chosen": _lines_not_chosen(cells, results, choices),
    }
    table_lib.write(root, table, cells, results, notes, command, more if choices else {})
    screen.show(table_lib.screen(table, str(root)), 160)
    for note in notes:
        print(printable(note))
    print(printable(str(root / f"{table_lib.NAME}.md")))


def _lines_not_chosen(
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any] | None],
    choices: Mapping[str, Choice],
) -> list[dict[str, Any]]:
    """Lines of the settings that the table leaves out, for JSON."""
    lines: list[dict[str, Any]] = []
    for choice in choices.values():
        for tried in choice.tried:
            own = [n for n, cell in enumerate(cells) if cell.setting == tried.setting]
            own = [n for n in own if cells[n].variant == choice.variant]
            if tried.setting != choice.chosen and any(results[n] for n in own):
                found = results_lib.lines([cells[n] for n in own], [results[n] for n in own])
                lines += map(results_lib.as_json, found)
    return lines


def _sweep_flags() -> list[str]:
    """The flags that identify this sweep."""
    changes = config_flag.overrides()
    return [f"--config={config_flag.file()}", *changes, f"--workdir={flags.FLAGS.workdir}"]


def _note(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
