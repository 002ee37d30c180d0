"""Conversations as data has them: a list of messages, each with a role and a content.

    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]

Other fields of a message, such as tool_calls, are passed on to the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fqs_jax.data.sources import text_files
from fqs_jax.runtime.errors import UserError, printable

Message = dict[str, Any]  # at least role and content
ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 10_000  # of a conversation
_OTHER_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def conversation(value: Any, place: str) -> list[Message]:
    """The messages in a JSON value; a content of several parts of text becomes one text.

    Args:
      place: file and line, for error messages.

    Raises:
      UserError: it is no list of messages.
    """
    if not isinstance(value, list):
        kind = text_files.kind_of(value)
        raise UserError(f"{place}: {kind}, but a conversation is a list of messages")
    if not value:
        raise UserError(f"{place}: a conversation without messages; remove it")
    if len(value) > MOST_MESSAGES:
        raise UserError(
            f"{place}: a conversation of {len(value):,} messages; divide it into conversations of "
            f"up to {MOST_MESSAGES:,}"
        )
    return [
        _message(message, f"{place}, message {number}")
        for number, message in enumerate(value, start=1)
    ]


def training_document(line: str, key: str, place: str) -> str:
    """A conversation to learn from in a line of JSON, as the JSON of its messages; null is a blank document.

    Args:
      key: the field of the JSON object that holds it.
      place: file and line, for error messages.

    Raises:
      UserError: there is no conversation, or it begins with an answer, or has none.
    """
    value = text_files.value_of(line, key, place)
    if value is None:
        return ""
    messages = conversation(value, f"{place}: {key!r}")
    if messages[0]["role"] == "assistant":
        raise UserError(
            f"{place}: {key!r} begins with a message of the assistant, which answers nothing; begin "
            "with one of the user"
        )
    if all(message["role"] != "assistant" for message in messages):
        raise UserError(
            f"{place}: {key!r} has no message of the assistant, so nothing can be learned; remove it"
        )
    return json.dumps(messages)


def prompt(value: Any, place: str) -> list[Message]:
    """A conversation to answer.

    Raises:
      UserError: it is no conversation, or ends with an answer.
    """
    messages = conversation(value, place)
    if messages[-1]["role"] == "assistant":
        raise UserError(
            f"{place}: the last message is the assistant's own; end with a message of the user"
        )
    return messages


def of_user(text: str, system: str = "") -> list[Message]:
    """One message of the user, behind one of the system if that has a text."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def last_text(messages: Sequence[Message]) -> str:
    """The content of the last message."""
    return str(messages[-1]["content"])


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise UserError(
            f"{place} is {text_files.kind_of(value)}; it must be an object with role and content"
        )
    message = {name: field for name, field in value.items() if field is not None}
    if "role" not in message and "from" in message and "value" in message:
        role, content = message.pop("from"), message.pop("value")
        known = _OTHER_ROLES.get(role, role) if isinstance(role, str) else role
        message |= {"role": known, "content": content}
    if "role" not in message:
        raise UserError(f"{place} has no 'role'; give one of {', '.join(ROLES)}")
    if message["role"] not in ROLES:
        shown = printable(json.dumps(message["role"]), 60)
        raise UserError(f"{place} has the role {shown}; give one of {', '.join(ROLES)}")
    if "content" not in message:
        if message["role"] == "assistant" and "tool_calls" in message:
            return message
        raise UserError(f"{place} has no 'content'; give it a text")
    message["content"] = _text(message["content"], place)
    text_files.whole(json.dumps(message, ensure_ascii=False), "messages", place)
    return message


def _text(content: Any, place: str) -> str:
    """A content as one text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"{place}: the content is {text_files.kind_of(content)}; give it a text")
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else text_files.kind_of(part)
            shown = printable(str(kind), 60)
            raise UserError(
                f"{place}: the content has a part that is no text ({shown}); leave it out"
            )
        parts.append(text)
    return "".join(parts)
