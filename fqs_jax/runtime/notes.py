"""Notes to the user: lines on stderr about what is odd but no obstacle."""

from __future__ import annotations

from fqs_jax.runtime import processes
from fqs_jax.runtime.stderr import say

_noted: set[str] = set()


def note(line: str, once: str = "") -> None:
    """Print a line on stderr, from process 0 alone, and only the first time.

    Args:
      once: what the line is about; of several lines about the same thing the first is printed. By
        default each line is about itself.
    """
    if processes.is_main() and (once or line) not in _noted:
        _noted.add(once or line)
        say(f"note: {line}")
