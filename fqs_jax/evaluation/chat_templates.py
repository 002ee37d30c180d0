"""Chat templates: the text that a chat becomes, as the folder of a model describes it.

The template is run by transformers, in its sandbox, and its files are the ones that transformers reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fqs_jax import huggingface
from fqs_jax.data import added_tokens
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable

_log = logging.getLogger(__name__)
_FILE, _FOLDER = "chat_template.jinja", "additional_chat_templates"
_MOST_BYTES = 1 << 20  # of a template
Message = dict[str, str]  # role and content


def read(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by name; the main one is "default". Empty if it has none.

    Raises:
      UserError: a template cannot be read, or is no text.
    """
    templates = {}
    if (folder / _FILE).exists():
        templates["default"] = _text(folder / _FILE, folder)
    for path in sorted((folder / _FOLDER).glob("*.jinja")):
        templates[path.stem] = _text(path, folder)
    if templates:
        return templates
    place = f"chat_template in {inputs.name(folder / 'tokenizer_config.json')}"
    kept = added_tokens.settings_of(folder).get("chat_template")
    if kept is None:
        return {}
    if isinstance(kept, list):  # of names and templates
        with contextlib.suppress(TypeError, KeyError):
            kept = {entry["name"]: entry["template"] for entry in kept}
    kept = kept if isinstance(kept, dict) else {"default": kept}
    if not all(isinstance(text, str) for text in (*kept, *kept.values())):
        raise UserError(f"{place} is no text; correct or remove it")
    return kept


def _text(path: Path, folder: Path) -> str:
    """The text of a file of the folder; a link out of it could put a secret into every prompt."""
    try:
        return huggingface.read_own(path, folder, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{inputs.name(path)}: not UTF-8; save it as UTF-8") from error


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A program that writes chats.

    Attributes:
      text: its source, in Jinja.
      tokens: the spelling of each special token, by its name in templates.
      source: folder that it is from, for messages.
    """

    text: str
    tokens: Mapping[str, str]
    source: Path

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text of a chat.

        A template that refuses system messages gets the chat without them, and a warning says so; the
        harness does the same.

        Args:
          add_generation_prompt: True = the text ends where an answer begins; False = the last message is
            one to continue.

        Raises:
          UserError: the template is broken, or refuses the chat.
        """
        from jinja2 import TemplateError

        try:
            try:
                return self._render(messages, add_generation_prompt)
            except TemplateError as error:
                rest = [message for message in messages if message["role"] != "system"]
                if len(rest) == len(messages):
                    raise
                text = self._render(rest, add_generation_prompt)
                _log.warning(
                    "the chat template refuses system messages; the chat is written without them (%s)",
                    printable(str(error), 200),
                )
                return text
        except Exception as error:  # a template is a program: anything can go wrong in it
            reason = printable(str(error).partition("\n")[0] or type(error).__name__, 200)
            raise UserError(
                f"{inputs.name(self.source)}: the chat template cannot be applied ({reason}); correct "
                "it, or leave --apply_chat_template out"
            ) from error

    def fingerprint(self) -> str:
        """A short text that differs for other templates and for other special tokens."""
        content = json.dumps([self.text, dict(self.tokens)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        from transformers.utils import chat_template_utils

        [text], _ = chat_template_utils.render_jinja_template(
            conversations=[list(messages)],
            chat_template=self.text,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.tokens,
        )
        return text


def choose(folder: Path, tokenizer: Tokenizer, name: str | None = None) -> ChatTemplate:
    """The template of a folder that has this name; None = the main one.

    Raises:
      UserError: there is none.
    """
    templates = read(folder)
    if not templates:
        raise UserError(
            f"{inputs.name(folder)} has no chat template ({_FILE}, or chat_template in "
            "tokenizer_config.json); leave --apply_chat_template out"
        )
    chosen = templates.get(name or "default")
    if chosen is None and name is None and len(templates) == 1:
        [chosen] = templates.values()
    if chosen is None:
        known = printable(", ".join(templates), 200)
        wanted = f"no chat template {printable(name, 60)!r}" if name else "several chat templates"
        raise UserError(
            f"{inputs.name(folder)} has {wanted}; name one of them, --apply_chat_template NAME: {known}"
        )
    return ChatTemplate(chosen, _special_tokens(folder, tokenizer), folder)


def _special_tokens(folder: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that the folder names, or else those that the tokenizer uses."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    found = {name: tokenizer.piece_of(i) for name, i in ids.items() if i is not None}
    settings = added_tokens.settings_of(folder)
    for name in added_tokens.NAMED:
        if (spelling := added_tokens.spelling(settings.get(name))) is not None:
            found[name] = spelling
    return found
