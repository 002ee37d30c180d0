"""Log-probabilities of every token of held-out documents."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.data import long_texts
from fqs_jax.data.rows import windows
from fqs_jax.inference import readings
from fqs_jax.inference.loaded import Loaded
from fqs_jax.inference.readings import Advance
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import keys as keys_lib
from fqs_jax.thinking import thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig

DEFAULT_WINDOW = 1024  # tokens


class TokenScores(NamedTuple):
    """log p of the N predicted tokens of a text, in order, in nats, float32.

    window_N, document_N: numbers of each token's window and document. tempered_CxN: without thoughts,
    logits divided by each of C temperatures. thinking_RxN: after each of R thoughts, R = 0 if the
    model does not think. tokens_left_out, seq_len: see `score`.
    """

    window_N: np.ndarray
    document_N: np.ndarray
    plain_N: np.ndarray
    thinking_RxN: np.ndarray
    tempered_CxN: np.ndarray
    tokens_left_out: int
    seq_len: int

    @property
    def best_RxN(self) -> np.ndarray:
        """The model's own prediction: after thoughts if it thinks, else plain with R = 1."""
        return self.thinking_RxN if len(self.thinking_RxN) else self.plain_N[None]

    def check_finite(self, label: str) -> None:
        """Check that the model, which is named in the message, is not broken.

        Raises:
          UserError: a loss is NaN or infinite.
        """
        finite_N = np.isfinite(self.plain_N) & np.isfinite(self.thinking_RxN).all(axis=0)
        if not finite_N.all():
            raise UserError(
                f"the loss of {label} is not finite, first in document "
                f"{self.document_N[~finite_N][0] + 1} of the text: the model is broken; use another "
                "checkpoint"
            )

    def summary(self) -> dict[str, float]:
        """Mean losses in nats a token, over all thoughts where the model thinks, and counts."""
        losses = {"nll_base": -float(self.plain_N.mean(dtype=np.float64))}
        if len(self.thinking_RxN):
            losses["nll_thought"] = -float(self.thinking_RxN.mean(dtype=np.float64))
        return losses | {
            "tokens": len(self.plain_N),
            "tokens_left_out": self.tokens_left_out,
            "windows": int(self.window_N[-1]) + 1,
            "seq_len": self.seq_len,
        }


def score(
    loaded: Loaded,
    documents: Sequence[str],
    seq_len: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    temperatures: Sequence[float] = (),
    thoughts: int = 1,
    progress: Advance = lambda done, total: None,
) -> TokenScores:
    """Score every token of some documents, each predicted at most once.

    Each document is cut into windows by itself (`windows.evaluation_windows`), and is scored to its
    end if it fits in one. Of a longer one a last, short window is left out: its tokens would be
    predicted from too little. A thought depends on the seed, the document and the position alone.

    Args:
      seq_len: tokens of a window; None = what the model was made for, at most DEFAULT_WINDOW.
      batch_size: windows in a batch; fewer with several thoughts.
      temperatures: C that the logits of the plain prediction are divided by.
      thoughts: R, sampled at each token if the model thinks.
      progress: called with the number of windows done and of all windows.

    Raises:
      UserError: there is nothing to predict.
    """
    seq_len = seq_len or window(loaded)
    rows, document_W, place_W, left_out = _windows(loaded, documents, seq_len)
    loaded = loaded.with_thought(rationales=thoughts)
    if loaded.thought is not None:
        batch_size = max(1, batch_size // thoughts)
    key, scales = jax.random.key(seed), jnp.asarray(temperatures, jnp.float32)
    tables: list[list[np.ndarray]] = []
    order: list[np.ndarray] = []
    done = 0
    for chosen, length in readings.batches([len(row) for row in rows], batch_size):
        missing = batch_size - len(chosen)
        padded = [rows[w] for w in chosen] + [rows[0][:1]] * missing
        arrays = windows.pad_rows(padded, length, loaded.tokenizer.pad_id)
        numbers = {"document": document_W[chosen], "place": place_W[chosen]}
        arrays |= {name: np.pad(values, (0, missing)) for name, values in numbers.items()}
        batch = readings.place(arrays, loaded.mesh)
        with jax.set_mesh(loaded.mesh):
            scores = _log_probs(loaded.params, batch, key, scales, loaded.model, loaded.thought)
        real = arrays["mask"][: len(chosen), 1:]
        tables.append([np.asarray(table)[:, : len(chosen)][:, real] for table in scores])
        order.append(np.repeat(chosen, real.sum(axis=1)))
        done += len(chosen)
        progress(done, len(rows))
    plain, thinking, tempered = (
        np.concatenate(parts, axis=1) for parts in zip(*tables, strict=True)
    )
    window_N = np.concatenate(order)
    in_text = np.argsort(window_N, kind="stable")
    return TokenScores(
        window_N[in_text],
        document_W[window_N[in_text]],
        plain[0, in_text],
        thinking[:, in_text],
        tempered[:, in_text],
        left_out,
        seq_len,
    )


def window(loaded: Loaded) -> int:
    """The default length of a window in tokens: that the model was made for, within reason."""
    return min(loaded.model.max_seq_len, DEFAULT_WINDOW)


def _windows(
    loaded: Loaded, documents: Sequence[str], seq_len: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, int]:
    """Windows of tokens, the number of each one's document [W], its place there [W], and how many
    tokens are in no window."""
    tokenizer = loaded.tokenizer
    bos_id = next(iter(tokenizer.opening), None)
    rows: list[np.ndarray] = []
    numbers: list[tuple[int, int]] = []
    left_out = 0
    for document, tokens in enumerate(long_texts.encode_batch(tokenizer, documents)):
        body = tokenizer.after_opening(tokens)
        cut = windows.evaluation_windows([body], seq_len, bos_id, tokenizer.pad_id)
        pieces = [row[mask] for row, mask in zip(cut["tokens"], cut["mask"], strict=True)]
        if len(pieces) > 1 and len(pieces[-1]) < seq_len:
            left_out += len(pieces.pop()) - 1
        rows += pieces
        numbers += [(document, place) for place in range(len(pieces))]
    if not rows:
        raise UserError("the text has no token to predict; give a longer one")
    document_W, place_W = np.array(numbers, np.int32).T
    return rows, document_W, place_W, left_out


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _log_probs(
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    temperatures_C: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log p(x_{t+1}): plain [1, B, T-1], after thoughts [R or 0, B, T-1], tempered [C, B, T-1]."""
    tokens, mask = batch["tokens"], batch["mask"]
    none = jnp.zeros((0, tokens.shape[0], tokens.shape[1] - 1))
    tempered, thinking = none, none
    if thought is None or len(temperatures_C):
        hidden, _ = decoder.text_forward(params["lm"], tokens, model, mask)
    if len(temperatures_C):

        def scaled_log_probs(temperature: jax.Array) -> jax.Array:
            scaled = (hidden / temperature).astype(hidden.dtype)  # the head is linear
            return decoder.label_log_probs(params["lm"], scaled, tokens, model)

        tempered = jax.lax.map(scaled_log_probs, temperatures_C)
    if thought is None:
        plain = decoder.label_log_probs(params["lm"], hidden, tokens, model)
    else:
        document_keys = keys_lib.fold_in_all(key, batch["document"][:, None, None])
        scores = thoughts.sample_and_score(
            params, tokens, document_keys, Thinker(model, thought), mask, batch["place"]
        )
        thinking = jnp.moveaxis(scores.blocks.talk_BxPxRxA[:, :-1, :, 0], 2, 0)
        plain = scores.base_BxT[:, :-1]
    return plain[None], thinking, tempered
