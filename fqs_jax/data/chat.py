"""Chat templates: the text that a conversation becomes, as the folder of a model describes it.

A template is a program of the folder's author. It runs in Jinja's sandbox, set up as in transformers, in a
process of its own that may take only so much time and memory (chat_child.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fqs_jax.data import added_tokens, chat_child
from fqs_jax.data.messages import Message
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.runtime import inputs, own_files
from fqs_jax.runtime.child_process import ChildProcess, Ended
from fqs_jax.runtime.errors import UserError, printable

_FILE, _FOLDER = "chat_template.jinja", "additional_chat_templates"
_SETTINGS = "tokenizer_config.json"
_MOST_BYTES = 1 << 20  # of a template
# The date that templates write into training rows, which must be the same on every day.
TRAINING_DATE = "2024-07-26"  # the one of Llama 3's template
# The system ends the process after so many seconds of work; on a busy machine these take longer.
_process = ChildProcess(lambda: chat_child.__file__, seconds=6.0 * chat_child.SECONDS)


class Refused(UserError):
    """The template raised an error: it is broken, or does not take this conversation."""


class Marked(NamedTuple):
    """The text of a conversation; start and end, in characters, of each part that the assistant writes."""

    text: str
    spans: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A program that writes conversations.

    Attributes:
      text: its source, in Jinja.
      tokens: the spelling of each special token, by its name in templates.
      source: file that it is from, for messages.
    """

    text: str
    tokens: Mapping[str, str]
    source: Path

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Args:
          add_generation_prompt: True = the text ends where an answer begins; False = the last message is
            one to continue.

        Raises:
          Refused: the template is broken, or refuses the conversation.
          UserError: it takes too much time or memory.
        """
        return str(self._ask(messages, prompt=add_generation_prompt)["text"])

    def whole(self, messages: Sequence[Message]) -> str:
        """The text of a conversation that ends after its last message. Errors as for `render`."""
        return str(self._ask(messages, open=False)["text"])

    def mark(self, messages: Sequence[Message]) -> Marked:
        """The text of a whole conversation and the assistant's parts of it, the same on every day.

        They are what the template marks with {% generation %}. If it marks nothing, each part is what the
        text of the conversation up to an answer has beyond the text that asks for this answer.

        Raises:
          Refused: as for `render`, or the parts cannot be found, because the template writes the
            beginning of a conversation otherwise when more messages follow.
          UserError: it takes too much time or memory.
        """
        found = self._ask(messages, open=False, marks=True, date=TRAINING_DATE)
        if "moving" in found:
            raise Refused(
                f"{inputs.name(self.source)}: the chat template writes what stands before and in message "
                f"{found['moving'] + 1} otherwise when more messages follow, so the assistant's part "
                "cannot be found; mark it with {% generation %} in the template"
            )
        return Marked(str(found["text"]), [(start, end) for start, end in found["spans"]])

    def fingerprint(self) -> str:
        """A short text that differs for other templates and for other special tokens."""
        content = json.dumps([self.text, dict(self.tokens)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _ask(
        self,
        messages: Sequence[Message],
        *,
        prompt: bool = False,
        open: bool | None = None,
        marks: bool = False,
        date: str | None = None,
    ) -> dict[str, Any]:
        """The findings of the process; see chat_child.py."""
        question = {
            "template": self.text,
            "variables": dict(self.tokens),
            "messages": list(messages),
            "prompt": prompt,
            "open": not prompt if open is None else open,
            "marks": marks,
            "date": date,
        }
        place = f"{inputs.name(self.source)}: the chat template"
        try:
            found: dict[str, Any] = _process.ask(question)
        except Ended as error:
            if error.code in (None, -signal.SIGXCPU):
                raise UserError(
                    f"{place} takes more than {chat_child.SECONDS} s for one conversation; correct it, "
                    "or shorten the conversation"
                ) from error
            found = {"memory": True}  # whatever else ends it, such as a machine without memory
        if "refused" in found:
            reason = printable(found["refused"], 200)
            raise Refused(
                f"{place} cannot be applied ({reason}); correct it, or do without a chat template"
            )
        if "memory" in found:
            raise UserError(
                f"{place} takes more than {chat_child.MEMORY >> 20} MiB of memory; correct it, or "
                "shorten the conversation"
            )
        if "long" in found:
            raise UserError(
                f"{place} writes more than {chat_child.MOST_CHARACTERS:,} characters; correct it, or "
                "shorten the conversation"
            )
        return found


def read(folder: Path) -> dict[str, tuple[str, Path]]:
    """The chat templates of a folder and their files, by name; the main one is "default".

    Returns:
      An empty dict if there are none.

    Raises:
      UserError: a template cannot be read, or is no text.
    """
    files = [folder / _FILE] if (folder / _FILE).exists() else []
    files += sorted((folder / _FOLDER).glob("*.jinja"))
    if files:
        names = ("default" if path.parent == folder else path.stem for path in files)
        return {name: (_text(path, folder), path) for name, path in zip(names, files, strict=True)}
    kept = added_tokens.settings_of(folder).get("chat_template")
    if kept is None:
        return {}
    if isinstance(kept, list):  # of names and templates
        with contextlib.suppress(TypeError, KeyError):
            kept = {entry["name"]: entry["template"] for entry in kept}
    kept = kept if isinstance(kept, dict) else {"default": kept}
    path = folder / _SETTINGS
    if not all(isinstance(text, str) for text in (*kept, *kept.values())):
        raise UserError(f"chat_template in {inputs.name(path)} is no text; correct or remove it")
    return {name: (text, path) for name, text in kept.items()}


def _text(path: Path, folder: Path) -> str:
    """The text of a file of the folder; a link out of it could put a secret into every prompt."""
    try:
        return own_files.read(path, folder, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{inputs.name(path)}: not UTF-8; save it as UTF-8") from error


def choose(folder: Path, tokenizer: Tokenizer, name: str | None = None) -> ChatTemplate:
    """The template of a folder that has this name; None = the main one.

    Raises:
      UserError: there is none.
    """
    templates = read(folder)
    if not templates:
        raise UserError(
            f"{inputs.name(folder)} has no chat template ({_FILE}, or chat_template in {_SETTINGS}); "
            "use a model that has one, or do without a chat template"
        )
    chosen = templates.get(name or "default")
    if chosen is None and name is None and len(templates) == 1:
        [chosen] = templates.values()
    if chosen is None:
        known = printable(", ".join(templates), 200)
        wanted = (
            f"no chat template {printable(name, 60)!r}; name one of them"
            if name
            else "several chat templates and none called default; name one of them, or keep only it"
        )
        raise UserError(f"{inputs.name(folder)} has {wanted}: {known}")
    return ChatTemplate(chosen[0], _special_tokens(folder, tokenizer), chosen[1])


def _special_tokens(folder: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that the folder names, or else those that the tokenizer uses."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    found = {name: tokenizer.piece_of(i) for name, i in ids.items() if i is not None}
    settings = added_tokens.settings_of(folder)
    for name in added_tokens.NAMED:
        if (spelling := added_tokens.spelling(settings.get(name))) is not None:
            found[name] = spelling
    return found
