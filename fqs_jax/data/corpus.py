"""From a config's `data` section to rows of tokens and to a tokenizer."""

from __future__ import annotations

from pathlib import Path

import ml_collections
import numpy as np

from fqs_jax.data import clock, order, text
from fqs_jax.errors import UserError
from fqs_jax.tokenizers import Tokenizer, train_sentencepiece

SOURCES = ("text", "clock")
ROWS = ("pack", "crop")


def clock_task(data: ml_collections.ConfigDict, seed: int) -> clock.Clock:
    """The built-in task as the config sets it."""
    fields = data.clock.to_dict()
    for name in ("lengths", "operations"):  # tuples come back from JSON as lists
        fields[name] = tuple(fields[name])
    return clock.Clock(seed=seed, **fields)


def documents(data: ml_collections.ConfigDict, seed: int) -> list[str]:
    """The texts to train on.

    Raises:
      UserError: no text is configured, or it cannot be read.
    """
    if data.source == "clock":
        return clock_task(data, seed).documents(data.num_documents)
    if data.source != "text":
        raise UserError(f"data.source is {data.source!r}; choose from {', '.join(SOURCES)}")
    if not data.text:
        raise UserError("no text to train on: give --text=FILE (.txt or .jsonl, globs, commas)")
    return text.read_documents(data.text, data.text_key)


def train_tokenizer(data: ml_collections.ConfigDict, seed: int, folder: Path) -> Tokenizer:
    """A SentencePiece model for the corpus, for models trained from scratch."""
    texts = documents(data, seed)
    if data.source == "clock":
        pieces = clock_task(data, seed).pieces
        special = 3  # unknown, BOS, EOS
        return train_sentencepiece(
            texts, folder, len(pieces) + special, user_defined_symbols=pieces, byte_fallback=False
        )
    if data.tokenizer_pieces < 1:
        raise UserError(
            "a model from scratch needs a tokenizer: set data.tokenizer_pieces, the size of its "
            "vocabulary, or give --init_from=HF_DIR"
        )
    lines = [line for document in texts for line in document.splitlines() if line.strip()]
    return train_sentencepiece(lines, folder, data.tokenizer_pieces)


def dataset(
    data: ml_collections.ConfigDict, tokenizer: Tokenizer, batch_size: int, seed: int, stream: int
) -> order.Dataset:
    """The endless stream of training rows.

    Args:
      seed: of the run. stream: sets the order apart from that of other streams (stages) of the run.
    """
    tokens = tokenizer.encode_batch(documents(data, seed))
    order_seed = int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])
    bos_id = next(iter(tokenizer.opening), None)
    if data.rows == "pack":
        return order.packed_dataset(
            tokens,
            data.seq_len,
            bos_id=bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            batch_size=batch_size,
            seed=order_seed,
        )
    if data.rows == "crop":
        return order.cropped_dataset(
            tokens,
            data.seq_len,
            bos_id=bos_id,
            pad_id=tokenizer.pad_id,
            batch_size=batch_size,
            seed=order_seed,
        )
    raise UserError(f"data.rows is {data.rows!r}; choose from {', '.join(ROWS)}")
