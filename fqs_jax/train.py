"""Training one stage: state, jitted step, metrics, saves.

Where a stage's parameters come from, first match wins:
1. its own newest checkpoint in the working directory (resume);
2. the finished stage that its row names as `start`;
3. the initial model: `init_from`, or random.
Randomness is fold_in(seed, stage, step); nothing random is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from fqs_jax import checkpoints, curriculum, optimizer, teacher, thoughts, workdir
from fqs_jax import model as model_lib
from fqs_jax.curriculum import Stage
from fqs_jax.data import corpus
from fqs_jax.data.order import Dataset
from fqs_jax.errors import UserError
from fqs_jax.interrupts import Interrupts
from fqs_jax.metrics import MetricsFile, Progress
from fqs_jax.model import ModelConfig, Params
from fqs_jax.tokenizers import Tokenizer

RESUME = "run the same command again to go on"
_INIT = 2**32 - 1  # in the place of a step number, for what is drawn before the first step


class State(NamedTuple):
    """What a step reads and writes."""

    params: Params
    optimizer: optax.OptState


StepFunction = Callable[[State, dict[str, Any], Any], tuple[State, dict[str, jax.Array]]]


def make_step(
    loss_function: curriculum.Loss, transform: optax.GradientTransformation, key: jax.Array
) -> StepFunction:
    """The pure training step (state, batch, step number from 0) -> (state, metrics)."""

    def train_step(
        state: State, batch: dict[str, Any], step: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        step_key = jax.random.fold_in(key, step)
        gradient = jax.value_and_grad(loss_function, has_aux=True)
        (loss, metrics), grads = gradient(state.params, batch, step_key)
        updates, optimizer_state = transform.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"loss": loss, **optimizer.part_norms(grads)}
        metrics |= {
            "skipped_in_a_row": optimizer_state.notfinite_count,
            "skipped_steps": optimizer_state.total_notfinite,
        }
        return State(params, optimizer_state), metrics

    return train_step


def run(
    root: Path,
    config: ml_collections.ConfigDict,
    stage: Stage,
    model: ModelConfig,
    tokenizer: Tokenizer,
    interrupts: Interrupts,
    command: Callable[[int], str],
) -> None:
    """Train a stage to its last step, from its newest checkpoint if it has one.

    Args:
      command: the command line that makes a stage of this working directory, by number.

    Raises:
      UserError: a stage it needs is missing, or training diverged.
      Interrupted: on request; the state is saved first.
    """
    folder = workdir.stage_folder(root, stage.number)
    if checkpoints.latest_step(folder / "checkpoints") is None:
        # Asked before anything is written, so that a refused stage leaves no trace.
        for number in (stage.start, stage.teacher):
            if number is not None:
                workdir.check_stage(root, number, command(number))
    data = corpus.dataset(config.data, tokenizer, config.batch_size, config.seed, stage.number)
    lineage = workdir.write_run(root, config, stage, data.digest())
    key = jax.random.fold_in(jax.random.key(config.seed), stage.number)
    transform = optimizer.make(config, stage.learning_rate, stage.steps)

    with checkpoints.Checkpoints(folder / "checkpoints", config.keep_checkpoints) as saved:
        first = saved.latest()
        if first is None:
            first = 0
            params = starting_params(root, config, stage, model, tokenizer, key, command)
            state = State(params, transform.init(params))
            # Placed like a restored state, so that both run the very same program.
            state = jax.device_put(state, jax.local_devices()[0])
        else:
            params = workdir.abstract_params(config, model, stage)
            state = State(
                *saved.restore(first, params, _placed(jax.eval_shape(transform.init, params)))[:2]
            )
        if first >= stage.steps:
            return
        batches = batch_function(
            root, config, stage, model, data, tokenizer, interrupts, command, lineage
        )
        step_function = make_step(curriculum.loss_function(config, stage, model), transform, key)
        _loop(step_function, state, batches, first, folder, config, stage, model, saved, interrupts)


def _loop(
    step_function: StepFunction,
    state: State,
    batches: Callable[[int], dict[str, np.ndarray]],
    first: int,
    folder: Path,
    config: ml_collections.ConfigDict,
    stage: Stage,
    model: ModelConfig,
    saved: checkpoints.Checkpoints,
    interrupts: Interrupts,
) -> None:
    rates = optimizer.schedule(config, stage.learning_rate, stage.steps)
    tokens_per_step = config.batch_size * config.data.seq_len

    def save(step: int) -> None:
        metrics.flush()  # rows up to a checkpoint are on disk before it is
        saved.save(
            step, _own_copy(state.params), _own_copy(state.optimizer), {"steps": stage.steps}
        )

    with (
        MetricsFile(folder / "metrics.jsonl", first, tokens_per_step) as metrics,
        Progress(str(stage), first, stage.steps) as bar,
    ):
        started = time.perf_counter()
        example = batches(first)
        compiled = (
            jax.jit(step_function, donate_argnums=0)
            .lower(state, example, np.int32(first))
            .compile()
        )
        flops = curriculum.step_flops(config, stage, model)
        metrics.event(
            "start",
            stage=stage.name,
            step=first,
            parameters=model_lib.num_params(state.params),
            flops_per_step=flops,
            time={"compile_seconds": round(time.perf_counter() - started, 3)},
        )
        metrics.start_clock()
        values = None
        for step in range(first, stage.steps):
            before = values
            state, values = compiled(state, batches(step), np.int32(step))
            done = step + 1
            # What the step before left is read only now, when this one is under way, so that the
            # device never waits for the host.
            if before is not None:
                _check_finite(before, step, config, folder)
            if (row := metrics.read_pending()) is not None:
                bar.show(row)
            if done % config.log_every == 0 or done == stage.steps:
                rate = float(rates(step))
                metrics.later(done, values, learning_rate=rate, tokens=done * tokens_per_step)
            bar.advance()
            if interrupts.signum is not None and done < stage.steps:
                save(done)
                bar.close()
                interrupts.check(f"{stage} saved at step {done} of {stage.steps}; {RESUME}")
            if done % config.checkpoint_every == 0 and done < stage.steps:
                save(done)
        assert values is not None  # there was a step to take
        _check_finite(values, stage.steps, config, folder)
        if (row := metrics.read_pending()) is not None:
            bar.show(row)
        save(stage.steps)


def starting_params(
    root: Path,
    config: ml_collections.ConfigDict,
    stage: Stage,
    model: ModelConfig,
    tokenizer: Tokenizer,
    key: jax.Array,
    command: Callable[[int], str],
) -> Params:
    """Parameters before the stage's first step: see the precedence list above.

    A thinking stage keeps the marks and the talk head of a thinking start, except what the config's
    reset switches renew (published: marks and the head's last layer at every stage).
    """
    if stage.start is None:
        params = workdir.initial_params(root, config, model)
    else:
        params, _ = workdir.load_stage(root, stage.start, command(stage.start))
    if not stage.thinks:
        return {"lm": params["lm"]}
    thought = curriculum.thought_config(config, stage)
    marks = workdir.mark_ids(config, tokenizer)
    fresh = thoughts.init(model, thought, params["lm"], jax.random.fold_in(key, _INIT), *marks)
    if "thought" not in params:
        return {**params, "thought": fresh}
    kept = dict(params["thought"])
    if config.thought.reset_marks_on_load:
        kept |= {"start": fresh["start"], "end": fresh["end"]}
    if config.thought.reset_talk_head_on_load:
        kept["talk_head"] = {**kept["talk_head"], "out": fresh["talk_head"]["out"]}
    return {**params, "thought": kept}


def batch_function(
    root: Path,
    config: ml_collections.ConfigDict,
    stage: Stage,
    model: ModelConfig,
    data: Dataset,
    tokenizer: Tokenizer,
    interrupts: Interrupts,
    command: Callable[[int], str],
    lineage: str,
) -> Callable[[int], dict[str, np.ndarray]]:
    """Step -> batch; for an NTP stage with the teacher's scores, which are made first.

    Args:
      lineage: identifies all that the scores depend on (`workdir.write_run`).
    """
    if stage.objective != "ntp":
        return data.batch
    assert stage.teacher is not None  # checked when the row was read
    params, row = workdir.load_stage(root, stage.teacher, command(stage.teacher))
    if config.thought.reset_marks_at_eval:
        params["thought"].update(workdir.fresh_marks(config, params["lm"], tokenizer))
    _, teacher_config = workdir.read_run(root, stage.teacher)
    thought = curriculum.thought_config(
        teacher_config,
        row,
        rationales=1,
        n_ahead_talk=1,
        temperature=config.thought.eval_temperature,
    )
    folder = workdir.stage_folder(root, stage.number) / "teacher"
    with Progress(f"stage {stage.number} teacher scores", 0, stage.steps) as bar:

        def progress(done: int, _: int) -> None:
            bar.advance_to(done)
            if done < stage.steps:
                interrupts.check(
                    f"teacher scores saved up to batch {done} of {stage.steps}; {RESUME}"
                )

        scores = teacher.score_rows(
            params,
            model,
            thought,
            data,
            stage.steps,
            config.seed,
            folder,
            lineage,
            progress,
        )
    size = data.batch_size

    def with_scores(step: int) -> dict[str, np.ndarray]:
        return {**data.batch(step), "teacher_log_prob": scores[step * size : (step + 1) * size]}

    return with_scores


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


def _own_copy(tree: Any) -> Any:
    """On CPU, a save in the background would read buffers that the next step overwrites."""
    return jax.tree.map(jnp.copy, tree) if jax.default_backend() == "cpu" else tree


def _placed(tree: Any) -> Any:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)
