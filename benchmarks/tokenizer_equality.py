"""Tokenizers of real models, compared with transformers line by line.

    python -m benchmarks.tokenizer_equality FOLDER... --text=FILE [--text=FILE] [--lines=10000]

FOLDER is a Hugging Face folder. Of a file that ends in .jsonl, the texts in the field "text" are split into
lines. Exit code 1 = some line differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import transformers
from absl import app, flags

from fqs_jax.data import tokenizer as tokenizer_lib

_TEXT = flags.DEFINE_multi_string("text", [], "File of text or of .jsonl documents.")
_LINES = flags.DEFINE_integer("lines", 10_000, "Lines to compare, spread over all files.", 1)


class Differences(NamedTuple):
    """The number of lines with other ids, or another text when these are decoded."""

    ids: int
    text: int


def compare(folder: str, lines: Sequence[str]) -> Differences:
    """Compare the tokenizer of a folder as fqs_jax and as transformers read it."""
    ours = tokenizer_lib.load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = theirs(list(lines), add_special_tokens=False).input_ids
    texts = theirs.batch_decode(ids, skip_special_tokens=True)
    encoded = ours.encode_batch(lines)
    return Differences(
        sum(a != b for a, b in zip(encoded, ids, strict=True)),
        sum(ours.decode(row) != text for row, text in zip(ids, texts, strict=True)),
    )


def read_lines(paths: Sequence[str], count: int) -> list[str]:
    """Lines that are not blank, spread evenly over all files."""
    lines = [line for path in paths for line in _lines(Path(path)) if line.strip()]
    return lines[:: max(1, len(lines) // count)][:count]


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"] if path.suffix == ".jsonl" else line
            yield from text.split("\n")


def main(argv: Sequence[str]) -> None:
    transformers.logging.set_verbosity_error()
    lines = read_lines(_TEXT.value, _LINES.value)
    differing = 0
    for folder in argv[1:]:
        found = compare(folder, lines)
        differing += found.ids + found.text
        print(
            f"{folder}: {len(lines)} lines, {found.ids} with other ids, {found.text} with another text"
        )
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    app.run(main)
