"""Where a thinking step's time goes: `python -m benchmarks.phases --shape=A --stage=1`.

Prints one JSON line: process CPU seconds, one thread, best of three, of the sampling phase, of the
scoring pass forward, and of it forward and backward, each compiled by itself.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from absl import app, flags

from benchmarks.train_step import SHAPES, THOUGHTS

FLAGS = flags.FLAGS  # --shape and --stage are train_step's


def main(_: list[str]) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    from fqs_jax import model, quiet_star, targets, thoughts

    fields, rows, length = SHAPES[FLAGS.shape]
    config = model.ModelConfig(*fields, remat=FLAGS.remat)
    thought = thoughts.ThoughtConfig(*THOUGHTS[FLAGS.stage])
    key = jax.random.key(0)
    lm = model.init(config, key)
    params = {"lm": lm, "thought": thoughts.init(config, thought, lm, key, 3, 4)}
    tokens = jax.random.randint(key, (rows, length), 0, config.vocab_size)
    target = targets.talk_targets({"mask": jnp.ones(tokens.shape, bool)}, thought.n_ahead_talk)
    settings = quiet_star.QuietStarConfig()

    def sample(params: Any) -> Any:
        return thoughts.sample_thoughts(params, tokens, key, config, thought)[0]

    drawn = jax.jit(sample)(params)

    def loss(params: Any) -> Any:
        scores = thoughts.score_thoughts(params, tokens, drawn, config, thought)
        return quiet_star.thought_losses(scores, target, settings).total(settings)

    def seconds(function: Any) -> float:
        compiled = jax.jit(function).lower(params).compile()
        taken = []
        for _ in range(4):  # the first one touches its memory for the first time
            start = time.process_time()
            jax.block_until_ready(compiled(params))
            taken.append(time.process_time() - start)
        return round(min(taken[1:]), 3)

    result = {
        "sample": seconds(sample),
        "score": seconds(loss),
        "score_and_gradient": seconds(jax.grad(loss)),
    }
    print(json.dumps({"shape": FLAGS.shape, "stage": int(FLAGS.stage)} | result))


if __name__ == "__main__":
    app.run(main)
