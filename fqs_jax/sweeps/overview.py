"""The overview of a sweep: its table, the notes below it, the picture and the JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from fqs_jax.sweeps import choosing, gains, gains_table, table
from fqs_jax.sweeps import results as results_lib
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.choosing import Choice
from fqs_jax.sweeps.fields import Sweep
from fqs_jax.sweeps.sheet import Sheet

Results = Sequence[dict[str, Any] | None]


class Overview(NamedTuple):
    """A table, its picture, the sentences below it, and the content of results.json."""

    sheet: Sheet
    figure: Figure
    notes: list[str]
    content: dict[str, Any]


def make(sweep: Sweep, cells: Sequence[Cell], results: Results, command: str) -> Overview:
    """The overview of a sweep. Of each bracket it shows the setting that validation items choose.

    Args:
      results: one for each cell; None = not done.
      command: command line that makes the table.
    """
    scores = [
        gains.score(cell, result, sweep.validation_items)
        if sweep.is_of_checkpoint
        else results_lib.score(cell, result)
        for cell, result in zip(cells, results, strict=True)
    ]
    choices = choosing.choose(cells, scores, sweep.choose_by)
    edges = [name for name, choice in choices.items() if choice.is_at_edge]
    shown = choosing.shown(cells, results, choices)
    kept, kept_results = [cell for cell, _ in shown], [result for _, result in shown]
    notes = [*results_lib.about(cells, results, command), *choosing.notes(choices)]
    if sweep.is_of_checkpoint:
        measured = gains.lines(kept, kept_results, sweep.validation_items, sweep.show_once, edges)
        sheet, figure = gains_table.sheet(measured), gains_table.draw(measured)
        lines = list(map(gains.as_json, measured))
        notes += gains.unlike(kept, kept_results, sweep.show_once)
    else:
        plain = results_lib.lines(kept, kept_results, sweep.show_once, edges)
        sheet, figure = table.sheet(plain), table.draw(plain)
        lines = list(map(results_lib.as_json, plain))
        notes += results_lib.unlike(kept, kept_results, sweep.show_once)
    missing = [c.number for c, r in zip(cells, results, strict=True) if r is None]
    content = {"command": command, "notes": notes, "lines": lines, "missing_cells": missing}
    if choices:

        def of_setting(own: Sequence[Cell], done: Results) -> list[dict[str, Any]]:
            if sweep.is_of_checkpoint:
                return list(map(gains.as_json, gains.lines(own, done, sweep.validation_items)))
            return list(map(results_lib.as_json, results_lib.lines(own, done)))

        content["brackets"] = list(map(choosing.as_json, choices.values()))
        content["lines_not_chosen"] = _not_chosen(cells, results, choices, of_setting)
    return Overview(sheet, figure, notes, content)


def _not_chosen(
    cells: Sequence[Cell],
    results: Results,
    choices: dict[str, Choice],
    of_setting: Callable[[Sequence[Cell], Results], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """The lines of the settings that the table leaves out."""
    lines: list[dict[str, Any]] = []
    for choice in choices.values():
        for tried in choice.tried:
            own = [
                (cell, result)
                for cell, result in zip(cells, results, strict=True)
                if (cell.variant, cell.setting) == (choice.variant, tried.setting)
            ]
            if tried.setting != choice.chosen and any(result for _, result in own):
                lines += of_setting([cell for cell, _ in own], [result for _, result in own])
    return lines
