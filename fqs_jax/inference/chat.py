"""A loaded model that answers messages, by the chat template of its folder."""

from __future__ import annotations

import dataclasses

from fqs_jax.data import chat, messages
from fqs_jax.data.chat import ChatTemplate
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runtime.errors import UserError

_ANSWER = "An answer."


def for_chat(loaded: Loaded) -> tuple[Loaded, ChatTemplate]:
    """The same model for texts that its chat template writes, and the template.

    These texts have their own BOS token, so they get no other one, and what is generated ends at the
    template's end of a turn too.

    Raises:
      UserError: its folder has no chat template.
    """
    template = chat.choose(loaded.source, loaded.tokenizer)
    ends = loaded.tokenizer.other_ends | _ends_of_turn(template, loaded.tokenizer)
    tokenizer = dataclasses.replace(loaded.tokenizer, add_bos=False, other_ends=ends)
    return dataclasses.replace(loaded, tokenizer=tokenizer), template


def _ends_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> set[int]:
    """The token that the template writes behind an answer, such as <|im_end|>; none if it is plain text."""
    answered = [*messages.of_user("A question."), {"role": "assistant", "content": _ANSWER}]
    try:
        text = template.whole(answered)
    except UserError:  # the first prompt reports it
        return set()
    _, found, behind = text.rpartition(_ANSWER)
    ids = tokenizer.encode(behind.lstrip()) if found else []
    # A special token has no text. Some fine-tunes add theirs as an ordinary token.
    is_added = bool(ids) and (
        not tokenizer.decode([ids[0]] * 2) or ids[0] >= tokenizer.backend.trained_size
    )
    return {ids[0]} if is_added else set()
