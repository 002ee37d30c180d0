"""Training of SentencePiece tokenizers."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from fqs_jax.data.tokenizer import Tokenizer, load
from fqs_jax.data.tokenizer_files import TRAINED
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import UserError


def train_sentencepiece(
    lines: Iterable[str],
    folder: str | Path,
    vocab_size: int,
    user_defined_symbols: Sequence[str] = (),
    model_type: str = "bpe",
    byte_fallback: bool = True,
    split_digits: bool = True,
) -> Tokenizer:
    """Train a tokenizer in this process; the same lines always give the same file.

    Text is not normalised, and all spaces are preserved. So decoding returns the encoded text, except
    U+2581, SentencePiece's own sign for a space, and characters that byte_fallback=False loses. Ids 0
    to 2 are unknown, BOS and EOS.

    Args:
      lines: texts without line breaks.
      folder: folder for tokenizer.model and tokenizer_config.json; created if needed.
      vocab_size: number of pieces; with byte_fallback, 256 of them are bytes.
      user_defined_symbols: pieces that are never split, wherever they occur.
      model_type: 'bpe' or 'unigram'.
      byte_fallback: True = unknown characters become bytes, False = the unknown token.
      split_digits: True = every digit is its own piece.

    Raises:
      UserError: the text does not support that vocabulary size.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            user_defined_symbols=list(user_defined_symbols),
            model_type=model_type,
            byte_fallback=byte_fallback,
            split_digits=split_digits,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=1.0,
            max_sentence_length=1 << 24,  # bytes; SentencePiece silently drops longer lines
            shuffle_input_sentence=False,
            num_threads=1,  # sums in a fixed order
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = _reason(str(error))
        raise UserError(f"cannot train a tokenizer of {vocab_size} pieces: {reason}") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "tokenizer_config.json", json.dumps(TRAINED, indent=2) + "\n")
    files.replace(folder / "tokenizer.model", lambda file: file.write(model.getvalue()))
    return load(folder)


def _reason(text: str) -> str:
    """The library's message, without its source location and the flags of its own program."""
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", text):
        return f"this text needs at least {found[1]}; set data.tokenizer_pieces"
    if found := re.search(r"set it to a value <= (\d+)", text):
        return f"this text gives {found[1]} at most; set data.tokenizer_pieces"
    if "sentences_.empty" in text:
        return "the text is empty"
    return text.strip().splitlines()[-1].split("] ")[-1]
