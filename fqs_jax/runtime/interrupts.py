"""Stopping on request: Ctrl-C and SIGTERM set a flag that long work polls between steps.

A TPU or SLURM preemption notice is a SIGTERM as well. Of several processes one may get the signal
alone, so they ask one another before any of them stops.
"""

from __future__ import annotations

import functools
import os
import signal
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fqs_jax.runtime import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Raised where work stops on request, after its state is saved; `str` says how to go on."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Requests(NamedTuple):
    """What the processes of a run want together.

    signum: of the signal that came to any of them, else 0. save: whether any wants a checkpoint.
    """

    signum: int
    save: bool


class Interrupts:
    """While active, the first signal sets `signum`; a second one raises KeyboardInterrupt at once.

    Use as a context manager from the main thread; it turns that KeyboardInterrupt into Interrupted.
    Enter it after `processes.initialize`, or JAX takes the signals for itself.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}
        self._asked: jax.Array | None = None

    def __enter__(self) -> Interrupts:
        self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if kind is KeyboardInterrupt and self.signum is not None:
            raise Interrupted("stopped without saving; the last checkpoint stands", self.signum)

    def _handle(self, signum: int, _: types.FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        name = signal.Signals(signum).name
        note = f"\n{name}: finishing the step and saving; once more stops without saving\n"
        os.write(2, note.encode())  # print is not safe here: the signal may have come inside one

    def requests(self, save: bool = False) -> Requests:
        """What the processes want, the same answer in all of them; all must ask.

        With several processes this waits for their devices: for use between long pieces of work.
        """
        own = (self.signum or 0, int(save))
        if jax.process_count() > 1:
            own = np.max(multihost_utils.process_allgather(np.array(own, np.int32)), axis=0)
        return Requests(int(own[0]), bool(own[1]))

    def requests_of_last_step(self, save: bool = False) -> Requests:
        """As `requests`, without waiting: the answer to what was asked a step ago, for use at every step.

        The question travels behind the step under way. A single process has its answer at once.
        """
        if jax.process_count() == 1:
            return self.requests(save)
        answer = Requests(0, False)
        if self._asked is not None:
            signum, saves = np.asarray(self._asked)
            answer = Requests(int(signum), bool(saves))
        self._asked = processes.settled(_highest(np.array((self.signum or 0, save), np.int32)))
        return answer

    def forget_last_step(self) -> None:
        """Before the first step of another loop: what was asked in the one before is answered."""
        self._asked = None

    def check(self, message: str) -> None:
        """Raise Interrupted with the message if a signal came to any process."""
        if signum := self.requests().signum:
            raise Interrupted(message, signum)


def _highest(own: np.ndarray) -> jax.Array:
    """The highest value of any process, elementwise, on the devices; does not wait for them."""
    spread, maximum = _everyone()
    shape = (spread.num_devices, *own.shape)
    return maximum(jax.make_array_from_callback(shape, spread, lambda _: own[None]))


@functools.cache
def _everyone() -> tuple[jax.sharding.NamedSharding, Callable[[jax.Array], jax.Array]]:
    """A row for every device, and the maximum over them, on all of them."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    spread, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (("device",), ())
    )
    return spread, jax.jit(lambda x: jnp.max(x, axis=0), out_shardings=whole)
