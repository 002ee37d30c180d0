"""Calls into tokenizer libraries: their errors become one line, and what they may do is bounded.

The libraries raise bare exceptions, and panics of their Rust code derive from BaseException, so that no
`except Exception` catches them. A file can also make them use memory or time without bound.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable

MOST_GROWTH = 32  # tokens, or characters of the normal form, for each byte of a text
_MOST_EXTRA = 1024  # tokens of a short text beyond that
_MOST_STEP = 1 << 24  # characters that one replacement may make of the probe
# Text on which a tokenizer is tried when it is loaded: many kinds of characters, and runs of one
# character, on which a regular expression that backtracks never ends.
PROBE = " ".join(
    [
        "The quick brown fox, isn't it?\n\n\tdef f(x): return x**2 + 10.5e-3;",
        "\u6570\u5b66 \u00e9t\u00e9 e\u0301 \ufdfa \U0001f600 \u2581 <s> </s> [INST] \r\n",
        *(chr(code) * 40 for code in range(32, 127)),
    ]
)
_stderr_lock = threading.Lock()


@contextlib.contextmanager
def errors(what: str, looks: str = "") -> Iterator[None]:
    """Turn whatever a tokenizer library raises into a UserError that begins with `what`.

    Interrupts and exits pass through.

    Args:
      looks: what a file that is no tokenizer is instead, if that is known.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            reason = printable(" ".join(str(error).split()) or type(error).__name__, 200)
            rest = f" but {looks}" if looks else f" ({reason}); fetch or make the file again"
            raise UserError(what + rest) from error
        raise


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what libraries write to stderr by themselves, such as the backtrace of a panic."""
    with _stderr_lock:
        try:
            kept = os.dup(2)
        except OSError:  # stderr is closed: there is nothing to silence
            yield
            return
        sink = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(sink, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(sink)


def check_replacements(tokenizer: tokenizers.Tokenizer, path: Path) -> None:
    """Refuse a tokenizer.json whose replacements, one after the other, make a text grow without bound.

    They are tried on a short text that has all that they replace. Each step is bounded before it is
    taken, since the library itself has no bound.

    Raises:
      UserError: the text grows too much.
    """
    for part in (tokenizer.normalizer, tokenizer.decoder):
        steps = list(_replacements(json.loads(part.__getstate__()))) if part else []
        texts = [text for pattern, content in steps for text in (*pattern.values(), content)]
        text = PROBE[:512] + "".join(text[:512] for text in texts[:64])
        most = MOST_GROWTH * len(text) + _MOST_EXTRA
        for pattern, content in steps:
            if len(text) * (len(content) + 1) <= _MOST_STEP:
                text = _replaced(pattern, content, text)
            else:
                most = -1
            if len(text) > most:
                raise UserError(
                    f"{inputs.name(path)} makes a text grow without bound (replacement by "
                    f"{printable(content, 40)!r}); this is no tokenizer of a real model"
                )


def _replaced(pattern: dict[str, str], content: str, text: str) -> str:
    search = tokenizers.Regex(pattern["Regex"]) if "Regex" in pattern else pattern["String"]
    return tokenizers.normalizers.Replace(search, content).normalize_str(text)


def _replacements(part: Any) -> Iterator[tuple[dict[str, str], str]]:
    """The pattern and content of all replacements below a node of a tokenizer.json, in order."""
    if isinstance(part, dict):
        if part.get("type") == "Replace":
            yield part["pattern"], part["content"]
        for value in part.values():
            yield from _replacements(value)
    elif isinstance(part, list):
        for value in part:
            yield from _replacements(value)


def check_length(count: int, text: str, shown: str) -> None:
    """Refuse a text of far more tokens than bytes.

    Args:
      count: its tokens.
      shown: the tokenizer's file, for the error.

    Raises:
      UserError: there are too many.
    """
    size = len(text.encode())
    if count > MOST_GROWTH * size + _MOST_EXTRA:
        raise UserError(
            f"{shown} makes {count} tokens of a text of {size} bytes; this is no tokenizer of a "
            "real model"
        )
