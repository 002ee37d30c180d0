"""The stages command of `python -m fqs_jax.evaluate`: `--workdir=W --all_stages`, a row for each model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.table import Table

from fqs_jax.data.sources import documents as documents_lib
from fqs_jax.data.sources import options as options_lib
from fqs_jax.evaluation import comparison, comparison_file
from fqs_jax.evaluation.comparison import Row
from fqs_jax.runtime import cli, doors, paths, screen
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.notes import note
from fqs_jax.runtime.stderr import say


def main() -> int:
    """Compare all stages of the working directory that the flags name, print them, and keep the rows.

    Returns:
      The exit code, 0.
    """
    f = flags.FLAGS
    cli.require(workdir=f.workdir or f.checkpoint)
    root = paths.expand(f.workdir or f.checkpoint)
    options = options_lib.of_program(f.download)
    documents = documents_lib.read_documents(f.text, options=options) if f.text else []
    rows = comparison.compare(
        root,
        f.thought_seeds,
        documents,
        lambda name: say(f"evaluating {printable(name)}"),
        cli.mesh_from_flags(),
        f.seed,
        f.seq_len,
        f.batch_size,
    )
    _keep(root, rows)
    for row in rows:
        if not math.isfinite(row.nll):
            note(f"the loss of {printable(row.name)} is not finite: the model is broken")
    if f.json:
        for row in rows:
            screen.print_json(comparison_file.as_json(row))
    else:
        screen.show(_table(root, rows), 120)
    return 0


def _keep(root: Path, rows: Sequence[Row]) -> None:
    """Write the rows and their picture into the working directory, where the report finds them."""
    from fqs_jax.evaluation import tradeoff  # matplotlib takes most of a second to import

    f = flags.FLAGS
    about = f.text or comparison_file.PROBLEMS
    given = {name: f[name] for name in comparison_file.FLAGS}
    changed = {name: flag.value for name, flag in given.items() if flag.value != flag.default}
    try:
        comparison_file.write(root, rows, about, changed)
        tradeoff.write(rows, root / tradeoff.NAME, Path(about).name)
    except (OSError, UserError) as error:
        reason = printable(doors.explain(error) or "")
        note(f"{reason}; not kept for the report")


def _table(root: Path, rows: Sequence[Row]) -> Table:
    table = Table(title=f"{root}: held-out items")
    columns = ("stage", "model", "steps", "accuracy", "NLL", "easy", "middle", "hard")
    for column in (*columns, "ms/token", "FLOPs/token"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        accuracy = row.accuracy.value
        table.add_row(
            row.stage,
            row.name,
            f"{row.steps:,}",
            "-" if math.isnan(accuracy) else f"{accuracy:.3f} \u00b1 {row.accuracy_error:.3f}",
            *map(_number, (row.nll, row.nll_easy, row.nll_middle, row.nll_hard)),
            _number(row.ms_per_token, 2),
            f"{row.flops_per_token:.2e}",
        )
    return table


def _number(value: float, places: int = 3) -> str:
    return f"{value:.{places}f}" if math.isfinite(value) else "-"
