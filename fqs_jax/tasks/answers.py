"""The number that a worked-out answer ends in."""

from __future__ import annotations

import re
from decimal import Decimal

_AMOUNT = r"(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?|\.\d+"
# A minus sign is none between two things: "10-3" has no -3 in it.
_NUMBER = re.compile(
    rf"((?<![\w)\].])[-\u2212])?[$\u20ac\u00a3]?\s?((?<=[$\u20ac\u00a3])-)?({_AMOUNT})", re.ASCII
)
# What announces the final number; the last of them counts.
_CUES = re.compile(r"####|\\boxed\s*\{|\banswer\b[^.\n]*?(?:\bis\b|=)", re.IGNORECASE)
_NEXT_QUESTION = re.compile(r"\n\s*(?:Q:|Question\b|The question is:)")


def final_number(text: str) -> Decimal | None:
    """The number that the last "answer is", "####" or "\\boxed{" announces, else the last number.

    Of the announced line it is the first number, or the one after its last "=". Reads "1,234", "$5",
    "-3", "12.50" and "50%" as the numbers that they are, and nothing behind another question.

    Returns:
      None if there is no number.
    """
    text = _NEXT_QUESTION.split(text, maxsplit=1)[0]
    for cue in reversed(list(_CUES.finditer(text))):
        line = text[cue.end() :].lstrip().partition("\n")[0]
        result = line.rpartition("=")[2]
        if found := _NUMBER.search(result) or _NUMBER.search(line):
            return _value(found)
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _value(found: re.Match[str]) -> Decimal:
    value = Decimal(found[3].replace(",", ""))
    return -value if found[1] or found[2] else value


def published_number(text: str) -> int:
    """The number that the released evaluation takes for the answer, mistakes included.

    It deletes every "digits. ", meant for the numbers of a list, and with them an answer that a
    sentence ends in before another begins. Then it takes the last run of digits, "$", "." and ",",
    and drops all but digits and sign: "12.50" is 1250, and a run of dots alone fails. Failing gives 1,
    which is then right for each item whose answer is 1.
    """
    text = text.split("Question:")[0].strip().replace(",", "")
    text = re.sub(r"\d+\.\s", "", text)
    runs = re.findall(r"-?[$0-9.]{2,}|-?[0-9]+", text)
    try:
        return int(re.sub(r"[$.]", "", runs[-1]))
    except (IndexError, ValueError):
        return 1
