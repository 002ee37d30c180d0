"""The final number of a worked-out answer."""

from __future__ import annotations

import re
from decimal import Decimal

from fqs_jax.evaluation.tasks import written_numbers

# Words that announce the final number; the last of them counts. "Answer:" must stand right before the
# number, since a worked answer may begin with it too. Nothing scans far: a long text takes little time.
_CUES = re.compile(
    r"####|\\f?boxed\s*\{|<answer>|\banswer(?:\s*\([^)\n]{0,80}\))?[\s*_\"'`]*:"
    r"(?=[\s*_\"'`($\\\[\u20ac\u00a3\u00a5\u20b9~\u2248.-]*(?:(?:minus|negative)\s+)?\d)"
    r"|\banswer\b[^.\n]{0,200}?(?:\bis\b|\bwas\b|\bequals\b|\b(?:would|will|should|must)\s+be\b|=)",
    re.IGNORECASE,
)
# Ends of the announced part; not a decimal point or a comma between digits.
_PART_ENDS = re.compile(r"[.!?;,](?=[)\]\"'*_]*(?:\s|$))|(?<=\d)\.(?=[A-Z])|\}|</")
_NEXT_QUESTION = re.compile(r"\n[^\S\n]*(?:Q:|Question\b|The question is:)")
_DENIED = re.compile(r"(?:\bnot|n't|\binstead of|\brather than)[\s*_]*$", re.IGNORECASE)
_DENIAL = 20  # characters before a number that may deny it


def final_number(text: str) -> Decimal | None:
    """The number that the last "answer is", "answer:", "####" or "\\boxed{" announces, else the last.

    In the announced line the first sentence, or part of one, with a number counts: its first number,
    or the one after its last "=". A number behind "not" is not taken while there is another. Text
    behind another question is ignored.

    Numbers may be written "1,234", "$5", "-3", "12.50", "50%" and in the other ways of
    written_numbers.py. A few are ambiguous, and read as in English: "3,5" is 3 and then 5, "1.234" is
    less than 2.

    Returns:
      None if there is no number.
    """
    text = written_numbers.simplified(_NEXT_QUESTION.split(text, maxsplit=1)[0])
    end = len(text)
    for cue in reversed(list(_CUES.finditer(text))):
        line = text[cue.end() : end].lstrip(": \t\r\n*_\"'`").partition("\n")[0]
        line = written_numbers.with_spaced_groups(line)
        for part in _PART_ENDS.split(line):
            if numbers := _numbers(part.rpartition("=")[2]) or _numbers(part):
                return written_numbers.value(numbers[0])
        end = cue.start()  # what follows has been looked at
    every = list(written_numbers.NUMBER.finditer(text))
    chosen = _numbers(text) or every
    return written_numbers.value(chosen[-1]) if chosen else None


def _numbers(text: str) -> list[re.Match[str]]:
    """The numbers of a simplified text, without those that it denies."""
    found = written_numbers.NUMBER.finditer(text)
    before = ((number, max(0, number.start() - _DENIAL)) for number in found)
    return [number for number, at in before if not _DENIED.search(text[at : number.start()])]


def published_number(text: str) -> int:
    """The number that the released evaluation takes for the answer, mistakes included.

    It deletes every "digits. ", to remove the numbers of a list; that also removes an answer at the end
    of a sentence before another one. Then it takes the last run of digits, "$" and ".", and drops all
    but digits and sign: "12.50" becomes 1250. Without such a run, or if it has no digit, it returns 1,
    which is right for each item whose answer is 1.
    """
    text = text.split("Question:")[0].strip().replace(",", "")
    text = re.sub(r"(?<!\d)\d+\.\s", "", text)
    runs = re.findall(r"-?[$0-9.]{2,}|-?[0-9]+", text)
    try:
        return int(re.sub(r"[$.]", "", runs[-1]))
    except (IndexError, ValueError):
        return 1
