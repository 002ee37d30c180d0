"""Invented benchmark files in the original formats."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def csqa(stem: str, texts: Iterable[str], answer: str) -> dict[str, Any]:
    choices = [{"label": label, "text": text} for label, text in zip("ABCDE", texts, strict=False)]
    question = {"question_concept": "x", "choices": choices, "stem": stem}
    return {"answerKey": answer, "id": "0", "question": question}


CSQA = [
    csqa("Where is the cat?", ("mat", "tree", "hat", "sea", "sky"), "A"),
    csqa("Who saw the dog?", ("the king", "Tom", "nobody", "a bird", "her"), "E"),
    csqa("What did the bird like?", ("a tree", "his hat", "stars", "the mat", "one"), "B"),
]
PIQA = [
    {"goal": "find a hat", "sol1": "look at the mat ", "sol2": "ask nobody"},
    {"goal": "see stars", "sol1": "sit on a tree", "sol2": "look up"},
]
SIQA = [
    {
        "context": "Tom saw a dog.",
        "question": "What did Tom do?",
        "answerA": "ran",
        "answerB": "sat",
        "answerC": "saw",
    }
]
GSM8K = [
    {"question": "Tom has 9 hats and 9 more. How many?", "answer": "9+9=<<9+9=18>>18\n#### 18"},
    {"question": "And a dog?", "answer": "Many.\n#### -1,203"},
    {"question": "How many cats sat?", "answer": "#### 7"},
]


def write_all(folder: Path) -> dict[str, Path]:
    """Write a file of each benchmark, with a file of labels beside those that need one."""
    (folder / "piqa-labels.lst").write_text("1\n0\n")
    (folder / "siqa-labels.lst").write_text("3\n")
    tasks = {"csqa": CSQA, "piqa": PIQA, "siqa": SIQA, "gsm8k": GSM8K}
    return {name: write_lines(folder / f"{name}.jsonl", tasks[name]) for name in tasks}
