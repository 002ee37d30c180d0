"""Log-probabilities of single tokens of a text: where it gets harder, and for which documents."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.data.rows import windows
from fqs_jax.inference import readings
from fqs_jax.inference.loaded import Loaded
from fqs_jax.inference.readings import batches
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig

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
    scores = thoughts.sample_and_score(params, tokens, key, Thinker(model, thought), mask)
    return {
        "nll_base": -jnp.sum(scores.base_BxT[:, :-1] * where),
        "nll_thought": -jnp.sum(scores.blocks.talk_BxPxRxA[:, :-1, 0, 0] * where),
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


class TokenScores(NamedTuple):
    """log p of every predicted token of a text, N of them, in nats, float32.

    window_N, document_N: which window and which document each is in. tempered_CxN: without thoughts,
    logits divided by each temperature asked for. thinking_N: after one sampled thought, None if the
    model has none.
    """

    window_N: np.ndarray
    document_N: np.ndarray
    plain_N: np.ndarray
    thinking_N: np.ndarray | None
    tempered_CxN: np.ndarray

    @property
    def best_N(self) -> np.ndarray:
        """What the model predicts with: after a thought if it thinks."""
        return self.plain_N if self.thinking_N is None else self.thinking_N


def score(
    loaded: Loaded,
    documents: Sequence[str],
    seq_len: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    temperatures: Sequence[float] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenScores:
    """Score every token that `text.text_nll` scores, with the same thoughts.

    Raises:
      UserError: there is nothing to predict.
    """
    seq_len = seq_len or window(loaded)
    rows, _ = evaluation_rows(loaded, documents, seq_len)
    key, scales = jax.random.key(seed), jnp.asarray(temperatures, jnp.float32)
    count = len(rows["tokens"])
    tables: list[list[np.ndarray]] = []
    order: list[np.ndarray] = []
    for i, (chosen, batch) in enumerate(readings.batches(rows, batch_size, loaded.mesh)):
        with jax.set_mesh(loaded.mesh):
            scores = _log_probs(
                loaded.params,
                batch,
                jax.random.fold_in(key, i),
                scales,
                loaded.model,
                loaded.thought,
            )
        kept = rows["mask"][chosen, 1 : batch["tokens"].shape[1]]
        tables.append([np.asarray(table)[:, : len(chosen)][:, kept] for table in scores])
        order.append(np.repeat(chosen, kept.sum(axis=1)))
        progress(min((i + 1) * batch_size, count), count)
    plain, thinking, tempered = (
        np.concatenate(parts, axis=1) for parts in zip(*tables, strict=True)
    )
    window_N = np.concatenate(order)
    in_text = np.argsort(window_N, kind="stable")
    return TokenScores(
        window_N[in_text],
        rows["document"][window_N[in_text]],
        plain[0, in_text],
        thinking[0, in_text] if len(thinking) else None,
        tempered[:, in_text],
    )


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _log_probs(
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    temperatures_C: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log p(x_{t+1}): plain [1, B, T-1], after a thought [1 or 0, B, T-1], tempered [C, B, T-1]."""
    tokens, mask = batch["tokens"], batch["mask"]
    none = jnp.zeros((0, tokens.shape[0], tokens.shape[1] - 1))
    tempered, thinking = none, none
    if thought is None or len(temperatures_C):
        hidden, _ = decoder.text_forward(params["lm"], tokens, model, mask)
    if len(temperatures_C):

        def at(temperature: jax.Array) -> jax.Array:
            scaled = (hidden / temperature).astype(hidden.dtype)  # the head is linear
            return decoder.label_log_probs(params["lm"], scaled, tokens, model)

        tempered = jax.lax.map(at, temperatures_C)
    if thought is None:
        plain = decoder.label_log_probs(params["lm"], hidden, tokens, model)
    else:
        scores = thoughts.sample_and_score(params, tokens, key, Thinker(model, thought), mask)
        thinking = scores.blocks.talk_BxPxRxA[None, :, :-1, 0, 0]
        plain = scores.base_BxT[:, :-1]
    return plain[None], thinking, tempered
