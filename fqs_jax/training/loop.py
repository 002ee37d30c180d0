"""Training one stage: its state, the loop around the step, metrics, saves.

Where a stage's parameters come from, first match wins:
1. its own newest checkpoint in the working directory (resume);
2. the finished stage that its row names as `start`;
3. the initial model: `init_from`, or random.
Randomness is fold_in(seed, stage, step); nothing random is stored.
"""

from __future__ import annotations

import time
from pathlib import Path

import jax
import ml_collections
import numpy as np

from fqs_jax.curriculum import objective, settings
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.model import decoder
from fqs_jax.runs import checkpoints, folders, loading, record
from fqs_jax.runs.metrics_file import MetricsFile
from fqs_jax.runtime import processes, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupted
from fqs_jax.runtime.progress import Progress
from fqs_jax.training import optimizer
from fqs_jax.training import step as step_lib
from fqs_jax.training.start import RESUME, Batches, Run, starting_state
from fqs_jax.training.step import Program, State
from fqs_jax.training.teacher_scores import teacher_scores, with_scores


def run_stage(run: Run, stage: Stage) -> None:
    """Train a stage to its last step, from its newest checkpoint if it has one.

    Raises:
      UserError: a stage it needs is missing, or training diverged.
      Interrupted: on request; the state is saved first.
    """
    config, folder = run.config, run.folder(stage)
    if folders.saved_step(run.root, stage.number) is None:
        # Asked before anything is written, so that a refused stage leaves no trace.
        for number in (stage.start, stage.teacher):
            if number is not None:
                loading.check_stage(run.root, number, run.command(number))
    data = corpus.dataset(
        settings.data_config(config, stage),
        run.tokenizer,
        config.batch_size,
        config.seed,
        stage.stream,
    )
    record.write(run.root, config, stage, data.digest())
    if (folders.saved_step(run.root, stage.number) or 0) >= stage.steps:
        return
    with (
        jax.set_mesh(run.mesh),
        checkpoints.Checkpoints(folder / "checkpoints", config.keep_checkpoints) as saved,
    ):
        keys = corpus.extra_keys(config.data)
        program = step_lib.program(config, stage, run.model, run.mesh, keys)
        scores = teacher_scores(run, stage, data)  # before the state: both need memory
        restored = saved.newest(*program.state)
        if restored is None:
            first, state = 0, starting_state(run, stage, program)
        else:
            first, state = restored[0], State(*restored[1:3])
        rows = sharding.local_rows(program.batch["tokens"])
        batches = data.batches(first, stage.steps, rows)
        if scores is not None:
            batches = with_scores(batches, scores, rows, first, data.batch_size)
        _loop(run, stage, program, state, batches, rows, first, saved)


def _loop(
    run: Run,
    stage: Stage,
    program: Program,
    state: State,
    batches: Batches,
    rows: np.ndarray,
    first: int,
    saved: checkpoints.Checkpoints,
) -> None:
    config, folder = run.config, run.folder(stage)
    rates = optimizer.schedule(config, stage.learning_rate, stage.steps)
    tokens_per_step = config.batch_size * config.data.seq_len

    def save(step: int) -> None:
        metrics.flush()  # rows up to a checkpoint are on disk before it is
        saved.save(step, state.params, state.optimizer, {"steps": stage.steps})

    with (
        MetricsFile(folder / "metrics.jsonl", first, tokens_per_step) as metrics,
        Progress(str(stage), first, stage.steps) as bar,
    ):
        begun = f"{stage} is at step {first} of {stage.steps}; {RESUME}"
        run.interrupts.check(begun)
        started = time.perf_counter()
        compiled = program.step.lower(state, program.batch, np.int32(first)).compile()
        metrics.event(
            "start",
            stage=stage.name,
            step=first,
            parameters=decoder.num_params(state.params),
            flops_per_step=objective.step_flops(config, stage, run.model),
            devices=run.mesh.size,
            time={"compile_seconds": round(time.perf_counter() - started, 3)},
        )
        run.interrupts.check(begun)  # compiling may have taken minutes
        metrics.start_clock()
        run.interrupts.forget_last_step()
        last_save, saved_at = time.monotonic(), first
        values = None
        for step, batch in zip(range(first, stage.steps), batches, strict=True):
            before = values
            placed = {
                name: sharding.from_local_rows(batch[name], rows, leaf)
                for name, leaf in program.batch.items()
            }
            state, values = processes.settled(compiled(state, placed, np.int32(step)))
            done = step + 1
            # What the step before left is read only now, when this one is under way, so that the
            # device never waits for the host.
            if before is not None:
                _check_finite(before, step, config, folder)
            if (row := metrics.read_pending()) is not None:
                bar.show(row)
            if done % config.log_every == 0 or done == stage.steps:
                # The rate too is read later: as a number now it would wait for the step under way.
                rate = rates(step)
                metrics.later(done, values, learning_rate=rate, tokens=done * tokens_per_step)
            bar.advance()
            saved.check()
            if done == stage.steps:
                break
            wishes = run.interrupts.wishes_of_last_step(save=_is_overdue(last_save, config))
            # A wish of one step ago may have been granted since.
            overdue = wishes.save and done > saved_at + 1
            if wishes.signum or overdue or done % config.checkpoint_every == 0:
                save(done)
                last_save, saved_at = time.monotonic(), done
            if wishes.signum:
                saved.wait()
                bar.close()
                message = f"{stage} saved at step {done} of {stage.steps}; {RESUME}"
                raise Interrupted(message, wishes.signum)
        assert values is not None  # there was a step to take
        _check_finite(values, stage.steps, config, folder)
        if (row := metrics.read_pending()) is not None:
            bar.show(row)
        save(stage.steps)


def _is_overdue(last_save: float, config: ml_collections.ConfigDict) -> bool:
    minutes = config.checkpoint_minutes
    return bool(minutes) and time.monotonic() - last_save > 60 * minutes


def _check_finite(
    values: dict[str, jax.Array], step: int, config: ml_collections.ConfigDict, folder: Path
) -> None:
    """Raise if the steps up to number `step` were skipped too often in a row."""
    skipped = int(values["skipped_in_a_row"])
    if skipped >= config.max_bad_steps:
        raise UserError(
            f"{skipped} steps in a row up to step {step} had NaN or inf gradients; "
            f"the last checkpoint is in {folder / 'checkpoints'}; lower the learning rate"
        )
