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
import jax.numpy as jnp
import ml_collections
import numpy as np

from fqs_jax.curriculum import objective
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.data.rows.order import Dataset
from fqs_jax.model import decoder
from fqs_jax.runs import also_log, best, checkpoints, disk_space, folders, record, stages
from fqs_jax.runs import source as source_lib
from fqs_jax.runs.metrics_file import MetricsFile
from fqs_jax.runs.stages import Base
from fqs_jax.runs.time_spent import Stopwatch
from fqs_jax.runtime import agreement, device_memory, host_memory, locks, processes, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupted
from fqs_jax.runtime.locks import FolderLock
from fqs_jax.runtime.progress import Progress
from fqs_jax.training import held_out as held_out_lib
from fqs_jax.training import optimizer, shortage
from fqs_jax.training import step as step_lib
from fqs_jax.training.profiling import Profiler
from fqs_jax.training.start import RESUME, Batches, Run, frozen_base, of_types, starting_state
from fqs_jax.training.step import Program, State
from fqs_jax.training.teacher_scores import teacher_scores, with_scores

LARGE_STATE = 256 * 2**20  # bytes of parameters and optimizer state
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
      UserError: a stage it needs is missing, memory is short, training diverged, another run trains the
        stage, or its folder was moved.
      Interrupted: on request; the state is saved first.
    """
    config, stage, folder = run.config, recipe.stage, run.folder(recipe.stage)
    if folders.saved_step(run.root, stage.number) is None:
        # Checked before anything is written, so that a refused stage leaves no trace.
        for number in (stage.start, stage.teacher):
            if number is not None:
                stages.check_stage(run.root, number, run.command(number))
        if recipe.lora is not None:
            base = stages.base_stage(run.root, config, stage)
            if base is not None:
                stages.check_stage(run.root, base, run.command(base))
    source, watch = folders.local_source(run.root), Stopwatch()
    with watch.on("text"):
        data = corpus.dataset(
            recipe.data,
            run.tokenizer,
            recipe.batch_size,
            recipe.seed,
            stage.stream,
            source,
            questions=objective.teacher_positions(recipe) == "last",
        )
        digest, adapted = data.digest(), recipe.lora is not None
    if _is_done(run, stage):
        record.write(run.root, config, stage, digest, adapted)
        return
    with locks.FolderLock(folder) as lock:
        source_lib.check_unchanged(run.root, config)
        record.write(run.root, config, stage, digest, adapted)
        if not _is_done(run, stage):  # another run may have ended meanwhile
            with shortage.explained(recipe, run.mesh):
                _train(run, recipe, data, lock, watch)
            lock.check()


def _is_done(run: Run, stage: Stage) -> bool:
    return (folders.saved_step(run.root, stage.number) or 0) >= stage.steps


def _train(run: Run, recipe: Recipe, data: Dataset, lock: FolderLock, watch: Stopwatch) -> None:
    """Train a stage that is not done, in its locked folder; see `run_stage`."""
    config, stage = run.config, recipe.stage
    checkpoint_folder = folders.checkpoint_folder(run.root, stage.number)
    kept = config.keep_checkpoints + bool(recipe.held_out.every and recipe.held_out.keep_best)
    with (
        jax.set_mesh(run.mesh),
        checkpoints.Checkpoints(checkpoint_folder, config.keep_checkpoints) as saved,
    ):
        program = step_lib.program(recipe, run.mesh, corpus.extra_keys(recipe.data))
        shortage.check_state(recipe, run.mesh, (program.state, program.frozen))
        disk_space.check(checkpoint_folder, program.state, kept)
        with watch.on("scoring"):
            scores = teacher_scores(run, recipe, data)  # before the state: both need memory
        base = frozen_base(run, recipe)
        restored = saved.newest(*program.state)
        if restored is None:
            first, state = 0, starting_state(run, recipe, program, base)
        else:
            first, state = restored[0], State(*restored[1:3])
            if base is not None:
                stages.check_base(run.root, stage, base, restored[3].get("base", ""))
        rows = sharding.local_rows(program.batch["tokens"])
        batches = data.batches(first, stage.steps, rows)
        if scores is not None:
            batches = with_scores(batches, scores, rows, first, data.batch_size)
        _loop(run, recipe, program, state, base, batches, rows, first, saved, lock, watch)


def _loop(
    run: Run,
    recipe: Recipe,
    program: Program,
    state: State,
    base: Base | None,
    batches: Batches,
    rows: np.ndarray,
    first: int,
    saved: checkpoints.Checkpoints,
    lock: FolderLock,
    watch: Stopwatch,
) -> None:
    config, stage, folder = run.config, recipe.stage, run.folder(recipe.stage)
    schedule = optimizer.schedule(recipe.optimizer, stage.learning_rate, stage.steps)
    # A skipped step does not advance the schedule.
    rate = jax.jit(lambda step, skipped: schedule(jnp.maximum(step - skipped, 0)))
    tokens_per_step = recipe.batch_size * recipe.seq_len
    frozen = {} if base is None else of_types({"lm": base.params["lm"]}, program.frozen)
    progress = {"steps": stage.steps} | ({} if base is None else {"base": base.digest})
    # A save in the background holds the state twice more, as a copy and encoded. On CPUs it shares the
    # memory with the temporaries of the next step, which therefore waits if that is much.
    on_cpu = run.mesh.devices.flat[0].platform == "cpu"
    size = device_memory.of_arrays(state) * len(run.mesh.local_devices)
    waits = on_cpu and size >= LARGE_STATE

    def read(step: int, values: dict[str, jax.Array]) -> None:
        """Log the metrics of a step if they are due, and report skipped steps."""
        numbers = jax.device_get(values)
        in_a_row, skipped = int(numbers["skipped_in_a_row"]), int(numbers["skipped_steps"])
        given_up = in_a_row >= config.max_bad_steps
        if step % config.log_every == 0 or step == stage.steps or given_up:
            row = metrics.step(step, numbers, tokens=step * tokens_per_step)
            elsewhere.step(row)
            bar.show(row)
        if given_up:
            saved.wait()  # for the message
            raise _diverged(run, recipe, step, in_a_row)
        # At the first, the second, the fourth, ..., so that many make few lines.
        if in_a_row and skipped.bit_count() == 1 or step == stage.steps and skipped:
            bar.note(
                f"{stage}: {skipped} of {step} steps skipped so far, whose loss or gradients were NaN "
                f"or inf; {config.max_bad_steps} in a row end the run"
            )

    def save(step: int, is_best: bool) -> None:
        behind.drain()
        with watch.on("saving"):
            lock.check()  # a folder that is no longer there would be made anew
            metrics.flush()  # rows up to a checkpoint are on disk before it is
            saved.save(step, state.params, state.optimizer, progress)
            saved.best = step if is_best else saved.best
            if waits:
                saved.wait()

    def measure(step: int) -> bool:
        """The loss on held-out text, if it is due. True if this step is to be kept as the best so far."""
        if held_out is None or not held_out.is_due(step, stage.steps):
            return False
        behind.drain()
        started = time.perf_counter()
        losses = held_out.losses(state.params, frozen)
        row = metrics.held_out(step, losses, held_out.text, time.perf_counter() - started)
        elsewhere.held_out(row)
        bar.show_held_out(best.judged(row))
        better = held_out.settings.keep_best and best.is_best(metrics.measured)
        return bool(agreement.agreed([step] * better))

    def end(step: int) -> None:
        """Wait until the last save is whole, so that its time is written too."""
        with watch.on("saving"):
            saved.wait()
        lock.check()
        metrics.end(step)

    with (
        MetricsFile(folder / "metrics.jsonl", first, tokens_per_step, watch) as metrics,
        also_log.open_all(run.also_log, folder, str(stage), first) as elsewhere,
        Progress(str(stage), first, stage.steps) as bar,
        OneBehind(read) as behind,
        Profiler(run.profile, folder / "profile") as profiler,
    ):
        if recipe.held_out.keep_best:
            checkpoint_folder = folders.checkpoint_folder(run.root, stage.number)
            saved.best = best.step(metrics.measured, folders.saved_steps(checkpoint_folder))
        is_best = False
        begun = f"{stage} is at step {first} of {stage.steps}; {RESUME}"
        run.interrupts.check(begun)
        last = f", {metrics.compiled:.0f} s the last time" if metrics.compiled else ""
        with watch.on("compile"), bar.waiting(f"compiling the step{last}"):
            compiled = program.step.lower(state, program.batch, np.int32(first), frozen).compile()
            held_out = held_out_lib.measure(run, recipe, program)
        host_memory.trim()  # of the compiler's; every stage compiles a step
        shortage.check_program(recipe, run.mesh, compiled)
        metrics.start(
            stage=stage.name,
            step=first,
            parameters=decoder.num_params((state.params, frozen)),
            trained_parameters=decoder.num_params(state.params),
            flops_per_step=objective.step_flops(recipe),
            devices=run.mesh.size,
        )
        run.interrupts.check(begun)  # compiling may have taken minutes
        run.interrupts.forget_last_step()
        last_save, saved_at = time.monotonic(), first
        for step, batch in zip(range(first, stage.steps), _timed(batches, watch), strict=True):
            done = step + 1
            placed = {
                name: sharding.from_local_rows(batch[name], rows, leaf)
                for name, leaf in program.batch.items()
            }
            number = sharding.replicate(np.asarray(step, np.int32), run.mesh)
            # Whatever else moved between host and device here would stall the device at every step.
            with jax.transfer_guard("disallow"), profiler.step(done):
                state, values = processes.settled(compiled(state, placed, number, frozen))
                values["learning_rate"] = rate(number, values["skipped_steps"])
            profiler.done(done, values)
            behind.add(done, values)
            bar.advance()
            with watch.on("saving"):
                saved.check()
            is_best = measure(done)
            if done == stage.steps:
                break
            requests = run.interrupts.requests_of_last_step(save=_is_overdue(last_save, config))
            # A request of one step ago may have been granted since.
            overdue = requests.save and done > saved_at + 1
            due = overdue or is_best or done % config.checkpoint_every == 0
            if requests.signum or due:
                save(done, is_best)
                last_save, saved_at = time.monotonic(), done
            if requests.signum:
                end(done)
                bar.close()
                message = f"{stage} saved at step {done} of {stage.steps}; {RESUME}"
                raise Interrupted(message, requests.signum)
        save(stage.steps, is_best)
        end(stage.steps)


def _timed(batches: Batches, watch: Stopwatch) -> Batches:
    """The same batches; waiting for them is measured."""
    while True:
        with watch.on("text"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _is_overdue(last_save: float, config: ml_collections.ConfigDict) -> bool:
    minutes = config.checkpoint_minutes
    return bool(minutes) and time.monotonic() - last_save > 60 * minutes


def _diverged(run: Run, recipe: Recipe, step: int, in_a_row: int) -> UserError:
    """The error that ends a stage after too many skipped steps."""
    kept = folders.latest_step(folders.checkpoint_folder(run.root, recipe.stage.number))
    checkpoint = (
        "nothing was saved yet" if kept is None else f"the last checkpoint is of step {kept}"
    )
    steps = f"{in_a_row} step{'s' * (in_a_row > 1)} in a row up to step {step}"
    return UserError(
        f"{recipe.stage}: {steps} had NaN or inf in their loss or gradients; {checkpoint}, and the same "
        "command ends here again: lower the learning rate, with another --workdir, or let it skip more "
        "steps with --config.max_bad_steps"
    )
