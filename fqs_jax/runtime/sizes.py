"""Numbers of bytes for people."""

from __future__ import annotations


def shown(count: float) -> str:
    """A number of bytes in decimal units, such as 12.3 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
