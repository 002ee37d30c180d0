"""Prompts as users give them: read from a file, and checked against the model."""

from __future__ import annotations

from collections.abc import Sequence

from fqs_jax.data import messages
from fqs_jax.data.chat import ChatTemplate
from fqs_jax.data.messages import Message
from fqs_jax.data.sources import text_files
from fqs_jax.inference.generation import prompt_ids
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runtime import inputs, paths
from fqs_jax.runtime.errors import UserError

_MOST_LENGTHS = 100  # of what the model was made for


def read(path: str) -> list[str]:
    """The lines of a UTF-8 file that are not blank.

    Raises:
      UserError: it cannot be read, is no text, or has no prompt.
    """
    return [line for _, line in _lines(path)]


def read_conversations(path: str) -> list[list[Message]]:
    """The conversations of a `.jsonl` file: the messages of the object on each line that is not blank.

    Raises:
      UserError: as for `read`; or a line has no conversation that ends with a message to answer.
    """
    found = []
    for number, line in _lines(path):
        place = f"{inputs.name(path)}:{number}"
        found.append(messages.prompt(text_files.value_of(line, "messages", place), place))
    return found


def render(template: ChatTemplate, conversations: Sequence[Sequence[Message]]) -> list[str]:
    """The text of each conversation, up to where an answer begins.

    Raises:
      UserError: the template refuses one, or takes too much time or memory.
    """
    texts = []
    for number, conversation in enumerate(conversations, start=1):
        try:
            texts.append(template.render(conversation))
        except UserError as error:
            if len(conversations) == 1:
                raise
            raise UserError(f"prompt {number} of {len(conversations)}: {error}") from error
    return texts


def _lines(path: str) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers."""
    text = inputs.read_text(paths.expand(path))
    if "\0" in text:  # which UTF-16 without its mark is full of
        raise UserError(
            f"{inputs.name(path)} has NUL characters, so it is no UTF-8 text; convert it"
        )
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    prompts = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise UserError(f"{inputs.name(path)} has no prompt; write one a line")
    return prompts


def longest(loaded: Loaded, prompts: Sequence[str]) -> int:
    """Tokens of the longest prompt.

    Raises:
      UserError: the model cannot read as many.
    """
    lengths = [len(prompt_ids(loaded, prompt)) for prompt in prompts]
    most, room = max(lengths), loaded.model.max_seq_len
    if most > room:
        raise UserError(
            f"prompt {lengths.index(most) + 1} of {len(prompts)} has {most} tokens, the model "
            f"was made for {room}; shorten it"
        )
    return most


def refuse_endless(max_new_tokens: int, max_seq_len: int) -> None:
    """Refuse lengths that are surely a slip: memory for all of it is allocated before the first token.

    Raises:
      UserError: --max_new_tokens is many times the length that the model was made for.
    """
    if max_new_tokens > _MOST_LENGTHS * max_seq_len:
        raise UserError(
            f"--max_new_tokens={max_new_tokens} is more than {_MOST_LENGTHS} times the {max_seq_len} "
            "tokens that the model was made for; set it lower"
        )
