"""Evaluate: `python -m fqs_jax.evaluate --checkpoint=HF_DIR --text=FILE --json`.

With --checkpoint=W --stage=N one stage of a working directory, with its thoughts if it thinks; with
--workdir=W --all_stages all of them side by side. With --task=csqa --task_file=FILE a benchmark
instead of a text (docs/metrics.md). With --watch --teacher=W:3 --student=W:4 TEXT the check that a
model without thoughts still follows its teacher: exit code 0 "keep" or 3 "retrain".
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from fqs_jax.evaluation import stages_command, task_command, text_command, watch_command
from fqs_jax.runtime import cli, processes
from fqs_jax.runtime.errors import UserError

flags.DEFINE_string("checkpoint", "", "Hugging Face folder or working directory.")
flags.DEFINE_string("stage", None, "Stage of a working directory: number, name or init.")
flags.DEFINE_string("text", "", "Held-out text: files, tfds:NAME and more (docs/data.md).")
flags.DEFINE_integer(
    "seq_len", None, "Tokens of a window; default what the model was made for, at most 1024.", 2
)
flags.DEFINE_integer(
    "batch_size", None, "Rows in a batch; default 8 windows, 32 rows of a task.", 1
)
flags.DEFINE_integer("seed", 0, "Seed of sampled thoughts.", 0, cli.MAX_SEED)
flags.DEFINE_bool("json", False, "Print JSON, one line a model.")
cli.define_device_flags()
flags.DEFINE_string("workdir", "", "Working directory, with --all_stages.")
flags.DEFINE_integer(
    "thought_seeds", None, "Sampled thoughts averaged; default 4 for answers, 1 for text.", 1
)

# Each command by the flag that chooses it; the first one given decides, and without any, text is scored.
# A command uses the flags that it defines itself and those in its SHARED. A flag that is neither is for all.
_COMMANDS = {
    "watch": watch_command,
    "task": task_command,
    "all_stages": stages_command,
    "": text_command,
}
for _command in _COMMANDS.values():
    _command.define_flags()
    flags.adopt_module_key_flags(_command)  # for --help


def main(argv: Sequence[str]) -> None:
    """Run the command that the flags choose; the exit code is the command's."""
    f = flags.FLAGS
    chosen = next(name for name in _COMMANDS if not name or f[name].value)
    if len(argv) > 1:
        if chosen != "watch":
            raise UserError(f"unknown argument {argv[1]!r}; options start with --, see --help")
        f["text"].value = argv[1]
    _refuse_unclear_models()
    _refuse_unused_flags(chosen)
    if code := _COMMANDS[chosen].main():
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
    used = {
        name: {*command.SHARED, *(flag.name for flag in f.get_flags_for_module(command))}
        for name, command in _COMMANDS.items()
    }
    titles = {name: f"--{name}" if name else "the loss of one model" for name in _COMMANDS}
    for flag in sorted(set().union(*used.values()) - used[chosen]):
        if f[flag].value == f[flag].default:
            continue
        if flag in _COMMANDS:
            raise UserError(f"--{chosen} and --{flag} do not go together; leave out one of them")
        users = " or ".join(titles[name] for name in _COMMANDS if flag in used[name])
        raise UserError(
            f"--{flag} is for {users}, not for {titles[chosen]}; leave it out, or see --help"
        )


if __name__ == "__main__":
    cli.run(main, arguments=1)
