"""Thinking at every position compared with thinking only where needed: `python -m benchmarks.inference`.

One CPU thread, float32, the same random weights and the same draws for both ways:

    published  like the released evaluation and generation: every prediction is a pass over the whole
               text with a thought at each position, and only the last one is used; nothing is
               cached from token to token. It is made of this project's own parts (one text pass,
               thoughts as cached steps after it), so that the ratio shows the cost of the algorithm.
    ours       scoring thinks only at the position that is used, with items of similar length in a
               batch; generation caches keys and values of the text, so a token costs n_ahead cached steps.

Prints a JSON line for each comparison, then a table. Times are process CPU seconds, medians of
interleaved runs, without compilation; `spread` is (largest - smallest) / median. The published way
is timed for tokens at several text lengths, each compiled for just that length, and those between are
interpolated: `published_ms_per_token` are the times at `lengths`. Ours is
timed whole, prompt included. `agree` is true if both ways gave the same predictions.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.shapes import SHAPES
from fqs_jax.inference import generation
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.thinking import parameters, prediction
from fqs_jax.thinking.config import Thinker, ThoughtConfig

_ROWS = flags.DEFINE_multi_integer("rows", [1, 8], "Texts in a batch.", 1)
_N_AHEAD = flags.DEFINE_multi_integer(
    "n_ahead", [8, 16], "n_ahead of scoring; generation uses the first.", 4
)
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of an item that is scored.", 64)
_PROMPT = flags.DEFINE_integer("prompt", 128, "Tokens of a prompt.", 1)
_NEW = flags.DEFINE_integer("new_tokens", 128, "Tokens of a continuation.", 8)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs for each.", 1)
_ITEMS = flags.DEFINE_integer("items", 32, "Items of mixed length.", 8)

BUCKET = 64  # batches are padded to a multiple of this, as in fqs_jax/evaluation/text.py
TIMED_LENGTHS = 5  # text lengths at which the published way is timed
Seconds = dict[str, list[float]]


def main(_: list[str]) -> None:
    # Before JAX starts its thread pools, which are as wide as the CPUs that this process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    jax.config.update("jax_platforms", "cpu")
    vocab, width, layers, heads, kv_heads, head_dim, mlp = SHAPES["A"][0]
    model = ModelConfig(vocab, width, layers, heads, kv_heads, head_dim, mlp)

    results = []
    for n_ahead in _N_AHEAD.value:
        for rows in _ROWS.value:
            results.append(scoring(model, n_ahead, rows))
        results.append(scoring_items(model, n_ahead, max(_ROWS.value)))
    for rows in _ROWS.value:
        results.append(generating(model, _N_AHEAD.value[0], rows))
        results.append(without_thoughts(model, rows))

    table = Table()
    for column in ("", "n_ahead", "rows", "published, s", "ours, s", "ratio", "spread"):
        table.add_column(column, justify="left" if not column else "right")
    for r in results:
        times = [f"{r[name]:.4f}" if name in r else "-" for name in ("published_s", "ours_s")]
        spread = f"{r['spread'] * 100:.0f} %"
        table.add_row(
            r["what"], str(r["n_ahead"]), str(r["rows"]), *times, f"{r['ratio']:.2f}", spread
        )
    Console(width=110).print(table)


# Scoring --------------------


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def think_everywhere(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    last_B: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
) -> jax.Array:
    """The published way: log-probabilities [B, V] at `last_B`, with a thought at each position."""
    following, _ = prediction.think(params, tokens_BxT, key, Thinker(model, thought))
    return following.log_prob_BxPxRxV[jnp.arange(len(last_B)), last_B, 0]


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def think_at_last(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    last_B: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
) -> jax.Array:
    """Our way: log-probabilities [B, V] at `last_B`, with one thought for each row."""
    following, _ = prediction.think(
        params, tokens_BxT, key, Thinker(model, thought), index_BxP=last_B[:, None]
    )
    return following.log_prob_BxPxRxV[:, 0, 0]


def scoring(model: ModelConfig, n_ahead: int, rows: int) -> dict[str, Any]:
    """A batch of items without padding, which shows the gain of thinking at one position."""
    thought, params = thinking(model, n_ahead)
    tokens, key = texts(rows, _LENGTH.value), jax.random.key(1)
    last = jnp.full(rows, _LENGTH.value - 1)
    arguments = params, tokens, key, last, model, thought
    ways = {
        "published": lambda: think_everywhere(*arguments),
        "ours": lambda: think_at_last(*arguments),
    }
    agree = same(ways["published"](), ways["ours"]())
    return report("scoring", n_ahead, rows, interleaved(ways), length=_LENGTH.value, agree=agree)


def scoring_items(model: ModelConfig, n_ahead: int, rows: int) -> dict[str, Any]:
    """Items of mixed length: padded to the maximum as published, or batched by length."""
    thought, params = thinking(model, n_ahead)
    key, full = jax.random.key(1), _LENGTH.value
    sizes = np.sort(np.random.default_rng(0).integers(full // 4, full + 1, _ITEMS.value))
    tokens = np.array(texts(len(sizes), full))

    def score(way: Callable[..., jax.Array], bucket: int) -> list[jax.Array]:
        scores = []
        for start in range(0, len(sizes), rows):
            chosen = slice(start, start + rows)
            length = -(-int(sizes[chosen].max()) // bucket) * bucket
            last = jnp.asarray(sizes[chosen] - 1)
            scores.append(way(params, tokens[chosen, :length], key, last, model, thought))
        return scores

    ways = {
        "published": lambda: score(think_everywhere, full),
        "ours": lambda: score(think_at_last, BUCKET),
    }
    agree = all(map(same, ways["published"](), ways["ours"]()))
    lengths = {"items": len(sizes), "mean_length": float(sizes.mean()), "padded_to": full}
    return report("scoring items", n_ahead, rows, interleaved(ways), **lengths, agree=agree)


# Generation --------------------


def generate(
    model: ModelConfig, params: Params, thought: ThoughtConfig | None, prompt_BxT: jax.Array
) -> list[np.ndarray]:
    """Greedy tokens [B] of each step, made by fqs_jax/inference/generation.py."""
    rows, length = prompt_BxT.shape
    cursor = generation.prefill(
        params, prompt_BxT, jnp.full(rows, length), model=model, room=_NEW.value
    )
    settings: dict[str, Any] = {
        "temperature": 0.0,
        "top_p": 1.0,
        "allowed": model.vocab_size,
    }
    steps = generation.steps(
        params, cursor, jax.random.key(1), _NEW.value, model=model, thought=thought, **settings
    )
    return [np.asarray(choice.token_B) for choice in steps]


def generating(model: ModelConfig, n_ahead: int, rows: int) -> dict[str, Any]:
    """A continuation with a thought before each token."""
    thought, params = thinking(model, n_ahead)
    prompt = texts(rows, _PROMPT.value)
    new_BxS = np.stack(generate(model, params, thought, prompt), axis=1)
    text = np.concatenate([prompt, new_BxS], axis=1)

    done = np.unique(np.linspace(0, _NEW.value - 1, TIMED_LENGTHS).astype(int))
    tokens, agree = {}, True
    for step in map(int, done):
        length = _PROMPT.value + step
        arguments = (
            params,
            jnp.asarray(text[:, :length]),
            jax.random.fold_in(jax.random.key(1), step),
            jnp.full(rows, length - 1),
            model,
            thought,
        )
        tokens[str(length)] = functools.partial(think_everywhere, *arguments)
        picked = np.argmax(tokens[str(length)](), axis=-1)
        agree = agree and bool((picked == new_BxS[:, step]).all())
    times = interleaved(tokens | {"ours": lambda: generate(model, params, thought, prompt)})
    ours = times.pop("ours")
    each = np.array([statistics.median(times[length]) for length in tokens])
    # Times of the tokens between two timed ones are interpolated.
    rounds = np.array([times[length] for length in tokens]).T
    published = [float(np.interp(np.arange(_NEW.value), done, run).sum()) for run in rounds]
    return report(
        "generating",
        n_ahead,
        rows,
        {"published": published, "ours": ours},
        prompt=_PROMPT.value,
        new_tokens=_NEW.value,
        agree=agree,
        lengths=list(map(int, tokens)),
        published_ms_per_token=[round(1e3 * float(s), 2) for s in each],
        ours_ms_per_token=round(1e3 * statistics.median(ours) / _NEW.value, 3),
    )


def without_thoughts(model: ModelConfig, rows: int) -> dict[str, Any]:
    """Thought-free generation of an NTP model compared with that of its base."""
    prompt = texts(rows, _PROMPT.value)
    weights = {
        name: {"lm": decoder.init(model, jax.random.key(i))}
        for i, name in enumerate(("base", "ntp"))
    }
    ways = {
        name: functools.partial(generate, model, params, None, prompt)
        for name, params in weights.items()
    }
    times = interleaved(ways, 3 * _REPEATS.value)
    per_token = {name: 1e3 * statistics.median(s) / _NEW.value for name, s in times.items()}
    pairs = [ntp / base for ntp, base in zip(times["ntp"], times["base"], strict=True)]
    result = {
        "what": "NTP / base, ms/token",
        "n_ahead": 0,
        "rows": rows,
        "ratio": round(statistics.median(pairs), 3),
        "spread": round(spread(pairs), 3),
        "base_ms_per_token": round(per_token["base"], 3),
        "ntp_ms_per_token": round(per_token["ntp"], 3),
        "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(pairs)],
    }
    print(json.dumps(result), flush=True)
    return result


# Common --------------------


def thinking(model: ModelConfig, n_ahead: int) -> tuple[ThoughtConfig, Params]:
    """Random weights, with a talk head that gives thoughts a weight."""
    key = jax.random.key(0)
    thought = ThoughtConfig(n_ahead, rationales=1)
    lm = decoder.init(model, key)
    added = parameters.init(Thinker(model, thought), lm, key, 3, 4)
    out = added["talk_head"]["out"]
    out["kernel"] = 0.02 * jax.random.normal(key, out["kernel"].shape)
    return thought, {"lm": lm, "thought": added}


def same(left: jax.Array, right: jax.Array) -> bool:
    return bool(jnp.allclose(left, right, atol=1e-3))


def texts(rows: int, length: int) -> jax.Array:
    return jax.random.randint(jax.random.key(2), (rows, length), 0, SHAPES["A"][0][0])


def interleaved(ways: Mapping[str, Callable[[], Any]], repeats: int | None = None) -> Seconds:
    """CPU seconds of each way, in rounds over all ways; the first round is not counted."""
    seconds: Seconds = {name: [] for name in ways}
    for _ in range((repeats or _REPEATS.value) + 1):
        for name, way in ways.items():
            start = time.process_time()
            jax.block_until_ready(way())
            seconds[name].append(time.process_time() - start)
    return {name: times[1:] for name, times in seconds.items()}


def report(what: str, n_ahead: int, rows: int, times: Seconds, **more: Any) -> dict[str, Any]:
    published, ours = (statistics.median(times[way]) for way in ("published", "ours"))
    result = {
        "what": what,
        "n_ahead": n_ahead,
        "rows": rows,
        "published_s": round(published, 5),
        "ours_s": round(ours, 5),
        "ratio": round(published / ours, 2),
        "spread": round(max(map(spread, times.values())), 3),
        **more,
    }
    print(json.dumps(result), flush=True)
    return result


def spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


if __name__ == "__main__":
    app.run(main)
