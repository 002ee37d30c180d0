"""Chat templates: the text that a chat becomes, as the folder of a model describes it.

The template is run by transformers, in its sandbox, and its files are the ones that transformers reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fqs_jax.data import added_tokens
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable

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
        templates["default"] = inputs.read_text(folder / _FILE, _MOST_BYTES)
    for path in sorted((folder / _FOLDER).glob("*.jinja")):
        templates[path.stem] = inputs.read_text(path, _MOST_BYTES)
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


def choose(folder: Path, name: str | None = None) -> str:
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
    return chosen


def render(
    template: str, folder: Path, messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    """The text of a chat.

    A template that refuses system messages is given the chat without them, as by the harness.

    Args:
      folder: names the special tokens, which templates write.
      add_generation_prompt: True = the text ends where an answer begins; False = the last message is
        one to continue.

    Raises:
      UserError: the template is broken, or refuses the chat.
    """
    from transformers.utils import chat_template_utils

    tokens = _special_tokens(folder)

    def rendered(chat: Sequence[Message]) -> str:
        [text], _ = chat_template_utils.render_jinja_template(
            conversations=[list(chat)],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **tokens,
        )
        return text

    try:
        return rendered(messages)
    except Exception as error:  # a template is a program: anything can go wrong in it
        rest = [message for message in messages if message["role"] != "system"]
        if len(rest) < len(messages):
            with contextlib.suppress(Exception):
                return rendered(rest)
        reason = printable(str(error).partition("\n")[0] or type(error).__name__, 200)
        raise UserError(
            f"{inputs.name(folder)}: the chat template cannot be applied ({reason}); correct it, or "
            "leave --apply_chat_template out"
        ) from error


def fingerprint(template: str, folder: Path) -> str:
    """A short text that differs for another template, or for other special tokens of the folder."""
    content = json.dumps([template, _special_tokens(folder)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _special_tokens(folder: Path) -> dict[str, Any]:
    """The spelling of each special token that the folder names, by its name in templates."""
    settings = added_tokens.settings_of(folder)
    found: dict[str, Any] = {}
    for name in added_tokens.NAMED:
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found
