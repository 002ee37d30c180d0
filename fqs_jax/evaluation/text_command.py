"""The text command of `python -m fqs_jax.evaluate`: `--checkpoint=HF_DIR --text=FILE`."""

from __future__ import annotations

from absl import flags
from rich.table import Table

from fqs_jax.data.sources import documents as documents_lib
from fqs_jax.data.sources import options as options_lib
from fqs_jax.evaluation import text
from fqs_jax.runs import loading
from fqs_jax.runtime import cli, screen
from fqs_jax.runtime.progress import Progress
from fqs_jax.runtime.stderr import say


def main() -> int:
    """Print the loss of the model that the flags name on their text.

    Returns:
      The exit code, 0.
    """
    f = flags.FLAGS
    cli.require(checkpoint=f.checkpoint, text=f.text)
    documents = documents_lib.read_documents(f.text, options=options_lib.of_program(f.download))
    loaded = loading.load(f.checkpoint, f.stage, mesh=cli.mesh_from_flags())
    loaded.tokenizer.note_unknown(documents)
    with Progress("windows", 0, 0) as bar:
        found = text.score(
            loaded,
            documents,
            f.seq_len,
            f.batch_size or 8,
            f.seed,
            thoughts=f.thought_seeds or 1,
            progress=bar.advance_to,
        )
    found.check_finite(loaded.label)
    scores = found.summary()
    if scores["seq_len"] > loaded.model.max_seq_len:
        say(
            f"note: windows of {scores['seq_len']} tokens, the model was made for "
            f"{loaded.model.max_seq_len}"
        )
    result = {"model": loaded.label, **scores, "documents": len(documents)}
    if f.json:
        screen.print_json(result)
        return 0
    table = Table(title=loaded.label)
    for name in result:
        table.add_column(name)
    table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in result.values()))
    screen.show(table)
    return 0
