"""The exceptions that end a program with one line, and text that is safe to print."""

from __future__ import annotations

import unicodedata


class UserError(ValueError):
    """A mistake in what the user gave: one line saying what is wrong, where, and what to do.

    The command-line programs print the message alone; a traceback would only hide it.
    """


class SaidElsewhere(UserError):
    """A process ends for a fault that another process of the run explains; nothing is printed."""


class Interrupted(Exception):
    """Work stopped on request; the message tells how to resume.

    Attributes:
      signum: number of the signal that asked for it.
      saved: all processes stopped together and lost nothing. False after a second signal.
    """

    def __init__(self, message: str, signum: int, saved: bool = True):
        super().__init__(message)
        self.signum, self.saved = signum, saved


def printable(text: str, most: int | None = None, keep: str = "") -> str:
    """Text with its control characters escaped, so that it cannot act on a terminal.

    Escaped are the C0 and C1 control characters, the characters that set the direction of text
    (they can show a word reversed), other invisible format characters, the separators of lines and
    paragraphs, and half surrogate pairs, which no encoding can print.

    Args:
      most: characters shown of a longer text: its start and its end; None = all.
      keep: control characters to leave as they are, such as "\\n\\t".
    """
    if most is not None and len(text) > most:
        head = most * 2 // 3
        text = f"{text[:head]} ... {text[len(text) - (most - head) :]}"
    return "".join(c if c in keep or not _acts(c) else _escaped(c) for c in text)


def _acts(character: str) -> bool:
    """True for control, format, surrogate and separator characters, but not for joiners.

    The zero-width joiners (U+200C, U+200D) are part of the spelling of Persian, Hindi and emoji.
    """
    if character in "\u200c\u200d":
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    """Text of several lines: line breaks and tabs stay, and other control characters are escaped."""
    return printable(text, keep="\n\t")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
