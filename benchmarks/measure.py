"""Training steps to measure: their parts, time and memory, and the machine's rate of matrix products."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax import huggingface
from fqs_jax.configs import common
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.objectives import plain, quiet_star
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.thinking import flops as flops_lib
from fqs_jax.thinking import parameters
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.training import optimizer
from fqs_jax.training import step as step_lib

Shape = tuple[tuple[int, ...], int, int]


@dataclasses.dataclass(frozen=True)
class Other:
    """Another program's training step on the same rows.

    Attributes:
      name: what it is.
      step: makes one step, to its end.
      step_peak_mb: peak of resident memory in a step, above that before the step, 10^6 bytes.
      gemm_gflops: rate of its matrix products by a clock, as `gemm_gflops`.
    """

    name: str
    step: Callable[[], None]
    step_peak_mb: float
    gemm_gflops: Callable[[Callable[[], float]], float]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of training step for a model of some shape.

    Attributes:
      model: the network.
      thought: the thoughts of a thinking step; None for a step that does not think.
      ntp: True for thought-free fine-tuning.
      rows: sequences; a step that does not think has one for each rationale.
      length: tokens of a sequence.
      settings: settings of the thinking objective.
    """

    model: ModelConfig
    thought: ThoughtConfig | None
    ntp: bool
    rows: int
    length: int
    settings: QuietStarConfig = QuietStarConfig()

    @property
    def flops(self) -> int:
        """Minimal FLOPs of the step (fqs_jax/thinking/flops.py)."""
        if self.thought is not None:
            positions = self.settings.num_positions(self.length)
            some = self.settings.position_fraction < 1
            choosing = some and self.settings.positions == "high_entropy"
            return flops_lib.quiet_star_step(
                self.model,
                self.thought,
                self.rows,
                self.length,
                positions,
                choosing,
                self.settings.reads_thought_only,
                self.settings.reads_correct,
            )
        return flops_lib.next_token_step(self.model, self.rows, self.length)

    def params(self, key: jax.Array) -> Any:
        params: dict[str, Any] = {"lm": decoder.init(self.model, key)}
        if self.thought is not None:
            made = parameters.init(Thinker(self.model, self.thought), params["lm"], key, 3, 4)
            # A head that is not zero, as after some steps, so that the whole backward pass does real work.
            out = made["talk_head"]["out"]
            out["kernel"] = 0.02 * jax.random.normal(key, out["kernel"].shape)
            params["thought"] = made
        return params

    def batch(self, key: jax.Array) -> dict[str, Any]:
        shape = self.rows, self.length
        tokens = jax.random.randint(key, shape, 0, self.model.vocab_size)
        batch: dict[str, Any] = {"tokens": tokens, "mask": jnp.ones(shape, bool)}
        if self.ntp:
            batch["teacher_log_prob"] = jnp.full((self.rows, self.length - 1), -5.0, jnp.float32)
        return batch

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        if self.thought is not None:
            return quiet_star.quiet_star_loss(
                params, batch, key, Thinker(self.model, self.thought), self.settings
            )
        if self.ntp:
            return plain.ntp_loss(params, batch, key, self.model, plain.NTPConfig())
        return plain.next_token_loss(params, batch, key, self.model)

    def arguments(self, key: jax.Array) -> tuple[step_lib.State, dict[str, Any], Any]:
        """Arguments of the step: state, batch and step number."""
        params = self.params(key)
        return step_lib.State(params, transform().init(params)), self.batch(key), jnp.int32(0)

    def step_function(self) -> step_lib.StepFunction:
        return step_lib.make_step(self.loss, transform(), jax.random.key(0))

    def step(self) -> Any:
        """The step as the training loop compiles it."""
        return jax.jit(self.step_function(), donate_argnums=0)


def transform() -> Any:
    """The optimiser of all these steps."""
    return optimizer.make(common.get_config().optimizer, 1e-6, 1000)


def kind(
    shape: Shape,
    n_ahead: tuple[int, int] | None,
    rationales: int,
    ntp: bool,
    length: int | None,
    compute: dict[str, Any],
    settings: QuietStarConfig | None = None,
) -> Kind:
    """The step for the model and batch of a shape; without thoughts every rationale is a row."""
    (vocab, width, layers, heads, kv_heads, head_dim, mlp), rows, usual = shape
    config = ModelConfig(vocab, width, layers, heads, kv_heads, head_dim, mlp, **compute)
    thought = None
    if n_ahead is not None:
        thought = ThoughtConfig(*n_ahead, rationales=rationales)
    rows = rows * rationales if thought is None else rows
    return Kind(config, thought, ntp, rows, length or usual, settings or QuietStarConfig())


def kind_of_checkpoint(
    folder: Path,
    n_ahead: tuple[int, int] | None,
    rationales: int,
    rows: int,
    length: int,
    compute: dict[str, Any],
    settings: QuietStarConfig,
) -> Kind:
    """The step for the architecture of a Hugging Face folder, plain or thinking, on `rows` sequences.

    Weights are random: times do not depend on them, and only config.json is read.
    """
    model = dataclasses.replace(huggingface.read_config(folder), **compute)
    thought = None if n_ahead is None else ThoughtConfig(*n_ahead, rationales=rationales)
    return Kind(model, thought, ntp=False, rows=rows, length=length, settings=settings)


def print_step(
    measured: Kind,
    steps: int,
    threads: int,
    labels: dict[str, Any],
    other: Callable[[], Other] | None = None,
) -> dict[str, Any]:
    """Time one kind of step; print its JSON line and return it.

    Args:
      other: makes another program's step, which then alternates with this one.
    """
    state, batch, number = measured.arguments(jax.random.key(0))
    started = time.perf_counter()
    compiled = measured.step().lower(state, batch, number).compile()
    compile_seconds = time.perf_counter() - started
    clock = time.process_time if threads == 1 else time.perf_counter
    gemm_before = gemm_gflops(clock)

    before = reset_peak_rss_mb()
    seconds, others = [], []
    beside = None
    for i in range(steps + 1):
        start = clock()
        state, metrics = compiled(state, batch, np.int32(i))
        jax.block_until_ready((state, metrics))
        seconds.append(clock() - start)
        if i == 0:
            peak = peak_rss_mb()
            beside = other() if other is not None else None
        if beside is not None:
            start = clock()
            beside.step()
            others.append(clock() - start)
    seconds = seconds[1:]  # the first one allocates its memory
    peak = peak if beside is not None else peak_rss_mb()
    gemm = (gemm_before + gemm_gflops(clock)) / 2
    median = statistics.median(seconds)
    floor = measured.flops / gemm / 1e9
    result = labels | {
        "seconds_median": round(median, 4),
        "floor_seconds": round(floor, 4),
        "ratio_to_floor": round(median / floor, 3),
        "peak_rss_over_startup_mb": round(peak - before, 1),
        "flops": measured.flops,
        "gemm_gflops": round(gemm, 1),
        "seconds_all": [round(s, 4) for s in seconds],
        "compile_seconds": round(compile_seconds, 2),
        "achieved_gflops": round(measured.flops / median / 1e9, 1),
        "seq_len": measured.length,
        "remat": measured.model.remat,
        "vocab_chunk": measured.model.vocab_chunk,
        "position_chunk": measured.model.position_chunk,
    }
    if beside is not None:
        theirs, rate = statistics.median(others[1:]), beside.gemm_gflops(clock)
        result |= {
            "other": beside.name,
            "other_seconds_median": round(theirs, 4),
            "other_seconds_all": [round(s, 4) for s in others[1:]],
            "other_gemm_gflops": round(rate, 1),
            "other_step_peak_mb": round(beside.step_peak_mb, 1),
            "faster": round(theirs * rate / (median * gemm), 3),
        }
    print(json.dumps(result), flush=True)
    return result


def gemm_gflops(clock: Callable[[], float], size: int = 1024, repeats: int = 8) -> float:
    """Median rate of float32 matrix products of this size, in 10^9 FLOP/s."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(a, a))
    seconds = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(product(a, a))
        seconds.append(clock() - start)
    return 2 * size**3 / statistics.median(seconds) / 1e9


def reset_peak_rss_mb() -> float:
    """Reset the peak of resident memory, mostly from compilation; return the current 10^6 bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """Peak of resident memory since the reset, in 10^6 bytes."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {field} in /proc/self/status")
