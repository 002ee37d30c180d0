"""The parameters of trained stages.

The checkpoints of a stage with adapters hold these and its thoughts. The frozen decoder beside them, the
base, is the initial model or the result of an earlier stage; a fingerprint of it is saved with them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_collections
from jax.sharding import Mesh

from fqs_jax.curriculum import objective, resolve
from fqs_jax.curriculum.stage import Stage
from fqs_jax.model import lora as lora_lib
from fqs_jax.model import placement
from fqs_jax.model.decoder import Params
from fqs_jax.model.lora import Lora
from fqs_jax.runs import best, damage, folders, source
from fqs_jax.runs.checkpoints import Checkpoints
from fqs_jax.runtime import agreement, paths, sharding
from fqs_jax.runtime.errors import UserError


def load_stage(
    root: Path,
    number: int,
    command: str = "",
    finished: bool = True,
    mesh: Mesh | None = None,
    at: int | None = None,
) -> tuple[Params, Stage]:
    """The newest parameters of a stage and its row; adapters are merged into their base.

    Args:
      command: the command that makes a missing stage, for the error. If it is given, a damaged
        checkpoint is moved aside, so that this command makes it again.
      finished: require that the stage has taken all its steps.
      mesh: the devices for the parameters; None = one device.
      at: the saved step to load instead of the newest one.

    Raises:
      UserError: the stage has no checkpoint, is unfinished, or its adapters belong to another base.
    """
    trained = load_trained(root, number, command, finished, mesh, at)
    if trained.lora is None:
        return trained.params, trained.stage
    base = load_base(root, trained.config, trained.stage, mesh=mesh)
    check_base(root, trained.stage, base, trained.base)
    lm = lora_lib.merged(base.params["lm"], trained.params["lm"], trained.lora.scale)
    return {**trained.params, "lm": lm}, trained.stage


class Trained(NamedTuple):
    """A stage's newest checkpoint: the whole model; or adapters and thoughts, without the frozen base.

    Attributes:
      lora: its adapters; None if it has the whole model.
      base: digest of the frozen base; empty without one.
    """

    params: Params
    stage: Stage
    config: ml_collections.ConfigDict
    lora: Lora | None
    base: str


def load_trained(
    root: Path,
    number: int,
    command: str = "",
    finished: bool = True,
    mesh: Mesh | None = None,
    at: int | None = None,
) -> Trained:
    """The content of a stage's newest checkpoint. Arguments and errors are those of `load_stage`."""
    newest_step, stage, config = check_stage(root, number, command, finished)
    step = newest_step if at is None else at
    model, lora = (
        source.read_model(folders.local_source(root), config),
        resolve.lora(config, stage),
    )
    with Checkpoints(folders.checkpoint_folder(root, number)) as saved:
        params = objective.abstract_params(model, resolve.thought(config, stage), lora)
        trained, _ = lora_lib.split(params)
        placed = placement.placed(trained, mesh or sharding.single_device())
        while True:
            try:
                found, progress = saved.restore_params(step, placed, move_aside=bool(command))
                return Trained(found, stage, config, lora, progress.get("base", ""))
            except UserError:
                # A run that trains this stage deletes old steps, maybe this one just now.
                newest = folders.saved_step(root, number)
                if at is not None or newest is None or newest <= step:
                    raise
                step = newest


class Base(NamedTuple):
    """The model that is frozen under the adapters of a stage.

    Attributes:
      params: {lm[, thought]}.
      digest: fingerprint of `lm`, saved with the adapters.
      name: for people.
    """

    params: Params
    digest: str
    name: str


def load_base(
    root: Path,
    config: ml_collections.ConfigDict,
    stage: Stage,
    command: Callable[[int], str] = lambda number: "",
    mesh: Mesh | None = None,
) -> Base:
    """The base of a stage's adapters.

    Args:
      command: from the number of a stage to the command that makes it; see `load_stage`.

    Raises:
      UserError: it cannot be loaded.
    """
    number = base_stage(root, config, stage)
    if number is None:
        model = source.read_model(folders.local_source(root), config)
        params, name = source.initial_params(root, config, model, mesh), config.init_from
    else:
        params, row = load_stage(root, number, command(number), mesh=mesh)
        name = str(row)
    return Base(params, damage.digest(params["lm"]), name)


def load_adapters(root: Path, which: str, mesh: Mesh | None = None) -> tuple[Trained, Base]:
    """The adapters and thoughts of a stage, finished or not, and the base that they stand beside.

    Args:
      which: number or name of the stage, perhaps with `best.SUFFIX`.

    Raises:
      UserError: there is no such stage, it has no adapters, or its base cannot be loaded or has changed.
    """
    paths.check_workdir(root)
    stage, at = best.find(root, folders.existing_stages(root), which)
    trained = load_trained(root, stage.number, finished=False, mesh=mesh, at=at)
    if trained.lora is None:
        raise UserError(
            f"{stage} in {root} has no adapters: its whole model was trained; export that"
        )
    base = load_base(root, trained.config, stage, mesh=mesh)
    check_base(root, stage, base, trained.base)
    return trained, base


def base_stage(root: Path, config: ml_collections.ConfigDict, stage: Stage) -> int | None:
    """The number of the stage whose result is the base of a stage's adapters; None = the initial model.

    A stage that starts from one with adapters of the same form continues these, beside the same base.
    Otherwise its base is the result that it starts from, with merged adapters if it has any.
    """
    if stage.start is not None:
        before, its_config = folders.read_run(root, stage.start)
        if resolve.lora(its_config, before) == resolve.lora(config, stage):
            return base_stage(root, its_config, before)
    return stage.start


def check_base(root: Path, stage: Stage, base: Base, digest: str) -> None:
    """Refuse adapters that were trained beside another base.

    Args:
      digest: that of the base they were trained beside.

    Raises:
      UserError: the base has changed since.
    """
    if base.digest != digest:
        raise UserError(
            f"the adapters of {stage} in {root} were trained beside other weights: {base.name} has "
            f"changed since; put it back, or remove {folders.stage_folder(root, stage.number)} to train "
            "the stage again"
        )


def check_stage(
    root: Path, number: int, command: str = "", finished: bool = True
) -> tuple[int, Stage, ml_collections.ConfigDict]:
    """The newest step of a stage, its row and its config, without reading parameters.

    Arguments and errors are those of `load_stage`.
    """
    make = f"; make it with: {command}" if command else ""
    step = folders.saved_step(root, number)
    if step is None or not (folders.stage_folder(root, number) / "run.json").exists():
        raise UserError(f"{root} has no checkpoint of stage {number}{make}")
    stage, config = folders.read_run(root, number)
    if finished and step < stage.steps:
        finish = make.replace("make", "finish", 1)
        raise UserError(f"stage {number} in {root} is at step {step} of {stage.steps}{finish}")
    return step, stage, config


def check_needed(
    root: Path, rows: list[Stage], chosen: list[Stage], command: Callable[[str], str]
) -> None:
    """Refuse to start stages before those whose results they use, directly or not, are finished.

    Process 0 reads, for all: on a network disk another host may see a file late.

    Args:
      rows: all stages of the config. chosen: the stages to run.
      command: from the value of --stage to the command that runs it.

    Raises:
      UserError: some are missing; the message has the command that runs them and the chosen ones.
    """
    found: list[int] = []
    agreement.on_main(lambda: found.extend(_missing(root, rows, chosen)))
    if missing := agreement.agreed(found):
        need = ", ".join(str(stage) for stage in chosen)
        lack = ", ".join(str(row) for row in rows if row.number in missing)
        both = [str(row.number) for row in rows if row.number in missing or row in chosen]
        raise UserError(
            f"{need} cannot start before {lack}, not finished in {root}; run all of them with: "
            f"{command(','.join(both))}"
        )


def _missing(root: Path, rows: list[Stage], chosen: list[Stage]) -> list[int]:
    """The numbers of unfinished stages that the chosen ones need, as this process sees them."""
    missing: list[int] = []
    todo = [stage for stage in chosen if _step(root, stage.number) is None]
    while todo:
        stage = todo.pop()
        for row in rows:
            is_used = row.number in (stage.start, stage.teacher)
            if is_used and row not in chosen and row.number not in missing:
                if not is_finished(root, row.number):
                    missing.append(row.number)
                    todo.append(row)
    return missing


def is_finished(root: Path, number: int) -> bool:
    """True if a stage has taken all steps that it was started with, as this process sees it."""
    step = _step(root, number)
    if step is None or not (folders.stage_folder(root, number) / "run.json").exists():
        return False
    return step >= folders.read_run(root, number)[0].steps


def _step(root: Path, number: int) -> int | None:
    return folders.latest_step(folders.checkpoint_folder(root, number))
