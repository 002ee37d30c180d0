"""Benchmark items, read from files of records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from fqs_jax.data.sources.options import Options
from fqs_jax.evaluation.tasks import records
from fqs_jax.runtime import local_copies, paths
from fqs_jax.runtime.errors import UserError, printable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Asked = TypeVar(
    "Asked"
)  # the items of a task: Item, or Cloze where options are scored by their texts


@dataclasses.dataclass(frozen=True)
class Item:
    """One question with its answer.

    Attributes:
      prompt: the text before the answer.
      answer: the text that follows, with its leading space: " C", " 18".
      choices: all possible answers, written the same way; empty for numbers.
      kind: "letter", "number", or "text" for choices that continue the prompt.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...]
    kind: str


@dataclasses.dataclass(frozen=True)
class Cloze:
    """One question whose options are scored by their texts, each of them a continuation of the prompt.

    Attributes:
      prompt: the text before an option.
      options: their texts; two may be alike, as a few of CommonsenseQA are.
      right: number of the right one.
      delimiter: stands between the prompt and an option.
    """

    prompt: str
    options: tuple[str, ...]
    right: int
    delimiter: str = " "


@dataclasses.dataclass(frozen=True)
class Task(Generic[Asked]):
    """A benchmark.

    Attributes:
      name: the value of --task.
      title: the name in messages.
      parse: (where, fields, label) -> an item; `where` names the record for errors, `label` counts from
        0 and is None where the record itself holds the answer.
      key: a text field that all records have.
      labels: values in a file of labels for the first choice, the second, ...; empty = the records
        themselves hold the answers.
    """

    name: str
    title: str
    parse: Callable[[str, dict[str, Any], int | None], Asked]
    key: str
    labels: tuple[int, ...] = ()


def read(
    task: Task[Asked],
    source: str,
    labels_file: str = "",
    limit: int | None = None,
    options: Options | None = None,
) -> list[Asked]:
    """The items of a benchmark, in the order of the source.

    Args:
      source: a `.jsonl` or `.parquet` file, tfds:NAME:SPLIT or hub:OWNER/NAME:SPLIT.
      labels_file: file of answers, one a line; empty = the records' own answers, or NAME-labels.lst
        beside NAME.jsonl.
      limit: number of items to keep, from the first on; None = all.
      options: `download` allows to fetch a dataset.

    Raises:
      UserError: something is missing or malformed; the message names the line.
    """
    rows = records.read(source, task.key, options or Options())
    if labels_file and not task.labels:
        raise UserError(f"{task.title} has its answers with the questions; leave out --labels_file")
    labels: Sequence[int | None] = [None] * len(rows)
    if task.labels:
        labels = _labels(rows, source, labels_file, task.labels)
    numbered = list(zip(rows, labels, strict=True))[:limit]
    return [task.parse(where, fields, label) for (where, fields), label in numbered]


def lettered(question: str, options: Sequence[str], right: int) -> Item:
    """The published form of a question with lettered options; the answer is the letter."""
    letters = LETTERS[: len(options)]
    listed = "\n".join(f"({a}) {text}" for a, text in zip(letters, options, strict=True))
    choices = tuple(f" {letter}" for letter in letters)
    return Item(f"Q: {question}\n{listed}\nA:", choices[right], choices, "letter")


def cloze(where: str, prompt: str, options: Sequence[str], right: int) -> Cloze:
    """A question whose options are scored by their texts, a blank before each.

    Args:
      where: the record's place, for error messages.

    Raises:
      UserError: an option has no text.
    """
    for number, option in enumerate(options, start=1):
        if not option.strip():
            raise UserError(
                f"{where}: option {number} has no text, which --scoring=text would score; remove this item"
            )
    return Cloze(prompt, tuple(options), right)


def _labels(
    rows: Sequence[records.Record], source: str, labels_file: str, known: Sequence[int]
) -> list[int]:
    """The index of the right choice of every record, from 0."""
    path = paths.expand(labels_file or source)
    if not labels_file and not (rows and "label" in rows[0][1]):
        path = path.with_name(f"{path.stem}-labels.lst")
        if not path.is_file():
            raise UserError(
                f"{source} has no labels; give --labels_file=FILE, or put {path.name} beside it"
            )
        labels_file = str(path)
    if labels_file:
        lines = [(f"{path}:{n}", line) for n, line in records.numbered_lines(local_copies.of(path))]
        if len(lines) != len(rows):
            raise UserError(
                f"{path} has {len(lines)} labels and {source} {len(rows)} items; "
                "give the two files of one split"
            )
    else:
        lines = [(where, _written(fields.get("label", ""))) for where, fields in rows]
    spelled = {str(value): place for place, value in enumerate(known)}
    for where, line in lines:
        if line.strip() not in spelled:
            meant = ", ".join(spelled)
            raise UserError(
                f"{where}: the label is {printable(line.strip(), 40)!r}; it must be one of {meant}"
            )
    return [spelled[line.strip()] for _, line in lines]


def _written(label: Any) -> str:
    """A record's label as text; 1.0 is 1, since tables write numbers so where some are missing."""
    whole = isinstance(label, float) and label.is_integer()
    return str(int(label) if whole else label)
