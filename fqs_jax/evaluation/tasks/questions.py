"""Questions: the rows of tokens that a task's items become, and the ids that are read behind them.

Two things are read. The *published* walk follows the true answer: before each of its tokens that is
one of the allowed ids, it reads the probabilities of all allowed ids. The *choices* are each read along
their own tokens. Both share rows: a context that is the beginning of another row is read in that row.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.evaluation.tasks.items import Item
from fqs_jax.inference.readings import Row
from fqs_jax.runtime.errors import UserError

DIGITS = tuple(f" {digit}" for digit in "0123456789")
_HEAD, _END = "Q: x\nA:", "\n"
_Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """A position of a row, and the ids whose log-probabilities are read behind it.

    target: index of the true one among the ids.
    """

    row: int
    position: int
    ids: _Ids
    target: int


@dataclasses.dataclass(frozen=True)
class Question:
    """An item for a model.

    Attributes:
      rows: tokens, and what is read behind them.
      walk: steps of the published walk; empty for choices of text.
      choices: the steps along each choice.
      right: number of the right choice.
    """

    rows: list[Row]
    walk: list[Step]
    choices: list[list[Step]]
    right: int

    @property
    def length(self) -> int:
        """Tokens of the longest row, with the one that is predicted last."""
        return max(len(row.tokens) for row in self.rows) + 1


@dataclasses.dataclass(frozen=True)
class Spelling:
    """Token ids of one-token answers behind "\\nA:".

    Attributes:
      pieces: all ids of each answer, blanks included.
      allowed: the id of each answer without blanks, then that of the newline.
    """

    pieces: tuple[_Ids, ...]
    allowed: _Ids


def spell(tokenizer: Tokenizer, answers: Sequence[str]) -> Spelling:
    """The allowed ids of the published metric, worked out from the tokenizer.

    Raises:
      UserError: an answer is not one token of its own, so the metric is not defined.
    """
    head, *whole = tokenizer.encode_batch([_HEAD, *(_HEAD + answer + _END for answer in answers)])
    pieces = tuple(tuple(ids[len(head) : -1]) for ids in whole)
    bare = [tuple(itertools.dropwhile(lambda i: _is_blank(tokenizer, i), p)) for p in pieces]
    for answer, ids, rest in zip(answers, whole, bare, strict=True):
        if ids[: len(head)] != head or len(rest) != 1 or ids[-1] != whole[0][-1]:
            raise UserError(
                f"this tokenizer does not write {answer!r} and a newline as one token each, which "
                "the expected probability needs; use --task=choices"
            )
    return Spelling(pieces, (*(rest[0] for rest in bare), whole[0][-1]))


def prepare(items: Sequence[Item], tokenizer: Tokenizer) -> list[Question]:
    """Questions for a model with this tokenizer, from items of one kind.

    Raises:
      UserError: the tokenizer does not write the answers as the metric needs them.
    """
    if items[0].kind == "text":
        return [_text_question(item, number, tokenizer) for number, item in enumerate(items)]
    prompts = _bodies(tokenizer, [item.prompt for item in items])
    wholes = _bodies(tokenizer, [item.prompt + item.answer + _END for item in items])
    spellings: dict[tuple[str, ...], Spelling] = {}
    questions = []
    for number, (item, prompt, whole) in enumerate(zip(items, prompts, wholes, strict=True)):
        answers = item.choices or DIGITS
        if answers not in spellings:
            spellings[answers] = spell(tokenizer, answers)
        spelling = spellings[answers]
        start = len(tokenizer.opening) + len(prompt)
        walk = _walk(tokenizer.opening + whole, start, spelling.allowed)
        symbols = 1 if item.choices else sum(c.isdecimal() for c in item.answer)
        if whole[: len(prompt)] != prompt or len(walk) != symbols + 1:
            raise UserError(
                f"this tokenizer does not write the answer {item.answer!r} symbol by symbol, which "
                "the expected probability needs; use --task=choices"
            )
        sequences = [tokenizer.opening + whole]
        paths = [walk]
        if item.choices:
            ends = [tokenizer.opening + prompt + list(pieces) for pieces in spelling.pieces]
            sequences += ends
            paths += [path(tokens, _common(ends)) for tokens in ends]
        rows, paths = share_rows(sequences, paths, number)
        right = item.choices.index(item.answer) if item.choices else 0
        questions.append(Question(rows, paths[0], paths[1:], right))
    return questions


def _bodies(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts, without an opening."""
    return [tokenizer.after_opening(ids) for ids in tokenizer.encode_batch(texts)]


def _text_question(item: Item, number: int, tokenizer: Tokenizer) -> Question:
    """Choices that are read from the first token on in which any two of them differ."""
    texts = [item.prompt, *(item.prompt + choice for choice in item.choices)]
    prompt, *wholes = _bodies(tokenizer, texts)
    sequences = [tokenizer.opening + whole for whole in wholes]
    start = _common([tokenizer.opening + prompt, *sequences])
    if not start:
        raise UserError(
            f"nothing stands before the choices {', '.join(map(repr, item.choices))[:60]}, and this "
            "tokenizer has no beginning-of-text token; give a prompt"
        )
    if start == min(map(len, sequences)) or len(set(map(tuple, wholes))) < len(wholes):
        raise UserError(
            f"this tokenizer drops blanks, and without them the choices "
            f"{', '.join(map(repr, item.choices))[:60]} are alike or empty; word them anew"
        )
    paths = [path(tokens, start) for tokens in sequences]
    rows, paths = share_rows(sequences, paths, number)
    return Question(rows, [], paths, item.choices.index(item.answer))


def _walk(tokens: Sequence[int], start: int, allowed: _Ids) -> list[Step]:
    """The published walk along the true tokens from `start` on, without those that are not allowed."""
    return [
        Step(0, t - 1, allowed, allowed.index(tokens[t]))
        for t in range(start, len(tokens))
        if tokens[t] in allowed
    ]


def path(tokens: Sequence[int], start: int) -> list[Step]:
    """Steps along each token of a row of its own, from `start` on, against the whole vocabulary."""
    return [Step(0, t - 1, (tokens[t],), 0) for t in range(start, len(tokens))]


def share_rows(
    sequences: Sequence[list[int]], paths: Sequence[list[Step]], number: int
) -> tuple[list[Row], list[list[Step]]]:
    """Rows that begin with each sequence less its last token, and the steps with their rows.

    Args:
      paths: the steps along each sequence.
      number: of the item, which selects its thoughts.
    """
    rows: list[Row] = []
    places = {}
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        context = sequences[i][:-1]
        found = (r for r, row in enumerate(rows) if row.tokens[: len(context)] == context)
        places[i] = next(found, len(rows))
        if places[i] == len(rows):
            rows.append(Row(context, number=number))
        reads = rows[places[i]].reads
        for step in paths[i]:
            known = reads.get(step.position, ())
            reads[step.position] = tuple(dict.fromkeys(known + step.ids))
    moved = [
        [dataclasses.replace(step, row=places[i]) for step in path] for i, path in enumerate(paths)
    ]
    return rows, moved


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all sequences begin with."""
    columns: Iterator[tuple[int, ...]] = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _is_blank(tokenizer: Tokenizer, token_id: int) -> bool:
    return not tokenizer.decode([token_id]).strip()
