"""The training loop of one stage: its state, its steps, metrics and checkpoints.

A stage's parameters come from the first of these that exists:
1. its own newest checkpoint in the working directory (resume);
2. the finished stage that its row names as `start`;
3. the initial model: `init_from`, or random.
Randomness is fold_in(seed, stage, step); no random state is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from fqs_jax.curriculum import objective
from fqs_jax.curriculum.recipe import Recipe
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

# Metrics of a step: (step, device values) -> None.
Read = Callable[[int, dict[str, jax.Array]], None]


class OneBehind:
    """Metrics of a step are read while the next step runs, so that the device never waits for the host.

    The last ones are read when the context ends, also if it ends with an exception.
    """

    def __init__(self, read: Read):
        self._read = read
        self._pending: tuple[int, dict[str, jax.Array]] | None = None

    def __enter__(self) -> OneBehind:
        return self

    def __exit__(self, *_: object) -> None:
        self.drain()

    def add(self, step: int, values: dict[str, jax.Array]) -> None:
        """Hold the values of a step that was just started, and read those of the step before."""
        self.drain()
        self._pending = step, values

    def drain(self) -> None:
        """Read the values on hold now; this waits for the device."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._read(*pending)


def run_stage(run: Run, recipe: Recipe) -> None:
    """Train a stage to its last step, from its newest checkpoint if it has one.

    Raises:
      UserError: a stage it needs is missing, or training diverged.
      Interrupted: on request; the state is saved first.
    """
    config, stage, folder = run.config, recipe.stage, run.folder(recipe.stage)
    if folders.saved_step(run.root, stage.number) is None:
        # Checked before anything is written, so that a refused stage leaves no trace.
        for number in (stage.start, stage.teacher):
            if number is not None:
                loading.check_stage(run.root, number, run.command(number))
    data = corpus.dataset(recipe.data, run.tokenizer, recipe.batch_size, recipe.seed, stage.stream)
    record.write(run.root, config, stage, data.digest())
    if (folders.saved_step(run.root, stage.number) or 0) >= stage.steps:
        return
    with (
        jax.set_mesh(run.mesh),
        checkpoints.Checkpoints(folder / "checkpoints", config.keep_checkpoints) as saved,
    ):
        program = step_lib.program(recipe, run.mesh, corpus.extra_keys(recipe.data))
        scores = teacher_scores(run, recipe, data)  # before the state: both need memory
        restored = saved.newest(*program.state)
        if restored is None:
            first, state = 0, starting_state(run, recipe, program)
        else:
            first, state = restored[0], State(*restored[1:3])
        rows = sharding.local_rows(program.batch["tokens"])
        batches = data.batches(first, stage.steps, rows)
        if scores is not None:
            batches = with_scores(batches, scores, rows, first, data.batch_size)
        _loop(run, recipe, program, state, batches, rows, first, saved)


def _loop(
    run: Run,
    recipe: Recipe,
    program: Program,
    state: State,
    batches: Batches,
    rows: np.ndarray,
    first: int,
    saved: checkpoints.Checkpoints,
) -> None:
    config, stage, folder = run.config, recipe.stage, run.folder(recipe.stage)
    rate = jax.jit(optimizer.schedule(recipe.optimizer, stage.learning_rate, stage.steps))
    tokens_per_step = recipe.batch_size * recipe.seq_len

    def read(step: int, values: dict[str, jax.Array]) -> None:
        """Log the metrics of a step if they are due, and check them."""
        numbers = jax.device_get(values)
        if step % config.log_every == 0 or step == stage.steps:
            bar.show(metrics.step(step, numbers, tokens=step * tokens_per_step))
        _check_finite(numbers, step, run, recipe)

    def save(step: int) -> None:
        behind.drain()
        metrics.flush()  # rows up to a checkpoint are on disk before it is
        saved.save(step, state.params, state.optimizer, {"steps": stage.steps})

    with (
        MetricsFile(folder / "metrics.jsonl", first, tokens_per_step) as metrics,
        Progress(str(stage), first, stage.steps) as bar,
        OneBehind(read) as behind,
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
            flops_per_step=objective.step_flops(recipe),
            devices=run.mesh.size,
            time={"compile_seconds": round(time.perf_counter() - started, 3)},
        )
        run.interrupts.check(begun)  # compiling may have taken minutes
        metrics.start_clock()
        run.interrupts.forget_last_step()
        last_save, saved_at = time.monotonic(), first
        for step, batch in zip(range(first, stage.steps), batches, strict=True):
            placed = {
                name: sharding.from_local_rows(batch[name], rows, leaf)
                for name, leaf in program.batch.items()
            }
            number = sharding.replicate(np.asarray(step, np.int32), run.mesh)
            # Whatever else moved between host and device here would stall the device at every step.
            with jax.transfer_guard("disallow"):
                state, values = processes.settled(compiled(state, placed, number))
                values["learning_rate"] = rate(number)
            done = step + 1
            behind.add(done, values)
            bar.advance()
            saved.check()
            if done == stage.steps:
                break
            requests = run.interrupts.requests_of_last_step(save=_is_overdue(last_save, config))
            # A request of one step ago may have been granted since.
            overdue = requests.save and done > saved_at + 1
            if requests.signum or overdue or done % config.checkpoint_every == 0:
                save(done)
                last_save, saved_at = time.monotonic(), done
            if requests.signum:
                saved.wait()
                bar.close()
                message = f"{stage} saved at step {done} of {stage.steps}; {RESUME}"
                raise Interrupted(message, requests.signum)
        save(stage.steps)


def _is_overdue(last_save: float, config: ml_collections.ConfigDict) -> bool:
    minutes = config.checkpoint_minutes
    return bool(minutes) and time.monotonic() - last_save > 60 * minutes


def _check_finite(numbers: dict[str, np.ndarray], step: int, run: Run, recipe: Recipe) -> None:
    """Raise if too many steps in a row, up to this one, were skipped."""
    skipped = int(numbers["skipped_in_a_row"])
    if skipped >= run.config.max_bad_steps:
        raise UserError(
            f"{skipped} steps in a row up to step {step} had NaN or inf gradients; the last "
            f"checkpoint is in {run.folder(recipe.stage) / 'checkpoints'}; lower the learning rate"
        )
