"""Scores of a loaded model: loss on text, and probabilities of answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.data.rows import windows
from fqs_jax.inference.loaded import Loaded
from fqs_jax.inference.readings import batches
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import thoughts
from fqs_jax.thinking.config import ThoughtConfig

DEFAULT_WINDOW = 1024  # tokens


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _text_nll(
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig | None,
) -> dict[str, jax.Array]:
    """Sums over a batch's real targets of the negative log-probability, without and with thoughts."""
    tokens, mask = batch["tokens"], batch["mask"]
    where = mask[:, 1:]
    if thought is None:
        hidden, _ = decoder.text_forward(params["lm"], tokens, model, mask)
        log_probs = decoder.label_log_probs(params["lm"], hidden, tokens, model)
        return {"nll_base": -jnp.sum(log_probs * where)}
    scores, *_ = thoughts.sample_and_score(params, tokens, key, model, thought, mask)
    return {
        "nll_base": -jnp.sum(scores.base_BxT[:, :-1] * where),
        "nll_thought": -jnp.sum(scores.talk_BxPxRxA[:, :-1, 0, 0] * where),
    }


def text_nll(
    loaded: Loaded,
    documents: Sequence[str],
    seq_len: int | None,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Mean loss in nats a token over documents, each token predicted at most once.

    Each document is cut into windows by itself (`windows.evaluation_windows`), and is scored to its
    end if it fits in one. Of a longer one a last, short window is left out: its tokens would be
    predicted from too little. Windows of like length share a batch, so that little padding is computed.

    Args:
      seq_len: tokens of a window; None = what the model was made for, at most DEFAULT_WINDOW.
      progress: told (windows done, windows in all).

    Returns:
      nll_base, nll_thought (thinking models: one sampled thought a position), tokens (scored),
      tokens_left_out, windows, seq_len.
    """
    seq_len = seq_len or window(loaded)
    rows, left_out = evaluation_rows(loaded, documents, seq_len)
    totals: dict[str, float] = {}
    key = jax.random.key(seed)
    done = 0
    for i, (_, batch) in enumerate(batches(rows, batch_size, loaded.mesh)):
        with jax.set_mesh(loaded.mesh):
            sums = _text_nll(
                loaded.params, batch, jax.random.fold_in(key, i), loaded.model, loaded.thought
            )
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + float(value)
        done += batch_size
        progress(min(done, len(rows["tokens"])), len(rows["tokens"]))
    num_tokens = int(rows["mask"][:, 1:].sum())
    means = {name: total / max(1, num_tokens) for name, total in totals.items()}
    counts = {"tokens": num_tokens, "tokens_left_out": left_out, "windows": len(rows["tokens"])}
    return means | counts | {"seq_len": seq_len}


def window(loaded: Loaded) -> int:
    """Tokens of a window where nothing else is said: what the model was made for, within reason."""
    return min(loaded.model.max_seq_len, DEFAULT_WINDOW)


def evaluation_rows(
    loaded: Loaded, documents: Sequence[str], seq_len: int
) -> tuple[windows.Batch, int]:
    """Documents as padded windows, and how many tokens are in none: see `text_nll`.

    Returns:
      tokens, mask [windows, T] and `document`, the number of each window's document [windows].
    """
    tokenizer = loaded.tokenizer
    bos_id = next(iter(tokenizer.opening), None)
    kept, numbers, left_out = [], [], 0
    for number, tokens in enumerate(tokenizer.encode_batch(documents)):
        cut = windows.evaluation_windows([tokens], seq_len, bos_id, tokenizer.pad_id)
        rows = [row[mask] for row, mask in zip(cut["tokens"], cut["mask"], strict=True)]
        if len(rows) > 1 and len(rows[-1]) < seq_len:
            left_out += len(rows.pop()) - 1
        kept += rows
        numbers += [number] * len(rows)
    if not kept:
        raise UserError("the text has no token to predict; give a longer one")
    rows_by_name = windows.pad_rows(kept, max(map(len, kept)), tokenizer.pad_id)
    return rows_by_name | {"document": np.array(numbers)}, left_out
