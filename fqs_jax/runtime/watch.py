"""The watch that the processes of a run keep over one another, on the connections of their roll call.

A process that ends, hangs or fails leaves the others waiting in a collective. JAX's own heartbeat finds a
lost process after 50 to 100 s, names no host, and ends the others with SIGABRT. Its callback for that cannot
be in Python: jaxlib 0.10.2 ends with std::bad_cast instead.

Process 0 has a line to every other process, and they have one to it. Messages end with a newline: BEAT,
DONE, FAULT and its text, LOST and an exit code. What process 0 says, the others do not say again.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fqs_jax.runtime.stderr import say

BEAT, DONE, FAULT, LOST = "beat", "done", "fault", "lost"
# Exit codes of all others. A lost process may be worth another start: its code is the one with which JAX ends
# them, which batch systems know. A fault comes back.
AFTER_LOSS, AFTER_FAULT = 134, 2
SILENCE = 120.0  # seconds; long calls of native libraries let no other thread run
_PAUSE = 2.0  # seconds between beats
_GRACE = 4.0  # seconds for a process to end by itself when another has failed
_CAUSE = 1.0  # seconds in which a loss that has made another process fail is heard of
_WORD = 2.0  # seconds that a process with a fault waits for process 0 to say the same
# Seconds; longer than the grace: the others are aborted if process 0 ends before them.
_GOODBYE = 5.0
_MOST = 4000  # characters of a message


@dataclass
class Peer:
    """A process at the other end of a line.

    Attributes:
      heard: moment of `time.monotonic` when something last came from it.
      parted: DONE or FAULT and its text, once it has said so; None before.
      parted_at: the moment of that.
      gone: it has closed the line.
    """

    process_id: int
    host: str
    line: socket.socket
    heard: float = field(default_factory=time.monotonic)
    parted: str | None = None
    parted_at: float = 0.0
    gone: bool = False
    unread: bytes = b""

    def __str__(self) -> str:
        return f"process {self.process_id} on {self.host}"

    def tell(self, message: str) -> None:
        # It may be gone, or have hung for so long that its line is full.
        with contextlib.suppress(OSError):
            self.line.send(f"{message[:_MOST]}\n".encode())


class Watch:
    """The watch of one process, in a thread of its own.

    Args:
      own: number of this process.
      peers: all others, for process 0; process 0, for the others.
      silence: seconds without a beat after which a process is lost.
      end: ends this process with an exit code, from the thread.
    """

    def __init__(
        self,
        own: int,
        peers: Mapping[int, tuple[str, socket.socket]],
        silence: float = SILENCE,
        end: Callable[[int], object] = os._exit,
    ):
        self._own, self._silence, self._end = own, silence, end
        self._peers = [Peer(number, host, line) for number, (host, line) in peers.items()]
        self._news = threading.Condition()
        self._ends = False
        self._selector = selectors.DefaultSelector()
        for peer in self._peers:
            peer.line.setblocking(False)
            self._selector.register(peer.line, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def part(self, message: str) -> None:
        """Tell the others that this process ends by itself: DONE, or FAULT and its line.

        A fault may come of the loss of another process, which breaks collectives. Then the loss is what
        is said, and its exit code counts.
        """
        if message != DONE:
            self._wait(self._is_one_lost, _CAUSE)
            if self._is_one_lost():
                time.sleep(2 * _GOODBYE)  # the thread of this watch ends the process meanwhile
        self._ends = message != DONE
        self._tell(message)

    def meet(self) -> None:
        """Return when all processes have done their work; a lost or failed one ends this process here.

        JAX's own meeting at the exit holds Python's lock, so that no thread could keep watch meanwhile.
        """
        if self._own == 0:
            self._wait(lambda: all(peer.parted == DONE for peer in self._peers))
            self._tell(DONE)
        else:
            self._tell(DONE)
            self._wait(lambda: self._peers[0].parted == DONE)

    def said_by_main(self, line: str) -> bool:
        """True if process 0 has failed with the same line, or does in a moment."""
        if self._own == 0:
            return False
        self._wait(lambda: self._peers[0].parted is not None, _WORD)
        return self._peers[0].parted == f"{FAULT} {line}"[:_MOST]

    def wait_for_others(self) -> None:
        """Wait a moment until this process may end: process 0 last, after which the others are aborted."""
        seconds = _GOODBYE if self._ends else SILENCE
        if self._own == 0:
            self._wait(lambda: all(peer.gone for peer in self._peers), seconds)
        else:
            self._wait(lambda: self._peers[0].parted is not None, seconds)

    def _wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        with self._news:
            self._news.wait_for(condition, seconds)

    def _is_one_lost(self) -> bool:
        return any(
            peer.gone if peer.parted is None else peer.parted.startswith(LOST)
            for peer in self._peers
        )

    def _tell(self, message: str) -> None:
        for peer in self._peers:
            peer.tell(message)

    def _run(self) -> None:
        next_beat = time.monotonic()
        while not all(peer.gone for peer in self._peers):
            if time.monotonic() >= next_beat:
                self._tell(BEAT)
                next_beat = time.monotonic() + min(_PAUSE, self._silence / 4)
            self._selector.select(min(0.5, self._silence / 4))
            # All that has come by now is read before anybody is called silent: this process may have been
            # stopped itself, and a wait that was stopped in returns nothing.
            now = time.monotonic()
            for key, _ in self._selector.select(0):
                self._read(key.data)
            if not self._ends and (problem := self._find_problem(now)):
                self._give_up(*problem)
                return

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.line.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        with self._news:
            *messages, peer.unread = (peer.unread + data).split(b"\n")
            peer.heard = time.monotonic()
            for message in messages:
                word = message.decode(errors="replace")
                if word != BEAT and peer.parted is None:
                    peer.parted, peer.parted_at = word, peer.heard
            if not data:
                peer.gone = True
                self._selector.unregister(peer.line)
            self._news.notify_all()

    def _find_problem(self, now: float) -> tuple[str, int] | None:
        """Why this process cannot go on, "" if that was said elsewhere, and its exit code; None if it can.

        Args:
          now: a moment of `time.monotonic` up to which everything has been read.
        """
        for peer in self._peers:
            if peer.parted and peer.parted.startswith(LOST):
                return "", int(peer.parted.split()[1])
            if peer.parted == DONE:
                continue
            if peer.parted is not None:
                if now - peer.parted_at > _GRACE:
                    said = "" if self._own else f"{peer} stopped with an error: see its line"
                    return said, AFTER_FAULT
            elif peer.gone:
                return (
                    f"{peer} is gone without a word: see whether it was killed (out of memory, by the system "
                    "or by hand) or its host is down, and run the same command again to resume"
                ), AFTER_LOSS
            elif now - peer.heard > self._silence:
                return (
                    f"{peer} has been silent for {now - peer.heard:.0f} s: see whether it hangs, or its host "
                    "or network is down; end what is left of it, and run the same command again to resume"
                ), AFTER_LOSS
        return None

    def _give_up(self, problem: str, code: int) -> None:
        # Of the others, which lose process 0 together, process 1 speaks.
        if problem and self._own <= 1:
            with contextlib.suppress(OSError, ValueError):
                say(f"error: {problem}")
        if self._own == 0:
            self._tell(f"{LOST} {code}")
            end = time.monotonic() + _GOODBYE
            while time.monotonic() < end and not all(
                peer.gone or self._is_silent(peer) for peer in self._peers
            ):
                for key, _ in self._selector.select(0.2):
                    self._read(key.data)
        self._end(code)

    def _is_silent(self, peer: Peer) -> bool:
        return time.monotonic() - peer.heard > self._silence
