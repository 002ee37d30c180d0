"""Train: `python -m fqs_jax.launch --config=tiny --stage=all --workdir=W`.

Runs one stage from the stage before it in W (`--stage=2`), several (`--stage=0,2`), those up to one
(`--stage=..2`), or all of them in order; stages that are done are left as they are. The same command
resumes a stopped run.

--config is a file, or the name of a config of the package; `tiny`, the default, is the built-in example.
The working directory is workdir/NAME, after the config, unless --workdir names another. Any field of the
config can be overridden: `--config.batch_size=4`. Several processes: --coordinator and others (--helpfull,
docs/scale.md).
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from fqs_jax.runtime import cli, config_flag, paths, processes, typed_flags
from fqs_jax.runtime.errors import UserError, printable

_STAGE = flags.DEFINE_string(
    "stage", "all", "Number or name of a stage, several with commas, ..N for all up to N, or all."
)
_WORKDIR = typed_flags.define_path(
    "workdir", None, "Where checkpoints and metrics go; default workdir/NAME, after the config."
)
_INIT_FROM = typed_flags.define_path("init_from", "", "Hugging Face folder of the initial model.")
_TEXT = flags.DEFINE_string(
    "text", "", "Text to train on: files, tfds:NAME, mixtures (docs/data.md)."
)
_MAX_STEPS = flags.DEFINE_integer("max_steps", None, "No stage takes more steps.", lower_bound=1)
_ALSO_LOG = flags.DEFINE_list(
    "also_log", [], "Metrics elsewhere too: tensorboard, wandb, prometheus (comma-separated)."
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", "", "Trace these steps of each stage, such as 10:12, for Perfetto."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what would run and the memory that it needs, and stop."
)


def define_flags() -> None:
    """Flags of several processes, and the config's, which reads file and command line at once."""
    processes.define_flags()
    config_flag.define("tiny", "Experiment: a file, or a name such as mistral_7b.")


def main(_: Sequence[str]) -> None:
    # Imported here, because --help should not wait for them.
    from fqs_jax.curriculum import resolve
    from fqs_jax.curriculum import stage as stage_lib
    from fqs_jax.model import placement
    from fqs_jax.runs import also_log, history, matched, record, source, stages
    from fqs_jax.runtime import accelerators, agreement, compiled_programs, locks, sharding
    from fqs_jax.runtime.interrupts import Interrupts
    from fqs_jax.training import loop, profiling, start, step
    from fqs_jax.training.overview import print_memory, print_overview
    from fqs_jax.training.start import RESUME, Run

    config = flags.FLAGS.config
    if "variants" in config:
        raise UserError(
            "this config is a sweep, not an experiment: run it with fqs sweep --config=... --workdir=W"
        )
    if _INIT_FROM.value:
        config.init_from = _INIT_FROM.value
    if _TEXT.value:
        config.data.source, config.data.text = "text", _TEXT.value
    config_flag.expand_paths(config)
    workdir = _workdir()
    if config.get("requires_init_from", False) and not config.init_from:
        raise UserError("this config fine-tunes a checkpoint: give --init_from=HF_DIR")
    root = paths.expand(workdir)
    paths.check_workdir(root)
    also_log.check(_ALSO_LOG.value, root)
    given = (workdir, config.to_dict(), _STAGE.value, _MAX_STEPS.value, _DRY_RUN.value)
    agreement.check_same(repr(given), "flags or another config")
    _check_stages(root, workdir, config)
    mesh = sharding.make_mesh(config.mesh)
    with contextlib.ExitStack() as stack:
        # A dry run leaves no trace.
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if _DRY_RUN.value else root
        if place == root:
            stack.enter_context(locks.workdir(root))
            compiled_programs.keep_in(root)
        else:
            source.check(root, config)
        model, tokenizer = source.prepare(place, config, everyone=_DRY_RUN.value)
        recipes = resolve.recipes(config, model, _MAX_STEPS.value)
        rows = [recipe.stage for recipe in recipes]
        chosen = stage_lib.select(rows, _STAGE.value)
        todo = [recipe for recipe in recipes if recipe.stage in chosen]
        longest = max(stage.steps for stage in chosen)
        profile = profiling.parsed(_PROFILE_STEPS.value, root, longest)
        accelerators.note_unused()
        placement.check_model(model, mesh)
        for recipe in todo:  # now, and not when its turn comes
            step.split_rows(recipe, mesh)
            start.check_base(recipe, config)
        matched.check(root, recipes, chosen, _MAX_STEPS.value)
        if _DRY_RUN.value:
            for recipe in todo:
                record.check(root, config, recipe.stage, recipe.lora is not None)
            print_overview(root, todo, recipes, mesh)
            print_memory(todo, mesh)
            return
        command = functools.partial(_command, workdir)
        stages.check_needed(root, rows, chosen, command)
        with Interrupts() as interrupts:
            make, elsewhere = lambda n: command(str(n)), tuple(_ALSO_LOG.value)
            run = Run(root, config, tokenizer, mesh, interrupts, make, elsewhere, profile)
            for recipe in todo:
                loop.run_stage(run, recipe)
                interrupts.check(f"{recipe.stage} is done; {RESUME}")
            history.record_command(root, command(_STAGE.value))
        print(printable(f"Done: {', '.join(map(str, chosen))} in {root}"), flush=True)


def _check_stages(root: Path, workdir: str, config: ConfigDict) -> None:
    """Check --stage before anything is made: they exist, and a new W needs no others.

    Raises:
      UserError: one is missing.
    """
    from fqs_jax.curriculum import stage as stage_lib
    from fqs_jax.runs import folders, stages
    from fqs_jax.runtime import agreement, buckets

    rows = stage_lib.rows(config)
    chosen = stage_lib.select(rows, _STAGE.value)
    if paths.is_bucket(root) and not _DRY_RUN.value:
        buckets.check_writable(root)  # by all processes: each writes arrays
    begun = agreement.agreed(folders.stage_numbers(root))  # another host may see a folder late
    if not begun and not _DRY_RUN.value:
        stages.check_needed(root, rows, chosen, functools.partial(_command, workdir))


def _workdir() -> str:
    """The working directory; by default it is named after the config, and a line says so."""
    given, config = _WORKDIR.value, config_flag.file()
    if given is None and not processes.is_distributed():  # all hosts must share a folder
        given = str(Path("workdir", Path(config.partition(":")[0]).stem))
    cli.require(workdir=given)
    defaults = []
    if config_flag.is_default():
        defaults.append(f"--config={config}, the built-in example")
    if _WORKDIR.value is None:
        defaults.append(f"--workdir={given}")
    if defaults:
        print(printable(f"Not given, so: {'; '.join(defaults)}"), flush=True)
    return given


def _command(workdir: str, stage: str) -> str:
    """The command line that makes a stage, several, or all, of a working directory."""
    command = cli.command_line(
        "fqs_jax.launch",
        config=config_flag.file(),
        init_from=_INIT_FROM.value,
        text=_TEXT.value,
        workdir=workdir,
        max_steps=_MAX_STEPS.value,
        also_log=",".join(_ALSO_LOG.value),
        stage=stage,
    )
    return " ".join([command, *map(cli.quote, config_flag.overrides())])


if __name__ == "__main__":
    cli.run(main, define_flags, computes_long=True)
