"""Tokens that the files around a tokenizer add to its trained vocabulary.

Four files may list them: tokenizer_config.json (added_tokens_decoder, additional_special_tokens, and
the named tokens such as eos_token), special_tokens_map.json, added_tokens.json, and tokenizer.json itself,
whose own tokens its library reads. They are found in the text before anything else is done with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable

NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


class Listed(NamedTuple):
    """An added token and its id; None = its id in the vocabulary, else the next free one."""

    token: AddedToken
    id: int | None


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings in tokenizer_config.json and special_tokens_map.json together.

    As in transformers, the second file counts if the first has no added_tokens_decoder.
    """
    settings = inputs.read_optional_json(folder / "tokenizer_config.json")
    special = inputs.read_optional_json(folder / "special_tokens_map.json")
    if "added_tokens_decoder" in settings:
        return {**special, **settings}
    return {**settings, **special}


def read(folder: Path, settings: Mapping[str, Any]) -> list[Listed]:
    """All added tokens: first those with an id, in its order, then named ones, then further ones.

    Args:
      settings: from `settings_of`.

    Raises:
      UserError: a list is malformed.
    """
    try:
        named = {key: _named(value) for key, value in settings.items() if _is_name(key)}
        extra = list(_extra(settings))
        special = {token.content for token in [*named.values(), *extra] if token is not None}
        found: dict[str, Listed] = {}
        for index, entry in (settings.get("added_tokens_decoder") or {}).items():
            found[entry["content"]] = Listed(_token(entry), _id(index))
        for content, index in inputs.read_optional_json(folder / "added_tokens.json").items():
            token = found[content].token if content in found else None
            known = content in special
            token = token or AddedToken(content, normalized=not known, special=known)
            found[content] = Listed(token, _id(index))
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{inputs.name(folder)}: the list of added tokens is malformed "
            f"({printable(repr(error), 200)})"
        ) from error
    listed = sorted(found.values(), key=lambda entry: entry.id or 0)
    for token in (*_in_order(named), *extra):
        if token.content not in found:
            found[token.content] = Listed(token, None)
            listed.append(found[token.content])
    for entry in listed:
        if named and entry.token.content in {t.content for t in named.values() if t is not None}:
            entry.token.special = True
    return listed


def spelling(value: Any) -> str | None:
    """The spelling of a token in a settings file, where it is a string, an object or null."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return None if value is None else str(value)


def _is_name(key: str) -> bool:
    """True for settings whose value is a token; models have names beyond the usual ones."""
    return key in NAMED or (key.endswith("_token") and not key.startswith("add_"))


def _in_order(named: Mapping[str, AddedToken | None]) -> Iterator[AddedToken]:
    for key in (*NAMED, *(key for key in named if key not in NAMED)):
        if (token := named.get(key)) is not None:
            yield token


def _named(value: Any) -> AddedToken | None:
    if not isinstance(value, str | Mapping) or not spelling(value):
        return None
    return _special(value)


def _extra(settings: Mapping[str, Any]) -> Iterator[AddedToken]:
    for key in ("extra_special_tokens", "additional_special_tokens"):
        value = settings.get(key) or []
        for token in value.values() if isinstance(value, Mapping) else value:
            if not isinstance(token, str | Mapping):
                raise TypeError(f"{key} has a {type(token).__name__}")
            if spelling(token):
                yield _special(token)


def _special(value: str | Mapping[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True)
    return _token({**value, "special": True})


def _token(entry: Mapping[str, Any]) -> AddedToken:
    flags = {name: entry[name] for name in _FLAGS if name in entry}
    return AddedToken(entry["content"], **flags)


def _id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"an id is {value!r}")
    if not 0 <= int(value) < 1 << 31:
        raise ValueError(f"{int(value)} is no id")
    return int(value)
