"""Text from outside, safe inside a page of HTML."""

from __future__ import annotations

import html

from fqs_jax.runtime.errors import printable


def visible(text: str) -> str:
    """Text with its control characters escaped, such as U+202E, which would reverse the page."""
    return printable(text, keep="\n\t")


def escape(text: str) -> str:
    """Text for an element or an attribute of HTML."""
    return html.escape(visible(text))
