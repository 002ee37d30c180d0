"""Time of a thinking step by phase: `python -m benchmarks.phases --shape=A --stage=1`.

One thread, process CPU seconds, best of three. Prints a JSON line for each phase and a table:

    text            forward pass over the text, without the output head
    sampling        K cached steps after it, without gradient, which draw the tokens
    scoring         forward pass over the thought blocks and all losses
    backward        backward pass of the text and of the scoring pass
    optimizer       clipping, AdamW, writing the parameters
    step            the whole step as the training loop compiles it
    of it, head     the output head in sampling, in scoring and in the backward pass

each with its FLOPs (fqs_jax/thinking/flops.py) and its rate as a share of that of a matrix product. Text,
sampling, head and optimizer are measured as programs of their own. Scoring is the loss without a
gradient, less text and sampling; backward is the time that the gradient adds.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from absl import app, flags

from benchmarks import shapes

FLAGS = flags.FLAGS
SETTINGS = ("remat", "vocab_chunk", "position_chunk")


def define_flags() -> None:
    flags.DEFINE_enum("shape", "A", list(shapes.SHAPES), "Model and batch.")
    flags.DEFINE_enum("stage", "1", list(shapes.THOUGHTS), "Number of the thinking stage.")
    flags.DEFINE_integer("seq_len", None, "Another text length.", 16)
    flags.DEFINE_string(
        "remat", shapes.COMPUTE["remat"], "Remat policy: what the backward pass recomputes."
    )
    for name in SETTINGS[1:]:
        flags.DEFINE_integer(name, shapes.COMPUTE[name], "As in benchmarks.train_step.", 0)


def main(_: list[str]) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from rich.console import Console
    from rich.table import Table

    from benchmarks import measure

    kind = measure.kind(
        shapes.SHAPES[FLAGS.shape],
        shapes.THOUGHTS[FLAGS.stage],
        shapes.RATIONALES,
        ntp=False,
        length=FLAGS.seq_len,
        compute={name: FLAGS[name].value for name in SETTINGS},
    )
    before = measure.gemm_gflops(time.process_time)
    seconds = phase_seconds(kind)
    gemm = (before + measure.gemm_gflops(time.process_time)) / 2
    counts = phase_flops(kind)
    table = Table(
        *("phase", "seconds", "share of step", "GFLOP", "share of GEMM rate"),
        title=f"Shape {FLAGS.shape}, {shapes.NAMES[FLAGS.stage]}, matrix product {gemm:.0f} GFLOP/s",
    )
    for phase, taken in seconds.items():
        rate = counts[phase] / taken / gemm / 1e9
        row = {
            "phase": phase,
            "seconds": round(taken, 4),
            "share_of_step": round(taken / seconds["step"], 3),
            "gflop": round(counts[phase] / 1e9, 3),
            "share_of_gemm": round(rate, 3),
        }
        print(json.dumps({"shape": FLAGS.shape, "stage": int(FLAGS.stage)} | row), flush=True)
        table.add_row(*map(str, row.values()))
    Console(width=110).print(table)


def phase_flops(kind: Any) -> dict[str, int]:
    """Minimal FLOPs of each phase; those of all but the head add up to those of the step."""
    from fqs_jax.thinking import flops

    model, thought, T = kind.model, kind.thought, kind.length
    R, K, A = thought.rationales, thought.num_tokens, thought.n_ahead_talk
    text = flops.text_forward(model, T)
    scoring = flops.scoring(model, thought, T)
    reads = flops.FORWARD * R * T * K + flops.TRAIN * (T + R * T * (K + A))
    a_row = {
        "text": text,
        "sampling": flops.sampling(model, thought, T, T, K, K) - text,
        "scoring": scoring - text,
        "backward": (flops.TRAIN - flops.FORWARD) * scoring,
        "optimizer": 0,
        "of it, head": reads * flops.vocabulary(model),
    }
    return {phase: kind.rows * count for phase, count in a_row.items()} | {"step": kind.flops}


def phase_seconds(kind: Any) -> dict[str, float]:
    """Process CPU seconds of each phase."""
    import jax

    from benchmarks import measure
    from fqs_jax.model import decoder
    from fqs_jax.thinking import thoughts
    from fqs_jax.thinking.config import Thinker

    key = jax.random.key(0)
    state, batch, number = kind.arguments(key)
    params = state.params

    def text(params: Any) -> Any:
        return decoder.text_forward(params["lm"], batch["tokens"], kind.model)

    def sample(params: Any) -> Any:
        return thoughts.sample_thoughts(
            params, batch["tokens"], key, Thinker(kind.model, kind.thought)
        )

    def loss(params: Any) -> Any:
        return kind.loss(params, batch, key)

    def update(grads: Any, optimizer: Any, params: Any) -> Any:
        import optax

        updates, optimizer = measure.transform().update(grads, optimizer, params, finite=True)
        return optax.apply_updates(params, updates), optimizer

    text_seconds = best(text, params)
    sample_seconds = best(sample, params)
    loss_seconds = best(loss, params)
    return {
        "text": text_seconds,
        "sampling": sample_seconds - text_seconds,
        "scoring": loss_seconds - sample_seconds,
        "backward": best(jax.value_and_grad(loss, has_aux=True), params) - loss_seconds,
        "optimizer": best(update, params, state.optimizer, params),
        "step": best(kind.step_function(), state, batch, number),
        "of it, head": head_seconds(kind),
    }


def head_seconds(kind: Any) -> float:
    """Seconds of the output head for all hidden states that a step samples from and scores."""
    import jax
    import jax.numpy as jnp

    from fqs_jax.model import vocab
    from fqs_jax.thinking import keys as keys_lib

    model, thought, B, T = kind.model, kind.thought, kind.rows, kind.length
    R, K, A = thought.rationales, thought.num_tokens, thought.n_ahead_talk
    key = jax.random.key(0)
    size = model.position_chunk or T
    keys = keys_lib.thought_keys(key, jnp.broadcast_to(jnp.arange(T), (B, T)), R)
    hidden = jax.random.normal(key, (K, B, T, R, model.width))
    text = jax.random.normal(key, (B, T, model.width))
    read = jax.random.normal(key, (-(-T // size), B, size, R, K + A, model.width))

    def scored(kernel: Any, hidden: Any) -> Any:
        ids = jnp.zeros(hidden.shape[:-1], jnp.int32)
        return jnp.sum(vocab.log_probs(hidden, kernel, ids, chunk=model.vocab_chunk))

    gradient = jax.value_and_grad(scored, argnums=(0, 1))

    def all_reads(kernel: Any) -> Any:
        drawn = jax.lax.map(
            lambda hidden: vocab.sample(hidden, kernel, keys, chunk=model.vocab_chunk), hidden
        )

        def add(total: Any, hidden: Any) -> Any:
            value, (more, of_hidden) = gradient(kernel, hidden)
            return total + more, (value, of_hidden)

        return drawn, gradient(kernel, text), jax.lax.scan(add, jnp.zeros_like(kernel), read)

    return best(all_reads, jax.random.normal(key, (model.width, model.vocab_size)))


def best(function: Any, *arguments: Any) -> float:
    """Process CPU seconds of a function once compiled, the best of three runs."""
    import jax

    compiled = jax.jit(function).lower(*arguments).compile()
    taken = []
    for _ in range(4):  # the first one allocates its memory
        start = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        taken.append(time.process_time() - start)
    return min(taken[1:])


if __name__ == "__main__":
    define_flags()
    app.run(main)
