"""Lines of several threads on standard error."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from fqs_jax.runtime.stderr import say


class _SlowStream(io.TextIOBase):
    """A stream that lets another thread write after each piece it gets."""

    def __init__(self) -> None:
        self.text = ""
        self._turn = threading.Barrier(2)

    def write(self, text: str) -> int:
        self.text += text
        self._turn.wait(timeout=10)
        return len(text)


def test_a_line_and_its_end_are_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _SlowStream()
    monkeypatch.setattr(sys, "stderr", stream)
    threads = [threading.Thread(target=say, args=[line]) for line in ("step 3", "error: gone")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stream.text.splitlines()) == ["error: gone", "step 3"]
