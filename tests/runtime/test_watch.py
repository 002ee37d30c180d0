"""The watch over the processes of a run, on pairs of sockets: who says what, and who ends."""

from __future__ import annotations

import queue
import socket

import pytest

from fqs_jax.runtime import watch as watch_lib
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
