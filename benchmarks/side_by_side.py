"""Ours and transformers' model in torch, in turns: `python -m benchmarks.side_by_side HF_DIR`.

Times a plain training step, reading a prompt, and decoding, for the model of a Hugging Face folder in
float32 on a CPU. The step has random weights of the same shapes, the rest has the folder's. The two sides
alternate in one process, so that whatever else the machine does falls on both. Prints a JSON line for each:

    what, rows, threads
    ours, theirs       median wall seconds: of a step, of a prompt with its first token, of a later token
    ratio              quartiles of theirs / ours over the rounds
    gemm, their_gemm   10^9 FLOP/s of a 1024^3 product of each side after the rounds, so that libraries can
                       be told apart
    agree              share of greedy tokens on which the two sides agree (decoding)

The libraries are as installed. On CPUs of other makers, MKL in torch may not use all instructions that the
CPU has; compare the two rates. GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command acts on both sides.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

_PARTS = ("step", "prompt", "decode")
_WHAT = flags.DEFINE_multi_enum("what", list(_PARTS), _PARTS, "Parts to time.")
_ROWS = flags.DEFINE_multi_integer("rows", [1, 8], "Rows of prompts and of decoding.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds.", 1)
_THREADS = flags.DEFINE_integer("threads", 1, "CPU threads.", 1)
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of a row of a step, and of a prompt.", 1)
_NEW = flags.DEFINE_integer("new", 32, "Tokens to decode.", 2)
_STEP_ROWS = 2


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise app.UsageError("give one Hugging Face folder")
    # Before JAX starts its thread pools, which are as wide as the CPUs that this process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _THREADS.value])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    folder = Path(arguments[1])
    if "step" in _WHAT.value:
        _report(_compare_steps(folder), what="step", rows=_STEP_ROWS)
    if set(_WHAT.value) & {"prompt", "decode"}:
        for rows in _ROWS.value:
            for found in _compare_generation(folder, rows):
                _report(found, rows=rows)


def in_turns(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int
) -> tuple[list[float], list[float]]:
    """Wall seconds of each round, the first one aside, which compiles and allocates."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for side, own in zip((ours, theirs), seconds, strict=True):
            started = time.perf_counter()
            side()
            own.append(time.perf_counter() - started)
    return seconds[0][1:], seconds[1][1:]


def _compare_steps(folder: Path) -> dict[str, Any]:
    import jax
    import numpy as np

    from benchmarks import measure, torch_step
    from benchmarks.shapes import COMPUTE
    from fqs_jax.objectives.thought_losses import QuietStarConfig

    kind = measure.kind_of_checkpoint(
        folder, None, 1, _STEP_ROWS, _LENGTH.value, COMPUTE, QuietStarConfig()
    )
    state, batch, number = kind.arguments(jax.random.key(0))
    compiled = kind.step().lower(state, batch, number).compile()

    def ours() -> None:
        nonlocal state
        state, metrics = compiled(state, batch, np.int32(0))
        jax.block_until_ready((state, metrics))

    other = torch_step.make(folder, _STEP_ROWS, _LENGTH.value, _THREADS.value)
    mine, others = in_turns(ours, other.step, _ROUNDS.value)
    return {"ours": mine, "theirs": others}


def _compare_generation(folder: Path, rows: int) -> list[dict[str, Any]]:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from fqs_jax.inference import generation
    from fqs_jax.runs import loading

    torch.set_num_threads(_THREADS.value)
    loaded = loading.load(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # No text ends before the others.
    model.generation_config.eos_token_id = None
    endless = dataclasses.replace(loaded.tokenizer, eos_id=None, other_ends=frozenset())
    loaded = dataclasses.replace(loaded, tokenizer=endless)
    ids = np.random.default_rng(0).integers(0, loaded.tokenizer.vocab_size, (rows, _LENGTH.value))
    prompts = [list(map(int, row)) for row in ids]
    tensor, mask = torch.as_tensor(ids), torch.ones(ids.shape, dtype=torch.long)

    def ours(new: int) -> np.ndarray:
        return np.array([one.tokens for one in generation.generate(loaded, prompts, new)])

    def theirs(new: int) -> np.ndarray:
        how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        with torch.no_grad():
            found = model.generate(tensor, attention_mask=mask, pad_token_id=0, **how)
        return found[:, ids.shape[1] :].numpy()

    first = in_turns(lambda: ours(1), lambda: theirs(1), _ROUNDS.value)
    found: list[dict[str, Any]] = []
    if "prompt" in _WHAT.value:
        found.append({"what": "prompt", "ours": first[0], "theirs": first[1]})
    if "decode" in _WHAT.value:
        new = _NEW.value
        agree = float(np.mean(ours(new) == theirs(new)))
        whole = in_turns(lambda: ours(new), lambda: theirs(new), _ROUNDS.value)
        later = [
            [(all_of - statistics.median(start)) / (new - 1) for all_of in own]
            for own, start in zip(whole, first, strict=True)
        ]
        found.append({"what": "decode", "ours": later[0], "theirs": later[1], "agree": agree})
    return found


def _report(found: dict[str, Any], **labels: Any) -> None:
    from benchmarks import measure, torch_step

    ours, theirs = found.pop("ours"), found.pop("theirs")
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    line = (
        found
        | labels
        | {
            "threads": _THREADS.value,
            "ours": round(statistics.median(ours), 5),
            "theirs": round(statistics.median(theirs), 5),
            "ratio": [round(x, 3) for x in quartiles],
            "gemm": round(measure.gemm_gflops(time.perf_counter), 1),
            "their_gemm": round(torch_step.gemm_gflops(time.perf_counter), 1),
        }
    )
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
