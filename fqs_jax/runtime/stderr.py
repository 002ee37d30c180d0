"""Lines on standard error that stay whole, whoever else writes at the same time."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Write a line to standard error in one piece.

    `print` writes the text and its end one after the other. Another thread may come in between, and may
    end the process there, as the watch of lost processes does: two lines are then one, and whoever looks
    for a line that begins with "error: " misses it.
    """
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
