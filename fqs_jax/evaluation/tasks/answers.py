"""The final number of a worked-out answer."""

from __future__ import annotations

import re
from decimal import Decimal

_AMOUNT = r"(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?|\.\d+"
# A hyphen between two numbers or words is no minus sign: "10-3" does not contain -3.
_NUMBER = re.compile(
    rf"((?<![\w)\].])[-\u2212])?[$\u20ac\u00a3]?\s?((?<=[$\u20ac\u00a3])-)?({_AMOUNT})", re.ASCII
)
# Words that announce the final number; the last of them counts. "Answer:" must stand right before the
# number, since a worked answer may begin with it too.
_CUES = re.compile(
    r"####|\\boxed\s*\{|\banswer(?:\s*\([^)\n]*\))?[\s*_]*:(?=[\s*_]*[-\u2212$\u20ac\u00a3.]*\d)"
    r"|\banswer\b[^.\n]*?(?:\bis\b|=)",
    re.IGNORECASE,
)
# Ends of the announced part; not a decimal point or a comma between digits.
_PART_ENDS = re.compile(r"[.!?;,](?=[)\]\"'*_]*(?:\s|$))|(?<=\d)\.(?=[A-Z])|\}")
_NEXT_QUESTION = re.compile(r"\n\s*(?:Q:|Question\b|The question is:)")


def final_number(text: str) -> Decimal | None:
    """The number that the last "answer is", "answer:", "####" or "\\boxed{" announces, else the last.

    In the announced line the first sentence, or part of one, with a number counts: its first number,
    or the one after its last "=". Numbers may be written "1,234", "$5", "-3", "12.50" and "50%". Text
    behind another question is ignored.

    Returns:
      None if there is no number.
    """
    text = _NEXT_QUESTION.split(text, maxsplit=1)[0]
    for cue in reversed(list(_CUES.finditer(text))):
        line = text[cue.end() :].lstrip(": \t\r\n*_").partition("\n")[0]
        for part in _PART_ENDS.split(line):
            if found := _NUMBER.search(part.rpartition("=")[2]) or _NUMBER.search(part):
                return _value(found)
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _value(found: re.Match[str]) -> Decimal:
    value = Decimal(found[3].replace(",", ""))
    return -value if found[1] or found[2] else value


def published_number(text: str) -> int:
    """The number that the released evaluation takes for the answer, mistakes included.

    It deletes every "digits. ", to remove the numbers of a list; that also removes an answer at the end
    of a sentence before another one. Then it takes the last run of digits, "$" and ".", and drops all
    but digits and sign: "12.50" becomes 1250. Without such a run, or if it has no digit, it returns 1,
    which is right for each item whose answer is 1.
    """
    text = text.split("Question:")[0].strip().replace(",", "")
    text = re.sub(r"\d+\.\s", "", text)
    runs = re.findall(r"-?[$0-9.]{2,}|-?[0-9]+", text)
    try:
        return int(re.sub(r"[$.]", "", runs[-1]))
    except (IndexError, ValueError):
        return 1
