"""The command `fqs`: `fqs NAME FLAGS` is `python -P -m fqs_jax.NAME FLAGS`.

The current folder is not on the import path.
"""

from __future__ import annotations

import runpy
import sys

from fqs_jax import __version__

GROUPS = {
    "Train": {
        "launch": "train the stages of a config, or resume them",
        "plan": "what a stage's step needs of TPUs or GPUs, attached or not",
        "prepare": "turn a large text into a dataset for training",
        "sweep": "train and compare several variants over several seeds",
    },
    "Look": {
        "evaluate": "score text, benchmarks or all stages, or watch a student",
        "report": "one page with the curves, and the thoughts before every token",
        "inspect": "what is in a working directory, and whether it is whole",
        "lm_eval_adapter": "the lm-evaluation-harness with thinking models",
    },
    "Use": {
        "generate": "continue prompts, and show the thoughts",
        "demo": "the same on a page in the browser, stages side by side",
        "convert": "export a stage to a Hugging Face folder, or import a GGUF file",
    },
}
PROGRAMS = tuple(name for programs in GROUPS.values() for name in programs)


def overview() -> str:
    """The programs in groups, with a line for each."""
    lines = ["fqs NAME FLAGS, where NAME is one of", ""]
    for group, programs in GROUPS.items():
        lines += [group, *(f"  {name:<17}{text}" for name, text in programs.items()), ""]
    lines += [
        "fqs NAME --help shows the flags of a program, fqs --version the version.",
        "To begin: fqs launch trains the built-in example in a few minutes.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the program that the first argument names, with the arguments after it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(overview())
        return
    if name in ("--version", "version"):
        print(f"fqs_jax {__version__}")
        return
    if name not in PROGRAMS:
        print(f"error: no program {name!r}; there are {', '.join(PROGRAMS)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    runpy.run_module(f"fqs_jax.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
