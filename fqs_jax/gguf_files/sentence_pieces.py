"""SentencePiece tokenizers of GGUF files (`tokenizer.ggml.model` llama), as byte-fallback BPE.

SentencePiece joins the two neighbouring pieces whose whole has the highest score. A tokenizer.json lists
pairs in the order in which they are joined, so each division of a piece into two pieces becomes a pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import TokenType
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from fqs_jax.gguf_files import vocabulary
from fqs_jax.gguf_files.vocabulary import Vocabulary
from fqs_jax.huggingface.fields import switch
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.notes import note

_SPACE = "\u2581"  # SentencePiece's sign for a space
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Characters that are looked at to divide pieces; real vocabularies have 5 million.
_MOST_WORK = 1 << 27


def build(metadata: Mapping[str, Any], known: Vocabulary, place: str) -> Tokenizer:
    """The tokenizer of a file, without its special tokens.

    Args:
      place: the file, for a note.

    Raises:
      UserError: the scores are missing or no numbers, or pieces are absurdly long.
      Exception: whatever the library raises about tokens that do not fit together.
    """
    scores = vocabulary.numbers(metadata, "scores", len(known.tokens)).astype(np.float64)
    if not np.isfinite(scores).all():
        raise UserError("tokenizer.ggml.scores has NaN or infinite values")
    table = known.table()
    falls_back = all(byte in table for byte in _BYTES)
    unknown = known.spelling("unk")
    if not falls_back:
        lost = "the unknown token" if unknown else "nothing"
        note(f"{place}: not every byte has a token; characters without one become {lost}")
    tokenizer = Tokenizer(
        BPE(
            vocab=table,
            merges=_merges(known, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=falls_back,
        )
    )
    adds_space = switch(metadata, "tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    prepend = [normalizers.Prepend(_SPACE)] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, replace])
    strip = [decoders.Strip(" ", 1, 0)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(known: Vocabulary, scores: np.ndarray) -> list[tuple[str, str]]:
    """All pairs of pieces that form a piece; those that form one of a higher score come first."""
    pieces = dict(known.of_kind(TokenType.NORMAL))
    if sum(len(piece) ** 2 for piece in pieces.values()) > _MOST_WORK:
        raise UserError("tokenizer.ggml.tokens has pieces that are absurdly long")
    spelled = set(pieces.values())
    return [
        (piece[:cut], piece[cut:])
        for i, piece in sorted(pieces.items(), key=lambda item: (-scores[item[0]], item[0]))
        for cut in range(1, len(piece))
        if piece[:cut] in spelled and piece[cut:] in spelled
    ]
