"""SIGTERM in a run of several processes, from before the roll call to the last line.

A batch system sends it to a run that it wants back, but also to what is left of one that has failed. So
no process of a run may simply die of it: exit code 143 would say "asked to stop, and saved", and the job
would be queued again for a fault. The signal is kept until `interrupts.Interrupts` asks all processes.
"""

from __future__ import annotations

import os
import signal
import types

from fqs_jax.runtime.errors import UserError

_joined = False
_came = False


def take() -> None:
    """End with a fault at SIGTERM until `joined`, and then keep it for `came`. Call on the main thread."""
    signal.signal(signal.SIGTERM, _handle)


def joined() -> None:
    """From now on there are other processes to agree with."""
    global _joined
    _joined = True


def came() -> bool:
    """True if SIGTERM was kept."""
    return _came


def ignore() -> None:
    """Let no SIGTERM change an exit code that is decided; does nothing unless `take` was called."""
    if signal.getsignal(signal.SIGTERM) is _handle:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _handle(*_: int | types.FrameType | None) -> None:
    global _came
    if not _joined:
        raise UserError(
            "stopped by SIGTERM before all processes had come, and nothing was saved; see what stopped the "
            "others, and run the same command again"
        )
    if _came:
        raise UserError("stopped by SIGTERM without saving; the last checkpoint stands")
    _came = True
    # print is not safe here: the signal may have interrupted a print
    os.write(2, b"\nSIGTERM: stopping as soon as all processes agree; once more stops at once\n")
