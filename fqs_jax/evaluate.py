"""Evaluate: `python -m fqs_jax.evaluate --checkpoint=HF_DIR --text=FILE --json`.

It has four commands:

  --text=FILE --checkpoint=HF_DIR        the loss of one model; of a stage, with its thoughts if it
                                         thinks: --checkpoint=W --stage=N
  --all_stages --workdir=W               all stages of a working directory side by side
  --task=csqa --task_file=FILE           a benchmark instead of a text (docs/metrics.md), for one model
                                         or with --all_stages
  --watch --teacher=W:3 --student=W:4 TEXT
                                         does a model without thoughts still follow its teacher? Exit
                                         code 0 "keep" or 3 "retrain"
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from absl import flags

from fqs_jax.evaluation import command_flags
from fqs_jax.runtime import cli, processes
from fqs_jax.runtime.errors import UserError

# The flags of each command, by the flag that chooses it; the first one given decides, and without any,
# text is scored. A flag that no command has is for all.
_USED = command_flags.define()
# The commands are imported when they are run, because --help should not wait for them.
_MODULES = {
    "watch": "watch_command",
    "task": "task_command",
    "all_stages": "stages_command",
    "": "text_command",
}


def main(argv: Sequence[str]) -> None:
    """Run the command that the flags choose; the exit code is the command's."""
    f = flags.FLAGS
    chosen = next(name for name in _USED if not name or f[name].value)
    if len(argv) > 1:
        if chosen != "watch":
            raise UserError(f"unknown argument {argv[1]!r}; options start with --, see --help")
        if f.text:
            raise UserError(f"the text is given twice, as {argv[1]!r} and --text; leave one out")
        f["text"].value = argv[1]
    _refuse_unclear_models()
    _refuse_unused_flags(chosen)
    command = importlib.import_module(f"fqs_jax.evaluation.{_MODULES[chosen]}")
    if code := command.main():
        processes.leave(code)


def _refuse_unclear_models() -> None:
    """Either --checkpoint, and perhaps --stage, name one model, or --workdir and --all_stages several."""
    f = flags.FLAGS
    if f.workdir and not f.all_stages and not f.watch:
        raise UserError(
            f"--workdir is for --all_stages; add it, or give --checkpoint={f.workdir} --stage=N"
        )
    if f.all_stages and (f.stage or (f.workdir and f.checkpoint)):
        raise UserError(
            "--all_stages compares all of one --workdir; leave --stage and --checkpoint out"
        )


def _refuse_unused_flags(chosen: str) -> None:
    """A flag that the chosen command ignores is a mistake."""
    f = flags.FLAGS
    titles = {name: f"--{name}" if name else "the loss of one model" for name in _USED}
    for flag in sorted(set().union(*_USED.values()) - _USED[chosen]):
        if f[flag].value == f[flag].default:
            continue
        if flag in _USED:
            raise UserError(f"--{chosen} and --{flag} do not go together; leave out one of them")
        users = " or ".join(titles[name] for name in _USED if flag in _USED[name])
        raise UserError(
            f"--{flag} is for {users}, not for {titles[chosen]}; leave it out, or see --help"
        )


if __name__ == "__main__":
    cli.run(main, arguments=1)
