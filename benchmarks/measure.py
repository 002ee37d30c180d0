"""Measuring a compiled training step: time, memory, and the machine's own matrix product."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from fqs_jax import flops, model, objectives, optimizer, quiet_star, thoughts
from fqs_jax import step as step_lib

Shape = tuple[tuple[int, ...], int, int]


def print_step(
    shape: Shape,
    n_ahead: tuple[int, int] | None,
    rationales: int,
    *,
    ntp: bool,
    steps: int,
    threads: int,
    seq_len: int | None,
    compute: dict[str, Any],
    labels: dict[str, Any],
    settings: quiet_star.QuietStarConfig | None = None,
) -> dict[str, Any]:
    """Time one kind of step; print its JSON line and return it.

    Args:
      settings: of the thinking objective; None = the published ones.
    """
    settings = settings or quiet_star.QuietStarConfig()
    (vocab, width, layers, heads, kv_heads, head_dim, mlp), sequences, length = shape
    length = seq_len or length
    config = model.ModelConfig(vocab, width, layers, heads, kv_heads, head_dim, mlp, **compute)
    key = jax.random.key(0)
    params: dict[str, Any] = {"lm": model.init(config, key)}
    thought = None
    if n_ahead is not None:
        thought = thoughts.ThoughtConfig(*n_ahead, rationales=rationales)
        params["thought"] = thoughts.init(config, thought, params["lm"], key, 3, 4)
        # A head that is not zero, as after some steps: all of the backward pass is real.
        out = params["thought"]["talk_head"]["out"]
        out["kernel"] = 0.02 * jax.random.normal(key, out["kernel"].shape)

    rows = sequences * rationales if n_ahead is None else sequences
    batch: dict[str, Any] = {
        "tokens": np.asarray(jax.random.randint(key, (rows, length), 0, vocab), np.int32),
        "mask": np.ones((rows, length), bool),
    }
    if thought is not None:
        some = settings.position_fraction < 1
        positions = settings.num_positions(length)
        choosing = some and settings.positions == "high_entropy"
        count = flops.quiet_star_step(config, thought, sequences, length, positions, choosing)
    elif ntp:
        batch["teacher_log_prob"] = np.full((rows, length - 1), -5.0, np.float32)
        count = flops.ntp_step(config, rows, length, sampled=True)
    else:
        count = flops.next_token_step(config, rows, length)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        if thought is not None:
            return quiet_star.quiet_star_loss(params, batch, key, config, thought, settings)
        if ntp:
            return objectives.ntp_loss(params, batch, key, config, objectives.NTPConfig())
        return objectives.next_token_loss(params, batch, key, config)

    transform = optimizer.make(common.get_config(), 1e-6, 1000)
    state = step_lib.State(params, transform.init(params))
    step = step_lib.make_step(loss, transform, key)
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, np.int32(0)).compile()
    compile_seconds = time.perf_counter() - started
    gemm_before = gemm_gflops(time.process_time if threads == 1 else time.perf_counter)

    clock = time.process_time if threads == 1 else time.perf_counter
    before = reset_peak_rss_mb()
    seconds = []
    for i in range(steps + 1):
        start = clock()
        state, metrics = compiled(state, batch, np.int32(i))
        jax.block_until_ready((state, metrics))
        seconds.append(clock() - start)
    peak = peak_rss_mb()
    seconds = seconds[1:]  # the first one touches its memory for the first time
    gemm = (gemm_before + gemm_gflops(clock)) / 2
    median = statistics.median(seconds)
    result = labels | {
        "seconds_median": round(median, 4),
        "peak_rss_over_startup_mb": round(peak - before, 1),
        "flops": count,
        "gemm_gflops": round(gemm, 1),
        "seconds_all": [round(s, 4) for s in seconds],
        "compile_seconds": round(compile_seconds, 2),
        "achieved_gflops": round(count / median / 1e9, 1),
        "fraction_of_gemm": round(count / median / 1e9 / gemm, 3),
        "seq_len": length,
        **compute,
    }
    print(json.dumps(result), flush=True)
    return result


def gemm_gflops(clock: Callable[[], float], size: int = 1024, repeats: int = 8) -> float:
    """Median rate of a float32 matrix product of this size, 10^9 FLOPs a second."""
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
    """Forget the highest resident memory so far (compilation's, mostly); returns the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """Highest resident memory since the reset, 10^6 bytes."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {field} in /proc/self/status")
