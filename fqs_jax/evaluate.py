"""Evaluate: `python -m fqs_jax.evaluate --checkpoint=HF_DIR --text=FILE --json`.

With --checkpoint=W --stage=N a stage of a working directory, with its thoughts if it thinks; with
--workdir=W --all_stages all of them side by side. With --task=csqa --task_file=FILE a benchmark
in place of a text (docs/metrics.md). With --watch --teacher=W:3 --student=W:4 TEXT whether a model
without thoughts still follows its teacher: exit code 0 "keep" or 3 "retrain".
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from fqs_jax.data.sources import documents as documents_lib
from fqs_jax.evaluation import comparison, comparison_file, text, watch_command
from fqs_jax.evaluation.tasks import command
from fqs_jax.runs import loading
from fqs_jax.runtime import cli, processes
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.progress import Progress

_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Hugging Face folder or working directory.")
_STAGE = flags.DEFINE_string("stage", None, "Stage of a working directory: number, name or init.")
_TEXT = flags.DEFINE_string("text", "", "Held-out text: files, tfds:NAME and more (docs/data.md).")
_SEQ_LEN = flags.DEFINE_integer(
    "seq_len",
    None,
    "Tokens of a window; default what the model was made for, at most 1024.",
    2,
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Rows in a batch; default 8 windows, 32 rows of a task.", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of sampled thoughts.", 0, cli.MAX_SEED)
_JSON = flags.DEFINE_bool("json", False, "Print JSON, one line a model.")
cli.define_device_flags()
_WORKDIR = flags.DEFINE_string("workdir", "", "Working directory, with --all_stages.")
_ALL_STAGES = flags.DEFINE_bool("all_stages", False, "Compare all stages of --workdir.")
_THOUGHT_SEEDS = flags.DEFINE_integer(
    "thought_seeds", None, "Sampled thoughts averaged; default 4 for answers, 1 for text.", 1
)
_OF_TASKS = ("task_file", "labels_file", "limit", "greedy", "fit_file", "votes", "chains_file")
command.define_flags()
watch_command.define_flags()


def main(argv: Sequence[str]) -> None:
    if flags.FLAGS.watch:
        if code := watch_command.main(argv[1] if len(argv) > 1 else _TEXT.value):
            processes.leave(code)
        return
    if len(argv) > 1:
        raise UserError(f"unknown argument {argv[1]!r}; options start with --, see --help")
    if flags.FLAGS.task:
        command.main()
        return
    for name in _OF_TASKS:
        if flags.FLAGS[name].value != flags.FLAGS[name].default:
            raise UserError(f"--{name} is given but no --task; see --help for the tasks")
    if _ALL_STAGES.value:
        _compare_all()
        return
    cli.require(checkpoint=_CHECKPOINT.value, text=_TEXT.value)
    documents = documents_lib.read_documents(_TEXT.value)
    loaded = loading.load(_CHECKPOINT.value, _STAGE.value, mesh=cli.mesh_from_flags())
    with Progress("windows", 0, 0) as bar:
        scores = text.score(
            loaded,
            documents,
            _SEQ_LEN.value,
            _BATCH_SIZE.value or 8,
            _SEED.value,
            progress=bar.advance_to,
        ).summary()
    if scores["seq_len"] > loaded.model.max_seq_len:
        print(
            f"note: windows of {scores['seq_len']} tokens, the model was made for "
            f"{loaded.model.max_seq_len}",
            file=sys.stderr,
        )
    result = {"model": loaded.label, **scores, "documents": len(documents)}
    if _JSON.value:
        print(json.dumps(result))
        return
    table = Table(title=loaded.label)
    for name in result:
        table.add_column(name)
    table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in result.values()))
    Console().print(table)


def _compare_all() -> None:
    root = _WORKDIR.value or _CHECKPOINT.value
    cli.require(workdir=root)
    if _STAGE.value or (_WORKDIR.value and _CHECKPOINT.value):
        raise UserError(
            "--all_stages compares all of one --workdir; leave --stage and --checkpoint out"
        )
    documents = documents_lib.read_documents(_TEXT.value) if _TEXT.value else []
    rows = comparison.compare(
        Path(root),
        _THOUGHT_SEEDS.value,
        documents,
        lambda name: print(f"evaluating {name}", file=sys.stderr),
        cli.mesh_from_flags(),
        _SEED.value,
        _SEQ_LEN.value,
        _BATCH_SIZE.value,
    )
    from fqs_jax.evaluation import tradeoff  # matplotlib takes most of a second to import

    about = _TEXT.value or comparison_file.PROBLEMS
    given = {name: flags.FLAGS[name] for name in ("text", "thought_seeds", "seed", "seq_len")}
    changed = {name: flag.value for name, flag in given.items() if flag.value != flag.default}
    try:
        comparison_file.write(Path(root), rows, about, changed)  # for the report
        tradeoff.write(rows, Path(root) / tradeoff.NAME, Path(about).name)
    except OSError as error:
        print(f"note: {error.filename}: {error.strerror}; not kept for the report", file=sys.stderr)
    if _JSON.value:
        for row in rows:
            print(json.dumps(comparison_file.as_json(row)))
        return
    table = Table(title=f"{root}: held-out items")
    columns = ("stage", "model", "steps", "accuracy", "NLL", "easy", "middle", "hard")
    for column in (*columns, "ms/token", "FLOPs/token"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        known = not math.isnan(row.accuracy)
        table.add_row(
            row.stage,
            row.name,
            f"{row.steps:,}",
            f"{row.accuracy:.3f} \u00b1 {row.accuracy_error:.3f}" if known else "-",
            *(f"{nll:.3f}" for nll in (row.nll, row.nll_easy, row.nll_middle, row.nll_hard)),
            f"{row.ms_per_token:.2f}",
            f"{row.flops_per_token:.2e}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    cli.run(main, arguments=1)
