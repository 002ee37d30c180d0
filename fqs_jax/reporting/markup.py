"""Text from outside, safe inside a page of HTML."""

from __future__ import annotations

import html

from fqs_jax.runtime.errors import visible


def escape(text: str) -> str:
    """Text for an element or an attribute of HTML."""
    return html.escape(visible(text))
