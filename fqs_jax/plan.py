"""Plan: `python -m fqs_jax.plan --config=configs/mistral_7b.py --stage=1 --topology=v5e:4x4`.

Compiles a stage's training step for devices that may be absent, and prints what it needs of them.
The exit status is 0 if it fits, 1 if not, 2 on bad input. Any field of the config can be overridden:
`--config.microbatches=2 --config.mesh.tensor=4`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from fqs_jax.runtime import cli, config_flag, typed_flags

flags.DEFINE_string("stage", "1", "Number or name of a stage.")
flags.DEFINE_string(
    "topology",
    "",
    "What to compile for, such as v5e:4x4, v6e:16x16, v5p:2x2x1, v7x:2x2x1, h100:8, h200:1 or cpu:8.",
)
typed_flags.define_path("model", "", "Folder with the config.json of another model.")
typed_flags.define_number("utilisation", 0.5, "Share of peak FLOP/s to expect.", 0.01, 1.0)
typed_flags.define_number(
    "memory", 0.0, "GiB of a device that a step may use; 0 = all.", 0.0, 2.0**20
)
flags.DEFINE_bool(
    "links",
    False,
    "Also estimate the bytes between devices, from the text of the compiled program.",
)
flags.DEFINE_bool("sweep", False, "Try microbatches and remat policies.")
flags.DEFINE_bool("json", False, "Print one line of JSON (with --sweep, one for each).")


def define_flags() -> None:
    config_flag.define("mistral_7b", "Experiment.")


def main(_: Sequence[str]) -> None:
    from fqs_jax.planning import command  # here, because --help should not wait for it

    sys.exit(command.main())


if __name__ == "__main__":
    cli.run(main, define_flags)
