"""Seconds to the first text of a checkpoint, with and without the cache of compiled programs.

    python -m benchmarks.first_text HF_DIR --rounds=3

`generate` starts in a process of its own each time, by turns: without a cache, with an empty one, and with
the one that this has filled. Wall-clock seconds from the start of the process to its end, one new token. One
JSON line with the median of each, and all seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from absl import app, flags

FLAGS = flags.FLAGS
PROMPT = "The tallest mountain of the world is called"


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError(
            "name one folder of a checkpoint: python -m benchmarks.first_text HF_DIR"
        )
    seconds: dict[str, list[float]] = {"no cache": [], "empty cache": [], "filled cache": []}
    for _ in range(FLAGS.rounds):
        with tempfile.TemporaryDirectory() as folder:
            cached = {"XDG_CACHE_HOME": folder}
            seconds["no cache"].append(start(argv[1], {"JAX_ENABLE_COMPILATION_CACHE": "false"}))
            seconds["empty cache"].append(start(argv[1], cached))
            seconds["filled cache"].append(start(argv[1], cached))
    medians = {name: round(statistics.median(found), 2) for name, found in seconds.items()}
    print(json.dumps({"medians": medians, "seconds": seconds}))


def start(checkpoint: str, environment: Mapping[str, str]) -> float:
    """Wall-clock seconds of one start of `generate`."""
    command = [sys.executable, "-m", "fqs_jax.generate", f"--checkpoint={checkpoint}"]
    begun = time.perf_counter()
    subprocess.run(
        [*command, f"--prompt={PROMPT}", "--max_new_tokens=1"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begun


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 3, "Starts of each kind.", lower_bound=1)
    app.run(main)
