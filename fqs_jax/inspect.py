"""Inspect: `python -m fqs_jax.inspect W` shows what is in a working directory; nothing is changed.

Stages with their steps, sizes, last metrics and what each was made from; with --verify every checkpoint is
read, and compared with the fingerprints that were saved with it. The exit code is 0 if all that was read is
whole, 1 if something is damaged, and 2 if W cannot be inspected.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from fqs_jax.runtime import cli, paths, typed_flags

DAMAGED = 1  # exit code

_WORKDIR = typed_flags.define_path(
    "workdir", "", "Working directory; also accepted without the flag."
)
_VERIFY = flags.DEFINE_bool("verify", False, "Read every checkpoint, and say which are damaged.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def main(argv: Sequence[str]) -> None:
    """Print the contents of the working directory that the command line names."""
    # Imported here, because --help should not wait for them.
    from fqs_jax.reporting import inventory, inventory_table
    from fqs_jax.runtime import screen

    contents = inventory.read(paths.expand(cli.one_workdir(argv, _WORKDIR.value)))
    if _VERIFY.value:
        from fqs_jax.reporting import verification

        contents = verification.verify(contents)
    if _JSON.value:
        screen.print_json(inventory_table.as_json(contents))
    else:
        screen.print_line(inventory_table.title(contents))
        screen.show(inventory_table.table(contents))
        for line in inventory_table.lines(contents):
            screen.print_line(line)
        if _VERIFY.value and not any(contents.damages()):
            saved = sum(len(stage.checkpoints) for stage in contents.stages)
            screen.print_line(f"verified {saved} checkpoints: all are whole")
    if any(contents.damages()):
        sys.exit(DAMAGED)


if __name__ == "__main__":
    cli.run(main, arguments=1)
