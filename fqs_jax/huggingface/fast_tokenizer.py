"""A SentencePiece model that we trained -> the tokenizer.json that transformers reads.

From tokenizer.model alone transformers rebuilds a Llama tokenizer, which has no unknown token and
takes symbols of one's own for text: models without bytes lose nearly all they should read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from fqs_jax.data import tokenizer_training
from fqs_jax.runtime import files

_SPACE = "\u2581"  # SentencePiece's


def add(source: Path, folder: Path) -> None:
    """Write tokenizer.json, and a tokenizer_config.json that asks for it, into an export.

    Nothing is done for tokenizers that are not ours, or have that file already: they are passed on
    as they came.
    """
    model, settings = source / "tokenizer.model", source / "tokenizer_config.json"
    if (source / "tokenizer.json").exists() or not (model.exists() and settings.exists()):
        return
    if files.read_json(settings) != tokenizer_training.TRAINED:
        return
    proto = ModelProto.FromString(model.read_bytes())
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        return
    build(proto).save(str(folder / "tokenizer.json"))
    # `<s>` in a text is text, as it is to SentencePiece.
    wanted = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
    written = json.dumps(tokenizer_training.TRAINED | wanted, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(written, encoding="utf-8")


def build(proto: Any) -> Tokenizer:
    """The same ids for the same text, BOS before them if special tokens are asked for.

    Args:
      proto: the ModelProto of a BPE model, trained as `tokenizer_training.train_sentencepiece` does it.
    """
    kinds = ModelProto.SentencePiece
    normal = [piece.piece for piece in proto.pieces if piece.type == kinds.NORMAL]
    symbols = [piece.piece for piece in proto.pieces if piece.type == kinds.USER_DEFINED]
    unknown, bos, eos = (proto.pieces[i].piece for i in range(3))
    tokenizer = Tokenizer(
        BPE(
            vocab={piece.piece: i for i, piece in enumerate(proto.pieces)},
            merges=_merges(normal),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
            ignore_merges=bool(symbols),  # a symbol is a piece that nothing merges to
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    if symbols:
        longest_first = sorted(symbols, key=len, reverse=True)
        pattern = Regex("|".join(map(re.escape, longest_first)))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, 1)]
    )
    marks = [AddedToken(mark, special=True, normalized=False) for mark in (unknown, bos, eos)]
    tokenizer.add_special_tokens(marks)
    return tokenizer


def _merges(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, those of likelier pieces, which come first, first."""
    known = set(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
