"""The tokenizer.json of a SentencePiece model that fqs_jax trained, for transformers.

From tokenizer.model alone, transformers builds a Llama tokenizer without an unknown token, which
splits user-defined symbols like text. Models without byte pieces would lose nearly all their input.
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

from fqs_jax.data.tokenizer_files import TRAINED
from fqs_jax.runtime import files, inputs

_SPACE = "\u2581"  # SentencePiece's sign for a space


def write_tokenizer_json(source: Path, folder: Path) -> None:
    """Write tokenizer.json, and a tokenizer_config.json that selects it, into an export.

    Does nothing if fqs_jax did not train the tokenizer, or if the source has a tokenizer.json already:
    such tokenizers are exported unchanged.

    Args:
      source: the folder with the tokenizer.
      folder: the export.
    """
    model, settings = source / "tokenizer.model", source / "tokenizer_config.json"
    if (source / "tokenizer.json").exists() or not (model.exists() and settings.exists()):
        return
    if inputs.read_json(settings) != TRAINED:
        return
    proto = ModelProto.FromString(inputs.read_bytes(model, 1 << 28))
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        return
    # By its text: the library itself takes only paths that are UTF-8.
    files.write_text(folder / "tokenizer.json", build_tokenizer(proto).to_str(pretty=True))
    # `<s>` in a text is plain text, as in SentencePiece.
    wanted = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
    written = json.dumps(TRAINED | wanted, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(written, encoding="utf-8")


def build_tokenizer(proto: Any) -> Tokenizer:
    """A fast tokenizer with the same ids for every text, and BOS in front with add_special_tokens.

    Args:
      proto: the ModelProto of a BPE model trained by `tokenizer_training.train_sentencepiece`.
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
            ignore_merges=bool(symbols),  # no merges lead to a symbol
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
    """All pairs of pieces that form a piece, in the order of the pieces: likelier ones first."""
    known = set(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
