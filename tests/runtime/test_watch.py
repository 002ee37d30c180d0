"""The watch over the processes of a run, on pairs of sockets: who says what, and who ends."""

from __future__ import annotations

import queue
import selectors
import socket
import threading
import time

import pytest

from fqs_jax.runtime import roll_call
from fqs_jax.runtime import watch as watch_lib
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.watch import DONE, FAULT, LOST, Watch


def watched(
    own: int, *numbers: int, silence: float = 60.0
) -> tuple[Watch, list[socket.socket], queue.Queue[int]]:
    """A watch, the far ends of its lines, and the exit codes that it asks for."""
    pairs = {number: socket.socketpair() for number in numbers}
    codes: queue.Queue[int] = queue.Queue()
    lines = {number: (f"n{number}", near) for number, (near, _) in pairs.items()}
    watch = Watch(own, lines, silence, codes.put)
    return watch, [far for _, far in pairs.values()], codes


def heard(line: socket.socket) -> list[str]:
    """What has been said on a line, without beats, up to its last word."""
    line.settimeout(10)
    words: list[str] = []
    while not words:
        words += [w for w in line.recv(4096).decode().splitlines() if w != watch_lib.BEAT]
    return words


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_GRACE", 0.1), ("_WORD", 0.5), ("_GOODBYE", 0.3)):
        monkeypatch.setattr(watch_lib, name, seconds)


def test_a_killed_process_is_named_with_its_host(capsys: pytest.CaptureFixture[str]) -> None:
    _, (stays, killed), codes = watched(0, 1, 2)
    killed.close()
    assert codes.get(timeout=10) == 134
    said = capsys.readouterr().err
    assert said.startswith("error: process 2 on n2 is gone without a word: ")
    assert said.count("\n") == 1
    assert heard(stays) == [f"{LOST} 134"]


def test_a_silent_process_is_named_and_one_that_beats_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, (_, beats), codes = watched(0, 1, 2, silence=0.4)
    while codes.empty():
        beats.send(f"{watch_lib.BEAT}\n".encode())
    said = capsys.readouterr().err
    assert said.startswith("error: process 1 on n1 has been silent for 0 s: ")
    assert said.count("\n") == 1


def test_a_process_that_was_stopped_itself_listens_before_it_calls_others_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After SIGSTOP and SIGCONT a wait returns nothing, whatever has come meanwhile."""

    class Interrupted(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list:  # type: ignore[type-arg]
            if timeout:
                time.sleep(0.5)
                return []
            return super().select(timeout)

    monkeypatch.setattr("selectors.DefaultSelector", Interrupted)
    _, (main,), codes = watched(1, 0, silence=0.4)
    main.send(f"{watch_lib.BEAT}\n{LOST} 134\n".encode())
    assert codes.get(timeout=10) == 134
    assert capsys.readouterr().err == ""


def test_a_failed_process_ends_the_others_after_its_own_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, (failed,), codes = watched(0, 1)
    failed.send(f"{FAULT} full disk\n".encode())
    assert codes.get(timeout=10) == 2
    assert capsys.readouterr().err == "error: process 1 on n1 stopped with an error: see its line\n"


@pytest.mark.parametrize(
    ("word", "code"), [(f"{LOST} 134", 134), (f"{LOST} 2", 2), (f"{FAULT} full disk", 2)]
)
def test_what_process_0_has_said_is_not_said_again(
    word: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    _, (main,), codes = watched(1, 0)
    main.send(f"{word}\n".encode())
    assert codes.get(timeout=10) == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("own, speaks", [(1, True), (2, False)])
def test_process_1_speaks_when_process_0_is_gone(
    own: int, speaks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    _, (main,), codes = watched(own, 0)
    main.close()
    assert codes.get(timeout=10) == 134
    said = capsys.readouterr().err
    assert said.startswith("error: process 0 on n0 is gone") if speaks else said == ""


def test_the_same_fault_is_said_by_process_0_alone() -> None:
    for theirs, said in (("no stage 9", True), ("another", False), (None, False)):
        watch, (main,), _ = watched(1, 0)
        watch.part(f"{FAULT} no stage 9")
        if theirs is not None:
            main.send(f"{FAULT} {theirs}\n".encode())
        assert watch.said_by_main("no stage 9") == said
        assert heard(main) == [f"{FAULT} no stage 9"]


def test_all_meet_at_the_end_and_nobody_is_missed() -> None:
    watch, lines, codes = watched(0, 1, 2)
    for line in lines:
        line.send(f"{DONE}\n".encode())
    watch.meet()
    assert [heard(line) for line in lines] == [[DONE], [DONE]]
    for line in lines:
        line.close()
    watch.wait_for_others()
    assert codes.empty()


@pytest.mark.parametrize("own", [0, 1])
def test_a_fault_that_comes_of_a_loss_counts_as_the_loss(
    own: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A killed process breaks the collectives of the others, who must not call that their own fault."""
    watch, (other, *_), codes = watched(own, *([1, 2] if own == 0 else [0]))
    if own == 0:
        other.close()
    else:
        main = threading.Timer(0.2, lambda: other.send(f"{LOST} 134\n".encode()))
        main.start()
    watch.part(f"{FAULT} a device failed")
    assert codes.get(timeout=10) == 134
    named = "error: process 1 on n1 is gone without a word: "
    said = capsys.readouterr().err
    assert said.startswith(named) if own == 0 else said == ""


def test_what_follows_the_answer_of_the_roll_call_is_for_the_watch() -> None:
    near, far = socket.socketpair()
    far.send(f"go n01\n{watch_lib.BEAT}\n".encode())
    assert roll_call._read_answer(near) == "go n01"
    assert near.recv(100) == f"{watch_lib.BEAT}\n".encode()


def test_a_signal_during_the_roll_call_is_not_taken_for_a_stranger() -> None:
    class Stopped:
        def settimeout(self, _: float) -> None: ...

        def recv(self, _: int) -> bytes:
            raise UserError("stopped by SIGTERM")

    with pytest.raises(UserError, match="stopped by SIGTERM"):
        roll_call._identify(Stopped())  # type: ignore[arg-type]
