"""The command `fqs`: `fqs NAME FLAGS` is `python -P -m fqs_jax.NAME FLAGS`.

The programs are convert, evaluate, generate, launch, lm_eval_adapter, plan, prepare, report and sweep;
`fqs NAME --help` shows the flags of one. The current folder is not on the import path.
"""

from __future__ import annotations

import runpy
import sys

PROGRAMS = (
    "convert",
    "evaluate",
    "generate",
    "launch",
    "lm_eval_adapter",
    "plan",
    "prepare",
    "report",
    "sweep",
)


def main() -> None:
    """Run the program that the first argument names, with the arguments after it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(__doc__)
        return
    if name not in PROGRAMS:
        print(f"error: no program {name!r}; there are {', '.join(PROGRAMS)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    runpy.run_module(f"fqs_jax.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
