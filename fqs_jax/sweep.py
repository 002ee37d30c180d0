"""Sweep: `python -m fqs_jax.sweep --config=configs/sweeps/thinking.py --workdir=W`.

Trains and evaluates every cell (a variant with a seed) that is not done, then writes W/results.md, .json and
.png. The same command resumes a sweep. `--cell=N` runs one cell, for several machines that share W
(docs/sweeps.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from fqs_jax.runtime import cli, config_flag, typed_flags

typed_flags.define_path("workdir", "", "Folder of the cells and the table.")
flags.DEFINE_bool("list", False, "Print the cells, one line each, and stop.")
flags.DEFINE_integer("cell", None, "Run only this cell, and write no table.", 0)
flags.DEFINE_bool("table", False, "Train nothing: write the table of the cells that are done.")
flags.DEFINE_integer("jobs", 1, "Cells that run at once on this machine.", 1, 4096)


def define_flags() -> None:
    """Define the flag of the config, which reads the file and its overrides on the command line."""
    config_flag.define("sweeps/thinking", "Sweep.")


def main(_: Sequence[str]) -> None:
    from fqs_jax.sweeps import command  # here, because --help should not wait for it

    command.main()


if __name__ == "__main__":
    cli.run(main, define_flags)
