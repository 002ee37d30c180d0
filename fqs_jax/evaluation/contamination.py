"""Contamination: items of a benchmark whose words stand in a text too.

An item counts if it shares a sequence of 13 words with the text, the length used for GPT-3 (arXiv
2005.14165, appendix C). Words are compared in lower case and without punctuation. An item shorter than
that counts if all its words stand in the text in a row, from 8 words on: shorter ones are found by chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

WORDS = 13
SHORTEST = 8
_WORD = re.compile(r"\w+")
_FRAME = re.compile(r"\A(?:Q|Question): |\n\(A\) .*|\n(?:A|Answer):\s*\Z", re.DOTALL)


def shared(items: Sequence[str], documents: Iterable[str], words: int = WORDS) -> list[int]:
    """Numbers, from 0, of the items that share a long sequence of words with a document.

    Memory is for the items alone, so that the documents may be a stream.

    Args:
      items: their texts.
      words: length of the sequence.
    """
    owners: dict[tuple[str, ...], set[int]] = {}
    for number, item in enumerate(items):
        found = _words(item)
        length = min(words, len(found))
        if length >= min(words, SHORTEST):
            for sequence in _sequences(found, length):
                owners.setdefault(sequence, set()).add(number)
    lengths = sorted({len(sequence) for sequence in owners})
    hit: set[int] = set()
    for document in documents:
        found = _words(document)
        for length in lengths:
            for sequence in _sequences(found, length):
                hit |= owners.get(sequence, set())
    return sorted(hit)


def question(prompt: str) -> str:
    """A prompt without its frame: no "Q:", no lettered options, no "A:" at the end."""
    return _FRAME.sub("", prompt)


def sentence(numbers: Sequence[int], items: int, name: str, shown: int = 5) -> str:
    """A line that says how many items are shared and which, counted from 1.

    Args:
      numbers: those of `shared`.
      items: how many there are.
      name: of the text.
      shown: how many are listed.
    """
    if not numbers:
        return f"none of {items} items shares {WORDS} words in a row with {name}"
    which = ", ".join(str(number + 1) for number in numbers[:shown])
    which += ", ..." * (len(numbers) > shown)
    return f"{len(numbers)} of {items} items share {WORDS} words in a row with {name}: {which}"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _sequences(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + length]) for i in range(len(words) - length + 1))
