"""Train: `python -m fqs_jax.launch --config=configs/tiny.py --stage=all --workdir=W`.

Runs one stage from the stage before it in W, several (`--stage=0,2`), or all of them in order.
The same command resumes a stopped run. Any field of the config can be overridden: `--config.batch_size=4`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fqs_jax.runtime import cli, config_flag, paths, processes, typed_flags
from fqs_jax.runtime.errors import UserError, printable

_STAGE = flags.DEFINE_string(
    "stage", "all", "Number or name of a stage, several with commas, or all."
)
_WORKDIR = typed_flags.define_path("workdir", "", "Where checkpoints and metrics go.")
_INIT_FROM = typed_flags.define_path("init_from", "", "Hugging Face folder of the initial model.")
_TEXT = flags.DEFINE_string(
    "text", "", "Text to train on: files, tfds:NAME, mixtures (docs/data.md)."
)
_MAX_STEPS = flags.DEFINE_integer("max_steps", None, "No stage takes more steps.", lower_bound=1)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what would run and the memory that it needs, and stop."
)


def define_flags() -> None:
    """Flags of several processes, and the config's, which reads file and command line at once."""
    processes.define_flags()
    config_flag.define("tiny", "Experiment.")


def main(_: Sequence[str]) -> None:
    # Imported here, because --help should not wait for them.
    from fqs_jax.curriculum import resolve
    from fqs_jax.curriculum import stage as stage_lib
    from fqs_jax.model import placement
    from fqs_jax.runs import history, source
    from fqs_jax.runtime import accelerators, agreement, sharding
    from fqs_jax.runtime.interrupts import Interrupts
    from fqs_jax.training import loop, start, step
    from fqs_jax.training.overview import print_memory, print_overview
    from fqs_jax.training.start import RESUME, Run

    config = flags.FLAGS.config
    if _INIT_FROM.value:
        config.init_from = _INIT_FROM.value
    if _TEXT.value:
        config.data.source, config.data.text = "text", _TEXT.value
    config_flag.expand_paths(config)
    cli.require(workdir=_WORKDIR.value)
    if config.get("requires_init_from", False) and not config.init_from:
        raise UserError("this config fine-tunes a checkpoint: give --init_from=HF_DIR")
    root = Path(_WORKDIR.value)
    paths.check_workdir(root)
    given = (config.to_dict(), _STAGE.value, _MAX_STEPS.value, _DRY_RUN.value)
    agreement.check_same(repr(given), "flags or another config")
    with contextlib.ExitStack() as stack:
        # A dry run leaves no trace.
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if _DRY_RUN.value else root
        model, tokenizer = source.prepare(place, config, everyone=_DRY_RUN.value)
    recipes = resolve.recipes(config, model, _MAX_STEPS.value)
    stages = [recipe.stage for recipe in recipes]
    chosen = stage_lib.select(stages, _STAGE.value)
    todo = [recipe for recipe in recipes if recipe.stage in chosen]
    accelerators.note_unused()
    mesh = sharding.make_mesh(config.mesh)
    placement.check_model(model, mesh)
    for recipe in todo:  # now, and not when its turn comes
        step.split_rows(recipe, mesh)
        start.check_base(recipe, config)
    if _DRY_RUN.value:
        print_overview(root, todo, recipes, mesh)
        print_memory(todo, mesh)
        return
    with Interrupts() as interrupts:
        run = Run(root, config, tokenizer, mesh, interrupts, lambda number: _command(str(number)))
        for recipe in todo:
            loop.run_stage(run, recipe)
            interrupts.check(f"{recipe.stage} is done; {RESUME}")
        history.record_command(root, _command(_STAGE.value))
    print(printable(f"Done: {', '.join(map(str, chosen))} in {root}"), flush=True)


def _command(stage: str) -> str:
    """The command line that makes a stage, several, or all, of this working directory."""
    command = cli.command_line(
        "fqs_jax.launch",
        config=config_flag.file(),
        init_from=_INIT_FROM.value,
        text=_TEXT.value,
        workdir=_WORKDIR.value,
        max_steps=_MAX_STEPS.value,
        stage=stage,
    )
    return " ".join([command, *map(cli.quote, config_flag.overrides())])


if __name__ == "__main__":
    cli.run(main, define_flags, computes_long=True)
